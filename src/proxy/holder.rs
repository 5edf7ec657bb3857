//! Who holds an address: what an operator asks next when a port cannot be bound.

use std::collections::HashSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;

use procfs::net::TcpState;
use procfs::process::{FDTarget, Process, all_processes};

/// A process that listens where somebody else wants to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The process's name, at most 15 characters of it.
    pub name: String,
    /// Its id.
    pub pid: i32,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.name, self.pid)
    }
}

/// The process that listens on `address` or on every address of the host with its port. `None` where it cannot be
/// read: without privileges only one's own processes show their sockets.
pub fn of_tcp(address: SocketAddr) -> Option<Holder> {
    let tables = [procfs::net::tcp(), procfs::net::tcp6()];
    let inodes = tables
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.state == TcpState::Listen && overlap(entry.local_address, address))
        .map(|entry| entry.inode)
        .collect();
    process_with(&inodes)
}

/// The process that listens on the Unix socket at `path`.
pub fn of_unix(path: &Path) -> Option<Holder> {
    let table = procfs::net::unix().ok()?;
    let inodes =
        table.into_iter().filter(|entry| entry.path.as_deref() == Some(path)).map(|e| e.inode).collect();
    process_with(&inodes)
}

fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() == other.port()
        && (one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified())
}

fn process_with(inodes: &HashSet<u64>) -> Option<Holder> {
    if inodes.is_empty() {
        return None;
    }
    all_processes().ok()?.flatten().find(|process| has_socket(process, inodes)).and_then(|process| {
        let name = process.stat().ok()?.comm;
        Some(Holder { name, pid: process.pid() })
    })
}

fn has_socket(process: &Process, inodes: &HashSet<u64>) -> bool {
    process.fd().is_ok_and(|descriptors| {
        descriptors
            .flatten()
            .any(|fd| matches!(fd.target, FDTarget::Socket(inode) if inodes.contains(&inode)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_of_the_whole_host_overlaps_each_address() {
        let parse = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert!(overlap(parse("0.0.0.0:80"), parse("127.0.0.1:80")));
        assert!(overlap(parse("[::]:80"), parse("127.0.0.1:80")));
        assert!(overlap(parse("127.0.0.1:80"), parse("127.0.0.1:80")));
        assert!(!overlap(parse("127.0.0.2:80"), parse("127.0.0.1:80")));
        assert!(!overlap(parse("127.0.0.1:81"), parse("127.0.0.1:80")));
    }
}
