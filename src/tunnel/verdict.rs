//! What follows from what is seen of the destination and of the account.

use std::time::Duration;

use super::health::{Found, Verdict};
use super::machine::{Slot, Tunnel};
use super::rotation::{Lifetime, Rotate};
use super::session::{Phase, Session};
use super::status::Degraded;
use super::{Action, Generation, Reason, Report};

/// The agent resolves the destination's name once in a session's life, so that one that is down is looked for anew by a new
/// session; but only this often, for one that is simply down gains nothing from it.
pub(super) const RESOLVE_EVERY: Duration = Duration::from_secs(300);

/// One of two hosts behind a name may be down: half of all connections are refused, and the others answered. The destination
/// is up again when nobody was refused for so long.
pub(super) const CALM: Duration = Duration::from_secs(5);

impl Tunnel {
    /// A probe has ended. What it found of a session that is interrupted, or no longer serves, says nothing.
    pub(super) fn probed(
        &mut self,
        generation: Generation,
        found: Found,
        random: f64,
        actions: &mut Vec<Action>,
    ) {
        let (now, probing) = (self.now, self.settings.probing.clone());
        let Some(session) = self.session_mut(generation) else { return };
        let found = if session.can_be_probed() { found } else { Found::Nothing };
        let good = found == Found::Good;
        let verdict = session.health.probed(now, found, probing.as_ref(), random);
        if good {
            // However few: it was the path.
            self.path_is_good(generation);
        }
        self.judge(generation, verdict, actions);
    }

    /// Draws the conclusions of a verdict.
    pub(super) fn judge(&mut self, generation: Generation, verdict: Verdict, actions: &mut Vec<Action>) {
        // Nothing new is learned from connections of a session that takes no new ones.
        if !self.session(generation).is_some_and(Session::routable) {
            return;
        }
        match verdict {
            Verdict::None => {}
            Verdict::Fine => self.fine(generation, actions),
            Verdict::DestinationDown(reason) => self.destination_down(generation, reason, actions),
            Verdict::PathDown(reason) => self.path_down(generation, reason, actions),
        }
    }

    /// A session on another path shows what it was: if that one is not answered either, it is the destination. What the
    /// sessions of other slots meet says nothing of this: they may have other targets, and other destinations.
    fn path_down(&mut self, generation: Generation, reason: String, actions: &mut Vec<Action>) {
        let Some(slot) = self.slot_of(generation) else { return };
        if *slot.unanswered.get_or_insert(generation) == generation {
            self.replace(generation, Reason::Unanswered);
            return;
        }
        if let Some(session) = self.session_mut(generation) {
            session.health.falls(reason.clone());
        }
        self.destination_down(generation, reason, actions);
    }

    fn path_is_good(&mut self, generation: Generation) {
        if let Some(slot) = self.slot_of(generation) {
            slot.unanswered = None;
        }
    }

    fn slot_of(&mut self, generation: Generation) -> Option<&mut Slot> {
        let slot = self.session(generation)?.slot;
        self.slots.get_mut(slot)
    }

    fn fine(&mut self, generation: Generation, actions: &mut Vec<Action>) {
        self.path_is_good(generation);
        let serving = |s: &&Session| s.phase == Phase::Ready;
        if self.sessions.iter().filter(serving).any(|session| session.health.is_down()) {
            return;
        }
        let calm = self.refused_at.map(|at| at + CALM).filter(|calm| *calm > self.now);
        if let (Some(calm), Some(_)) = (calm, &self.degraded) {
            self.recovers = Some((calm, generation));
            return;
        }
        self.recovers = None;
        if let Some(degraded) = self.degraded.take() {
            actions.push(Action::Report(Report::Recovered(generation, self.now - degraded.since)));
        }
    }

    /// The time without a refusal may be over.
    pub(super) fn settle_recovery(&mut self, actions: &mut Vec<Action>) {
        if let Some((at, generation)) = self.recovers
            && at <= self.now
        {
            self.recovers = None;
            if self.stopping.is_none() {
                self.fine(generation, actions);
            }
        }
    }

    fn destination_down(&mut self, generation: Generation, reason: String, actions: &mut Vec<Action>) {
        if self.stopping.is_some() {
            return;
        }
        if self.degraded.is_none() {
            self.degraded = Some(Degraded { since: self.now, reason: reason.clone() });
            actions.push(Action::Report(Report::Degraded(generation, reason)));
        }
        let now = self.now;
        let slot = self.slot_of(generation);
        let recently = slot.and_then(|slot| slot.resolved_anew).is_some_and(|at| now < at + RESOLVE_EVERY);
        if !recently {
            self.replace(generation, Reason::Destination);
        }
    }

    /// Has a serving session replaced, for the destination's sake or to see whose fault it is.
    fn replace(&mut self, generation: Generation, reason: Reason) {
        let now = self.now;
        let Some(session) = self.session_mut(generation) else { return };
        if session.phase != Phase::Ready || session.expired.is_some() {
            return;
        }
        session.expired = Some(reason);
        if let Some(slot) = self.slot_of(generation) {
            slot.resolved_anew = Some(now);
        }
    }

    /// Takes in what is new of the account's maximum session duration, and says so where it changes something.
    pub(super) fn learn(&mut self, what: impl FnOnce(&mut Lifetime), actions: &mut Vec<Action>) {
        let before = self.lifetime.limit();
        what(&mut self.lifetime);
        match (before, self.lifetime.limit()) {
            _ if self.settings.rotate != Rotate::Auto => {}
            (before, after) if before == after => {}
            (_, Some(limit)) => actions.push(Action::Report(Report::Limit(limit))),
            (Some(limit), None) => actions.push(Action::Report(Report::NoLimit(limit))),
            (None, None) => {}
        }
    }
}
