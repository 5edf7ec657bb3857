//! When the next attempt is made.
//!
//! | class | first ceiling | last ceiling | floor |
//! |---|---|---|---|
//! | needs a change | 5 min | 5 min | 90 % |
//! | access | 15 s | 5 min | 50 % |
//! | target not connected | 2 s | 10 s, after 42 failures (5 min) 20 s | 50 % |
//! | throttled | 2 s | 30 s | 50 % |
//! | network or service | 0.5 s | 10 s | 0 |
//!
//! The ceiling doubles with each failure of the same class in a row; the delay is drawn evenly between the floor (a
//! share of the ceiling) and the ceiling, so that the many tunnels that one outage has stopped do not come back in step.
//!
//! The last ceilings of network failures and of targets that are not connected are well below `hold` (30 s by default):
//! clients that are held through an outage, or while the target is rebooted, are to be served when it is over, not to be
//! sent away because the clock still runs. Nobody tells when a target that is listed by its id is back.

use std::time::Duration;

use super::failure::Class;

/// Counting further changes nothing: every class has reached its last ceiling.
const MOST_FAILURES: u32 = 64;
/// A reboot takes no longer than so many attempts. A target that is away for hours need not be asked for as often.
const REBOOTED: u32 = 42;

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
        let (first, last, floor) = bounds(class, self.failures);
        let ceiling = first.saturating_mul(2u32.saturating_pow(self.failures)).min(last);
        self.failures = (self.failures + 1).min(MOST_FAILURES);
        ceiling.mul_f64(floor + (1.0 - floor) * random.clamp(0.0, 1.0))
    }

    /// A session has proven itself: the next failure is a first one.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

/// First ceiling, last ceiling, and the floor as a share of the ceiling, after so many failures in a row.
fn bounds(class: Class, failures: u32) -> (Duration, Duration, f64) {
    let seconds = Duration::from_secs;
    match class {
        Class::NeedsChange => (seconds(300), seconds(300), 0.9),
        Class::Access => (seconds(15), seconds(300), 0.5),
        Class::TargetNotConnected if failures < REBOOTED => (seconds(2), seconds(10), 0.5),
        Class::TargetNotConnected => (seconds(2), seconds(20), 0.5),
        Class::Throttled => (seconds(2), seconds(30), 0.5),
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
                let (first, last, floor) = bounds(class, MOST_FAILURES);
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

    /// An instance's reboot: whoever is held when it is back is served, whenever that is.
    #[test]
    fn a_target_that_is_rebooted_is_asked_for_more_often_than_clients_are_sent_away() {
        let (mut backoff, mut total) = (Backoff::default(), Duration::ZERO);
        while total < Duration::from_secs(300) {
            let delay = backoff.fail(Class::TargetNotConnected, 0.5);
            assert!(delay <= Duration::from_secs(10));
            total += delay;
        }
        let later = (0..100).map(|_| backoff.fail(Class::TargetNotConnected, 1.0)).max();
        assert_eq!(later, Some(Duration::from_secs(20)), "3 s of starting a session are within `hold` too");
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
