//! Where TLS must not be ended on the host: `gateway = "observe"`. The plugin resumes by itself, and is replaced where
//! it does not; connections on it are lost then, but no new one is. And `hold` with TLS to the service.

use std::time::{Duration, Instant};

use autossm_lab::Lab;
use autossm_lab::fault::{ApiFault, Call, Fault, UpgradeFault};
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
    let keys = format!("gateway = \"observe\"\nfailover_after = \"{}s\"\n{KEYS}", FAILOVER_AFTER.as_secs());
    over_tls(lab, &keys).await
}

async fn lab() -> Lab {
    Lab::start(Options::default()).await.unwrap()
}

/// How long a new connection takes until its echo is there.
async fn echo(daemon: &Daemon) -> Duration {
    let began = Instant::now();
    let mut stream = TcpStream::connect(daemon.address).await.unwrap();
    stream.write_all(b"ping").await.unwrap();
    let mut back = [0; 4];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"ping");
    began.elapsed()
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

/// The stock plugin dies of a client's byte while its data channel is down; whether it does is chance.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn death_by_traffic() {
    let lab = lab().await;
    let daemon = observing(&lab).await;
    let mut open = TcpStream::connect(daemon.address).await.unwrap();
    open.write_all(b"ping").await.unwrap();
    open.read_exact(&mut [0; 4]).await.unwrap();
    lab.set(Fault::Api(Call::Resume, ApiFault::Forbidden));
    lab.close_all(1000, "Bye");
    daemon.event("interrupted").await;
    let began = Instant::now();
    open.write_all(b"ping").await.unwrap();
    assert_eq!(open.read(&mut [0; 1]).await.unwrap_or(0), 0, "it is cut");
    daemon.event_times("ready", 2).await;
    println!("death by traffic: replaced after {:.1} s", began.elapsed().as_secs_f64());
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
    daemon.event("interrupted").await;
    let waited = echo(&daemon).await;
    println!("observe, refused upgrades: a client waited {:.1} s", waited.as_secs_f64());
    assert_eq!(daemon.events("resumed").len(), 0, "{}", daemon.tail());
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
