//! Transfers of many bytes, in one direction each: what is asked of the bulk server, what goes over, and what came of it. A transfer
//! either completes with the right SHA-256 or is reset; an end that looks clean and is none is worse than both.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// What the bulk server is asked for.
pub const REQUEST: usize = 32;
/// Bytes made, written or read at once.
const PIECE: usize = 16 * 1024;
/// What a SHA-256 has.
pub(crate) const DIGEST: usize = 32;

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the client.
    Download,
    /// To the destination.
    Upload,
}

/// Which ways there are transfers at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Directions {
    /// Both.
    Both,
    /// One alone.
    Only(Direction),
}

impl Directions {
    /// Each of them.
    pub fn all(self) -> &'static [Direction] {
        match self {
            Self::Both => &[Direction::Download, Direction::Upload],
            Self::Only(Direction::Download) => &[Direction::Download],
            Self::Only(Direction::Upload) => &[Direction::Upload],
        }
    }
}

/// What came of a transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// All of it arrived, and only that.
    Complete,
    /// The connection was reset, or could not be made; nobody could take it for complete.
    Reset(String),
    /// A clean end without a byte: of one that was sent away, or of an answer that was lost.
    Empty,
    /// It looked complete and was not.
    Wrong(String),
    /// It had not ended after the longest time.
    Stuck,
}

/// One transfer that has ended.
#[derive(Clone, Debug)]
pub struct Transfer {
    /// Its direction.
    pub direction: Direction,
    /// When it began.
    pub at: SystemTime,
    /// Until its end.
    pub took: Duration,
    /// What came of it.
    pub end: End,
}

/// What to transfer.
#[derive(Clone, Copy, Debug)]
pub struct Bulk {
    /// Of each transfer.
    pub bytes: usize,
    /// One at any time in each of them.
    pub directions: Directions,
    /// Whether there may be line feeds among them: the stock plugin alone changes some.
    pub line_feeds: bool,
    /// A transfer that takes longer is stuck.
    pub patience: Duration,
}

/// Bytes that can be made again from their seed.
#[derive(Clone, Debug)]
pub struct Content {
    state: u64,
    line_feeds: bool,
}

/// What [`bulk_request`] is answered with.
impl Default for Content {
    fn default() -> Self {
        Self::new(0, true)
    }
}

impl Content {
    pub(crate) fn new(seed: u64, line_feeds: bool) -> Self {
        Self { state: seed, line_feeds }
    }

    /// The next bytes. Lengths other than multiples of 8 end it.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for eight in bytes.chunks_mut(8) {
            // splitmix64
            self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = self.state;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let made = (mixed ^ (mixed >> 31)).to_le_bytes();
            eight.copy_from_slice(&made[..eight.len()]);
        }
        if !self.line_feeds {
            bytes.iter_mut().filter(|byte| **byte == b'\n').for_each(|byte| *byte = b'.');
        }
    }

    /// The SHA-256 of its first so many bytes.
    fn digest(mut self, bytes: usize) -> [u8; DIGEST] {
        let (mut hasher, mut piece) = (Sha256::new(), vec![0; PIECE]);
        let mut left = bytes;
        while left > 0 {
            let length = left.min(PIECE);
            self.fill(&mut piece[..length]);
            hasher.update(&piece[..length]);
            left -= length;
        }
        hasher.finalize().into()
    }
}

/// A request that the bulk server has understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Send so many bytes of this content, and close.
    Send { bytes: usize, seed: u64, line_feeds: bool },
    /// Take so many, answer with their SHA-256, and close.
    Take { bytes: usize },
}

impl Asked {
    /// What the first bytes of a client ask for, if they do.
    pub fn of(request: &[u8; REQUEST]) -> Option<Self> {
        let text = std::str::from_utf8(request).ok()?;
        let mut words = text.split_whitespace();
        let (word, bytes) = (words.next()?, words.next()?.parse().ok()?);
        match word {
            "send" => {
                let seed = words.next().map_or(Some(0), |seed| seed.parse().ok())?;
                Some(Self::Send { bytes, seed, line_feeds: words.next().is_none() })
            }
            "take" => Some(Self::Take { bytes }),
            _ => None,
        }
    }
}

/// Asks the bulk server for so many bytes.
pub fn bulk_request(bytes: usize) -> [u8; REQUEST] {
    padded(&format!("send {bytes}"))
}

fn padded(text: &str) -> [u8; REQUEST] {
    let mut request = [b' '; REQUEST];
    request[..text.len()].copy_from_slice(text.as_bytes());
    request
}

impl Bulk {
    /// Transfers once, to or from the bulk server behind `address`.
    pub async fn transfer(self, address: SocketAddr, direction: Direction) -> Transfer {
        let (at, began) = (SystemTime::now(), Instant::now());
        let run = async {
            match direction {
                Direction::Download => self.download(address).await,
                Direction::Upload => self.upload(address).await,
            }
        };
        let end = match timeout(self.patience, run).await {
            Ok(Ok(end)) => end,
            Ok(Err(error)) => End::Reset(error.to_string()),
            Err(_) => End::Stuck,
        };
        Transfer { direction, at, took: began.elapsed(), end }
    }

    async fn download(self, address: SocketAddr) -> io::Result<End> {
        let seed = u64::from(rand::random::<u32>());
        let content = Content::new(seed, self.line_feeds);
        let without = if self.line_feeds { "" } else { " -" };
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(&padded(&format!("send {} {seed}{without}", self.bytes))).await?;
        let (mut hasher, mut piece, mut came) = (Sha256::new(), vec![0; PIECE], 0);
        loop {
            match stream.read(&mut piece).await? {
                0 => break,
                read => {
                    hasher.update(&piece[..read]);
                    came += read;
                }
            }
        }
        let right = came == self.bytes && hasher.finalize().as_slice() == content.digest(self.bytes);
        Ok(match came {
            _ if right => End::Complete,
            0 => End::Empty,
            _ => End::Wrong(format!("a clean end after {came} of {} bytes", self.bytes)),
        })
    }

    async fn upload(self, address: SocketAddr) -> io::Result<End> {
        let mut content = Content::new(rand::random(), self.line_feeds);
        let expected = content.clone().digest(self.bytes);
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(&padded(&format!("take {}", self.bytes))).await?;
        let (mut piece, mut left) = (vec![0; PIECE], self.bytes);
        while left > 0 {
            let length = left.min(PIECE);
            content.fill(&mut piece[..length]);
            stream.write_all(&piece[..length]).await?;
            left -= length;
        }
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(match answer.len() {
            _ if answer == expected => End::Complete,
            0 => End::Empty,
            came => End::Wrong(format!("a clean end with {came} bytes of another answer")),
        })
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Download => "download",
            Self::Upload => "upload",
        })
    }
}

impl fmt::Display for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (direction, seconds) = (self.direction, self.took.as_secs_f64());
        match &self.end {
            End::Complete => write!(f, "{direction} complete after {seconds:.1} s"),
            End::Reset(words) => write!(f, "{direction} reset after {seconds:.1} s: {words}"),
            End::Empty => write!(f, "{direction} closed without a byte after {seconds:.1} s"),
            End::Wrong(words) => write!(f, "{direction} WRONG after {seconds:.1} s: {words}"),
            End::Stuck => write!(f, "{direction} stuck for {seconds:.1} s"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_understood() {
        let send = |bytes, seed, line_feeds| Some(Asked::Send { bytes, seed, line_feeds });
        assert_eq!(Asked::of(&bulk_request(1 << 30)), send(1 << 30, 0, true));
        assert_eq!(
            Asked::of(&padded("send 12000000 4294967295 -")),
            send(12_000_000, u64::from(u32::MAX), false)
        );
        assert_eq!(Asked::of(&padded("take 7")), Some(Asked::Take { bytes: 7 }));
        for other in ["", "send", "send x", "take", "hello 5", "send 5 x"] {
            assert_eq!(Asked::of(&padded(other)), None, "{other}");
        }
        assert_eq!(Asked::of(&[0xff; REQUEST]), None);
    }

    #[test]
    fn content_is_the_same_in_any_pieces_and_may_have_no_line_feeds() {
        for line_feeds in [true, false] {
            let (mut whole, mut pieces) = (vec![0; 80_000], vec![0; 80_000]);
            Content::new(7, line_feeds).fill(&mut whole);
            let mut content = Content::new(7, line_feeds);
            pieces.chunks_mut(800).for_each(|piece| content.fill(piece));
            assert!(whole == pieces && whole.contains(&b'\n') == line_feeds);
            assert_eq!(
                Content::new(7, line_feeds).digest(80_000),
                <[u8; DIGEST]>::from(Sha256::digest(&whole))
            );
        }
    }
}
