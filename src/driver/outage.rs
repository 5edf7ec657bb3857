//! Tells when a tunnel has not served its clients for longer than an hourly close takes, and when it serves them again:
//! what an operator wants to be told.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{error, info};

use super::report::span;
use crate::tunnel::status::State;

/// A close that is resumed, or a session that is replaced, takes less than a second: longer than this is worth a word.
const LONGER: Duration = Duration::from_secs(5);

/// Whether clients get through, and who has been told.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum Outage {
    #[default]
    None,
    /// Nobody has been told yet.
    Since(Instant),
    Told(Instant),
}

impl Outage {
    /// When there will be something to tell if nothing changes.
    pub fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Since(since) => Some(*since + LONGER),
            Self::None | Self::Told(_) => None,
        }
    }

    /// Looks at the tunnel as it is now; `reason` is asked for only where it is told.
    pub fn look(&mut self, tunnel: &str, state: State, now: Instant, reason: impl FnOnce() -> String) {
        match state {
            State::Up => {
                if let Self::Told(since) = *self {
                    let (lasted, duration_ms) = lasted(now, since);
                    info!(tunnel, event = "back", duration_ms, "clients get through again, after {lasted}");
                }
                *self = Self::None;
            }
            State::Interrupted | State::Starting | State::Waiting => match *self {
                Self::None => *self = Self::Since(now),
                Self::Since(since) if now >= since + LONGER => {
                    *self = Self::Told(since);
                    let ((lasted, duration_ms), reason) = (lasted(now, since), reason());
                    error!(
                        tunnel,
                        event = "down",
                        duration_ms,
                        reason,
                        "down for {lasted}, clients are held: {reason}"
                    );
                }
                Self::Since(_) | Self::Told(_) => {}
            },
            // Somebody has asked for that.
            State::Draining | State::Stopping | State::Stopped => *self = Self::None,
        }
    }
}

fn lasted(now: Instant, since: Instant) -> (String, u64) {
    let lasted = now.saturating_duration_since(since);
    (span(lasted), u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_hourly_close_is_no_outage_and_an_outage_is_told_once() {
        let began = Instant::now();
        let mut outage = Outage::default();
        let look = |outage: &mut Outage, state, seconds| {
            let mut asked = 0;
            outage.look("db", state, began + SECOND * seconds, || {
                asked += 1;
                String::new()
            });
            asked
        };
        assert_eq!(look(&mut outage, State::Interrupted, 0), 0);
        assert_eq!(outage.deadline(), Some(began + LONGER));
        assert_eq!(look(&mut outage, State::Up, 4), 0);
        assert_eq!(
            (look(&mut outage, State::Waiting, 10), outage.deadline()),
            (0, Some(began + SECOND * 15))
        );
        assert_eq!(look(&mut outage, State::Starting, 14), 0, "attempts that fail do not begin it anew");
        assert_eq!((look(&mut outage, State::Waiting, 15), outage.deadline()), (1, None));
        assert_eq!(look(&mut outage, State::Starting, 1000), 0, "once");
        assert_eq!(look(&mut outage, State::Up, 1001), 0);
        assert_eq!(outage, Outage::None);
    }

    #[test]
    fn what_was_asked_for_is_no_outage() {
        let began = Instant::now();
        let mut outage = Outage::default();
        outage.look("db", State::Waiting, began, String::new);
        outage.look("db", State::Draining, began + SECOND, String::new);
        assert_eq!(outage.deadline(), None);
        outage.look("db", State::Starting, began + SECOND * 9, || unreachable!());
        assert_eq!(outage, Outage::Since(began + SECOND * 9));
    }
}
