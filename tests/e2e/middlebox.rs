//! Something between the daemon and the service that has its own ideas of HTTP: load balancers, inspecting proxies,
//! captive portals.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use autossm_lab::Lab;
use autossm_lab::options::Options;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::daemon::{Daemon, own_address, tunnel};

/// Rewrites the headers of every upgrade's answer, or answers with a page of its own.
struct Middlebox {
    address: SocketAddr,
    page: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Middlebox {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Middlebox {
    async fn before(lab: &Lab) -> Self {
        let service = lab.stream_endpoint_ws().strip_prefix("ws://").unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, page) = (listener.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
        let shown = page.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(serve(client, service.clone(), shown.load(Relaxed)));
            }
        });
        Self { address, page, task }
    }

    fn config(&self, lab: &Lab, address: SocketAddr) -> String {
        let own = format!("ws://{}", self.address);
        tunnel(lab, "echo", address, lab.echo_addr(), "").replace(&lab.stream_endpoint_ws(), &own)
    }
}

async fn serve(mut client: TcpStream, service: String, page: bool) {
    if page {
        head(&mut client).await;
        let body = "<!DOCTYPE html><title>Guest network</title>";
        let length = body.len();
        let page =
            format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {length}\r\n\r\n{body}");
        // The test may have ended.
        let _ = client.write_all(page.as_bytes()).await;
        return;
    }
    let mut service = TcpStream::connect(service).await.unwrap();
    let asked = head(&mut client).await;
    service.write_all(asked.as_bytes()).await.unwrap();
    let mut answer = String::from("HTTP/1.1 101\r\nVia: 1.1 middlebox\r\n");
    for line in head(&mut service).await.trim_end().lines().skip(1) {
        let (name, value) = line.split_once(':').unwrap();
        let line = match name.to_ascii_lowercase().as_str() {
            "connection" => "CONNECTION: keep-alive, Upgrade".to_owned(),
            "upgrade" => "upgrade: WebSocket".to_owned(),
            name => format!("{name}:{}", value.trim()),
        };
        answer += &format!("{line}\r\n");
    }
    client.write_all(format!("{answer}\r\n").as_bytes()).await.unwrap();
    let _ = copy_bidirectional(&mut client, &mut service).await;
}

async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

async fn echo(address: SocketAddr) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"ping").await.unwrap();
    let mut back = [0; 4];
    tokio::time::timeout(Duration::from_secs(30), stream.read_exact(&mut back)).await.unwrap().unwrap();
    assert_eq!(&back, b"ping");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_headers_of_an_upgrade_may_be_rewritten() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let middlebox = Middlebox::before(&lab).await;
    let address = own_address();
    let daemon = Daemon::start(address, &middlebox.config(&lab, address));
    daemon.event("ready").await;
    echo(address).await;
    lab.close_all(1000, "Bye");
    daemon.event("resumed").await;
    echo(address).await;
    assert!(daemon.events("resume_failed").is_empty());
    assert_eq!((lab.status().start.processed, lab.status().resume.processed), (1, 1));
    daemon.stop(&lab).await;
}

/// What stands in the way is said at once, also of a session that has never been open, and once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_instead_of_a_data_channel_is_told_at_once() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let middlebox = Middlebox::before(&lab).await;
    middlebox.page.store(true, Relaxed);
    let (address, began) = (own_address(), Instant::now());
    let daemon = Daemon::start(address, &middlebox.config(&lab, address));
    let told = daemon.event("resume_failed").await;
    let after = began.elapsed();
    let words = format!(
        "{} has answered with HTTP 200 OK, a page (text/html) “Guest network” instead of a WebSocket; ",
        middlebox.address
    );
    assert!(told.field("reason").contains(&words), "{}", told.text);
    assert!(told.field("message").starts_with("not opened yet: "), "{}", told.text);
    assert_eq!(told.field("class"), "network or service");
    println!("a page instead of a data channel: told {} ms after the daemon's start", after.as_millis());
    let down = daemon.event("down").await;
    assert!(down.field("reason").contains(&words), "{}", down.text);
    middlebox.page.store(false, Relaxed);
    daemon.event("ready").await;
    echo(address).await;
    assert_eq!(daemon.events("resume_failed").len(), 1);
    assert_eq!(lab.status().start.processed, 1, "the session has waited");
    // And of one that was open.
    middlebox.page.store(true, Relaxed);
    lab.close_all(1000, "Bye");
    let told = daemon.event_times("resume_failed", 2).await.remove(1);
    assert!(told.field("message").starts_with("not resumed yet: "), "{}", told.text);
    middlebox.page.store(false, Relaxed);
    daemon.event("resumed").await;
    echo(address).await;
    daemon.stop(&lab).await;
}
