//! Clients that do not read, and pools of sessions: what one does must not be felt by the others.

use std::path::Path;
use std::time::{Duration, Instant};

use autossm_lab::Lab;
use autossm_lab::bulk::bulk_request;
use autossm_lab::load::{Load, SessionEnd};
use autossm_lab::options::Options;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::task::JoinSet;

use crate::daemon::{Daemon, Line, PATIENCE, PROGRAM, own_address, tunnel, until};

/// In kB, as `/proc` has it.
fn resident(pid: Pid) -> u64 {
    procfs::process::Process::new(pid.as_raw()).unwrap().status().unwrap().vmrss.unwrap()
}

/// A client with a receive buffer of its own size, so that what waits, waits in the daemon.
async fn asks_for(address: std::net::SocketAddr, bytes: usize) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 << 10).unwrap();
    let mut client = socket.connect(address).await.unwrap();
    client.write_all(&bulk_request(bytes)).await.unwrap();
    client
}

/// Changes a key in the daemon's configuration and has it read again.
async fn reload(daemon: &Daemon, from: &str, to: &str) {
    let path = daemon.folder.path().join("config.toml");
    let config = std::fs::read_to_string(&path).unwrap();
    assert!(config.contains(from));
    std::fs::write(&path, config.replace(from, to)).unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.event("reloaded").await;
}

/// A database client asks for a large result and stops reading. New connections have a session of their own until it is
/// closed, and those that were open beside it go on afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute: a session moves 1 MB a second, and has to stand still for longer than a hung plugin may; run with --ignored"]
async fn one_client_that_never_reads_costs_the_others_nothing() {
    /// Longer than a plugin may hold bytes or leave a ping unanswered.
    const STILL: Duration = Duration::from_secs(20);
    const LONGEST_WAIT: Duration = Duration::from_secs(2);
    /// The buffer of one client, in kB, and what else a daemon under load takes.
    const BUFFER: u64 = 4 * 1024;
    const MARGIN: u64 = 4 * 1024;
    let lab = Lab::start(Options::default()).await.unwrap();
    let address = own_address();
    let keys = "stalled_client_timeout = \"off\"";
    let config = tunnel(&lab, "bulk", address, lab.addresses().destinations.bulk, keys);
    let daemon = Daemon::start_build(Path::new(PROGRAM), address, &config);
    daemon.event("ready").await;
    let load = Load::start(address, 20);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = resident(daemon.pid());

    let began = Instant::now();
    let mut deaf = asks_for(address, 64 << 20).await;
    let local = deaf.local_addr().unwrap();
    let (mut stalled, mut replaced, mut most) = (None, None, 0);
    // The long-lived connection shares the stalled session: when it stands still, everything on that session does.
    let mut moved = (load.seen().long_lived.messages, Instant::now());
    while moved.1.elapsed() < STILL {
        assert!(began.elapsed() < 3 * PATIENCE, "it never stood still\n{}", daemon.tail());
        tokio::time::sleep(Duration::from_millis(50)).await;
        let messages = load.seen().long_lived.messages;
        if messages != moved.0 {
            moved = (messages, Instant::now());
        }
        stalled = stalled.or_else(|| daemon.events("stalled").first().map(|_| began.elapsed()));
        replaced = replaced.or_else(|| daemon.events("ready").get(1).map(|line| (line.at, began.elapsed())));
        most = most.max(resident(daemon.pid()));
    }
    let still = moved.1 - began;
    let (stalled, (replaced_at, replaced)) = (stalled.unwrap(), replaced.unwrap());
    reload(&daemon, "\"off\"", "\"1s\"").await;
    let closed = daemon.event("client_stalled_closed").await;
    daemon.event("flows").await;
    until("the others go on", || (load.seen().long_lived.messages > moved.0 + 10).then_some(())).await;
    let seen = load.finish().await;
    let after = resident(daemon.pid());

    let waits = |after| {
        let waits = seen.attempts.iter().filter(|attempt| (attempt.at >= replaced_at) == after);
        waits.map(|attempt| attempt.took).max().unwrap_or_default()
    };
    println!(
        "the session counts as stalled after {:.1} s, is replaced after {:.1} s, stands still after {:.1} s",
        stalled.as_secs_f64(),
        replaced.as_secs_f64(),
        still.as_secs_f64(),
    );
    println!(
        "{} connections, {} failed; longest wait {} ms before the replacement is up, then {} ms; the long-lived one: {} cuts, longest wait {:.1} s",
        seen.attempts.len(),
        seen.failures().count(),
        waits(false).as_millis(),
        waits(true).as_millis(),
        seen.long_lived.cuts.len(),
        seen.long_lived.longest.as_secs_f64()
    );
    println!("resident: {before} kB before, at most {most} kB, {after} kB after");
    assert_eq!(closed.field("client"), local.to_string(), "{}", closed.text);
    let mut rest = Vec::new();
    assert!(deaf.read_to_end(&mut rest).await.is_err(), "the answer looks complete: {} bytes", rest.len());
    assert!(stalled < still && replaced < still);
    assert_eq!(seen.failures().count(), 0);
    assert!(waits(true) < LONGEST_WAIT);
    assert_eq!(
        seen.long_lived.cuts.len(),
        0,
        "the connections beside it survive: {:?}",
        seen.long_lived.cuts
    );
    assert!(most <= before + BUFFER + MARGIN, "{before} kB, then {most} kB");
    assert!(after <= before + MARGIN, "{before} kB, then {after} kB");
    assert_eq!(daemon.events("stalled").len(), 1, "{}", daemon.tail());
    assert_eq!(daemon.events("lost").len(), 0, "a stalled plugin is no hung one: {}", daemon.tail());
    assert_eq!(lab.status().start.processed, 2);
    daemon.stop(&lab).await;
}

/// Twenty clients that do not read, on four sessions: 4 MiB for each would be more than the tunnel may take.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "fills 64 MiB of buffers through plugins; run with --ignored"]
async fn many_clients_that_never_read_are_bounded() {
    const CLIENTS: usize = 20;
    /// What the tunnel may take, in kB: 64 MiB.
    const BUFFERS: u64 = 64 * 1024;
    /// A chunk for each client, and what a daemon under load takes beside.
    const MARGIN: u64 = 6 * 1024;
    let lab = Lab::start(Options { pace: Duration::from_micros(100), ..Options::default() }).await.unwrap();
    let address = own_address();
    let keys = "sessions = 4\nstalled_client_timeout = \"off\"";
    // A TCP socket takes several MB itself before anything waits for it.
    let folder = tempfile::Builder::new().prefix("e2e-").tempdir_in("/tmp").unwrap();
    let path = folder.path().join("bulk.sock");
    let config = tunnel(&lab, "bulk", address, lab.addresses().destinations.bulk, keys)
        .replace(&format!("\"{address}\""), &format!("\"unix:{}\"", path.display()));
    let daemon = Daemon::start_build(Path::new(PROGRAM), address, &config);
    daemon.event_times("ready", 4).await;
    let before = resident(daemon.pid());
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = UnixStream::connect(&path).await.unwrap();
        client.write_all(&bulk_request(64 << 20)).await.unwrap();
        clients.push(client);
    }
    let (mut most, began) = ((before, Instant::now()), Instant::now());
    while most.0 < before + BUFFERS / 2 || most.1.elapsed() < Duration::from_secs(5) {
        assert!(began.elapsed() < 3 * PATIENCE, "they were not kept for: {before} kB, then {} kB", most.0);
        let now = resident(daemon.pid());
        if now > most.0 {
            most = (now, Instant::now());
        }
        // So many at once; when they have ended, and others stall, others are begun.
        let sessions = lab.status().sessions.len();
        assert!(sessions <= 4 + 3, "{sessions} sessions");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let most = most.0;
    reload(&daemon, "\"off\"", "\"1s\"").await;
    daemon.event_times("client_stalled_closed", CLIENTS).await;
    // One that has retired and is empty ends instead.
    daemon
        .logged("no session is stalled any more", |lines| {
            let of = |line: &Line, events: &[&str]| events.contains(&line.field("event"));
            let (stalled, well): (Vec<_>, Vec<_>) = lines
                .iter()
                .filter(|line| of(line, &["stalled", "flows", "ended"]))
                .partition(|line| of(line, &["stalled"]));
            stalled
                .iter()
                .all(|line| well.iter().any(|other| other.field("session") == line.field("session")))
        })
        .await;
    let after = resident(daemon.pid());
    let started = lab.status().start.processed;
    println!(
        "{CLIENTS} clients that do not read: {started} sessions started; {before} kB resident before, at most {most} kB, {after} kB after"
    );
    assert!(most <= before + BUFFERS + MARGIN, "{before} kB, then {most} kB");
    assert!(after <= before + MARGIN, "{before} kB, then {after} kB");
    let mut client = UnixStream::connect(&path).await.unwrap();
    client.write_all(&[b'x'; 32]).await.unwrap();
    client.read_exact(&mut [0; 32]).await.unwrap();
    daemon.stop(&lab).await;
}

/// A pool of four, one plugin killed every second: the others serve.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute of kills; run with --ignored"]
async fn a_pool_hides_killed_plugins() {
    const KILLS: usize = 60;
    const LONGEST: Duration = Duration::from_millis(50);
    let lab = Lab::start(Options::default()).await.unwrap();
    let daemon = Daemon::echo(&lab, "sessions = 4").await;
    daemon.event_times("ready", 4).await;
    // The same without kills, at the same time: what the host itself makes connections wait on such a way.
    let quiet = Daemon::echo(&lab, "sessions = 4").await;
    quiet.event_times("ready", 4).await;
    let quiet_load = Load::start(quiet.address, 20);
    let load = Load::start(daemon.address, 20);
    let mut plugins = daemon.plugins();
    for kill_number in 0..KILLS {
        let next = Instant::now() + Duration::from_secs(1);
        // The one that has run longest: each has had its turn after four.
        kill(plugins.remove(0), Signal::SIGKILL).unwrap();
        tokio::time::sleep(next - Instant::now()).await;
        let running = daemon.plugins();
        plugins.retain(|plugin| running.contains(plugin));
        let new: Vec<_> = running.into_iter().filter(|plugin| !plugins.contains(plugin)).collect();
        plugins.extend(new);
        assert!(plugins.len() >= 3, "after {} kills: {}", kill_number + 1, daemon.tail());
    }
    let (seen, beside) = (load.finish().await, quiet_load.finish().await);
    let ends: Vec<_> = daemon
        .events("lost")
        .iter()
        .map(|line| SessionEnd::told(line.at, line.number("cut"), line.field("reason")))
        .collect();
    let failed = seen.failed(&ends);
    println!(
        "{KILLS} kills: {} connections, {} cut with their session, {} failed otherwise; held {} times",
        seen.attempts.len(),
        seen.failures().count() - failed.len(),
        failed.len(),
        daemon.events("holding").len(),
    );
    let mut allowed = Vec::new();
    for share in [0.5, 0.99, 1.0] {
        let [pool, without] = [&seen, &beside].map(|seen| seen.wait_of(share));
        // A host that makes connections wait for longer than a third of it without any kill cannot be held to it.
        let most = LONGEST.max(3 * without);
        println!(
            "{:3.0} % wait up to {:.1} ms ({:.1} ms in a pool beside it without kills); {} ms allowed",
            share * 100.0,
            pool.as_secs_f64() * 1e3,
            without.as_secs_f64() * 1e3,
            most.as_millis()
        );
        allowed.push((pool, most));
    }
    quiet.end().await;
    assert_eq!(failed.len(), 0, "{failed:?}");
    assert_eq!(daemon.events("holding").len(), 0);
    assert!(allowed.iter().all(|(waited, most)| waited <= most), "{allowed:?}");
    daemon.stop(&lab).await;
}

/// How much goes through a pool in 10 s, in MB/s: many connections, all opened at once.
async fn throughput(lab: &Lab, sessions: usize, upward: bool) -> (f64, Vec<usize>) {
    const CONNECTIONS: usize = 32;
    const TIME: Duration = Duration::from_secs(10);
    let destination =
        if upward { lab.addresses().destinations.sink } else { lab.addresses().destinations.endless };
    let address = own_address();
    let keys = format!("sessions = {sessions}");
    let daemon =
        Daemon::start_build(Path::new(PROGRAM), address, &tunnel(lab, "pool", address, destination, &keys));
    daemon.event_times("ready", sessions).await;
    let mut sockets = JoinSet::new();
    (0..CONNECTIONS).for_each(|_| drop(sockets.spawn(TcpStream::connect(address))));
    let sockets = sockets.join_all().await;
    let spread = until("every connection has its stream", || {
        let spread: Vec<_> = lab.status().sessions.values().map(|session| session.streams).collect();
        (spread.iter().sum::<usize>() == CONNECTIONS).then_some(spread)
    })
    .await;
    let mut clients = JoinSet::new();
    let (count, counted) = std::sync::mpsc::channel();
    for client in sockets {
        let count = count.clone();
        clients.spawn(async move {
            let mut client = client.unwrap();
            let mut buffer = vec![b'x'; 16 << 10];
            loop {
                if upward {
                    client.write_all(&buffer).await.unwrap();
                } else {
                    let read = client.read(&mut buffer).await.unwrap();
                    count.send(read).unwrap();
                }
            }
        });
    }
    let moved = || if upward { lab.status().sunk } else { counted.try_iter().map(|read| read as u64).sum() };
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (before, began) = (moved(), Instant::now());
    tokio::time::sleep(TIME).await;
    let bytes = if upward { moved() - before } else { moved() };
    let rate = bytes as f64 / 1e6 / began.elapsed().as_secs_f64();
    clients.shutdown().await;
    drop(daemon);
    (rate, spread)
}

/// What one session moves is bound by a pause after each message of 1 KB, whatever the network: more sessions move more.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "eight times 10 s of full load; run with --ignored"]
async fn throughput_grows_with_the_pool() {
    for (upward, way) in [(true, "upward"), (false, "downward")] {
        println!("{way}: sessions   MB/s   ratio   connections on each session");
        let mut one = None;
        for sessions in [1, 2, 4, 8] {
            let lab = Lab::start(Options::default()).await.unwrap();
            let (rate, spread) = throughput(&lab, sessions, upward).await;
            let ratio = rate / *one.get_or_insert(rate);
            println!("{way}: {sessions:8}   {rate:4.2}   {ratio:5.2}   {spread:?}");
            assert_eq!(spread.iter().max(), spread.iter().min(), "opened at once, they are spread evenly");
            assert!(sessions != 4 || ratio >= 3.5, "{way}: {ratio}");
        }
    }
}
