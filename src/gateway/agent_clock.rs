//! PURE. When the agent is to be asked for a sign of life, and when it has given none for too long.
//!
//! Pings of the WebSocket are answered by the service, and say nothing of the agent behind it. What the agent itself
//! answers is stream messages: it acknowledges each. One that does not read, because the destination of an upload
//! does not, acknowledges nothing either; new connections are better off elsewhere then, too.
//!
//! The service says (`pause_publication`) when the agent's own connection to it is lost. The agent then tries to open
//! another one, six times within 3 to 6 s where it is refused, and never again; its process stays and does nothing. So an
//! agent that is away for longer is gone for good (`communicator/websocketchannel.go` and `retry/`, public source).

use std::time::{Duration, Instant};

/// For an acknowledgement, while the data channel is open.
pub const PATIENCE: Duration = Duration::from_secs(15);
/// An agent that the service says is away does not come back later than this: its six attempts, with pauses of 6 s
/// between them, end within 15 s each.
pub const GONE_AFTER: Duration = Duration::from_secs(100);
/// After a data channel was opened again, what the agent has sent meanwhile takes this long beyond its first sign of life
/// to show whether something of it is missing.
const SETTLING: Duration = Duration::from_millis(100);
/// An agent that expects frames of its client looks every 30 s whether there was one.
const EXPECTED: Duration = Duration::from_secs(10);

/// What is known of the agent's life.
#[derive(Debug)]
pub struct AgentClock {
    /// A keep-alive is due when nothing has flowed for so long; `None` for never.
    keepalive: Option<Duration>,
    /// When stream data flowed last; `None` before the handshake is complete.
    flowed: Option<Instant>,
    /// Since when an acknowledgement, or the agent's return, is waited for.
    waiting: Option<Instant>,
    /// Since when the service says that it is away.
    away: Option<Instant>,
    silent: bool,
    proof: Proof,
    /// Whether it expects frames of its client, whatever it sends itself.
    expects: bool,
    /// When it has taken something last; `None` before the handshake is complete.
    taken: Option<Instant>,
}

/// Whether the agent has been heard of since the data channel was opened again: the service accepts one whether there is
/// an agent or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    /// There is nothing that it could acknowledge, or the data channel was never closed.
    NotNeeded,
    /// It has to acknowledge something.
    Awaited,
    /// It was heard of then.
    Given(Instant),
}

impl AgentClock {
    /// Of a session whose handshake is not complete.
    pub fn new(keepalive: Option<Duration>) -> Self {
        Self {
            keepalive,
            flowed: None,
            waiting: None,
            away: None,
            silent: false,
            proof: Proof::NotNeeded,
            expects: false,
            taken: None,
        }
    }

    /// The handshake is complete.
    pub fn begin(&mut self, now: Instant) {
        self.flowed.get_or_insert(now);
        self.taken.get_or_insert(now);
    }

    /// The agent ends the session if no frames of its client come.
    pub fn expects_frames(&mut self) {
        self.expects = true;
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
        self.taken = self.taken.map(|_| now);
        self.away = None;
        self.silent = false;
        self.waiting = awaited.then_some(now);
        self.prove(now);
    }

    /// Anything else has come from the agent, or the service says that it is back; `owed`: the agent has not acknowledged
    /// everything.
    pub fn heard(&mut self, now: Instant, owed: bool) {
        self.away = None;
        self.prove(now);
        if !owed {
            self.waiting = None;
            self.silent = false;
        }
    }

    /// The service says that the agent has gone away.
    pub fn left(&mut self, now: Instant) {
        if self.flowed.is_some() {
            self.away.get_or_insert(now);
            self.waiting.get_or_insert(now);
        }
    }

    /// The data channel is closed: what is not sent is not answered, and the service tells nothing of the agent.
    pub fn closed(&mut self) {
        self.away = None;
        self.waiting = None;
        self.proof = Proof::NotNeeded;
    }

    /// The data channel is open again; `asked`: something goes out that the agent will acknowledge, if it is there.
    pub fn reopened(&mut self, asked: bool) {
        if self.flowed.is_none() {
            return;
        }
        self.proof = if asked { Proof::Awaited } else { Proof::NotNeeded };
        // Where it cannot be asked, it is trusted.
        self.silent &= asked;
    }

    fn prove(&mut self, now: Instant) {
        if self.proof == Proof::Awaited {
            self.proof = Proof::Given(now);
        }
    }

    /// An acknowledgement could not be seen: the waiting for it begins anew.
    pub fn excuse(&mut self, now: Instant) {
        self.waiting = self.waiting.map(|_| now);
    }

    /// When the agent, heard of again, can be relied upon to have nothing missing that is not known. `None` where it has
    /// not been heard of since the data channel was opened again.
    pub fn proven_at(&self, now: Instant) -> Option<Instant> {
        match self.proof {
            Proof::NotNeeded => Some(now),
            Proof::Awaited => None,
            Proof::Given(at) => Some(at + SETTLING),
        }
    }

    /// When a keep-alive is due. What the agent sends is no frame of its client's.
    pub fn keep_alive_at(&self) -> Option<Instant> {
        let idle = self.flowed.zip(self.keepalive).map(|(flowed, keepalive)| flowed + keepalive);
        let expected = self.taken.filter(|_| self.expects).map(|taken| taken + EXPECTED);
        [idle, expected].into_iter().flatten().min()
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
        self.away.is_some()
    }

    /// When an agent that is away is gone for good.
    pub fn gone_at(&self) -> Option<Instant> {
        self.away.map(|since| since + GONE_AFTER)
    }

    /// Whether keep-alives are wanted at all.
    pub fn asks(&self) -> bool {
        self.keepalive.is_some() || self.expects
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
    fn what_the_agent_sends_is_no_frame_of_its_clients() {
        for keepalive in [None, Some(SECOND * 10), Some(SECOND * 60)] {
            let (mut clock, now) = (AgentClock::new(keepalive), Instant::now());
            clock.expects_frames();
            assert_eq!((clock.keep_alive_at(), clock.asks()), (None, true), "the handshake is not complete");
            clock.begin(now);
            clock.flowed(now + SECOND * 9);
            assert_eq!(clock.keep_alive_at(), Some(now + SECOND * 10), "{keepalive:?}");
            clock.acknowledged(now + SECOND * 11, false);
            assert_eq!(clock.keep_alive_at(), Some(now + SECOND * 21), "{keepalive:?}");
        }
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
        clock.heard(now, true);
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
        clock.heard(now, false);
        assert_eq!((clock.is_away(), clock.silent_at()), (false, None));
        clock.left(now);
        assert!(clock.falls_silent(now + PATIENCE));
        clock.heard(now, false);
        assert!(!clock.is_silent());
    }

    #[test]
    fn an_agent_that_is_away_for_too_long_is_gone() {
        let (mut clock, now) = begun();
        assert_eq!(clock.gone_at(), None);
        clock.left(now);
        clock.left(now + SECOND);
        assert_eq!(clock.gone_at(), Some(now + GONE_AFTER));
        clock.heard(now + SECOND, false);
        assert_eq!(clock.gone_at(), None);
        clock.left(now);
        clock.closed();
        assert_eq!(clock.gone_at(), None, "the service cannot tell of its return");
    }

    #[test]
    fn a_data_channel_that_is_open_again_proves_nothing_of_the_agent() {
        let (mut clock, now) = begun();
        assert_eq!(clock.proven_at(now), Some(now));
        clock.closed();
        clock.reopened(true);
        assert_eq!(clock.proven_at(now), None);
        clock.heard(now, true);
        clock.acknowledged(now + SECOND, false);
        assert_eq!(clock.proven_at(now), Some(now + SETTLING));
        clock.closed();
        clock.reopened(false);
        assert_eq!(clock.proven_at(now), Some(now), "it cannot be asked");
    }

    #[test]
    fn a_silent_agent_that_cannot_be_asked_is_trusted() {
        let (mut clock, now) = begun();
        clock.sent(now);
        assert!(clock.falls_silent(now + PATIENCE));
        clock.closed();
        clock.reopened(true);
        assert!(clock.is_silent());
        clock.closed();
        clock.reopened(false);
        assert!(!clock.is_silent());
    }
}
