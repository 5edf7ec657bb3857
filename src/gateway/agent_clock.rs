//! PURE. When the agent is to be asked for a sign of life, and when it has given none for too long.
//!
//! Pings of the WebSocket are answered by the service, and say nothing of the agent behind it. What the agent itself
//! answers is stream messages: it acknowledges each. One that does not read, because the destination of an upload
//! does not, acknowledges nothing either; new connections are better off elsewhere then, too.

use std::time::{Duration, Instant};

/// For an acknowledgement, while the data channel is open.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// What is known of the agent's life.
#[derive(Debug)]
pub struct AgentClock {
    /// A keep-alive is due when nothing has flowed for so long; `None` for never.
    keepalive: Option<Duration>,
    /// When stream data flowed last; `None` before the handshake is complete.
    flowed: Option<Instant>,
    /// Since when an acknowledgement, or the agent's return, is waited for.
    waiting: Option<Instant>,
    away: bool,
    silent: bool,
}

impl AgentClock {
    /// Of a session whose handshake is not complete.
    pub fn new(keepalive: Option<Duration>) -> Self {
        Self { keepalive, flowed: None, waiting: None, away: false, silent: false }
    }

    /// The handshake is complete.
    pub fn begin(&mut self, now: Instant) {
        self.flowed.get_or_insert(now);
    }

    /// Stream data has come from the agent.
    pub fn flowed(&mut self, now: Instant) {
        self.flowed = self.flowed.map(|_| now);
    }

    /// Something that the agent acknowledges was sent.
    pub fn sent(&mut self, now: Instant) {
        if self.flowed.is_some() {
            self.waiting.get_or_insert(now);
        }
    }

    /// The agent has acknowledged something new; `awaited`: more of what was sent has to be acknowledged.
    pub fn acknowledged(&mut self, now: Instant, awaited: bool) {
        self.flowed(now);
        self.away = false;
        self.silent = false;
        self.waiting = awaited.then_some(now);
    }

    /// Anything else has come from the agent, or the service says that it is back; `owed`: the agent has not acknowledged
    /// everything.
    pub fn heard(&mut self, owed: bool) {
        self.away = false;
        if !owed {
            self.waiting = None;
            self.silent = false;
        }
    }

    /// The service says that the agent has gone away.
    pub fn left(&mut self, now: Instant) {
        if self.flowed.is_some() {
            self.away = true;
            self.waiting.get_or_insert(now);
        }
    }

    /// The data channel is closed: what is not sent is not answered.
    pub fn closed(&mut self) {
        self.away = false;
        self.waiting = None;
    }

    /// An acknowledgement could not be seen: the waiting for it begins anew.
    pub fn excuse(&mut self, now: Instant) {
        self.waiting = self.waiting.map(|_| now);
    }

    /// Nothing is left to wait for.
    pub fn trust(&mut self) {
        self.silent = false;
    }

    /// When a keep-alive is due.
    pub fn keep_alive_at(&self) -> Option<Instant> {
        Some(self.flowed? + self.keepalive?)
    }

    /// When the agent's silence has lasted too long.
    pub fn silent_at(&self) -> Option<Instant> {
        if self.silent { None } else { Some(self.waiting? + PATIENCE) }
    }

    /// Whether it has lasted too long just now.
    pub fn falls_silent(&mut self, now: Instant) -> bool {
        let falls = self.silent_at().is_some_and(|at| at <= now);
        self.silent |= falls;
        falls
    }

    /// Whether the agent is silent, until it acknowledges something.
    pub fn is_silent(&self) -> bool {
        self.silent
    }

    /// Whether the service has said that the agent is away.
    pub fn is_away(&self) -> bool {
        self.away
    }

    /// Whether keep-alives are wanted at all.
    pub fn asks(&self) -> bool {
        self.keepalive.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn begun() -> (AgentClock, Instant) {
        let (mut clock, now) = (AgentClock::new(Some(SECOND * 60)), Instant::now());
        clock.begin(now);
        (clock, now)
    }

    #[test]
    fn nothing_is_expected_before_the_handshake_is_complete() {
        let (mut clock, now) = (AgentClock::new(Some(SECOND)), Instant::now());
        clock.flowed(now);
        clock.sent(now);
        clock.left(now);
        assert_eq!((clock.keep_alive_at(), clock.silent_at(), clock.is_away()), (None, None, false));
    }

    #[test]
    fn a_keep_alive_is_due_when_nothing_has_flowed() {
        let (mut clock, now) = begun();
        assert_eq!(clock.keep_alive_at(), Some(now + SECOND * 60));
        clock.flowed(now + SECOND);
        assert_eq!(clock.keep_alive_at(), Some(now + SECOND * 61));
        clock.acknowledged(now + SECOND * 2, false);
        assert_eq!(clock.keep_alive_at(), Some(now + SECOND * 62));
        let mut off = AgentClock::new(None);
        off.begin(now);
        assert_eq!(off.keep_alive_at(), None);
    }

    #[test]
    fn silence_counts_from_the_last_acknowledgement() {
        let (mut clock, now) = begun();
        clock.sent(now);
        clock.sent(now + SECOND * 9);
        clock.acknowledged(now + SECOND * 10, true);
        assert!(!clock.falls_silent(now + SECOND * 24));
        assert!(clock.falls_silent(now + SECOND * 25));
        assert!(!clock.falls_silent(now + SECOND * 26), "said once");
        clock.heard(true);
        assert!(clock.is_silent(), "data flows, but nothing that is sent arrives");
        clock.acknowledged(now + SECOND * 99, false);
        assert!(!clock.is_silent());
        assert_eq!(clock.silent_at(), None);
    }

    #[test]
    fn silence_outlives_a_data_channel_but_does_not_begin_without_one() {
        let (mut clock, now) = begun();
        clock.sent(now);
        clock.closed();
        assert_eq!(clock.silent_at(), None);
        clock.sent(now + SECOND * 100);
        assert!(clock.falls_silent(now + SECOND * 115));
        clock.closed();
        assert!(clock.is_silent());
    }

    #[test]
    fn no_acknowledgement_is_missed_while_it_cannot_be_seen() {
        let (mut clock, now) = begun();
        clock.excuse(now);
        assert_eq!(clock.silent_at(), None);
        clock.sent(now);
        clock.excuse(now + SECOND * 14);
        assert_eq!(clock.silent_at(), Some(now + SECOND * 29));
    }

    #[test]
    fn an_agent_that_has_gone_away_has_as_long_to_come_back() {
        let (mut clock, now) = begun();
        clock.left(now);
        assert!(clock.is_away());
        clock.heard(false);
        assert_eq!((clock.is_away(), clock.silent_at()), (false, None));
        clock.left(now);
        assert!(clock.falls_silent(now + PATIENCE));
        clock.heard(false);
        assert!(!clock.is_silent());
    }
}
