//! What the proxy has done and is doing, in numbers that others can read and wait for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::watch;

use super::buffer::Budget;
use crate::control::protocol;
use crate::telemetry::histogram::{HOLD, Histogram};

/// A tunnel's numbers at one moment. Those without "now" count since the tunnel was begun.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Clients let in.
    pub accepted: u64,
    /// Clients that have got a session.
    pub connected: u64,
    /// Connections that their client or the destination has ended.
    pub completed: u64,
    /// Clients that waited when the tunnel was stopped.
    pub stopped: u64,
    /// Clients closed at once because `max_connections` were open or `max_held` waited.
    pub over_limit: u64,
    /// Times that a client could not be accepted (for example because the process had no file descriptor left).
    pub accept_errors: u64,
    /// Connections open now, the held ones included.
    pub open: usize,
    /// Clients waiting for a session now.
    pub held: usize,
    /// Clients that waited and then got a session.
    pub released: u64,
    /// Clients that waited in vain.
    pub timed_out: u64,
    /// Clients that went away while they waited.
    pub gone: u64,
    /// The longest wait of a client that was released.
    pub longest_hold: Duration,
    /// Connections handed to another session because they had carried nothing yet.
    pub moved: u64,
    /// Connections cut in the middle, because their session or the daemon ended.
    pub cut: u64,
    /// Clients for which there is no more room, because they take less than comes for them.
    pub stalled: usize,
    /// Clients closed because they took nothing for `stalled_client_timeout`.
    pub stalled_closed: u64,
    /// Memory in which bytes wait for clients that are slow to take them.
    pub buffered: usize,
    /// Bytes from clients to plugins.
    pub bytes_up: u64,
    /// Bytes from plugins to clients.
    pub bytes_down: u64,
}

/// Keeps the numbers. Those of bytes are apart from the rest, so that moving them wakes nobody.
#[derive(Debug)]
pub struct Stats {
    counts: watch::Sender<Counts>,
    /// Memory for what waits for clients.
    pub(super) budget: Arc<Budget>,
    bytes_up: AtomicU64,
    bytes_down: AtomicU64,
    hold: Histogram,
}

impl Default for Stats {
    fn default() -> Self {
        let (counts, budget, bytes_up, bytes_down) = Default::default();
        Self { counts, budget, bytes_up, bytes_down, hold: Histogram::new(HOLD) }
    }
}

impl Stats {
    /// The numbers now.
    pub fn snapshot(&self) -> Counts {
        let mut counts = *self.counts.borrow();
        counts.buffered = self.budget.used();
        counts.bytes_up = self.bytes_up.load(Relaxed);
        counts.bytes_down = self.bytes_down.load(Relaxed);
        counts
    }

    /// The numbers as they change; `buffered`, `bytes_up` and `bytes_down` stay 0 in these.
    pub fn subscribe(&self) -> watch::Receiver<Counts> {
        self.counts.subscribe()
    }

    /// How long clients waited that got a session.
    pub fn hold_seconds(&self) -> protocol::Histogram {
        self.hold.read()
    }

    pub(super) fn released(&self, after: Duration) {
        self.hold.observe(after);
        self.count(|counts| {
            counts.released += 1;
            counts.longest_hold = counts.longest_hold.max(after);
        });
    }

    pub(super) fn count(&self, change: impl FnOnce(&mut Counts)) {
        self.counts.send_modify(change);
    }

    pub(super) fn moved_up(&self, bytes: usize) {
        self.bytes_up.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn moved_down(&self, bytes: usize) {
        self.bytes_down.fetch_add(bytes as u64, Relaxed);
    }

    /// A place among at most `max` open connections, given back when it is dropped.
    pub(super) fn open(self: &Arc<Self>, max: usize) -> Option<Place> {
        self.place(max, |counts| &mut counts.open)
    }

    /// A place among at most `max` held clients, given back when it is dropped.
    pub(super) fn hold(self: &Arc<Self>, max: usize) -> Option<Place> {
        self.place(max, |counts| &mut counts.held)
    }

    fn place(self: &Arc<Self>, max: usize, number: fn(&mut Counts) -> &mut usize) -> Option<Place> {
        let mut taken = false;
        self.counts.send_modify(|counts| {
            taken = *number(counts) < max;
            if taken {
                *number(counts) += 1;
            } else {
                counts.over_limit += 1;
            }
        });
        taken.then(|| Place { stats: Arc::clone(self), number })
    }
}

/// One of a limited number.
pub(super) struct Place {
    stats: Arc<Stats>,
    number: fn(&mut Counts) -> &mut usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.stats.count(|counts| *(self.number)(counts) -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_limited_and_given_back() {
        let stats = Arc::new(Stats::default());
        let first = stats.open(1).unwrap();
        assert!(stats.open(1).is_none());
        assert_eq!((stats.snapshot().open, stats.snapshot().over_limit), (1, 1));
        drop(first);
        assert_eq!(stats.snapshot().open, 0);
        assert!(stats.open(1).is_some());
    }
}
