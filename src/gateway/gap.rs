//! PURE. Gaps in the numbered messages of a session: earlier ones that are missing while later ones have arrived.
//!
//! Each end delivers in order, so that everything behind a gap waits, for all connections. The agent fills it slowly: at
//! each tick of 100 ms it resends the oldest message that is unacknowledged, that one alone, and goes on sending new ones
//! meanwhile (`datachannel.go`, `resendStreamDataMessageScheduler`). So a gap of N messages takes N/10 s, and while it is
//! there the session is as good as interrupted. What the plugin has sent is kept here, and goes out again at once.

use std::fmt;
use std::time::{Duration, Instant};

/// The agent resends one message in this time.
const AGENT_RESENDS_EVERY: Duration = Duration::from_millis(100);
/// A gap that lasts as long interrupts the session. A single lost message is resent within a second.
const GAP_TIMEOUT: Duration = Duration::from_secs(2);
/// A gap that takes the agent as long as [`GAP_TIMEOUT`] to fill interrupts it sooner …
const LONG_GAP: u64 = (GAP_TIMEOUT.as_millis() / AGENT_RESENDS_EVERY.as_millis()) as u64;
/// … namely after this time, in which messages that have only overtaken each other have come.
const REORDERING: Duration = Duration::from_millis(250);

/// How many messages are missing below the highest one that has arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gap {
    /// Messages of the agent that the plugin has not got.
    pub from_agent: u64,
    /// Messages of the plugin that the agent has not got.
    pub from_plugin: u64,
}

impl Gap {
    /// Whether nothing is missing.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// How long the agent takes to resend what is missing of it. (What is missing of the plugin takes a round trip.)
    pub fn repair_time(self) -> Duration {
        AGENT_RESENDS_EVERY.saturating_mul(u32::try_from(self.from_agent).unwrap_or(u32::MAX))
    }
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.from_agent + self.from_plugin;
        match total {
            1 => f.write_str("1 message is being repaired")?,
            _ => write!(f, "{total} messages are being repaired")?,
        }
        match self.repair_time().as_secs() {
            0 => Ok(()),
            seconds => write!(f, ", about {seconds} s"),
        }
    }
}

/// Says when a gap has become an interruption.
#[derive(Debug, Default)]
pub struct GapTimer {
    gap: Gap,
    since: Option<Instant>,
}

impl GapTimer {
    /// Notes what is missing now.
    pub fn observe(&mut self, now: Instant, gap: Gap) {
        self.gap = gap;
        self.since = if gap.is_empty() { None } else { self.since.or(Some(now)) };
    }

    /// What is missing, as it was noted last.
    pub fn gap(&self) -> Gap {
        self.gap
    }

    /// How long there has been a gap, where there is one.
    pub fn lasted(&self, now: Instant) -> Option<Duration> {
        self.since.map(|since| now.saturating_duration_since(since))
    }

    /// When the gap interrupts the session, if it stays as it is.
    pub fn interrupts_at(&self) -> Option<Instant> {
        let patience = if self.gap.from_agent >= LONG_GAP { REORDERING } else { GAP_TIMEOUT };
        self.since.map(|since| since + patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_agent(from_agent: u64) -> Gap {
        Gap { from_agent, from_plugin: 0 }
    }

    #[test]
    fn words_say_how_many_and_how_long() {
        assert_eq!(from_agent(812).to_string(), "812 messages are being repaired, about 81 s");
        assert_eq!(from_agent(1).to_string(), "1 message is being repaired");
        let both = Gap { from_agent: 40, from_plugin: 9 };
        assert_eq!(both.to_string(), "49 messages are being repaired, about 4 s");
    }

    #[test]
    fn a_gap_interrupts_after_2_s_and_a_long_one_at_once() {
        let (mut timer, now) = (GapTimer::default(), Instant::now());
        assert_eq!(timer.interrupts_at(), None);
        timer.observe(now, from_agent(3));
        assert_eq!(timer.interrupts_at(), Some(now + GAP_TIMEOUT));
        let later = now + Duration::from_secs(1);
        timer.observe(later, from_agent(LONG_GAP));
        assert_eq!(timer.interrupts_at(), Some(now + REORDERING), "it counts from its beginning");
        assert_eq!(timer.lasted(later), Some(Duration::from_secs(1)));
        timer.observe(later, Gap { from_agent: 0, from_plugin: 500 });
        assert_eq!(timer.interrupts_at(), Some(now + GAP_TIMEOUT), "that is filled in a round trip");
        timer.observe(later, Gap::default());
        assert_eq!((timer.interrupts_at(), timer.lasted(later)), (None, None));
        timer.observe(later, from_agent(1));
        assert_eq!(timer.interrupts_at(), Some(later + GAP_TIMEOUT), "another one");
    }
}
