//! What systemd is told of the daemon's state. Without `NOTIFY_SOCKET` every call does nothing; a message that cannot
//! be sent is logged at debug level, because nothing that the daemon does depends on it.

use std::time::Duration;

use sd_notify::NotifyState;

/// Started: systemd goes on with what waits for this service. Also ends a reload.
pub fn ready() {
    send(&[NotifyState::Ready]);
}

/// The configuration is being read again; [`ready`] tells the end of it.
pub fn reloading() {
    // `Type=notify-reload` accepts the message only with the time at which it was sent.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "the monotonic clock cannot be read"),
    }
}

/// The daemon has begun to stop.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// One line for `systemctl status`. A line feed would begin another message, so that it becomes a space.
pub fn status(text: &str) {
    send(&[NotifyState::Status(&text.replace('\n', " "))]);
}

/// Still alive. To be sent every [`watchdog_interval`].
pub fn watchdog() {
    send(&[NotifyState::Watchdog]);
}

/// How often systemd is to hear [`watchdog`]: half of `WatchdogSec`, as its manual advises. `None` if it does not ask.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|timeout| timeout / 2)
}

/// Whether there is a systemd that listens.
pub fn is_wanted() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some_and(|path| !path.is_empty())
}

pub(super) fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd could not be told");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::process::Command;

    use super::*;

    /// The environment belongs to the whole process, so that the messages are sent by another one: this test binary,
    /// running only the test below.
    #[test]
    fn systemd_hears_each_state() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();

        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "systemd::notify::tests::tell_everything", "--ignored"])
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "30000000")
            .env_remove("WATCHDOG_PID")
            .status()
            .unwrap();
        assert!(status.success());

        let mut buffer = [0; 256];
        let mut heard = || {
            let n = socket.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..n].to_vec()).unwrap()
        };
        assert_eq!(heard(), "READY=1\n");
        let reloading = heard();
        assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
        assert_eq!(heard(), "STATUS=2 of 3 tunnels up\n");
        assert_eq!(heard(), "WATCHDOG=1\n");
        assert_eq!(heard(), "STOPPING=1\n");
    }

    #[test]
    #[ignore = "run by systemd_hears_each_state, with systemd's environment"]
    fn tell_everything() {
        assert_eq!(watchdog_interval(), Some(Duration::from_secs(15)));
        ready();
        reloading();
        status("2 of 3\ntunnels up");
        watchdog();
        stopping();
    }
}
