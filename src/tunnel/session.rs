//! One session of a tunnel, from StartSession to its end.

use super::failure::{Class, Failure};
use super::health::Health;
use super::{Generation, Reason, Time};

/// Where a session stands. `Ended` is terminal and is not stored: the session is forgotten.
///
/// ```text
///            Started            Opened           replaced
/// Starting ──────────► Opening ────────► Ready ───────────► Retired
///    │                    │                │ ▲                 │ │
///    │                    │                └─┴── serves again ─┘ │ empty, drained,
///    └────────────────────┴───── failed, lost, stopped ──────────┴──► Ending ──► (Ended)
/// ```
///
/// "Interrupted" is not a phase: in any of them the data channel can be down while the gateway resumes it. Nor is
/// "stalled": while it is Ready or Retired, a client that does not read can block the plugin for all the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    /// StartSession is under way.
    Starting,
    /// The plugin runs; its port is not open yet. Given up at `deadline`.
    Opening { deadline: Time },
    /// Serves its slot.
    Ready,
    /// Takes no new connections; its open ones may go on until `until`, or for as long as they like.
    Retired { until: Option<Time> },
    /// Connections are cut; the plugin is being stopped and the session terminated.
    Ending,
}

/// What the service knows of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum AtService {
    /// StartSession has not answered: there may be a session or not.
    Unknown,
    /// It exists, and the driver has recorded it.
    Live,
    /// TerminateSession is under way.
    Terminating { attempts: u32 },
    /// TerminateSession failed and is tried again then.
    TerminateAt { at: Time, attempts: u32 },
    /// It has ended, was never begun, or is left to the record.
    Over,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Session {
    pub generation: Generation,
    /// The slot that it was begun for.
    pub slot: usize,
    pub phase: Phase,
    pub began: Time,
    pub ready_at: Option<Time>,
    /// Since when its data channel has been down.
    pub down_since: Option<Time>,
    /// A plugin was launched and has not exited.
    pub plugin: bool,
    pub at_service: AtService,
    /// While it opens: why its data channel could not be opened last.
    pub obstacle: Option<Failure>,
    /// Connections open on it.
    pub open: usize,
    /// Since when a client of it does not read, so that its plugin is about to take no more data, or takes none.
    pub stalled_since: Option<Time>,
    /// It has to be replaced although it works.
    pub expired: Option<Reason>,
    /// What is believed of its destination.
    pub health: Health,
    /// By how much it is rotated earlier than it has to be: thousandths of the most.
    pub jitter: u16,
}

impl Session {
    pub(super) fn new(generation: Generation, slot: usize, now: Time) -> Self {
        Self {
            generation,
            slot,
            phase: Phase::Starting,
            began: now,
            ready_at: None,
            down_since: None,
            plugin: false,
            at_service: AtService::Unknown,
            obstacle: None,
            open: 0,
            stalled_since: None,
            expired: None,
            health: Health::default(),
            jitter: 0,
        }
    }

    /// Whether it can take new connections. A stalled one can, but whether it answers them is another matter.
    pub(super) fn routable(&self) -> bool {
        self.phase == Phase::Ready && self.down_since.is_none()
    }

    /// Whether what is sent through it arrives: its data channel is up, and no client holds up the others.
    pub(super) fn flows(&self) -> bool {
        self.down_since.is_none() && self.stalled_since.is_none()
    }

    /// When it is known to have served for `time`, if nothing happens to it before.
    pub(super) fn proves_life_at(&self, time: Option<Time>) -> Option<Time> {
        let lives = matches!(self.phase, Phase::Ready | Phase::Retired { .. }) && self.down_since.is_none();
        Some(self.ready_at.filter(|_| lives)? + time?)
    }

    /// Whether what a probe finds through it says something of the destination.
    pub(super) fn can_be_probed(&self) -> bool {
        self.phase == Phase::Ready && self.flows()
    }

    /// Why it could not be had, where all that was seen of it here is `reason`.
    pub(super) fn failure(&self, reason: &str) -> Failure {
        match &self.obstacle {
            Some(obstacle) => Failure::new(obstacle.class, format!("{reason}; {}", obstacle.text)),
            None => Failure::new(Class::Network, reason),
        }
    }

    /// Whether nothing of it is left, here or at the service.
    pub(super) fn is_over(&self) -> bool {
        self.phase == Phase::Ending && !self.plugin && self.at_service == AtService::Over
    }
}
