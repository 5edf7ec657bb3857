//! When a session is rotated, and what is believed of the account's limit.

use super::*;
use crate::tunnel::session::Phase;

#[test]
fn rotation_is_make_before_break() {
    let mut world = World::new(Settings { rotate: Rotate::At(3600 * SECOND), ..settings() });
    world.about(1, SessionEvent::Started);
    world.about(1, SessionEvent::Opened);
    world.about(1, SessionEvent::Connections(1));
    world.now = 3600 * SECOND;
    let actions = world.feed(Event::Tick, 0.5);
    assert!(actions.contains(&Action::Start(Generation(2))));
    assert_eq!(world.tunnel.routes, [Generation(1)], "it serves until the other one is ready");
    world.about(2, SessionEvent::Started);
    let actions = world.about(2, SessionEvent::Opened);
    assert_eq!(actions[0], Action::Route(vec![Generation(2)]));
    assert!(!actions.contains(&Action::Cut(Generation(1))));
    world.now += 600 * SECOND;
    let actions = world.feed(Event::Tick, 0.5);
    assert!(actions.contains(&Action::Cut(Generation(1))), "its connections had their time");
}

/// Of the account's two hours, 90 %, and half of the jitter: 95 % of that.
#[test]
fn a_session_is_rotated_before_the_accounts_limit_and_its_connections_have_all_of_it() {
    let mut world = World::new(Settings { rotate: Rotate::Auto, ..settings() });
    world.about(1, SessionEvent::Started);
    let actions = world.about(1, SessionEvent::Opened);
    assert!(actions.contains(&Action::AskLimit), "as soon as a session serves: {actions:?}");
    world.about(1, SessionEvent::Connections(1));
    let limit = 7200 * SECOND;
    let actions = world.feed(Event::Limit(Limit::At(limit)), 0.5);
    assert_eq!(actions, [Action::Report(Report::Limit(limit))]);
    assert!(world.feed(Event::Limit(Limit::At(limit)), 0.5).is_empty(), "said once");
    assert!(world.feed(Event::Limit(Limit::Unknown), 0.5).is_empty(), "what cannot be asked has not changed");
    let mut asked = 0;
    while !world.real.contains_key(&2) {
        let actions = world.advance_to_deadline();
        asked += actions.iter().filter(|action| **action == Action::AskLimit).count();
    }
    assert_eq!(world.now, limit.mul_f64(0.9 * 0.95));
    assert_eq!(asked, 1, "and again now and then");
    world.about(2, SessionEvent::Started);
    world.about(2, SessionEvent::Opened);
    assert_eq!(world.tunnel.routes, [Generation(2)]);
    while world.now < limit {
        let actions = world.advance_to_deadline();
        assert!(!actions.contains(&Action::Cut(Generation(1))), "the service does that: {:?}", world.now);
    }
    let actions = world.about(1, maximum());
    assert!(actions.contains(&Action::Cut(Generation(1))));
}

fn maximum() -> SessionEvent {
    let reason = "Your session timed out due to maximum session duration".to_owned();
    SessionEvent::Ended { reason, declared: true }
}

/// A tunnel of so many sessions that asks for the account's limit in vain.
fn unlimited(sessions: usize) -> World {
    let mut world = World::new(Settings { sessions, rotate: Rotate::Auto, ..settings() });
    world.obliges(|w| w.tunnel.routes.len() == sessions);
    world.feed(Event::Limit(Limit::Unknown), 0.5);
    world
}

#[test]
fn the_limit_is_learned_from_the_session_that_it_ends() {
    let mut world = unlimited(1);
    world.now = 3600 * SECOND;
    let actions = world.about(1, maximum());
    assert!(actions.contains(&Action::Report(Report::Limit(3600 * SECOND))));
    world.about(2, SessionEvent::Started);
    world.about(2, SessionEvent::Opened);
    while !world.real.contains_key(&3) {
        world.advance_to_deadline();
    }
    assert_eq!(world.now, 3600 * SECOND + 3600 * SECOND.mul_f64(0.9 * 0.95));
}

/// Sessions that an operator has replaced every hour say nothing of the account.
#[test]
fn nothing_is_learned_from_sessions_that_were_ended_here() {
    let mut world = World::new(Settings { rotate: Rotate::Auto, ..settings() });
    world.about(1, SessionEvent::Started);
    world.about(1, SessionEvent::Opened);
    for generation in 1..4 {
        world.now += 3600 * SECOND;
        world.feed(Event::Command(Command::Rotate), 0.5);
        world.about(generation + 1, SessionEvent::Started);
        world.about(generation + 1, SessionEvent::Opened);
        let actions = world.about(generation, ended());
        assert!(
            !actions.iter().any(|action| matches!(action, Action::Report(Report::Limit(_)))),
            "{actions:?}"
        );
    }
    assert_eq!(world.tunnel.lifetime.limit(), None);
}

/// The instance is rebooted: nothing but the ages speaks of a limit, and they are one event's.
#[test]
fn a_pool_that_is_lost_at_once_teaches_no_limit() {
    for words in ["Session terminated", "the session is gone"] {
        let mut world = unlimited(4);
        world.now = 40_000 * SECOND;
        for generation in 1..=4 {
            let reason = words.to_owned();
            let declared = generation < 4;
            let actions = world.about(generation, SessionEvent::Ended { reason, declared });
            let learned = |action: &Action| matches!(action, Action::Report(Report::Limit(_)));
            assert!(!actions.iter().any(learned), "{actions:?}");
            world.now += SECOND / 3;
        }
        assert!(world.obliges(|w| w.tunnel.routes.len() == 4));
        let until = world.now + 10 * 40_000 * SECOND;
        while world.now < until {
            assert_eq!(starts(&world.advance_to_deadline()), 0, "nobody is rotated");
        }
    }
}

/// What is not the service's own word is no proof, however often it comes.
#[test]
fn only_ends_that_the_service_declares_teach_a_limit() {
    let mut world = unlimited(1);
    let mut newest = 1;
    for declared in [false, false, false, true] {
        world.now += 5000 * SECOND;
        let reason = "ResumeSession gave no token".to_owned();
        world.about(newest, SessionEvent::Ended { reason, declared });
        newest += 1;
        assert!(world.obliges(|w| w.tunnel.routes == [Generation(newest)]));
        assert_eq!(world.tunnel.lifetime.limit(), None);
    }
    // Nor is what the service says of a session that is being ended here.
    world.now += 5000 * SECOND;
    world.feed(Event::Command(Command::Restart), 0.5);
    world.about(newest, ended());
    assert_eq!(world.tunnel.lifetime.limit(), None);
}

/// An instance that reboots every night: two ends at the same age, one after the other. Three sessions later.
fn misled(sessions: usize) -> World {
    const NIGHTLY: Duration = Duration::from_secs(86_400);
    let mut world = unlimited(sessions);
    let sessions = sessions as u64;
    for night in 0..2 {
        world.now += NIGHTLY;
        for nth in 1..=sessions {
            world.about(night * sessions + nth, ended());
        }
        assert!(world.obliges(|w| w.tunnel.routes.len() == sessions as usize));
    }
    assert_eq!(world.tunnel.lifetime.limit(), Some(NIGHTLY));
    world
}

#[test]
fn a_limit_that_is_none_cuts_nobody_and_is_dropped() {
    let mut world = misled(1);
    world.about(3, SessionEvent::Connections(1));
    let (mut cut, mut dropped, began) = (false, false, world.now);
    while world.now < began + 200_000 * SECOND {
        let actions = world.advance_to_deadline();
        world.obliges(opened);
        cut |= actions.contains(&Action::Cut(Generation(3)));
        dropped |= actions.iter().any(|action| matches!(action, Action::Report(Report::NoLimit(_))));
    }
    assert!(dropped && !cut);
    assert_eq!(world.real.keys().max(), Some(&4), "rotated once, for what was believed");
    let actions = world.about(3, SessionEvent::Connections(0));
    assert!(actions.contains(&Action::StopPlugin(Generation(3))));
}

/// A session that nobody uses any more shows whether there is a limit; one, of however many.
#[test]
fn a_limit_that_was_learned_is_tested_with_an_empty_session() {
    for is_limit in [true, false] {
        let mut world = misled(2);
        let began = world.now;
        // The two are rotated.
        while !world.tunnel.routes.iter().all(|g| g.0 >= 7) {
            world.obliges(opened);
            world.advance_to_deadline();
        }
        let retired = |w: &World| {
            let retired = w.tunnel.sessions.iter().filter(|s| matches!(s.phase, Phase::Retired { .. }));
            retired.map(|session| session.generation.0).collect::<Vec<_>>()
        };
        let [tester] = retired(&world)[..] else { panic!("{:?}", retired(&world)) };
        if is_limit {
            world.now = began + 86_400 * SECOND;
            let actions = world.about(tester, ended());
            let unexpected = |a: &Action| matches!(a, Action::Report(Report::Ended { expected: false, .. }));
            assert!(!actions.iter().any(unexpected), "{actions:?}");
            assert!(world.tunnel.lifetime.limit().is_some());
        } else {
            let mut dropped = false;
            while world.now < began + 87_000 * SECOND {
                let actions = world.advance_to_deadline();
                dropped |= actions.iter().any(|action| matches!(action, Action::Report(Report::NoLimit(_))));
            }
            assert!(dropped && retired(&world).is_empty());
        }
    }
}

#[test]
fn an_account_without_a_limit_ends_the_belief_in_one() {
    let mut world = misled(1);
    let actions = world.feed(Event::Limit(Limit::None), 0.5);
    assert_eq!(actions, [Action::Report(Report::NoLimit(86_400 * SECOND))]);
}

/// Sessions that were begun at once are not replaced at once.
#[test]
fn rotation_has_jitter() {
    let rotate = Rotate::At(1000 * SECOND);
    let mut world = World::new(Settings { sessions: 3, rotate, ..settings() });
    for (generation, random) in [(1, 0.0), (2, 0.5), (3, 0.999)] {
        world.about(generation, SessionEvent::Started);
        world.happens(generation, &SessionEvent::Opened);
        world.feed(Event::Session(Generation(generation), SessionEvent::Opened), random);
    }
    let mut begun = Vec::new();
    while begun.len() < 3 {
        let actions = world.advance_to_deadline();
        begun.extend(
            actions.iter().filter(|action| matches!(action, Action::Start(..))).map(|_| world.now.as_secs()),
        );
    }
    assert_eq!(begun, [900, 950, 1000], "the earlier ones first, and none later than asked for");
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
fn the_sessions_beside_one_are_those_of_the_other_slots() {
    let mut world = World::new(Settings { sessions: 2, rotate: Rotate::At(3600 * SECOND), ..settings() });
    assert_eq!(world.tunnel.beside(Generation(1)), [Generation(2)]);
    for generation in [1, 2] {
        world.about(generation, SessionEvent::Started);
        world.about(generation, SessionEvent::Opened);
    }
    world.now = 3600 * SECOND;
    world.feed(Event::Tick, 0.5);
    let beside = world.tunnel.beside(Generation(3));
    assert!(beside.contains(&Generation(2)) && !beside.contains(&Generation(1)), "{beside:?}");
}
