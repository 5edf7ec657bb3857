//! Listening sockets in systemd's file descriptor store: they outlive this process, and clients that connect before the
//! next one runs wait in the kernel. systemd empties the store when the unit is stopped, and keeps it when the unit is
//! restarted, by whatever.

use std::os::fd::{BorrowedFd, OwnedFd};

use listenfd::ListenFd;
use sd_notify::NotifyState;
use sha2::{Digest as _, Sha256};

use crate::config::Listen;

/// More than any unit's `FileDescriptorStoreMax=` here.
const MAX_FDS: i32 = 65_536;

/// A socket that systemd has kept.
#[derive(Debug)]
pub struct Kept {
    /// See [`name`].
    pub name: String,
    /// Whatever was stored under this name.
    pub socket: OwnedFd,
}

/// The sockets that systemd hands over with the environment's `LISTEN_*`. To be called once, before anything else is
/// opened. What is no stream socket is closed.
pub fn kept() -> Vec<Kept> {
    // Without a process id these variables may be anybody's. (The crate would believe them.)
    if std::env::var_os("LISTEN_PID").is_none_or(|pid| pid.is_empty()) {
        return Vec::new();
    }
    // The crate makes a list of as many as it is told.
    if !std::env::var("LISTEN_FDS").is_ok_and(|count| is_possible(&count)) {
        return Vec::new();
    }
    // A name in another encoding is none that was given here.
    let names = std::env::var_os("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.to_string_lossy();
    let mut names = names.split(':');
    // Takes the variables out of the environment.
    let mut given = ListenFd::from_env();
    let mut kept = Vec::new();
    for index in 0..given.len() {
        let name = names.next().unwrap_or_default().to_owned();
        if let Some(socket) = take(&mut given, index) {
            kept.push(Kept { name, socket });
        } else {
            tracing::debug!(fdname = name, "what systemd has kept is no stream socket");
            remove(&name);
        }
    }
    kept
}

/// Whether systemd could have said so: a unit may store no more than a process may have open.
fn is_possible(count: &str) -> bool {
    count.parse().is_ok_and(|count: i32| (0..=MAX_FDS).contains(&count))
}

fn take(given: &mut ListenFd, index: usize) -> Option<OwnedFd> {
    if let Ok(Some(socket)) = given.take_tcp_listener(index) {
        return Some(socket.into());
    }
    if let Ok(Some(socket)) = given.take_unix_listener(index) {
        return Some(socket.into());
    }
    if let Ok(Some(other)) = given.take_raw_fd(index) {
        let _ = nix::unistd::close(other);
    }
    None
}

/// Has systemd keep a socket. Whether it was asked: systemd does not tell if it has a place for it.
pub fn store(name: &str, socket: BorrowedFd<'_>) -> bool {
    if !super::notify::is_wanted() {
        return false;
    }
    let sent = sd_notify::notify_with_fds(&[NotifyState::FdStore, NotifyState::FdName(name)], &[socket]);
    if let Err(error) = &sent {
        tracing::debug!(%error, fdname = name, "systemd could not be given a socket");
    }
    sent.is_ok()
}

/// Has systemd forget every socket of this name.
pub fn remove(name: &str) {
    if !name.is_empty() {
        super::notify::send(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
    }
}

/// Under what name a tunnel's address is kept: `billing-db_127.0.0.1_15432`, `billing-db_unix_/run/db.sock`.
///
/// A name has at most 255 characters of printable ASCII, and no colon. Tunnels' names and addresses have no underscore,
/// so that nothing gets the name of something else.
pub fn name(tunnel: &str, listen: &Listen) -> String {
    match listen {
        Listen::Tcp(address) => format!("{tunnel}_{}", address.to_string().replace(':', "_")),
        Listen::Unix(path) => {
            let plain = |path: &&str| path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':');
            match path.to_str().filter(plain) {
                Some(path) => format!("{tunnel}_unix_{path}"),
                None => {
                    let hash = Sha256::digest(path.as_os_str().as_encoded_bytes());
                    let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
                    format!("{tunnel}_unix_{hash}")
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_count_that_cannot_be_is_not_believed() {
        assert!(["0", "1", "4096"].iter().all(|count| is_possible(count)));
        assert!(
            ["", "-1", "65537", "2147483647", "99999999999", "1 "].iter().all(|count| !is_possible(count))
        );
    }

    #[test]
    fn names_are_such_as_systemd_takes_and_unique() {
        let tcp = |text: &str| Listen::Tcp(text.parse().unwrap());
        let unix = |path: &str| Listen::Unix(path.into());
        assert_eq!(name("billing-db", &tcp("127.0.0.1:15432")), "billing-db_127.0.0.1_15432");
        assert_eq!(name("a", &unix("/run/db.sock")), "a_unix_/run/db.sock");
        let long = format!("/{}", "x".repeat(106));
        let odd = format!("/{}", "ä".repeat(53));
        let listens = [
            tcp("127.0.0.1:1"),
            tcp("127.0.0.1:11"),
            tcp("[::1]:1"),
            tcp("[::]:11"),
            tcp("[fe80::1%3]:80"),
            tcp("[fe80::1%4]:80"),
            unix("/run/a_b"),
            unix("/run/a:b"),
            unix("/run/a b"),
            unix("/run/a\nb"),
            unix(&long),
            unix(&odd),
        ];
        let tunnels = ["a", &"z".repeat(48)];
        let names: HashSet<_> = tunnels.iter().flat_map(|t| listens.iter().map(|l| name(t, l))).collect();
        assert_eq!(names.len(), 2 * listens.len());
        for name in names {
            assert!(name.len() <= 255, "{name}");
            assert!(name.bytes().all(|byte| (b' '..127).contains(&byte) && byte != b':'), "{name}");
        }
    }
}
