//! The next thing that happens if nothing else does.

use super::Time;
use super::machine::{Next, Tunnel};
use super::session::Phase;

/// What a tunnel waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// An attempt to start a session.
    Start,
    /// A replacement for an interrupted session.
    Failover,
    /// A session that opens is given up.
    OpeningOver,
    /// An interrupted session is given up.
    ResumingOver,
    /// A session has reached its age and gets a replacement.
    Rotation,
    /// The open connections of a retired session are cut.
    DrainOver,
    /// The tunnel is stopped, whatever hangs.
    StoppingOver,
}

impl Tunnel {
    /// What is waited for, and when it comes: of what an operator would want to know, the next.
    pub fn next_step(&self) -> Option<(Time, Step)> {
        if let Some(stopping) = self.stopping {
            return (!stopping.done).then_some((stopping.deadline, Step::StoppingOver));
        }
        let slots = self.slots.iter().filter_map(|slot| match slot.next {
            Next::Waiting { until } => Some((until, Step::Start)),
            _ => None,
        });
        let sessions = self.sessions.iter().flat_map(|session| {
            let down = session.down_since.filter(|_| session.phase != Phase::Ending);
            let failover = down
                .filter(|_| session.phase == Phase::Ready)
                .map(|since| (since + self.settings.failover_after, Step::Failover));
            let resuming = down.map(|since| (since + self.settings.resume_for, Step::ResumingOver));
            let phase = match session.phase {
                Phase::Opening { deadline } => Some((deadline, Step::OpeningOver)),
                Phase::Retired { until: Some(until) } => Some((until, Step::DrainOver)),
                _ => None,
            };
            [failover, resuming, phase]
        });
        let ready = self.sessions.iter().filter(|session| session.phase == Phase::Ready);
        let rotations = ready.filter_map(|session| Some((self.rotates_at(session)?, Step::Rotation)));
        let comes = |(at, _): &(Time, Step)| *at > self.now;
        let next = slots.chain(sessions.flatten()).filter(comes).min_by_key(|(at, _)| *at);
        // What is in order is told where nothing else is waited for.
        next.or_else(|| rotations.filter(comes).min_by_key(|(at, _)| *at))
    }
}
