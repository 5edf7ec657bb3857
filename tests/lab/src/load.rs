//! Clients as a tunnel meets them: new connections at a steady rate, one that stays open, and transfers of many bytes in
//! either direction, one after the other. Everything that they see is kept, so that a failure can be told from a connection that was cut together with its session.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::bulk::{Bulk, Direction, Transfer};

/// No client waits longer than this, unless it is told to.
const PATIENCE: Duration = Duration::from_secs(120);

/// One new connection: it sends 32 bytes and waits for their echo.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// When it connected, as the log's clock tells time.
    pub at: SystemTime,
    /// Until the echo was there, or the failure.
    pub took: Duration,
    /// What went wrong.
    pub failure: Option<String>,
}

/// The connection that stays open: a message every 100 ms, each waited for.
#[derive(Clone, Debug, Default)]
pub struct LongLived {
    /// Messages that came back.
    pub messages: u64,
    /// The longest time between a message and its echo.
    pub longest: Duration,
    /// Since it was opened, or last opened again.
    pub age: Duration,
    /// When and why it was cut, every time.
    pub cuts: Vec<(SystemTime, String)>,
}

/// What clients saw so far.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Connections that have ended, well or not.
    pub attempts: Vec<Attempt>,
    /// Connections under way.
    pub waiting: usize,
    /// The connection that stays open.
    pub long_lived: LongLived,
    /// Transfers that have ended.
    pub transfers: Vec<Transfer>,
    /// Transfers under way.
    pub transferring: usize,
}

/// A session that ended: when, and how many open connections were cut with it.
#[derive(Clone, Copy, Debug)]
pub struct SessionEnd {
    /// When it was logged.
    pub at: SystemTime,
    /// Connections that were open on it.
    pub cut: u64,
    /// Because its plugin did.
    pub plugin_exited: bool,
}

impl SessionEnd {
    /// As the daemon tells of it.
    pub fn told(at: SystemTime, cut: u64, reason: &str) -> Self {
        Self { at, cut, plugin_exited: reason.starts_with("the plugin exited") }
    }
}

/// Between the cut of a connection and the log line that tells of it, on a busy machine.
const SLACK: Duration = Duration::from_secs(2);

impl Seen {
    /// The connections that failed, but for those that were open in the instant in which a session ended and were cut
    /// with it. No more are forgiven than the daemon says it has cut; but when a plugin dies the kernel ends its connections
    /// before its parent hears of it, and those that the daemon has seen ending by then it cannot know to be cut.
    pub fn failed(&self, ends: &[SessionEnd]) -> Vec<&Attempt> {
        let mut ends = ends.to_vec();
        let mut forgiven = |attempt: &Attempt| {
            let (from, failed) = (attempt.at - SLACK, attempt.at + attempt.took);
            let of_plugin =
                |end: &SessionEnd| end.plugin_exited && failed <= end.at && end.at <= failed + SLACK;
            if ends.iter().any(of_plugin) {
                return true;
            }
            let meant =
                ends.iter_mut().filter(|end| end.cut > 0 && from <= end.at && end.at <= failed + SLACK);
            // A connection that has outlived one session is cut with a later one.
            let apart = |end: &&mut SessionEnd| {
                failed.duration_since(end.at).unwrap_or_else(|ahead| ahead.duration())
            };
            meant.min_by_key(apart).map(|end| end.cut -= 1).is_some()
        };
        self.failures().filter(|attempt| !forgiven(attempt)).collect()
    }

    /// Every connection that failed.
    pub fn failures(&self) -> impl Iterator<Item = &Attempt> {
        self.attempts.iter().filter(|attempt| attempt.failure.is_some())
    }

    /// The longest wait of a connection that was served.
    pub fn longest_wait(&self) -> Duration {
        self.wait_of(1.0)
    }

    /// So long waited at most this share of the connections that were served: 0.5 for the median.
    pub fn wait_of(&self, share: f64) -> Duration {
        let served = self.attempts.iter().filter(|attempt| attempt.failure.is_none());
        let mut waits: Vec<_> = served.map(|attempt| attempt.took).collect();
        waits.sort_unstable();
        let last = waits.len().saturating_sub(1);
        waits.get((last as f64 * share).ceil() as usize).copied().unwrap_or_default()
    }
}

/// What clients do.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// New connections a second.
    pub rate: u32,
    /// Transfers.
    pub bulk: Option<Bulk>,
    /// No new connection waits longer; one that does is a failure of its own kind.
    pub patience: Duration,
}

impl Manner {
    /// New connections, and one that stays open.
    pub fn small(rate: u32) -> Self {
        Self { rate, bulk: None, patience: PATIENCE }
    }
}

/// A running load.
pub struct Load {
    seen: Arc<Mutex<Seen>>,
    patience: Duration,
    quiet: CancellationToken,
    over: CancellationToken,
    tasks: JoinSet<()>,
}

impl Load {
    /// Begins to open `rate` connections a second to `address`, and one that stays open.
    pub fn start(address: SocketAddr, rate: u32) -> Self {
        Self::with(address, Manner::small(rate))
    }

    /// Begins in this manner. Transfers need the bulk server at the far end.
    pub fn with(address: SocketAddr, manner: Manner) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (quiet, over) = (CancellationToken::new(), CancellationToken::new());
        let mut tasks = JoinSet::new();
        tasks.spawn(arrivals(address, manner, seen.clone(), quiet.clone(), over.clone()));
        tasks.spawn(long_lived(address, seen.clone(), over.clone()));
        if let Some(bulk) = manner.bulk {
            for direction in bulk.directions.all() {
                let seen = seen.clone();
                tasks.spawn(transfers(address, bulk, *direction, seen, quiet.clone(), over.clone()));
            }
        }
        let patience = manner.patience.max(manner.bulk.map_or(Duration::ZERO, |bulk| bulk.patience));
        Self { seen, patience, quiet, over, tasks }
    }

    /// What clients saw so far.
    pub fn seen(&self) -> Seen {
        lock(&self.seen).clone()
    }

    /// Opens no more connections, waits for those under way and for transfers, and says what all of them saw.
    pub async fn finish(mut self) -> Seen {
        self.quiet.cancel();
        let began = Instant::now();
        let under_way = |seen: &Seen| seen.waiting + seen.transferring > 0;
        while under_way(&lock(&self.seen)) && began.elapsed() < self.patience {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.over.cancel();
        while self.tasks.join_next().await.is_some() {}
        self.seen()
    }
}

fn lock(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn arrivals(
    address: SocketAddr,
    Manner { rate, patience, .. }: Manner,
    seen: Arc<Mutex<Seen>>,
    quiet: CancellationToken,
    over: CancellationToken,
) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate.max(1));
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            () = quiet.cancelled() => break,
            _ = ticks.tick() => {}
            Some(_) = clients.join_next() => continue,
        }
        let seen = seen.clone();
        lock(&seen).waiting += 1;
        clients.spawn(async move {
            let (at, began) = (SystemTime::now(), Instant::now());
            let failure = match tokio::time::timeout(patience, once(address)).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some(format!("no answer within {} s", patience.as_secs())),
            };
            let mut seen = lock(&seen);
            seen.waiting -= 1;
            seen.attempts.push(Attempt { at, took: began.elapsed(), failure });
        });
    }
    tokio::select! {
        () = over.cancelled() => {}
        () = async { while clients.join_next().await.is_some() {} } => {}
    }
}

/// One after the other, until it is quiet. One that is reset is followed by the next.
async fn transfers(
    address: SocketAddr,
    bulk: Bulk,
    direction: Direction,
    seen: Arc<Mutex<Seen>>,
    quiet: CancellationToken,
    over: CancellationToken,
) {
    while !quiet.is_cancelled() {
        lock(&seen).transferring += 1;
        let transfer = over.run_until_cancelled(bulk.transfer(address, direction)).await;
        {
            let mut seen = lock(&seen);
            seen.transferring -= 1;
            seen.transfers.extend(transfer);
        }
        // A connection that is refused at once is not asked for in a tight loop.
        let _ = over.run_until_cancelled(tokio::time::sleep(Duration::from_millis(50))).await;
    }
}

async fn once(address: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let sent: [u8; 32] = rand::random();
    exchange(&mut stream, &sent).await
}

async fn exchange(stream: &mut TcpStream, sent: &[u8; 32]) -> io::Result<()> {
    stream.write_all(sent).await?;
    let mut echo = [0; 32];
    stream.read_exact(&mut echo).await?;
    if echo == *sent { Ok(()) } else { Err(io::Error::other("the echo differs from what was sent")) }
}

/// Opens the connection again whenever it is cut: the age then begins anew.
async fn long_lived(address: SocketAddr, seen: Arc<Mutex<Seen>>, over: CancellationToken) {
    while !over.is_cancelled() {
        let opened = Instant::now();
        let talk = async {
            let mut stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let mut ticks = tokio::time::interval(Duration::from_millis(100));
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let sent: [u8; 32] = rand::random();
                let began = Instant::now();
                exchange(&mut stream, &sent).await?;
                let mut seen = lock(&seen);
                seen.long_lived.messages += 1;
                seen.long_lived.longest = seen.long_lived.longest.max(began.elapsed());
                seen.long_lived.age = opened.elapsed();
            }
        };
        let cut: io::Result<()> = tokio::select! {
            () = over.cancelled() => return,
            result = talk => result,
        };
        if let Err(error) = cut {
            lock(&seen).long_lived.cuts.push((SystemTime::now(), error.to_string()));
        }
        // A connection that is refused at once is not asked for in a tight loop.
        tokio::select! {
            () = over.cancelled() => {}
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_open_at_a_sessions_end_is_forgiven() {
        let began = SystemTime::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let attempt = |seconds, took, failure: Option<&str>| Attempt {
            at: at(seconds),
            took: Duration::from_secs(took),
            failure: failure.map(Into::into),
        };
        let attempts = vec![
            attempt(0, 2, None),
            attempt(0, 2, Some("cut")),
            attempt(1, 0, Some("cut as well, but only one was")),
            attempt(5, 1, Some("refused")),
        ];
        let seen = Seen { attempts, ..Seen::default() };
        let failed = seen
            .failed(&[SessionEnd::told(at(1), 1, "terminated"), SessionEnd::told(at(20), 9, "terminated")]);
        let failed: Vec<_> = failed.iter().map(|attempt| attempt.failure.clone().unwrap()).collect();
        assert_eq!(failed, ["cut as well, but only one was", "refused"]);
        let ends = [SessionEnd::told(at(6) + SLACK, 0, "the plugin exited: killed by signal 9")];
        assert_eq!(seen.failed(&ends).len(), 2, "all that ended just before a plugin's end was known");
        assert_eq!(seen.longest_wait(), Duration::from_secs(2));
        let attempts = (1..=101).rev().map(|took| attempt(0, took, None)).collect();
        let seen = Seen { attempts, ..Seen::default() };
        let waits = [0.0, 0.5, 0.99, 1.0].map(|share| seen.wait_of(share).as_secs());
        assert_eq!(waits, [1, 51, 100, 101]);
    }

    #[test]
    fn each_end_forgives_its_own() {
        let began = SystemTime::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let attempt = |seconds, took| Attempt {
            at: at(seconds),
            took: Duration::from_secs(took),
            failure: Some("cut".into()),
        };
        let seen = Seen { attempts: vec![attempt(0, 9), attempt(0, 1)], ..Seen::default() };
        let ends = [1, 9].map(|seconds| SessionEnd::told(at(seconds), 1, "terminated"));
        assert!(seen.failed(&ends).is_empty(), "held at the first session's end, and cut with the second");
    }
}
