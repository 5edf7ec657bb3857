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

/// A host that has just been started, or has no memory left: its kernel kills the plugin, or is too slow for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_that_does_not_answer_is_asked_again_soon() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = that_says(folder.path(), "1.2.764.0");
    let script = std::fs::read_to_string(&path).unwrap();
    let asked = folder.path().join("asked");
    let first = format!("#!/bin/sh\n[ -e '{0}' ] || {{ : > '{0}'; kill -9 $$; }}", asked.display());
    std::fs::write(&path, script.replacen("#!/bin/sh", &first, 1)).unwrap();
    let daemon = with_plugin(&lab, path.to_str().unwrap());
    let failed = daemon.event("failed").await;
    assert!(failed.field("reason").contains("does not answer --version: signal: 9"), "{}", failed.text);
    let ready = daemon.event("ready").await;
    let after = ready.at.duration_since(failed.at).unwrap();
    assert!(after < std::time::Duration::from_secs(15), "{after:?}");
    daemon.stop(&lab).await;
}
