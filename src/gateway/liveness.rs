//! PURE. Whether the other side of a connection, and the plugin behind it, still does anything.

use std::time::{Duration, Instant};

/// Pings at intervals, and waits for any sign of life after each.
#[derive(Debug)]
pub struct PingClock {
    interval: Duration,
    patience: Duration,
    next: Instant,
    unanswered: Option<Instant>,
}

/// What a look at the clock says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing to do.
    Well,
    /// It is time for a ping.
    Ping,
    /// A ping has been without an answer for too long.
    Dead,
}

impl PingClock {
    /// For a connection that was made now.
    pub fn new(now: Instant, interval: Duration, patience: Duration) -> Self {
        Self { interval, patience, next: now + interval, unanswered: None }
    }

    /// Something came from the other side.
    pub fn alive(&mut self) {
        self.unanswered = None;
    }

    /// To be asked every second or so. `excused`: an answer cannot be expected, or not be seen; then the waiting for
    /// it begins anew.
    pub fn look(&mut self, now: Instant, excused: bool) -> Verdict {
        if excused && let Some(since) = &mut self.unanswered {
            *since = now;
        }
        match self.unanswered {
            Some(since) if now.saturating_duration_since(since) >= self.patience => Verdict::Dead,
            None if now >= self.next => {
                self.next = now + self.interval;
                self.unanswered = Some(now);
                Verdict::Ping
            }
            _ => Verdict::Well,
        }
    }
}

/// How long a condition has held without a break.
#[derive(Debug, Default)]
pub struct Lasting(Option<Instant>);

impl Lasting {
    /// To be told every second or so. Returns for how long it has held.
    pub fn observe(&mut self, now: Instant, holds: bool) -> Duration {
        if !holds {
            self.0 = None;
            return Duration::ZERO;
        }
        now.saturating_duration_since(*self.0.get_or_insert(now))
    }

    /// It was broken in between.
    pub fn restart(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn looks(
        clock: &mut PingClock,
        from: Instant,
        excused: impl Fn(u32) -> bool,
        seconds: std::ops::Range<u32>,
    ) -> Vec<(u32, Verdict)> {
        seconds
            .map(|second| (second, clock.look(from + SECOND * second, excused(second))))
            .filter(|(_, verdict)| *verdict != Verdict::Well)
            .collect()
    }

    #[test]
    fn a_silent_peer_is_dead_after_one_unanswered_ping() {
        let now = Instant::now();
        let mut clock = PingClock::new(now, SECOND * 15, SECOND * 10);
        assert_eq!(looks(&mut clock, now, |_| false, 0..26), [(15, Verdict::Ping), (25, Verdict::Dead)]);
    }

    #[test]
    fn any_sign_of_life_is_an_answer() {
        let now = Instant::now();
        let mut clock = PingClock::new(now, SECOND * 15, SECOND * 10);
        assert_eq!(looks(&mut clock, now, |_| false, 0..24), [(15, Verdict::Ping)]);
        clock.alive();
        assert_eq!(looks(&mut clock, now, |_| false, 24..40), [(30, Verdict::Ping)]);
    }

    #[test]
    fn no_answer_is_missed_while_it_cannot_be_expected() {
        let now = Instant::now();
        let mut clock = PingClock::new(now, SECOND * 5, SECOND * 10);
        let excused = |second| (7..100).contains(&second);
        assert_eq!(looks(&mut clock, now, excused, 0..110), [(5, Verdict::Ping), (109, Verdict::Dead)]);
    }

    #[test]
    fn a_condition_has_to_last() {
        let (now, mut lasting) = (Instant::now(), Lasting::default());
        assert_eq!(lasting.observe(now, true), Duration::ZERO);
        assert_eq!(lasting.observe(now + SECOND, true), SECOND);
        assert_eq!(lasting.observe(now + SECOND * 2, false), Duration::ZERO);
        assert_eq!(lasting.observe(now + SECOND * 3, true), Duration::ZERO);
        lasting.restart();
        assert_eq!(lasting.observe(now + SECOND * 4, true), Duration::ZERO);
    }
}
