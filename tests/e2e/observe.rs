//! Where TLS must not be ended on the host: `gateway = "observe"`. The plugin resumes by itself, and what clients send waits
//! until it has; where it does not it is replaced, and connections on it are lost, but no new one is. And `hold` with TLS to
//! the service.

use std::time::{Duration, Instant};

use autossm_lab::Lab;
use autossm_lab::fault::{ApiFault, Call, Fault, Loss, UpgradeFault};
use autossm_lab::options::Options;
use nix::sys::signal::{Signal, kill};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::daemon::{Daemon, PATIENCE, SECRET_KEY, own_address, tunnel, until};
use crate::faults::{KEYS, loaded};

const FAILOVER_AFTER: Duration = Duration::from_secs(2);
/// StartSession, plugin and handshake, on a machine that does other things too.
const A_LITTLE: Duration = Duration::from_secs(4);

/// A daemon whose tunnel reaches the lab's echo server over TLS.
async fn over_tls(lab: &Lab, keys: &str) -> Daemon {
    let address = own_address();
    let keys = format!("ca_file = \"{}\"\n{keys}", lab.ca_file().display());
    let config = tunnel(lab, "echo", address, lab.echo_addr(), &keys)
        .replace(&lab.stream_endpoint_ws(), &lab.stream_endpoint_wss());
    let daemon = Daemon::start(address, &config);
    daemon.event("ready").await;
    daemon
}

async fn observing(lab: &Lab) -> Daemon {
    observing_for(lab, FAILOVER_AFTER).await
}

async fn observing_for(lab: &Lab, failover_after: Duration) -> Daemon {
    let failover_after = failover_after.as_secs();
    // No connection is hung up just when a data channel is closed.
    let keys = format!(
        "gateway = \"observe\"\nfailover_after = \"{failover_after}s\"\nhalf_close_timeout = \"10m\"\n{KEYS}"
    );
    over_tls(lab, &keys).await
}

async fn lab() -> Lab {
    Lab::start(Options::default()).await.unwrap()
}

/// How long a new connection takes until its echo is there.
async fn echo(daemon: &Daemon) -> Duration {
    let began = Instant::now();
    opened(daemon).await;
    began.elapsed()
}

/// What was given to the plugin a moment before a close is taken to have met it: 5 ms, or on a busy host up to a second.
pub async fn quiet() {
    tokio::time::sleep(Duration::from_millis(1100)).await;
}

async fn exchange(stream: &mut TcpStream) {
    stream.write_all(b"ping").await.unwrap();
    answered(stream).await;
}

/// A connection that has had an answer, and stays open.
async fn opened(daemon: &Daemon) -> TcpStream {
    let mut stream = TcpStream::connect(daemon.address).await.unwrap();
    exchange(&mut stream).await;
    stream
}

async fn answered(stream: &mut TcpStream) {
    let mut back = [0; 4];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut back)).await.expect("an answer").unwrap();
    assert_eq!(&back, b"ping");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hold_survives_closes_and_aborts_over_tls() {
    let lab = lab().await;
    let daemon = over_tls(&lab, KEYS).await;
    let outcome = loaded("hold over TLS: 5 closes and 5 aborts", lab, daemon, async |lab, daemon| {
        for round in 1..=5 {
            until("an open data channel", || (lab.close_all(1000, "Bye") == 1).then_some(())).await;
            daemon.event_times("resumed", 2 * round - 1).await;
            until("an open data channel", || (lab.abort_all() == 1).then_some(())).await;
            daemon.event_times("resumed", 2 * round).await;
        }
    })
    .await;
    outcome.none_failed().long_lived_survives().starts(1);
    assert_eq!(outcome.service.unsigned_upgrades, 0);
}

/// The plugin has no credentials but those that the daemon gives it through the container's endpoint.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_that_is_only_watched_resumes_with_the_daemons_credentials() {
    let lab = lab().await;
    let daemon = observing(&lab).await;
    echo(&daemon).await;
    for close in 1..=3 {
        quiet().await;
        assert_eq!(lab.close_all(1000, "Bye"), 1);
        daemon.event_times("interrupted", close).await;
        daemon.event_times("resumed", close).await;
        lab.wait_for("the data channel", PATIENCE, |status| status.ready_sessions() == 1).await.unwrap();
        echo(&daemon).await;
    }
    let status = lab.status();
    assert_eq!((status.start.processed, status.resume.succeeded), (1, 3));
    assert_eq!(status.unsigned_calls, 0);

    let environment = std::fs::read(format!("/proc/{}/environ", daemon.plugin().await)).unwrap();
    let environment = String::from_utf8_lossy(&environment).into_owned();
    assert!(environment.contains("AWS_CONTAINER_CREDENTIALS_FULL_URI=http://127.0.0.1:"), "{environment}");
    for key in [SECRET_KEY, "AWS_ACCESS_KEY_ID="] {
        assert!(!environment.contains(key), "{key} in the plugin's environment");
    }
    let endpoint_token = environment
        .split('\0')
        .find_map(|variable| variable.strip_prefix("AWS_CONTAINER_AUTHORIZATION_TOKEN="))
        .unwrap()
        .to_owned();
    let log = daemon.stop(&lab).await;
    for secret in ["AAEAA", SECRET_KEY, &endpoint_token] {
        let told: Vec<_> = log.iter().filter(|line| line.text.contains(secret)).map(|l| &l.text).collect();
        assert!(told.is_empty(), "{secret} in the log: {told:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_had_is_said_once() {
    let lab = lab().await;
    let daemon = observing(&lab).await;
    lab.terminate_all("Session terminated by an administrator");
    daemon.event_times("ready", 2).await;
    for event in ["line_feeds_not_restored", "keepalive_off"] {
        let told = daemon.events(event);
        assert_eq!(told.len(), 1, "{}", daemon.tail());
        assert!(told[0].text.contains("observe"), "{}", told[0].text);
    }
    let status = daemon.status("a session", |status| status["sessions"][0]["phase"] == "ready").await;
    let session = &status["sessions"][0];
    assert_eq!(
        (&session["keepalive"], &session["no_keepalive"]),
        (&false.into(), &"gateway = \"observe\"".into())
    );
    daemon.stop(&lab).await;
}

/// The silent zombie: ResumeSession fails, the plugin gives up and stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zombie_is_replaced_and_clients_wait_meanwhile() {
    let lab = lab().await;
    let daemon = observing(&lab).await;
    lab.set(Fault::Api(Call::Resume, ApiFault::Forbidden));
    let began = Instant::now();
    assert_eq!(lab.close_all(1000, "Bye"), 1);
    daemon.event("interrupted").await;
    let waited = echo(&daemon).await;
    daemon.event_times("ready", 2).await;
    let replaced = began.elapsed();
    println!(
        "zombie: replaced after {:.1} s, a client waited {:.1} s",
        replaced.as_secs_f64(),
        waited.as_secs_f64()
    );
    assert!(replaced > FAILOVER_AFTER && replaced < FAILOVER_AFTER + A_LITTLE, "{replaced:?}");
    assert_eq!(lab.status().start.processed, 2);
    daemon.stop(&lab).await;
}

/// Each of these would make the plugin send while its data channel is closed, of which it dies: bytes on a connection that was
/// open, a new connection, and the end of one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_clients_do_while_the_channel_is_closed_waits() {
    let lab = lab().await;
    let daemon = observing_for(&lab, Duration::from_secs(10)).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(opened(&daemon).await);
    }
    let plugin = daemon.plugin().await;
    for close in 1..=3 {
        quiet().await;
        lab.set(Fault::Api(Call::Resume, ApiFault::Forbidden));
        let before = lab.status().resume.processed;
        assert_eq!(lab.close_all(1000, "Bye"), 1);
        daemon.event_times("interrupted", close).await;
        for stream in &mut open {
            stream.write_all(b"ping").await.unwrap();
        }
        let gone = open.pop().unwrap();
        gone.set_zero_linger().unwrap();
        drop(gone);
        let mut new = TcpStream::connect(daemon.address).await.unwrap();
        new.write_all(b"ping").await.unwrap();
        lab.wait_for("a try to resume", PATIENCE, |status| status.resume.processed > before).await.unwrap();
        lab.clear(Fault::Api(Call::Resume, ApiFault::Forbidden));
        answered(&mut new).await;
        for stream in &mut open {
            answered(stream).await;
        }
    }
    assert_eq!((lab.status().start.processed, daemon.plugin().await), (1, plugin), "{}", daemon.tail());
    daemon.stop(&lab).await;
}

/// A plugin that is to send something as its data channel is closed would end with the next new connection, or never.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_that_is_caught_sending_is_replaced_at_once() {
    let lab = lab().await;
    let daemon = observing(&lab).await;
    let mut open = opened(&daemon).await;
    let plugin = daemon.plugin().await;
    quiet().await;
    // It takes bytes from its clients without being able to send them.
    kill(plugin, Signal::SIGSTOP).unwrap();
    open.write_all(b"ping").await.unwrap();
    daemon.status("bytes given to it", |status| status["sessions"][0]["up_bytes"] == 8).await;
    let began = Instant::now();
    lab.abort_all();
    assert_eq!(open.read(&mut [0; 1]).await.unwrap_or(0), 0, "it is cut");
    let lost = daemon.event("lost").await;
    assert!(lost.text.contains("it was sending when its data channel was closed"), "{}", lost.text);
    echo(&daemon).await;
    println!("observe, caught sending: served again after {:.1} s", began.elapsed().as_secs_f64());
    daemon.stop(&lab).await;
}

/// A request that the plugin takes at once, and needs a fifth of a second to pass it on.
const REQUEST: usize = 200_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_that_is_caught_with_more_to_send_is_replaced_at_once() {
    let lab = lab().await;
    let daemon = observing(&lab).await;
    let mut open = opened(&daemon).await;
    quiet().await;
    open.write_all(&[b'x'; REQUEST]).await.unwrap();
    daemon.status("bytes given to it", |status| status["sessions"][0]["up_bytes"] == 4 + REQUEST).await;
    lab.close_all(1000, "Bye");
    let lost = daemon.event("lost").await;
    assert!(lost.text.contains("it was sending when its data channel was closed"), "{}", lost.text);
    echo(&daemon).await;
    daemon.stop(&lab).await;
}

/// Its data channel is closed before anybody knows that it is dead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_that_is_killed_while_a_client_sends_is_told_as_that() {
    let lab = lab().await;
    let daemon = observing(&lab).await;
    let mut open = opened(&daemon).await;
    let plugin = daemon.plugin().await;
    open.write_all(&[b'x'; REQUEST]).await.unwrap();
    kill(plugin, Signal::SIGKILL).unwrap();
    let lost = daemon.event("lost").await;
    assert!(lost.text.contains("killed by signal 9"), "{}", lost.text);
    echo(&daemon).await;
    daemon.stop(&lab).await;
}

/// When an acknowledgement is lost the plugin ignores what the agent sends again, and with one more loss nothing comes from the agent any
/// more. What is open goes on as long as it can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_that_does_not_acknowledge_any_more_is_replaced() {
    let lab = lab().await;
    let daemon = observing(&lab).await;
    let mut open = opened(&daemon).await;
    let loss = Fault::LostMessages(Loss { acknowledgements_in: 1.0, ..Loss::default() });
    let before = lab.status().resent;
    lab.set(loss);
    exchange(&mut open).await;
    lab.wait_for("a message sent again", PATIENCE, |status| status.resent > before).await.unwrap();
    lab.clear(loss);
    exchange(&mut open).await;
    let began = Instant::now();
    let replacing = daemon.event("replacing").await;
    println!("observe, acknowledges no more: noticed after {:.1} s", began.elapsed().as_secs_f64());
    assert!(replacing.text.contains("does not acknowledge what the agent sends again"), "{}", replacing.text);
    daemon.event("retired").await;
    exchange(&mut open).await;
    echo(&daemon).await;
    assert_eq!(lab.status().start.processed, 2);
    daemon.stop(&lab).await;
}

/// Nothing that waits here is sent through another session: nobody knows what of it has been through the first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_cut_with_a_session_that_is_not_resumed() {
    let lab = lab().await;
    let daemon = observing(&lab).await;
    let mut open = opened(&daemon).await;
    quiet().await;
    lab.set(Fault::Api(Call::Resume, ApiFault::Forbidden));
    lab.close_all(1000, "Bye");
    daemon.event("interrupted").await;
    let began = Instant::now();
    open.write_all(b"ping").await.unwrap();
    assert_eq!(open.read(&mut [0; 1]).await.unwrap_or(0), 0, "it is cut");
    daemon.event_times("ready", 2).await;
    println!("observe, not resumed: replaced after {:.1} s", began.elapsed().as_secs_f64());
    assert!(began.elapsed() < FAILOVER_AFTER + A_LITTLE);
    echo(&daemon).await;
    daemon.stop(&lab).await;
}

/// A connection that is opened and refused at once is no data channel: clients must not be sent to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_upgrades_are_no_resumption() {
    let lab = lab().await;
    let daemon = observing(&lab).await;
    let refused = lab.set_for(Fault::Upgrades(UpgradeFault::Refused(403)), Duration::from_secs(10));
    lab.close_all(1000, "Bye");
    let interrupted = daemon.event("interrupted").await;
    let waited = echo(&daemon).await;
    println!("observe, refused upgrades: a client waited {:.1} s", waited.as_secs_f64());
    // The next session's plugin goes on trying, and may get through when the service lets it.
    let session = interrupted.field("session");
    let resumed = daemon.events("resumed").into_iter().find(|line| line.field("session") == session);
    assert!(resumed.is_none(), "{}", daemon.tail());
    refused.await.unwrap();
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_upgrades_are_no_resumption() {
    let lab = lab().await;
    let daemon = observing(&lab).await;
    lab.set(Fault::Upgrades(UpgradeFault::Stalled));
    let began = Instant::now();
    lab.close_all(1000, "Bye");
    daemon.event_times("lost", 1).await;
    println!("observe, stalled upgrades: given up after {:.1} s", began.elapsed().as_secs_f64());
    assert!(began.elapsed() < FAILOVER_AFTER + A_LITTLE, "{:?}", began.elapsed());
    lab.clear(Fault::Upgrades(UpgradeFault::Stalled));
    echo(&daemon).await;
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_leaves_nothing_behind_even_in_an_outage() {
    let lab = lab().await;
    let mut daemon = observing(&lab).await;
    let plugin = daemon.plugin().await;
    lab.set(Fault::Api(Call::Resume, ApiFault::Forbidden));
    lab.close_all(1000, "Bye");
    daemon.event("interrupted").await;
    let began = Instant::now();
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.exit().await.success());
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert!(kill(plugin, None).is_err(), "the plugin is still there");
    assert!(lab.sessions().is_empty(), "at the service: {:?}", lab.sessions());
}
