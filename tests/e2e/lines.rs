//! What the two lines of the plugin do differently when something goes wrong, and must make no difference to clients: the
//! central faults under load, with the stand-in of each line.

use std::path::Path;
use std::time::Duration;

use autossm_lab::Lab;
use autossm_lab::fault::{ApiFault, Call, Fault};
use autossm_lab::options::Options;
use futures_util::future::join_all;
use nix::sys::signal::{Signal, kill};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::daemon::{Daemon, PATIENCE, own_address, plugins, tunnel_by, until};
use crate::faults::{KEYS, loaded};
use crate::observe::quiet;

/// A lab, and a daemon whose tunnel to its echo server is up by this plugin.
async fn up(plugin: &Path, keys: &str) -> (Lab, Daemon) {
    let lab = Lab::start(Options::default()).await.unwrap();
    let address = own_address();
    let daemon = Daemon::start(address, &tunnel_by(plugin, &lab, "echo", address, lab.echo_addr(), keys));
    daemon.event("ready").await;
    (lab, daemon)
}

/// The row of `plugin` in what a test prints.
fn row(what: &str, plugin: &Path) -> String {
    format!("{what}, {}", plugin.file_name().unwrap_or_default().display())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closes_and_refused_resumes_are_survived_by_each_line() {
    let run = async |plugin: std::path::PathBuf| {
        // The one session has to last: closes so soon after one another are resumed with pauses.
        let (lab, daemon) = up(&plugin, &format!("failover_after = \"30s\"\n{KEYS}")).await;
        let row = row("3 closes, then ResumeSession refused for 3 s", &plugin);
        let outcome = loaded(&row, lab, daemon, async |lab, daemon| {
            for round in 1..=3 {
                until("an open data channel", || (lab.close_all(1000, "Bye") == 1).then_some(())).await;
                daemon.event_times("resumed", round).await;
            }
            let refused = lab.set_for(Fault::Api(Call::Resume, ApiFault::Denied), Duration::from_secs(3));
            until("an open data channel", || (lab.close_all(1000, "Bye") == 1).then_some(())).await;
            refused.await.unwrap();
            daemon.event_times("resumed", 4).await;
        })
        .await;
        outcome.none_failed().long_lived_survives().starts(1);
    };
    join_all(plugins().into_iter().map(run)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_that_is_killed_or_hangs_is_replaced_in_each_line() {
    let run = async |plugin: std::path::PathBuf| {
        let (lab, daemon) = up(&plugin, KEYS).await;
        let outcome = loaded(&row("killed, then stopped", &plugin), lab, daemon, async |_, daemon| {
            for (signal, ready) in [(Signal::SIGKILL, 2), (Signal::SIGSTOP, 3)] {
                kill(daemon.plugin().await, signal).unwrap();
                daemon.event_times("ready", ready).await;
            }
        })
        .await;
        outcome.none_failed().starts(3);
    };
    join_all(plugins().into_iter().map(run)).await;
}

/// There the plugin resumes by itself, as its line does, and is replaced where it does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_that_is_only_watched_resumes_or_is_replaced_in_each_line() {
    let echo = async |daemon: &Daemon| {
        let mut stream = TcpStream::connect(daemon.address).await.unwrap();
        stream.write_all(b"ping").await.unwrap();
        let mut back = [0; 4];
        tokio::time::timeout(PATIENCE, stream.read_exact(&mut back)).await.expect("an echo").unwrap();
    };
    let run = async |plugin: std::path::PathBuf| {
        let lab = Lab::start(Options::default()).await.unwrap();
        let address = own_address();
        let keys = format!(
            "gateway = \"observe\"\nfailover_after = \"2s\"\nhalf_close_timeout = \"10m\"\nca_file = \"{}\"\n{KEYS}",
            lab.ca_file().display()
        );
        let config = tunnel_by(&plugin, &lab, "echo", address, lab.echo_addr(), &keys)
            .replace(&lab.stream_endpoint_ws(), &lab.stream_endpoint_wss());
        let daemon = Daemon::start(address, &config);
        daemon.event("ready").await;
        echo(&daemon).await;
        for close in 1..=2 {
            quiet().await;
            assert_eq!(lab.close_all(1000, "Bye"), 1);
            daemon.event_times("resumed", close).await;
            lab.wait_for("the data channel", PATIENCE, |status| status.ready_sessions() == 1).await.unwrap();
            echo(&daemon).await;
        }
        assert_eq!((lab.status().start.processed, lab.status().resume.succeeded), (1, 2), "{plugin:?}");
        quiet().await;
        lab.set(Fault::Api(Call::Resume, ApiFault::Internal));
        assert_eq!(lab.close_all(1000, "Bye"), 1);
        daemon.event_times("ready", 2).await;
        lab.clear_all();
        echo(&daemon).await;
        daemon.stop(&lab).await;
    };
    join_all(plugins().into_iter().map(run)).await;
}
