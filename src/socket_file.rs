//! A Unix socket at a path: bound with its permissions, told from one that a dead process has left, and removed.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{Gid, chown, getegid};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::UnixListener;

/// Owner and group may connect; whoever wants it otherwise sets the folder's permissions.
pub const MODE: u32 = 0o660;

/// Binds and listens, for the process's own group or another one. Must be called within a runtime.
pub fn listen(path: &Path, group: Option<Gid>, backlog: i32) -> io::Result<(UnixListener, SocketFile)> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let file = SocketFile::new(path)?;
    // Before the socket listens nobody can connect, so that there is no moment with other permissions.
    if let Some(group) = group.filter(|group| *group != getegid()) {
        chown(path, None, Some(group))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(MODE))?;
    socket.listen(backlog)?;
    socket.set_nonblocking(true)?;
    Ok((UnixListener::from_std(socket.into())?, file))
}

/// Whether nobody listens on this socket: a process that was killed leaves its file behind. The attempt does not block,
/// because a live process with a full queue would make it wait; an error that tells nothing is passed on.
pub fn is_stale(path: &Path) -> io::Result<bool> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::unix(path)?) {
        Ok(()) => Ok(false),
        Err(error) => match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(true),
            // A full queue, or a socket of another type: somebody is there.
            Some(Errno::EAGAIN | Errno::EPROTOTYPE) => Ok(false),
            _ => Err(error),
        },
    }
}

/// The file of a Unix socket, removed when this is dropped, unless it is to stay or another process has put its own in
/// the place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
    /// The file is left where it is.
    pub stays: bool,
}

impl SocketFile {
    /// The file that is there now.
    pub fn new(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), identity: identity(path)?, stays: false })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if !self.stays
            && identity(&self.path).is_ok_and(|identity| identity == self.identity)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::debug!(%error, path = %self.path.display(), "a socket file could not be removed");
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}
