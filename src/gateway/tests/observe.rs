//! The mode that passes TLS on as it is, and only watches.

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::*;

#[tokio::test]
async fn observe_passes_tls_on_and_watches_the_data_channel() {
    let mut bench = Bench::new(GatewayMode::Observe).await;
    let access = bench.gateway.access();
    assert_eq!(access.session.token.expose_secret(), TOKEN);
    let trusted = bench.variable("SSL_CERT_DIR").split(':').next().unwrap().to_owned();
    let (stream, answer) = bench.connect(&format!("{HOST}:443"), None).await;
    assert_eq!(answer, "HTTP/1.1 200 OK");

    let config = tls::trusting(&Path::new(&trusted).join("ca.pem"));
    let connector = TlsConnector::from(config);
    // The service's certificate in this test is for `localhost`.
    let (plugin, service) = tokio::join!(
        connector.connect(ServerName::try_from("localhost").unwrap(), stream),
        bench.service.tcp()
    );
    let (mut plugin, mut service) = (plugin.unwrap(), service);
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
    let trusted = bench.variable("SSL_CERT_DIR").split(':').next().unwrap().to_owned();
    let (stream, _) = bench.connect(&format!("{HOST}:443"), None).await;
    let config = tls::trusting(&Path::new(&trusted).join("ca.pem"));
    let (plugin, service) = tokio::join!(
        TlsConnector::from(config).connect(ServerName::try_from("localhost").unwrap(), stream),
        bench.service.tcp()
    );
    let (mut plugin, mut service) = (plugin.unwrap(), service);
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
