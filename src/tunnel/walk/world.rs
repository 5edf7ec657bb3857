//! A small model of the world around a tunnel: it performs the actions, and checks each of them.

use std::collections::BTreeMap;

use super::*;
use crate::tunnel::failure::{Class, Failure};
use crate::tunnel::health::Found;
use crate::tunnel::machine::{Next, SURPLUS};
use crate::tunnel::session::{AtService, Phase, Session};
use crate::tunnel::verdict::CALM;
use crate::tunnel::{Time, Tunnel};

/// What is really there for one generation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Real {
    pub(super) start_pending: bool,
    at_service: bool,
    pub(super) plugin: bool,
    launched: bool,
    doomed: bool,
    pub(super) open: bool,
    up: bool,
    pub(super) terminate_pending: bool,
    pub(super) probing: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) tunnel: Tunnel,
    pub(super) now: Time,
    pub(super) real: BTreeMap<u64, Real>,
    pub(super) recorded: usize,
    pub(super) stopped: bool,
    /// The account's limit was asked for.
    pub(super) asking: bool,
}

impl World {
    pub(super) fn new(settings: Settings) -> Self {
        let tunnel = Tunnel::new(settings);
        let mut world = Self {
            tunnel,
            now: Time::ZERO,
            real: BTreeMap::new(),
            recorded: 0,
            stopped: false,
            asking: false,
        };
        world.feed(Event::Tick, 0.5);
        world
    }

    /// Lets the tunnel handle an event, performs its actions, and checks everything that must always hold.
    pub(super) fn feed(&mut self, event: Event, random: f64) -> Vec<Action> {
        let actions = self.tunnel.handle(self.now, event, random);
        for action in &actions {
            self.perform(action);
        }
        self.check();
        actions
    }

    pub(super) fn about(&mut self, generation: u64, event: SessionEvent) -> Vec<Action> {
        self.happens(generation, &event);
        self.feed(Event::Session(Generation(generation), event), 0.5)
    }

    /// The world's side of an event.
    pub(super) fn happens(&mut self, generation: u64, event: &SessionEvent) {
        let Some(real) = self.real.get_mut(&generation) else { return };
        match event {
            SessionEvent::Started => (real.start_pending, real.at_service) = (false, true),
            SessionEvent::StartFailed(_) => real.start_pending = false,
            SessionEvent::LaunchFailed(_) | SessionEvent::PluginExited { .. } => {
                (real.plugin, real.open) = (false, false);
            }
            SessionEvent::Opened => real.open = true,
            SessionEvent::Interrupted { .. } => real.up = false,
            SessionEvent::ChannelResumed { .. } => real.up = true,
            SessionEvent::Ended { declared, .. } => real.at_service &= !declared,
            SessionEvent::Probed(_) => real.probing = false,
            SessionEvent::Terminated(result) => {
                real.terminate_pending = false;
                real.at_service &= result.is_err();
            }
            _ => {}
        }
    }

    fn perform(&mut self, action: &Action) {
        assert!(!self.stopped, "an action after Stopped: {action:?}");
        match action {
            Action::Start(generation) => {
                let new = Real { start_pending: true, up: true, ..Real::default() };
                assert!(self.real.insert(generation.0, new).is_none(), "{generation:?} was begun twice");
            }
            Action::Launch(generation) => {
                let real = self.real.get_mut(&generation.0).unwrap();
                assert!(real.at_service && !real.launched, "at most one plugin per generation: {real:?}");
                (real.plugin, real.launched) = (true, true);
            }
            Action::Route(routes) => {
                for generation in routes {
                    let real = &self.real[&generation.0];
                    assert!(real.plugin && real.open && !real.doomed, "a route to nowhere: {real:?}");
                }
            }
            Action::StopPlugin(generation) => self.real.get_mut(&generation.0).unwrap().doomed = true,
            Action::KillPlugin(generation) => {
                let real = self.real.get_mut(&generation.0).unwrap();
                assert!(real.launched);
                real.doomed = true;
            }
            Action::Terminate(generation) => {
                let real = self.real.get_mut(&generation.0).unwrap();
                assert!(!real.terminate_pending, "terminated twice at once");
                real.terminate_pending = true;
            }
            Action::Forget(generation) => {
                let real = self.real.remove(&generation.0).unwrap();
                assert!(!real.start_pending && !real.at_service, "forgotten but alive: {real:?}");
                assert!(!real.plugin || real.doomed, "forgotten with its plugin: {real:?}");
            }
            Action::LeaveRecorded(generation) => {
                let real = self.real.remove(&generation.0).unwrap();
                assert!(!real.plugin || real.doomed, "left with its plugin: {real:?}");
                self.recorded += 1;
            }
            Action::Probe(generation) => {
                let real = self.real.get_mut(&generation.0).unwrap();
                assert!(real.open && !real.doomed && !real.probing, "one probe at a time: {real:?}");
                real.probing = true;
            }
            Action::AskLimit => self.asking = true,
            Action::Cut(_) | Action::Report(_) => {}
            Action::Stopped => {
                assert!(self.real.is_empty(), "stopped with {:?}", self.real);
                self.stopped = true;
            }
        }
    }

    fn check(&self) {
        let tunnel = &self.tunnel;
        for session in &tunnel.sessions {
            let real = &self.real[&session.generation.0];
            match session.phase {
                Phase::Starting => assert!(real.start_pending && !real.launched),
                Phase::Opening { .. } => assert!(real.plugin && real.at_service),
                Phase::Ready | Phase::Retired { .. } => {
                    assert!(real.plugin && real.open, "{session:?} {real:?}")
                }
                Phase::Ending => assert!(!real.plugin || real.doomed, "{session:?} {real:?}"),
            }
            assert_eq!(session.plugin, real.plugin);
            if real.at_service {
                let known = matches!(
                    session.at_service,
                    AtService::Live | AtService::Terminating { .. } | AtService::TerminateAt { .. }
                );
                assert!(known, "a session at the service that is taken for over: {session:?}");
            }
            let surplus =
                tunnel.sessions.iter().filter(|s| s.phase == Phase::Retired { until: None }).count();
            assert!(surplus <= SURPLUS.max(tunnel.settings.sessions) + tunnel.slots.len());
        }
        if tunnel.stopping.is_none() {
            // Whatever could carry connections is used.
            let usable = tunnel.sessions.iter().any(|s| {
                matches!(s.phase, Phase::Ready | Phase::Retired { until: None })
                    && s.flows()
                    && s.expired.is_none()
            });
            let state = if tunnel.drained { State::Draining } else { State::Up };
            assert!(!usable || tunnel.status().state == state, "{tunnel:#?}");
            assert!(!tunnel.drained || tunnel.routes.is_empty(), "drained, and yet new connections");
            // A stalled session is used only where there is no other.
            let stalled = |g: &Generation| !tunnel.session(*g).unwrap().flows();
            let another = tunnel.sessions.iter().any(|s| s.routable() && s.flows());
            assert!(!another || !tunnel.routes.iter().any(stalled), "{tunnel:#?}");
            // Nobody waits without an end in sight.
            let busy =
                tunnel.sessions.iter().any(|s| matches!(s.phase, Phase::Starting | Phase::Opening { .. }));
            let stalled = tunnel.sessions.iter().any(|s| s.routable())
                && (tunnel.drained || tunnel.status().state == State::Up);
            assert!(usable || stalled || busy || tunnel.next_deadline().is_some(), "stuck: {tunnel:#?}");
        }
        // What nobody uses is kept only to test a limit, and one is enough.
        let unused = |s: &&Session| matches!(s.phase, Phase::Retired { .. }) && s.open == 0;
        let unused: Vec<_> = tunnel.sessions.iter().filter(unused).collect();
        let tests = |s: &&Session| tunnel.tests_limit() == Some(s.generation);
        assert!(unused.len() <= 1 && unused.iter().all(tests), "{unused:?}");
        if let Some(at) = tunnel.next_deadline() {
            assert!(at > self.now, "a deadline in the past spins the driver");
        }
    }

    /// Everything that can happen next.
    pub(super) fn events(&self) -> Vec<(Option<u64>, SessionEvent)> {
        let mut events = Vec::new();
        for (generation, real) in &self.real {
            let mut push = |event| events.push((Some(*generation), event));
            if real.start_pending {
                push(SessionEvent::Started);
                push(SessionEvent::StartFailed(Failure::new(Class::Network, "reset")));
                push(SessionEvent::StartFailed(Failure::new(Class::NeedsChange, "bad document")));
                push(SessionEvent::StartFailed(Failure::new(Class::TargetNotConnected, "offline")));
            }
            if real.plugin {
                push(SessionEvent::PluginExited { words: "gone".into(), killed: false });
                push(SessionEvent::PluginExited { words: "killed by signal 9".into(), killed: true });
                push(SessionEvent::PluginHung { reason: "silent".into() });
                push(SessionEvent::LaunchFailed(Failure::new(Class::NeedsChange, "no plugin")));
                push(SessionEvent::Kind("Standard_Stream".into()));
                if !real.doomed {
                    push(SessionEvent::Opened);
                }
                push(SessionEvent::NotOpened(Failure::new(Class::Network, "500")));
                push(SessionEvent::NotOpened(Failure::new(Class::Access, "403")));
                let (cause, lasted) = (InterruptionCause::Closed, Duration::ZERO);
                push(SessionEvent::Interrupted { cause, reason: "1000 Bye".into(), lasted });
                let (cause, lasted) = (InterruptionCause::Gap, SECOND * 2);
                push(SessionEvent::Interrupted { cause, reason: "40 messages".into(), lasted });
                push(SessionEvent::ChannelResumed { attempts: 1 });
                push(SessionEvent::DestinationFailed);
                push(SessionEvent::Answered);
                push(SessionEvent::Connections(1));
                push(SessionEvent::Connections(0));
                if real.open && !real.doomed {
                    push(SessionEvent::Stalled);
                    push(SessionEvent::Flows);
                }
            }
            if real.probing {
                push(SessionEvent::Probed(Found::Good));
                push(SessionEvent::Probed(Found::Bad("refused".into())));
                push(SessionEvent::Probed(Found::Unanswered("no answer".into())));
                push(SessionEvent::Probed(Found::Nothing));
            }
            if real.at_service {
                push(ended());
                push(SessionEvent::Ended { reason: "maximum session duration".into(), declared: true });
                push(SessionEvent::Ended { reason: "no token".into(), declared: false });
            }
            if real.terminate_pending {
                push(SessionEvent::Terminated(Ok(())));
                push(SessionEvent::Terminated(Err(Failure::new(Class::Network, "reset"))));
            }
        }
        events
    }

    /// The state without what cannot matter: absolute times become distances, generations ranks.
    pub(super) fn fingerprint(&self) -> String {
        let ranks: BTreeMap<u64, usize> = self.real.keys().enumerate().map(|(rank, g)| (*g, rank)).collect();
        let rank = |g: &Generation| ranks.get(&g.0).copied();
        let ahead = |at: Time| at.saturating_sub(self.now).as_millis();
        let since = |at: Time| self.now.saturating_sub(at).min(700 * SECOND).as_millis();
        let sessions: Vec<_> = self
            .tunnel
            .sessions
            .iter()
            .map(|s| {
                let phase = match s.phase {
                    Phase::Opening { deadline } => (1, ahead(deadline)),
                    Phase::Retired { until } => (2, until.map_or(0, ahead)),
                    Phase::Starting => (3, 0),
                    Phase::Ready => (4, 0),
                    Phase::Ending => (5, 0),
                };
                let service = match s.at_service {
                    AtService::TerminateAt { at, attempts } => (1, ahead(at), attempts),
                    AtService::Terminating { attempts } => (2, 0, attempts),
                    AtService::Unknown => (3, 0, 0),
                    AtService::Live => (4, 0, 0),
                    AtService::Over => (5, 0, 0),
                };
                let ready = s.ready_at.map(since).map(|age| age.min(61_000));
                (
                    rank(&s.generation),
                    s.slot,
                    phase,
                    service,
                    ready,
                    s.down_since.map(since),
                    s.stalled_since.is_some(),
                    s.open,
                    s.expired,
                    format!("{:?} {:?}", s.health.probe_at().map(ahead), s.health.row()),
                )
            })
            .collect();
        let slots: Vec<_> = self
            .tunnel
            .slots
            .iter()
            .map(|slot| {
                let next = match slot.next {
                    Next::None => (0, 0, None),
                    Next::Waiting { until } => (1, ahead(until), None),
                    Next::Building(g) => (2, 0, rank(&g)),
                };
                (
                    slot.serving.as_ref().and_then(rank),
                    next,
                    format!("{:?}", slot.backoff),
                    slot.resolved_anew.map(since),
                    slot.unanswered.map(|g| rank(&g)),
                    slot.short_lives.iter().map(|at| since(*at)).collect::<Vec<_>>(),
                )
            })
            .collect();
        let stopping = self.tunnel.stopping.map(|s| (ahead(s.grace_until), ahead(s.deadline), s.done));
        format!(
            "{sessions:?} {slots:?} {stopping:?} {} {:?} {:?} {:?} {:?} {:?}",
            self.tunnel.drained,
            self.tunnel.degraded.is_some(),
            self.tunnel.refused_at.map(|at| since(at).min(CALM.as_millis())),
            self.tunnel.recovers.map(|(at, g)| (ahead(at), rank(&g))),
            self.real.values().collect::<Vec<_>>(),
            self.stopped
        )
    }

    pub(super) fn advance_to_deadline(&mut self) -> Vec<Action> {
        if let Some(at) = self.tunnel.next_deadline() {
            self.now = at;
        }
        self.feed(Event::Tick, 0.5)
    }

    /// From here on the world does what it is asked to do.
    pub(super) fn obliges(&mut self, mut until: impl FnMut(&Self) -> bool) -> bool {
        for _ in 0..200 {
            if until(self) {
                return true;
            }
            let next = self.real.iter().find_map(|(generation, real)| {
                let event = if real.start_pending {
                    SessionEvent::Started
                } else if real.doomed && real.plugin {
                    SessionEvent::PluginExited { words: "stopped".into(), killed: false }
                } else if real.terminate_pending {
                    SessionEvent::Terminated(Ok(()))
                } else if real.plugin && !real.open {
                    SessionEvent::Opened
                } else if real.probing {
                    SessionEvent::Probed(Found::Good)
                } else {
                    return None;
                };
                Some((*generation, event))
            });
            let stalled = self.tunnel.sessions.iter().find(|s| s.stalled_since.is_some());
            match (next, stalled) {
                (Some((generation, event)), _) => drop(self.about(generation, event)),
                (None, Some(session)) => drop(self.about(session.generation.0, SessionEvent::Flows)),
                (None, None) => drop(self.advance_to_deadline()),
            }
        }
        until(self)
    }
}
