//! Servers for the far end of tunnels, each with one habit.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::bulk::{Asked, Content, REQUEST};
use crate::state::State;

/// What the slow server answers.
pub const SLOW_ANSWER: usize = 20_001;
/// What the banner server says first.
pub const BANNER: &[u8] = b"220 lab ready\r\n";
/// How long the slow server takes for its answer.
const SLOW_TIME: Duration = Duration::from_secs(1);
/// Pieces of the slow answer.
const SLOW_PIECES: u32 = 40;

/// The addresses of the lab's destinations, all on 127.0.0.1.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Destinations {
    /// Sends back what it receives; closes when the client does.
    pub echo: SocketAddr,
    /// Reads one line, then sends [`slow_answer`] within a second and closes.
    pub slow: SocketAddr,
    /// Sends [`BANNER`] at once, then echoes.
    pub banner: SocketAddr,
    /// Sends without end, reads nothing.
    pub endless: SocketAddr,
    /// Reads everything; the bytes are counted in `Status::sunk`.
    pub sink: SocketAddr,
    /// Echoes, but where the first 32 bytes of a client ask for a transfer ([`crate::bulk`]) it sends or takes what they say, and
    /// closes.
    pub bulk: SocketAddr,
    /// Accepts and does nothing: neither reads nor writes nor closes.
    pub deaf: SocketAddr,
}

/// The slow server's whole answer.
pub fn slow_answer() -> Vec<u8> {
    (0..SLOW_ANSWER).map(|at| (at % 251) as u8).collect()
}

pub(crate) async fn start(state: Arc<State>) -> std::io::Result<Destinations> {
    Ok(Destinations {
        echo: serve(echo).await?,
        slow: serve(slow).await?,
        banner: serve(banner).await?,
        endless: serve(endless).await?,
        sink: serve(move |tcp| sink(state.clone(), tcp)).await?,
        bulk: serve(bulk).await?,
        deaf: serve(deaf).await?,
    })
}

async fn serve<F, S>(habit: F) -> std::io::Result<SocketAddr>
where
    F: Fn(TcpStream) -> S + Send + 'static,
    S: Future<Output = std::io::Result<()>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((tcp, _)) => {
                    let _ = tcp.set_nodelay(true);
                    tokio::spawn(habit(tcp));
                }
                // Out of descriptors: there will be some again.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    });
    Ok(address)
}

async fn echo(mut tcp: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match tcp.read(&mut buffer).await? {
            0 => return Ok(()),
            read => tcp.write_all(&buffer[..read]).await?,
        }
    }
}

async fn slow(tcp: TcpStream) -> std::io::Result<()> {
    let mut tcp = BufReader::new(tcp);
    tcp.read_until(b'\n', &mut Vec::new()).await?;
    let answer = slow_answer();
    for piece in answer.chunks(answer.len().div_ceil(SLOW_PIECES as usize)) {
        tokio::time::sleep(SLOW_TIME / SLOW_PIECES).await;
        tcp.write_all(piece).await?;
    }
    tcp.shutdown().await
}

async fn banner(mut tcp: TcpStream) -> std::io::Result<()> {
    tcp.write_all(BANNER).await?;
    echo(tcp).await
}

async fn endless(mut tcp: TcpStream) -> std::io::Result<()> {
    let bytes: Vec<u8> = (0..64 * 1024).map(|at| at as u8).collect();
    loop {
        tcp.write_all(&bytes).await?;
    }
}

async fn sink(state: Arc<State>, mut tcp: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match tcp.read(&mut buffer).await? {
            0 => return Ok(()),
            read => state.count(|status| status.sunk += read as u64),
        }
    }
}

async fn bulk(mut tcp: TcpStream) -> std::io::Result<()> {
    let mut first = [0; REQUEST];
    tcp.read_exact(&mut first).await?;
    let mut piece = vec![0; 64 * 1024];
    match Asked::of(&first) {
        None => {
            tcp.write_all(&first).await?;
            return echo(tcp).await;
        }
        Some(Asked::Send { bytes, seed, line_feeds }) => {
            let (mut content, mut left) = (Content::new(seed, line_feeds), bytes);
            while left > 0 {
                let length = left.min(piece.len());
                content.fill(&mut piece[..length]);
                tcp.write_all(&piece[..length]).await?;
                left -= length;
            }
        }
        Some(Asked::Take { bytes }) => {
            let (mut hasher, mut left) = (Sha256::new(), bytes);
            while left > 0 {
                let length = left.min(piece.len());
                let read = tcp.read(&mut piece[..length]).await?;
                if read == 0 {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
                hasher.update(&piece[..read]);
                left -= read;
            }
            tcp.write_all(&hasher.finalize()).await?;
        }
    }
    tcp.shutdown().await
}

async fn deaf(tcp: TcpStream) -> std::io::Result<()> {
    let _held = tcp;
    std::future::pending().await
}
