//! PURE. Keeps a flood of lines out of the log.

use std::time::{Duration, Instant};

/// Lines that are let through in a [`SPAN`].
const LINES: usize = 50;
const SPAN: Duration = Duration::from_secs(1);

/// Counts the lines of one plugin.
#[derive(Debug)]
pub(super) struct Thinning {
    begun: Instant,
    lines: usize,
}

/// What to do with a line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Log it.
    Log,
    /// First say that this many were left out, then log it.
    LogAfter(usize),
    /// Leave it out.
    LeaveOut,
}

impl Thinning {
    pub(super) fn new(now: Instant) -> Self {
        Self { begun: now, lines: 0 }
    }

    /// A line came.
    pub(super) fn line(&mut self, now: Instant) -> Verdict {
        let left_out = if now.saturating_duration_since(self.begun) >= SPAN { self.finish(now) } else { 0 };
        self.lines += 1;
        match (left_out, self.lines > LINES) {
            (_, true) => Verdict::LeaveOut,
            (0, false) => Verdict::Log,
            (left_out, false) => Verdict::LogAfter(left_out),
        }
    }

    /// Begins a new span. Returns how many lines of the last one were left out.
    pub(super) fn finish(&mut self, now: Instant) -> usize {
        let left_out = self.lines.saturating_sub(LINES);
        *self = Self::new(now);
        left_out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fifty_lines_a_second_and_then_a_count() {
        let start = Instant::now();
        let mut thinning = Thinning::new(start);
        let verdicts: Vec<_> = (0..60).map(|_| thinning.line(start)).collect();
        assert!(verdicts[..50].iter().all(|verdict| *verdict == Verdict::Log));
        assert!(verdicts[50..].iter().all(|verdict| *verdict == Verdict::LeaveOut));
        let later = start + SPAN;
        assert_eq!(thinning.line(later), Verdict::LogAfter(10));
        assert_eq!(thinning.line(later), Verdict::Log);
        assert_eq!(thinning.finish(later), 0);
    }
}
