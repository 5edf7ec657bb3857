//! What an operator asks for: a rotation, a restart, a drain, a stop.

use super::*;
use crate::tunnel::session::Session;

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
