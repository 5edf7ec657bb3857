//! PURE. The plugin's stream messages on their way to the agent: each is kept until the agent has acknowledged it.
//!
//! The plugin resends its oldest unacknowledged message every 100 ms, 3000 times; then its resending is dead for good.
//! An outage of more than five minutes would leave a gap that nobody fills, so the gateway resends by itself.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

/// As many as the plugin keeps itself.
const MAX_KEPT: usize = 10_000;
/// The plugin's window of full messages: 1024 bytes of payload and 120 of header each.
const MAX_KEPT_BYTES: usize = 12 << 20;
/// Waiting time before the oldest unacknowledged message is sent again: at first and at least, and at most.
const RESEND_AFTER: Duration = Duration::from_millis(200);
const RESEND_AFTER_AT_MOST: Duration = Duration::from_secs(1);
/// How far the round trip is believed to vary at least.
const GRANULARITY: Duration = Duration::from_millis(10);

/// What a number says about a message from the plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The next one.
    Next,
    /// One before it is missing. The plugin resends both, the missing one first.
    Early,
    /// It has been taken, and the agent has not acknowledged it yet.
    Kept,
    /// The agent has acknowledged it.
    Acknowledged,
}

/// The plugin's messages, from the oldest that is not acknowledged.
#[derive(Debug, Default)]
pub struct Input {
    /// The number of `kept`'s first.
    first: i64,
    kept: VecDeque<Kept>,
    kept_bytes: usize,
    /// How many of `kept` have been given to this connection.
    given: usize,
    round_trip: RoundTrip,
}

#[derive(Debug)]
struct Kept {
    message: Bytes,
    acknowledged: bool,
    sent: Option<Sent>,
}

#[derive(Debug)]
struct Sent {
    last: Instant,
    /// More than once.
    again: bool,
}

impl Input {
    /// Where a message with this number belongs.
    pub fn place(&self, number: i64) -> Place {
        if number < self.first {
            return Place::Acknowledged;
        }
        let index = usize::try_from(number.abs_diff(self.first)).unwrap_or(usize::MAX);
        match self.kept.get(index) {
            Some(kept) if kept.acknowledged => Place::Acknowledged,
            Some(_) => Place::Kept,
            None if index == self.kept.len() => Place::Next,
            None => Place::Early,
        }
    }

    /// The number of the next message.
    pub fn next_number(&self) -> i64 {
        // No more are kept than `MAX_KEPT` and a few.
        self.first + self.kept.len() as i64
    }

    /// Whether the agent has acknowledged everything.
    pub fn is_settled(&self) -> bool {
        self.kept.is_empty()
    }

    /// Whether an acknowledgement of something that this connection has had is still to come.
    pub fn is_awaited(&self) -> bool {
        self.given > 0
    }

    /// Keeps the next message.
    pub fn keep(&mut self, message: Bytes) {
        self.kept_bytes += message.len();
        self.kept.push_back(Kept { message, acknowledged: false, sent: None });
    }

    /// Whether no more may be read from the plugin until the agent acknowledges something.
    pub fn is_full(&self) -> bool {
        self.kept.len() >= MAX_KEPT || self.kept_bytes >= MAX_KEPT_BYTES
    }

    /// Of the messages that are kept.
    #[cfg(any(test, fuzzing))]
    pub fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }

    /// How long ago a message was sent, if that was once only: else its acknowledgement may belong to either sending, and
    /// tells nothing about the round trip.
    pub fn sent_once(&self, now: Instant, number: i64) -> Option<Duration> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let sent = self.kept.get(index)?.sent.as_ref().filter(|sent| !sent.again)?;
        Some(now.saturating_duration_since(sent.last))
    }

    /// The agent has this message. Returns whether that was new.
    pub fn acknowledge(&mut self, now: Instant, number: i64) -> bool {
        if self.place(number) != Place::Kept {
            return false;
        }
        if let Some(round_trip) = self.sent_once(now, number) {
            self.round_trip.sample(round_trip);
        }
        let Some(kept) = self.kept.get_mut((number - self.first) as usize) else { return false };
        kept.acknowledged = true;
        self.kept_bytes -= kept.message.len();
        kept.message = Bytes::new();
        while self.kept.front().is_some_and(|kept| kept.acknowledged) {
            self.kept.pop_front();
            self.first += 1;
            self.given = self.given.saturating_sub(1);
        }
        true
    }

    /// A new connection to the service: all that is unacknowledged has to be given to it, in order.
    pub fn start_over(&mut self) {
        self.given = 0;
    }

    /// The next message that this connection has not had.
    pub fn next(&mut self, now: Instant) -> Option<Bytes> {
        while let Some(kept) = self.kept.get_mut(self.given) {
            self.given += 1;
            if !kept.acknowledged {
                return Some(kept.send(now));
            }
        }
        None
    }

    /// The oldest message once more, if its acknowledgement is overdue.
    pub fn next_overdue(&mut self, now: Instant) -> Option<Bytes> {
        if self.overdue_at()? > now {
            return None;
        }
        self.kept.front_mut().map(|kept| kept.send(now))
    }

    /// When the oldest message's acknowledgement is overdue.
    pub fn overdue_at(&self) -> Option<Instant> {
        if self.given == 0 {
            return None;
        }
        let sent = self.kept.front()?.sent.as_ref()?;
        Some(sent.last + self.round_trip.resend_after())
    }
}

impl Kept {
    fn send(&mut self, now: Instant) -> Bytes {
        self.sent = Some(Sent { last: now, again: self.sent.is_some() });
        self.message.clone()
    }
}

/// The round trip to the agent, measured as the two ends measure it (RFC 6298).
#[derive(Debug, Default)]
struct RoundTrip(Option<(Duration, Duration)>);

impl RoundTrip {
    fn sample(&mut self, sample: Duration) {
        self.0 = Some(match self.0 {
            None => (sample, sample / 2),
            Some((mean, variation)) => ((mean * 7 + sample) / 8, (variation * 3 + mean.abs_diff(sample)) / 4),
        });
    }

    fn resend_after(&self) -> Duration {
        self.0.map_or(RESEND_AFTER, |(mean, variation)| {
            (mean + GRANULARITY.max(variation * 4)).clamp(RESEND_AFTER, RESEND_AFTER_AT_MOST)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(number: u8) -> Bytes {
        Bytes::copy_from_slice(&[number])
    }

    fn drain(input: &mut Input, now: Instant) -> Vec<u8> {
        std::iter::from_fn(|| input.next(now).or_else(|| input.next_overdue(now)))
            .map(|message| message[0])
            .collect()
    }

    fn with(count: u8) -> Input {
        let mut input = Input::default();
        (0..count).for_each(|number| input.keep(message(number)));
        input
    }

    #[test]
    fn numbers_have_their_places() {
        let (mut input, now) = (with(3), Instant::now());
        input.acknowledge(now, 0);
        input.acknowledge(now, 2);
        let places = [-1, 0, 1, 2, 3, 4, i64::MAX, i64::MIN].map(|number| input.place(number));
        use Place::*;
        assert_eq!(
            places,
            [Acknowledged, Acknowledged, Kept, Acknowledged, Next, Early, Early, Acknowledged]
        );
    }

    #[test]
    fn a_new_connection_gets_all_that_is_unacknowledged_in_order() {
        let (mut input, now) = (with(5), Instant::now());
        assert_eq!(drain(&mut input, now), [0, 1, 2, 3, 4]);
        assert!(input.acknowledge(now, 0) && input.acknowledge(now, 3));
        assert!(!input.acknowledge(now, 3), "a second acknowledgement is nothing new");
        input.start_over();
        input.keep(message(5));
        assert_eq!(drain(&mut input, now), [1, 2, 4, 5]);
        assert!(drain(&mut input, now).is_empty());
    }

    #[test]
    fn the_oldest_is_sent_again_and_only_when_it_is_due() {
        let (mut input, now) = (with(2), Instant::now());
        assert_eq!(input.overdue_at(), None, "nothing has been sent on this connection");
        drain(&mut input, now);
        let due = input.overdue_at().unwrap();
        assert_eq!(due, now + RESEND_AFTER);
        assert!(drain(&mut input, due - Duration::from_millis(1)).is_empty());
        assert_eq!(drain(&mut input, due), [0]);
        assert_eq!(input.overdue_at(), Some(due + RESEND_AFTER));
    }

    #[test]
    fn waits_longer_on_a_slow_path_but_never_beyond_a_second() {
        let (mut input, now) = (with(2), Instant::now());
        drain(&mut input, now);
        input.acknowledge(now + Duration::from_millis(250), 0);
        assert_eq!(input.overdue_at(), Some(now + Duration::from_millis(750)));
        input.acknowledge(now + Duration::from_secs(60), 1);
        input.keep(message(2));
        drain(&mut input, now);
        assert_eq!(input.overdue_at(), Some(now + RESEND_AFTER_AT_MOST));
    }

    #[test]
    fn a_message_sent_twice_says_nothing_about_the_round_trip() {
        let (mut input, now) = (with(2), Instant::now());
        drain(&mut input, now);
        drain(&mut input, now + RESEND_AFTER);
        input.acknowledge(now + Duration::from_secs(9), 0);
        assert_eq!(input.overdue_at(), Some(now + RESEND_AFTER));
    }

    #[test]
    fn is_bounded() {
        let mut input = Input::default();
        (0..MAX_KEPT).for_each(|_| {
            assert!(!input.is_full());
            input.keep(message(0));
        });
        assert!(input.is_full());
        input.acknowledge(Instant::now(), 0);
        assert!(!input.is_full());

        let mut input = Input::default();
        (0..12).for_each(|_| {
            assert!(!input.is_full());
            input.keep(Bytes::from(vec![0; 1 << 20]));
        });
        assert!(input.is_full());
    }
}
