//! Listen addresses: free, autossm's own, or somebody else's.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use socket2::{Domain, Socket, Type};

use super::Running;
use super::finding::Finding;
use crate::config::{Config, Listen, Tunnel};
use crate::control::client::Error;
use crate::proxy::holder::{self, Holder};

const CHECK: &str = "listen";

/// Of each of the tunnel's addresses.
pub(super) fn checks(tunnel: &Tunnel, config: &Config, running: &Running) -> Vec<Finding> {
    tunnel.listen.iter().map(|listen| check(listen, tunnel, config, running)).collect()
}

fn check(listen: &Listen, tunnel: &Tunnel, config: &Config, running: &Running) -> Finding {
    let shown = listen.to_string();
    let own = running.iter().find_map(|(name, status)| {
        let status = status.as_deref().ok()?;
        (status.daemon.pid != 0 && status.listen.contains(&shown)).then_some((name, status.daemon.pid))
    });
    if let Some((name, pid)) = own {
        let of = if *name == tunnel.name { String::new() } else { format!(", for the tunnel {name}") };
        return Finding::ok(CHECK, format!("{shown} is held by autossm (pid {pid}){of}"));
    }
    let free = || Finding::ok(CHECK, format!("{shown} is free"));
    let holder = match listen {
        Listen::Tcp(address) => match bind(*address) {
            Ok(()) => return free(),
            Err(error) => match error.kind() {
                ErrorKind::AddrInUse => holder::of_tcp(*address),
                ErrorKind::AddrNotAvailable => {
                    let remedy = "write an address of this host: `ip address` shows them";
                    return Finding::failure(CHECK, format!("{shown} is no address of this host"), remedy);
                }
                ErrorKind::PermissionDenied => {
                    let remedy = "choose a port from 1024 on, or lower net.ipv4.ip_unprivileged_port_start";
                    return Finding::failure(CHECK, format!("{shown} may not be bound by this user"), remedy);
                }
                _ => {
                    return Finding::failure(
                        CHECK,
                        format!("{shown}: {error}"),
                        "see whether the address is right",
                    );
                }
            },
        },
        Listen::Unix(path) => match file(path) {
            File::Nothing => return free(),
            File::Other(what, remedy) => {
                return Finding::failure(CHECK, format!("{shown}: {what}"), remedy);
            }
            File::Unknown => {
                return Finding::skipped(CHECK, format!("{shown} may not be seen by this user"));
            }
            File::Socket => match holder::of_unix(path) {
                Some(holder) => Some(holder),
                // Left by a process that is gone: the next one removes it.
                None if std::os::unix::net::UnixStream::connect(path).is_err() => return free(),
                None => None,
            },
        },
    };
    taken(&shown, holder, config, running)
}

/// By somebody whom the control sockets do not know.
fn taken(shown: &str, holder: Option<Holder>, config: &Config, running: &Running) -> Finding {
    match holder {
        // Either it keeps the address for autossm, which is being restarted, or listens for somebody else's socket unit.
        Some(holder) if holder.pid == 1 => Finding::warning(
            CHECK,
            format!("{shown} is held by {holder}, for a service that does not run now"),
            "if autossm is not just being restarted: systemctl list-sockets shows whose it is; choose another port, or disable \
             that socket unit",
        ),
        Some(holder) => Finding::failure(
            CHECK,
            format!("{shown} is taken by {holder}"),
            "stop that, or choose another port for `listen`",
        ),
        None if config
            .tunnels
            .iter()
            .any(|t| matches!(running.get(&t.name), Some(Err(Error::Denied(_))))) =>
        {
            let message = format!("{shown} is taken, perhaps by autossm itself, which this user may not ask");
            Finding::skipped(CHECK, message + ": ask as root")
        }
        None => Finding::failure(
            CHECK,
            format!("{shown} is taken, by whom this user may not see"),
            "run autossm doctor as root to see by whom, or choose another port for `listen`",
        ),
    }
}

/// Bound as the daemon does it, but never listening: no client gets here.
fn bind(address: SocketAddr) -> std::io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())
}

/// What there is at a Unix socket's path.
enum File {
    Nothing,
    Socket,
    Unknown,
    /// What it is, and what to do.
    Other(String, String),
}

fn file(path: &Path) -> File {
    match path.symlink_metadata() {
        Ok(found) if found.file_type().is_socket() => File::Socket,
        Ok(_) => File::Other(
            "there is a file that is no socket".to_owned(),
            "remove it, or choose another path".to_owned(),
        ),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => File::Unknown,
        Err(_) => match path.parent().filter(|folder| !folder.is_dir()) {
            // A unit's runtime directory comes with the unit.
            Some(folder) if !folder.starts_with("/run") => File::Other(
                format!("there is no folder {}", folder.display()),
                format!("mkdir -p {}", folder.display()),
            ),
            _ => File::Nothing,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn socket_files_are_free_dead_taken_or_something_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("file"), "").unwrap();
        drop(UnixListener::bind(path("dead")).unwrap());
        let _live = UnixListener::bind(path("live")).unwrap();
        let names = ["free", "dead", "live", "file", "none/socket"];
        let listen: Vec<_> = names.iter().map(|name| format!("\"unix:{}\"", path(name).display())).collect();
        let text = format!(
            "[[tunnel]]\nname = \"db\"\nlisten = [{}]\ntarget = \"i-12345678\"\nremote_port = 1\n",
            listen.join(", ")
        );
        let config = crate::config::parse("f", &text).unwrap();
        let found = checks(&config.tunnels[0], &config, &Running::new());
        let own = format!("(pid {})", std::process::id());
        let expected = [
            (Verdict::Ok, "is free"),
            (Verdict::Ok, "is free"),
            (Verdict::Failure, own.as_str()),
            (Verdict::Failure, "no socket"),
            (Verdict::Failure, "there is no folder"),
        ];
        for ((found, (verdict, words)), name) in found.iter().zip(expected).zip(names) {
            assert_eq!(found.verdict, verdict, "{name}: {}", found.message);
            assert!(found.message.contains(words), "{name}: {}", found.message);
        }
    }
}
