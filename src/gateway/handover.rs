//! PURE. What the plugin was given while nobody can see what it sends: in `observe` mode.
//!
//! The plugin does not survive an attempt to send while its data channel is closed: it sends nothing of its clients' from then
//! on, and ends only with the next new connection. So nothing is given to it from the moment in which the gateway sees the channel close until it is
//! open again. What it was given just before may have met the close; of that only the order of things can tell. Connections and bytes
//! given to it make it send something, so if it has not sent since, it was caught. If it has, that may have been
//! something else, an acknowledgement for example: what was given a moment ago counts as well, and so does a full message, which more
//! may follow. How long a moment is goes by how long the plugin took lately, because the host may be busy.

use std::collections::{HashMap, HashSet};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::Instant;

/// A plugin on a host that is not busy has sent what it was given within this.
const ON_ITS_WAY: Duration = Duration::from_millis(5);
/// On one that is, within so many times what it took lately, at the most.
const TIMES: u32 = 4;
/// It is not believed to take longer.
const SLOWEST: Duration = Duration::from_millis(250);

/// One plugin's account of what it was given.
#[derive(Debug, Default)]
pub struct Handover {
    /// The data channel is closed, and nothing is given to it.
    shut: bool,
    /// It was caught by that with something to send.
    caught: bool,
    /// Streams with bytes that were given to it since it sent something, and when the first of these were.
    owed: HashMap<u32, Instant>,
    /// When it was given something last: bytes, or a connection's begin or end.
    last: Option<Instant>,
    /// How long it took lately to send something: the longest time, of which an eighth is forgotten each time.
    took: Duration,
    waiting: HashMap<u32, Waker>,
    /// Streams of which something has come from it: it is known to serve them. Where the agent does not multiplex it serves one
    /// connection at a time, and others wait.
    served: HashSet<u32>,
}

impl Handover {
    /// Whether bytes of this stream may be given to it now; then they count as given. Otherwise the task is woken when they may.
    pub fn poll(&mut self, cx: &Context<'_>, stream: u32, now: Instant) -> Poll<()> {
        if self.shut {
            self.waiting.insert(stream, cx.waker().clone());
            return Poll::Pending;
        }
        self.waiting.remove(&stream);
        self.give(stream, now);
        Poll::Ready(())
    }

    /// A connection to it begins, or bytes of one are given to it.
    pub fn give(&mut self, stream: u32, now: Instant) {
        self.owed.entry(stream).or_insert(now);
        self.last = Some(now);
    }

    /// Something of this stream has come from it.
    pub fn serves(&mut self, stream: u32) {
        self.served.insert(stream);
    }

    /// A connection to it ends, or there is more than it has sent.
    pub fn touched(&mut self, now: Instant) {
        self.last = Some(now);
    }

    /// The stream has ended: the plugin may have thrown away what it was given.
    pub fn leave(&mut self, stream: u32) {
        self.owed.remove(&stream);
        self.waiting.remove(&stream);
        self.served.remove(&stream);
    }

    /// The plugin has sent something on its data channel.
    pub fn sent(&mut self, now: Instant) {
        if let Some(first) = self.owed.values().min() {
            let took = now.saturating_duration_since(*first);
            self.took = (self.took * 7 / 8).max(took).min(SLOWEST);
            self.owed.clear();
        }
    }

    /// For how long it has owed something to connections that it serves.
    pub fn owes_for(&self, now: Instant) -> Duration {
        let served = self.owed.iter().filter(|(stream, _)| self.served.contains(stream));
        let first = served.map(|(_, at)| at).min();
        first.map_or(Duration::ZERO, |first| now.saturating_duration_since(*first))
    }

    /// The data channel is closed. Returns whether that has caught the plugin with something to send.
    pub fn shut(&mut self, now: Instant) -> bool {
        let moment = ON_ITS_WAY.max(self.took * TIMES);
        let on_its_way = self.last.is_some_and(|last| now.saturating_duration_since(last) < moment);
        let caught = !self.shut && (on_its_way || !self.owed.is_empty());
        self.shut = true;
        self.caught |= caught;
        caught
    }

    /// The data channel is open again, for a plugin that was not caught.
    pub fn open(&mut self) {
        if self.caught {
            return;
        }
        self.shut = false;
        self.owed.clear();
        self.waiting.drain().for_each(|(_, waker)| waker.wake());
    }

    /// Whether nothing may be given to it.
    pub fn is_shut(&self) -> bool {
        self.shut
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    fn poll(handover: &mut Handover, stream: u32, now: Instant) -> bool {
        handover.poll(&Context::from_waker(Waker::noop()), stream, now).is_ready()
    }

    #[test]
    fn a_close_catches_what_was_not_sent_and_what_may_not_have_been() {
        let now = Instant::now();
        let caught = |act: fn(&mut Handover, Instant), after| {
            let mut handover = Handover::default();
            act(&mut handover, now);
            (handover.shut(now + after), handover.shut(now + after)).0
        };
        let long = Duration::from_secs(60);
        let given = |handover: &mut Handover, now| assert!(poll(handover, 3, now));
        let sent = |handover: &mut Handover, now| {
            assert!(poll(handover, 3, now));
            handover.sent(now);
        };
        let slow = |handover: &mut Handover, now| {
            assert!(poll(handover, 3, now - ON_ITS_WAY));
            handover.sent(now);
            assert!(poll(handover, 3, now));
            handover.sent(now);
        };
        let begun = |handover: &mut Handover, now| handover.give(3, now);
        let left = |handover: &mut Handover, now| {
            assert!(poll(handover, 3, now));
            handover.leave(3);
        };
        for (act, after, expected) in [
            ((|_, _| ()) as fn(&mut Handover, Instant), MILLISECOND, false),
            (given, MILLISECOND, true),
            (given, long, true),
            (sent, MILLISECOND, true),
            (sent, ON_ITS_WAY, false),
            (slow, ON_ITS_WAY * 3, true),
            (slow, ON_ITS_WAY * 4, false),
            (begun, long, true),
            (left, MILLISECOND, true),
            (left, long, false),
            (Handover::touched, MILLISECOND, true),
            (Handover::touched, long, false),
        ] {
            assert_eq!(caught(act, after), expected, "{after:?}");
        }
    }

    #[test]
    fn nothing_is_given_while_it_is_shut() {
        let now = Instant::now();
        let mut handover = Handover::default();
        assert!(!handover.shut(now) && handover.is_shut());
        assert!(!poll(&mut handover, 3, now));
        assert!(!handover.shut(now + MILLISECOND), "nothing was given");
        handover.open();
        assert!(poll(&mut handover, 3, now) && !handover.is_shut());
        assert!(handover.shut(now));
        handover.open();
        assert!(handover.is_shut(), "it was caught, and is to be replaced");
    }

    #[test]
    fn what_is_owed_counts_from_the_first_of_it() {
        let now = Instant::now();
        let mut handover = Handover::default();
        handover.give(7, now);
        [3, 5].into_iter().for_each(|stream| handover.serves(stream));
        assert_eq!(handover.owes_for(now + MILLISECOND), Duration::ZERO, "it may not be served yet");
        assert!(poll(&mut handover, 3, now) && poll(&mut handover, 5, now + MILLISECOND));
        assert!(poll(&mut handover, 3, now + MILLISECOND * 2));
        assert_eq!(handover.owes_for(now + MILLISECOND * 3), MILLISECOND * 3);
        handover.leave(3);
        assert_eq!(handover.owes_for(now + MILLISECOND * 3), MILLISECOND * 2);
        handover.sent(now + MILLISECOND * 3);
        assert_eq!(handover.owes_for(now + MILLISECOND * 3), Duration::ZERO);
    }
}
