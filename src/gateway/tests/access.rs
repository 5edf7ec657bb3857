//! Who gets in, where to, and what becomes of the plugin's calls to AWS.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

#[tokio::test]
async fn nobody_gets_in_without_the_secret_and_nowhere_but_to_aws() {
    let bench = Bench::new(GatewayMode::Hold).await;
    let port = bench.service.listener.local_addr().unwrap().port();
    for (target, credentials, expected) in [
        (format!("{HOST}:443"), Some("autossm:guess"), "HTTP/1.1 407 Proxy Authentication Required"),
        (format!("{HOST}:443"), Some(""), "HTTP/1.1 407 Proxy Authentication Required"),
        ("evil.example:443".into(), None, "HTTP/1.1 403 Forbidden"),
        (format!("{HOST}:22"), None, "HTTP/1.1 403 Forbidden"),
        (format!("{HOST}:443"), None, "HTTP/1.1 200 OK"),
        (format!("localhost:{port}"), None, "HTTP/1.1 200 OK"),
    ] {
        assert_eq!(bench.connect(&target, credentials).await.1, expected, "{target}");
    }
}

/// Whoever speaks without end is answered before it has ended, and whoever speaks slowly not at all.
#[tokio::test]
async fn a_request_has_to_be_short_and_soon() {
    let bench = Bench::new(GatewayMode::Hold).await;
    let address = bench.gateway.access().address;
    let mut endless = TcpStream::connect(address).await.unwrap();
    endless.write_all(b"CONNECT a.amazonaws.com:443 HTTP/1.1\r\n").await.unwrap();
    let mut written = 0;
    // Both may be seen: the answer, or that nobody reads any more.
    while written < 10_000 && endless.write_all(b"x: 0123456789\r\n").await.is_ok() {
        written += 1;
    }
    assert!(written <= 10_000);
    let mut answer = Vec::new();
    let _ = endless.read_to_end(&mut answer).await;
    assert!(
        answer.is_empty() || answer.starts_with(b"HTTP/1.1 431 "),
        "{}",
        String::from_utf8_lossy(&answer)
    );

    let mut slow = TcpStream::connect(address).await.unwrap();
    let mut silent = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"CONNECT a.amazonaws.com:443 HTT").await.unwrap();
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    for stream in [&mut slow, &mut silent] {
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
    }
    assert!((10..12).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

/// A process of this host that knows no secret opens as many connections as there may be, and more.
#[tokio::test]
async fn strangers_do_not_keep_the_plugin_out() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let (mut plugin, mut service) = bench.opened().await;
    let address = bench.gateway.access().address;
    let mut strangers = Vec::new();
    for _ in 0..200 {
        strangers.push(TcpStream::connect(address).await.unwrap());
    }
    assert_eq!(bench.connect(&format!("{HOST}:443"), None).await.1, "HTTP/1.1 200 OK");
    // The first of them were closed; what had been let in was not.
    assert_eq!(strangers[0].read(&mut [0; 1]).await.unwrap_or(0), 0);
    plugin.send(input(0, b"hello")).await.unwrap();
    assert_eq!(View::new(&binary(&mut service).await).unwrap().payload(), b"hello");
}

#[tokio::test]
async fn the_plugins_calls_about_its_session_are_answered_here() {
    let bench = Bench::new(GatewayMode::Hold).await;
    let host = "ssm.us-east-1.amazonaws.com";
    let io = TokioIo::new(bench.secure(host, 443).await);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut call = async |operation: &str| -> serde_json::Value {
        let request = Request::post("/")
            .header("host", host)
            .header("x-amz-target", format!("AmazonSSM.{operation}"))
            .body(Full::new(Bytes::from_static(b"{}")))
            .unwrap();
        let body = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap();
        serde_json::from_slice(&body.to_bytes()).unwrap()
    };
    let resumed = call("ResumeSession").await;
    assert_eq!(resumed["StreamUrl"], stream_url("0"));
    assert_eq!(resumed["TokenValue"], bench.gateway.access().session.token.expose_secret());
    assert_eq!(call("TerminateSession").await["SessionId"], SESSION);
    assert_eq!(*bench.api.resumed.lock().unwrap(), 0);
    drop(sender);
    connection.await.unwrap().unwrap();
}

#[tokio::test]
async fn another_call_goes_on_with_real_credentials() {
    let bench = Bench::new(GatewayMode::Hold).await;
    let port = bench.service.listener.local_addr().unwrap().port();
    let io = TokioIo::new(bench.secure("localhost", port).await);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::post("/")
        .header("host", "localhost")
        .header("x-amz-target", "TrentService.GenerateDataKey")
        .header(
            "authorization",
            "AWS4-HMAC-SHA256 Credential=STANDIN/20260101/us-east-1/kms/aws4_request, SignedHeaders=host, Signature=0",
        )
        .body(Full::new(Bytes::from_static(b"{\"KeyId\":\"k\"}")))
        .unwrap();
    let service = service_fn(|request: Request<hyper::body::Incoming>| async move {
        let authorization = request.headers()["authorization"].to_str().unwrap().to_owned();
        assert_eq!(request.uri(), "/");
        assert!(
            authorization.contains("AKIAREAL/") && authorization.contains("/us-east-1/kms/"),
            "{authorization}"
        );
        assert_eq!(request.headers()["x-amz-security-token"], "real-session");
        let body = request.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "{\"KeyId\":\"k\"}");
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"the key"))))
    });
    let served = async {
        http1::Builder::new()
            .serve_connection(TokioIo::new(bench.service.tcp().await), service)
            .await
            .unwrap();
    };
    let (response, ()) = tokio::join!(sender.send_request(request), served);
    let response = response.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "the key");
    drop(sender);
    connection.await.unwrap().unwrap();
}
