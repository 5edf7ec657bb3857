//! What goes through an open data channel, until the session or the gateway ends.

use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::net::TcpStream;

use super::*;
use crate::gateway::message::Header;

#[tokio::test]
async fn an_endpoint_on_loopback_may_do_without_tls() {
    let mut bench = Bench::with_endpoint(GatewayMode::Hold, false).await;
    let (mut plugin, mut service) = bench.opened().await;
    plugin.send(input(0, b"hello")).await.unwrap();
    assert_eq!(View::new(&binary(&mut service).await).unwrap().payload(), b"hello");
}

#[tokio::test]
async fn a_plugin_that_reconnects_goes_on_with_the_same_service() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let (mut plugin, mut service) = bench.opened().await;
    plugin.send(input(0, b"one")).await.unwrap();
    binary(&mut service).await;
    drop(plugin);
    let mut plugin = bench.plugin().await;
    plugin.send(input(1, b"two")).await.unwrap();
    loop {
        // The first is sent again until it is acknowledged; the second opening message never comes.
        let message = service.next().await.unwrap().unwrap();
        let Message::Binary(bytes) = message else {
            panic!("the service saw the plugin reconnect: {message}")
        };
        if View::new(&bytes).unwrap().payload() == b"two" {
            break;
        }
    }
    service.send(output(0, b"answer")).await.unwrap();
    assert_eq!(View::new(&binary(&mut plugin).await).unwrap().payload(), b"answer");
    assert_eq!(*bench.api.resumed.lock().unwrap(), 0);
}

#[tokio::test]
async fn a_changed_line_feed_arrives_as_it_was_sent() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let (mut plugin, mut service) = bench.opened().await;
    let stream = bench.ledger.open();
    bench.ledger.write(stream, b"x\n");
    let frames = [mux::tests::frame(0, stream, b""), mux::tests::frame(2, stream, b"x\n")].concat();
    plugin.send(input(0, &frames[..frames.len() - 1])).await.unwrap();
    plugin.send(input(1, b"\r")).await.unwrap();
    let mut received = Vec::new();
    for number in 0..2 {
        let bytes = binary(&mut service).await;
        let view = View::new(&bytes).unwrap();
        if view.number() == number {
            received.extend_from_slice(view.payload());
        }
    }
    assert_eq!(received, frames);
}

/// The plugin does not read: its direction waits, the other one goes on.
#[tokio::test]
async fn a_plugin_that_does_not_read_blocks_only_its_direction() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let (mut plugin, service) = bench.opened().await;
    let (mut to_gateway, mut from_gateway) = service.split();
    let flood = tokio::spawn(async move {
        for number in 0.. {
            // Ends with the gateway.
            if to_gateway.send(output(number, &[0; 60_000])).await.is_err() {
                return number;
            }
        }
        unreachable!()
    });
    for number in 0..200 {
        plugin.feed(input(number, &[1; 1024])).await.unwrap();
        plugin.flush().await.unwrap();
        loop {
            let Message::Binary(bytes) = from_gateway.next().await.unwrap().unwrap() else { continue };
            if View::new(&bytes).unwrap().number() == number {
                break;
            }
        }
    }
    assert!(!flood.is_finished());
    bench.gateway.close().await;
    drop((plugin, from_gateway));
    let sent = flood.await.unwrap();
    assert!(sent * 60_000 < 64 << 20, "buffers are bounded: {sent} messages went in");
}

#[tokio::test]
async fn the_services_end_of_the_session_is_passed_on_and_told() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let (mut plugin, mut service) = bench.opened().await;
    let closed = Header { kind: b"channel_closed", created: 1, number: 0, flags: 0, payload_type: 0 }
        .with_payload(br#"{"Output":"Your session timed out due to inactivity"}"#);
    service.send(Message::Binary(closed.clone())).await.unwrap();
    assert_eq!(binary(&mut plugin).await, closed);
    let reason = "Your session timed out due to inactivity".to_owned();
    assert_eq!(bench.event().await, Event::SessionEnded { reason, declared: true });
    drop(service);
    drop(plugin);
    bench.gateway.close().await;
    assert_eq!(bench.events.recv().await, None, "an ended session is not resumed");
    assert_eq!(*bench.api.resumed.lock().unwrap(), 0);
}

#[tokio::test]
async fn dropping_the_gateway_ends_everything() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let (mut plugin, mut service) = bench.opened().await;
    let address = bench.gateway.access().address;
    drop(bench.gateway);
    assert!(!matches!(plugin.next().await, Some(Ok(_))));
    assert!(!matches!(service.next().await, Some(Ok(_))));
    assert_eq!(bench.events.recv().await, None);
    TcpStream::connect(address).await.unwrap_err();
}

/// A message in between ends the stock plugin's reading for good.
#[tokio::test]
async fn a_plugin_that_opens_its_port_gets_nothing_until_it_is_open() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let (mut plugin, mut service) = bench.opening().await;
    establish(&mut plugin, &mut service).await;
    plugin.send(input(0, b"the handshake's response")).await.unwrap();
    let bytes = binary(&mut service).await;
    service.send(Message::Binary(View::new(&bytes).unwrap().acknowledgement())).await.unwrap();
    // What the service sends is read in its order: when this is answered, the acknowledgement has been.
    service.send(Message::Ping(Bytes::new())).await.unwrap();
    while !matches!(service.next().await.unwrap().unwrap(), Message::Pong(_)) {}
    // The gateway's own pings are answered by the plugin's WebSocket, and start nothing.
    assert!(plugin.next().now_or_never().is_none(), "the plugin was given something");
    bench.gateway.plugin_listens();
    assert_eq!(View::new(&binary(&mut plugin).await).unwrap().acknowledged(), Some(0));
}
