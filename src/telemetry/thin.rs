//! A limit for log lines that an outsider can provoke: at most so many a second, then a count.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const WINDOW: Duration = Duration::from_secs(1);

/// Lets a number of lines through in each second and counts the others. One value stands for one kind of line.
///
/// The count is told with the next line that is let through; lines left out at the end of a flood are never told.
#[derive(Debug)]
pub struct Thin {
    per_second: u32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    window: Option<Instant>,
    passed: u32,
    left_out: u64,
}

impl Thin {
    /// At most `per_second` lines in a second.
    pub fn new(per_second: u32) -> Self {
        Self { per_second, state: Mutex::default() }
    }

    /// Whether a line may be written at `now`: `Some` with the number of lines left out since the last one, or `None`
    /// if this one is to be left out too.
    pub fn pass(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.window.is_none_or(|start| now.saturating_duration_since(start) >= WINDOW) {
            state.window = Some(now);
            state.passed = 0;
        }
        if state.passed < self.per_second {
            state.passed += 1;
            Some(std::mem::take(&mut state.left_out))
        } else {
            state.left_out += 1;
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_some_and_counts_the_rest() {
        let thin = Thin::new(2);
        let start = Instant::now();
        assert_eq!(thin.pass(start), Some(0));
        assert_eq!(thin.pass(start + Duration::from_millis(10)), Some(0));
        assert_eq!(thin.pass(start + Duration::from_millis(20)), None);
        assert_eq!(thin.pass(start + Duration::from_millis(999)), None);
        assert_eq!(thin.pass(start + WINDOW), Some(2));
        assert_eq!(thin.pass(start + WINDOW), Some(0));
        assert_eq!(thin.pass(start + WINDOW), None);
        assert_eq!(thin.pass(start + 5 * WINDOW), Some(1));
    }
}
