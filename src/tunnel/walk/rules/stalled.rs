//! Sessions that a client that does not read has stalled.

use super::*;
use crate::tunnel::machine::{SOON, SURPLUS};

/// Session 1 with two connections, one of whose clients does not read.
fn stalled(settings: Settings) -> World {
    let mut world = World::new(settings);
    world.obliges(|w| w.tunnel.routes.len() == w.tunnel.slots.len());
    world.now += 10 * SECOND;
    world.about(1, SessionEvent::Connections(2));
    let actions = world.about(1, SessionEvent::Stalled);
    assert!(actions.contains(&Action::Report(Report::Stalled(Generation(1), 2, true))));
    assert!(actions.contains(&Action::Report(Report::Replacing(Generation(1), Reason::Stalled))));
    assert!(!actions.contains(&Action::Cut(Generation(1))));
    world
}

fn started(actions: &[Action]) -> bool {
    actions.iter().any(|action| matches!(action, Action::Start(..)))
}

#[test]
fn a_stalled_session_is_replaced_for_new_connections() {
    let mut world = stalled(settings());
    assert_eq!((world.tunnel.status().state, world.tunnel.routes.len()), (State::Starting, 0), "held");
    assert_eq!(world.tunnel.status().sessions[0].phase, "stalled");
    world.about(2, SessionEvent::Started);
    let actions = world.about(2, SessionEvent::Opened);
    assert_eq!(actions[0], Action::Route(vec![Generation(2)]));
    // Its connections are in no hurry.
    world.now += 100_000 * SECOND;
    assert!(!world.feed(Event::Tick, 0.5).contains(&Action::Cut(Generation(1))));
    let actions = world.about(1, SessionEvent::Flows);
    assert!(matches!(actions[0], Action::Report(Report::Flows(Generation(1), _))));
    assert_eq!(world.tunnel.routes, [Generation(2)]);
    // When the second one stalls in its turn there is a first one already.
    let actions = world.about(2, SessionEvent::Stalled);
    assert_eq!(actions[0], Action::Route(vec![Generation(1)]));
    assert!(!started(&actions));
    let actions = world.about(1, SessionEvent::Stalled);
    assert!(started(&actions), "both are stalled now");
}

#[test]
fn a_stalled_session_that_flows_again_in_time_keeps_its_place() {
    let mut world = stalled(settings());
    let actions = world.about(1, SessionEvent::Flows);
    assert_eq!(actions[0], Action::Route(vec![Generation(1)]));
    let actions = world.about(2, SessionEvent::Started);
    assert_eq!(actions, [Action::Terminate(Generation(2))]);
}

#[test]
fn a_stalled_session_is_better_than_none() {
    // A replacement that takes too long …
    let mut world = stalled(settings());
    let began = world.now;
    world.advance_to_deadline();
    assert_eq!((world.now, &world.tunnel.routes[..]), (began + SOON, &[Generation(1)][..]));
    world.about(2, SessionEvent::Started);
    let actions = world.about(2, SessionEvent::Opened);
    assert_eq!(actions[0], Action::Route(vec![Generation(2)]));
    // … or cannot be had.
    let mut world = stalled(settings());
    let failed = Failure::new(Class::Access, "denied");
    let actions = world.about(2, SessionEvent::StartFailed(failed));
    assert_eq!(actions[0], Action::Route(vec![Generation(1)]));
    assert_eq!(world.tunnel.status().state, State::Up);
}

#[test]
fn the_rest_of_a_pool_takes_a_stalled_sessions_place() {
    let mut world = stalled(Settings { sessions: 2, ..settings() });
    assert_eq!((world.tunnel.status().state, &world.tunnel.routes[..]), (State::Up, &[Generation(2)][..]));
    world.about(3, SessionEvent::Started);
    let actions = world.about(3, SessionEvent::Opened);
    assert_eq!(actions[0], Action::Route(vec![Generation(2), Generation(3)]));
}

/// What has been begun for one of them is not given up because the next one stalls too.
#[test]
fn a_whole_pool_that_stalls_has_three_more_sessions() {
    let mut world = World::new(Settings { sessions: 5, ..settings() });
    world.obliges(|w| w.tunnel.routes.len() == 5);
    world.now += 10 * SECOND;
    for generation in 1..=5 {
        world.about(generation, SessionEvent::Connections(1));
        let actions = world.about(generation, SessionEvent::Stalled);
        assert_eq!(started(&actions), generation <= 3, "{actions:?}");
    }
    assert_eq!(world.tunnel.sessions.len(), 5 + SURPLUS);
    assert!(world.tunnel.routes.is_empty(), "held for those that are soon there");
    for generation in 6..=8 {
        world.about(generation, SessionEvent::Started);
        world.about(generation, SessionEvent::Opened);
    }
    assert_eq!(world.tunnel.routes, [6, 7, 8].map(Generation));
    let actions = world.about(4, SessionEvent::Flows);
    assert!(!started(&actions), "{actions:?}");
}

/// A client that never reads and is opened again and again stalls one session after the other.
#[test]
fn stalls_do_not_start_sessions_without_end() {
    let mut world = stalled(settings());
    for generation in 2..=SURPLUS as u64 + 1 {
        world.about(generation, SessionEvent::Started);
        world.about(generation, SessionEvent::Opened);
        world.now += 60 * SECOND;
        world.about(generation, SessionEvent::Connections(1));
        let actions = world.about(generation, SessionEvent::Stalled);
        assert_eq!(started(&actions), generation <= SURPLUS as u64, "{generation}: {actions:?}");
    }
    assert_eq!(world.tunnel.sessions.len(), SURPLUS + 1);
    assert_eq!(world.tunnel.routes, [Generation(SURPLUS as u64 + 1)], "the last one is better than none");
    for _ in 0..10 {
        assert!(!started(&world.advance_to_deadline()));
    }
    // One of them is closed: new connections have a place again.
    let actions = world.about(2, SessionEvent::Flows);
    assert_eq!(actions[0], Action::Route(vec![Generation(2)]));
    assert!(!started(&actions));
}
