//! The way to one session's plugin, and connections made on it.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::time::Duration;

use nix::errno::Errno;
use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, OwnedMutexGuard, watch};
use tokio_util::sync::CancellationToken;

use super::client::set_options;
use super::tap::Tap;
use crate::gateway::ledger::Ledger;
use crate::tunnel::Generation;

/// Bytes that the kernel keeps on the way to the plugin. The plugin passes on less than 1 MB a second, so that more
/// would only be more to remember in the ledger and to lose with the session.
const SEND_BUFFER: usize = 256 * 1024;

/// One session as the proxy sees it: somewhere to connect to. The driver publishes those that take new connections in
/// a `watch` channel, as `Vec<Arc<Route>>`.
#[derive(Debug)]
pub struct Route {
    /// The session's number in its tunnel.
    pub generation: Generation,
    /// For log lines.
    pub session_id: String,
    /// The plugin's port.
    pub address: SocketAddr,
    /// Where the bytes given to the plugin are written down.
    pub ledger: Arc<Ledger>,
    /// Cancelled when the session is over: what is still open on it is cut, or moved if it carried nothing yet.
    pub ended: CancellationToken,
    /// Connections open on it; the driver waits here for a draining session to become empty.
    pub open: watch::Sender<usize>,
    /// Of these, connections whose client does not read and has as much waiting for it as may: the session stalls.
    pub stalled: watch::Sender<usize>,
    /// Of the open ones, connections whose client has shut down its sending side: most have gone for good, some still wait for
    /// an answer.
    pub half_closed: AtomicUsize,
    /// Bytes from clients that the plugin has taken.
    pub up_bytes: AtomicU64,
    /// Bytes that came from the plugin.
    pub down_bytes: AtomicU64,
    /// Set by the driver while the data channel is down. A destination that cannot be heard is not silent: half-closed
    /// clients wait on.
    pub interrupted: AtomicBool,
    /// Set by the driver when a connection could not be made to the destination: the next one that gets an answer is told.
    pub doubted: AtomicBool,
    /// So many of those connections have got their answer.
    pub answered: watch::Sender<u64>,
    /// One connection at a time: their order is how they are matched to mux streams.
    connecting: Arc<Mutex<()>>,
}

impl Route {
    /// A route to the plugin that listens on `address`.
    pub fn new(generation: Generation, session_id: String, address: SocketAddr, ledger: Arc<Ledger>) -> Self {
        Self {
            generation,
            session_id,
            address,
            ledger,
            ended: CancellationToken::new(),
            open: watch::Sender::new(0),
            stalled: watch::Sender::new(0),
            half_closed: AtomicUsize::new(0),
            up_bytes: AtomicU64::new(0),
            down_bytes: AtomicU64::new(0),
            interrupted: AtomicBool::new(false),
            doubted: AtomicBool::new(false),
            answered: watch::Sender::new(0),
            connecting: Arc::default(),
        }
    }

    /// Connects to the plugin, when those that came before have been connected.
    pub(super) async fn connect(self: &Arc<Self>) -> io::Result<Link> {
        let open = Open::new(Arc::clone(self));
        let turn = self.turn().await?;
        // From here on the plugin may see the connection whether or not its client stays: it must be waited for before
        // the next one is begun, or the two could be accepted in either order. A task of its own does so.
        let connected = tokio::spawn(async move {
            let _turn = turn;
            let (plugin, stream) = dial(open.0.address, &open.0.ledger, |_| {}).await?;
            Ok(Link { plugin, stream, open, half_closed: AtomicBool::new(false) })
        });
        connected.await.map_err(io::Error::other)?
    }

    /// A connection for a probe: in its turn, but counted nowhere.
    ///
    /// # Errors
    /// The plugin refuses it.
    pub async fn probe(self: &Arc<Self>) -> io::Result<Tap> {
        let (route, turn) = (Arc::clone(self), self.turn().await?);
        let connected = tokio::spawn(async move {
            let _turn = turn;
            let mut told = false;
            let await_end = |stream| told = route.ledger.await_agent_end(stream);
            let (plugin, stream) = dial(route.address, &route.ledger, await_end).await?;
            Ok(Tap::new(plugin, stream, Arc::clone(&route.ledger), route.ended.clone(), told))
        });
        connected.await.map_err(io::Error::other)?
    }

    /// The right to connect, which a plugin that must be given nothing has for nobody.
    async fn turn(&self) -> io::Result<OwnedMutexGuard<()>> {
        let turn = Arc::clone(&self.connecting).lock_owned().await;
        if self.ledger.is_shut() {
            return Err(io::Error::new(ErrorKind::NotConnected, "its data channel is closed"));
        }
        Ok(turn)
    }

    /// A connection has had its first byte from the destination.
    pub(super) fn has_answered(&self) {
        if self.doubted.swap(false, Relaxed) {
            self.answered.send_modify(|answered| *answered += 1);
        }
    }
}

/// The route with the fewest open connections, those of `refused` and those that are over left out. Most clients that have
/// shut down their side are gone and only wait for the end of `half_close_timeout`: they count where there is no other
/// difference. With them a session whose agent has just died would look like the emptier one for seconds, while its clients
/// wait and those of the others come and go.
pub(super) fn choose(routes: &[Arc<Route>], refused: &[Generation]) -> Option<Arc<Route>> {
    routes
        .iter()
        .filter(|route| !route.ended.is_cancelled() && !refused.contains(&route.generation))
        .min_by_key(|route| {
            let open = *route.open.borrow();
            (open.saturating_sub(route.half_closed.load(Relaxed)), open)
        })
        .cloned()
}

/// To be called when a connection to the plugin is about to be closed. Where the plugin must not send its stream's end yet, the connection is
/// kept until it may, or until its session is over.
pub(super) fn hang_up(plugin: &TcpStream, ledger: &Arc<Ledger>, ended: &CancellationToken) {
    if !ledger.hang_up() {
        return;
    }
    // If it cannot be kept, or there is no runtime any more, the session is lost a little sooner.
    let (Ok(kept), Ok(runtime)) = (plugin.as_fd().try_clone_to_owned(), Handle::try_current()) else {
        return;
    };
    let (ledger, ended) = (Arc::clone(ledger), ended.clone());
    runtime.spawn(async move {
        tokio::select! {
            () = ledger.until_open() => {}
            () = ended.cancelled() => {}
        }
        drop(kept);
    });
}

/// Connects, and announces the connection to the ledger. The announcement is taken back only where it is certain that
/// the plugin will never see the connection: one number too few or too many, and every later stream is taken for
/// another one.
async fn dial(
    address: SocketAddr,
    ledger: &Ledger,
    announced: impl FnOnce(u32),
) -> io::Result<(TcpStream, u32)> {
    let stream = ledger.open();
    announced(stream);
    let never_seen = || {
        ledger.undo_open(stream);
        ledger.forget_agent_end(stream);
    };
    let socket = begin(address).inspect_err(|_| never_seen())?;
    // On loopback the connection is established by now; an error of the runtime changes nothing about that.
    let plugin = TcpStream::from_std(socket.into())?;
    plugin.writable().await?;
    match plugin.take_error()? {
        None => {}
        // Established, and closed by the plugin already. What it sent can still be read.
        Some(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {}
        Some(error) => {
            never_seen();
            return Err(error);
        }
    }
    // Linux connects a socket to itself when nobody listens on the port and the kernel happens to choose the same one
    // for this end. The plugin's port is an ephemeral one, so after its death that can happen.
    if plugin.local_addr().is_ok_and(|own| own == address) {
        SockRef::from(&plugin).set_linger(Some(Duration::ZERO))?;
        never_seen();
        return Err(ErrorKind::ConnectionRefused.into());
    }
    set_options(&plugin);
    Ok((plugin, stream))
}

/// Tells the kernel to connect. (The runtime's own `connect` reports a connection that was established and then closed
/// like one that was refused.)
fn begin(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => Err(error),
        _ => Ok(socket),
    }
}

/// A connection to the plugin.
pub(super) struct Link {
    pub(super) plugin: TcpStream,
    /// The mux stream that the plugin has made of it.
    pub(super) stream: u32,
    open: Open,
    half_closed: AtomicBool,
}

impl Drop for Link {
    fn drop(&mut self) {
        let route = Arc::clone(self.route());
        hang_up(&self.plugin, &route.ledger, &route.ended);
        route.ledger.forget_answer(self.stream);
        if self.half_closed.load(Relaxed) {
            self.open.0.half_closed.fetch_sub(1, Relaxed);
        }
    }
}

impl Link {
    /// The client has shut down its sending side.
    pub(super) fn half_close(&self) {
        if !self.half_closed.swap(true, Relaxed) {
            self.open.0.half_closed.fetch_add(1, Relaxed);
        }
    }

    pub(super) fn route(&self) -> &Arc<Route> {
        &self.open.0
    }
}

/// Counts as open on its route until it is dropped.
struct Open(Arc<Route>);

impl Open {
    fn new(route: Arc<Route>) -> Self {
        route.open.send_modify(|open| *open += 1);
        Self(route)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.send_modify(|open| *open -= 1);
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;
    use crate::proxy::rig;

    #[tokio::test]
    async fn a_refused_connection_leaves_no_number_behind() {
        let (_dead, address) = rig::dead_port();
        let route = rig::route(1, address);
        assert_eq!(route.connect().await.err().unwrap().kind(), io::ErrorKind::ConnectionRefused);
        assert!(!route.ledger.knows(3));
        assert_eq!(*route.open.borrow(), 0);
    }

    #[tokio::test]
    async fn the_fewest_connections_win_and_the_dead_are_left_out() {
        let routes: Vec<_> = (1..=3).map(|n| rig::route(n, ([127, 0, 0, 1], 1).into())).collect();
        routes[0].open.send_replace(2);
        routes[1].open.send_replace(1);
        routes[2].ended.cancel();
        assert_eq!(choose(&routes, &[]).unwrap().generation, Generation(2));
        assert_eq!(choose(&routes, &[Generation(2)]).unwrap().generation, Generation(1));
        assert!(choose(&routes, &[Generation(1), Generation(2)]).is_none());
        // Both of the first one's clients have said goodbye.
        routes[0].half_closed.store(2, Relaxed);
        assert_eq!(choose(&routes, &[]).unwrap().generation, Generation(1));
        routes[1].half_closed.store(1, Relaxed);
        assert_eq!(choose(&routes, &[]).unwrap().generation, Generation(2));
    }

    /// With its accept queue full the plugin's kernel drops the connection's first packet. The client goes away
    /// meanwhile; the next one must not overtake.
    #[tokio::test]
    async fn a_connection_that_was_begun_is_waited_for() {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let plugin = socket.listen(1).unwrap();
        let route = rig::route(1, plugin.local_addr().unwrap());
        // The kernel lets in one more than it was told.
        let _first = route.connect().await.unwrap();
        let _second = route.connect().await.unwrap();
        let abandoned = tokio::time::timeout(Duration::from_millis(50), route.connect()).await;
        assert!(abandoned.is_err(), "the queue is not full");
        assert!(route.ledger.knows(7));

        let next = tokio::spawn({
            let route = Arc::clone(&route);
            async move { route.connect().await }
        });
        for _ in 0..4 {
            let (_accepted, _) =
                tokio::time::timeout(Duration::from_secs(10), plugin.accept()).await.unwrap().unwrap();
        }
        assert_eq!(next.await.unwrap().unwrap().stream, 9);
    }

    /// The matching rests on this: Linux hands even a connection that has been reset to the plugin.
    #[tokio::test]
    async fn a_connection_that_is_reset_in_the_queue_is_still_accepted() {
        let plugin = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let route = rig::route(1, plugin.local_addr().unwrap());
        let link = route.connect().await.unwrap();
        SockRef::from(&link.plugin).set_linger(Some(Duration::ZERO)).unwrap();
        let address = link.plugin.local_addr().unwrap();
        drop(link);
        let (_, from) =
            tokio::time::timeout(Duration::from_secs(10), plugin.accept()).await.unwrap().unwrap();
        assert_eq!(from, address);
    }

    /// The plugin accepts, answers and dies before the proxy has looked: the number is used up, the bytes are there.
    #[tokio::test]
    async fn a_connection_that_was_reset_at_once_keeps_its_number() {
        let plugin = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let route = rig::route(1, plugin.local_addr().unwrap());
        // The kernel has connected it when `begin` returns, and the runtime has not yet been asked.
        let mut connecting = std::pin::pin!(dial(route.address, &route.ledger, |_| {}));
        assert!(futures_util::poll!(connecting.as_mut()).is_pending());
        let (socket, _) = plugin.accept().unwrap();
        std::io::Write::write_all(&mut &socket, b"bytes").unwrap();
        SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
        drop(socket);
        let (socket, stream) = connecting.await.unwrap();
        assert_eq!(stream, 3);
        assert!(route.ledger.knows(3));
        socket.readable().await.unwrap();
        let mut buffer = [0; 16];
        assert_eq!(socket.try_read(&mut buffer).unwrap(), 5);
        assert_eq!(socket.try_read(&mut buffer).unwrap(), 0);
    }
}
