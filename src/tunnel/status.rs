//! The core's only outward view: a snapshot, derived from the state whenever it is asked for.

use super::failure::Failure;
use super::machine::{Next, Slot, Tunnel};
use super::session::Phase;
use super::{Generation, Time};

/// A tunnel at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The tunnel as its clients meet it.
    pub state: State,
    /// Every session that is not yet over, oldest first.
    pub sessions: Vec<SessionStatus>,
    /// When the next attempt to start a session is made, while one is waited for.
    pub next_attempt: Option<Time>,
    /// The last failure, until a session serves.
    pub failure: Option<Failure>,
    /// The destination is down, although the tunnel may be up.
    pub degraded: Option<Degraded>,
}

/// A destination that cannot be reached, or does not answer as it should.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Degraded {
    /// When that was found.
    pub since: Time,
    /// How it shows.
    pub reason: String,
}

/// What clients meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// New connections go through.
    Up,
    /// Clients are held; a session exists and its data channel is being resumed.
    Interrupted,
    /// Clients are held; a session is being started.
    Starting,
    /// Clients are held; the next attempt is waited for.
    Waiting,
    /// Clients are held because somebody has asked for that.
    Draining,
    /// No new clients; open connections have their time.
    Stopping,
    /// Nothing is left.
    Stopped,
}

/// One session at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionStatus {
    /// Its number in the tunnel.
    pub generation: Generation,
    /// `starting`, `opening`, `ready`, `interrupted`, `stalled`, `retired` or `ending`.
    pub phase: &'static str,
    /// When StartSession was called.
    pub began: Time,
    /// When it began to serve.
    pub ready_at: Option<Time>,
    /// Since when its data channel has been down.
    pub down_since: Option<Time>,
    /// Retired: when its open connections are cut, where there is a limit.
    pub until: Option<Time>,
    /// Connections open on it.
    pub open: usize,
    /// Its destination counts as down.
    pub destination_down: bool,
}

impl Tunnel {
    /// The sessions that serve, or are to serve, beside this one: those of the other slots.
    pub fn beside(&self, generation: Generation) -> Vec<Generation> {
        let slot = self.session(generation).map(|session| session.slot);
        let serves = |phase| !matches!(phase, Phase::Retired { .. } | Phase::Ending);
        let others =
            self.sessions.iter().filter(|session| Some(session.slot) != slot && serves(session.phase));
        others.map(|session| session.generation).collect()
    }

    /// What the tunnel is doing.
    pub fn status(&self) -> Status {
        let waiting = self.slots.iter().filter_map(|slot| match slot.next {
            Next::Waiting { until } => Some(until),
            _ => None,
        });
        let next_attempt = waiting.min();
        let building = self.slots.iter().any(|slot| matches!(slot.next, Next::Building(_)));
        let interrupted = |slot: &Slot| {
            slot.serving.and_then(|g| self.session(g)).is_some_and(|session| session.down_since.is_some())
        };
        let interrupted = self.slots.iter().any(interrupted);
        let state = match self.stopping {
            Some(stopping) if stopping.done => State::Stopped,
            Some(_) => State::Stopping,
            None if self.drained => State::Draining,
            None if !self.routes.is_empty() => State::Up,
            None if interrupted => State::Interrupted,
            None if building || next_attempt.is_none() => State::Starting,
            None => State::Waiting,
        };
        let sessions = self.sessions.iter().map(|session| SessionStatus {
            generation: session.generation,
            phase: match session.phase {
                Phase::Starting => "starting",
                Phase::Opening { .. } => "opening",
                Phase::Ending => "ending",
                _ if session.down_since.is_some() => "interrupted",
                _ if session.stalled_since.is_some() => "stalled",
                Phase::Ready => "ready",
                Phase::Retired { .. } => "retired",
            },
            began: session.began,
            ready_at: session.ready_at,
            down_since: session.down_since,
            until: match session.phase {
                Phase::Retired { until } => until,
                _ => None,
            },
            open: session.open,
            destination_down: session.health.is_down(),
        });
        Status {
            state,
            sessions: sessions.collect(),
            next_attempt,
            failure: self.slots.iter().find_map(|slot| slot.failure.clone()),
            degraded: self.degraded.clone(),
        }
    }
}
