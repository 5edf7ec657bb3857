//! What probes and clients' connections say of the destination.

use super::*;
use crate::tunnel::health::Found;
use crate::tunnel::session::Phase;
use crate::tunnel::verdict::CALM;

fn probing() -> World {
    let mut world = World::new(Settings { probing: Some(PROBING), ..settings() });
    world.about(1, SessionEvent::Started);
    let actions = world.about(1, SessionEvent::Opened);
    assert!(actions.contains(&Action::Probe(Generation(1))), "at once: {actions:?}");
    world
}

/// Lets the probe of the session that serves find this, and the next one begin.
fn probe(world: &mut World, found: Found) -> Vec<Action> {
    let generation = world.tunnel.routes[0];
    while !world.real[&generation.0].probing {
        world.advance_to_deadline();
    }
    world.about(generation.0, SessionEvent::Probed(found))
}

fn bad() -> Found {
    Found::Bad("connection refused".into())
}

#[test]
fn a_destination_that_is_down_is_told_once_and_looked_for_anew() {
    let mut world = probing();
    assert!(probe(&mut world, bad()).is_empty());
    let actions = probe(&mut world, bad());
    let told = Action::Report(Report::Degraded(Generation(1), "connection refused".into()));
    assert!(actions.contains(&told) && starts(&actions) == 1, "{actions:?}");
    assert_eq!(world.tunnel.status().state, State::Up, "the tunnel stays up");
    let since = world.now;
    assert_eq!(world.tunnel.status().degraded.unwrap().since, since);
    world.about(2, SessionEvent::Started);
    world.about(2, SessionEvent::Opened);
    // It is down for an hour: nothing more is said, and it is resolved anew every five minutes.
    let mut begun = Vec::new();
    while world.now < since + 3600 * SECOND {
        let actions = probe(&mut world, bad());
        let told = |action: &Action| matches!(action, Action::Report(Report::Degraded(..)));
        assert!(!actions.iter().any(told), "{actions:?}");
        begun.extend((starts(&actions) > 0).then_some(world.now));
        world.obliges(|w| w.tunnel.sessions.len() == 1);
    }
    assert!((11..=12).contains(&begun.len()), "{begun:?}");
    assert!(begun.windows(2).all(|pair| pair[1] - pair[0] >= 300 * SECOND), "{begun:?}");
    // Then it is up again.
    assert!(probe(&mut world, Found::Good).is_empty());
    let actions = probe(&mut world, Found::Good);
    let generation = world.tunnel.routes[0];
    assert_eq!(actions, [Action::Report(Report::Recovered(generation, world.now - since))]);
    assert_eq!(world.tunnel.status().degraded, None);
}

#[test]
fn clients_connections_degrade_a_tunnel_and_recover_it() {
    let mut world = up();
    for _ in 0..2 {
        assert!(world.about(1, SessionEvent::DestinationFailed).is_empty());
    }
    let actions = world.about(1, SessionEvent::DestinationFailed);
    assert!(actions.iter().any(|action| matches!(action, Action::Report(Report::Degraded(..)))));
    assert_eq!(starts(&actions), 1);
    world.about(2, SessionEvent::Started);
    world.about(2, SessionEvent::Opened);
    assert!(world.tunnel.status().degraded.is_some(), "nobody knows yet whether that helped");
    // What an old connection says of the old address says nothing.
    assert!(world.about(1, SessionEvent::Answered).is_empty());
    world.now += CALM;
    let actions = world.about(2, SessionEvent::Answered);
    assert!(matches!(actions[..], [Action::Report(Report::Recovered(Generation(2), _))]), "{actions:?}");
    assert_eq!(world.tunnel.status().degraded, None);
}

/// One of two hosts behind the name is down.
#[test]
fn a_destination_that_refuses_every_other_connection_is_told_once() {
    let mut world = up();
    for _ in 0..3 {
        world.about(1, SessionEvent::DestinationFailed);
    }
    world.about(2, SessionEvent::Started);
    world.about(2, SessionEvent::Opened);
    world.obliges(|w| w.tunnel.sessions.len() == 1);
    let since = world.tunnel.status().degraded.unwrap().since;
    for _ in 0..100 {
        world.now += SECOND;
        assert!(world.about(2, SessionEvent::Answered).is_empty());
        world.now += SECOND;
        assert!(world.about(2, SessionEvent::DestinationFailed).is_empty());
    }
    // The last to come is answered, and nobody comes after it.
    world.now += SECOND;
    assert!(world.about(2, SessionEvent::Answered).is_empty());
    let actions = world.advance_to_deadline();
    let lasted = world.now - since;
    assert_eq!(actions, [Action::Report(Report::Recovered(Generation(2), lasted))]);
    assert_eq!(lasted, 200 * SECOND + CALM);
    assert_eq!(world.tunnel.status().degraded, None);
    // Where nobody was refused of late, the first answer tells.
    assert!(world.tunnel.recovers.is_none());
}

/// Where nothing shows whether the agent is there, a second session tells the path from the destination.
#[test]
fn silence_without_a_sign_of_the_agent_is_the_paths_first() {
    let unanswered = || Found::Unanswered("no answer within 5 s".into());
    let silent = || {
        let mut world = probing();
        assert!(probe(&mut world, unanswered()).is_empty());
        let actions = probe(&mut world, unanswered());
        assert!(actions.contains(&Action::Report(Report::Replacing(Generation(1), Reason::Unanswered))));
        assert_eq!(world.tunnel.status().degraded, None);
        world.obliges(|w| w.tunnel.sessions.len() == 1);
        assert_eq!(world.tunnel.routes, [Generation(2)]);
        world
    };
    let mut world = silent();
    assert!(probe(&mut world, Found::Good).is_empty());
    assert_eq!(world.tunnel.slots[0].unanswered, None, "it was the path");

    let mut world = silent();
    probe(&mut world, unanswered());
    let actions = probe(&mut world, unanswered());
    assert!(
        actions.iter().any(|action| matches!(action, Action::Report(Report::Degraded(..)))),
        "{actions:?}"
    );
    assert_eq!(starts(&actions), 0, "not again so soon");
}

#[test]
fn an_interrupted_session_is_not_probed_and_its_probes_say_nothing() {
    let mut world = probing();
    probe(&mut world, bad());
    while !world.real[&1].probing {
        world.advance_to_deadline();
    }
    world.about(1, closed());
    assert!(world.about(1, SessionEvent::Probed(bad())).is_empty());
    assert!(world.tunnel.status().degraded.is_none());
    world.now += 2 * SECOND;
    world.about(1, SessionEvent::ChannelResumed { attempts: 1 });
    assert!(probe(&mut world, bad()).is_empty(), "the row has begun anew");
}

/// Of a pool's two targets one has a destination that says nothing, and nobody can say whether its agent is there.
#[test]
fn the_good_probes_of_one_target_do_not_hide_another_ones_destination() {
    let mut world = World::new(Settings { sessions: 2, probing: Some(PROBING), ..settings() });
    world.obliges(|w| w.tunnel.routes.len() == 2);
    let (mut degraded, mut begun) = (0, 0);
    while world.now < 3600 * SECOND {
        // The second slot's is the silent one.
        let probed = world.real.iter().find(|(_, real)| real.probing).map(|(generation, _)| *generation);
        let actions = match probed {
            Some(generation) if world.tunnel.session(Generation(generation)).is_some_and(|s| s.slot == 1) => {
                world.about(generation, SessionEvent::Probed(Found::Unanswered("no answer".into())))
            }
            Some(generation) => world.about(generation, SessionEvent::Probed(Found::Good)),
            None => world.advance_to_deadline(),
        };
        degraded += actions.iter().filter(|a| matches!(a, Action::Report(Report::Degraded(..)))).count();
        begun += starts(&actions);
        let began = |w: &World| {
            let building = |phase| matches!(phase, Phase::Starting | Phase::Opening { .. });
            !w.tunnel.sessions.iter().any(|session| building(session.phase))
        };
        assert!(world.obliges(began));
    }
    assert_eq!(degraded, 1);
    assert!(begun <= 1 + 3600 / 300, "{begun} sessions in an hour");
    assert_eq!(world.tunnel.routes.len(), 1, "new connections go to the other one");
}

/// Its replacement cannot be had: that says nothing of the destination.
#[test]
fn one_silent_session_is_no_proof_against_the_destination() {
    let mut world = probing();
    for _ in 0..20 {
        probe(&mut world, Found::Unanswered("no answer".into()));
        assert_eq!(world.tunnel.status().degraded, None);
        let starting = world.real.iter().find(|(_, real)| real.start_pending).map(|(g, _)| *g);
        if let Some(generation) = starting {
            world.about(generation, SessionEvent::StartFailed(Failure::new(Class::Access, "denied")));
        }
    }
}

/// A listener's queue is full, or a pooler is restarted: new connections are refused, and the old ones work.
#[test]
fn connections_outlive_a_destination_that_refuses_others() {
    for sessions in [1, 6] {
        let mut world = World::new(Settings { sessions, ..settings() });
        world.obliges(|w| w.tunnel.routes.len() == sessions);
        world.now += 100 * SECOND;
        for generation in 1..=sessions as u64 {
            world.about(generation, SessionEvent::Connections(1));
            for _ in 0..3 {
                world.about(generation, SessionEvent::DestinationFailed);
            }
        }
        assert!(world.obliges(|w| w.tunnel.routes.iter().all(|g| g.0 > sessions as u64)));
        for _ in 0..200 {
            world.now += 600 * SECOND;
            let actions = world.feed(Event::Tick, 0.5);
            assert!(!actions.iter().any(|action| matches!(action, Action::Cut(_))), "{actions:?}");
        }
    }
}

/// One of two targets cannot reach the destination.
#[test]
fn new_connections_go_where_the_destination_is_up() {
    let mut world = World::new(Settings { sessions: 2, probing: Some(PROBING), ..settings() });
    for generation in [1, 2] {
        world.about(generation, SessionEvent::Started);
        world.about(generation, SessionEvent::Opened);
    }
    let mut seen = Vec::new();
    for _ in 0..2 {
        for (generation, found) in [(1, bad()), (2, Found::Good)] {
            while !world.real[&generation].probing {
                world.advance_to_deadline();
            }
            seen.extend(world.about(generation, SessionEvent::Probed(found)));
        }
    }
    assert!(seen.contains(&Action::Route(vec![Generation(2)])), "{seen:?}");
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
