//! The rules one by one.

use super::*;
use crate::tunnel::machine::{BARELY, Next, OPENING, SOON, TERMINATE_ATTEMPTS};
use crate::tunnel::step::Step;
use crate::tunnel::{Reason, Report};

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

#[test]
fn the_first_serves_again_where_the_second_is_interrupted() {
    let mut world = up();
    world.about(1, SessionEvent::Connections(1));
    world.about(1, closed());
    world.advance_to_deadline();
    world.about(2, SessionEvent::Started);
    world.about(2, SessionEvent::Opened);
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

/// What has been begun is there.
fn opened(world: &World) -> bool {
    world.real.values().all(|real| !real.start_pending && (real.open || !real.plugin))
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

fn starts(actions: &[Action]) -> usize {
    actions.iter().filter(|action| matches!(action, Action::Start(..))).count()
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
    let actions = world.about(1, SessionEvent::PluginExited { words: "stopped".into(), killed: false });
    assert_eq!(actions, [Action::Forget(Generation(1)), Action::Stopped]);
}

#[test]
fn a_rotation_on_request_is_make_before_break_and_tries_at_once() {
    let mut world = up();
    world.about(1, SessionEvent::Connections(1));
    let actions = world.feed(Event::Command(Command::Rotate), 0.5);
    assert!(actions.contains(&Action::Start(Generation(2))));
    assert!(actions.contains(&Action::Report(Report::Replacing(Generation(1), Reason::Requested))));
    assert_eq!(world.tunnel.routes, [Generation(1)]);
    world.about(2, SessionEvent::StartFailed(Failure::new(Class::Access, "denied")));
    // The policy was mended: nobody wants to wait for the clock.
    let actions = world.feed(Event::Command(Command::Rotate), 0.5);
    assert!(actions.contains(&Action::Start(Generation(3))));
    world.about(3, SessionEvent::Started);
    let actions = world.about(3, SessionEvent::Opened);
    assert_eq!(actions[0], Action::Route(vec![Generation(3)]));
    assert!(!actions.contains(&Action::Cut(Generation(1))));
}

#[test]
fn a_restart_ends_every_session_and_begins_anew_at_once() {
    let mut world = up();
    world.about(1, SessionEvent::Connections(1));
    world.feed(Event::Command(Command::Rotate), 0.5);
    let actions = world.feed(Event::Command(Command::Restart), 0.5);
    assert_eq!(actions[0], Action::Route(vec![]));
    assert!(actions.contains(&Action::Cut(Generation(1))) && actions.contains(&Action::Cut(Generation(2))));
    assert!(actions.contains(&Action::Start(Generation(3))));
    assert!(world.obliges(|w| w.tunnel.routes == [Generation(3)]));
}

#[test]
fn a_drained_tunnel_holds_its_clients_and_stays_ready() {
    let mut world = up();
    world.about(1, SessionEvent::Connections(1));
    let actions = world.feed(Event::Command(Command::Drain), 0.5);
    assert_eq!(actions, [Action::Route(vec![])], "the open connection goes on");
    assert_eq!(world.tunnel.status().state, State::Draining);
    // A session that is lost meanwhile is replaced: at the end of the maintenance everything is there.
    world.about(1, SessionEvent::PluginExited { words: "killed".into(), killed: true });
    assert!(world.obliges(|w| w.tunnel.sessions.iter().any(Session::routable)));
    assert_eq!(world.tunnel.routes, []);
    let actions = world.feed(Event::Command(Command::Resume), 0.5);
    assert_eq!(actions, [Action::Route(vec![Generation(2)])]);
}

#[test]
fn a_tunnel_that_stops_takes_no_commands() {
    let mut world = up();
    world.about(1, SessionEvent::Connections(1));
    world.feed(STOP, 0.5);
    for command in [Command::Rotate, Command::Restart, Command::Drain, Command::Resume] {
        assert!(world.feed(Event::Command(command), 0.5).is_empty());
    }
}

#[test]
fn what_is_waited_for_is_named() {
    let mut world = up();
    assert_eq!(world.tunnel.next_step(), None);
    world.about(1, closed());
    assert_eq!(world.tunnel.next_step(), Some((world.now + 5 * SECOND, Step::Failover)));
    world.advance_to_deadline();
    assert!(matches!(world.tunnel.next_step(), Some((_, Step::ResumingOver))));
    world.about(2, SessionEvent::StartFailed(Failure::new(Class::Access, "denied")));
    let (at, step) = world.tunnel.next_step().unwrap();
    assert_eq!((Some(at), step), (world.tunnel.status().next_attempt, Step::Start));
    world.feed(STOP, 0.5);
    assert!(matches!(world.tunnel.next_step(), Some((_, Step::StoppingOver))));

    let mut world = World::new(Settings { rotate: Rotate::At(3600 * SECOND), ..settings() });
    let began = world.now;
    world.about(1, SessionEvent::Started);
    world.about(1, SessionEvent::Opened);
    let (at, step) = world.tunnel.next_step().unwrap();
    assert!(step == Step::Rotation && at <= began + 3600 * SECOND && at >= began + 3240 * SECOND, "{at:?}");
    world.about(1, closed());
    assert!(matches!(world.tunnel.next_step(), Some((_, Step::Failover))));
}

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
