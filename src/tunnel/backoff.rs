//! When the next attempt is made.
//!
//! | class | first ceiling | last ceiling | floor |
//! |---|---|---|---|
//! | needs a change | 5 min | 5 min | 90 % |
//! | access | 15 s | 5 min | 50 % |
//! | target not connected | 2 s | 30 s | 50 % |
//! | throttled | 2 s | 30 s | 50 % |
//! | network or service | 0.5 s | 10 s | 0 |
//!
//! The ceiling doubles with each failure of the same class in a row; the delay is drawn evenly between the floor (a
//! share of the ceiling) and the ceiling, so that the many tunnels that one outage has stopped do not come back in step.
//!
//! The last ceiling of network failures is well below `hold` (30 s by default): clients that are held through an outage
//! are to be served when it is over, not to be sent away because the clock still runs.

use std::time::Duration;

use super::failure::Class;

/// Doubling more often than this changes nothing: every class has reached its last ceiling.
const MOST_DOUBLINGS: u32 = 16;

/// One slot's clock: how often it has failed in a row, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Backoff {
    last: Option<Class>,
    failures: u32,
}

impl Backoff {
    /// Counts a failure and says how long to wait. `random` is in 0..1.
    pub(super) fn fail(&mut self, class: Class, random: f64) -> Duration {
        if self.last != Some(class) {
            self.last = Some(class);
            self.failures = 0;
        }
        let (first, last, floor) = bounds(class);
        let ceiling = first.saturating_mul(1 << self.failures).min(last);
        self.failures = (self.failures + 1).min(MOST_DOUBLINGS);
        ceiling.mul_f64(floor + (1.0 - floor) * random.clamp(0.0, 1.0))
    }

    /// A session has proven itself: the next failure is a first one.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

/// First ceiling, last ceiling, and the floor as a share of the ceiling.
pub(super) fn bounds(class: Class) -> (Duration, Duration, f64) {
    let seconds = Duration::from_secs;
    match class {
        Class::NeedsChange => (seconds(300), seconds(300), 0.9),
        Class::Access => (seconds(15), seconds(300), 0.5),
        Class::TargetNotConnected | Class::Throttled => (seconds(2), seconds(30), 0.5),
        Class::Network => (Duration::from_millis(500), seconds(10), 0.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn class() -> impl Strategy<Value = Class> {
        prop_oneof![
            Just(Class::NeedsChange),
            Just(Class::Access),
            Just(Class::TargetNotConnected),
            Just(Class::Throttled),
            Just(Class::Network),
        ]
    }

    proptest! {
        #[test]
        fn stays_within_the_bounds_of_its_class(history in proptest::collection::vec((class(), 0.0..1.0f64), 1..60)) {
            let mut backoff = Backoff::default();
            for (class, random) in history {
                let (first, last, floor) = bounds(class);
                let delay = backoff.fail(class, random);
                prop_assert!(delay <= last);
                prop_assert!(delay >= first.mul_f64(floor));
            }
        }
    }

    #[test]
    fn doubles_up_to_its_last_ceiling() {
        let mut backoff = Backoff::default();
        let delays: Vec<_> = (0..9).map(|_| backoff.fail(Class::Network, 1.0).as_millis()).collect();
        assert_eq!(delays, [500, 1000, 2000, 4000, 8000, 10_000, 10_000, 10_000, 10_000]);
    }

    #[test]
    fn another_class_begins_anew() {
        let mut backoff = Backoff::default();
        for _ in 0..5 {
            backoff.fail(Class::Network, 1.0);
        }
        assert_eq!(backoff.fail(Class::Access, 1.0), Duration::from_secs(15));
        backoff.reset();
        assert_eq!(backoff.fail(Class::Access, 1.0), Duration::from_secs(15));
    }
}
