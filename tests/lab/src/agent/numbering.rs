//! PURE. The two numbered streams of a data channel as the agent keeps them: what it sent is kept until it is
//! acknowledged, and only the oldest of it is ever sent again; what it receives is put in order. Beside the agent's
//! own doing this watches the client's numbering.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use bytes::Bytes;
use uuid::Uuid;

use crate::wire::message::{Acknowledgement, Message, MessageType, payload};

/// Messages kept in each direction.
const CAPACITY: usize = 100_000;
/// How many processed messages are remembered in order to tell a repetition from a different message.
const REMEMBERED: i64 = 20_000;
/// A message sent so often, while later ones were acknowledged, will never be.
const HOPELESS: u32 = 20;

const FIRST_TIMEOUT: Duration = Duration::from_millis(200);
const FIRST_ROUND_TRIP: f64 = 0.1;
const LONGEST_TIMEOUT: f64 = 1.0;
const CLOCK_GRANULARITY: f64 = 0.01;

/// What the agent sends.
#[derive(Debug)]
pub(crate) struct Outgoing {
    next: i64,
    unacknowledged: BTreeMap<i64, Sent>,
    /// The highest number that was acknowledged.
    highest: Option<i64>,
    round_trip: f64,
    variation: f64,
    timeout: Duration,
}

#[derive(Debug)]
struct Sent {
    id: Uuid,
    encoded: Bytes,
    last_sent: Instant,
    resent: u32,
}

/// A message to be sent again.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Resend {
    pub encoded: Bytes,
    /// Said once for each message.
    pub hopeless: bool,
}

impl Outgoing {
    pub fn new() -> Self {
        Self {
            next: 0,
            unacknowledged: BTreeMap::new(),
            highest: None,
            round_trip: FIRST_ROUND_TRIP,
            variation: 0.0,
            timeout: FIRST_TIMEOUT,
        }
    }

    /// Numbers a message. Beyond the capacity the newest is not kept, as with the real agent: it is sent this once.
    pub fn push(&mut self, now: Instant, payload_type: u32, payload: Bytes) -> Bytes {
        let message = Message::stream(MessageType::OutputStreamData, self.next, payload_type, payload);
        let encoded = message.encode();
        if self.unacknowledged.len() < CAPACITY {
            let sent = Sent { id: message.id, encoded: encoded.clone(), last_sent: now, resent: 0 };
            self.unacknowledged.insert(self.next, sent);
        }
        self.next += 1;
        encoded
    }

    /// The oldest message, if it is time to send it again.
    pub fn due(&mut self, now: Instant) -> Option<Resend> {
        let timeout = self.timeout;
        let mut oldest = self.unacknowledged.first_entry()?;
        let overtaken = self.highest > Some(*oldest.key());
        let oldest = oldest.get_mut();
        if now.saturating_duration_since(oldest.last_sent) <= timeout {
            return None;
        }
        oldest.last_sent = now;
        oldest.resent += 1;
        let hopeless = overtaken && oldest.resent == HOPELESS;
        Some(Resend { encoded: oldest.encoded.clone(), hopeless })
    }

    /// Takes note of an acknowledgement.
    ///
    /// # Errors
    /// It names a message that was never sent.
    pub fn acknowledge(&mut self, now: Instant, content: &Acknowledgement) -> Result<(), String> {
        let sequence = content.sequence;
        if content.kind != MessageType::OutputStreamData.as_str() || !(0..self.next).contains(&sequence) {
            return Err(format!("acknowledges {} {sequence}, which was never sent", content.kind));
        }
        let Some(sent) = self.unacknowledged.get(&sequence) else {
            return Ok(());
        };
        if !sent.id.to_string().eq_ignore_ascii_case(&content.id) {
            return Err(format!("acknowledges message {sequence} under another id"));
        }
        self.highest = self.highest.max(Some(sequence));
        let round_trip = now.saturating_duration_since(sent.last_sent);
        self.unacknowledged.remove(&sequence);
        self.measure(round_trip.as_secs_f64());
        Ok(())
    }

    fn measure(&mut self, round_trip: f64) {
        self.variation = 0.75 * self.variation + 0.25 * (self.round_trip - round_trip).abs();
        self.round_trip = 0.875 * self.round_trip + 0.125 * round_trip;
        let timeout = self.round_trip + CLOCK_GRANULARITY.max(4.0 * self.variation);
        self.timeout = Duration::from_secs_f64(timeout.min(LONGEST_TIMEOUT));
    }

    /// Sends nothing again any more. The numbers stay: an acknowledgement may still be on its way.
    pub fn forget(&mut self) {
        self.unacknowledged = BTreeMap::new();
    }

    pub fn sent(&self) -> i64 {
        self.next
    }

    pub fn unacknowledged(&self) -> usize {
        self.unacknowledged.len()
    }
}

/// What the agent does with a stream message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Processed, then acknowledged; then [`Incoming::next_in_order`].
    Process(Message),
    /// Acknowledged and kept until its turn.
    Kept,
    /// Processed or kept before: acknowledged again.
    Repeated,
    /// A different message under a number that was used before, one of the two a flag: acknowledged and dropped, as the
    /// real agent does. The stock plugin numbers its flags without regard to the data it is just sending, so its word
    /// that the session is to be terminated can be lost.
    FlagCollision,
    /// No room: not acknowledged.
    NoRoom,
}

/// What the agent receives.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    expected: i64,
    early: BTreeMap<i64, Message>,
    /// By number: id, a hash of the content, and whether it is a flag.
    seen: BTreeMap<i64, (Uuid, u64, bool)>,
}

impl Incoming {
    /// Takes in a stream message.
    ///
    /// # Errors
    /// A breach of the protocol, in words. The message is to be dropped.
    pub fn receive(&mut self, message: Message) -> Result<Verdict, String> {
        let sequence = message.sequence;
        if sequence < 0 {
            return Err(format!("stream message with number {sequence}"));
        }
        let is_flag = message.payload_type == payload::FLAG;
        let identity = (message.id, fingerprint(&message), is_flag);
        match self.seen.get(&sequence) {
            Some(seen) if *seen == identity => return Ok(Verdict::Repeated),
            Some((.., was_flag)) if is_flag || *was_flag => return Ok(Verdict::FlagCollision),
            Some(_) => return Err(format!("number {sequence} stands for two different messages")),
            None if sequence < self.expected => return Ok(Verdict::Repeated),
            None if self.early.len() >= CAPACITY => return Ok(Verdict::NoRoom),
            None => self.seen.insert(sequence, identity),
        };
        if sequence > self.expected {
            self.early.insert(sequence, message);
            return Ok(Verdict::Kept);
        }
        self.advance();
        Ok(Verdict::Process(message))
    }

    /// A kept message whose turn it is.
    pub fn next_in_order(&mut self) -> Option<Message> {
        let message = self.early.remove(&self.expected)?;
        self.advance();
        Some(message)
    }

    /// The number that is waited for, if later ones are there.
    pub fn gap(&self) -> Option<i64> {
        (!self.early.is_empty()).then_some(self.expected)
    }

    pub fn expected(&self) -> i64 {
        self.expected
    }

    fn advance(&mut self) {
        self.expected += 1;
        self.seen.remove(&(self.expected - REMEMBERED));
    }
}

fn fingerprint(message: &Message) -> u64 {
    let mut hasher = DefaultHasher::new();
    (message.payload_type, &message.payload).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn input(sequence: i64) -> Message {
        Message::stream(MessageType::InputStreamData, sequence, 1, sequence.to_string())
    }

    fn acknowledgement(encoded: &Bytes) -> Acknowledgement {
        Message::decode(encoded).unwrap().acknowledgement().acknowledged().unwrap()
    }

    proptest! {
        /// Whatever the order and however often: each message is processed once, in order.
        #[test]
        fn messages_are_put_in_order(mut order in proptest::collection::vec(0i64..40, 0..200), tail in Just((0..40).collect::<Vec<_>>()).prop_shuffle()) {
            order.extend(tail);
            let messages: Vec<_> = (0..40).map(input).collect();
            let (mut incoming, mut processed) = (Incoming::default(), Vec::new());
            for at in order {
                if let Verdict::Process(message) = incoming.receive(messages[at as usize].clone()).unwrap() {
                    processed.push(message.sequence);
                    while let Some(message) = incoming.next_in_order() {
                        processed.push(message.sequence);
                    }
                }
            }
            prop_assert_eq!(processed, (0..40).collect::<Vec<_>>());
            prop_assert_eq!((incoming.gap(), incoming.expected()), (None, 40));
        }
    }

    #[test]
    fn one_number_for_two_messages_is_seen() {
        let mut incoming = Incoming::default();
        let first = input(0);
        assert_eq!(incoming.receive(first.clone()), Ok(Verdict::Process(first.clone())));
        assert_eq!(incoming.receive(first.clone()), Ok(Verdict::Repeated));
        assert!(incoming.receive(Message { payload: "other".into(), ..first.clone() }).is_err());
        assert!(incoming.receive(Message { id: Uuid::new_v4(), ..first.clone() }).is_err());
        let flag = Message { id: Uuid::new_v4(), payload_type: payload::FLAG, ..first };
        assert_eq!(incoming.receive(flag), Ok(Verdict::FlagCollision));
        assert!(incoming.receive(Message { sequence: -1, ..input(0) }).is_err());
        assert_eq!(incoming.receive(input(2)), Ok(Verdict::Kept));
        assert!(incoming.receive(input(2)).is_err());
        assert_eq!(incoming.gap(), Some(1));
    }

    #[test]
    fn only_the_oldest_is_sent_again_and_not_too_early() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let mut outgoing = Outgoing::new();
        let sent: Vec<_> = (0..3).map(|_| outgoing.push(start, 1, "x".into())).collect();
        assert_eq!(outgoing.due(after(200)), None);
        assert_eq!(outgoing.due(after(201)), Some(Resend { encoded: sent[0].clone(), hopeless: false }));
        assert_eq!(outgoing.due(after(300)), None);
        outgoing.acknowledge(after(301), &acknowledgement(&sent[0])).unwrap();
        assert_eq!(outgoing.due(after(302)).unwrap().encoded, sent[1]);
        assert_eq!(outgoing.unacknowledged(), 2);
    }

    #[test]
    fn the_timeout_follows_the_round_trip_up_to_a_second() {
        let start = Instant::now();
        let mut outgoing = Outgoing::new();
        let slow = outgoing.push(start, 1, "x".into());
        outgoing.acknowledge(start + Duration::from_secs(60), &acknowledgement(&slow)).unwrap();
        assert_eq!(outgoing.timeout, Duration::from_secs(1));
        for _ in 0..100 {
            let fast = outgoing.push(start, 1, "x".into());
            outgoing.acknowledge(start + Duration::from_millis(1), &acknowledgement(&fast)).unwrap();
        }
        assert!(outgoing.timeout < Duration::from_millis(20), "{:?}", outgoing.timeout);
    }

    #[test]
    fn wrong_acknowledgements_are_seen() {
        let now = Instant::now();
        let mut outgoing = Outgoing::new();
        let sent = acknowledgement(&outgoing.push(now, 1, "x".into()));
        let wrong = |change: fn(&mut Acknowledgement)| {
            let mut content = sent.clone();
            change(&mut content);
            content
        };
        assert!(outgoing.acknowledge(now, &wrong(|a| a.sequence = 1)).is_err());
        assert!(outgoing.acknowledge(now, &wrong(|a| a.kind = "input_stream_data".into())).is_err());
        assert!(outgoing.acknowledge(now, &wrong(|a| a.id = Uuid::new_v4().to_string())).is_err());
        assert!(outgoing.acknowledge(now, &sent).is_ok());
        assert!(outgoing.acknowledge(now, &sent).is_ok(), "twice is allowed");
    }

    /// The real agent's: each message goes out once, but the newest of too many are not kept.
    #[test]
    fn of_too_many_the_newest_are_not_kept() {
        let start = Instant::now();
        let mut outgoing = Outgoing::new();
        let sent: Vec<_> = (0..=CAPACITY).map(|_| outgoing.push(start, 1, "x".into())).collect();
        assert_eq!((outgoing.sent(), outgoing.unacknowledged()), (CAPACITY as i64 + 1, CAPACITY));
        let mut later = start;
        for message in &sent[..CAPACITY] {
            later += Duration::from_secs(2);
            assert_eq!(outgoing.due(later).as_ref().map(|due| &due.encoded), Some(message));
            outgoing.acknowledge(later, &acknowledgement(message)).unwrap();
        }
        assert_eq!(outgoing.due(later + Duration::from_secs(2)), None);

        let mut incoming = Incoming::default();
        for number in 1..=CAPACITY as i64 {
            assert_eq!(incoming.receive(input(number)), Ok(Verdict::Kept));
        }
        assert_eq!(incoming.receive(input(CAPACITY as i64 + 1)), Ok(Verdict::NoRoom));
    }

    #[test]
    fn a_message_that_was_overtaken_for_good_is_reported_once() {
        let start = Instant::now();
        let mut outgoing = Outgoing::new();
        outgoing.push(start, 1, "x".into());
        let later = outgoing.push(start, 1, "y".into());
        outgoing.acknowledge(start, &acknowledgement(&later)).unwrap();
        let hopeless: Vec<_> = (1..=30)
            .filter_map(|second| outgoing.due(start + Duration::from_secs(2 * second)))
            .map(|resend| resend.hopeless)
            .collect();
        assert_eq!(hopeless.iter().filter(|hopeless| **hopeless).count(), 1);
    }
}
