//! Accounts that have their sessions encrypted with a KMS key.

use std::time::Duration;

use autossm_lab::Lab;
use autossm_lab::fault::{ApiFault, Call, Fault};
use autossm_lab::options::Options;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::daemon::{Daemon, PATIENCE, own_address, tunnel, until};
use crate::faults::{KEYS, loaded};

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
    let mut client = TcpStream::connect(daemon.address).await.unwrap();
    echoes(&mut client, b"before").await;
    // Three times as long as an unencrypted session waits for its first one.
    tokio::time::sleep(Duration::from_secs(3)).await;
    echoes(&mut client, &vec![b'x'; 100_000]).await;
    assert!(daemon.events("keep_alive").is_empty() && daemon.events("round_trip").is_empty());
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
