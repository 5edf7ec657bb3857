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
/// One of this age that brought anything, or was closed by the service, may be followed at once.
const GOOD_ENOUGH: Duration = Duration::from_secs(1);
/// One that did not last so long was short.
const SHORT: Duration = Duration::from_millis(2500);
/// This many short ones …
const SHORT_LIVES: usize = 5;
/// … or this many that lasted a little and were closed by the service …
const SHORT_CLOSED: usize = 20;
/// … within this time are no misfortune.
const WITHIN: Duration = Duration::from_secs(60);
/// After so much of that, each new connection counts only when it has proven good.
const FOR_LONG: Duration = Duration::from_secs(30);

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The service has closed it normally, as it does every hour: it is there, and wants it opened again.
    Closed,
    /// In any other way, or by something on the way.
    Cut,
}

impl End {
    /// By the close frame's code, where there was one.
    pub fn of_code(code: Option<u16>) -> Self {
        if code == Some(1000) { Self::Closed } else { Self::Cut }
    }
}

/// How long connections last, one after the other. Something on the way that kills each of them when it has just begun to
/// bring something would have them opened again for ever, without a pause; and a service that closes them as soon as it has
/// accepted them must not be asked for ever either.
#[derive(Debug, Default)]
pub struct Lives {
    short: Recent<SHORT_LIVES>,
    closed: Recent<SHORT_CLOSED>,
    /// Since when there are too many short ones. A good one ends that.
    flapping: Option<Instant>,
}

impl Lives {
    /// One has ended that had lasted so long. Returns whether the next one is to be opened at once.
    pub fn ended(&mut self, now: Instant, lasted: Duration, end: End, brought_anything: bool) -> bool {
        if lasted >= GOOD {
            *self = Self::default();
            return true;
        }
        let good_enough = lasted >= GOOD_ENOUGH;
        if lasted < SHORT {
            let too_many = match end {
                End::Closed if good_enough => self.closed.is_one_too_many(now),
                _ => self.short.is_one_too_many(now),
            };
            if too_many {
                self.flapping.get_or_insert(now);
            }
        }
        good_enough && (brought_anything || end == End::Closed) && self.flapping.is_none()
    }

    /// Whether a connection that was opened then can be relied upon.
    pub fn trusts(&self, now: Instant, opened: Instant) -> bool {
        let for_long = self.flapping.is_some_and(|at| now.saturating_duration_since(at) >= FOR_LONG);
        !for_long || now.saturating_duration_since(opened) >= GOOD
    }
}

/// When something has happened, the last `MOST` times within [`WITHIN`].
#[derive(Debug, Default)]
struct Recent<const MOST: usize>(VecDeque<Instant>);

impl<const MOST: usize> Recent<MOST> {
    /// It has happened again. Returns whether that is more often than `MOST` times.
    fn is_one_too_many(&mut self, now: Instant) -> bool {
        self.0.retain(|at| now.saturating_duration_since(*at) < WITHIN);
        let full = self.0.len() == MOST;
        if full {
            self.0.pop_front();
        }
        self.0.push_back(now);
        full
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
            assert_eq!(lives.ended(now, lasts, End::Cut, true), nth <= 5, "{nth}");
            if nth >= 6 {
                sixth.get_or_insert(now);
                // The pause.
                now += SECOND;
            }
        }
        let opened = now;
        assert!(!lives.trusts(now, opened) && lives.trusts(now + GOOD, opened), "until one has proven good");
        assert!(lives.ended(now + GOOD, GOOD, End::Cut, false));
        assert!(lives.trusts(now + GOOD, now + GOOD) && lives.ended(now + GOOD * 2, lasts, End::Cut, true));
    }

    /// For how many of `times` connections, each of which is closed after `lasts` by the service, the next one is
    /// opened at once, with the pauses of an upstream between the others.
    fn at_once(lives: &mut Lives, now: &mut Instant, lasts: Duration, times: u32) -> u32 {
        let (mut at_once, mut failures) = (0, 0);
        for _ in 0..times {
            *now += lasts;
            if lives.ended(*now, lasts, End::Closed, false) {
                (at_once, failures) = (at_once + 1, 0);
            } else {
                failures += 1;
                *now += (SECOND / 5 * 2u32.pow(failures.min(10) - 1)).min(SECOND * 4);
            }
        }
        at_once
    }

    /// The service is there and says that it wants the channel opened again: whether it has brought anything, which only
    /// clients bring about, makes no difference.
    #[test]
    fn connections_that_the_service_closes_young_are_opened_at_once() {
        let (mut lives, mut now) = (Lives::default(), Instant::now());
        assert_eq!(at_once(&mut lives, &mut now, SECOND * 3 / 2, 20), 20);
        assert!(lives.trusts(now, now));
        // After a quiet minute there may be as many again, and a day of one every few seconds.
        now += WITHIN;
        assert_eq!(at_once(&mut lives, &mut now, SECOND, 20), 20);
        now += WITHIN;
        assert_eq!(at_once(&mut lives, &mut now, SECOND * 3, 86_400 / 3), 86_400 / 3);
        // Cuts in between are counted for themselves.
        for _ in 0..5 {
            now += SECOND;
            assert!(lives.ended(now, SECOND, End::Closed, false));
            now += SECOND;
            assert!(lives.ended(now, SECOND, End::Cut, true));
        }
        assert!(!lives.ended(now, SECOND, End::Cut, true), "the sixth");
    }

    /// For ever, that is.
    #[test]
    fn a_service_that_closes_what_it_has_accepted_is_not_hammered() {
        let hour = SECOND * 3600;
        for (lasts, most) in [(Duration::ZERO, 0), (SECOND / 2, 0), (SECOND, 20), (SECOND * 2, 20)] {
            let (mut lives, mut now) = (Lives::default(), Instant::now());
            let began = now;
            let (mut opened, mut followed) = (0, 0);
            while now < began + hour {
                followed += at_once(&mut lives, &mut now, lasts, 100);
                opened += 100;
            }
            assert!(followed <= most, "{lasts:?}: {followed} at once");
            // The longest pause is 4 s.
            assert!(opened <= 1000, "{lasts:?}: opened {opened} times in an hour");
            assert!(!lives.trusts(now, now), "{lasts:?}");
        }
    }

    #[test]
    fn only_the_services_own_normal_close_is_one() {
        for (code, end) in
            [(Some(1000), End::Closed), (Some(1001), End::Cut), (Some(1011), End::Cut), (None, End::Cut)]
        {
            assert_eq!(End::of_code(code), end);
        }
    }

    /// What is closed every few seconds, or now and then, is opened at once each time.
    #[test]
    fn connections_that_last_a_little_or_are_killed_now_and_then_are_opened_at_once() {
        for (lasts, pause) in [(SECOND * 3, Duration::ZERO), (SECOND * 2, SECOND * 15)] {
            let (mut now, mut lives) = (Instant::now(), Lives::default());
            for _ in 0..40 {
                now += lasts + pause;
                assert!(lives.ended(now, lasts, End::Cut, true));
            }
        }
        let (mut lives, now) = (Lives::default(), Instant::now());
        assert!(!lives.ended(now, SECOND * 3, End::Cut, false), "nothing came of it");
        assert!(!lives.ended(now, SECOND / 2, End::Cut, true), "cut at once");
        assert!(!lives.ended(now, SECOND / 2, End::Closed, true), "closed at once");
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
