//! A service that misbehaves: every answer that it may give, messages lost on the way, a way that is slow, targets that
//! are not there; and sessions that come and go under load.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use autossm_lab::Lab;
use autossm_lab::fault::{ApiFault, Call, Fault, Link, Loss, UpgradeFault};
use autossm_lab::options::{Node, Options};
use nix::sys::signal::{Signal, kill};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::daemon::{Daemon, own_address, tunnel, until};
use crate::faults::{KEYS, loaded};

async fn lab() -> Lab {
    Lab::start(Options::default()).await.unwrap()
}

async fn echoes(address: SocketAddr) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"ping").await.unwrap();
    let mut back = [0; 4];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"ping");
}

/// What StartSession may answer instead of a session, and what an operator reads of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_start_session_answers_is_told_with_its_class() {
    let table = [
        (ApiFault::Garbage, "network or service", "StartSession: "),
        (
            ApiFault::Internal,
            "network or service",
            "InternalServerError: An error occurred on the server side.",
        ),
        (ApiFault::Throttled, "throttled", "ThrottlingException: Rate exceeded"),
        (ApiFault::Denied, "access", "AccessDeniedException: "),
        (ApiFault::Forbidden, "access", "HTTP 403"),
        (ApiFault::Expired, "access", "ExpiredTokenException: "),
        (ApiFault::TargetNotConnected, "target not connected", "i-0123456789abcdef0 is not connected."),
        (ApiFault::Silence, "network or service", "no answer within 20 s"),
    ];
    let mut rows = JoinSet::new();
    for (fault, class, words) in table {
        rows.spawn(async move {
            let lab = lab().await;
            lab.set(Fault::Api(Call::Start, fault));
            let address = own_address();
            let daemon = Daemon::start(address, &tunnel(&lab, "echo", address, lab.echo_addr(), ""));
            let began = Instant::now();
            let failed = daemon.event("failed").await;
            println!(
                "StartSession {fault:?}: after {:.1} s: {}",
                began.elapsed().as_secs_f64(),
                failed.field("message")
            );
            assert_eq!(failed.field("class"), class, "{fault:?}: {}", failed.text);
            assert!(failed.field("reason").contains(words), "{fault:?}: {}", failed.text);
            assert!(failed.field("reason").starts_with("StartSession: "), "{fault:?}: {}", failed.text);
            assert!(began.elapsed() < Duration::from_secs(25), "{fault:?}: {:?}", began.elapsed());
            let level = if class == "access" { "ERROR" } else { "WARN" };
            assert_eq!(failed.fields["level"], level, "{}", failed.text);
            lab.clear(Fault::Api(Call::Start, fault));
            let ready = daemon.event("ready").await;
            echoes(address).await;
            // A call that was given up may have started a session all the same, when the service came to it at last. Of
            // that one nobody here knows the id.
            for session in lab.sessions().iter().filter(|session| *session != ready.field("session")) {
                assert_eq!(fault, ApiFault::Silence, "{session} is left");
                lab.terminate(session, "nobody knows of it");
            }
            daemon.stop(&lab).await;
        });
    }
    rows.join_all().await;
}

/// The data channel cannot be opened from the beginning: the words and the class of the refusal are in the line that
/// says that there is no session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_channel_that_is_refused_from_the_beginning() {
    for (fault, class, words) in [
        (UpgradeFault::Refused(403), "access", "403 Forbidden"),
        (UpgradeFault::Refused(500), "network or service", "500 Internal Server Error"),
        (UpgradeFault::Stalled, "network or service", "upgrade took over 10 s"),
    ] {
        let lab = lab().await;
        lab.set(Fault::Upgrades(fault));
        let address = own_address();
        let daemon = Daemon::start(address, &tunnel(&lab, "echo", address, lab.echo_addr(), ""));
        let failed = daemon.event("failed").await;
        println!("upgrades {fault:?}: {}", failed.field("message"));
        lab.clear(Fault::Upgrades(fault));
        assert_eq!(failed.field("class"), class, "{fault:?}: {}", failed.text);
        assert!(failed.field("reason").contains(words), "{fault:?}: {}", failed.text);
        daemon.event("ready").await;
        echoes(address).await;
        daemon.stop(&lab).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_and_stalled_upgrades_are_outlived() {
    let lab = lab().await;
    let daemon = Daemon::echo(&lab, KEYS).await;
    let outcome = loaded("upgrades refused for 8 s, stalled for 15 s", lab, daemon, async |lab, daemon| {
        for (fault, time) in [(UpgradeFault::Refused(503), 8), (UpgradeFault::Stalled, 15)] {
            // The second time there may be two sessions, one of them for the long-lived connection alone.
            let closed = || (lab.close_all(1000, "Bye") > 0).then_some(());
            lab.set(Fault::Upgrades(fault));
            let interrupted = daemon.events("interrupted").len();
            until("an open data channel", closed).await;
            daemon.event_times("interrupted", interrupted + 1).await;
            lab.set_for(Fault::Upgrades(fault), Duration::from_secs(time)).await.unwrap();
            daemon.event_times("resumed", interrupted + 1).await;
        }
    })
    .await;
    outcome.none_failed().long_lived_survives();
}

/// Sends random bytes in pieces, each compared with its echo, for a time; returns how many there were.
async fn exact(address: SocketAddr, seed: u64, time: Duration) -> usize {
    let mut random = StdRng::seed_from_u64(seed);
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (began, mut total) = (Instant::now(), 0);
    while began.elapsed() < time {
        let mut sent: Vec<u8> = (0..random.random_range(1..6000)).map(|_| random.random()).collect();
        sent.push(if random.random() { b'\n' } else { b'\r' });
        let mut back = vec![0; sent.len()];
        stream.write_all(&sent).await.unwrap();
        let read = tokio::time::timeout(Duration::from_secs(60), stream.read_exact(&mut back)).await;
        read.unwrap_or_else(|_| panic!("client {seed}: stuck after {total} bytes")).unwrap();
        assert!(back == sent, "client {seed}: differs after {total} bytes");
        total += sent.len();
    }
    total
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_messages_are_all_sent_again() {
    let lab = lab().await;
    let daemon = Daemon::echo(&lab, "").await;
    let loss = Loss { input: 0.05, output: 0.05, acknowledgements_in: 0.05, acknowledgements_out: 0.05 };
    lab.set(Fault::LostMessages(loss));
    let mut clients = JoinSet::new();
    for seed in 0..4 {
        clients.spawn(exact(daemon.address, seed, Duration::from_secs(20)));
    }
    let bytes: usize = clients.join_all().await.into_iter().sum();
    let status = lab.status();
    println!("5 % lost for 20 s: {bytes} bytes exact, {} messages lost", status.lost);
    assert!(status.lost > 20 && bytes > 20_000, "{bytes} bytes, {} lost", status.lost);
    lab.clear(Fault::LostMessages(loss));
    assert_eq!((status.start.processed, status.resume.processed), (1, 0), "{}", daemon.tail());
    echoes(daemon.address).await;
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_way_is_no_failure() {
    let lab = lab().await;
    let link = Link { latency: Duration::from_millis(150), bandwidth: 20_000 };
    lab.set(Fault::SlowLink(link));
    let daemon = Daemon::echo(&lab, "").await;
    let mut clients = JoinSet::new();
    for seed in 0..4 {
        clients.spawn(exact(daemon.address, seed, Duration::from_secs(30)));
    }
    let bytes: usize = clients.join_all().await.into_iter().sum();
    println!("20 kB/s, 300 ms round trip, 30 s: {bytes} bytes exact");
    assert_eq!((lab.status().start.processed, lab.status().resume.processed), (1, 0), "{}", daemon.tail());
    lab.clear(Fault::SlowLink(link));
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_sessions_and_a_plugin_killed_every_second() {
    let lab = lab().await;
    let daemon = Daemon::echo(&lab, &format!("sessions = 2\n{KEYS}")).await;
    daemon.event_times("ready", 2).await;
    let outcome = loaded("2 sessions, a plugin killed every second", lab, daemon, async |_, daemon| {
        let mut kills = 0;
        for second in 0..20 {
            let plugins = daemon.plugins();
            if let Some(plugin) = plugins.get(second % plugins.len().max(1)) {
                kill(*plugin, Signal::SIGKILL).unwrap();
                kills += 1;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert!(kills > 10, "only {kills}");
    })
    .await;
    outcome.none_failed();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_list_the_first_target_that_is_connected_is_taken() {
    let (away, there) = ("i-0aaaaaaaaaaaaaaa1", "i-0bbbbbbbbbbbbbbb2");
    let offline = Node { id: away.into(), online: false, tags: BTreeMap::new() };
    let lab = Lab::start(Options { nodes: vec![offline], ..Options::default() }).await.unwrap();
    let address = own_address();
    let config = tunnel(&lab, "echo", address, lab.echo_addr(), "")
        .replace("\"i-0123456789abcdef0\"", &format!("[\"{away}\", \"{there}\"]"));
    let daemon = Daemon::start(address, &config);
    let began = Instant::now();
    let passed_over = daemon.event("target_passed_over").await;
    assert!(passed_over.field("reason").contains("TargetNotConnected"), "{}", passed_over.text);
    daemon.event("ready").await;
    assert!(began.elapsed() < Duration::from_secs(5), "the next target was not tried at once");
    assert!(lab.status().sessions.values().all(|session| session.target == there));
    echoes(address).await;

    // When the first one is back, the next session goes there.
    lab.set_node(Node { id: away.into(), online: true, tags: BTreeMap::new() });
    lab.terminate_all("Session terminated by an administrator");
    daemon.event_times("ready", 2).await;
    assert!(lab.status().sessions.values().all(|session| session.target == away));
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_tag_a_node_that_is_online_is_taken() {
    let mut nodes: Vec<_> =
        (0..12).map(|n| Node::tagged(&format!("i-0aaaaaaaaaaaaaa{n:02}"), "Role", "bastion")).collect();
    nodes.iter_mut().for_each(|node| node.online = false);
    let lab = Lab::start(Options { nodes, ..Options::default() }).await.unwrap();
    let address = own_address();
    let config = tunnel(&lab, "echo", address, lab.echo_addr(), "")
        .replace("\"i-0123456789abcdef0\"", "{ tag = \"Role=bastion\" }");
    let daemon = Daemon::start(address, &config);
    let failed = daemon.event("failed").await;
    assert_eq!(failed.field("class"), "target not connected", "{}", failed.text);
    assert!(
        failed.text.contains("no managed node with tag Role=bastion is online in us-west-2"),
        "{}",
        failed.text
    );
    let there = Node::tagged("mi-0bbbbbbbbbbbbbbb2", "Role", "bastion");
    lab.set_node(there.clone());
    daemon.event("ready").await;
    assert!(lab.status().sessions.values().all(|session| session.target == there.id));
    echoes(address).await;
    daemon.stop(&lab).await;
}
