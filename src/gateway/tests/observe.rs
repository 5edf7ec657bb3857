//! The mode that passes TLS on as it is, and only watches.

use std::future::poll_fn;
use std::task::{Context, Waker};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::*;
use crate::gateway::link::Connection;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Both ends of a connection made for a data channel.
async fn connected(bench: &mut Bench) -> (impl Connection + use<>, impl Connection + use<>) {
    let trusted = bench.variable("SSL_CERT_DIR").split(':').next().unwrap().to_owned();
    let (stream, answer) = bench.connect(&format!("{HOST}:443"), None).await;
    assert_eq!(answer, "HTTP/1.1 200 OK");
    let config = tls::trusting(&Path::new(&trusted).join("ca.pem"));
    let connector = TlsConnector::from(config);
    // The service's certificate in these tests is for `localhost`.
    let (plugin, service) = tokio::join!(
        connector.connect(ServerName::try_from("localhost").unwrap(), stream),
        bench.service.tcp()
    );
    (plugin.unwrap(), service)
}

/// A data channel that is open.
async fn opened(bench: &mut Bench) -> (impl Connection + use<>, impl Connection + use<>) {
    let (mut plugin, mut service) = connected(bench).await;
    for _upgrade_and_token in 0..2 {
        plugin.write_all(&[b'x'; 400]).await.unwrap();
        service.read_exact(&mut [0; 400]).await.unwrap();
        service.write_all(b"answer").await.unwrap();
        plugin.read_exact(&mut [0; 6]).await.unwrap();
    }
    assert_eq!(bench.event().await, Event::ChannelOpened);
    (plugin, service)
}

/// Whether the plugin may be given something; then it was.
fn gives(bench: &Bench, stream: u32) -> bool {
    bench.ledger.poll_turn(&Context::from_waker(Waker::noop()), stream, 5).is_ready()
}

#[tokio::test]
async fn observe_gives_the_plugin_nothing_while_its_channel_is_closed() {
    let mut bench = Bench::new(GatewayMode::Observe).await;
    let (mut plugin, mut service) = opened(&mut bench).await;
    assert!(gives(&bench, 3) && bench.ledger.asks_turns());
    plugin.write_all(&[b'x'; 200]).await.unwrap();
    service.read_exact(&mut [0; 200]).await.unwrap();
    // What it was given a moment ago may still be on its way.
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(2)).await;
    tokio::time::resume();
    drop(service);
    assert!(matches!(bench.event().await, Event::ChannelClosed { .. }));
    assert!(bench.ledger.is_shut() && !gives(&bench, 3));
    let ledger = bench.ledger.clone();
    let waiting = tokio::spawn(async move { poll_fn(|cx| ledger.poll_turn(cx, 5, 100)).await });
    let (_plugin, _service) = opened(&mut bench).await;
    assert_eq!(waiting.await.unwrap(), 100);
    assert!(!bench.ledger.is_shut() && gives(&bench, 3));
}

#[tokio::test]
async fn observe_gives_up_a_plugin_that_was_sending_as_its_channel_was_closed() {
    let mut bench = Bench::new(GatewayMode::Observe).await;
    let (_plugin, service) = opened(&mut bench).await;
    assert!(gives(&bench, 3));
    drop(service);
    assert!(matches!(bench.event().await, Event::ChannelClosed { .. }));
    let Event::PluginHung { reason } = bench.event().await else { panic!("not hung") };
    assert_eq!(reason, "it was sending when its data channel was closed (closed)");
}

#[tokio::test]
async fn observe_notices_a_plugin_that_lets_bytes_lie() {
    let mut bench = Bench::new(GatewayMode::Observe).await;
    let (mut plugin, mut service) = opened(&mut bench).await;
    [3, 5].into_iter().for_each(|stream| bench.ledger.serves(stream));
    assert!(gives(&bench, 3));
    plugin.write_all(&[b'x'; 200]).await.unwrap();
    service.read_exact(&mut [0; 200]).await.unwrap();
    tokio::time::pause();
    assert!(tokio::time::timeout(DAY, bench.events.recv()).await.is_err(), "it owes nothing");
    assert!(gives(&bench, 3) && gives(&bench, 5));
    bench.ledger.leave(3, false);
    let began = tokio::time::Instant::now();
    let Event::PluginHung { reason } = bench.event().await else { panic!("not hung") };
    assert_eq!(reason, "for 15 s it has sent nothing of what clients send");
    assert!((15..18).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

/// What comes long after the plugin has sent anything answers nothing of it; acknowledgements come all at once.
#[tokio::test]
async fn observe_notices_a_plugin_that_does_not_acknowledge_any_more() {
    for (pause, told) in [(Duration::ZERO, false), (Duration::from_secs(1), true)] {
        let mut bench = Bench::new(GatewayMode::Observe).await;
        let (mut plugin, mut service) = opened(&mut bench).await;
        tokio::time::pause();
        // A TLS record each.
        for _ in 0..12 {
            service.write_all(&[b'x'; 300]).await.unwrap();
            service.flush().await.unwrap();
            plugin.read_exact(&mut [0; 300]).await.unwrap();
            tokio::time::sleep(pause).await;
        }
        let event = tokio::time::timeout(Duration::from_secs(60), bench.events.recv()).await;
        assert_eq!(event.ok().flatten(), told.then_some(Event::Unheeded));
        tokio::time::resume();
    }
}

#[tokio::test]
async fn observe_passes_tls_on_and_watches_the_data_channel() {
    let mut bench = Bench::new(GatewayMode::Observe).await;
    let access = bench.gateway.access();
    assert_eq!(access.session.token.expose_secret(), TOKEN);
    let (mut plugin, mut service) = connected(&mut bench).await;
    let said = [b'x'; 400];
    let mut heard = [0; 400];
    for opened in [false, true] {
        plugin.write_all(&said).await.unwrap();
        service.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, said);
        if opened {
            assert_eq!(bench.event().await, Event::ChannelOpened);
        }
        service.write_all(b"answer").await.unwrap();
        plugin.read_exact(&mut heard[..6]).await.unwrap();
    }
    drop(service);
    // The plugin keeps its own side open.
    assert!(matches!(bench.event().await, Event::ChannelClosed { code: None, .. }));
    drop(plugin);
}

/// An upgrade that is refused was no opening, and its end is told all the same: better twice than never.
#[tokio::test]
async fn observe_takes_no_connection_for_a_data_channel_before_the_upgrade() {
    let mut bench = Bench::new(GatewayMode::Observe).await;
    let (mut plugin, mut service) = connected(&mut bench).await;
    plugin.write_all(&[b'x'; 400]).await.unwrap();
    service.read_exact(&mut [0; 400]).await.unwrap();
    service.write_all(b"HTTP/1.1 403 Forbidden\r\n\r\n").await.unwrap();
    service.shutdown().await.unwrap();
    assert!(matches!(bench.event().await, Event::ChannelClosed { code: None, .. }));
}

#[tokio::test]
async fn observe_hands_out_credentials_to_the_plugin_only() {
    let bench = Bench::new(GatewayMode::Observe).await;
    let token = bench.variable("AWS_CONTAINER_AUTHORIZATION_TOKEN");
    for (presented, expected) in [(token, 200), ("guess", 401), ("", 401)] {
        let stream = TcpStream::connect(bench.gateway.access().address).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(connection);
        let request =
            Request::get("/credentials").header("authorization", presented).body(Full::<Bytes>::default());
        let response = sender.send_request(request.unwrap()).await.unwrap();
        assert_eq!(response.status(), expected);
        if expected == 200 {
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!((&body["AccessKeyId"], &body["Token"]), (&"AKIAREAL".into(), &"real-session".into()));
        }
        drop(sender);
        connection.await.unwrap().unwrap();
    }
}
