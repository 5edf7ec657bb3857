//! Sessions that are lost or never serve, and how soon others are begun in their place.

use super::*;
use crate::tunnel::ending::{BARELY, TERMINATE_ATTEMPTS};
use crate::tunnel::machine::OPENING;

#[test]
fn a_lost_plugin_is_replaced_at_once_again_and_again() {
    let mut world = up();
    for generation in 1..20 {
        let actions =
            world.about(generation, SessionEvent::PluginExited { words: "killed".into(), killed: true });
        assert!(actions.contains(&Action::Start(Generation(generation + 1))), "{generation}: {actions:?}");
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
            world.about(newest, SessionEvent::PluginExited { words: "gone".into(), killed: false })
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

/// Each session is lost two seconds after it began to serve, for ten minutes.
fn lost_young(how: impl Fn() -> SessionEvent) -> usize {
    let mut world = up();
    let mut begun = 0;
    while world.now < 600 * SECOND {
        if world.tunnel.routes.is_empty() {
            if !world.real.values().any(|real| real.start_pending || real.plugin && !real.open) {
                begun += starts(&world.advance_to_deadline());
            }
            world.obliges(opened);
            continue;
        }
        let serving = world.tunnel.routes[0].0;
        world.now += 2 * SECOND;
        let actions = world.about(serving, how());
        begun += starts(&actions);
    }
    begun
}

#[test]
fn sessions_that_are_lost_young_again_and_again_are_soon_begun_by_the_clock() {
    // Half of the last ceiling, which is what a random number of 0.5 makes of it, and the two seconds.
    let by_the_clock = 5 + 600 / 7;
    for begun in [
        lost_young(ended),
        lost_young(|| SessionEvent::Ended { reason: "no token".into(), declared: false }),
        lost_young(|| SessionEvent::PluginExited { words: "websocket: close sent".into(), killed: false }),
    ] {
        assert!((20..by_the_clock + 10).contains(&begun), "{begun} sessions in ten minutes");
    }
    let begun = lost_young(|| SessionEvent::PluginExited { words: "signal 9".into(), killed: true });
    assert!(begun > 280, "{begun}: whoever kills plugins does not make clients wait");
}

#[test]
fn a_few_sessions_that_are_lost_young_are_replaced_at_once() {
    let mut world = up();
    for generation in 1..=6 {
        world.now += 2 * SECOND;
        let actions = world.about(generation, ended());
        assert_eq!(starts(&actions), 1, "{generation}");
        assert!(world.obliges(|w| w.tunnel.routes == [Generation(generation + 1)]));
    }
    world.now += 2 * SECOND;
    assert_eq!(starts(&world.about(7, ended())), 0);
    // An operator who has put it right does not want to wait, nor be reminded.
    assert_eq!(starts(&world.feed(Event::Command(Command::Rotate), 0.5)), 1);
    assert!(world.obliges(|w| w.tunnel.routes == [Generation(8)]));
    assert_eq!(starts(&world.about(8, SessionEvent::PluginHung { reason: "silent".into() })), 0, "at birth");
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
fn a_session_that_cannot_be_terminated_is_left_to_the_record() {
    let mut world = up();
    world.about(1, SessionEvent::PluginExited { words: "gone".into(), killed: false });
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
fn a_target_that_comes_online_ends_the_wait_for_one() {
    let failed = |class| SessionEvent::StartFailed(Failure::new(class, "no"));
    let mut world = World::new(settings());
    for generation in 1..6 {
        world.about(generation, failed(Class::TargetNotConnected));
        let actions = world.feed(Event::TargetOnline, 0.5);
        assert!(actions.contains(&Action::Start(Generation(generation + 1))), "{generation}: {actions:?}");
    }
    assert!(world.feed(Event::TargetOnline, 0.5).is_empty(), "one attempt is enough");
    // What else is waited for takes its time.
    world.about(6, failed(Class::Access));
    assert!(world.feed(Event::TargetOnline, 0.5).is_empty());
}
