//! The events that are kept of each tunnel, and those who follow them.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::broadcast;

use super::{Board, Inner};
use crate::control::protocol::Event;
use crate::control::time::Timestamp;

/// Events kept of each tunnel, at most: a quiet day has a hundred.
pub(super) const EVENTS: usize = 2000;
/// Events kept in all, as far as each tunnel has a [`DAY`]: some 70 MB.
const ALL_EVENTS: usize = 100_000;
/// Events kept of each tunnel at least.
const DAY: usize = 200;
/// Events that a client of `/api/events` gets that comes back, at most.
const BACKLOG: usize = 10_000;

/// An event, in the order in which they came here.
#[derive(Clone, Debug)]
pub struct Arrived {
    /// Its number.
    pub number: u64,
    /// The event.
    pub event: Arc<Event>,
}

/// Events for a client that goes on where it was.
#[derive(Debug)]
pub struct Followed {
    /// What has happened, in its order.
    pub here: VecDeque<Arrived>,
    /// Before that there were others.
    pub missed: bool,
    /// What happens, of any tunnel.
    pub coming: broadcast::Receiver<Arrived>,
}

impl Board {
    /// An event has come; one that is here already is not taken twice.
    pub fn event(&self, name: &str, event: Event) {
        let event = Arc::new(event);
        let mut inner = self.inner();
        let most = (ALL_EVENTS / inner.tunnels.len().max(1)).clamp(DAY, EVENTS);
        let Inner { tunnels, next, .. } = &mut *inner;
        let tunnel = tunnels.entry(name.to_owned()).or_default();
        let mut latest =
            tunnel.events.iter().rev().map(|known| &known.event).take_while(|one| one.at >= event.at);
        if latest.any(|known| *known == event) {
            return;
        }
        tunnel.past.take(&event);
        let arrived = Arrived { number: *next, event };
        *next += 1;
        tunnel.events.push_back(arrived.clone());
        let many = tunnel.events.len().saturating_sub(most);
        tunnel.evicted = tunnel.events.drain(..many).next_back().or(tunnel.evicted.take());
        tunnel.timeline_changed = true;
        // While nobody can begin to follow, who would get it twice.
        let _ = self.happened.send(arrived);
        drop(inner);
        self.dirty.notify_one();
    }

    /// When the last event of this tunnel was that is here.
    pub fn last_event(&self, name: &str) -> Option<Timestamp> {
        self.inner().tunnels.get(name).and_then(|tunnel| tunnel.events.back()).map(|last| last.event.at)
    }

    /// The last events of one tunnel or of all, oldest first.
    pub fn events(&self, name: Option<&str>, last: usize) -> Vec<Arc<Event>> {
        let inner = self.inner();
        let tunnels = inner.tunnels.iter().filter(|(one, _)| name.is_none_or(|name| name == *one));
        let events = tunnels.flat_map(|(_, tunnel)| tunnel.events.iter().rev().take(last));
        let mut events: Vec<_> = events.map(|arrived| arrived.event.clone()).collect();
        events.sort_by_key(|event| (event.at, event.seq));
        events.drain(..events.len().saturating_sub(last));
        events
    }

    /// Events of this tunnel, or of all, from now on; and those before that `admits` lets in.
    pub fn follow(&self, name: Option<&str>, admits: impl Fn(&Arrived) -> bool) -> Followed {
        let inner = self.inner();
        let (mut here, mut missed) = (Vec::new(), false);
        for (_, tunnel) in inner.tunnels.iter().filter(|(one, _)| name.is_none_or(|name| name == *one)) {
            here.extend(tunnel.events.iter().filter(|arrived| admits(arrived)).cloned());
            missed |= tunnel.evicted.as_ref().is_some_and(&admits);
        }
        here.sort_by_key(|arrived| arrived.number);
        let many = here.len().saturating_sub(BACKLOG);
        here.drain(..many);
        Followed { here: here.into(), missed: missed || many > 0, coming: self.happened.subscribe() }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;
    use crate::control::protocol::{State, Status, history};
    use crate::web::timeline::Kind;

    fn event(seq: u64, at: u64) -> Event {
        Event { seq, at: Timestamp::from_millis(at), ..Event::default() }
    }

    #[test]
    fn events_come_once_and_do_not_fill_the_memory() {
        let board = Board::default();
        for name in 0..1000 {
            for seq in 0..300 {
                board.event(&name.to_string(), event(seq, seq));
            }
        }
        assert_eq!(board.events(Some("999"), usize::MAX).len(), DAY);
        assert_eq!(board.events(None, 5).len(), 5);
        let all = |_: &Arrived| true;
        let followed = board.follow(None, all);
        assert!(followed.here.len() == BACKLOG && followed.missed);
        // Asked for again from the last moment on.
        board.event("999", event(299, 299));
        let number = |followed: &Followed| followed.here.back().map(|last| last.number);
        assert_eq!(number(&board.follow(None, all)), number(&followed));
        // Who was there lately has missed nothing; who comes back too late is told so.
        let of = |least: u64| board.follow(Some("999"), move |arrived| arrived.event.at.millis() >= least);
        assert!((of(100).here.len(), of(100).missed) == (200, false));
        assert!((of(99).here.len(), of(99).missed) == (200, true));
        assert!(of(300).here.is_empty() && !of(300).missed);
        // A daemon that counts anew.
        board.event("999", event(1, 300));
        assert_eq!(board.last_event("999"), Some(Timestamp::from_millis(300)));
    }

    /// The timeline is drawn from more than the events that there is room for.
    #[test]
    fn a_long_day_of_many_tunnels_is_shown_from_its_beginning() {
        let board = Board::default();
        let now = Timestamp::now();
        let ago = |seconds: u64| now.before(Duration::from_secs(seconds));
        let turned = |at, was: &str, state: &str| {
            let fields = [("state".to_owned(), state.into()), ("was".to_owned(), was.into())].into();
            Event { at, event: history::STATE.into(), fields, duration_ms: Some(1000), ..Event::default() }
        };
        for name in 0..500 {
            board.event(&format!("other-{name}"), event(1, now.millis()));
        }
        board.event("db", turned(ago(80_000), "up", "waiting"));
        board.event("db", turned(ago(76_000), "waiting", "up"));
        // Five sessions, each closed every hour; and attempts that failed.
        for n in 0..3000 {
            let word = ["interrupted", "resumed", "failed"][n as usize % 3];
            board.event("db", Event { event: word.into(), ..event(n, ago(70_000 - 20 * n).millis()) });
        }
        board.status(
            "db",
            Status { state: State::Up, since: ago(76_000), ..Status::default() },
            Instant::now(),
        );
        assert_eq!(board.events(Some("db"), usize::MAX).len(), DAY);
        let drawn = board.inner().tunnels["db"].timeline(now);
        let told: Vec<_> = drawn.spans.iter().map(|span| (span.kind, now.since(span.at).as_secs())).collect();
        assert_eq!(
            told,
            [(Kind::Unknown, 86_400), (Kind::Up, 80_001), (Kind::Down, 80_000), (Kind::Up, 76_000)]
        );
        assert!(drawn.marks.len() > 300, "{}", drawn.marks.len());
    }
}
