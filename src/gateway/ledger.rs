//! What the proxy has handed to one plugin and the plugin has not yet framed.
//!
//! The plugin changes a stream-data payload that is exactly one line feed into a carriage return. On the wire that
//! looks like a true carriage return, so only someone who knows what the client sent can undo it. The proxy writes
//! down here, one bit for each byte, where the line feeds are among the bytes that it gives to the plugin; the gateway
//! reads it while it follows the mux frames, and forgets what has passed. Memory is bounded by what the plugin holds:
//! an eighth of it.
//!
//! Connections and mux streams are matched by their order: the proxy connects to a plugin one connection at a time,
//! the plugin accepts them in that order and numbers their streams 3, 5, 7 …
//!
//! Where the frames cannot be followed because they are encrypted, the proxy asks here for its [turns](super::turns) to
//! write, and the gateway tells of the lengths that leave the plugin.
//!
//! In `observe` mode the gateway tells of the data channel's closing, for which it must be [given nothing](super::handover).
//!
//! The gateway writes down here what it sees of the [agent](super::agent_side): how much of each answer it has sent, so that a
//! client is told of an answer's end only where there is one; and for probes, how often it has acknowledged something, and its
//! end of a probe's stream.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::agent_side::AgentSide;
pub use super::agent_side::{AgentEnd, AgentFrames, Answer};
use super::handover::Handover;
use super::held::Held;
use super::turns::Turns;

/// The first client stream's number; each further one is 2 higher (smux v1).
const FIRST_STREAM: u32 = 3;

/// One session's account of bytes handed to the plugin. The proxy writes, the gateway reads.
#[derive(Debug, Default)]
pub struct Ledger {
    inner: Mutex<Inner>,
    /// Wakes those that wait for a stream's end, or for the data channel.
    closed: Notify,
}

#[derive(Debug)]
struct Inner {
    next_stream: u32,
    /// Nobody follows the frames: nothing is written down.
    off: bool,
    /// The frames are encrypted.
    turns: Option<Turns>,
    /// The gateway only observes.
    handover: Option<Handover>,
    streams: HashMap<u32, Held>,
    agent: AgentSide,
}

impl Ledger {
    /// An empty account, for a new session.
    pub fn new() -> Self {
        Self::default()
    }

    /// The proxy is about to connect to the plugin: the number that the plugin will give to the stream. Call it in the
    /// order in which connections are made, one at a time.
    pub fn open(&self) -> u32 {
        let mut inner = self.lock();
        let stream = inner.next_stream;
        inner.next_stream = stream.wrapping_add(2);
        if !inner.off {
            inner.streams.insert(stream, Held::default());
            inner.agent.open(stream);
        }
        if let Some(handover) = &mut inner.handover {
            handover.give(stream, Instant::now());
        }
        stream
    }

    /// The connection announced last could not be made: the plugin never saw it.
    pub fn undo_open(&self, stream: u32) {
        let mut inner = self.lock();
        if inner.next_stream == stream.wrapping_add(2) {
            inner.next_stream = stream;
        }
        inner.streams.remove(&stream);
        inner.agent.forget_answer(stream);
        inner.agent.forget_end(stream);
        if let Some(handover) = &mut inner.handover {
            handover.leave(stream);
        }
    }

    /// The agent has acknowledged something new.
    pub fn count_acknowledgement(&self) {
        self.lock().agent.count_acknowledgement();
    }

    /// How often the agent has acknowledged something new.
    pub fn acknowledged(&self) -> u64 {
        self.lock().agent.acknowledged()
    }

    /// Says what is known of the agent's frames from here on. What is waited for cannot be told any more once some were missed.
    pub fn follow_agent(&self, frames: AgentFrames) {
        self.lock().agent.follow(frames);
        self.closed.notify_waiters();
    }

    /// What is known of the agent's frames.
    pub fn agent_frames(&self) -> AgentFrames {
        self.lock().agent.frames()
    }

    /// The agent has sent so many bytes of a stream, and the plugin has not been given them yet.
    pub fn agent_sent(&self, stream: u32, bytes: usize) {
        self.lock().agent.sent(stream, bytes);
    }

    /// The agent has ended a stream, and the plugin has not been told yet.
    pub fn agent_ended(&self, stream: u32, end: AgentEnd) {
        if self.lock().agent.ended(stream, end) {
            self.closed.notify_waiters();
        }
    }

    /// How much of the answer on a stream the gateway has seen. When the plugin closes a connection at the agent's behest, that
    /// is known here already.
    pub fn answer(&self, stream: u32) -> Answer {
        self.lock().agent.answer(stream)
    }

    /// A connection is over for the proxy too.
    pub fn forget_answer(&self, stream: u32) {
        self.lock().agent.forget_answer(stream);
    }

    /// Says whether the plugin has acknowledged a message of the agent's that is later than one that it lacks.
    pub fn set_behind(&self, behind: bool) {
        self.lock().agent.set_behind(behind);
    }

    /// Whether the plugin lacks a message of the agent's, so that what comes from it is not all that the agent has sent.
    pub fn is_behind(&self) -> bool {
        self.lock().agent.is_behind()
    }

    /// Announces that the agent's end of this stream will be waited for: before its connection is made. False if it would not
    /// be told.
    pub fn await_agent_end(&self, stream: u32) -> bool {
        self.lock().agent.await_end(stream)
    }

    /// Waits until the agent has ended a stream that was announced; `None` if that will never be known.
    pub async fn until_agent_ended(&self, stream: u32) -> Option<AgentEnd> {
        loop {
            let changed = self.closed.notified();
            let awaited = self.lock().agent.awaited(stream);
            if let Some(end) = awaited {
                return end;
            }
            changed.await;
        }
    }

    /// The stream's end is waited for no more.
    pub fn forget_agent_end(&self, stream: u32) {
        self.lock().agent.forget_end(stream);
    }

    /// The proxy is about to write `bytes`. Call it before the write, so that the gateway never sees a byte first.
    pub fn write(&self, stream: u32, bytes: &[u8]) {
        if let Some(held) = self.lock().streams.get_mut(&stream) {
            held.push(bytes);
        }
    }

    /// Whether the proxy has announced this stream. One that it has not comes from somebody else's connection.
    pub fn knows(&self, stream: u32) -> bool {
        stream >= FIRST_STREAM && stream % 2 == 1 && stream < self.lock().next_stream
    }

    /// The gateway saw `bytes` more bytes of this stream leave the plugin. Returns whether the last of them was handed
    /// over as a line feed.
    pub fn pass(&self, stream: u32, bytes: usize) -> bool {
        self.lock().streams.get_mut(&stream).is_some_and(|held| held.pass(bytes))
    }

    /// Whether the stream was announced and neither side has been seen to end it.
    pub fn is_open(&self, stream: u32) -> bool {
        self.lock().streams.contains_key(&stream)
    }

    /// Nobody follows the frames of this session (any more): forgets everything and writes down nothing. Without this
    /// the account would grow with every byte.
    pub fn stop(&self) {
        let mut inner = self.lock();
        inner.off = true;
        inner.streams = HashMap::new();
        // By order alone it is not known any more which stream is whose.
        inner.agent.forget_answers();
        self.closed.notify_waiters();
    }

    /// The frames of this session are encrypted: nothing is written down, but from now on the plugin is written to in
    /// turns.
    pub fn take_turns(&self) {
        self.stop();
        self.lock().turns = Some(Turns::default());
    }

    /// Whether the plugin is written to in turns.
    pub fn takes_turns(&self) -> bool {
        self.lock().turns.is_some()
    }

    /// The gateway only observes: nothing is written down, but from now on the plugin is given nothing while its data
    /// channel is closed.
    pub fn observe(&self) {
        self.stop();
        self.lock().handover = Some(Handover::default());
    }

    /// Whether [`Self::poll_turn`] has to be asked before each write.
    pub fn asks_turns(&self) -> bool {
        let inner = self.lock();
        inner.turns.is_some() || inner.handover.is_some()
    }

    /// How many of `bytes` bytes may be written to the plugin now, in one write: all of them, but in turns fewer, and
    /// only when it is this stream's turn, and none while it must be given nothing; the task is woken then.
    pub fn poll_turn(&self, cx: &Context<'_>, stream: u32, bytes: usize) -> Poll<usize> {
        let Inner { turns, handover, .. } = &mut *self.lock();
        match (turns, handover) {
            (Some(turns), _) => turns.poll(cx, stream, bytes),
            (None, Some(handover)) => handover.poll(cx, stream, Instant::now()).map(|()| bytes),
            (None, None) => Poll::Ready(bytes),
        }
    }

    /// The stream wants to write no more. `lost`: what was written last, or not written after all, will not leave the
    /// plugin.
    pub fn leave(&self, stream: u32, lost: bool) {
        let mut inner = self.lock();
        if let Some(turns) = &mut inner.turns {
            turns.leave(stream, lost);
        }
        if let Some(handover) = &mut inner.handover {
            handover.leave(stream);
        }
    }

    /// What was to be written was not taken: the turn is another one's.
    pub fn pass_turn(&self, stream: u32) {
        if let Some(turns) = &mut self.lock().turns {
            turns.leave(stream, true);
        }
    }

    /// Where the gateway only observes: a connection to the plugin is about to be closed. Returns whether it must be kept until
    /// [`Self::until_open`].
    pub fn hang_up(&self) -> bool {
        self.lock().handover.as_mut().is_some_and(|handover| {
            handover.touched(Instant::now());
            handover.is_shut()
        })
    }

    /// The same: something of this stream has come from the plugin.
    pub fn serves(&self, stream: u32) {
        if let Some(handover) = &mut self.lock().handover {
            handover.serves(stream);
        }
    }

    /// The same: the plugin has sent a message on its data channel; a full one, which others may follow.
    pub fn plugin_sent(&self, full: bool) {
        if let Some(handover) = &mut self.lock().handover {
            let now = Instant::now();
            handover.sent(now);
            if full {
                handover.touched(now);
            }
        }
    }

    /// The same: for how long the plugin has sent nothing of what it was given.
    pub fn owed_for(&self) -> Duration {
        let inner = self.lock();
        inner.handover.as_ref().map_or(Duration::ZERO, |handover| handover.owes_for(Instant::now()))
    }

    /// The same: the plugin's data channel is closed. Returns whether that has caught it with something to send.
    pub fn shut(&self) -> bool {
        self.lock().handover.as_mut().is_some_and(|handover| handover.shut(Instant::now()))
    }

    /// The same: it is open again.
    pub fn reopen(&self) {
        if let Some(handover) = &mut self.lock().handover {
            handover.open();
        }
        self.closed.notify_waiters();
    }

    /// Whether the plugin must be given nothing, no connection either, until [`Self::reopen`].
    pub fn is_shut(&self) -> bool {
        self.lock().handover.as_ref().is_some_and(Handover::is_shut)
    }

    /// Waits until the plugin may be given something.
    pub async fn until_open(&self) {
        loop {
            let changed = self.closed.notified();
            if !self.is_shut() {
                return;
            }
            changed.await;
        }
    }

    /// The plugin has sent so many bytes of encrypted frames.
    pub fn left(&self, bytes: usize) {
        if let Some(turns) = &mut self.lock().turns {
            turns.left(bytes);
        }
    }

    /// A second has passed in which the plugin was read and heard.
    pub fn tick(&self) {
        if let Some(turns) = &mut self.lock().turns {
            turns.tick();
        }
    }

    /// Whether the frames of this session are followed.
    pub fn is_kept(&self) -> bool {
        !self.lock().off
    }

    /// Waits until the stream is not open any more.
    pub async fn until_closed(&self, stream: u32) {
        loop {
            let closed = self.closed.notified();
            if !self.is_open(stream) {
                return;
            }
            closed.await;
        }
    }

    /// The stream has ended on either side: nothing more of it is expected.
    pub fn close(&self, stream: u32) {
        self.lock().streams.remove(&stream);
        self.closed.notify_waiters();
    }

    /// Bytes handed to the plugin and not yet seen to leave it.
    pub fn outstanding(&self) -> usize {
        self.lock().streams.values().map(|held| held.len).sum()
    }

    /// The bytes of one stream handed to the plugin and not yet seen to leave it.
    pub fn held(&self, stream: u32) -> usize {
        let inner = self.lock();
        match &inner.turns {
            Some(turns) => turns.held(stream),
            None => inner.streams.get(&stream).map_or(0, |held| held.len),
        }
    }

    /// A poisoned lock is taken all the same: every method leaves the account whole.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            next_stream: FIRST_STREAM,
            off: false,
            turns: None,
            handover: None,
            streams: HashMap::new(),
            agent: AgentSide::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever is written and passed, in whatever pieces, the answer is about the right byte.
        #[test]
        fn remembers_exactly_the_line_feeds(
            writes in proptest::collection::vec(proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), any::<u8>()], 0..200), 1..20),
            passes in proptest::collection::vec(1usize..150, 1..60),
        ) {
            let ledger = Ledger::new();
            let stream = ledger.open();
            let (mut model, mut seen) = (Vec::new(), 0);
            let mut passes = passes.into_iter();
            for write in writes {
                ledger.write(stream, &write);
                model.extend_from_slice(&write);
                if let Some(n) = passes.next() {
                    let n = n.min(model.len() - seen);
                    if n > 0 {
                        seen += n;
                        prop_assert_eq!(ledger.pass(stream, n), model[seen - 1] == b'\n');
                    }
                }
                prop_assert_eq!(ledger.outstanding(), model.len() - seen);
            }
        }
    }

    #[test]
    fn numbers_streams_like_the_plugin() {
        let ledger = Ledger::new();
        assert_eq!((ledger.open(), ledger.open()), (3, 5));
        ledger.undo_open(5);
        assert!(ledger.knows(3) && !ledger.knows(5) && !ledger.knows(1) && !ledger.knows(4));
        assert_eq!(ledger.open(), 5);
    }

    #[test]
    fn a_stopped_account_stays_empty() {
        let ledger = Ledger::new();
        let before = ledger.open();
        ledger.write(before, b"x");
        ledger.stop();
        let after = ledger.open();
        ledger.write(after, b"y");
        assert_eq!((after, ledger.outstanding()), (5, 0));
        assert!(!ledger.is_open(before) && !ledger.is_open(after) && ledger.knows(after));
    }

    #[test]
    fn a_closed_stream_is_no_longer_outstanding() {
        let ledger = Ledger::new();
        let stream = ledger.open();
        ledger.write(stream, b"never sent");
        ledger.close(stream);
        assert_eq!(ledger.outstanding(), 0);
        assert!(!ledger.pass(stream, 1));
    }
}
