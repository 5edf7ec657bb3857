//! One client's socket, TCP or Unix, and the ways in which a client can leave or be left.
//!
//! A client's connection ends with a reset unless it is [finished](Client::finish): an answer that is cut must not look
//! complete, whatever cuts it, be it the end of this process.

mod unread;

use std::io;
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd as _};
use std::task::{Context, Poll};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use socket2::SockRef;
use tokio::io::{Interest, Ready};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{sleep, timeout};

use self::unread::Unread;

/// How long a client whose answer is complete may go on sending before its socket is closed.
const LINGER: Duration = Duration::from_secs(2);

/// How long a client whose answer is cut may take for what was received of it, and how often that is looked at.
const LAST_BYTES: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(10);

/// A client that has been accepted. Its methods take `&self`, so that one task can read, write and watch it at once.
#[derive(Debug)]
pub enum Client {
    /// Accepted on a TCP port.
    Tcp(TcpStream),
    /// Accepted on a Unix socket.
    Unix(UnixStream, Unread),
}

/// Both kinds of socket have the same methods, but no trait for them.
macro_rules! either {
    ($client:expr, $socket:ident => $call:expr) => {
        match $client {
            Client::Tcp($socket) => $call,
            Client::Unix($socket, _) => $call,
        }
    };
}

impl Client {
    pub(super) fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, socket => socket.poll_read_ready(cx))
    }

    pub(super) fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, socket => socket.poll_write_ready(cx))
    }

    pub(super) fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.try_read(buffer),
            Self::Unix(socket, unread) => unread.try_read(socket, buffer),
        }
    }

    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        either!(self, socket => socket.try_write(bytes))
    }

    /// Like [`Self::try_write`], but asks the kernel itself. That tells of room only when a good part of its buffer is free
    /// (of a TCP socket's a third, which may be more than a MB, of a Unix socket's three quarters), and gives it before.
    pub(super) fn press(&self, bytes: &[u8]) -> io::Result<usize> {
        let socket = either!(self, socket => socket.as_raw_fd());
        Ok(send(socket, bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)?)
    }

    /// Who it is, as far as the kernel still knows: an address, or a process.
    pub(super) fn peer(&self) -> String {
        let peer = match self {
            Self::Tcp(socket) => socket.peer_addr().map(|address| address.to_string()),
            Self::Unix(socket, _) => socket.peer_cred().map(|peer| match peer.pid() {
                Some(pid) => format!("process {pid} of user {}", peer.uid()),
                None => format!("a process of user {}", peer.uid()),
            }),
        };
        peer.unwrap_or_else(|_| "a client that has gone".to_owned())
    }

    /// Resets the connection when the client's host has what was written, or does not take it. (A client on a Unix socket that
    /// has sent nothing sees an end all the same.)
    pub(super) async fn abort(self) {
        if let Self::Tcp(socket) = &self {
            let _ = timeout(LAST_BYTES, sent(socket)).await;
        }
    }

    async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        either!(self, socket => socket.ready(interest).await)
    }

    /// Whether there is something to read, without taking it: `Ok(0)` is the end of what the client sends.
    fn peek(&self) -> io::Result<usize> {
        let mut byte = [MaybeUninit::uninit()];
        either!(self, socket => socket.try_io(Interest::READABLE, || SockRef::from(socket).peek(&mut byte)))
    }

    /// Waits until the client has reset its connection.
    pub(super) async fn reset(&self) {
        // An error here is the runtime's end.
        let _ = self.ready(Interest::ERROR).await;
    }

    /// Waits until a client that waits for a session has gone away. One that has sent something still wants its answer,
    /// even if it has shut down its sending side; `has_sent` says that bytes of it have been read already.
    pub(super) async fn gone(&self, has_sent: bool) {
        let mut has_sent = has_sent;
        while !has_sent {
            match self.ready(Interest::READABLE | Interest::ERROR).await {
                Ok(ready) if !ready.is_error() => {}
                _ => return,
            }
            match self.peek() {
                Ok(0) => return,
                Ok(_) => has_sent = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
        self.reset().await;
    }

    /// Tells the client that nothing more comes, and waits a moment for its own end. Closing a socket in which
    /// something lies unread resets the connection, and that would throw away what is still on its way to the client.
    pub(super) async fn finish(&self) {
        // Now the socket may be closed in the ordinary way. A client that is gone already needs no telling.
        let _ = match self {
            Self::Tcp(socket) => SockRef::from(socket).set_linger(None),
            Self::Unix(socket, unread) => unread.forget(socket),
        };
        let _ = either!(self, socket => SockRef::from(socket).shutdown(Shutdown::Write));
        let _ = timeout(LINGER, async {
            while self.ready(Interest::READABLE).await.is_ok() {
                match self.discard() {
                    Ok(0) => return,
                    Err(error) if error.kind() != io::ErrorKind::WouldBlock => return,
                    _ => {}
                }
            }
        })
        .await;
    }

    fn discard(&self) -> io::Result<usize> {
        either!(self, socket => socket.try_read(&mut [0; 4096]))
    }
}

/// A Unix socket needs none of the options.
impl From<UnixStream> for Client {
    fn from(socket: UnixStream) -> Self {
        Self::Unix(socket, Unread::default())
    }
}

impl From<TcpStream> for Client {
    fn from(socket: TcpStream) -> Self {
        set_options(&socket);
        if let Err(error) = SockRef::from(&socket).set_linger(Some(Duration::ZERO)) {
            tracing::debug!(%error, "a client will not be reset");
        }
        Self::Tcp(socket)
    }
}

/// Waits until everything has been sent that was written, or the connection is broken. What has been sent the peer's host keeps
/// for it through a reset.
async fn sent(socket: &TcpStream) {
    // From now on it is writable only if nothing waits in it. One that cannot be asked is not waited for.
    if SockRef::from(socket).set_tcp_notsent_lowat(1).is_ok() {
        while waits(socket) {
            sleep(LOOK).await;
        }
    }
}

fn waits(socket: &TcpStream) -> bool {
    let mut state = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    poll(&mut state, PollTimeout::ZERO) == Ok(0)
}

/// No delay, because whoever wrote the bytes has decided already how to group them; keepalive, because a client on a
/// host that has lost its power never says so. Neither is worth losing a connection for.
pub(super) fn set_options(socket: &impl AsFd) {
    let socket = SockRef::from(socket);
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15))
        .with_retries(4);
    if let Err(error) = socket.set_tcp_nodelay(true).and_then(|()| socket.set_tcp_keepalive(&keepalive)) {
        tracing::debug!(%error, "a TCP option could not be set");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;

    async fn tcp_pair() -> (TcpStream, Client) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let theirs = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (theirs, listener.accept().await.unwrap().0.into())
    }

    async fn is_gone(client: &Client) -> bool {
        tokio::time::timeout(Duration::from_millis(200), client.gone(false)).await.is_ok()
    }

    #[tokio::test]
    async fn a_client_that_closes_has_gone() {
        let (theirs, client) = tcp_pair().await;
        assert!(!is_gone(&client).await);
        drop(theirs);
        assert!(is_gone(&client).await);
    }

    #[tokio::test]
    async fn a_client_that_has_sent_its_request_waits() {
        let (mut theirs, client) = tcp_pair().await;
        theirs.write_all(b"request").await.unwrap();
        assert!(!is_gone(&client).await);
        theirs.shutdown().await.unwrap();
        assert!(!is_gone(&client).await);
        let mut buffer = [0; 16];
        assert_eq!(client.try_read(&mut buffer).unwrap(), 7, "nothing was taken");
    }

    #[tokio::test]
    async fn a_client_that_resets_has_gone_whatever_it_sent() {
        let (mut theirs, client) = tcp_pair().await;
        theirs.write_all(b"request").await.unwrap();
        assert!(!is_gone(&client).await);
        SockRef::from(&theirs).set_linger(Some(Duration::ZERO)).unwrap();
        drop(theirs);
        assert!(is_gone(&client).await);
    }

    #[tokio::test]
    async fn a_unix_client_leaves_and_waits_likewise() {
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        let client = Client::from(ours);
        assert!(!is_gone(&client).await);
        theirs.write_all(b"request").await.unwrap();
        theirs.shutdown().await.unwrap();
        assert!(!is_gone(&client).await);

        let (theirs, ours) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(is_gone(&Client::from(ours)).await);
    }
}
