//! The client's end of smux version 1 inside a port session, without keep-alive: streams 3, 5, 7 …, and one receive
//! budget for all of them together, so that one client that does not read stalls every other one.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, oneshot};

use super::channel::lock;
use crate::wire::mux::{Command, HEADER, RECEIVE_BUFFER, VERSION, header};

/// The mux, over one end of a socket pair. Its other end is cut into data channel messages.
pub struct Mux {
    streams: Mutex<HashMap<u32, Arc<Stream>>>,
    last_stream: Mutex<u32>,
    /// Bytes that may still be received before a client takes some. It may go below zero by one frame.
    budget: AtomicI64,
    budget_grew: Notify,
    queue: Mutex<Queue>,
    queued: Notify,
}

/// Frames that wait for the socket: at most one for each stream and direction, since its sender waits for it.
#[derive(Default)]
struct Queue {
    heap: BinaryHeap<Reverse<Waiting>>,
    count: u64,
}

/// Ordered by turn alone: frames of streams that have sent less go first, so that none starves.
struct Waiting {
    turn: (u32, u64),
    frame: Vec<u8>,
    written: oneshot::Sender<()>,
}

/// One client's stream.
pub struct Stream {
    id: u32,
    received: Mutex<VecDeque<Bytes>>,
    changed: Notify,
    /// The agent has sent its end.
    finished: AtomicBool,
    /// Closed here; what is left is dropped.
    closed: AtomicBool,
}

impl Mux {
    /// Begins a session over `socket`.
    pub fn start(socket: UnixStream) -> Arc<Self> {
        let mux = Arc::new(Self {
            streams: Mutex::default(),
            last_stream: Mutex::new(1),
            budget: AtomicI64::new(RECEIVE_BUFFER as i64),
            budget_grew: Notify::new(),
            queue: Mutex::default(),
            queued: Notify::new(),
        });
        let (read, write) = socket.into_split();
        tokio::spawn(mux.clone().send_frames(write));
        let receiver = mux.clone();
        tokio::spawn(async move {
            // The socket or the protocol is broken: no stream gets anything more.
            if receiver.receive_frames(read).await.is_err() {
                lock(&receiver.streams).values().for_each(|stream| stream.finish());
            }
        });
        mux
    }

    /// Opens the next stream. The agent dials its destination when it sees it.
    pub async fn open(&self) -> Arc<Stream> {
        let id = {
            let mut last = lock(&self.last_stream);
            *last += 2;
            *last
        };
        let stream = Arc::new(Stream {
            id,
            received: Mutex::default(),
            changed: Notify::new(),
            finished: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        });
        lock(&self.streams).insert(id, stream.clone());
        self.write(Command::Syn, id, &[], 0).await;
        stream
    }

    /// Sends `data`, at most a frame's worth, as the stream's frame number `number`; returns when it is written.
    pub async fn send(&self, stream: &Stream, data: &[u8], number: u32) {
        self.write(Command::Push, stream.id, data, number).await;
    }

    /// Closes the stream both ways. What it had received and nobody had taken is dropped.
    pub async fn close(&self, stream: &Stream) {
        if stream.closed.swap(true, Ordering::SeqCst) {
            return;
        }
        self.write(Command::Fin, stream.id, &[], 0).await;
        lock(&self.streams).remove(&stream.id);
        let dropped: usize = lock(&stream.received).drain(..).map(|data| data.len()).sum();
        self.taken(dropped);
        stream.changed.notify_one();
    }

    /// The next data that arrived, `None` at the stream's end. It counts as taken only after [`Mux::taken`].
    pub async fn receive(&self, stream: &Stream) -> Option<Bytes> {
        loop {
            if let Some(data) = lock(&stream.received).pop_front() {
                return Some(data);
            }
            if stream.finished.load(Ordering::SeqCst) || stream.closed.load(Ordering::SeqCst) {
                return None;
            }
            stream.changed.notified().await;
        }
    }

    /// A client has taken `bytes`: as many may be received again.
    pub fn taken(&self, bytes: usize) {
        self.budget.fetch_add(bytes as i64, Ordering::SeqCst);
        self.budget_grew.notify_one();
    }

    /// Writes a frame when its turn comes: whole, in one write.
    async fn write(&self, command: Command, stream: u32, data: &[u8], priority: u32) {
        let frame = [&header(command, data.len() as u16, stream)[..], data].concat();
        let (written, waits) = oneshot::channel();
        {
            let mut queue = lock(&self.queue);
            queue.count += 1;
            let turn = (priority, queue.count);
            queue.heap.push(Reverse(Waiting { turn, frame, written }));
        }
        self.queued.notify_one();
        // Dropped unanswered only where the socket is broken; reading tells that.
        drop(waits.await);
    }

    async fn send_frames(self: Arc<Self>, mut socket: OwnedWriteHalf) {
        loop {
            let next = lock(&self.queue).heap.pop();
            let Some(Reverse(next)) = next else {
                self.queued.notified().await;
                continue;
            };
            if socket.write_all(&next.frame).await.is_err() {
                return;
            }
            // The sender may have gone.
            let _ = next.written.send(());
        }
    }

    async fn receive_frames(&self, mut socket: OwnedReadHalf) -> io::Result<()> {
        loop {
            while self.budget.load(Ordering::SeqCst) <= 0 {
                self.budget_grew.notified().await;
            }
            let mut header = [0; HEADER];
            socket.read_exact(&mut header).await?;
            let [VERSION, command, low, high, id @ ..] = header else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            let mut data = vec![0; u16::from_le_bytes([low, high]).into()];
            socket.read_exact(&mut data).await?;
            let stream = lock(&self.streams).get(&u32::from_le_bytes(id)).cloned();
            match (command, stream) {
                (0..=3, None) | (0 | 3, _) => {}
                (1, Some(stream)) => stream.finish(),
                (2, Some(stream)) => {
                    self.budget.fetch_sub(data.len() as i64, Ordering::SeqCst);
                    lock(&stream.received).push_back(data.into());
                    stream.changed.notify_one();
                }
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
    }
}

impl Stream {
    fn finish(&self) {
        self.finished.store(true, Ordering::SeqCst);
        self.changed.notify_one();
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.turn == other.turn
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.turn.cmp(&other.turn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    const SOON: Duration = Duration::from_secs(10);

    async fn read_frame(agent: &mut UnixStream) -> ([u8; HEADER], Vec<u8>) {
        let mut header = [0; HEADER];
        timeout(SOON, agent.read_exact(&mut header)).await.unwrap().unwrap();
        let mut data = vec![0; u16::from_le_bytes([header[2], header[3]]).into()];
        agent.read_exact(&mut data).await.unwrap();
        (header, data)
    }

    #[tokio::test]
    async fn streams_are_odd_from_three_and_carry_both_ways() {
        let (ours, mut agent) = UnixStream::pair().unwrap();
        let mux = Mux::start(ours);
        let first = mux.open().await;
        let second = mux.open().await;
        mux.send(&second, b"hello", 0).await;
        assert_eq!(read_frame(&mut agent).await.0, header(Command::Syn, 0, 3));
        assert_eq!(read_frame(&mut agent).await.0, header(Command::Syn, 0, 5));
        assert_eq!(read_frame(&mut agent).await, (header(Command::Push, 5, 5), b"hello".to_vec()));
        agent.write_all(&header(Command::Push, 2, 3)).await.unwrap();
        agent.write_all(b"hi").await.unwrap();
        agent.write_all(&header(Command::Fin, 0, 3)).await.unwrap();
        assert_eq!(mux.receive(&first).await.unwrap(), "hi");
        assert_eq!(mux.receive(&first).await, None);
        mux.close(&first).await;
        assert_eq!(read_frame(&mut agent).await.0, header(Command::Fin, 0, 3));
    }

    /// The budget is the session's: a stream whose client does not read stops all others, until it is closed.
    #[tokio::test]
    async fn one_stream_that_is_not_read_stops_the_others() {
        let (ours, mut agent) = UnixStream::pair().unwrap();
        let mux = Mux::start(ours);
        let (stuck, other) = (mux.open().await, mux.open().await);
        let frames = RECEIVE_BUFFER / 32768;
        let data = vec![0; 32768];
        for _ in 0..frames {
            agent.write_all(&header(Command::Push, 32768, 3)).await.unwrap();
            agent.write_all(&data).await.unwrap();
        }
        agent.write_all(&header(Command::Push, 1, 5)).await.unwrap();
        agent.write_all(b"x").await.unwrap();
        while mux.budget.load(Ordering::SeqCst) > 0 {
            tokio::task::yield_now().await;
        }
        assert!(timeout(Duration::from_millis(200), mux.receive(&other)).await.is_err());
        // Giving one frame to its client is not enough before it has taken it.
        let taken = mux.receive(&stuck).await.unwrap();
        mux.close(&stuck).await;
        assert_eq!(timeout(SOON, mux.receive(&other)).await.unwrap().unwrap(), "x");
        mux.taken(taken.len());
        assert_eq!(mux.budget.load(Ordering::SeqCst), RECEIVE_BUFFER as i64 - 1);
    }
}
