//! The way to the service: every TCP connection to the lab passes through here, where it can be reset, swallowed or
//! slowed down, whatever is spoken on it.
//!
//! The lab's own side sees an in-memory stream. Between the two ends a pump moves bytes; while a black hole is in force
//! it does not even read, so that the client's kernel sees a peer that takes nothing.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, Interest, ReadHalf, WriteHalf, duplex, split};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::fault::{Faults, Network};
use crate::state::State;

/// Bytes moved at once.
const CHUNK: usize = 8 * 1024;
/// Chunks under way on a slow link, in each direction.
const UNDER_WAY: usize = 16;
/// A client is given so long to close its side after the lab has closed its own.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Accepts connections for ever and gives the near end of each to `serve`, with a token that resets the connection.
pub(crate) async fn accept<F, S>(listener: TcpListener, state: Arc<State>, serve: F)
where
    F: Fn(DuplexStream, CancellationToken) -> S,
    S: Future<Output = ()> + Send + 'static,
{
    loop {
        let Ok((tcp, _)) = listener.accept().await else {
            // Out of descriptors: there will be some again.
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        if state.faults.borrow().network == Network::Refusing {
            reset(tcp);
            continue;
        }
        let _ = tcp.set_nodelay(true);
        let (near, far) = duplex(64 * 1024);
        let line = CancellationToken::new();
        tokio::spawn(run(tcp, far, state.faults.subscribe(), line.clone()));
        tokio::spawn(serve(near, line));
    }
}

fn reset(tcp: TcpStream) {
    let _ = tcp.set_zero_linger();
}

async fn run(tcp: TcpStream, far: DuplexStream, faults: watch::Receiver<Faults>, line: CancellationToken) {
    let (from_client, to_client) = tcp.into_split();
    let (from_lab, to_lab) = split(far);
    let mut refusing = faults.clone();
    let cut = async {
        tokio::select! {
            () = line.cancelled() => {}
            _ = refusing.wait_for(|faults| faults.network == Network::Refusing) => {}
        }
    };
    let pump = async {
        let up = upward(&from_client, to_lab, faults.clone());
        let down = downward(from_lab, &to_client, faults.clone());
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

/// Whether the black hole had to be waited for.
async fn past_black_hole(faults: &mut watch::Receiver<Faults>) -> bool {
    let there = faults.borrow_and_update().network == Network::BlackHole;
    if there {
        let _ = faults.wait_for(|faults| faults.network != Network::BlackHole).await;
    }
    there
}

/// From the client to the lab, until the client has nothing more to say. An error if the client is gone.
async fn upward(
    from: &OwnedReadHalf,
    to: WriteHalf<DuplexStream>,
    mut faults: watch::Receiver<Faults>,
) -> io::Result<()> {
    let (delayed, arriving) = mpsc::channel(UNDER_WAY);
    let read = async {
        let mut delayed = Delay::new(delayed);
        let mut buffer = vec![0; CHUNK];
        loop {
            let waited = past_black_hole(&mut faults).await;
            let ready = tokio::select! {
                ready = from.ready(Interest::READABLE) => ready?,
                _ = faults.changed() => continue,
            };
            if faults.borrow().network == Network::BlackHole {
                continue;
            }
            if waited && ready.is_read_closed() {
                // What a client has sent before it gave up is not worth an answer.
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            match from.try_read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => delayed.send(&buffer[..read], &faults).await?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    };
    let write = async {
        let (mut to, mut arriving) = (to, arriving);
        while let Some((due, bytes)) = arriving.recv().await {
            sleep_until(due).await;
            to.write_all(&bytes).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(read, write).map(|_| ())
}

/// From the lab to the client, until the lab has closed its end.
async fn downward(
    from: ReadHalf<DuplexStream>,
    to: &OwnedWriteHalf,
    mut faults: watch::Receiver<Faults>,
) -> io::Result<()> {
    let (delayed, arriving) = mpsc::channel(UNDER_WAY);
    let current = faults.clone();
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
                past_black_hole(&mut faults).await;
                to.writable().await?;
                if faults.borrow().network == Network::BlackHole {
                    continue;
                }
                match to.try_write(&bytes) {
                    Ok(written) => drop(bytes.split_to(written)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
        }
        past_black_hole(&mut faults).await;
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

    async fn send(&mut self, bytes: &[u8], faults: &watch::Receiver<Faults>) -> io::Result<()> {
        let link = faults.borrow().link;
        self.busy_until = self.busy_until.max(Instant::now());
        if link.bandwidth > 0 {
            self.busy_until += Duration::from_secs_f64(bytes.len() as f64 / link.bandwidth as f64);
        }
        let chunk = (self.busy_until + link.latency, Bytes::copy_from_slice(bytes));
        self.to.send(chunk).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
