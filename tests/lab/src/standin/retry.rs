//! PURE. How often and when the plugin tries to open its data channel again: once at once, then five times more.

use std::time::Duration;

use rand::RngExt;

/// Tries after the first one.
const RETRIES: u32 = 5;

/// The waits between the tries of one budget. When they are used up the plugin does nothing more, for ever.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    first: Duration,
}

impl Schedule {
    /// A first wait of 100 to 199 ms, drawn once for the session's life.
    pub fn draw() -> Self {
        Self { first: Duration::from_millis(rand::rng().random_range(100..200)) }
    }

    /// The wait after `failed` tries have failed, each twice as long as the one before; `None` when there are no more.
    pub fn wait(self, failed: u32) -> Option<Duration> {
        (1..=RETRIES).contains(&failed).then(|| self.first * (1 << (failed - 1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_try_and_five_more_within_three_to_six_and_a_half_seconds() {
        for _ in 0..1000 {
            let schedule = Schedule::draw();
            let waits: Vec<_> = (1..).map_while(|failed| schedule.wait(failed)).collect();
            assert_eq!(waits.len(), 5);
            assert!(waits.windows(2).all(|pair| pair[1] == pair[0] * 2));
            let all = waits.iter().sum::<Duration>();
            assert!((Duration::from_millis(3100)..Duration::from_millis(6200)).contains(&all), "{all:?}");
        }
    }
}
