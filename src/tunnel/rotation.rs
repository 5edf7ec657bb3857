//! When a session is too old.
//!
//! An account can have a maximum session duration (1 to 1440 minutes, none by default), at which the service ends every
//! session with all its connections. A session is replaced before that, make-before-break; each a little earlier than it
//! has to be, by a share drawn for it, so that neither a host's tunnels nor a tunnel's sessions are replaced at once.
//!
//! What the account says is believed. Where nobody may ask it, the maximum is learned from the ends that the service
//! declares, and that is a belief: it can be a mistake (a host that reboots every night), and an account's maximum can be
//! raised. So it is tested each time that it is used, at nobody's cost: one session that was replaced for it is kept until
//! the service ends it, or until it has outlived the belief, which is then dropped.

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
/// Sessions that die younger than this do so for another reason. The least maximum is a minute.
const YOUNG: Duration = Duration::from_secs(50);
/// Nor is the service believed in words that a session must not become older than this.
const TOO_YOUNG: Duration = Duration::from_secs(10);
/// The service may look at its sessions' ages once a minute.
const LATE: Duration = Duration::from_secs(60);

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

/// The account's maximum session duration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Limit {
    /// Nobody here may ask for it, or what was answered cannot be read.
    #[default]
    Unknown,
    /// The account has none.
    None,
    /// The service ends sessions at this age.
    At(Duration),
}

/// What is known of the age at which the service ends sessions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Lifetime {
    /// As the account's preferences say.
    told: Limit,
    /// As sessions have met it.
    met: Option<Met>,
    /// The end that the service declared last; of several at once, of the same age, the first.
    last: Option<End>,
    /// When the account is to be asked.
    pub ask_at: Time,
}

/// A limit that sessions have met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Met {
    age: Duration,
    /// The service has said that it is one; otherwise only the ages speak for it.
    in_words: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct End {
    age: Duration,
    at: Time,
}

impl Lifetime {
    /// The account was asked, and says this. Where it has no maximum, sessions of the same age have ended for another
    /// reason; but what the service has said in words may come from the session's own document.
    pub fn told(&mut self, limit: Limit) {
        if limit != Limit::Unknown {
            self.told = limit;
        }
        if limit == Limit::None {
            self.met = self.met.filter(|met| met.in_words);
        }
    }

    /// The account is being asked.
    pub fn asks(&mut self, now: Time, random: f64) {
        self.ask_at = now + earlier(ASK_EVERY, random);
    }

    /// The service has declared the end of a session that began then, in these words. Which words it uses for the maximum
    /// is written nowhere: those that speak of a duration are believed, and so are two ends at the same age, of which the
    /// second session began when the first had ended. (Those of a pool begin at once; whatever ends them at once, their ages
    /// are the same.)
    pub fn ended(&mut self, now: Time, began: Time, reason: &str) {
        let reason = reason.to_lowercase();
        if reason.contains("inactiv") || reason.contains("idle") {
            return;
        }
        let age = now.saturating_sub(began);
        let same = self.last.filter(|last| last.age.abs_diff(age) <= SAME_AGE);
        let again = same.filter(|last| began >= last.at && age >= YOUNG && self.told != Limit::None);
        let in_words = reason.contains("duration") && age >= TOO_YOUNG;
        if in_words || again.is_some() {
            let age = again.map_or(age, |last| last.age.min(age));
            self.met = Some(Met { age, in_words: in_words || self.met.is_some_and(|met| met.in_words) });
        }
        if same.is_none_or(|last| began >= last.at) {
            self.last = Some(End { age, at: now });
        }
    }

    /// The age at which the service ends sessions. What the account says now goes before what sessions have met.
    pub fn limit(&self) -> Option<Duration> {
        match self.told {
            Limit::At(age) => Some(age),
            Limit::Unknown | Limit::None => self.met.map(|met| met.age),
        }
    }

    /// A session that serves for so long has outlived the limit that others have met. `None` where nothing is believed.
    pub fn outlived_after(&self) -> Option<Duration> {
        self.limit().filter(|_| !matches!(self.told, Limit::At(_))).map(|age| age + LATE)
    }

    /// A session has outlived it.
    pub fn forget_met(&mut self) {
        (self.met, self.last) = (None, None);
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

    const SECOND: Duration = Duration::from_secs(1);
    const MINUTE: Duration = Duration::from_secs(60);
    const HOUR: Duration = Duration::from_secs(3600);
    const WORDS: &str = "Your session has reached its maximum session duration";
    const OTHER: &str = "Session is terminated";

    proptest! {
        #[test]
        fn earlier_and_never_later(minutes in 1u32..1440, random in 0.0..1.0f64) {
            let (limit, lifetime) = (MINUTE * minutes, Lifetime::default());
            let age = lifetime.rotates_at(Rotate::At(limit), jitter(random)).unwrap();
            prop_assert!(age <= limit && age >= limit.mul_f64(0.899), "{age:?}");
            let lifetime = Lifetime { told: Limit::At(limit), ..Lifetime::default() };
            let age = lifetime.rotates_at(Rotate::Auto, jitter(random)).unwrap();
            prop_assert!(age <= limit.mul_f64(0.9) && age >= limit.mul_f64(0.809), "{age:?}");
        }
    }

    /// Sessions that follow each other, each ended at this age in these words.
    fn ends(ages: &[(Duration, &str)]) -> Lifetime {
        let (mut lifetime, mut now) = (Lifetime::default(), Time::ZERO);
        for (age, words) in ages {
            lifetime.ended(now + *age, now, words);
            now += *age;
        }
        lifetime
    }

    #[test]
    fn without_a_limit_nothing_is_rotated() {
        assert_eq!(Lifetime::default().rotates_at(Rotate::Auto, 0), None);
        let inactive = "Your session timed out due to inactivity";
        let lifetime = ends(&[(MINUTE * 20, inactive), (MINUTE * 20, inactive), (MINUTE * 33, OTHER)]);
        assert_eq!(lifetime.limit(), None);
        assert_eq!(Lifetime { told: Limit::At(MINUTE), ..lifetime }.rotates_at(Rotate::Off, 0), None);
    }

    #[test]
    fn the_limit_is_learned_from_words_or_from_two_ends_at_the_same_age() {
        assert_eq!(ends(&[(HOUR, WORDS)]).limit(), Some(HOUR));
        assert_eq!(ends(&[(HOUR, OTHER)]).limit(), None);
        let (later, late) = (HOUR + SAME_AGE, HOUR + SAME_AGE / 2);
        assert_eq!(ends(&[(later, OTHER), (late, OTHER)]).limit(), Some(late));
        assert_eq!(ends(&[(SAME_AGE, OTHER), (SAME_AGE, OTHER)]).limit(), None, "for another reason");
    }

    /// An instance reboots, and the service ends what was begun with it within a few seconds.
    #[test]
    fn what_ends_a_pool_at_once_is_no_limit() {
        let mut lifetime = Lifetime::default();
        for nth in 0..4 {
            lifetime.ended(HOUR + nth * SECOND, nth * SECOND, OTHER);
        }
        assert_eq!(lifetime.limit(), None);
        // But where it is one, the pool's next sessions meet it again.
        for nth in 0..4 {
            let began = HOUR + nth * SECOND;
            lifetime.ended(began + HOUR, began, OTHER);
            assert_eq!(lifetime.limit(), Some(HOUR), "the first of them began when the first had ended");
        }
    }

    #[test]
    fn the_account_goes_before_what_was_met() {
        let mut lifetime = ends(&[(HOUR, WORDS)]);
        lifetime.told(Limit::At(HOUR * 2));
        assert_eq!(
            (lifetime.limit(), lifetime.outlived_after()),
            (Some(HOUR * 2), None),
            "and is not tested"
        );
        // An answer that cannot be had leaves things as they were.
        lifetime.told(Limit::Unknown);
        assert_eq!(lifetime.limit(), Some(HOUR * 2));
        lifetime.told(Limit::None);
        assert_eq!(lifetime.limit(), Some(HOUR), "it may be the document's own");
        lifetime.forget_met();
        assert_eq!(lifetime.limit(), None);
    }

    #[test]
    fn an_account_without_a_limit_clears_what_ages_seemed_to_show() {
        let mut lifetime = ends(&[(HOUR, OTHER), (HOUR, OTHER)]);
        assert_eq!(lifetime.limit(), Some(HOUR));
        lifetime.told(Limit::None);
        assert_eq!(lifetime.limit(), None);
        lifetime.ended(HOUR * 3, HOUR * 2, OTHER);
        assert_eq!(lifetime.limit(), None, "nor is it learned again");
    }
}
