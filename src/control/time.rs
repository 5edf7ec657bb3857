//! Moments as they stand in everything that goes over the socket and into the record: RFC 3339, UTC, milliseconds.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::{Deserialize, Deserializer, Error as _};
use serde::{Serialize, Serializer};

/// 9999-12-31T23:59:59.999Z, the last one that can be written.
const LAST: u64 = 253_402_300_799_999;

/// A moment, to the millisecond. As text: `2026-02-28T14:03:07.250Z`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// Now, by the host's clock.
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    /// From milliseconds since 1970.
    pub fn from_millis(millis: u64) -> Self {
        Self(millis.min(LAST))
    }

    /// In milliseconds since 1970.
    pub fn millis(self) -> u64 {
        self.0
    }

    /// How long this is after `earlier`; zero if it is not.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// So much later.
    pub fn after(self, duration: Duration) -> Self {
        Self::from_millis(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// So much earlier.
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = UNIX_EPOCH + Duration::from_millis(self.0);
        write!(f, "{}", humantime::format_rfc3339_millis(time))
    }
}

/// The text is not a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a time; write it like 2026-02-28T14:03:07Z or 2026-02-28T15:03:07+01:00")]
pub struct NotATime;

impl FromStr for Timestamp {
    type Err = NotATime;

    /// RFC 3339, with any offset.
    fn from_str(text: &str) -> Result<Self, NotATime> {
        let (local, offset) = match text.strip_suffix(['Z', 'z']) {
            Some(local) => (local, 0),
            None => {
                let at = text.len().checked_sub(6).filter(|at| text.is_char_boundary(*at)).ok_or(NotATime)?;
                let (local, offset) = text.split_at(at);
                (local, minutes(offset).ok_or(NotATime)?)
            }
        };
        let local = humantime::parse_rfc3339(&format!("{local}Z")).map_err(|_| NotATime)?;
        let local = i64::try_from(Self::from(local).0).map_err(|_| NotATime)?;
        u64::try_from(local - offset * 60_000).map(Self::from_millis).map_err(|_| NotATime)
    }
}

/// `+01:30` in minutes.
fn minutes(offset: &str) -> Option<i64> {
    let (sign, rest) = match offset.as_bytes().first()? {
        b'+' => (1, offset.get(1..)?),
        b'-' => (-1, offset.get(1..)?),
        _ => return None,
    };
    let (hours, minutes) = rest.split_once(':')?;
    let number = |text: &str, most: i64| {
        let digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<i64>().ok().filter(|number| digits && *number <= most)
    };
    Some(sign * (number(hours, 23)? * 60 + number(minutes, 59)?))
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_read_as_it_is_written() {
        for millis in [0, 1, 1_772_287_387_250, LAST] {
            let moment = Timestamp::from_millis(millis);
            assert_eq!(moment.to_string().parse(), Ok(moment));
        }
        assert_eq!(Timestamp::from_millis(1_772_287_387_250).to_string(), "2026-02-28T14:03:07.250Z");
        assert_eq!(Timestamp::from_millis(u64::MAX).millis(), LAST);
    }

    #[test]
    fn offsets_are_understood_and_nonsense_is_not() {
        let utc: Timestamp = "2026-02-28T14:03:07Z".parse().unwrap();
        assert_eq!("2026-02-28T15:33:07+01:30".parse(), Ok(utc));
        assert_eq!("2026-02-28T09:03:07-05:00".parse(), Ok(utc));
        for text in
            ["", "Z", "yesterday", "2026-02-28", "2026-02-28T14:03:07", "2026-02-28T14:03:07+1:00", "ääää"]
        {
            assert_eq!(text.parse::<Timestamp>(), Err(NotATime), "{text}");
        }
        assert_eq!("1970-01-01T00:00:00+01:00".parse::<Timestamp>(), Err(NotATime));
    }
}
