//! Limits for log lines that an outsider can provoke, or that an outage repeats: some of them, then a count.

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

/// Lets a line through that is new, and one that was told already once in each period; counts the others.
#[derive(Debug)]
pub struct Repeats {
    every: Duration,
    kinds: usize,
    told: Vec<(Instant, String)>,
    left_out: u64,
}

impl Repeats {
    /// With this period, in which so many different lines are let through.
    pub fn new(every: Duration, kinds: usize) -> Self {
        Self { every, kinds, told: Vec::new(), left_out: 0 }
    }

    /// Whether `line` may be written at `now`: `Some` with the number of lines left out since the last one, or `None` if
    /// it is to be left out too. Where every line is another one, `kinds` of them are written in a period.
    pub fn pass(&mut self, now: Instant, line: &str) -> Option<u64> {
        self.told.retain(|(at, _)| now.saturating_duration_since(*at) < self.every);
        if self.told.len() >= self.kinds || self.told.iter().any(|(_, told)| told == line) {
            self.left_out += 1;
            return None;
        }
        self.told.push((now, line.to_owned()));
        Some(std::mem::take(&mut self.left_out))
    }

    /// Lines are being left out at the time.
    pub fn is_quiet(&self) -> bool {
        self.left_out > 0
    }

    /// What it was about is over: the number of lines left out since the last one.
    pub fn reset(&mut self) -> u64 {
        self.told.clear();
        std::mem::take(&mut self.left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_repeated_is_told_once_in_a_period_and_what_is_new_at_once() {
        let mut repeats = Repeats::new(60 * WINDOW, 8);
        let start = Instant::now();
        let at = |second: u32| start + WINDOW * second;
        assert_eq!(repeats.pass(at(0), "refused"), Some(0));
        assert_eq!(repeats.pass(at(1), "refused"), None);
        assert!(repeats.is_quiet());
        assert_eq!(repeats.pass(at(2), "timed out"), Some(1));
        // They take turns.
        assert_eq!(repeats.pass(at(3), "refused"), None);
        assert_eq!(repeats.pass(at(4), "timed out"), None);
        assert_eq!(repeats.pass(at(60), "refused"), Some(2));
        assert_eq!(repeats.pass(at(61), "refused"), None);
        assert_eq!(repeats.reset(), 1);
        assert_eq!(repeats.pass(at(61), "refused"), Some(0), "another outage");
        let passed = (0..1000).filter(|n| repeats.pass(at(100), &format!("request {n}")).is_some());
        assert_eq!(passed.count(), 7);
    }

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
