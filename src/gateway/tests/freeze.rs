//! A service that answers no ping, and what becomes of its data channel when it answers again, or when another one is
//! opened beside it.

use super::*;
use crate::gateway::message::Header;
use bytes::Bytes;

/// The service's first data channel is left alone until the gateway has given up waiting for it.
async fn unanswered() -> (Bench, PluginSocket, ServiceSocket) {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let (mut plugin, mut service) = bench.opened().await;
    establish(&mut plugin, &mut service).await;
    // The plugin's end answers: only the service stands still.
    tokio::time::pause();
    let noticed = loop {
        tokio::select! {
            biased;
            event = bench.events.recv() => break event.unwrap(),
            Some(_) = plugin.next() => {}
        }
    };
    assert_eq!(noticed, Event::Interrupted(Interruption::Unanswered));
    tokio::time::resume();
    (bench, plugin, service)
}

/// The next message of the plugin's stream: acknowledgements that may be lost go out again before it.
async fn stream_message(service: &mut ServiceSocket) -> Bytes {
    loop {
        let bytes = binary(service).await;
        if View::new(&bytes).unwrap().kind() == message::Kind::Input {
            return bytes;
        }
    }
}

/// Nothing that kernels and service hold is thrown away, in either direction.
#[tokio::test]
async fn a_data_channel_that_moves_again_goes_on() {
    let (mut bench, mut plugin, mut service) = unanswered().await;
    // It is being opened, but the service takes no connection.
    plugin.send(input(0, b"meanwhile")).await.unwrap();
    service.send(output(1, b"what was under way")).await.unwrap();
    assert_eq!(View::new(&binary(&mut plugin).await).unwrap().payload(), b"what was under way");
    assert!(matches!(bench.event().await, Event::ChannelResumed { attempts: 0, .. }));
    assert_eq!(View::new(&binary(&mut service).await).unwrap().payload(), b"meanwhile");
}

#[tokio::test]
async fn another_one_takes_over_and_the_first_is_read_to_its_end() {
    let (mut bench, mut plugin, mut first) = unanswered().await;
    plugin.send(input(0, b"sent twice")).await.unwrap();
    let (mut second, _, _, opening) = bench.service.accept().await;
    assert_eq!(opening["TokenValue"], "token-1");
    let bytes = stream_message(&mut second).await;
    let sent = View::new(&bytes).unwrap();
    assert_eq!((sent.number(), sent.payload()), (0, &b"sent twice"[..]));
    // The agent's later message overtakes the earlier one, which is still under way on the first.
    second.send(output(2, b"later")).await.unwrap();
    assert_eq!(View::new(&binary(&mut plugin).await).unwrap().payload(), b"later");
    second.send(Message::Binary(sent.acknowledgement())).await.unwrap();
    binary(&mut plugin).await;
    first.send(output(1, b"earlier")).await.unwrap();
    assert_eq!(View::new(&binary(&mut plugin).await).unwrap().payload(), b"earlier");
    assert!(matches!(bench.event().await, Event::ChannelResumed { attempts: 1, .. }));
    // What the first says of its own end is no end of the session's, nor is garbage.
    let header = Header { kind: b"channel_closed", created: 1, number: 0, flags: 0, payload_type: 0 };
    first.send(Message::Binary(header.with_payload(b"{}"))).await.unwrap();
    first.send(Message::Binary(Bytes::from_static(b"garbage"))).await.unwrap();
    drop(first);
    second.send(output(3, b"goes on")).await.unwrap();
    assert_eq!(View::new(&binary(&mut plugin).await).unwrap().payload(), b"goes on");
    assert_eq!(bench.event_so_far(), None);
}

/// Once the other one's opening message is sent, the first may bring nothing more.
#[tokio::test]
async fn an_opening_that_the_service_has_got_is_finished() {
    let (mut bench, mut plugin, mut first) = unanswered().await;
    let (mut second, ..) = bench.service.accept().await;
    first.send(output(1, b"of the first")).await.unwrap();
    assert_eq!(View::new(&binary(&mut plugin).await).unwrap().payload(), b"of the first");
    assert!(matches!(bench.event().await, Event::ChannelResumed { .. }));
    second.send(output(2, b"of the second")).await.unwrap();
    assert_eq!(View::new(&binary(&mut plugin).await).unwrap().payload(), b"of the second");
    plugin.send(input(0, b"request")).await.unwrap();
    assert_eq!(View::new(&stream_message(&mut second).await).unwrap().payload(), b"request");
}

#[tokio::test]
async fn a_data_channel_that_is_cut_while_it_stands_still_is_closed() {
    let (mut bench, mut plugin, first) = unanswered().await;
    drop(first);
    assert!(matches!(bench.event().await, Event::ChannelClosed { .. }));
    let (mut second, ..) = bench.service.accept().await;
    assert!(matches!(bench.event().await, Event::ChannelResumed { attempts: 1, .. }));
    second.send(output(1, b"goes on")).await.unwrap();
    assert_eq!(View::new(&binary(&mut plugin).await).unwrap().payload(), b"goes on");
}
