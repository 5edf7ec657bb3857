//! A tunnel at one moment, as others see it: the core's status, and what only the driver knows.

use std::time::Duration;

use tokio::time::Instant;

use crate::tunnel::status::{State, Status};

/// A tunnel at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// In the core's terms.
    pub status: Status,
    /// Since when its clients meet this. While they are held because there is no session, the states
    /// interrupted, starting and waiting take turns: since the first of them.
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
        if self.status.state != status.state && !(is_held(self.status.state) && is_held(status.state)) {
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

/// Clients are held, and nobody has asked for that.
fn is_held(state: State) -> bool {
    matches!(state, State::Interrupted | State::Starting | State::Waiting)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_outage_lasts_since_its_beginning_however_often_a_session_is_tried() {
        let began = Instant::now();
        let status =
            |state| Status { state, sessions: Vec::new(), next_attempt: None, failure: None, degraded: None };
        let mut snapshot = Snapshot::new(status(State::Starting), began);
        let mut later = async |state| {
            tokio::time::advance(Duration::from_secs(10)).await;
            assert!(snapshot.update(status(state), Vec::new(), began));
            snapshot.since.saturating_duration_since(began).as_secs()
        };
        assert_eq!(later(State::Up).await, 10);
        assert_eq!(later(State::Interrupted).await, 20);
        for _ in 0..3 {
            assert_eq!(later(State::Starting).await, 20);
            assert_eq!(later(State::Waiting).await, 20);
        }
        assert_eq!(later(State::Up).await, 90);
        assert_eq!(later(State::Draining).await, 100);
        assert_eq!(later(State::Starting).await, 110, "that was asked for, this is not");
    }
}
