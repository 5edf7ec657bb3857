//! Accounts that have their sessions encrypted with a KMS key.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use autossm_lab::Lab;
use autossm_lab::fault::{ApiFault, Call, Fault};
use autossm_lab::options::Options;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::bytes;
use crate::daemon::{Daemon, Line, PATIENCE, own_address, tunnel, until};
use crate::faults::{KEYS, loaded};
use crate::observe::quiet;

const KEY: &str = "arn:aws:kms:us-west-2:111122223333:key/01234567-89ab-cdef-0123-456789abcdef";
/// The daemon's access key, which the plugin never sees in `hold` mode.
const SIGNER: &str = "AKIDTESTTESTTESTTEST";

pub async fn lab() -> Lab {
    Lab::start(Options { kms_key: Some(KEY.into()), ..Options::default() }).await.unwrap()
}

/// A daemon whose tunnel to the lab's echo server is encrypted.
pub async fn encrypted(lab: &Lab, keys: &str) -> Daemon {
    Daemon::echo(lab, &format!("kms_endpoint = \"{}\"\n{keys}", lab.api_url())).await
}

async fn over_tls(lab: &Lab, keys: &str) -> Daemon {
    let address = own_address();
    let kms = lab.stream_endpoint_wss().replace("wss://", "https://");
    let keys = format!("ca_file = \"{}\"\nkms_endpoint = \"{kms}\"\n{keys}", lab.ca_file().display());
    let config = tunnel(lab, "echo", address, lab.echo_addr(), &keys)
        .replace(&lab.stream_endpoint_ws(), &lab.stream_endpoint_wss());
    let daemon = Daemon::start(address, &config);
    daemon.event("ready").await;
    daemon
}

async fn echoes(stream: &mut TcpStream, message: &[u8]) {
    stream.write_all(message).await.unwrap();
    let mut back = vec![0; message.len()];
    let read = tokio::time::timeout(PATIENCE, stream.read_exact(&mut back)).await;
    read.expect("an echo").unwrap();
    assert!(back == message, "the echo differs from what was sent");
}

/// KMS was called once for each session, under the daemon's own access key.
fn assert_data_keys(lab: &Lab, sessions: u64) {
    let status = lab.status();
    assert_eq!((status.data_key.succeeded, status.data_key.processed), (sessions, sessions));
    assert_eq!(status.data_key_signers.iter().collect::<Vec<_>>(), [SIGNER]);
    assert!(status.sessions.values().all(|session| session.encrypted));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_flows_and_keep_alives_stay_off() {
    let lab = lab().await;
    let daemon = encrypted(&lab, "keepalive = \"1s\"").await;
    let said = daemon.event("encrypted").await;
    assert_eq!(said.fields["level"], "INFO");
    assert_eq!([said.field("session")], lab.sessions()[..]);
    let status = daemon.status("encrypted", |status| status["sessions"][0]["encrypted"] == true).await;
    assert_eq!(status["sessions"][0]["keepalive"], false);
    assert_eq!(status["sessions"][0]["no_keepalive"], "the session is encrypted");
    let mut client = TcpStream::connect(daemon.address).await.unwrap();
    echoes(&mut client, b"before").await;
    // Three times as long as an unencrypted session waits for its first one.
    tokio::time::sleep(Duration::from_secs(3)).await;
    echoes(&mut client, &vec![b'x'; 100_000]).await;
    assert!(daemon.events("keep_alive").is_empty());
    assert_eq!(daemon.events("encrypted").len(), 1);
    assert_data_keys(&lab, 1);
    daemon.stop(&lab).await;
}

/// So the account's idle timeout is obeyed, and clients come through all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_idle_timeout_ends_a_session_that_nobody_uses() {
    let lab = lab().await;
    lab.set(Fault::IdleTimeout(Duration::from_secs(5)));
    let daemon = encrypted(&lab, "keepalive = \"1s\"").await;
    let lost = daemon.event("lost").await;
    assert!(lost.field("reason").contains("inactivity"), "{}", lost.text);
    echoes(&mut TcpStream::connect(daemon.address).await.unwrap(), b"hello").await;
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_survive_hourly_closes_and_aborts() {
    let lab = lab().await;
    let daemon = encrypted(&lab, KEYS).await;
    let outcome = loaded("encrypted: 5 closes 1000 and 5 aborts", lab, daemon, async |lab, daemon| {
        for round in 1..=5 {
            until("an open data channel", || (lab.close_all(1000, "Bye") == 1).then_some(())).await;
            daemon.event_times("resumed", 2 * round - 1).await;
            until("an open data channel", || (lab.abort_all() == 1).then_some(())).await;
            daemon.event_times("resumed", 2 * round).await;
        }
    })
    .await;
    outcome.none_failed().long_lived_survives().starts(1);
    assert_eq!(outcome.service.data_key.succeeded, 1, "the key is the session's, for all its life");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kms_is_called_over_tls() {
    let lab = lab().await;
    let daemon = over_tls(&lab, "").await;
    echoes(&mut TcpStream::connect(daemon.address).await.unwrap(), b"hello").await;
    assert_data_keys(&lab, 1);
    assert_eq!(lab.status().wrong_hosts, 0);
    daemon.stop(&lab).await;
}

/// There the plugin calls KMS by itself, with credentials that the daemon gives it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_that_is_only_watched_calls_kms_itself() {
    let lab = lab().await;
    let daemon = over_tls(&lab, "gateway = \"observe\"\n").await;
    echoes(&mut TcpStream::connect(daemon.address).await.unwrap(), b"hello").await;
    quiet().await;
    assert_eq!(lab.close_all(1000, "Bye"), 1);
    daemon.event("resumed").await;
    lab.wait_for("the data channel", PATIENCE, |status| status.ready_sessions() == 1).await.unwrap();
    echoes(&mut TcpStream::connect(daemon.address).await.unwrap(), b"hello again").await;
    assert_data_keys(&lab, 1);
    daemon.stop(&lab).await;
}

/// The plugin exits without a word; the daemon says what is missing, and goes on when it is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denial_of_kms_is_told_with_its_remedy() {
    let lab = lab().await;
    lab.set(Fault::Api(Call::DataKey, ApiFault::Denied));
    let address = own_address();
    let keys = format!("kms_endpoint = \"{}\"\n", lab.api_url());
    let daemon = Daemon::start(address, &tunnel(&lab, "echo", address, lab.echo_addr(), &keys));
    let failed = daemon.event("failed").await;
    assert_eq!((failed.field("class"), &failed.fields["level"]), ("access", &"ERROR".into()));
    let reason = failed.field("reason");
    for words in ["kms:GenerateDataKey: AccessDeniedException: ", KEY, "; allow kms:GenerateDataKey to the"] {
        assert!(reason.contains(words), "{reason}");
    }
    lab.clear_all();
    daemon.event("ready").await;
    echoes(&mut TcpStream::connect(address).await.unwrap(), b"hello").await;
    assert_eq!(daemon.events("failed").len(), 1);
    daemon.stop(&lab).await;
}

/// What passes is tried again, by the plugin and then by the daemon.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kms_that_cannot_be_reached_is_no_denial() {
    let lab = lab().await;
    let address = own_address();
    let nobody = "kms_endpoint = \"http://127.0.0.1:1\"\n";
    let daemon = Daemon::start(address, &tunnel(&lab, "echo", address, lab.echo_addr(), nobody));
    let failed = daemon.event("failed").await;
    assert_eq!(failed.field("class"), "network or service", "{}", failed.text);
    let reason = failed.field("reason");
    assert!(reason.contains("kms:GenerateDataKey at kms.us-west-2.amazonaws.com:443: "), "{reason}");
    assert!(reason.contains("refused"), "{reason}");
    daemon.stop(&lab).await;
}

/// The address that KMS is called at belongs to the session: after a reload there is one that was opened by the new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_with_another_kms_endpoint_replaces_the_session() {
    let lab = lab().await;
    let address = own_address();
    let config =
        |kms: &str| tunnel(&lab, "echo", address, lab.echo_addr(), &format!("kms_endpoint = \"{kms}\"\n"));
    let daemon = Daemon::start(address, &config(&lab.api_url()));
    daemon.event("ready").await;
    let by_name = lab.api_url().replace("127.0.0.1", "localhost");
    std::fs::write(daemon.folder.path().join("config.toml"), config(&by_name)).unwrap();
    daemon.signal(nix::sys::signal::Signal::SIGHUP);
    daemon.event_times("ready", 2).await;
    assert_data_keys(&lab, 2);
    echoes(&mut TcpStream::connect(address).await.unwrap(), b"hello").await;
    daemon.stop(&lab).await;
}

/// Lengths with which the bare plugin has a byte left over, and those beside them.
const AWKWARD: [usize; 14] = [1, 2, 8, 9, 16, 17, 1015, 1016, 1017, 1018, 1024, 2041, 3065, 4096];

/// The plugin's change of a line feed cannot be undone where payloads cannot be read: it must not come to it.
fn assert_prevented(log: &[Arc<Line>]) {
    let seen: Vec<_> = log.iter().filter(|line| line.field("event") == "lone_byte").collect();
    assert!(seen.is_empty(), "the plugin has sent single bytes: {seen:?}");
}

async fn ten_thousand_messages(end: u8) {
    let lab = lab().await;
    let daemon = encrypted(&lab, "").await;
    assert_prevented(&bytes::ten_thousand_messages(lab, daemon, end, |n| AWKWARD[n / 8 % 14]).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_end_in_a_line_feed() {
    ten_thousand_messages(b'\n').await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_end_in_a_carriage_return() {
    ten_thousand_messages(b'\r').await;
}

/// One client alone, so that nothing but its own bytes is in the plugin: without turns each message of 1017 bytes that
/// ends in a line feed arrives changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_awkward_lengths() {
    let lab = lab().await;
    let daemon = encrypted(&lab, "").await;
    for length in AWKWARD {
        for end in [b'\n', b'\r'] {
            let messages = (0..100).map(|_| {
                let mut message = vec![b'a'; length];
                message[length - 1] = end;
                message
            });
            let differ = bytes::echo(daemon.address, messages).await;
            assert_eq!(differ, 0, "of 100 messages of {length} bytes that end in {end:#04x}");
        }
    }
    assert_prevented(&daemon.stop(&lab).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minute_of_random_bytes_on_eight_connections() {
    let lab = lab().await;
    let daemon = encrypted(&lab, "").await;
    assert_prevented(&bytes::a_minute_of_random_bytes(lab, daemon).await);
}

/// Echoes to those that begin with `e`, and hangs up on all others in the middle of what they send.
async fn moody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                if stream.read_u8().await.unwrap_or_default() == b'e' {
                    let (mut reader, mut writer) = stream.split();
                    let _ = tokio::io::copy(&mut reader, &mut writer).await;
                }
            });
        }
    });
    address
}

/// What a client has sent into a stream that the destination has ended, the plugin throws away: nobody may wait for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_that_hangs_up_holds_up_nobody() {
    let lab = lab().await;
    let address = own_address();
    let keys = format!("kms_endpoint = \"{}\"\n{KEYS}", lab.api_url());
    let daemon = Daemon::start(address, &tunnel(&lab, "moody", address, moody().await, &keys));
    daemon.event("ready").await;
    let over = CancellationToken::new();
    let mut cut = JoinSet::new();
    // Each is told of its end a quarter of a second late.
    for _ in 0..8 {
        let over = over.clone();
        cut.spawn(async move {
            let mut times = 0;
            while !over.is_cancelled() {
                let mut stream = TcpStream::connect(address).await.unwrap();
                let (mut reader, mut writer) = stream.split();
                let send = async {
                    while writer.write_all(b"cut off in the middle").await.is_ok() {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                };
                // Until the end is here, one way or the other.
                tokio::select! {
                    () = send => {}
                    _ = reader.read_u8() => {}
                }
                times += 1;
            }
            times
        });
    }
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"e").await.unwrap();
    let (began, mut echoed, mut longest) = (Instant::now(), 0, Duration::ZERO);
    while began.elapsed() < Duration::from_secs(10) {
        let length = AWKWARD[echoed % 14];
        let asked = Instant::now();
        echoes(&mut stream, &vec![b'\n'; length]).await;
        longest = longest.max(asked.elapsed());
        echoed += 1;
    }
    over.cancel();
    let times: usize = cut.join_all().await.into_iter().sum();
    println!("beside {times} connections that were cut: {echoed} echoes, the longest took {longest:.1?}");
    assert!(times > 100 && longest < Duration::from_secs(2), "{times} cut, longest {longest:?}");
    assert_prevented(&daemon.stop(&lab).await);
}

/// What a tunnel does for its clients.
#[derive(Debug)]
struct Measured {
    /// Upward, in kB a second: one client, and eight at once.
    throughput: [f64; 2],
    /// From a request of 100 bytes to its echo, in ms: with one client, with 8 and with 32 at once.
    median: [f64; 3],
}

async fn measured(lab: Lab, keys: &str) -> Measured {
    let (upward, echo) = (own_address(), own_address());
    let sink = lab.addresses().destinations.sink;
    let config =
        tunnel(&lab, "upward", upward, sink, keys) + &tunnel(&lab, "echo", echo, lab.echo_addr(), keys);
    let daemon = Daemon::start(upward, &config);
    daemon.event_times("ready", 2).await;
    let mut throughput = [0.0; 2];
    for (clients, measured) in [1, 8].into_iter().zip(&mut throughput) {
        let (before, began) = (lab.status().sunk, Instant::now());
        let mut open = Vec::new();
        let each = 2_400_000 / clients;
        for _ in 0..clients {
            let mut client = TcpStream::connect(upward).await.unwrap();
            open.push(tokio::spawn(async move {
                client.write_all(&vec![b'x'; each]).await.unwrap();
                client
            }));
        }
        lab.wait_for("all bytes", PATIENCE, |status| status.sunk - before == 2_400_000).await.unwrap();
        *measured = 2400.0 / began.elapsed().as_secs_f64();
    }
    let mut median = [0.0; 3];
    for (clients, measured) in [1, 8, 32].into_iter().zip(&mut median) {
        let mut asking = JoinSet::new();
        for _ in 0..clients {
            asking.spawn(async move {
                let mut client = TcpStream::connect(echo).await.unwrap();
                client.set_nodelay(true).unwrap();
                let mut times = Vec::new();
                for _ in 0..1600 / clients {
                    let began = Instant::now();
                    echoes(&mut client, &[b'x'; 100]).await;
                    times.push(began.elapsed().as_secs_f64() * 1000.0);
                }
                times
            });
        }
        let mut times: Vec<f64> = asking.join_all().await.into_iter().flatten().collect();
        times.sort_by(f64::total_cmp);
        *measured = times[times.len() / 2];
    }
    daemon.stop(&lab).await;
    Measured { throughput, median }
}

/// An unencrypted session is not written to in turns.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "compares two measurements, and wants the machine for itself; run with --ignored"]
async fn the_cost_of_turns() {
    let without = measured(Lab::start(Options::default()).await.unwrap(), "").await;
    let lab = lab().await;
    let kms = format!("kms_endpoint = \"{}\"", lab.api_url());
    let with = measured(lab, &kms).await;
    println!("upward, 1 and 8 clients: {:.0?} kB/s, in turns {:.0?}", without.throughput, with.throughput);
    println!(
        "100 bytes and their echo, 1, 8 and 32 clients: median {:.1?} ms, in turns {:.1?}",
        without.median, with.median
    );
    for (without, with) in without.throughput.iter().zip(with.throughput) {
        assert!(with > without * 0.7, "in turns {with:.0} kB/s instead of {without:.0}");
    }
}
