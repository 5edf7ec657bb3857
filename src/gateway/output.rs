//! PURE. The agent's messages on their way to the plugin, and which of them the plugin has acknowledged.
//!
//! The agent acknowledges a duplicate again; the plugin does not. So an acknowledgement of the plugin's that is lost
//! with a dying connection would be missed for ever, and because the agent resends only its oldest unacknowledged
//! message, any later loss would never be repaired. The gateway therefore remembers what the plugin has acknowledged.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;

/// Messages that wait for the plugin to read. More are not read from the service.
const MAX_WAITING_BYTES: usize = 256 << 10;
/// The plugin acknowledges at most this many beyond a missing one: what its own buffer takes.
const MAX_ABOVE: usize = 10_000;

/// The agent's messages towards the plugin.
#[derive(Debug, Default)]
pub struct Output {
    waiting: VecDeque<(Option<i64>, Bytes)>,
    waiting_bytes: usize,
    /// One more than the highest number that came from the agent.
    next: i64,
    /// The plugin has acknowledged everything below this …
    low: i64,
    /// … and these.
    above: BTreeSet<i64>,
}

impl Output {
    /// Whether a message may be added; what is added beyond is a matter of a few small ones.
    pub fn has_room(&self) -> bool {
        self.waiting_bytes < MAX_WAITING_BYTES
    }

    /// A message of the agent's stream. Returns whether its number was seen for the first time.
    pub fn add(&mut self, number: i64, message: Bytes) -> bool {
        let new = number >= self.next;
        let waits = !new && self.waiting.iter().any(|(waiting, _)| *waiting == Some(number));
        if !waits {
            self.push(Some(number), message);
        }
        self.next = self.next.max(number.saturating_add(1));
        new
    }

    /// A message outside the stream.
    pub fn add_unnumbered(&mut self, message: Bytes) {
        self.push(None, message);
    }

    /// Of the messages that wait.
    #[cfg(any(test, fuzzing))]
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// The next message for the plugin.
    pub fn next(&mut self) -> Option<Bytes> {
        let (_, message) = self.waiting.pop_front()?;
        self.waiting_bytes -= message.len();
        Some(message)
    }

    /// The plugin has acknowledged this number.
    pub fn acknowledge(&mut self, number: i64) {
        if number >= self.low && self.above.len() < MAX_ABOVE {
            self.above.insert(number);
        }
        while self.above.remove(&self.low) {
            self.low += 1;
        }
    }

    /// Whether a message before this one has not come yet.
    pub fn is_early(&self, number: i64) -> bool {
        number > self.next
    }

    /// The first number that the plugin has not acknowledged.
    pub fn unacknowledged(&self) -> i64 {
        self.low
    }

    /// Whether the plugin has acknowledged a number beyond one that it lacks.
    pub fn has_gap(&self) -> bool {
        !self.above.is_empty()
    }

    /// Whether the plugin has acknowledged this number before.
    pub fn is_acknowledged(&self, number: i64) -> bool {
        number < self.low || self.above.contains(&number)
    }

    /// How many messages the plugin has not got although it has later ones. Where its buffer is full, it takes none of the
    /// later ones either, so that all that has come since is missing as well.
    pub fn missing(&self) -> u64 {
        let Some(highest) = self.above.last() else { return 0 };
        let end = if self.above.len() < MAX_ABOVE { highest.saturating_add(1) } else { self.next };
        (end.saturating_sub(self.low).unsigned_abs()).saturating_sub(self.above.len() as u64)
    }

    /// Whether the plugin owes nothing: all that came is with it and acknowledged.
    pub fn is_settled(&self) -> bool {
        self.waiting.is_empty() && self.low >= self.next
    }

    fn push(&mut self, number: Option<i64>, message: Bytes) {
        self.waiting_bytes += message.len();
        self.waiting.push_back((number, message));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// In whatever order and however often they come, exactly the acknowledged ones count as acknowledged.
        #[test]
        fn remembers_acknowledgements(numbers in proptest::collection::vec(0i64..60, 0..200)) {
            let mut output = Output::default();
            for number in &numbers {
                output.acknowledge(*number);
            }
            for number in 0..60 {
                prop_assert_eq!(output.is_acknowledged(number), numbers.contains(&number));
            }
        }
    }

    #[test]
    fn the_memory_of_acknowledgements_is_bounded() {
        let mut output = Output::default();
        (1..).take(MAX_ABOVE * 2).for_each(|number| output.acknowledge(number));
        assert_eq!(output.above.len(), MAX_ABOVE);
        // The gap is closed by the plugin's own acknowledgement, which always finds its place again.
        output.above.pop_last();
        output.acknowledge(0);
        assert!(output.above.is_empty());
    }

    #[test]
    fn a_duplicate_of_a_waiting_message_is_not_queued_twice() {
        let mut output = Output::default();
        assert!(output.add(0, Bytes::from_static(b"a")));
        assert!(!output.add(0, Bytes::from_static(b"a")));
        assert_eq!(output.next().as_deref(), Some(&b"a"[..]));
        assert_eq!(output.next(), None);
        assert!(
            !output.add(0, Bytes::from_static(b"a")),
            "the plugin has not acknowledged it: it is passed on"
        );
        assert_eq!(output.next().as_deref(), Some(&b"a"[..]));
    }

    #[test]
    fn settled_means_read_and_acknowledged() {
        let mut output = Output::default();
        assert!(output.is_settled());
        output.add(0, Bytes::from_static(b"a"));
        assert!(!output.is_settled());
        output.next();
        assert!(!output.is_settled());
        output.acknowledge(0);
        assert!(output.is_settled());
    }

    #[test]
    fn room_is_bounded_by_bytes() {
        let mut output = Output::default();
        (0..4).for_each(|number| {
            assert!(output.has_room());
            output.add(number, Bytes::from(vec![0; MAX_WAITING_BYTES / 4]));
        });
        assert!(!output.has_room());
        output.next();
        assert!(output.has_room());
    }

    #[test]
    fn what_is_missing_below_a_later_message_is_counted() {
        let mut output = Output::default();
        for number in [0, 1, 5, 6, 9] {
            output.add(number, Bytes::new());
        }
        assert_eq!(output.missing(), 0, "the plugin has acknowledged none of them yet");
        for (number, missing) in
            [(1, 1), (0, 0), (6, 4), (5, 3), (9, 5), (2, 4), (7, 3), (3, 2), (8, 1), (4, 0)]
        {
            output.acknowledge(number);
            assert_eq!(output.missing(), missing, "after the acknowledgement of {number}");
        }
    }

    #[test]
    fn a_full_plugin_misses_all_that_comes_later() {
        let mut output = Output::default();
        (1..=MAX_ABOVE as i64).for_each(|number| output.acknowledge(number));
        output.add(30_000, Bytes::new());
        assert_eq!(output.missing(), 30_001 - MAX_ABOVE as u64);
    }

    #[test]
    fn extreme_numbers_are_survived() {
        let mut output = Output::default();
        for number in [i64::MAX, i64::MIN, -1] {
            output.add(number, Bytes::new());
            output.acknowledge(number);
        }
        assert!(!output.is_acknowledged(0));
        let _ = output.missing();
    }
}
