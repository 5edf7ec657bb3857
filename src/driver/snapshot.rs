//! A tunnel at one moment, as others see it: the core's status, and what only the driver knows.

use std::time::Duration;

use tokio::time::Instant;

use crate::tunnel::status::{State, Status};

/// A tunnel at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// In the core's terms.
    pub status: Status,
    /// Since when its state is this one.
    pub since: Instant,
    /// When the next attempt to start a session is made, while one is waited for.
    pub next_attempt: Option<Instant>,
    /// Since when the destination is down, while it is.
    pub degraded_since: Option<Instant>,
    /// The ids of the sessions that take new connections, oldest first.
    pub serving: Vec<String>,
    /// How often a data channel was opened again.
    pub resumed: u64,
    /// How long it was down the last time.
    pub last_resumed: Option<Duration>,
}

impl Snapshot {
    pub(super) fn new(status: Status, now: Instant) -> Self {
        Self {
            status,
            since: now,
            next_attempt: None,
            degraded_since: None,
            serving: Vec::new(),
            resumed: 0,
            last_resumed: None,
        }
    }

    /// Takes on a newer status; whether anything is different.
    pub(super) fn update(&mut self, status: Status, serving: Vec<String>, began: Instant) -> bool {
        if self.status == status && self.serving == serving {
            return false;
        }
        if self.status.state != status.state {
            self.since = Instant::now();
        }
        self.next_attempt = status.next_attempt.map(|at| began + at);
        self.degraded_since = status.degraded.as_ref().map(|degraded| began + degraded.since);
        self.status = status;
        self.serving = serving;
        true
    }

    /// Whether clients get through.
    pub fn is_up(&self) -> bool {
        self.status.state == State::Up
    }
}
