//! Which events a hook is run for, and when: pure.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::control::protocol::Event;

/// The events that wait for one hook. As many as may follow one another at once may wait; of more, the newest stay: at the
/// end of a flood the hook is told how things are, not how they were.
#[derive(Debug)]
pub(super) struct Queue {
    burst: usize,
    min_interval: Duration,
    waiting: VecDeque<Arc<Event>>,
    /// When a hook that had been run at its steady pace would be run next. It may be ahead of now by a burst.
    due: Option<Instant>,
    /// Events that the hook was not run for, or in vain, since it was last run well.
    left_out: u64,
}

/// What is to be done now.
#[derive(Debug, PartialEq)]
pub(super) enum Next {
    /// Run the hook for this event, and tell it how many were left out.
    Call(Arc<Event>, u64),
    /// Not before this.
    At(Instant),
    /// Nothing waits.
    Nothing,
}

impl Queue {
    pub fn new(burst: usize, min_interval: Duration) -> Self {
        Self { burst, min_interval, waiting: VecDeque::new(), due: None, left_out: 0 }
    }

    /// An event has happened. `false`: another one had to go.
    pub fn offer(&mut self, event: Arc<Event>) -> bool {
        let full = self.waiting.len() >= self.burst;
        if full {
            self.waiting.pop_front();
            self.left_out += 1;
        }
        self.waiting.push_back(event);
        !full
    }

    /// The hook does not run: what now?
    pub fn next(&mut self, now: Instant) -> Next {
        let ahead = self.min_interval * u32::try_from(self.burst).unwrap_or(u32::MAX).saturating_sub(1);
        let due = self.due.filter(|due| *due > now).unwrap_or(now);
        if self.waiting.is_empty() {
            return Next::Nothing;
        }
        if due > now + ahead {
            return Next::At(due - ahead);
        }
        match self.waiting.pop_front() {
            Some(event) => {
                self.due = Some(due + self.min_interval);
                Next::Call(event, std::mem::take(&mut self.left_out))
            }
            None => Next::Nothing,
        }
    }

    /// It was run in vain: neither that event nor the number that it was told is known to anybody.
    pub fn failed(&mut self, left_out: u64) {
        self.left_out += left_out + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn event(seq: u64) -> Arc<Event> {
        Arc::new(Event { seq, ..Event::default() })
    }

    fn called(next: Next) -> (u64, u64) {
        match next {
            Next::Call(event, left_out) => (event.seq, left_out),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_burst_at_once_and_then_a_steady_pace() {
        let mut queue = Queue::new(3, 10 * SECOND);
        let start = Instant::now();
        assert_eq!(queue.next(start), Next::Nothing);
        (1..=3).for_each(|seq| assert!(queue.offer(event(seq))));
        for seq in 1..=3 {
            assert_eq!(called(queue.next(start)), (seq, 0));
        }
        assert!(queue.offer(event(4)));
        assert_eq!(queue.next(start), Next::At(start + 10 * SECOND));
        assert_eq!(queue.next(start + 9 * SECOND), Next::At(start + 10 * SECOND));
        assert_eq!(called(queue.next(start + 10 * SECOND)), (4, 0));
        // One place has become free after 10 s more, all three after 30 s.
        (5..=7).for_each(|seq| assert!(queue.offer(event(seq))));
        let later = start + 60 * SECOND;
        assert_eq!([(); 3].map(|()| called(queue.next(later)).0), [5, 6, 7]);
        assert_eq!(queue.next(later), Next::Nothing);
    }

    #[test]
    fn of_a_flood_the_newest_stay_and_the_others_are_counted() {
        let mut queue = Queue::new(2, 10 * SECOND);
        let start = Instant::now();
        let kept = (1..=1000).filter(|seq| queue.offer(event(*seq))).count();
        assert_eq!(kept, 2);
        assert_eq!(called(queue.next(start)), (999, 998));
        assert_eq!(called(queue.next(start)), (1000, 0));
        // The first was in vain: it is told of with the next one.
        queue.failed(998);
        queue.offer(event(1001));
        assert_eq!(called(queue.next(start + 10 * SECOND)), (1001, 999));
    }

    #[test]
    fn without_an_interval_nothing_waits() {
        let mut queue = Queue::new(1, Duration::ZERO);
        let start = Instant::now();
        for seq in 1..100 {
            assert!(queue.offer(event(seq)));
            assert_eq!(called(queue.next(start)), (seq, 0));
        }
    }
}
