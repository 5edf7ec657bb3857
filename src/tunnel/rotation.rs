//! When a session is too old.
//!
//! An account can have a maximum session duration (1 to 1440 minutes, none by default), at which the service ends every
//! session with all its connections. A session is replaced before that, make-before-break; each a little earlier than it
//! has to be, by a share drawn for it, so that neither a host's tunnels nor a tunnel's sessions are replaced at once.

use std::time::Duration;

use super::Time;

/// Of the age at which it would have to be replaced, a session is spared at most this share.
const JITTER: f64 = 0.1;
/// Of the account's maximum session duration: a session that is replaced at this share has time for more than one
/// attempt.
const SHARE: f64 = 0.9;
/// How often the account is asked, a little less by the jitter: its preferences may be changed.
const ASK_EVERY: Duration = Duration::from_secs(3600);
/// Ages differ by as much as an answer takes.
const SAME_AGE: Duration = Duration::from_secs(5);

/// When sessions are rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rotate {
    /// Never.
    Off,
    /// At this age at the latest.
    At(Duration),
    /// Before the account's maximum session duration, if it has one.
    Auto,
}

/// What is known of the age at which the service ends sessions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Lifetime {
    /// As the account's preferences say.
    told: Option<Duration>,
    /// As a session has met it.
    met: Option<Duration>,
    /// The age at which the service ended a session last, for whatever reason.
    last: Option<Duration>,
    /// When the account is to be asked.
    pub ask_at: Time,
}

impl Lifetime {
    /// The account was asked, and says this.
    pub fn told(&mut self, limit: Option<Duration>) {
        self.told = limit;
    }

    /// The account is being asked.
    pub fn asks(&mut self, now: Time, random: f64) {
        self.ask_at = now + earlier(ASK_EVERY, random);
    }

    /// The service has ended a session of this age, in these words. Which words it uses for the maximum is written
    /// nowhere: those that speak of a duration are believed, and so are two ends at the same age.
    pub fn ended(&mut self, age: Duration, reason: &str) {
        let reason = reason.to_lowercase();
        if reason.contains("inactiv") || reason.contains("idle") {
            return;
        }
        let again = self.last.is_some_and(|last| last.abs_diff(age) <= SAME_AGE && age >= SAME_AGE * 10);
        if again || reason.contains("duration") {
            self.met = Some(self.last.filter(|_| again).map_or(age, |last| last.min(age)));
        }
        self.last = Some(age);
    }

    /// The age at which the service ends sessions. What the account says now goes before what a session has met.
    pub fn limit(&self) -> Option<Duration> {
        self.told.or(self.met)
    }

    /// The age at which a session is to be replaced; `jitter` in thousandths.
    pub fn rotates_at(&self, rotate: Rotate, jitter: u16) -> Option<Duration> {
        let latest = match rotate {
            Rotate::Off => return None,
            Rotate::At(age) => age,
            Rotate::Auto => self.limit()?.mul_f64(SHARE),
        };
        Some(earlier(latest, f64::from(jitter) / 1000.0))
    }
}

fn earlier(latest: Duration, random: f64) -> Duration {
    latest.mul_f64(1.0 - JITTER * random.clamp(0.0, 1.0))
}

/// A share of the most by which a session is replaced earlier, in thousandths.
pub(super) fn jitter(random: f64) -> u16 {
    (random.clamp(0.0, 1.0) * 1000.0) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const WORDS: &str = "Your session has reached its maximum session duration";

    proptest! {
        #[test]
        fn earlier_and_never_later(minutes in 1u32..1440, random in 0.0..1.0f64) {
            let (limit, lifetime) = (MINUTE * minutes, Lifetime::default());
            let age = lifetime.rotates_at(Rotate::At(limit), jitter(random)).unwrap();
            prop_assert!(age <= limit && age >= limit.mul_f64(0.899), "{age:?}");
            let lifetime = Lifetime { told: Some(limit), ..Lifetime::default() };
            let age = lifetime.rotates_at(Rotate::Auto, jitter(random)).unwrap();
            prop_assert!(age <= limit.mul_f64(0.9) && age >= limit.mul_f64(0.809), "{age:?}");
        }
    }

    #[test]
    fn without_a_limit_nothing_is_rotated() {
        let mut lifetime = Lifetime::default();
        assert_eq!(lifetime.rotates_at(Rotate::Auto, 0), None);
        lifetime.ended(MINUTE * 20, "Your session timed out due to inactivity");
        lifetime.ended(MINUTE * 20, "Your session timed out due to inactivity");
        lifetime.ended(MINUTE * 33, "Session terminated by an administrator");
        assert_eq!(lifetime.limit(), None);
        assert_eq!(Lifetime { told: Some(MINUTE), ..lifetime }.rotates_at(Rotate::Off, 0), None);
    }

    #[test]
    fn the_limit_is_learned_from_words_or_from_two_ends_at_the_same_age() {
        let mut lifetime = Lifetime::default();
        lifetime.ended(MINUTE * 60, WORDS);
        assert_eq!(lifetime.limit(), Some(MINUTE * 60));

        let mut lifetime = Lifetime::default();
        lifetime.ended(MINUTE * 60 + SAME_AGE, "Session is terminated");
        assert_eq!(lifetime.limit(), None);
        lifetime.ended(MINUTE * 60 + SAME_AGE / 2, "Session is terminated");
        assert_eq!(lifetime.limit(), Some(MINUTE * 60 + SAME_AGE / 2));
        // Sessions that die young for another reason are no limit.
        let mut lifetime = Lifetime::default();
        lifetime.ended(SAME_AGE, "Session is terminated");
        lifetime.ended(SAME_AGE, "Session is terminated");
        assert_eq!(lifetime.limit(), None);
    }

    #[test]
    fn the_account_goes_before_what_was_met() {
        let mut lifetime = Lifetime::default();
        lifetime.ended(MINUTE * 60, WORDS);
        lifetime.told(Some(MINUTE * 120));
        assert_eq!(lifetime.limit(), Some(MINUTE * 120));
        lifetime.told(None);
        assert_eq!(lifetime.limit(), Some(MINUTE * 60));
    }
}
