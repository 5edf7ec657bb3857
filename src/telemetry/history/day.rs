//! How often something has happened in the last 24 hours, without remembering each time.

use crate::control::time::Timestamp;

/// What is counted together: a quarter of an hour.
const QUARTER: u64 = 15 * 60 * 1000;
const QUARTERS: usize = 96;

/// A count for each quarter of an hour.
#[derive(Debug)]
pub(super) struct Day {
    /// Which quarter, counted from 1970, and how often.
    quarters: [(u64, u32); QUARTERS],
}

impl Default for Day {
    fn default() -> Self {
        Self { quarters: [(0, 0); QUARTERS] }
    }
}

impl Day {
    pub(super) fn count(&mut self, at: Timestamp) {
        let quarter = at.millis() / QUARTER;
        let place = quarter % QUARTERS as u64;
        let Some(kept) = self.quarters.get_mut(usize::try_from(place).unwrap_or_default()) else { return };
        if kept.0 < quarter {
            *kept = (quarter, 0);
        }
        if kept.0 == quarter {
            kept.1 = kept.1.saturating_add(1);
        }
    }

    pub(super) fn last_day(&self, now: Timestamp) -> u64 {
        let oldest = (now.millis() / QUARTER).saturating_sub(QUARTERS as u64 - 1);
        self.quarters
            .iter()
            .filter(|(quarter, _)| *quarter >= oldest)
            .map(|(_, count)| u64::from(*count))
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_counted_and_no_more() {
        let hour = |hours: u64| Timestamp::from_millis(1_700_000_000_000 + hours * 3_600_000);
        let mut day = Day::default();
        for hours in 0..100 {
            day.count(hour(hours));
        }
        assert_eq!(day.last_day(hour(99)), 24);
        assert_eq!(day.last_day(hour(111)), 12);
        assert_eq!(day.last_day(hour(200)), 0);
        // One that comes late, from before the day, takes nobody's place.
        day.count(hour(1));
        assert_eq!(day.last_day(hour(99)), 24);
    }
}
