//! How sessions end: lost, had in vain, or no longer wanted; and what is done about it here and at the service.

use std::time::Duration;

use super::failure::{Class, Failure};
use super::machine::{Next, Slot, Tunnel};
use super::session::{AtService, Phase, Session};
use super::{Action, Generation, Report};

/// A session lost sooner than this after it began to serve counts as one that could not be had; otherwise a plugin that
/// dies on its first connection would be started in a tight loop.
pub(super) const BARELY: Duration = Duration::from_secs(1);
/// A session that is lost before it has served so long had a short life …
const SHORT: Duration = Duration::from_secs(10);
/// … of which so many …
const SHORT_LIVES: usize = 5;
/// … within this time are followed by replacements at once, and the next ones by the clock: a service that ends each session
/// after a few seconds would otherwise be asked for another one for ever. A plugin that is killed is nobody's fault but
/// the killer's, and replaced at once however often.
const WITHIN: Duration = Duration::from_secs(60);
/// TerminateSession is tried this often before the session is left to the record.
pub(super) const TERMINATE_ATTEMPTS: u32 = 4;

impl Tunnel {
    /// A session is lost, and not because somebody has killed its plugin. Where it had just begun to serve, that is noted.
    pub(super) fn note_short_life(&mut self, generation: Generation) {
        let now = self.now;
        let ready_at = self.session(generation).filter(|s| s.phase == Phase::Ready).and_then(|s| s.ready_at);
        let serves = |slot: &&mut Slot| slot.serving == Some(generation);
        if ready_at.is_some_and(|at| now < at + SHORT)
            && let Some(slot) = self.slots.iter_mut().find(serves)
        {
            slot.short_lives.retain(|at| now < *at + WITHIN);
            if slot.short_lives.len() > SHORT_LIVES {
                slot.short_lives.remove(0);
            }
            slot.short_lives.push(now);
        }
    }

    /// Whether this session is one of too many that have been lost soon after they began to serve.
    fn loses_too_many(&self, generation: Generation) -> bool {
        let slot = self.slots.iter().find(|slot| slot.serving == Some(generation));
        slot.is_some_and(|slot| {
            slot.short_lives.last() == Some(&self.now) && slot.short_lives.len() > SHORT_LIVES
        })
    }

    /// A session is lost. One that had served is replaced at once, any other counts as a failed attempt; as does one after
    /// many that served only for seconds.
    pub(super) fn lose(
        &mut self,
        generation: Generation,
        reason: &str,
        random: f64,
        actions: &mut Vec<Action>,
    ) {
        let now = self.now;
        let Some(session) = self.session(generation) else { return };
        match session.phase {
            Phase::Ending => {}
            Phase::Starting | Phase::Opening { .. } => {
                let failure = session.failure(reason);
                self.fail(generation, failure, random, actions);
            }
            Phase::Ready
                if session.ready_at.is_some_and(|at| now < at + BARELY)
                    || self.loses_too_many(generation) =>
            {
                self.fail(generation, Failure::new(Class::Network, reason), random, actions);
            }
            // It was there to see whether this happens.
            Phase::Retired { .. } if self.tests_limit() == Some(generation) && session.open == 0 => {
                self.end(generation, reason, true, actions);
            }
            Phase::Ready | Phase::Retired { .. } => self.end(generation, reason, false, actions),
        }
    }

    /// A session could not be had: it ends, and its slot's clock is set.
    pub(super) fn fail(
        &mut self,
        generation: Generation,
        failure: Failure,
        random: f64,
        actions: &mut Vec<Action>,
    ) {
        let now = self.now;
        let Some(session) = self.session(generation).filter(|session| session.phase != Phase::Ending) else {
            return;
        };
        let index = session.slot;
        if let Some(slot) = self.slots.get_mut(index)
            && (slot.next == Next::Building(generation) || slot.serving == Some(generation))
        {
            let delay = slot.backoff.fail(failure.class, random);
            slot.next = Next::Waiting { until: now + delay };
            slot.failure = Some(failure.clone());
            actions.push(Action::Report(Report::Failed(generation, failure.clone(), delay)));
        }
        self.end(generation, &failure.text, false, actions);
    }

    /// Ends a session here and at the service.
    pub(super) fn end(
        &mut self,
        generation: Generation,
        reason: &str,
        expected: bool,
        actions: &mut Vec<Action>,
    ) {
        let now = self.now;
        let Some(session) = self.session_mut(generation) else { return };
        if session.phase == Phase::Ending {
            return;
        }
        if session.ready_at.is_some() {
            actions.push(Action::Report(Report::Ended {
                generation,
                reason: reason.to_owned(),
                age: now - session.began,
                cut: session.open,
                expected,
            }));
        }
        session.phase = Phase::Ending;
        actions.push(Action::Cut(generation));
        // Whoever knows that the plugin will not listen has killed it already.
        if session.plugin && !actions.contains(&Action::KillPlugin(generation)) {
            actions.push(Action::StopPlugin(generation));
        }
        if session.at_service == AtService::Live {
            terminate(session, actions);
        }
        for slot in &mut self.slots {
            if slot.serving == Some(generation) {
                slot.serving = None;
            }
            if slot.next == Next::Building(generation) {
                slot.next = Next::None;
            }
        }
    }

    pub(super) fn terminated(
        &mut self,
        generation: Generation,
        result: Result<(), Failure>,
        actions: &mut Vec<Action>,
    ) {
        let now = self.now;
        let Some(session) = self.session_mut(generation) else { return };
        let AtService::Terminating { attempts } = session.at_service else { return };
        match result {
            Ok(()) => session.at_service = AtService::Over,
            Err(_) if attempts < TERMINATE_ATTEMPTS => {
                let at = now + Duration::from_secs(1 << attempts);
                session.at_service = AtService::TerminateAt { at, attempts };
            }
            Err(failure) => {
                actions.push(Action::Report(Report::NotTerminated(generation, failure.text)));
                self.leave_recorded(generation, actions);
            }
        }
    }

    /// Gives a session up to its record. Its plugin is killed if it still runs.
    pub(super) fn leave_recorded(&mut self, generation: Generation, actions: &mut Vec<Action>) {
        if self.session(generation).is_some_and(|session| session.plugin) {
            actions.push(Action::KillPlugin(generation));
        }
        actions.push(Action::LeaveRecorded(generation));
        self.sessions.retain(|session| session.generation != generation);
    }
}

/// Asks the service to end a session that is known to live.
pub(super) fn terminate(session: &mut Session, actions: &mut Vec<Action>) {
    session.at_service = AtService::Terminating { attempts: 1 };
    actions.push(Action::Terminate(session.generation));
}
