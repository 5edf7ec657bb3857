//! The state machine of one tunnel: what it is told, and what follows from it at once. What follows from the state and the
//! time is in [`super::settle`].

use std::time::Duration;

use super::backoff::Backoff;
use super::ending::terminate;
use super::failure::{Class, Failure};
use super::rotation::{Lifetime, Rotate, jitter};
use super::session::{AtService, Phase, Session};
use super::status::Degraded;
use super::{Action, Event, Generation, Reason, Report, SessionEvent, Settings, Time};

/// From launching the plugin to its open port. The handshake takes a second or two; an agent that has none to give is
/// never heard of.
pub(super) const OPENING: Duration = Duration::from_secs(20);
/// A session that served this long has proven that the way is good: the next failure is a first one.
pub(super) const PROVEN: Duration = Duration::from_secs(60);
/// Stopping the plugin and terminating the session, after the connections' grace. The plugin is stopped politely
/// within 5 s.
pub(super) const ENDING: Duration = Duration::from_secs(7);
/// The daemon's stop takes no longer than this, whatever hangs.
pub(super) const STOPPING: Duration = Duration::from_secs(14);
/// The longest grace of a daemon's stop (`stop_grace`). A tunnel that is removed may have more.
const LONGEST_GRACE: Duration = Duration::from_secs(10);
/// Replaced sessions kept for their open connections without a time limit, in a pool as many as it has sessions. Each costs
/// a plugin of 20 MB; one more, and the oldest gets `drain`. No more than this are started because others are stalled.
pub(super) const SURPLUS: usize = 3;
/// A session that has been under way for less than this is worth waiting for, where there is only a stalled one. It takes
/// 1 to 3 s; clients wait for 30 s (`hold`).
pub(super) const SOON: Duration = Duration::from_secs(10);
/// One tunnel's decisions. See the [module](super) for the rules.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tunnel {
    pub(super) settings: Settings,
    pub(super) slots: Vec<Slot>,
    pub(super) sessions: Vec<Session>,
    pub(super) stopping: Option<Stopping>,
    pub(super) next_generation: u64,
    /// The sessions last published with [`Action::Route`].
    pub(super) routes: Vec<Generation>,
    /// Clients are held because somebody has asked for that.
    pub(super) drained: bool,
    pub(super) lifetime: Lifetime,
    pub(super) degraded: Option<Degraded>,
    /// When a serving session's agent last could not reach the destination for a connection.
    pub(super) refused_at: Option<Time>,
    /// The destination has answered in this session, and counts as up from then on if it refuses nobody until then.
    pub(super) recovers: Option<(Time, Generation)>,
    /// The latest time heard of.
    pub(super) now: Time,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Slot {
    /// Has been Ready and takes this slot's connections, unless it is interrupted.
    pub serving: Option<Generation>,
    pub next: Next,
    pub backoff: Backoff,
    /// The last failure, until a session serves.
    pub failure: Option<Failure>,
    /// When a session was last begun for the destination's sake.
    pub resolved_anew: Option<Time>,
    /// A session that was to be replaced because its probes were not answered, if no other one of this slot has had an
    /// answer since.
    pub unanswered: Option<Generation>,
    /// When sessions that had just begun to serve were lost last, the latest at the end.
    pub short_lives: Vec<Time>,
}

/// A slot's successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Next {
    None,
    Waiting { until: Time },
    Building(Generation),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Stopping {
    pub grace_until: Time,
    pub deadline: Time,
    /// [`Action::Stopped`] was given.
    pub done: bool,
}

impl Slot {
    pub(super) fn new() -> Self {
        Self {
            serving: None,
            next: Next::None,
            backoff: Backoff::default(),
            failure: None,
            resolved_anew: None,
            unanswered: None,
            short_lives: Vec::new(),
        }
    }
}

impl Tunnel {
    /// A tunnel that has begun nothing yet; the first [`Event::Tick`] sets it going.
    pub fn new(settings: Settings) -> Self {
        Self {
            slots: vec![Slot::new(); settings.sessions.max(1)],
            settings,
            sessions: Vec::new(),
            stopping: None,
            next_generation: 1,
            routes: Vec::new(),
            drained: false,
            lifetime: Lifetime::default(),
            degraded: None,
            refused_at: None,
            recovers: None,
            now: Time::ZERO,
        }
    }

    /// Takes in what happened at `now` and says what to do. `random`, in 0..1, is used for at most one delay of each kind.
    pub fn handle(&mut self, now: Time, event: Event, random: f64) -> Vec<Action> {
        self.now = self.now.max(now);
        let mut actions = Vec::new();
        match event {
            Event::Session(generation, event) => {
                if self.session(generation).is_none() {
                    return actions;
                }
                self.session_event(generation, event, random, &mut actions);
            }
            Event::Configure { settings, renew } => self.configure(settings, renew),
            Event::Command(command) => self.command(command, &mut actions),
            Event::Limit(limit) => {
                self.learn(|lifetime| lifetime.told(limit), &mut actions);
            }
            Event::Stop { grace } => {
                let total = grace + ENDING;
                self.stop(grace, if grace > LONGEST_GRACE { total } else { total.min(STOPPING) });
            }
            Event::StopNow => self.stop(Duration::ZERO, Duration::ZERO),
            Event::TargetOnline => {
                let not_connected = |failure: &Failure| failure.class == Class::TargetNotConnected;
                for slot in &mut self.slots {
                    if matches!(slot.next, Next::Waiting { .. })
                        && slot.failure.as_ref().is_some_and(not_connected)
                    {
                        slot.next = Next::Waiting { until: self.now };
                    }
                }
            }
            Event::Tick => {}
        }
        self.settle(random, &mut actions);
        actions
    }

    /// When [`Event::Tick`] is due, if nothing else happens before.
    pub fn next_deadline(&self) -> Option<Time> {
        let sessions = self.sessions.iter().flat_map(|session| {
            let resume_for = session.down_since.map(|since| since + self.settings.resume_for);
            let serving = session.phase == Phase::Ready;
            let failover =
                session.down_since.filter(|_| serving).map(|since| since + self.settings.failover_after);
            let ready_at = session.ready_at.filter(|_| serving);
            let proven = ready_at.map(|at| at + PROVEN);
            let rotate = ready_at.and_then(|_| self.rotates_at(session));
            let outlived = session.proves_life_at(self.lifetime.outlived_after());
            let probing = self.settings.probing.is_some() && session.can_be_probed();
            let probe = if probing { session.health.probe_at() } else { None };
            let phase = match session.phase {
                Phase::Opening { deadline } => Some(deadline),
                Phase::Retired { until } => until,
                _ => None,
            };
            let terminate = match session.at_service {
                AtService::TerminateAt { at, .. } => Some(at),
                _ => None,
            };
            [resume_for, failover, proven, rotate, outlived, probe, phase, terminate]
        });
        let slots = self.slots.iter().map(|slot| match slot.next {
            Next::Waiting { until } => Some(until),
            _ => None,
        });
        let any_stalled = self.sessions.iter().any(|session| session.stalled_since.is_some());
        let soon = self.slots.iter().filter_map(|slot| match slot.next {
            Next::Building(generation) if any_stalled => {
                Some(self.session(generation).map(|session| session.began + SOON))
            }
            _ => None,
        });
        let stopping = self.stopping.map(|stopping| [stopping.grace_until, stopping.deadline]);
        let stopping = stopping.into_iter().flatten().map(Some);
        let ask = self.asks_limit().then_some(self.lifetime.ask_at);
        let recovers = self.recovers.map(|(at, _)| at);
        let all = sessions.chain(slots).chain(soon).chain(stopping).chain([ask, recovers]);
        all.flatten().filter(|at| *at > self.now).min()
    }

    pub(super) fn session(&self, generation: Generation) -> Option<&Session> {
        self.sessions.iter().find(|session| session.generation == generation)
    }

    pub(super) fn session_mut(&mut self, generation: Generation) -> Option<&mut Session> {
        self.sessions.iter_mut().find(|session| session.generation == generation)
    }

    /// How many sessions there are, or are being built, only because others are stalled.
    pub(super) fn replaced_for_stalls(&self) -> usize {
        let is_stalled = |s: &Session| s.stalled_since.is_some();
        let retired = |s: &&Session| matches!(s.phase, Phase::Retired { .. }) && is_stalled(s);
        let building = |slot: &&Slot| {
            matches!(slot.next, Next::Building(_))
                && slot.serving.and_then(|g| self.session(g)).is_some_and(is_stalled)
        };
        self.sessions.iter().filter(retired).count() + self.slots.iter().filter(building).count()
    }

    fn session_event(
        &mut self,
        generation: Generation,
        event: SessionEvent,
        random: f64,
        actions: &mut Vec<Action>,
    ) {
        let now = self.now;
        let Some(session) = self.session_mut(generation) else { return };
        match event {
            SessionEvent::Started => {
                if session.at_service == AtService::Unknown {
                    session.at_service = AtService::Live;
                    if session.phase == Phase::Starting {
                        session.phase = Phase::Opening { deadline: now + OPENING };
                        session.plugin = true;
                        actions.push(Action::Launch(generation));
                    } else {
                        // It was given up while StartSession was under way.
                        terminate(session, actions);
                    }
                }
            }
            SessionEvent::StartFailed(failure) => {
                if session.at_service == AtService::Unknown {
                    session.at_service = AtService::Over;
                    self.fail(generation, failure, random, actions);
                }
            }
            SessionEvent::LaunchFailed(failure) => {
                session.plugin = false;
                self.fail(generation, failure, random, actions);
            }
            SessionEvent::PluginExited { words, killed } => {
                session.plugin = false;
                if !killed {
                    self.note_short_life(generation);
                }
                self.lose(generation, &format!("the plugin exited: {words}"), random, actions);
            }
            SessionEvent::PluginHung { reason } => {
                if session.plugin && session.phase != Phase::Ending {
                    actions.push(Action::KillPlugin(generation));
                    self.note_short_life(generation);
                    self.lose(generation, &format!("the plugin hangs: {reason}"), random, actions);
                }
            }
            SessionEvent::Kind(kind) => {
                if kind != "Port" {
                    let text = format!(
                        "the document starts a session of the kind {kind}, not Port: use a document for port forwarding"
                    );
                    self.fail(generation, Failure::new(Class::NeedsChange, text), random, actions);
                }
            }
            SessionEvent::Opened => {
                if matches!(session.phase, Phase::Opening { .. }) && session.plugin {
                    session.jitter = jitter(random);
                    self.ready(generation, actions);
                }
            }
            SessionEvent::NotOpened(failure) => {
                if matches!(session.phase, Phase::Opening { .. }) {
                    match failure.class {
                        Class::NeedsChange | Class::Access => {
                            self.fail(generation, failure, random, actions);
                        }
                        // It may pass before the deadline has.
                        _ => session.obstacle = Some(failure),
                    }
                }
            }
            SessionEvent::Interrupted { cause, reason, lasted } => {
                if session.phase != Phase::Ending {
                    session.down_since.get_or_insert(now.saturating_sub(lasted));
                    actions.push(Action::Report(Report::Interrupted(generation, cause, reason)));
                }
            }
            SessionEvent::ChannelResumed { attempts } => {
                if let Some(since) = session.down_since.take() {
                    session.health.forget();
                    actions.push(Action::Report(Report::Resumed(generation, now - since, attempts)));
                }
            }
            // It is terminated all the same: that costs nothing if it is gone, and leaves none behind if it is not.
            SessionEvent::Ended { reason, declared } => {
                let began = session.began;
                // One that is being ended here says nothing of the service.
                if declared && session.ready_at.is_some() && session.phase != Phase::Ending {
                    self.learn(|lifetime| lifetime.ended(now, began, &reason), actions);
                }
                self.note_short_life(generation);
                self.lose(generation, &reason, random, actions);
            }
            SessionEvent::DestinationFailed => {
                let verdict = session.health.refused(now);
                if session.routable() {
                    (self.refused_at, self.recovers) = (Some(now), None);
                }
                self.judge(generation, verdict, actions);
            }
            SessionEvent::Answered => {
                let verdict = session.health.answered();
                self.judge(generation, verdict, actions);
            }
            SessionEvent::Probed(found) => self.probed(generation, found, random, actions),
            SessionEvent::ForeignConnection => session.expired = Some(Reason::ForeignConnection),
            // One whose client does not read acknowledges nothing either.
            SessionEvent::Unheeded if session.stalled_since.is_none() => {
                session.expired.get_or_insert(Reason::Unheeded);
            }
            SessionEvent::Unheeded => {}
            SessionEvent::Connections(open) => session.open = open,
            SessionEvent::Stalled => {
                let serves = matches!(session.phase, Phase::Ready | Phase::Retired { .. });
                if serves && session.stalled_since.is_none() {
                    session.stalled_since = Some(now);
                    let open = session.open;
                    let replaceable = self.replaced_for_stalls() < SURPLUS;
                    actions.push(Action::Report(Report::Stalled(generation, open, replaceable)));
                }
            }
            SessionEvent::Flows => {
                if let Some(since) = session.stalled_since.take()
                    && session.phase != Phase::Ending
                {
                    actions.push(Action::Report(Report::Flows(generation, now - since)));
                }
            }
            SessionEvent::Terminated(result) => self.terminated(generation, result, actions),
        }
    }

    /// The successor of its slot is up: it serves, and the one before it retires.
    fn ready(&mut self, generation: Generation, actions: &mut Vec<Action>) {
        let now = self.now;
        let Some(session) = self.session_mut(generation) else { return };
        session.phase = Phase::Ready;
        session.obstacle = None;
        session.ready_at = Some(now);
        let slot = session.slot;
        actions.push(Action::Report(Report::Ready(generation, now - session.began)));
        let Some(slot) = self.slots.get_mut(slot) else { return };
        slot.next = Next::None;
        slot.failure = None;
        if let Some(before) = slot.serving.replace(generation) {
            // That it has a new session does not make the destination any better.
            let same = |s: &&Session| s.expired != Some(Reason::Configuration);
            let down = self.session(before).filter(same).is_some_and(|s| s.health.is_down());
            if let Some(session) = self.session_mut(generation) {
                session.health.begin_as(down);
            }
            self.retire(before, actions);
        }
    }

    /// Takes a serving session out of service, for its open connections' sake.
    pub(super) fn retire(&mut self, generation: Generation, actions: &mut Vec<Action>) {
        let drained = self.now + self.settings.drain;
        let for_the_limit = self.settings.rotate == Rotate::Auto;
        let Some(session) = self.session_mut(generation) else { return };
        let until = match session.expired {
            None => None,
            // The service ends its connections when their time is over; if it does not, there was no limit.
            Some(Reason::Age) if for_the_limit => None,
            // That new ones are refused, or probes unanswered, says nothing of those that are open.
            Some(Reason::Destination | Reason::Unanswered) => None,
            Some(_) => Some(drained),
        };
        session.phase = Phase::Retired { until };
        actions.push(Action::Report(Report::Retired(generation, session.open)));
    }

    fn configure(&mut self, settings: Settings, renew: bool) {
        self.settings = settings;
        let wanted = self.settings.sessions.max(1);
        while self.slots.len() < wanted {
            self.slots.push(Slot::new());
        }
        if renew {
            for session in &mut self.sessions {
                session.expired = Some(Reason::Configuration);
            }
            // It may be another destination.
            (self.degraded, self.refused_at, self.recovers) = (None, None, None);
            for slot in &mut self.slots {
                // What was wrong may have been put right.
                slot.unanswered = None;
                slot.short_lives.clear();
                slot.backoff.reset();
                if matches!(slot.next, Next::Waiting { .. }) {
                    slot.next = Next::None;
                }
            }
        }
    }

    /// Stops, or makes shorter work of a stop that is under way.
    fn stop(&mut self, grace: Duration, total: Duration) {
        let (grace_until, deadline) = (self.now + grace, self.now + total);
        let stopping = self.stopping.get_or_insert(Stopping { grace_until, deadline, done: false });
        stopping.grace_until = stopping.grace_until.min(grace_until);
        stopping.deadline = stopping.deadline.min(deadline);
    }
}
