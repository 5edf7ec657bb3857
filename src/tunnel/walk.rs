//! Tests of the core: a breadth-first walk over states × events, long random walks, and the rules one by one. A small
//! model of the world performs the actions and checks each of them.

mod rules;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Duration;

use proptest::prelude::*;

use super::command::Command;
use super::failure::{Class, Failure};
use super::health::{Found, Probing};
use super::machine::{STOPPING, SURPLUS};
use super::rotation::{Limit, Rotate};
use super::session::{AtService, Phase, Session};
use super::status::State;
use super::verdict::CALM;
use super::{Action, Event, Generation, SessionEvent, Settings, Time, Tunnel};

const SECOND: Duration = Duration::from_secs(1);
const STOP: Event = Event::Stop { grace: Duration::from_secs(5) };

const PROBING: Probing = Probing { interval: Duration::from_secs(30), rise: 2, fall: 2 };

fn settings() -> Settings {
    Settings {
        sessions: 1,
        failover_after: 5 * SECOND,
        resume_for: 600 * SECOND,
        drain: 600 * SECOND,
        rotate: Rotate::Off,
        probing: None,
    }
}

/// The service says so itself.
fn ended() -> SessionEvent {
    SessionEvent::Ended { reason: "terminated".into(), declared: true }
}

/// What is really there for one generation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Real {
    start_pending: bool,
    at_service: bool,
    plugin: bool,
    launched: bool,
    doomed: bool,
    open: bool,
    up: bool,
    terminate_pending: bool,
    probing: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    tunnel: Tunnel,
    now: Time,
    real: BTreeMap<u64, Real>,
    recorded: usize,
    stopped: bool,
    /// The account's limit was asked for.
    asking: bool,
}

impl World {
    fn new(settings: Settings) -> Self {
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
    fn feed(&mut self, event: Event, random: f64) -> Vec<Action> {
        let actions = self.tunnel.handle(self.now, event, random);
        for action in &actions {
            self.perform(action);
        }
        self.check();
        actions
    }

    fn about(&mut self, generation: u64, event: SessionEvent) -> Vec<Action> {
        self.happens(generation, &event);
        self.feed(Event::Session(Generation(generation), event), 0.5)
    }

    /// The world's side of an event.
    fn happens(&mut self, generation: u64, event: &SessionEvent) {
        let Some(real) = self.real.get_mut(&generation) else { return };
        match event {
            SessionEvent::Started => (real.start_pending, real.at_service) = (false, true),
            SessionEvent::StartFailed(_) => real.start_pending = false,
            SessionEvent::LaunchFailed(_) | SessionEvent::PluginExited { .. } => {
                (real.plugin, real.open) = (false, false);
            }
            SessionEvent::Opened => real.open = true,
            SessionEvent::ChannelClosed { .. } => real.up = false,
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
    fn events(&self) -> Vec<(Option<u64>, SessionEvent)> {
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
                push(SessionEvent::ChannelClosed { reason: "1000 Bye".into() });
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
    fn fingerprint(&self) -> String {
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
                    super::machine::Next::None => (0, 0, None),
                    super::machine::Next::Waiting { until } => (1, ahead(until), None),
                    super::machine::Next::Building(g) => (2, 0, rank(&g)),
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

    fn advance_to_deadline(&mut self) -> Vec<Action> {
        if let Some(at) = self.tunnel.next_deadline() {
            self.now = at;
        }
        self.feed(Event::Tick, 0.5)
    }

    /// From here on the world does what it is asked to do.
    fn obliges(&mut self, mut until: impl FnMut(&Self) -> bool) -> bool {
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

#[test]
fn every_event_in_every_state() {
    walk(settings(), 40_000);
}

#[test]
fn every_event_in_every_state_with_probes() {
    walk(Settings { probing: Some(PROBING), ..settings() }, 15_000);
}

/// Every state that is reached, the nearest first, each with every event that can happen in it, and with stale ones.
fn walk(settings: Settings, states: usize) {
    let mut seen = HashSet::new();
    let first = World::new(settings.clone());
    seen.insert(first.fingerprint());
    let mut queue = VecDeque::from([first]);
    let (mut steps, mut expanded) = (0, 0);
    while let Some(world) = queue.pop_front() {
        expanded += 1;
        let mut nexts = Vec::new();
        for (generation, event) in world.events() {
            let mut next = world.clone();
            next.about(generation.unwrap(), event.clone());
            nexts.push(next);
            // The same of a session that was long forgotten, or was never begun.
            for stale in [0, 9_999] {
                let mut next = world.clone();
                let actions = next.feed(Event::Session(Generation(stale), event.clone()), 0.5);
                assert!(actions.is_empty());
                assert_eq!(next.tunnel, world.tunnel, "a stale {event:?} changed something");
            }
        }
        let mut later = world.clone();
        later.advance_to_deadline();
        nexts.push(later);
        for event in [
            STOP,
            Event::StopNow,
            Event::TargetOnline,
            Event::Configure { settings: settings.clone(), renew: true },
            Event::Configure { settings: Settings { sessions: 2, ..settings.clone() }, renew: false },
            Event::Command(Command::Rotate),
            Event::Command(Command::Restart),
            Event::Command(Command::Drain),
            Event::Command(Command::Resume),
        ] {
            let mut next = world.clone();
            next.feed(event, 0.5);
            nexts.push(next);
        }
        steps += nexts.len();

        // From every state a stop is a stop, in time, even if the world does nothing any more …
        let mut stopped = world.clone();
        let began = stopped.now;
        stopped.feed(STOP, 0.5);
        while !stopped.stopped {
            let before = stopped.now;
            stopped.advance_to_deadline();
            assert!(stopped.stopped || stopped.now > before, "stop is stuck: {:#?}", stopped.tunnel);
        }
        let already = world.tunnel.stopping.is_some();
        assert!(already || stopped.now - began <= STOPPING);
        // … and in a world that does what it is asked to do it leaves nothing behind …
        if !already {
            let mut stopped = world.clone();
            stopped.feed(STOP, 0.5);
            assert!(stopped.obliges(|w| w.stopped), "{:#?}", stopped.tunnel);
            assert_eq!(stopped.recorded, world.recorded, "not terminated: {:#?}", world.tunnel);
            // … where the tunnel, if it is not stopped, comes up.
            let mut up = world.clone();
            up.feed(Event::Command(Command::Resume), 0.5);
            assert!(up.obliges(|w| w.tunnel.status().state == State::Up), "never up again: {:#?}", up.tunnel);
        }

        for next in nexts {
            if seen.len() < states && seen.insert(next.fingerprint()) {
                queue.push_back(next);
            }
        }
    }
    println!("{expanded} states, {steps} steps");
    assert!(expanded >= states, "the walk ended early: {expanded}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    /// Long random lives, with jitter, several sessions and rotation: the model's checks hold, and the end is clean.
    #[test]
    fn a_long_life(
        sessions in 1usize..4,
        rotate in proptest::option::of(30u64..300),
        auto in any::<bool>(),
        probing in any::<bool>(),
        steps in proptest::collection::vec((any::<prop::sample::Index>(), 0.0..1.0f64, 0u64..4000), 1..400),
    ) {
        let limit = rotate.map(Duration::from_secs);
        let probing = probing.then_some(PROBING);
        let rotate = if auto { Rotate::Auto } else { limit.map_or(Rotate::Off, Rotate::At) };
        let settings = Settings { sessions, rotate, probing, ..settings() };
        let mut world = World::new(settings);
        for (choice, random, pause) in steps {
            let events = world.events();
            let commands = [Command::Rotate, Command::Restart, Command::Drain, Command::Resume];
            let choice = choice.index(events.len() + commands.len() + 2);
            if let Some(command) = choice.checked_sub(events.len()).and_then(|n| commands.get(n)) {
                world.feed(Event::Command(*command), random);
                continue;
            }
            match events.get(choice) {
                Some((Some(generation), event)) => {
                    world.happens(*generation, event);
                    world.now += Duration::from_millis(pause);
                    world.feed(Event::Session(Generation(*generation), event.clone()), random);
                }
                _ if std::mem::take(&mut world.asking) => {
                    let limit = match limit {
                        Some(limit) => Limit::At(limit),
                        None if random < 0.3 => Limit::None,
                        None => Limit::Unknown,
                    };
                    world.feed(Event::Limit(limit), random);
                }
                _ => drop(world.advance_to_deadline()),
            }
        }
        world.feed(Event::Command(Command::Resume), 0.5);
        prop_assert!(world.obliges(|w| w.tunnel.routes.len() >= sessions));
        world.feed(STOP, 0.5);
        prop_assert!(world.obliges(|w| w.stopped));
    }
}
