//! The plugins against the lab: traffic, the hourly close, and the two ways in which sessions are lost without one.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use autossm_lab::Lab;
use autossm_lab::fault::{ApiFault, Call, Fault};
use autossm_lab::options::Options;

use crate::fake::SOON;
use crate::plugin::{Plugin, plugins};

/// A CONNECT proxy that leads every name to the lab; its port.
async fn proxy_to(lab: &Lab) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, service) = (listener.local_addr().unwrap().port(), lab.addresses().tls);
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(from.read_u8().await?);
                }
                from.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
                copy_bidirectional(&mut from, &mut TcpStream::connect(service).await?).await
            });
        }
    });
    port
}

/// A session of the lab to its echo server, as StartSession returned it.
async fn start_session(lab: &Lab) -> Value {
    let port = lab.echo_addr().port().to_string();
    let body = json!({
        "Target": "i-0123456789abcdef0",
        "DocumentName": "AWS-StartPortForwardingSession",
        "Parameters": { "portNumber": [port], "localPortNumber": ["0"] },
    })
    .to_string();
    // The lab looks at the form of a signature, not at its value.
    let signature = format!(
        "AWS4-HMAC-SHA256 Credential=AKID/20260102/us-west-2/ssm/aws4_request, SignedHeaders=host;x-amz-date, Signature={}",
        "0".repeat(64)
    );
    let request = format!(
        "POST / HTTP/1.1\r\nHost: ssm.us-west-2.amazonaws.com\r\nX-Amz-Target: AmazonSSM.StartSession\r\nX-Amz-Date: 20260102T030405Z\r\nAuthorization: {signature}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut tcp = TcpStream::connect(lab.addresses().api).await.unwrap();
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap()
}

async fn forwarding(path: &Path) -> (Lab, Plugin, u16) {
    let lab = Lab::start(Options::default()).await.unwrap();
    let session = start_session(&lab).await;
    let mut plugin = Plugin::start(path, proxy_to(&lab).await, lab.ca_directory(), &session.to_string());
    let port = plugin.port().await;
    (lab, plugin, port)
}

async fn echo(tcp: &mut TcpStream, length: usize) {
    // No line feed, which the plugin might change.
    let sent: Vec<u8> = (0..length).map(|at| b'a' + (at % 26) as u8).collect();
    let mut received = vec![0; length];
    let (mut from, mut to) = tcp.split();
    let both = async { tokio::try_join!(to.write_all(&sent), from.read_exact(&mut received)).map(|_| ()) };
    timeout(SOON, both).await.expect("no echo").unwrap();
    assert!(sent == received, "the echo differs");
}

async fn connect(port: u16) -> TcpStream {
    TcpStream::connect(("127.0.0.1", port)).await.unwrap()
}

#[tokio::test]
async fn quiet_connections_survive_hourly_closes() {
    for path in plugins() {
        let (lab, _plugin, port) = forwarding(&path).await;
        let mut long_lived = connect(port).await;
        for round in 1..5 {
            for length in [1, 32, 1017, 50_000] {
                echo(&mut long_lived, length).await;
                echo(&mut connect(port).await, length).await;
            }
            // Until the end of every other connection is acknowledged: nothing is on its way when the close comes.
            lab.wait_for("quiet", SOON, |status| {
                status.sessions.values().all(|session| session.streams == 1 && session.unacknowledged == 0)
            })
            .await
            .unwrap();
            assert_eq!(lab.close_all(1000, "Bye"), 1);
            lab.wait_for("resumption", SOON, |status| {
                status.opened == round + 1 && status.ready_sessions() == 1
            })
            .await
            .unwrap();
        }
        echo(&mut long_lived, 3000).await;
        let status = lab.status();
        assert_eq!((status.resume.processed, status.violations.as_slice()), (4, &[][..]), "{path:?}");
        assert_eq!((status.unsigned_calls, status.bad_tokens), (0, 0));
    }
}

#[tokio::test]
async fn resumes_refused_for_longer_than_the_budget_leave_a_zombie() {
    for path in plugins() {
        let (lab, mut plugin, port) = forwarding(&path).await;
        lab.set(Fault::Api(Call::Resume, ApiFault::Denied));
        assert_eq!(lab.close_all(1000, "Bye"), 1);
        lab.wait_for("six tries", SOON, |status| status.resume.processed == 6).await.unwrap();
        lab.clear_all();
        // The service is well again, and the plugin does not ask.
        tokio::time::sleep(Duration::from_millis(3500)).await;
        assert_eq!(lab.status().resume.processed, 6, "{path:?}");
        assert!(plugin.is_running());
        let mut client = connect(port).await;
        client.write_all(b"anybody?").await.unwrap();
        let answer = timeout(Duration::from_millis(500), client.read_u8()).await;
        // It may notice with this client what it usually notices with the next one, and exit.
        let exited = matches!(answer, Ok(Err(_))) && {
            let (printed, _) = plugin.ended().await;
            printed.ends_with("Cannot perform start session: websocket: close sent\n")
        };
        assert!(answer.is_err() || exited, "{answer:?} {path:?}");
    }
}

#[tokio::test]
async fn a_client_that_writes_into_the_gap_kills_the_session() {
    for path in plugins() {
        let (lab, mut plugin, port) = forwarding(&path).await;
        let mut long_lived = connect(port).await;
        echo(&mut long_lived, 10).await;
        let gap = lab.set_for(Fault::Api(Call::Resume, ApiFault::Denied), Duration::from_secs(1));
        assert_eq!(lab.close_all(1000, "Bye"), 1);
        lab.wait_for("a try", SOON, |status| status.resume.processed >= 1).await.unwrap();
        long_lived.write_all(b"x").await.unwrap();
        // The service is well again and the plugin resumes; but the sending has ended.
        gap.await.unwrap();
        lab.wait_for("resumption", SOON, |status| status.opened == 2).await.unwrap();
        assert!(timeout(Duration::from_millis(500), long_lived.read_u8()).await.is_err(), "{path:?}");
        assert!(plugin.is_running());
        drop(TcpStream::connect(("127.0.0.1", port)).await);
        let (printed, status) = plugin.ended().await;
        assert!(
            printed.ends_with("Cannot perform start session: websocket: close sent\n"),
            "{printed:?} {path:?}"
        );
        assert_eq!(status.code(), Some(0));
    }
}
