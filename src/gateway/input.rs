//! PURE. The plugin's stream messages on their way to the agent: each is kept until the agent has acknowledged it.
//!
//! The plugin resends its oldest unacknowledged message every 100 ms, 3000 times; then its resending is dead for good.
//! An outage of more than five minutes would leave a gap for ever, so the gateway resends by itself.
//!
//! The way to the agent keeps messages in their order, and the agent acknowledges early ones at once. So when it
//! acknowledges a message, those that were sent before it and are not acknowledged are lost (as RFC 9002, 6.1.1, has it),
//! and all of them are sent again without waiting for the clock, which would send one at a time.

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
/// A message counts as lost when the agent has acknowledged one that was sent this many later: fewer may have overtaken it.
const REORDERING: u64 = 3;
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
    /// How many of `kept` are acknowledged, early ones all, and the highest number of those.
    early: usize,
    highest_early: i64,
    /// How many of `kept` have been given to this connection.
    given: usize,
    /// How many messages have been sent on this connection, repetitions included.
    sent: u64,
    /// What was sent on this connection, in its order, without what is known to have arrived or to be lost.
    in_flight: VecDeque<InFlight>,
    /// Numbers of messages that are lost and are to be sent again.
    lost: VecDeque<i64>,
    round_trip: RoundTrip,
}

#[derive(Clone, Copy, Debug)]
struct InFlight {
    /// The how-manieth that was sent.
    serial: u64,
    number: i64,
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
    /// On this connection: the first time, and the last. An acknowledgement may be for either.
    first_serial: u64,
    last_serial: u64,
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
        let serial = kept.sent.as_ref().map(|sent| sent.first_serial);
        self.highest_early = if self.early == 0 { number } else { self.highest_early.max(number) };
        self.early += 1;
        while self.kept.front().is_some_and(|kept| kept.acknowledged) {
            self.kept.pop_front();
            self.first += 1;
            self.early -= 1;
            self.given = self.given.saturating_sub(1);
        }
        if let Some(serial) = serial {
            self.find_lost(serial);
        }
        true
    }

    /// How many messages the agent has not got although it has later ones.
    pub fn missing(&self) -> u64 {
        if self.early == 0 {
            return 0;
        }
        (self.highest_early - self.first + 1).unsigned_abs().saturating_sub(self.early as u64)
    }

    /// A new connection to the service: all that is unacknowledged has to be given to it, in order.
    pub fn start_over(&mut self) {
        self.given = 0;
        self.in_flight.clear();
        self.lost.clear();
        for sent in self.kept.iter_mut().filter_map(|kept| kept.sent.as_mut()) {
            // An acknowledgement of what was sent before says nothing of this connection.
            (sent.first_serial, sent.last_serial) = (0, 0);
        }
        self.sent = 0;
    }

    /// The next message that this connection has not had, or has lost.
    pub fn next(&mut self, now: Instant) -> Option<Bytes> {
        while let Some(number) = self.lost.pop_front() {
            if self.place(number) == Place::Kept {
                return self.send(now, (number - self.first) as usize);
            }
        }
        while let Some(kept) = self.kept.get(self.given) {
            self.given += 1;
            if !kept.acknowledged {
                return self.send(now, self.given - 1);
            }
        }
        None
    }

    /// Whether the next message has been sent before, on this connection or an earlier one.
    pub fn next_is_repetition(&self) -> bool {
        let next = self.kept.iter().skip(self.given).find(|kept| !kept.acknowledged);
        !self.lost.is_empty() || next.is_some_and(|kept| kept.sent.is_some())
    }

    /// The oldest message once more, if its acknowledgement is overdue.
    pub fn next_overdue(&mut self, now: Instant) -> Option<Bytes> {
        if self.overdue_at()? > now {
            return None;
        }
        self.send(now, 0)
    }

    /// The message that was sent as the `serial`th has arrived: those that were sent well before it have, too, or are lost.
    fn find_lost(&mut self, serial: u64) {
        while let Some(InFlight { serial: before, number }) = self.in_flight.front().copied()
            && before + REORDERING <= serial
        {
            self.in_flight.pop_front();
            let latest = |kept: &Kept| kept.sent.as_ref().is_some_and(|sent| sent.last_serial == before);
            let index = number.checked_sub(self.first).and_then(|index| usize::try_from(index).ok());
            let kept = index.and_then(|index| self.kept.get(index));
            if kept.is_some_and(|kept| !kept.acknowledged && latest(kept)) {
                self.lost.push_back(number);
            }
        }
    }

    fn send(&mut self, now: Instant, index: usize) -> Option<Bytes> {
        let kept = self.kept.get_mut(index)?;
        self.sent += 1;
        let serial = self.sent;
        let first_serial = kept.sent.as_ref().map_or(0, |sent| sent.first_serial);
        kept.sent = Some(Sent {
            last: now,
            again: kept.sent.is_some(),
            first_serial: if first_serial == 0 { serial } else { first_serial },
            last_serial: serial,
        });
        let in_flight = InFlight { serial, number: self.first + index as i64 };
        match self.in_flight.back_mut() {
            // The oldest once more: in a long silence that is all that is sent.
            Some(last) if last.number == in_flight.number => *last = in_flight,
            _ => self.in_flight.push_back(in_flight),
        }
        Some(kept.message.clone())
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
    fn what_is_lost_is_sent_again_as_soon_as_a_later_one_is_acknowledged() {
        let (mut input, now) = (with(10), Instant::now());
        drain(&mut input, now);
        input.acknowledge(now, 0);
        // 1 to 4 are lost.
        input.acknowledge(now, 5);
        assert_eq!(input.missing(), 4);
        assert_eq!(drain(&mut input, now), [1, 2], "3 and 4 may have been overtaken");
        input.acknowledge(now, 6);
        input.acknowledge(now, 7);
        assert_eq!(drain(&mut input, now), [3, 4]);
        input.acknowledge(now, 8);
        assert!(drain(&mut input, now).is_empty(), "each once in a round trip");
        assert_eq!(input.missing(), 4);
        // The repetition of 1 is lost as well: it was sent before that of 4.
        (2..=4).for_each(|number| assert!(input.acknowledge(now, number)));
        assert_eq!(input.missing(), 1);
        assert!(input.acknowledge(now, 1) && input.acknowledge(now, 9));
        assert_eq!((input.missing(), input.is_settled()), (0, true));
    }

    #[test]
    fn a_repetition_that_is_lost_is_sent_once_more() {
        let (mut input, now) = (with(4), Instant::now());
        drain(&mut input, now);
        input.acknowledge(now, 3);
        assert_eq!(drain(&mut input, now), [0]);
        // What goes out behind the repetition arrives.
        (4..8).for_each(|number| input.keep(message(number)));
        assert_eq!(drain(&mut input, now), [4, 5, 6, 7]);
        input.acknowledge(now, 7);
        assert_eq!(drain(&mut input, now)[0], 1, "sent before the repetition of 0");
        assert!(input.missing() > 0);
    }

    #[test]
    fn acknowledgements_of_an_earlier_connection_say_nothing_of_this_one() {
        let (mut input, now) = (with(9), Instant::now());
        drain(&mut input, now);
        input.start_over();
        let first: Vec<_> = (0..3).filter_map(|_| input.next(now)).collect();
        assert_eq!(first.len(), 3);
        // It comes over the connection from before.
        input.acknowledge(now, 8);
        assert_eq!(drain(&mut input, now), [3, 4, 5, 6, 7], "none of them twice");
    }

    #[test]
    fn a_long_silence_takes_no_memory() {
        let (mut input, mut now) = (with(2), Instant::now());
        drain(&mut input, now);
        for _ in 0..1000 {
            now += RESEND_AFTER_AT_MOST;
            assert_eq!(drain(&mut input, now), [0]);
        }
        assert_eq!(input.in_flight.len(), 3);
    }

    #[test]
    fn a_new_connection_forgets_what_was_under_way() {
        let (mut input, now) = (with(5), Instant::now());
        drain(&mut input, now);
        input.acknowledge(now, 4);
        input.start_over();
        assert_eq!(drain(&mut input, now), [0, 1, 2, 3]);
        assert_eq!(input.in_flight.len(), 4);
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
