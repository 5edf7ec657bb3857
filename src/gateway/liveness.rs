//! PURE. Whether the other side of a connection, and the plugin behind it, still does anything.

use std::collections::VecDeque;
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

/// A connection that lasted so long was a good one.
const GOOD: Duration = Duration::from_secs(5);
/// One that lasted so long, and brought anything, may be followed at once.
const GOOD_WITH_DATA: Duration = Duration::from_secs(1);
/// One that did not last so long was short.
const SHORT: Duration = Duration::from_millis(2500);
/// So many short ones …
const SHORT_LIVES: usize = 5;
/// … within this time are no misfortune.
const WITHIN: Duration = Duration::from_secs(60);
/// After so much of that, each new connection counts only when it has proven good.
const FOR_LONG: Duration = Duration::from_secs(30);

/// How long connections last, one after the other. Something on the way that kills each of them when it has just begun to
/// bring something would have them opened anew for ever, without a pause.
#[derive(Debug, Default)]
pub struct Lives {
    short: VecDeque<Instant>,
    /// Since when there are too many short ones. A good one ends that.
    flapping: Option<Instant>,
}

impl Lives {
    /// One has ended that had lasted so long. Returns whether the next one is to be opened at once.
    pub fn ended(&mut self, now: Instant, lasted: Duration, brought_anything: bool) -> bool {
        if lasted >= GOOD {
            *self = Self::default();
            return true;
        }
        self.short.retain(|at| now.saturating_duration_since(*at) < WITHIN);
        if lasted < SHORT {
            if self.short.len() == SHORT_LIVES {
                self.short.pop_front();
                self.flapping.get_or_insert(now);
            }
            self.short.push_back(now);
        }
        brought_anything && lasted >= GOOD_WITH_DATA && self.flapping.is_none()
    }

    /// Whether a connection that was opened then can be relied upon.
    pub fn trusts(&self, now: Instant, opened: Instant) -> bool {
        let for_long = self.flapping.is_some_and(|at| now.saturating_duration_since(at) >= FOR_LONG);
        !for_long || now.saturating_duration_since(opened) >= GOOD
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

    /// A middlebox that kills each connection after a second or two.
    #[test]
    fn connections_that_are_killed_young_again_and_again_are_not_opened_without_pause() {
        let (mut now, mut lives, lasts) = (Instant::now(), Lives::default(), SECOND * 3 / 2);
        let mut sixth = None;
        for nth in 1..=40 {
            let for_long = sixth.is_some_and(|sixth| now >= sixth + FOR_LONG);
            assert_eq!(lives.trusts(now, now), !for_long, "{nth}");
            now += lasts;
            assert_eq!(lives.ended(now, lasts, true), nth <= 5, "{nth}");
            if nth >= 6 {
                sixth.get_or_insert(now);
                // The pause.
                now += SECOND;
            }
        }
        let opened = now;
        assert!(!lives.trusts(now, opened) && lives.trusts(now + GOOD, opened), "until one has proven good");
        assert!(lives.ended(now + GOOD, GOOD, false));
        assert!(lives.trusts(now + GOOD, now + GOOD) && lives.ended(now + GOOD * 2, lasts, true));
    }

    /// What is closed every few seconds, or now and then, is opened at once each time.
    #[test]
    fn connections_that_last_a_little_or_are_killed_now_and_then_are_opened_at_once() {
        for (lasts, pause) in [(SECOND * 3, Duration::ZERO), (SECOND * 2, SECOND * 15)] {
            let (mut now, mut lives) = (Instant::now(), Lives::default());
            for _ in 0..40 {
                now += lasts + pause;
                assert!(lives.ended(now, lasts, true));
            }
        }
        let (mut lives, now) = (Lives::default(), Instant::now());
        assert!(!lives.ended(now, SECOND * 3, false), "nothing came of it");
        assert!(!lives.ended(now, SECOND / 2, true), "closed at once");
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
