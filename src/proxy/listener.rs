//! A local address that clients connect to: bound once, and never given up for an error.

use std::fs;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;

use super::client::Client;
use super::holder::{self, Holder};
use crate::config::Listen;
use crate::socket_file::{self, SocketFile, is_stale};

/// Connections that the kernel keeps until they are accepted. It makes less of it where `net.core.somaxconn` is less.
const BACKLOG: i32 = 1024;

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody listens there.
    #[error("{address} is in use{}", .holder.as_ref().map(|holder| format!(" by {holder}")).unwrap_or_default())]
    InUse {
        /// The address as it is configured.
        address: String,
        /// Who it is, where that can be read.
        holder: Option<Holder>,
    },
    /// The folder of a Unix socket is missing.
    #[error("{address} cannot be bound: the directory {} does not exist", .directory.display())]
    NoDirectory {
        /// The address as it is configured.
        address: String,
        /// The folder that must be there.
        directory: PathBuf,
    },
    /// Something that is no socket has the path of a Unix socket. It may be precious, so that it stays.
    #[error("{address} cannot be bound: there is something else than a socket at this path; remove it first")]
    NotASocket {
        /// The address as it is configured.
        address: String,
    },
    /// The kernel's refusal.
    #[error("{address} cannot be bound: {source}")]
    Refused {
        /// The address as it is configured.
        address: String,
        /// In the kernel's words.
        source: io::Error,
    },
}

/// A bound address. Dropping it closes it, and removes a Unix socket's file unless the socket is kept elsewhere too.
#[derive(Debug)]
pub struct Listener {
    address: String,
    socket: Bound,
}

#[derive(Debug)]
enum Bound {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

impl Listener {
    /// Binds and listens. Must be called within a runtime.
    ///
    /// # Errors
    /// See [`BindError`]; the daemon ends with status 69.
    pub fn bind(listen: &Listen) -> Result<Self, BindError> {
        let address = listen.to_string();
        let bound = match listen {
            Listen::Tcp(socket_address) => bind_tcp(*socket_address, &address),
            Listen::Unix(path) => bind_unix(path, &address),
        };
        bound.map(|socket| Self { address, socket })
    }

    /// Goes on with a socket that another process has bound. Must be called within a runtime.
    ///
    /// # Errors
    /// Why it cannot serve as `listen`, in words.
    pub fn adopt(listen: &Listen, socket: OwnedFd) -> Result<Self, String> {
        let address = listen.to_string();
        let said = |error: io::Error| error.to_string();
        if !getsockopt(&socket, sockopt::AcceptConn).map_err(|error| error.to_string())? {
            return Err("it does not listen".to_owned());
        }
        let socket = Socket::from(socket);
        let bound = socket.local_addr().map_err(said)?;
        socket.set_nonblocking(true).map_err(said)?;
        // With the address, its family is that of the configuration too.
        let socket = match listen {
            Listen::Tcp(wanted) if bound.as_socket() == Some(*wanted) => {
                Bound::Tcp(TcpListener::from_std(socket.into()).map_err(said)?)
            }
            Listen::Unix(path) if bound.as_pathname() == Some(path) => {
                let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
                if !is_socket {
                    return Err(format!("the file {} is gone", path.display()));
                }
                let file = SocketFile::new(path).map_err(said)?;
                Bound::Unix(UnixListener::from_std(socket.into()).map_err(said)?, file)
            }
            _ => return Err("it is bound to another address".to_owned()),
        };
        Ok(Self { address, socket })
    }

    /// Somebody else holds the socket too, and its clients wait there when this process has gone: dropping this leaves
    /// a Unix socket's file where it is. [`Self::close`] removes it all the same.
    pub fn outlive(&mut self) {
        if let Bound::Unix(_, file) = &mut self.socket {
            file.stays = true;
        }
    }

    /// Refuses clients from now on, whoever else holds the socket.
    pub(super) fn close(mut self) {
        // An error means that it does not listen any more.
        let _ = SockRef::from(&self).shutdown(Shutdown::Both);
        if let Bound::Unix(_, file) = &mut self.socket {
            file.stays = false;
        }
    }

    /// The address as it is configured, for log lines.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The TCP address bound, with the port that the kernel chose if 0 was asked for. `None` for a Unix socket.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.socket {
            Bound::Tcp(listener) => listener.local_addr().ok(),
            Bound::Unix(..) => None,
        }
    }

    async fn accept(&self) -> io::Result<Client> {
        match &self.socket {
            Bound::Tcp(listener) => listener.accept().await.map(|(socket, _)| socket.into()),
            Bound::Unix(listener, _) => listener.accept().await.map(|(socket, _)| socket.into()),
        }
    }

    /// Hands every client to `admit` until `stop` is cancelled. An error (most often: no file descriptor left) is told to
    /// `failed`, and the next attempt made a little later.
    pub(super) async fn accept_until(
        &self,
        stop: CancellationToken,
        mut admit: impl FnMut(Client),
        mut failed: impl FnMut(&io::Error),
    ) {
        let mut backoff = Backoff::default();
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                accepted = self.accept() => accepted,
            };
            match accepted {
                Ok(client) => {
                    backoff = Backoff::default();
                    admit(client);
                }
                Err(error) => {
                    failed(&error);
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(backoff.next()) => {}
                    }
                }
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Bound::Tcp(listener) => listener.as_fd(),
            Bound::Unix(listener, _) => listener.as_fd(),
        }
    }
}

/// The waits after accept errors: 5 ms, doubled each time, at most 1 s.
struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(Duration::from_millis(5))
    }
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let wait = self.0;
        self.0 = (wait * 2).min(Duration::from_secs(1));
        wait
    }
}

fn bind_tcp(socket_address: SocketAddr, address: &str) -> Result<Bound, BindError> {
    let listen = || {
        let socket = Socket::new(Domain::for_address(socket_address), Type::STREAM, None)?;
        // Connections of an earlier run that linger in TIME_WAIT must not keep this one from starting.
        socket.set_reuse_address(true)?;
        socket.bind(&socket_address.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        TcpListener::from_std(socket.into())
    };
    listen().map(Bound::Tcp).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => {
            BindError::InUse { address: address.to_owned(), holder: holder::of_tcp(socket_address) }
        }
        _ => BindError::Refused { address: address.to_owned(), source },
    })
}

fn bind_unix(path: &Path, address: &str) -> Result<Bound, BindError> {
    let address = || address.to_owned();
    let refused = |source| BindError::Refused { address: address(), source };
    if let Some(directory) = path.parent()
        && !directory.is_dir()
    {
        return Err(BindError::NoDirectory { address: address(), directory: directory.to_owned() });
    }
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(refused(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(BindError::NotASocket { address: address() });
        }
        Ok(_) if is_stale(path).map_err(refused)? => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(refused(error)),
            _ => {}
        },
        Ok(_) => return Err(BindError::InUse { address: address(), holder: holder::of_unix(path) }),
    }
    let listening = socket_file::listen(path, None, BACKLOG);
    listening.map(|(socket, file)| Bound::Unix(socket, file)).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse { address: address(), holder: holder::of_unix(path) },
        _ => refused(source),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    use tokio::net::{TcpStream, UnixStream};

    use super::*;

    fn any_port() -> Listen {
        Listen::Tcp(([127, 0, 0, 1], 0).into())
    }

    /// An address that is bound again after it was given up. Nobody else is here; a port that the kernel has chosen may be
    /// somebody's by then.
    fn own_address(last: u8) -> SocketAddr {
        let [.., high, low] = std::process::id().to_be_bytes();
        ([127, 64 | high, low, last], 15432).into()
    }

    #[tokio::test]
    async fn a_port_in_use_names_its_holder() {
        let address = own_address(255);
        let first = Listener::bind(&Listen::Tcp(address)).unwrap();
        let error = Listener::bind(&Listen::Tcp(address)).unwrap_err();
        let me = procfs::process::Process::myself().unwrap();
        let name = me.stat().unwrap().comm;
        assert_eq!(error.to_string(), format!("{address} is in use by {name} (pid {})", me.pid()));
        drop(first);
        Listener::bind(&Listen::Tcp(address)).unwrap();
    }

    #[tokio::test]
    async fn an_address_of_another_host_is_refused() {
        let error = Listener::bind(&Listen::Tcp(([192, 0, 2, 1], 15432).into())).unwrap_err();
        assert!(error.to_string().starts_with("192.0.2.1:15432 cannot be bound: "), "{error}");
    }

    #[tokio::test]
    async fn a_unix_socket_has_its_mode_and_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db.sock");
        let listener = Listener::bind(&Listen::Unix(path.clone())).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, socket_file::MODE);
        UnixStream::connect(&path).await.unwrap();

        let error = Listener::bind(&Listen::Unix(path.clone())).unwrap_err();
        let me = std::process::id();
        assert!(error.to_string().ends_with(&format!("(pid {me})")), "{error}");
        assert!(path.exists(), "the live one's file stays");

        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_dead_process_socket_is_replaced_and_a_successor_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "std leaves the file, as a killed process does");

        let listener = Listener::bind(&Listen::Unix(path.clone())).unwrap();
        fs::remove_file(&path).unwrap();
        let _successor = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(listener);
        assert!(path.exists(), "the successor's file is not ours to remove");
    }

    #[tokio::test]
    async fn a_unix_socket_needs_its_folder_and_harms_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        let error = Listener::bind(&Listen::Unix(missing.join("db.sock"))).unwrap_err();
        assert!(error.to_string().ends_with(&format!("the directory {} does not exist", missing.display())));

        let file = folder.path().join("precious");
        fs::write(&file, "data").unwrap();
        let error = Listener::bind(&Listen::Unix(file.clone())).unwrap_err();
        assert!(matches!(error, BindError::NotASocket { .. }), "{error}");
        assert_eq!(fs::read(&file).unwrap(), b"data");
    }

    fn kept(listener: &Listener) -> OwnedFd {
        listener.as_fd().try_clone_to_owned().unwrap()
    }

    #[tokio::test]
    async fn a_kept_socket_serves_who_came_meanwhile() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db.sock");
        let mut first = Listener::bind(&any_port()).unwrap();
        let tcp = Listen::Tcp(first.local_addr().unwrap());
        let unix = Listen::Unix(path.clone());
        let mut second = Listener::bind(&unix).unwrap();
        let (kept_tcp, kept_unix) = (kept(&first), kept(&second));
        first.outlive();
        second.outlive();
        drop((first, second));

        let Listen::Tcp(address) = tcp else { panic!("not an address") };
        let (_tcp_client, _unix_client) =
            (TcpStream::connect(address).await.unwrap(), UnixStream::connect(&path).await.unwrap());
        for (listen, kept) in [(tcp, kept_tcp), (unix, kept_unix)] {
            let listener = Listener::adopt(&listen, kept).unwrap();
            assert_eq!(listener.address(), listen.to_string());
            tokio::time::timeout(Duration::from_secs(20), listener.accept()).await.unwrap().unwrap();
        }
        assert!(!path.exists(), "dropped by its only holder");
    }

    #[tokio::test]
    async fn only_what_listens_on_the_address_is_adopted() {
        let listener = Listener::bind(&any_port()).unwrap();
        let here = Listen::Tcp(listener.local_addr().unwrap());
        let no = |listen: &Listen, socket: OwnedFd| Listener::adopt(listen, socket).unwrap_err();
        let elsewhere = Listen::Tcp(([127, 0, 0, 2], 1).into());
        assert_eq!(no(&elsewhere, kept(&listener)), "it is bound to another address");
        assert_eq!(no(&Listen::Unix("/x".into()), kept(&listener)), "it is bound to another address");
        let bound = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        bound.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        assert_eq!(no(&here, bound.into()), "it does not listen");
        let file = fs::File::open("/dev/null").unwrap();
        assert!(!no(&here, file.into()).is_empty());

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db.sock");
        let unix = Listener::bind(&Listen::Unix(path.clone())).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(no(&Listen::Unix(path), kept(&unix)).ends_with("is gone"));
    }

    #[tokio::test]
    async fn closing_refuses_clients_although_somebody_else_holds_the_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db.sock");
        let address = own_address(254);
        let mut tcp = Listener::bind(&Listen::Tcp(address)).unwrap();
        let mut unix = Listener::bind(&Listen::Unix(path.clone())).unwrap();
        let _store = (kept(&tcp), kept(&unix));
        tcp.outlive();
        unix.outlive();
        tcp.close();
        unix.close();
        assert!(TcpStream::connect(address).await.is_err());
        assert!(!path.exists());
        // The next process can have the address, too, before the other one has let go.
        Listener::bind(&Listen::Tcp(address)).unwrap();
        Listener::bind(&Listen::Unix(path)).unwrap();
    }

    #[test]
    fn the_backoff_is_bounded() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..10).map(|_| backoff.next().as_millis()).collect();
        assert_eq!(waits, [5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
    }

    /// The limit on file descriptors belongs to the whole process, so that another one runs out of them: this test
    /// binary, running only the test below.
    #[test]
    fn running_out_of_file_descriptors_is_survived() {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "proxy::listener::tests::run_out_of_file_descriptors", "--ignored"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }

    #[tokio::test]
    #[ignore = "run by running_out_of_file_descriptors_is_survived, in a process of its own"]
    async fn run_out_of_file_descriptors() {
        let listener = Listener::bind(&any_port()).unwrap();
        let address = listener.local_addr().unwrap();
        let mut clients = Vec::new();
        for _ in 0..10 {
            clients.push(TcpStream::connect(address).await.unwrap());
        }
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        // Room for three more.
        let used = fs::read_dir("/proc/self/fd").unwrap().count() as u64 - 1;
        setrlimit(Resource::RLIMIT_NOFILE, used + 3, hard).unwrap();

        let (accepted, errors) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let stop = CancellationToken::new();
        let mut kept = Vec::new();
        let serving = listener.accept_until(
            stop.clone(),
            |client| {
                kept.push(client);
                if accepted.fetch_add(1, Ordering::SeqCst) == 9 {
                    stop.cancel();
                }
            },
            |error| {
                assert_eq!(error.raw_os_error(), Some(nix::errno::Errno::EMFILE as i32));
                if errors.fetch_add(1, Ordering::SeqCst) == 2 {
                    assert!(accepted.load(Ordering::SeqCst) < 10);
                    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
                }
            },
        );
        tokio::time::timeout(Duration::from_secs(20), serving).await.unwrap();
        assert_eq!((accepted.into_inner(), errors.into_inner()), (10, 3));
    }
}
