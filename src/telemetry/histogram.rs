//! Counters and histograms with fixed labels and buckets, to be read over the control socket.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::control::protocol;

/// How long data channels are down.
pub const RESUME: &[f64] = &[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0];
/// How long clients are held.
pub const HOLD: &[f64] = &[0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Round trips to an agent.
pub const ROUND_TRIP: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0];

/// Most buckets of a histogram, the one without a bound included.
const BUCKETS: usize = 12;

/// How often something took how long.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    counts: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
}

impl Histogram {
    /// With these upper bounds in seconds, rising, fewer than 12.
    pub fn new(bounds: &'static [f64]) -> Self {
        debug_assert!(bounds.len() < BUCKETS, "too many buckets");
        Self { bounds, counts: Default::default(), sum_us: AtomicU64::default() }
    }

    /// Counts one.
    pub fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = self.bounds.iter().take_while(|bound| seconds > **bound).count();
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Relaxed);
        }
        self.sum_us.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    /// As it goes over the socket.
    pub fn read(&self) -> protocol::Histogram {
        protocol::Histogram {
            le: self.bounds.to_vec(),
            counts: self.counts.iter().take(self.bounds.len() + 1).map(|count| count.load(Relaxed)).collect(),
            sum: Duration::from_micros(self.sum_us.load(Relaxed)).as_secs_f64(),
        }
    }
}

/// Counts by a fixed set of words, each of which is there from the beginning.
#[derive(Debug)]
pub struct Counter(BTreeMap<&'static str, u64>);

impl Counter {
    /// All at 0.
    pub fn new(words: &'static [&'static str]) -> Self {
        Self(words.iter().map(|word| (*word, 0)).collect())
    }

    /// Counts one. A word that is not of the set is the caller's mistake and counts for nothing.
    pub fn count(&mut self, word: &str) {
        let known = self.0.get_mut(word);
        debug_assert!(known.is_some(), "{word} is not counted");
        if let Some(count) = known {
            *count += 1;
        }
    }

    /// As it goes over the socket.
    pub fn read(&self) -> BTreeMap<String, u64> {
        self.0.iter().map(|(word, count)| ((*word).to_owned(), *count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_falls_into_the_first_bucket_that_holds_it() {
        for bounds in [RESUME, HOLD, ROUND_TRIP] {
            assert!(bounds.len() < BUCKETS && bounds.windows(2).all(|pair| pair[0] < pair[1]));
        }
        let histogram = Histogram::new(&[0.1, 1.0]);
        for millis in [0, 100, 101, 1000, 1001, 3_600_000] {
            histogram.observe(Duration::from_millis(millis));
        }
        let read = histogram.read();
        assert_eq!((read.le.as_slice(), read.counts.as_slice()), (&[0.1, 1.0][..], &[2, 2, 2][..]));
        assert!((read.sum - 3602.202).abs() < 1e-6, "{}", read.sum);
        assert_eq!(read.count(), 6);
    }

    #[test]
    fn every_word_is_there_from_the_beginning() {
        let mut counter = Counter::new(&["a", "b"]);
        counter.count("b");
        assert_eq!(counter.read(), BTreeMap::from([("a".to_owned(), 0), ("b".to_owned(), 1)]));
    }
}
