//! PURE. What goes to the service beside the stream: the plugin's acknowledgements above all.
//!
//! One that is lost with a data channel costs the agent a tick of 100 ms, because it resends its oldest message alone and
//! hears of it then that this one has arrived; only behind all of these does it come to what is really missing. So the
//! latest go out again on the next data channel. An agent that knows of them already takes no notice.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

/// Messages that may wait before the plugin is not read any more, and beyond which none is kept: those are made again when
/// the agent repeats what they are for.
const MAX_WAITING: usize = 1_000;
/// And their bytes: at their usual length of 310 they are far below.
const MAX_WAITING_BYTES: usize = 512 << 10;
/// As many go out again: half a second of a download, which is more than a round trip.
const RECENT: usize = 500;
const RECENT_BYTES: usize = 256 << 10;
/// What was given to a data channel for longer than that has arrived.
const ARRIVED_AFTER: Duration = Duration::from_secs(30);

/// Those of one session.
#[derive(Debug, Default)]
pub struct Acknowledgements {
    waiting: Queue,
    /// Given to the data channel, and perhaps not arrived.
    recent: Queue,
    /// When one was given last.
    given: Option<Instant>,
}

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<Bytes>,
    bytes: usize,
}

impl Acknowledgements {
    /// Whether no more may be read from the plugin until some are given out.
    pub fn is_full(&self) -> bool {
        self.waiting.messages.len() >= MAX_WAITING || self.waiting.bytes >= MAX_WAITING_BYTES
    }

    /// Has one wait, unless too many do already. (More wait than make it full: what has been read is taken.)
    pub fn add(&mut self, message: Bytes) {
        if self.waiting.messages.len() < 2 * MAX_WAITING && self.waiting.bytes < 2 * MAX_WAITING_BYTES {
            self.waiting.push(message);
        }
    }

    /// The next one for the data channel.
    pub fn next(&mut self, now: Instant) -> Option<Bytes> {
        let message = self.waiting.pop()?;
        self.recent.push(message.clone());
        self.recent.keep_latest(RECENT, RECENT_BYTES);
        self.given = Some(now);
        Some(message)
    }

    /// The data channel is closed: what it was given last may be lost, and goes out again. So few wait afterwards that the
    /// plugin is read on.
    pub fn start_over(&mut self) {
        let mut again = std::mem::take(&mut self.recent);
        while let Some(message) = self.waiting.pop() {
            again.push(message);
        }
        again.keep_latest(RECENT, RECENT_BYTES);
        self.waiting = again;
        self.given = None;
    }

    /// Forgets what has arrived by now: an idle session keeps nothing.
    pub fn look(&mut self, now: Instant) {
        if self.given.take_if(|given| now.saturating_duration_since(*given) >= ARRIVED_AFTER).is_some() {
            self.recent = Queue::default();
        }
    }

    /// Of all that is kept.
    #[cfg(any(test, fuzzing))]
    pub fn bytes(&self) -> usize {
        self.waiting.bytes + self.recent.bytes
    }
}

impl Queue {
    fn push(&mut self, message: Bytes) {
        self.bytes += message.len();
        self.messages.push_back(message);
    }

    fn pop(&mut self) -> Option<Bytes> {
        let message = self.messages.pop_front()?;
        self.bytes -= message.len();
        Some(message)
    }

    fn keep_latest(&mut self, most: usize, most_bytes: usize) {
        while self.messages.len() > most || self.bytes > most_bytes {
            self.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(number: u16) -> Bytes {
        Bytes::copy_from_slice(&number.to_be_bytes())
    }

    fn drain(acknowledgements: &mut Acknowledgements, now: Instant) -> Vec<u16> {
        std::iter::from_fn(|| acknowledgements.next(now)).map(|m| u16::from_be_bytes([m[0], m[1]])).collect()
    }

    #[test]
    fn what_a_closed_data_channel_was_given_last_goes_out_again_before_what_waits() {
        let (mut acknowledgements, now) = (Acknowledgements::default(), Instant::now());
        (0..3).for_each(|number| acknowledgements.add(message(number)));
        assert_eq!(drain(&mut acknowledgements, now), [0, 1, 2]);
        acknowledgements.start_over();
        acknowledgements.add(message(3));
        assert_eq!(drain(&mut acknowledgements, now), [0, 1, 2, 3]);
        assert!(drain(&mut acknowledgements, now).is_empty());
    }

    #[test]
    fn only_the_latest_do_and_the_plugin_is_read_on() {
        let (mut acknowledgements, now) = (Acknowledgements::default(), Instant::now());
        for number in 0..3000 {
            acknowledgements.add(message(number));
            if number < 2500 {
                acknowledgements.next(now);
            }
        }
        assert!(!acknowledgements.is_full());
        acknowledgements.start_over();
        assert!(!acknowledgements.is_full());
        assert_eq!(drain(&mut acknowledgements, now), (2500..3000).collect::<Vec<_>>());
    }

    #[test]
    fn is_bounded_and_forgets_what_has_arrived() {
        let (mut acknowledgements, now) = (Acknowledgements::default(), Instant::now());
        (0..5000).for_each(|_| acknowledgements.add(Bytes::from(vec![0; 1 << 10])));
        assert!(acknowledgements.is_full());
        assert!(
            acknowledgements.bytes() <= 2 * MAX_WAITING_BYTES + (1 << 10),
            "{}",
            acknowledgements.bytes()
        );
        drain(&mut acknowledgements, now);
        assert!(acknowledgements.bytes() <= RECENT_BYTES);
        acknowledgements.look(now + ARRIVED_AFTER);
        assert_eq!(acknowledgements.bytes(), 0);
    }
}
