//! A data channel that is interrupted: resumed in time, late, or never.

use super::*;
use crate::tunnel::Time;
use crate::tunnel::machine::Next;

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
    assert!(actions.contains(&Action::Start(Generation(2))));
    world.about(2, SessionEvent::Started);
    world.about(2, SessionEvent::Opened);
    assert_eq!(world.tunnel.routes, [Generation(2)]);
    // The first comes back: its connection goes on as long as it likes.
    world.about(1, SessionEvent::ChannelResumed { attempts: 9 });
    world.now += 100_000 * SECOND;
    let actions = world.feed(Event::Tick, 0.5);
    assert!(!actions.contains(&Action::Cut(Generation(1))));
    // The second is lost: the first serves again, at once and without another StartSession.
    let actions = world.about(2, ended());
    assert_eq!(actions[0], Action::Route(vec![Generation(1)]));
    assert!(!actions.iter().any(|action| matches!(action, Action::Start(..))));
}

/// An outage of an hour is no reason for four StartSession calls a second, however old the session is that it has interrupted.
#[test]
fn the_age_of_an_interrupted_session_does_not_reset_the_clock_of_its_successor() {
    let mut world = up();
    world.about(1, SessionEvent::Connections(1));
    world.now += 1000 * SECOND;
    world.feed(Event::Tick, 0.5);
    world.about(1, closed());
    world.advance_to_deadline();
    let failed = SessionEvent::StartFailed(Failure::new(Class::Network, "reset"));
    for generation in 2..12 {
        world.happens(generation, &failed);
        world.feed(Event::Session(Generation(generation), failed.clone()), 1.0);
        let Some(Next::Waiting { until }) = world.tunnel.slots.first().map(|slot| slot.next) else {
            panic!("no attempt is waited for");
        };
        if generation >= 7 {
            assert_eq!(until - world.now, 10 * SECOND, "attempt {generation}");
        }
        world.now = until;
        world.feed(Event::Tick, 1.0);
    }
}

/// A first session that is interrupted, with a connection open on it, and a second one that serves.
fn failed_over() -> World {
    let mut world = up();
    world.about(1, SessionEvent::Connections(1));
    world.about(1, closed());
    world.advance_to_deadline();
    world.about(2, SessionEvent::Started);
    world.about(2, SessionEvent::Opened);
    world
}

#[test]
fn the_first_serves_again_where_the_second_is_interrupted() {
    let mut world = failed_over();
    world.about(2, SessionEvent::Connections(1));
    world.about(1, SessionEvent::ChannelResumed { attempts: 9 });
    let actions = world.about(2, closed());
    assert_eq!(actions[0], Action::Route(vec![Generation(1)]), "nobody is held");
    let actions = world.about(2, SessionEvent::ChannelResumed { attempts: 1 });
    assert!(!actions.iter().any(|action| matches!(action, Action::Cut(_))));
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
    let mut world = failed_over();
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

fn gap(lasted: Time) -> SessionEvent {
    let cause = InterruptionCause::Gap;
    SessionEvent::Interrupted { cause, reason: "812 messages are being repaired, about 81 s".into(), lasted }
}

/// A gap is noticed after 2 s, in which clients already had nothing of the session.
#[test]
fn a_gap_counts_from_its_beginning() {
    let mut world = up();
    let began = world.now;
    world.now += 2 * SECOND;
    let actions = world.about(1, gap(2 * SECOND));
    assert_eq!(actions[0], Action::Route(vec![]), "clients are held");
    let actions = world.advance_to_deadline();
    assert_eq!(world.now, began + 5 * SECOND);
    assert!(actions.contains(&Action::Start(Generation(2))));
}

#[test]
fn a_session_without_a_gap_goes_before_one_with_a_gap_whose_connections_stay() {
    let mut world = up();
    world.about(1, SessionEvent::Connections(1));
    world.about(1, gap(2 * SECOND));
    world.advance_to_deadline();
    world.about(2, SessionEvent::Started);
    let actions = world.about(2, SessionEvent::Opened);
    assert_eq!(world.tunnel.routes, [Generation(2)]);
    assert!(!actions.contains(&Action::Cut(Generation(1))));
    let actions = world.about(1, SessionEvent::ChannelResumed { attempts: 0 });
    assert!(!actions.contains(&Action::Cut(Generation(1))));
    assert_eq!(world.tunnel.routes, [Generation(2)]);
}

/// The data channel is open again, but what was lost with the last one is missing: the interruption goes on.
#[test]
fn another_cause_of_the_same_interruption_is_told_and_begins_nothing_again() {
    let mut world = up();
    let began = world.now;
    world.about(1, closed());
    world.now += 2 * SECOND;
    let actions = world.about(1, gap(Time::ZERO));
    let told = |action: &Action| {
        matches!(action, Action::Report(Report::Interrupted(Generation(1), InterruptionCause::Gap, _)))
    };
    assert!(actions.iter().any(told), "{actions:?}");
    world.advance_to_deadline();
    assert_eq!(world.now, began + 5 * SECOND, "failover_after counts from the close");
}
