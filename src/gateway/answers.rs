//! PURE. Follows the agent's mux frames, for how much of each answer there is and for the ends of its streams.
//!
//! The agent ends the stream of a connection that its destination has ended, with a frame of its own behind the last of the
//! answer. Nothing else tells an answer that is complete from one that is cut: a plugin that dies closes its connections in the
//! same way in which it closes those that have ended. What is seen here is put down before the plugin is given it, so that the
//! proxy finds it there when the plugin closes a connection.
//!
//! An agent answers a new stream with nothing: not when it has connected to the destination, nor while it tries. But it
//! ends each stream once it has tried, and says before whether it failed: where the other side has ended the stream
//! already, at once. So the end of a stream that was opened and closed tells that the agent has connected, which nothing
//! else does where the destination does not speak first. (`handleServerConnections` and `handleDataTransfer` in the
//! agent's `port_mux.go`; it connects for one stream after the other.)
//!
//! A frame may be cut anywhere, so that messages have to be followed in their order. Those that come early wait for the
//! missing one, [as much of them as is needed](super::early), up to a bound that is the plugin's. If the plugin keeps more the
//! agent is lost track of: what the plugin has acknowledged does not come again. It is found again with the first message that
//! consists of whole frames of streams that there are, which is what an agent sends that has been idle for a moment.

use std::sync::Arc;

use tracing::info;

use super::early::{Early, Said};
use super::ledger::{AgentEnd, AgentFrames, Ledger};
use super::message::View;
use super::mux::{Follower, LostTrack, Piece};

/// Tells the ledger of the agent's answers and of their ends, as long as its frames can be followed.
#[derive(Debug)]
pub struct Answers {
    ledger: Arc<Ledger>,
    track: Track,
    /// The number of the next message to be followed.
    next: i64,
    early: Early,
    /// The agent has said that it could not connect, and no stream has ended since.
    refused: bool,
    /// The handshake has said that the data is mux frames.
    begun: bool,
    /// That track was lost has been said.
    said: bool,
}

/// How well the agent's frames are known.
#[derive(Debug)]
enum Track {
    /// All that it has sent so far was followed.
    Kept(Follower),
    /// Where a frame begins is not known.
    Lost,
    /// There are no frames, or they cannot be read.
    Off,
}

impl Answers {
    /// Of a session's first message on.
    pub fn new(ledger: Arc<Ledger>) -> Self {
        Self {
            ledger,
            track: Track::Kept(Follower::default()),
            next: 0,
            early: Early::default(),
            refused: false,
            begun: false,
            said: false,
        }
    }

    /// The data is mux frames, and they can be read.
    pub fn begin(&mut self) {
        self.begun = true;
        self.ledger.follow_agent(match self.track {
            Track::Kept(_) => AgentFrames::Followed,
            Track::Lost => AgentFrames::Lost,
            Track::Off => AgentFrames::Unreadable,
        });
    }

    /// They cannot be followed in this session.
    pub fn end(&mut self) {
        self.track = Track::Off;
        self.early.clear();
        self.ledger.follow_agent(AgentFrames::Unreadable);
    }

    /// Bytes that are kept of the messages that wait.
    #[cfg(any(test, fuzzing))]
    pub fn early_bytes(&self) -> usize {
        self.early.bytes()
    }

    /// A message of the agent's stream that the plugin is about to be given, of any number, as often as it comes.
    pub fn take(&mut self, view: &View<'_>) {
        let number = view.number();
        if matches!(self.track, Track::Off) || number < self.next {
            return;
        }
        if number > self.next {
            let ledger = &self.ledger;
            self.early.keep(view, |stream| ledger.knows(stream));
            return;
        }
        self.follow(Said::by(view));
        while let Some(said) = self.early.take(self.next) {
            self.follow(said);
        }
    }

    /// The plugin has acknowledged a message. If that is not known here, it never will be: what is acknowledged is not sent
    /// again.
    pub fn acknowledged(&mut self, number: i64) {
        if matches!(self.track, Track::Off) || number < self.next || self.early.has(number) {
            return;
        }
        self.next = self.early.last().unwrap_or(number).max(number).saturating_add(1);
        self.early.clear();
        self.lose();
    }

    /// The next message.
    fn follow(&mut self, said: Said<'_>) {
        self.next = self.next.saturating_add(1);
        let payload = match said {
            Said::Frames(payload) => payload,
            Said::Refusal => return self.refused = true,
            Said::Nothing => return,
        };
        if matches!(self.track, Track::Lost) {
            return self.find(&payload);
        }
        let Track::Kept(follower) = &mut self.track else { return };
        let (ledger, refused) = (&self.ledger, &mut self.refused);
        let followed = follower.follow(&payload, |piece| match piece {
            Piece::Open(_) => {}
            Piece::Data(stream, bytes) => ledger.agent_sent(stream, bytes),
            Piece::Close(stream) => {
                let end = if std::mem::take(refused) { AgentEnd::Refused } else { AgentEnd::Connected };
                ledger.agent_ended(stream, end);
            }
        });
        if let Err(LostTrack) = followed {
            self.lose();
        }
    }

    fn lose(&mut self) {
        self.track = Track::Lost;
        if self.begun {
            self.ledger.follow_agent(AgentFrames::Lost);
            if !std::mem::replace(&mut self.said, true) {
                info!(
                    "the agent's frames cannot be followed for a while: probes of the kind tcp say nothing until they can be \
                     again"
                );
            }
        }
    }

    /// Goes on after a message of whole frames. Whose ends stand in it was asked for while nobody could tell: they are waited
    /// for no more.
    fn find(&mut self, payload: &[u8]) {
        let (mut follower, mut known, mut unknown) = (Follower::default(), false, false);
        let followed = follower.follow(payload, |piece| {
            let (Piece::Open(stream) | Piece::Close(stream) | Piece::Data(stream, _)) = piece;
            let knows = self.ledger.knows(stream);
            known |= knows;
            unknown |= !knows;
        });
        if followed.is_ok() && known && !unknown && follower.is_between_frames() {
            self.track = Track::Kept(follower);
            self.refused = false;
            if self.begun {
                self.ledger.follow_agent(AgentFrames::Followed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use bytes::Bytes;
    use futures_util::FutureExt as _;
    use proptest::prelude::*;

    use super::*;
    use crate::gateway::ledger::Answer;
    use crate::gateway::message::{self, Header};
    use crate::gateway::mux::tests::frame;

    const STREAMS: usize = 6;

    fn message(number: i64, payload_type: u32, payload: &[u8]) -> Bytes {
        Header { kind: b"output_stream_data", created: 1, number, flags: 0, payload_type }
            .with_payload(payload)
    }

    fn data(number: i64, payload: &[u8]) -> Bytes {
        message(number, message::DATA, payload)
    }

    fn take(answers: &mut Answers, bytes: &Bytes) {
        answers.take(&View::new(bytes).unwrap());
    }

    /// A session with some streams, the ends of which are all waited for.
    fn session() -> (Arc<Ledger>, Vec<u32>, Answers) {
        let ledger = Arc::new(Ledger::new());
        let mut answers = Answers::new(ledger.clone());
        answers.begin();
        let streams = (0..STREAMS).map(|_| awaited(&ledger)).collect();
        (ledger, streams, answers)
    }

    fn awaited(ledger: &Ledger) -> u32 {
        let stream = ledger.open();
        assert!(ledger.await_agent_end(stream));
        stream
    }

    /// What has been told of a stream: nothing yet, or its end; `Some(None)` where nothing will be.
    fn told(ledger: &Ledger, stream: u32) -> Option<Option<AgentEnd>> {
        ledger.until_agent_ended(stream).now_or_never()
    }

    /// What an agent does: the stream, its data's length, and what becomes of it.
    #[derive(Clone, Debug)]
    enum Does {
        Says(usize, usize),
        Refuses(usize),
        Ends(usize),
    }

    fn does(times: Range<usize>, lengths: Range<usize>) -> impl Strategy<Value = Vec<Does>> {
        let one = prop_oneof![
            4 => (0..STREAMS, lengths).prop_map(|(stream, length)| Does::Says(stream, length)),
            1 => (0..STREAMS).prop_map(Does::Refuses),
            2 => (0..STREAMS).prop_map(Does::Ends),
        ];
        proptest::collection::vec(one, times)
    }

    /// The messages of an agent that does so and reads its frames in pieces of these lengths. Where it refuses, the flag
    /// stands between the frames, as it is a message of its own.
    fn messages(does: &[Does], streams: &[u32], cuts: &[usize]) -> Vec<Bytes> {
        let (mut all, mut frames, mut cuts) = (Vec::new(), Vec::new(), cuts.iter().cycle());
        let mut flush = |all: &mut Vec<Bytes>, frames: &mut Vec<u8>| {
            while !frames.is_empty() {
                let rest = frames.split_off(frames.len().min(*cuts.next().unwrap()));
                all.push(data(all.len() as i64, frames));
                *frames = rest;
            }
        };
        // Each stream ends once.
        let mut ended = Vec::new();
        for one in does {
            let (Does::Says(stream, _) | Does::Refuses(stream) | Does::Ends(stream)) = one;
            if ended.contains(stream) {
                continue;
            }
            if !matches!(one, Does::Says(..)) {
                ended.push(*stream);
            }
            match one {
                Does::Says(stream, length) => frames.extend(frame(2, streams[*stream], &vec![7; *length])),
                Does::Ends(stream) => frames.extend(frame(1, streams[*stream], b"")),
                Does::Refuses(stream) => {
                    flush(&mut all, &mut frames);
                    all.push(message(all.len() as i64, message::FLAG, &message::CONNECT_TO_PORT_ERROR));
                    frames.extend(frame(1, streams[*stream], b""));
                }
            }
        }
        flush(&mut all, &mut frames);
        all
    }

    fn ends(ledger: &Ledger, streams: &[u32]) -> Vec<(Option<Option<AgentEnd>>, Answer)> {
        streams.iter().map(|stream| (told(ledger, *stream), ledger.answer(*stream))).collect()
    }

    proptest! {
        /// In any order, with gaps and repetitions, as long as all come in the end: what is told is what is told of the
        /// stream in order.
        #[test]
        fn the_order_of_messages_changes_nothing(
            does in does(1..40, 0..60),
            cuts in proptest::collection::vec(1usize..30, 1..20),
            order in proptest::collection::vec(any::<proptest::sample::Index>(), 0..120),
        ) {
            let (ledger, streams, mut answers) = session();
            let messages = messages(&does, &streams, &cuts);
            messages.iter().for_each(|message| take(&mut answers, message));
            let (other, same_streams, mut answers) = session();
            prop_assert_eq!(&streams, &same_streams);
            order.iter().for_each(|index| take(&mut answers, index.get(&messages)));
            messages.iter().rev().for_each(|message| take(&mut answers, message));
            prop_assert_eq!(ends(&other, &streams), ends(&ledger, &streams));
            prop_assert_eq!(answers.early_bytes(), 0);
            prop_assert_eq!(other.agent_frames(), AgentFrames::Followed);
        }
    }

    proptest! {
        /// The same where a plugin keeps what comes early, and the answers what they find room for: what the plugin does not
        /// acknowledge comes again.
        #[test]
        fn an_answer_is_known_by_its_length(
            lengths in proptest::collection::vec(0usize..5000, STREAMS),
            cuts in proptest::collection::vec(1usize..1100, 1..20),
            missing in proptest::collection::vec(any::<proptest::sample::Index>(), 1..10),
        ) {
            let (ledger, streams, mut answers) = session();
            let does: Vec<_> = lengths.iter().enumerate().map(|(stream, length)| Does::Says(stream, *length)).collect();
            let ends: Vec<_> = (0..STREAMS).map(Does::Ends).collect();
            let messages = messages(&[does, ends].concat(), &streams, &cuts);
            let missing: Vec<_> = missing.iter().map(|index| index.index(messages.len())).collect();
            for (number, message) in messages.iter().enumerate().filter(|(number, _)| !missing.contains(number)) {
                take(&mut answers, message);
                answers.acknowledged(number as i64);
            }
            let first = *missing.iter().min().unwrap() as i64;
            prop_assert_eq!(answers.next, first, "what is behind the gap is not followed yet");
            for number in missing {
                take(&mut answers, &messages[number]);
            }
            for (stream, length) in streams.iter().zip(lengths) {
                prop_assert_eq!(ledger.answer(*stream), Answer::Ended(length as u64));
            }
        }
    }

    /// A plugin keeps more behind a gap than is kept here.
    fn after_a_long_gap() -> (Arc<Ledger>, Vec<u32>, Answers, i64) {
        let (ledger, streams, mut answers) = session();
        take(&mut answers, &data(0, &frame(2, streams[0], &[7; 32_000])[..1024]));
        take(&mut answers, &data(2, &[7; 1024]));
        answers.acknowledged(0);
        answers.acknowledged(2);
        assert_eq!(ledger.agent_frames(), AgentFrames::Followed);
        answers.acknowledged(4);
        assert_eq!(answers.early_bytes(), 0);
        (ledger, streams, answers, 5)
    }

    #[test]
    fn after_a_long_gap_nothing_is_known_of_the_ends_that_were_waited_for() {
        let (ledger, streams, mut answers, _) = after_a_long_gap();
        assert_eq!((told(&ledger, streams[0]), ledger.answer(streams[0])), (Some(None), Answer::Unknown));
        assert!(!ledger.await_agent_end(ledger.open()), "it would not be told");
        take(&mut answers, &data(1, &frame(1, streams[0], b"")));
        assert_eq!(ledger.agent_frames(), AgentFrames::Lost, "what was missing is too late");
    }

    #[test]
    fn the_agent_is_found_again_with_whole_frames_of_known_streams() {
        let (ledger, streams, mut answers, mut number) = after_a_long_gap();
        let mut next = |payload: &[u8]| {
            take(&mut answers, &data(number, payload));
            number += 1;
            ledger.agent_frames()
        };
        let answer = frame(2, streams[1], b"an answer");
        for payload in [&[7; 1024][..], &answer[..12], &frame(1, 4711, b""), &frame(3, 0, b""), b""] {
            assert_eq!(next(payload), AgentFrames::Lost, "{payload:?}");
        }
        assert_eq!(next(&[answer, frame(1, streams[1], b"")].concat()), AgentFrames::Followed);
        assert_eq!(ledger.answer(streams[1]), Answer::Unknown, "how much of it was missed is not known");
        let [good, refused] = [awaited(&ledger), awaited(&ledger)];
        next(&frame(1, good, b""));
        assert_eq!(told(&ledger, good), Some(Some(AgentEnd::Connected)));
        take(&mut answers, &message(number, message::FLAG, &message::CONNECT_TO_PORT_ERROR));
        take(&mut answers, &data(number + 1, &frame(1, refused, b"")));
        assert_eq!(told(&ledger, refused), Some(Some(AgentEnd::Refused)));
        // And lost again, at once, by what is no frame.
        let waiting = awaited(&ledger);
        take(&mut answers, &data(number + 2, b"GET / HTTP/1.1"));
        assert_eq!((ledger.agent_frames(), told(&ledger, waiting)), (AgentFrames::Lost, Some(None)));
    }

    #[test]
    fn nothing_is_followed_where_there_are_no_frames() {
        let (ledger, streams, mut answers) = session();
        answers.end();
        take(&mut answers, &data(0, &frame(1, streams[0], b"")));
        take(&mut answers, &data(9, &frame(1, streams[0], b"")));
        assert_eq!((ledger.agent_frames(), answers.early_bytes()), (AgentFrames::Unreadable, 0));
    }
}
