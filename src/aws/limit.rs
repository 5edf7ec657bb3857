//! The process's own limit on StartSession, below the account's.

use std::num::NonZeroU32;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::sync::Mutex;

/// StartSession calls a second, on average.
const PER_SECOND: NonZeroU32 = NonZeroU32::new(3).unwrap();
/// Calls that may follow each other at once after a quiet time.
const BURST: NonZeroU32 = NonZeroU32::new(5).unwrap();

/// Lets callers through in the order in which they came. After an outage every tunnel of the process wants a session at
/// the same moment, and the account's own limit would refuse most of them and hold it against the others.
pub(super) struct StartLimit {
    limiter: DefaultDirectRateLimiter,
    clock: DefaultClock,
    /// Held while the first in the line waits.
    first: Mutex<()>,
}

impl Default for StartLimit {
    fn default() -> Self {
        let quota = Quota::per_second(PER_SECOND).allow_burst(BURST);
        Self { limiter: RateLimiter::direct(quota), clock: DefaultClock::default(), first: Mutex::new(()) }
    }
}

impl StartLimit {
    /// Returns when a call may be made. A caller that gives up waiting takes nothing.
    pub(super) async fn wait(&self) {
        let _first = self.first.lock().await;
        while let Err(early) = self.limiter.check() {
            tokio::time::sleep(early.wait_time_from(self.clock.now())).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn five_at_once_then_three_a_second() {
        let limit = StartLimit::default();
        let start = Instant::now();
        for _ in 0..5 {
            assert!(limit.wait().now_or_never().is_some(), "the burst does not wait");
        }
        assert!(limit.wait().now_or_never().is_none(), "the sixth waits");
        for _ in 0..3 {
            limit.wait().await;
        }
        assert!(start.elapsed() >= Duration::from_millis(990), "{:?}", start.elapsed());
    }
}
