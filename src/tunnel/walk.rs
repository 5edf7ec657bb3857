//! Tests of the core: a breadth-first walk over states × events, long random walks, and the rules one by one. A small
//! model of the world performs the actions and checks each of them.

mod rules;
mod world;

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use proptest::prelude::*;

use super::command::Command;
use super::health::Probing;
use super::machine::STOPPING;
use super::rotation::{Limit, Rotate};
use super::status::State;
use super::{Action, Event, Generation, InterruptionCause, SessionEvent, Settings};
use world::World;

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
