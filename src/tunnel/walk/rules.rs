//! The rules one by one, each beside others of its subject.

mod commands;
mod destination;
mod interruption;
mod loss;
mod rotation;
mod stalled;

use super::*;
use crate::tunnel::failure::{Class, Failure};
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
    SessionEvent::Interrupted {
        cause: InterruptionCause::Closed,
        reason: "close 1000: Bye".into(),
        lasted: Duration::ZERO,
    }
}

/// What has been begun is there.
fn opened(world: &World) -> bool {
    world.real.values().all(|real| !real.start_pending && (real.open || !real.plugin))
}

fn starts(actions: &[Action]) -> usize {
    actions.iter().filter(|action| matches!(action, Action::Start(..))).count()
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
