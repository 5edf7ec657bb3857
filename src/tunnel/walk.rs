//! Tests of the core: a breadth-first walk over states × events, long random walks, and the rules one by one. A small
//! model of the world performs the actions and checks each of them.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Duration;

use proptest::prelude::*;

use super::failure::{Class, Failure};
use super::machine::{BARELY, OPENING, STOPPING, SURPLUS, TERMINATE_ATTEMPTS};
use super::session::{AtService, Phase};
use super::status::State;
use super::{Action, Event, Generation, Report, SessionEvent, Settings, Time, Tunnel};

const SECOND: Duration = Duration::from_secs(1);
const STOP: Event = Event::Stop { grace: Duration::from_secs(5) };

fn settings() -> Settings {
    Settings {
        sessions: 1,
        targets: 1,
        failover_after: 5 * SECOND,
        resume_for: 600 * SECOND,
        drain: 600 * SECOND,
        rotate: None,
    }
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
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    tunnel: Tunnel,
    now: Time,
    real: BTreeMap<u64, Real>,
    recorded: usize,
    stopped: bool,
}

impl World {
    fn new(settings: Settings) -> Self {
        let tunnel = Tunnel::new(settings);
        let mut world = Self { tunnel, now: Time::ZERO, real: BTreeMap::new(), recorded: 0, stopped: false };
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
            SessionEvent::Ended { .. } => real.at_service = false,
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
            Action::Start(generation, target) => {
                assert_eq!(*target, 0);
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
            assert!(surplus <= SURPLUS + tunnel.slots.len());
        }
        if tunnel.stopping.is_none() {
            // Whatever could carry connections is used.
            let usable = tunnel.sessions.iter().any(|s| {
                matches!(s.phase, Phase::Ready | Phase::Retired { until: None })
                    && s.down_since.is_none()
                    && s.expired.is_none()
            });
            assert!(!usable || tunnel.status().state == State::Up, "{tunnel:#?}");
            // Nobody waits without an end in sight.
            let busy =
                tunnel.sessions.iter().any(|s| matches!(s.phase, Phase::Starting | Phase::Opening { .. }));
            assert!(
                tunnel.status().state == State::Up || busy || tunnel.next_deadline().is_some(),
                "stuck: {tunnel:#?}"
            );
        }
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
                push(SessionEvent::PluginExited { words: "gone".into() });
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
                push(SessionEvent::Connections(1));
                push(SessionEvent::Connections(0));
            }
            if real.at_service {
                push(SessionEvent::Ended { reason: "terminated".into() });
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
                    s.open,
                    s.expired,
                    s.refused.0,
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
                (slot.serving.as_ref().and_then(rank), next, format!("{:?}", slot.backoff))
            })
            .collect();
        let stopping = self.tunnel.stopping.map(|s| (ahead(s.grace_until), ahead(s.deadline), s.done));
        format!(
            "{sessions:?} {slots:?} {stopping:?} {:?} {:?}",
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
                    SessionEvent::PluginExited { words: "stopped".into() }
                } else if real.terminate_pending {
                    SessionEvent::Terminated(Ok(()))
                } else if real.plugin && !real.open {
                    SessionEvent::Opened
                } else {
                    return None;
                };
                Some((*generation, event))
            });
            match next {
                Some((generation, event)) => drop(self.about(generation, event)),
                None => drop(self.advance_to_deadline()),
            }
        }
        until(self)
    }
}

/// Every state that is reached by up to `depth` events, each with every event that can happen in it, and with stale ones.
#[test]
fn every_event_in_every_state() {
    const STATES: usize = 40_000;
    let mut seen = HashSet::new();
    let first = World::new(settings());
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
            Event::Configure { settings: settings(), renew: true },
            Event::Configure { settings: Settings { sessions: 2, ..settings() }, renew: false },
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
            assert!(up.obliges(|w| w.tunnel.status().state == State::Up), "never up again: {:#?}", up.tunnel);
        }

        for next in nexts {
            if seen.len() < STATES && seen.insert(next.fingerprint()) {
                queue.push_back(next);
            }
        }
    }
    println!("{expanded} states, {steps} steps");
    assert!(expanded >= STATES, "the walk ended early: {expanded}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    /// Long random lives, with jitter, several sessions and rotation: the model's checks hold, and the end is clean.
    #[test]
    fn a_long_life(
        sessions in 1usize..4,
        rotate in proptest::option::of(30u64..300),
        steps in proptest::collection::vec((any::<prop::sample::Index>(), 0.0..1.0f64, 0u64..4000), 1..400),
    ) {
        let settings = Settings { sessions, rotate: rotate.map(Duration::from_secs), ..settings() };
        let mut world = World::new(settings);
        for (choice, random, pause) in steps {
            let events = world.events();
            let choice = choice.index(events.len() + 2);
            match events.get(choice) {
                Some((Some(generation), event)) => {
                    world.happens(*generation, event);
                    world.now += Duration::from_millis(pause);
                    world.feed(Event::Session(Generation(*generation), event.clone()), random);
                }
                _ => drop(world.advance_to_deadline()),
            }
        }
        prop_assert!(world.obliges(|w| w.tunnel.routes.len() >= sessions));
        world.feed(STOP, 0.5);
        prop_assert!(world.obliges(|w| w.stopped));
    }
}

fn up() -> World {
    let mut world = World::new(settings());
    world.about(1, SessionEvent::Started);
    world.now += SECOND;
    world.about(1, SessionEvent::Opened);
    assert_eq!(world.tunnel.status().state, State::Up);
    world.now += 10 * SECOND;
    world
}

fn closed() -> SessionEvent {
    SessionEvent::ChannelClosed { reason: "close 1000: Bye".into() }
}

#[test]
fn an_hourly_close_costs_no_session() {
    let mut world = up();
    let actions = world.about(1, closed());
    assert_eq!(actions[0], Action::Route(vec![]), "clients are held");
    assert_eq!(world.tunnel.status().state, State::Interrupted);
    world.now += SECOND;
    let actions = world.about(1, SessionEvent::ChannelResumed { attempts: 1 });
    assert_eq!(actions[0], Action::Route(vec![Generation(1)]));
    assert!(actions.contains(&Action::Report(Report::Resumed(Generation(1), SECOND, 1))));
}

#[test]
fn a_long_interruption_starts_a_second_session_and_keeps_the_first() {
    let mut world = up();
    world.about(1, SessionEvent::Connections(1));
    world.about(1, closed());
    let actions = world.advance_to_deadline();
    assert!(actions.contains(&Action::Start(Generation(2), 0)));
    world.about(2, SessionEvent::Started);
    world.about(2, SessionEvent::Opened);
    assert_eq!(world.tunnel.routes, [Generation(2)]);
    // The first comes back: its connection goes on as long as it likes.
    world.about(1, SessionEvent::ChannelResumed { attempts: 9 });
    world.now += 100_000 * SECOND;
    let actions = world.feed(Event::Tick, 0.5);
    assert!(!actions.contains(&Action::Cut(Generation(1))));
    // The second is lost: the first serves again, at once and without another StartSession.
    let actions = world.about(2, SessionEvent::Ended { reason: "terminated".into() });
    assert_eq!(actions[0], Action::Route(vec![Generation(1)]));
    assert!(!actions.iter().any(|action| matches!(action, Action::Start(..))));
}

#[test]
fn a_session_that_is_back_first_keeps_its_place() {
    let mut world = up();
    world.about(1, closed());
    world.advance_to_deadline();
    let actions = world.about(1, SessionEvent::ChannelResumed { attempts: 3 });
    assert_eq!(actions[0], Action::Route(vec![Generation(1)]));
    // StartSession answers late: that session is terminated, no plugin is launched for it.
    let actions = world.about(2, SessionEvent::Started);
    assert_eq!(actions, [Action::Terminate(Generation(2))]);
}

#[test]
fn a_session_that_cannot_be_resumed_is_given_up() {
    let mut world = up();
    world.about(1, SessionEvent::Connections(1));
    world.about(1, closed());
    world.advance_to_deadline();
    world.about(2, SessionEvent::Started);
    world.about(2, SessionEvent::Opened);
    let actions = world.advance_to_deadline();
    assert_eq!(world.now, 11 * SECOND + 60 * SECOND + 5 * SECOND, "the second session's first minute");
    assert!(actions.is_empty());
    let actions = world.advance_to_deadline();
    assert_eq!(world.now, 11 * SECOND + 600 * SECOND);
    assert!(
        actions.contains(&Action::Cut(Generation(1))) && actions.contains(&Action::KillPlugin(Generation(1)))
    );
    assert_eq!(world.tunnel.routes, [Generation(2)]);
}

#[test]
fn a_lost_plugin_is_replaced_at_once_again_and_again() {
    let mut world = up();
    for generation in 1..20 {
        let actions = world.about(generation, SessionEvent::PluginExited { words: "killed".into() });
        assert!(actions.contains(&Action::Start(Generation(generation + 1), 0)), "{generation}: {actions:?}");
        assert!(actions.contains(&Action::Terminate(Generation(generation))));
        world.about(generation, SessionEvent::Terminated(Ok(())));
        world.about(generation + 1, SessionEvent::Started);
        world.about(generation + 1, SessionEvent::Opened);
        world.now += 3 * SECOND;
    }
}

#[test]
fn a_plugin_that_dies_at_birth_is_not_started_in_a_loop() {
    let mut world = up();
    let mut starts = 0;
    for _ in 0..2000 {
        let newest = *world.real.keys().last().unwrap();
        let real = &world.real[&newest];
        let actions = if real.start_pending {
            world.about(newest, SessionEvent::Started)
        } else if real.plugin && !real.open {
            world.about(newest, SessionEvent::Opened)
        } else if real.plugin {
            world.now += BARELY / 2;
            world.about(newest, SessionEvent::PluginExited { words: "gone".into() })
        } else {
            world.advance_to_deadline()
        };
        starts += actions.iter().filter(|action| matches!(action, Action::Start(..))).count();
        if world.now > 600 * SECOND {
            break;
        }
    }
    // Half of the last ceiling, which is what a random number of 0.5 makes of it, and the plugin's half second.
    assert!(starts < 600 / 5, "{starts} starts in ten minutes");
}

#[test]
fn a_plugin_that_never_opens_its_port_is_killed() {
    let mut world = World::new(settings());
    world.about(1, SessionEvent::Started);
    let actions = world.advance_to_deadline();
    assert_eq!(world.now, OPENING);
    assert!(actions.contains(&Action::KillPlugin(Generation(1))));
    assert!(!actions.contains(&Action::StopPlugin(Generation(1))));
    assert!(matches!(world.tunnel.status().failure, Some(failure) if failure.text.contains("20 s")));
}

#[test]
fn a_data_channel_that_cannot_be_opened_says_why() {
    let mut world = World::new(settings());
    world.about(1, SessionEvent::Started);
    world.about(1, SessionEvent::NotOpened(Failure::new(Class::Network, "500 from the service")));
    assert!(world.real[&1].plugin, "it may pass");
    let actions = world.advance_to_deadline();
    assert!(actions.contains(&Action::KillPlugin(Generation(1))));
    let Failure { class, text } = world.tunnel.status().failure.unwrap();
    assert_eq!(class, Class::Network);
    assert!(text.contains("20 s") && text.contains("500 from the service"), "{text}");

    let mut world = World::new(settings());
    world.about(1, SessionEvent::Started);
    let actions = world.about(1, SessionEvent::NotOpened(Failure::new(Class::Access, "403 not allowed")));
    assert!(
        actions.contains(&Action::StopPlugin(Generation(1)))
            && actions.contains(&Action::Terminate(Generation(1)))
    );
    let status = world.tunnel.status();
    assert_eq!(status.failure, Some(Failure::new(Class::Access, "403 not allowed")));
    assert!(status.next_attempt.unwrap() >= 7 * SECOND, "the clock of its class");
}

#[test]
fn rotation_is_make_before_break() {
    let mut world = World::new(Settings { rotate: Some(3600 * SECOND), ..settings() });
    world.about(1, SessionEvent::Started);
    world.about(1, SessionEvent::Opened);
    world.about(1, SessionEvent::Connections(1));
    world.now = 3600 * SECOND;
    let actions = world.feed(Event::Tick, 0.5);
    assert!(actions.contains(&Action::Start(Generation(2), 0)));
    assert_eq!(world.tunnel.routes, [Generation(1)], "it serves until the other one is ready");
    world.about(2, SessionEvent::Started);
    let actions = world.about(2, SessionEvent::Opened);
    assert_eq!(actions[0], Action::Route(vec![Generation(2)]));
    assert!(!actions.contains(&Action::Cut(Generation(1))));
    world.now += 600 * SECOND;
    let actions = world.feed(Event::Tick, 0.5);
    assert!(actions.contains(&Action::Cut(Generation(1))), "its connections had their time");
}

#[test]
fn a_replaced_session_ends_when_it_is_empty() {
    let mut world = up();
    world.about(1, SessionEvent::Connections(2));
    world.feed(Event::Configure { settings: settings(), renew: true }, 0.5);
    world.about(2, SessionEvent::Started);
    world.about(2, SessionEvent::Opened);
    assert!(world.about(1, SessionEvent::Connections(1)).is_empty());
    let actions = world.about(1, SessionEvent::Connections(0));
    assert!(
        actions.contains(&Action::StopPlugin(Generation(1)))
            && actions.contains(&Action::Terminate(Generation(1)))
    );
}

#[test]
fn the_other_targets_are_tried_at_once() {
    let mut tunnel = Tunnel::new(Settings { targets: 3, ..settings() });
    let mut actions = tunnel.handle(Time::ZERO, Event::Tick, 0.5);
    for (generation, target) in [(1, 0), (2, 1), (3, 2)] {
        assert!(actions.contains(&Action::Start(Generation(generation), target)), "{actions:?}");
        let failed = SessionEvent::StartFailed(Failure::new(Class::TargetNotConnected, "offline"));
        actions = tunnel.handle(Time::ZERO, Event::Session(Generation(generation), failed), 0.5);
    }
    assert!(!actions.iter().any(|action| matches!(action, Action::Start(..))));
    let at = tunnel.next_deadline().unwrap();
    assert!(at >= SECOND && at <= 2 * SECOND);
    assert!(tunnel.handle(at, Event::Tick, 0.5).contains(&Action::Start(Generation(4), 0)));
}

#[test]
fn a_session_that_cannot_be_terminated_is_left_to_the_record() {
    let mut world = up();
    world.about(1, SessionEvent::PluginExited { words: "gone".into() });
    for attempt in 1..=TERMINATE_ATTEMPTS {
        assert!(world.real[&1].terminate_pending, "attempt {attempt}");
        world.about(1, SessionEvent::Terminated(Err(Failure::new(Class::Access, "denied"))));
        while world.real.get(&1).is_some_and(|real| !real.terminate_pending) {
            world.advance_to_deadline();
        }
    }
    assert_eq!(world.recorded, 1);
}

#[test]
fn a_wrong_document_is_said_and_not_tried_in_a_loop() {
    let mut world = World::new(settings());
    world.about(1, SessionEvent::Started);
    world.about(1, SessionEvent::Kind("Standard_Stream".into()));
    let status = world.tunnel.status();
    assert!(status.failure.unwrap().text.contains("Standard_Stream"));
    assert!(status.next_attempt.unwrap() >= 240 * SECOND);
}

#[test]
fn a_destination_that_fails_is_resolved_anew_but_not_for_ever() {
    let mut world = up();
    let mut starts = 0;
    for _ in 0..100 {
        let newest = *world.real.keys().last().unwrap();
        world.now += SECOND;
        let actions = world.about(newest, SessionEvent::DestinationFailed);
        starts += actions.iter().filter(|action| matches!(action, Action::Start(..))).count();
        world.obliges(|w| w.tunnel.sessions.len() == 1 && w.tunnel.status().state == State::Up);
    }
    assert_eq!(starts, 1);
}

#[test]
fn open_connections_have_their_grace_when_the_tunnel_stops() {
    let mut world = up();
    world.about(1, SessionEvent::Connections(1));
    let began = world.now;
    let actions = world.feed(STOP, 0.5);
    assert_eq!(actions, [Action::Route(vec![])], "no new ones, and the open one goes on");
    let actions = world.advance_to_deadline();
    assert_eq!(world.now, began + 5 * SECOND);
    assert!(
        actions.contains(&Action::Cut(Generation(1))) && actions.contains(&Action::StopPlugin(Generation(1)))
    );
    // The plugin does not listen and the service does not answer.
    let actions = world.advance_to_deadline();
    assert_eq!(world.now, began + 12 * SECOND);
    assert!(actions.contains(&Action::KillPlugin(Generation(1))));
    assert!(actions.contains(&Action::LeaveRecorded(Generation(1))) && world.stopped);
}

#[test]
fn a_tunnel_without_connections_stops_at_once() {
    let mut world = up();
    let actions = world.feed(STOP, 0.5);
    assert!(
        actions.contains(&Action::StopPlugin(Generation(1)))
            && actions.contains(&Action::Terminate(Generation(1)))
    );
    world.about(1, SessionEvent::Terminated(Ok(())));
    let actions = world.about(1, SessionEvent::PluginExited { words: "stopped".into() });
    assert_eq!(actions, [Action::Forget(Generation(1)), Action::Stopped]);
}
