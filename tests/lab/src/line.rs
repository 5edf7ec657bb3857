//! The way to the service: every TCP connection to the lab passes through here, where it can be reset, swallowed, frozen
//! or slowed down, whatever is spoken on it. Clients and agents have a way of their own each.
//!
//! The lab's own side sees an in-memory stream. Between the two ends a pump moves bytes; while a black hole or a freeze is
//! in force it does not even read, so that the client's kernel sees a peer that takes nothing. What was under way when a
//! freeze began stays where it is, in kernels and in the pump, and goes on in its order afterwards. A black hole takes no
//! notice of what a client has sent that hung up meanwhile; after a freeze it arrives.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SndBuf;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, Interest, ReadHalf, WriteHalf, duplex, split};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::fault::{Faults, Link, Network};
use crate::state::State;

/// Bytes moved at once.
const CHUNK: usize = 8 * 1024;
/// Chunks under way on a slow link, in each direction.
const UNDER_WAY: usize = 16;
/// What the kernel takes in of a connection before it goes out. The receiving side is left to the kernel: where it is limited the kernel
/// promises more than it then takes, and what it drops is sent again after a pause that doubles all the time.
const BUFFER: usize = 256 * 1024;
/// A client is given so long to close its side after the lab has closed its own.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Whose way it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Agent,
}

impl Side {
    fn network(self, faults: &Faults) -> Network {
        match self {
            Self::Client => faults.network,
            Self::Agent => faults.agent_network,
        }
    }
}

/// The state of one side's way.
#[derive(Clone)]
struct Way {
    side: Side,
    faults: watch::Receiver<Faults>,
}

impl Way {
    fn network(&self) -> Network {
        self.side.network(&self.faults.borrow())
    }

    fn stands_still(&self) -> bool {
        matches!(self.network(), Network::BlackHole | Network::Frozen)
    }

    /// How fast it is. Only the clients' is ever slow.
    fn link(&self) -> Link {
        match self.side {
            Side::Client => self.faults.borrow().link,
            Side::Agent => Link::default(),
        }
    }

    async fn comes_to(&mut self, wanted: impl Fn(Network) -> bool) {
        let side = self.side;
        let _ = self.faults.wait_for(|faults| wanted(side.network(faults))).await;
    }

    async fn changes(&mut self) {
        let _ = self.faults.changed().await;
    }

    /// Waits while nothing moves. Says whether there was a black hole.
    async fn moves(&mut self) -> bool {
        let mut swallowed = false;
        self.faults.mark_unchanged();
        while self.stands_still() {
            swallowed |= self.network() == Network::BlackHole;
            self.changes().await;
        }
        swallowed
    }
}

/// Accepts connections for ever and gives the near end of each to `serve`, with a token that resets the connection.
pub(crate) async fn accept<F, S>(listener: TcpListener, state: Arc<State>, side: Side, serve: F)
where
    F: Fn(DuplexStream, CancellationToken) -> S,
    S: Future<Output = ()> + Send + 'static,
{
    limit(&listener);
    loop {
        let Ok((tcp, _)) = listener.accept().await else {
            // Out of descriptors: there will be some again.
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        if side.network(&state.faults.borrow()) == Network::Refusing {
            reset(tcp);
            continue;
        }
        let _ = tcp.set_nodelay(true);
        let (near, far) = duplex(64 * 1024);
        let line = CancellationToken::new();
        let way = Way { side, faults: state.faults.subscribe() };
        tokio::spawn(run(tcp, far, way, line.clone()));
        tokio::spawn(serve(near, line));
    }
}

/// Limits what the kernel takes in of a connection.
pub(crate) fn limit(socket: &impl std::os::fd::AsFd) {
    let _ = setsockopt(socket, SndBuf, &BUFFER);
}

fn reset(tcp: TcpStream) {
    let _ = tcp.set_zero_linger();
}

async fn run(tcp: TcpStream, far: DuplexStream, way: Way, line: CancellationToken) {
    let (from_client, to_client) = tcp.into_split();
    let (from_lab, to_lab) = split(far);
    let mut refusing = way.clone();
    let cut = async {
        tokio::select! {
            () = line.cancelled() => {}
            () = refusing.comes_to(|network| network == Network::Refusing) => {}
        }
    };
    let pump = async {
        let up = upward(&from_client, to_lab, way.clone());
        let down = downward(from_lab, &to_client, way.clone());
        tokio::pin!(up, down);
        tokio::select! {
            gone = &mut up => if gone.is_ok() { let _ = down.await; },
            _ = &mut down => { let _ = timeout(LAST_WORDS, up).await; }
        }
    };
    tokio::select! {
        () = pump => line.cancel(),
        () = cut => {
            let _ = from_client.as_ref().set_zero_linger();
            line.cancel();
        }
    }
}

/// From the client to the lab, until the client has nothing more to say. An error if the client is gone.
async fn upward(from: &OwnedReadHalf, to: WriteHalf<DuplexStream>, way: Way) -> io::Result<()> {
    let (delayed, arriving) = mpsc::channel(UNDER_WAY);
    let mut thaw = way.clone();
    let read = async {
        let (mut delayed, mut way) = (Delay::new(delayed), way);
        let mut buffer = vec![0; CHUNK];
        loop {
            let swallowed = way.moves().await;
            let ready = tokio::select! {
                ready = from.ready(Interest::READABLE) => ready?,
                () = way.changes() => continue,
            };
            if way.stands_still() {
                continue;
            }
            if swallowed && ready.is_read_closed() {
                // What a client has sent before it gave up is not worth an answer.
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            match from.try_read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => delayed.send(&buffer[..read], &way).await?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    };
    let write = async {
        let (mut to, mut arriving) = (to, arriving);
        while let Some((due, bytes)) = arriving.recv().await {
            sleep_until(due).await;
            thaw.comes_to(|network| network != Network::Frozen).await;
            to.write_all(&bytes).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(read, write).map(|_| ())
}

/// From the lab to the client, until the lab has closed its end.
async fn downward(from: ReadHalf<DuplexStream>, to: &OwnedWriteHalf, mut way: Way) -> io::Result<()> {
    let (delayed, arriving) = mpsc::channel(UNDER_WAY);
    let current = way.clone();
    let read = async {
        let (mut from, mut delayed) = (from, Delay::new(delayed));
        let mut buffer = vec![0; CHUNK];
        loop {
            match from.read(&mut buffer).await? {
                0 => return Ok(()),
                read => delayed.send(&buffer[..read], &current).await?,
            }
        }
    };
    let write = async {
        let mut arriving = arriving;
        while let Some((due, mut bytes)) = arriving.recv().await {
            sleep_until(due).await;
            while !bytes.is_empty() {
                way.moves().await;
                to.writable().await?;
                if way.stands_still() {
                    continue;
                }
                match to.try_write(&bytes) {
                    Ok(written) => drop(bytes.split_to(written)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
        }
        way.moves().await;
        nix::sys::socket::shutdown(
            std::os::fd::AsRawFd::as_raw_fd(to.as_ref()),
            nix::sys::socket::Shutdown::Write,
        )
        .map_err(io::Error::from)
    };
    tokio::try_join!(read, write).map(|_| ())
}

/// The slow link: says of every chunk when it arrives.
struct Delay {
    to: mpsc::Sender<(Instant, Bytes)>,
    busy_until: Instant,
}

impl Delay {
    fn new(to: mpsc::Sender<(Instant, Bytes)>) -> Self {
        Self { to, busy_until: Instant::now() }
    }

    async fn send(&mut self, bytes: &[u8], way: &Way) -> io::Result<()> {
        let link = way.link();
        self.busy_until = self.busy_until.max(Instant::now());
        if link.bandwidth > 0 {
            self.busy_until += Duration::from_secs_f64(bytes.len() as f64 / link.bandwidth as f64);
        }
        let chunk = (self.busy_until + link.latency, Bytes::copy_from_slice(bytes));
        self.to.send(chunk).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
