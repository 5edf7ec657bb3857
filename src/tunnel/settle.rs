//! What follows from a tunnel's state and the time: deadlines, slots, routes, the end. Nothing here depends on which event
//! came last, so that no event can forget a consequence.

use super::machine::{Next, OPENING, PROVEN, SOON, SURPLUS, Slot, Tunnel};
use super::rotation::{Lifetime, Rotate};
use super::session::{AtService, Phase, Session};
use super::{Action, Generation, Reason, Report, Time};

impl Tunnel {
    /// Draws every conclusion from the state and the time: deadlines, slots, routes, the end.
    pub(super) fn settle(&mut self, random: f64, actions: &mut Vec<Action>) {
        self.limit_surplus();
        self.test_limit(actions);
        self.settle_recovery(actions);
        let generations: Vec<_> = self.sessions.iter().map(|session| session.generation).collect();
        for generation in generations {
            self.settle_session(generation, random, actions);
        }
        if self.stopping.is_none() {
            for index in 0..self.slots.len() {
                self.settle_slot(index, actions);
            }
            self.end_unused(actions);
            let wanted = self.settings.sessions.max(1);
            if self.slots.iter().skip(wanted).all(|slot| slot.serving.is_none() && slot.next == Next::None) {
                self.slots.truncate(wanted);
            }
        }
        self.sessions.retain(|session| {
            if session.is_over() {
                actions.push(Action::Forget(session.generation));
            }
            !session.is_over()
        });
        if self.asks_limit() && self.lifetime.ask_at <= self.now {
            self.lifetime.asks(self.now, random);
            actions.push(Action::AskLimit);
        }
        let routes = self.wanted_routes();
        if routes != self.routes {
            // Before anything is cut: a connection that is moved must not find its way back.
            actions.insert(0, Action::Route(routes.clone()));
            self.routes = routes;
        }
        if let Some(stopping) = &mut self.stopping
            && self.sessions.is_empty()
            && !stopping.done
        {
            stopping.done = true;
            actions.push(Action::Stopped);
        }
    }

    /// The sessions for new connections: those that flow, else the stalled ones. Where probes tell of destinations, sessions
    /// whose destination is down are left out as long as there are others: the targets of a pool may differ. (Without
    /// probes only clients can tell that it is up again.)
    fn wanted_routes(&self) -> Vec<Generation> {
        if self.stopping.is_some() || self.drained {
            return Vec::new();
        }
        let (flowing, stalled): (Vec<_>, Vec<_>) =
            self.sessions.iter().filter(|session| session.routable()).partition(|session| session.flows());
        let soon = |slot: &Slot| match slot.next {
            Next::Building(generation) => self.session(generation).is_some_and(|s| self.now < s.began + SOON),
            _ => false,
        };
        let mut routable = match flowing.as_slice() {
            [] if self.slots.iter().any(soon) => flowing,
            [] => stalled,
            _ => flowing,
        };
        if self.settings.probing.is_some() && routable.iter().any(|session| !session.health.is_down()) {
            routable.retain(|session| !session.health.is_down());
        }
        routable.into_iter().map(|session| session.generation).collect()
    }

    /// When a session reaches the age at which it is rotated.
    pub(super) fn rotates_at(&self, session: &Session) -> Option<Time> {
        Some(session.began + self.lifetime.rotates_at(self.settings.rotate, session.jitter)?)
    }

    /// The session that shows whether the limit is one: the first of those that were replaced for a limit that the account
    /// does not tell.
    pub(super) fn tests_limit(&self) -> Option<Generation> {
        self.lifetime.outlived_after().filter(|_| self.settings.rotate == Rotate::Auto)?;
        let tests = |s: &&Session| {
            matches!(s.phase, Phase::Retired { .. })
                && s.expired == Some(Reason::Age)
                && s.down_since.is_none()
        };
        self.sessions.iter().find(tests).map(|session| session.generation)
    }

    /// Drops the belief in a limit that a session has outlived.
    fn test_limit(&mut self, actions: &mut Vec<Action>) {
        let after = self.lifetime.outlived_after();
        let outlived = |s: &Session| s.proves_life_at(after).is_some_and(|at| at <= self.now);
        if self.sessions.iter().any(outlived) {
            self.learn(Lifetime::forget_met, actions);
        }
    }

    /// Whether the account's limit is of interest, and whoever asks can be expected to get an answer.
    pub(super) fn asks_limit(&self) -> bool {
        self.settings.rotate == Rotate::Auto
            && self.stopping.is_none()
            && self.sessions.iter().any(|session| session.phase == Phase::Ready)
    }

    /// Some sessions that were replaced have no time limit; too many of them get one.
    fn limit_surplus(&mut self) {
        let drained = self.now + self.settings.drain;
        let most = SURPLUS.max(self.settings.sessions);
        let mut surplus: Vec<_> =
            self.sessions.iter_mut().filter(|s| s.phase == Phase::Retired { until: None }).collect();
        let over = surplus.len().saturating_sub(most);
        for session in surplus.iter_mut().take(over) {
            session.phase = Phase::Retired { until: Some(drained) };
        }
    }

    fn settle_session(&mut self, generation: Generation, random: f64, actions: &mut Vec<Action>) {
        let now = self.now;
        let (resume_for, probing) = (self.settings.resume_for, self.settings.probing.is_some());
        let stopping = self.stopping;
        let Some(rotate) = self.session(generation).map(|session| self.rotates_at(session)) else { return };
        let Some(session) = self.session_mut(generation) else { return };

        if let AtService::TerminateAt { at, attempts } = session.at_service
            && at <= now
        {
            session.at_service = AtService::Terminating { attempts: attempts + 1 };
            actions.push(Action::Terminate(generation));
        }
        if let Some(stopping) = stopping {
            let waits = matches!(session.phase, Phase::Ready | Phase::Retired { .. }) && session.open > 0;
            if !waits || stopping.grace_until <= now {
                self.end(generation, "stopped", true, actions);
            }
            if stopping.deadline <= now {
                self.give_up(generation, actions);
            }
            return;
        }
        let down_too_long = session.down_since.is_some_and(|since| since + resume_for <= now);
        match session.phase {
            Phase::Opening { deadline } if deadline <= now => {
                actions.push(Action::KillPlugin(generation));
                let failure =
                    session.failure(&format!("the plugin's port was not open after {} s", OPENING.as_secs()));
                self.fail(generation, failure, random, actions);
            }
            Phase::Ready | Phase::Retired { .. } if down_too_long => {
                actions.push(Action::KillPlugin(generation));
                let text = format!("the data channel could not be resumed for {} s", resume_for.as_secs());
                self.end(generation, &text, false, actions);
            }
            Phase::Ready => {
                if session.expired.is_none() && rotate.is_some_and(|at| at <= now) {
                    session.expired = Some(Reason::Age);
                }
                if probing && session.can_be_probed() && session.health.probe_at().is_some_and(|at| at <= now)
                {
                    session.health.begin_probe();
                    actions.push(Action::Probe(generation));
                }
            }
            Phase::Retired { until: Some(until) } if until <= now => {
                self.end(generation, "replaced; its connections had their time", true, actions);
            }
            _ => {}
        }
    }

    /// Ends the retired sessions that nobody uses, but for one that tests the limit.
    fn end_unused(&mut self, actions: &mut Vec<Action>) {
        let tests_limit = self.tests_limit();
        let unused = |s: &&Session| matches!(s.phase, Phase::Retired { .. }) && s.open == 0;
        let unused = self.sessions.iter().filter(unused).map(|session| session.generation);
        let unused: Vec<_> = unused.filter(|generation| tests_limit != Some(*generation)).collect();
        for generation in unused {
            self.end(generation, "replaced", true, actions);
        }
    }

    /// Stopping has taken too long: what is left is killed here and left to the record there.
    fn give_up(&mut self, generation: Generation, actions: &mut Vec<Action>) {
        let Some(session) = self.session(generation) else { return };
        match session.at_service {
            AtService::Over if !session.plugin => {}
            AtService::Over => {
                actions.push(Action::KillPlugin(generation));
                actions.push(Action::Forget(generation));
                self.sessions.retain(|session| session.generation != generation);
            }
            _ => {
                let text = "there was no time to terminate it".to_owned();
                actions.push(Action::Report(Report::NotTerminated(generation, text)));
                self.leave_recorded(generation, actions);
            }
        }
    }

    fn settle_slot(&mut self, index: usize, actions: &mut Vec<Action>) {
        let (now, failover_after) = (self.now, self.settings.failover_after);
        let wanted = index < self.settings.sessions.max(1);
        let Some(slot) = self.slots.get(index) else { return };

        let flows = slot.serving.and_then(|g| self.session(g)).is_some_and(Session::flows);
        let before = slot.serving;
        if !flows && wanted {
            let well_again = |s: &&mut Session| {
                s.slot == index
                    && s.phase == (Phase::Retired { until: None })
                    && s.flows()
                    && s.expired.is_none()
            };
            if let Some(session) = self.sessions.iter_mut().rev().find(well_again) {
                session.phase = Phase::Ready;
                let generation = session.generation;
                actions.push(Action::Report(Report::ServesAgain(generation)));
                if let Some(slot) = self.slots.get_mut(index) {
                    slot.serving = Some(generation);
                }
                if let Some(before) = before {
                    self.retire(before, actions);
                }
            }
        }

        let serving =
            self.slots.get(index).and_then(|slot| slot.serving).and_then(|g| self.session(g)).cloned();
        let down =
            serving.as_ref().and_then(|s| s.down_since).is_some_and(|since| since + failover_after <= now);
        let expired = serving.as_ref().and_then(|s| s.expired);
        let proven = serving.as_ref().and_then(|s| s.ready_at).is_some_and(|at| at + PROVEN <= now);
        let under_way = self.slots.get(index).is_some_and(|slot| matches!(slot.next, Next::Building(_)));
        let stalled = serving.as_ref().is_some_and(|s| s.stalled_since.is_some())
            && (under_way || self.replaced_for_stalls() < SURPLUS);
        let wants_next = wanted && (serving.is_none() || down || stalled || expired.is_some());

        let Some(slot) = self.slots.get_mut(index) else { return };
        // Of a session that is to be replaced, its age says nothing about what its successor meets.
        if proven && !wants_next {
            slot.backoff.reset();
        }
        match slot.next {
            Next::Building(generation) => {
                let outdated =
                    self.session(generation).is_some_and(|s| s.expired == Some(Reason::Configuration));
                if !wants_next || outdated {
                    self.end(generation, "no longer needed", true, actions);
                }
            }
            Next::Waiting { .. } if !wants_next => slot.next = Next::None,
            _ => {}
        }
        if !wanted && let Some(generation) = self.slots.get(index).and_then(|slot| slot.serving) {
            if let Some(session) = self.session_mut(generation) {
                session.expired = Some(Reason::Configuration);
            }
            if let Some(slot) = self.slots.get_mut(index) {
                slot.serving = None;
            }
            self.retire(generation, actions);
        }
        let due = self.slots.get(index).is_some_and(|slot| match slot.next {
            Next::None => true,
            Next::Waiting { until } => until <= now,
            Next::Building(_) => false,
        });
        if wants_next && due {
            if let Some(serving) = &serving {
                let report = match expired {
                    Some(reason) => Report::Replacing(serving.generation, reason),
                    None if !down => Report::Replacing(serving.generation, Reason::Stalled),
                    None => Report::FailingOver(serving.generation, failover_after),
                };
                actions.push(Action::Report(report));
            }
            self.begin(index, actions);
        }
    }

    fn begin(&mut self, index: usize, actions: &mut Vec<Action>) {
        let generation = Generation(self.next_generation);
        let Some(slot) = self.slots.get_mut(index) else { return };
        self.next_generation += 1;
        slot.next = Next::Building(generation);
        actions.push(Action::Start(generation));
        self.sessions.push(Session::new(generation, index, self.now));
    }
}
