//! Clients of every kind: on sockets and on several addresses, too many of them, patient and impatient, silent, deaf.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::time::{Duration, Instant};

use autossm_lab::Lab;
use autossm_lab::destination::BANNER;
use autossm_lab::fault::{ApiFault, Call, Fault};
use autossm_lab::options::Options;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;

use crate::daemon::{Daemon, own_address, tunnel, until};

const NO_SESSION: Fault = Fault::Api(Call::Start, ApiFault::Internal);

async fn lab() -> Lab {
    Lab::start(Options::default()).await.unwrap()
}

async fn echoes(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    stream.write_all(b"ping").await.unwrap();
    let mut back = [0; 4];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"ping");
}

/// Connects, and is sent away.
async fn sent_away(address: SocketAddr) {
    match TcpStream::connect(address).await {
        Ok(mut stream) => closed(&mut stream).await,
        // So soon that there was no connection yet for this end.
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
}

/// Waits for the end of a connection on which nothing came.
async fn closed(stream: &mut TcpStream) {
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_and_two_addresses_serve_one_tunnel() {
    let lab = lab().await;
    let (first, second) = (own_address(), own_address());
    let folder = tempfile::Builder::new().prefix("e2e-").tempdir_in("/tmp").unwrap();
    let path = folder.path().join("echo.sock");
    // What a process that was killed leaves behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let config = tunnel(&lab, "echo", first, lab.echo_addr(), "").replace(
        &format!("listen = \"{first}\""),
        &format!("listen = [\"{first}\", \"{second}\", \"unix:{}\"]", path.display()),
    );
    let daemon = Daemon::start(first, &config);
    daemon.event("ready").await;
    let file = std::fs::symlink_metadata(&path).unwrap();
    assert!(file.file_type().is_socket());
    assert_eq!(file.permissions().mode() & 0o777, 0o660);
    echoes(TcpStream::connect(first).await.unwrap()).await;
    echoes(TcpStream::connect(second).await.unwrap()).await;
    echoes(UnixStream::connect(&path).await.unwrap()).await;
    assert_eq!(lab.status().start.processed, 1);
    daemon.stop(&lab).await;
    assert!(!path.exists(), "the socket's file is left");
}

/// What is at a socket's path may be precious if it is no socket; and another process's socket is its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_is_taken_is_left_alone() {
    let lab = lab().await;
    let folder = tempfile::Builder::new().prefix("e2e-").tempdir_in("/tmp").unwrap();
    let (file, live) = (folder.path().join("file"), folder.path().join("live"));
    std::fs::write(&file, "precious").unwrap();
    let holder = tokio::net::UnixListener::bind(&live).unwrap();
    for path in [&file, &live] {
        let address = own_address();
        let config = tunnel(&lab, "echo", address, lab.echo_addr(), "")
            .replace(&format!("\"{address}\""), &format!("\"unix:{}\"", path.display()));
        let mut daemon = Daemon::start(address, &config);
        assert_eq!(daemon.exit().await.code(), Some(69));
        let said = daemon.event("bind_failed").await;
        assert!(said.text.contains(path.to_str().unwrap()), "{}", said.text);
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    let (accepted, _client) = tokio::join!(holder.accept(), UnixStream::connect(&live));
    accepted.expect("the socket still belongs to its holder");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_max_connections_clients_are_closed_at_once() {
    let lab = lab().await;
    let daemon = Daemon::echo(&lab, "max_connections = 3").await;
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(daemon.address).await.unwrap();
        echoes(&mut stream).await;
        open.push(stream);
    }
    let began = Instant::now();
    for _ in 0..50 {
        sent_away(daemon.address).await;
    }
    let took = began.elapsed();
    daemon.event("client_refused").await;
    let lines = daemon.events("client_refused");
    let most = 1 + took.as_secs() as usize;
    assert!(lines.len() <= most, "{} lines within {took:?}", lines.len());
    assert!(lines[0].text.contains("max_connections = 3"), "{}", lines[0].text);
    // The next line tells how many were left out.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    sent_away(daemon.address).await;
    let told = daemon.event_times("client_refused", lines.len() + 1).await;
    let all: u64 = told.iter().map(|line| 1 + line.number("left_out")).sum();
    assert_eq!(all, 51, "{told:?}");
    for stream in &mut open {
        echoes(stream).await;
    }
    drop(open.pop());
    let streams = || lab.status().sessions.values().map(|session| session.streams).sum::<usize>();
    until("a free place", || (streams() == 2).then_some(())).await;
    echoes(TcpStream::connect(daemon.address).await.unwrap()).await;
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_max_held_clients_are_closed_at_once() {
    let lab = lab().await;
    lab.set(NO_SESSION);
    let address = own_address();
    let daemon = Daemon::start(address, &tunnel(&lab, "echo", address, lab.echo_addr(), "max_held = 2"));
    daemon.event("failed").await;
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(TcpStream::connect(address).await.unwrap());
    }
    daemon.event("holding").await;
    let began = Instant::now();
    for _ in 0..10 {
        sent_away(address).await;
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let refused = daemon.event("client_refused").await;
    assert!(refused.text.contains("max_held = 2"), "{}", refused.text);
    lab.clear(NO_SESSION);
    for stream in &mut held {
        echoes(stream).await;
    }
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_client_that_leaves_is_forgotten() {
    let lab = lab().await;
    lab.set(NO_SESSION);
    let address = own_address();
    let daemon = Daemon::start(address, &tunnel(&lab, "echo", address, lab.echo_addr(), "max_held = 3"));
    daemon.event("failed").await;
    let leaves = TcpStream::connect(address).await.unwrap();
    let mut stay = [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
    // A fourth is closed, until the first has left.
    sent_away(address).await;
    drop(leaves);
    let mut fourth = loop {
        let Ok(mut stream) = TcpStream::connect(address).await else { continue };
        if tokio::time::timeout(Duration::from_millis(300), closed(&mut stream)).await.is_err() {
            break stream;
        }
    };
    lab.clear(NO_SESSION);
    for stream in stay.iter_mut().chain([&mut fourth]) {
        echoes(stream).await;
    }
    let released = daemon.event("held_released").await;
    assert_eq!(released.number("clients"), 3, "{}", released.text);
    assert_eq!(lab.status().dialled, 3, "the one that left was connected");
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_held_no_longer_than_hold() {
    let lab = lab().await;
    lab.set(NO_SESSION);
    let address = own_address();
    let daemon = Daemon::start(address, &tunnel(&lab, "echo", address, lab.echo_addr(), "hold = \"2s\""));
    daemon.event("failed").await;
    let mut clients = JoinSet::new();
    for n in 0..5 {
        clients.spawn(async move {
            let began = Instant::now();
            let mut stream = TcpStream::connect(address).await.unwrap();
            if n % 2 == 0 {
                stream.write_all(b"ping").await.unwrap();
            }
            closed(&mut stream).await;
            began.elapsed()
        });
    }
    for waited in clients.join_all().await {
        assert!(waited >= Duration::from_secs(2) && waited < Duration::from_secs(4), "{waited:?}");
    }
    lab.clear(NO_SESSION);
    let told = daemon.event("held_timed_out").await;
    assert_eq!(told.number("clients"), 5, "{}", told.text);
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_may_speak_first() {
    let lab = lab().await;
    let address = own_address();
    let banner = lab.addresses().destinations.banner;
    let daemon = Daemon::start(address, &tunnel(&lab, "banner", address, banner, ""));
    daemon.event("ready").await;
    for round in 0..5 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut said = vec![0; BANNER.len()];
        let heard = stream.read_exact(&mut said).await;
        assert!(heard.is_ok() && said == BANNER, "{heard:?} {said:?}\n{}", daemon.tail());
        echoes(stream).await;
        if round == 2 {
            lab.close_all(1000, "Bye");
        }
    }
    daemon.stop(&lab).await;
}

/// One client that asks for much and reads none of it stalls the plugin for everybody: the mux has no window of its
/// own for each stream. The plugin is not hung, and goes on when that client has gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_reads_has_no_plugin_killed() {
    let lab = lab().await;
    let (address, other) = (own_address(), own_address());
    let endless = lab.addresses().destinations.endless;
    // One session for both destinations is not to be had: the deaf client's tunnel is watched by itself.
    let config = format!(
        "{}{}",
        tunnel(&lab, "endless", address, endless, ""),
        tunnel(&lab, "echo", other, lab.echo_addr(), "")
    );
    let daemon = Daemon::start(address, &config);
    daemon.event_times("ready", 2).await;
    // A second session for the clients beside it, and that is all.
    let unharmed = || {
        assert!(daemon.events("lost").is_empty() && lab.sessions().len() <= 3, "{}", daemon.tail());
    };
    let deaf = TcpStream::connect(address).await.unwrap();
    // Full to the last buffer, and then twice the time after which a hung plugin is given up.
    let (began, mut taken, mut since) = (Instant::now(), 0, Instant::now());
    while since.elapsed() < Duration::from_secs(32) {
        // The other tunnel's session has sent a handful.
        let sent = lab.status().sessions.values().map(|session| session.sent).max().unwrap_or_default();
        if sent != taken {
            (taken, since) = (sent, Instant::now());
        }
        assert!(began.elapsed() < Duration::from_secs(150), "it takes endlessly: {taken} messages");
        unharmed();
        echoes(TcpStream::connect(other).await.unwrap()).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    println!(
        "deaf client: {} messages taken, then a standstill of {:.0} s",
        taken,
        since.elapsed().as_secs_f64()
    );
    unharmed();
    drop(deaf);
    // Another client of the same session hears the server again.
    let mut next = TcpStream::connect(address).await.unwrap();
    let mut bytes = vec![0; 300_000];
    tokio::time::timeout(Duration::from_secs(60), next.read_exact(&mut bytes))
        .await
        .expect("it goes on")
        .unwrap();
    assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == at as u8));
    unharmed();
    drop(next);
    daemon.stop(&lab).await;
}

async fn comes_back(stream: &mut TcpStream, sent: &[u8], what: &str) {
    stream.write_all(sent).await.unwrap();
    let mut back = vec![0; sent.len()];
    stream.read_exact(&mut back).await.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(back == sent, "{what}: other bytes came back");
}

/// The plugin's streams are matched to clients by their order: first all at once, then one by one, so that the plugin
/// changes line feeds and each has to be restored in the right stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_clients_at_once_have_each_their_own_bytes() {
    let lab = lab().await;
    let daemon = Daemon::echo(&lab, "max_connections = 300").await;
    let mut clients = JoinSet::new();
    let began = Instant::now();
    for client in 0..200 {
        let address = daemon.address;
        clients.spawn(async move {
            let mut random = StdRng::seed_from_u64(client);
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.set_nodelay(true).unwrap();
            for round in 0..4 {
                let sent: Vec<u8> = (0..random.random_range(1..2500)).map(|_| random.random()).collect();
                comes_back(&mut stream, &sent, &format!("client {client}, round {round}")).await;
            }
            (client, stream)
        });
    }
    let mut streams = clients.join_all().await;
    let together = began.elapsed();
    for (client, stream) in &mut streams {
        for end in [b'\n', b'\r'] {
            let mut sent = vec![b'a'; 1017];
            sent[1016] = end;
            comes_back(stream, &sent, &format!("client {client}, ending in {end:#04x}")).await;
        }
    }
    let restored = daemon.log().iter().filter(|line| line.field("event") == "line_feed_restored").count();
    println!("200 clients at once: {:.1} s, then {restored} line feeds restored", together.as_secs_f64());
    assert!(restored > 0, "the plugin changed none, so that nothing was shown");
    assert_eq!(lab.status().start.processed, 1);
    drop(streams);
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_that_refuses_has_its_client_closed() {
    let lab = lab().await;
    let daemon = Daemon::echo(&lab, "").await;
    let sessions = lab.sessions();
    lab.set(Fault::DestinationRefused);
    for _ in 0..2 {
        let mut stream = TcpStream::connect(daemon.address).await.unwrap();
        stream.write_all(b"ping").await.unwrap();
        closed(&mut stream).await;
    }
    daemon.event_times("destination_failed", 2).await;
    lab.clear(Fault::DestinationRefused);
    echoes(TcpStream::connect(daemon.address).await.unwrap()).await;
    assert_eq!(lab.sessions(), sessions);
    daemon.stop(&lab).await;
}
