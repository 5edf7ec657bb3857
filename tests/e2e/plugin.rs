//! A plugin that is not there, or too old.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use autossm_lab::Lab;
use autossm_lab::options::Options;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::daemon::{Daemon, own_address, plugin, tunnel};

/// The suite's plugin, which says that it is another version.
fn that_says(folder: &Path, version: &str) -> PathBuf {
    let path = folder.join("session-manager-plugin");
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] && echo {version} && exit\nexec '{}' \"$@\"\n",
        plugin().display()
    );
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn with_plugin(lab: &Lab, named: &str) -> Daemon {
    let address = own_address();
    let config = tunnel(lab, "echo", address, lab.echo_addr(), "");
    let own = format!("plugin = \"{}\"", plugin().display());
    assert!(config.contains(&own));
    Daemon::start(address, &config.replace(&own, &format!("plugin = \"{named}\"")))
}

/// The daemon stays, holds its clients, and takes the plugin when it is there and the file has been read again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_plugin_is_said_to_be_missing_and_where() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let daemon = with_plugin(&lab, "no-such-plugin");
    let failed = daemon.event("failed").await;
    assert_eq!(failed.field("class"), "needs a change", "{}", failed.text);
    let reason = failed.field("reason");
    assert!(
        reason.contains("no-such-plugin was not found in ")
            && reason.contains("/usr/local/sessionmanagerplugin/bin"),
        "{reason}"
    );
    assert_eq!(lab.status().start.processed, 0, "a session was started for nothing");
    let mut client = TcpStream::connect(daemon.address).await.unwrap();
    client.write_all(b"ping").await.unwrap();
    daemon.event("holding").await;

    let config = tunnel(&lab, "echo", daemon.address, lab.echo_addr(), "");
    std::fs::write(daemon.folder.path().join("config.toml"), config).unwrap();
    daemon.signal(nix::sys::signal::Signal::SIGHUP);
    let mut back = [0; 4];
    client.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"ping");
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_that_is_too_old_is_refused() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let old = that_says(folder.path(), "1.2.500.0");
    let daemon = with_plugin(&lab, old.to_str().unwrap());
    let failed = daemon.event("failed").await;
    assert_eq!(failed.field("class"), "needs a change", "{}", failed.text);
    let reason = failed.field("reason");
    assert!(reason.contains("version 1.2.500.0") && reason.contains("install a newer"), "{reason}");
    assert_eq!(lab.status().start.processed, 0);
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_that_is_old_is_warned_of_once() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let old = that_says(folder.path(), "1.2.600.0");
    let daemon = with_plugin(&lab, old.to_str().unwrap());
    daemon.event("ready").await;
    lab.terminate_all("Session terminated by an administrator");
    daemon.event_times("ready", 2).await;
    let log = daemon.stop(&lab).await;
    let warned: Vec<_> =
        log.iter().filter(|line| line.fields["level"] == "WARN" && line.text.contains("1.2.600.0")).collect();
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(warned[0].text.contains("older than 1.2.764.0"), "{}", warned[0].text);
}
