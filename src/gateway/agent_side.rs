//! PURE. What is known of the agent's side of a session: what it has acknowledged, how much of each answer it has sent, and
//! how it has ended it.

use std::collections::HashMap;

/// What is known of the agent's own frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AgentFrames {
    /// Nothing, in the whole session: there are none, or they are encrypted, or the gateway only observes.
    #[default]
    Unreadable,
    /// Nothing at the moment: too much was lost.
    Lost,
    /// All of them are followed.
    Followed,
}

/// How the agent has ended a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentEnd {
    /// It had a connection to the destination.
    Connected,
    /// It could not connect.
    Refused,
}

/// How much of the destination's answer on one stream has passed the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The frames of this stream were not followed from its first to its last.
    Unknown,
    /// So many bytes, and more may follow.
    Open(u64),
    /// All of it: so many bytes, and the agent's end.
    Ended(u64),
}

/// One session's account of the agent.
#[derive(Debug, Default)]
pub struct AgentSide {
    frames: AgentFrames,
    acknowledged: u64,
    /// Streams that were opened while all frames were followed.
    answers: HashMap<u32, Answer>,
    /// Streams whose end is waited for, and how they ended.
    awaited: HashMap<u32, Option<AgentEnd>>,
    /// The plugin lacks a message of the agent's that is earlier than others that it has.
    behind: bool,
}

impl AgentSide {
    /// A stream begins.
    pub fn open(&mut self, stream: u32) {
        if self.frames == AgentFrames::Followed {
            self.answers.insert(stream, Answer::Open(0));
        }
    }

    /// Nothing more is asked of the stream's answer.
    pub fn forget_answer(&mut self, stream: u32) {
        self.answers.remove(&stream);
    }

    /// Nor of any other.
    pub fn forget_answers(&mut self) {
        self.answers = HashMap::new();
    }

    /// The agent has sent so many bytes of a stream.
    pub fn sent(&mut self, stream: u32, bytes: usize) {
        if let Some(Answer::Open(sent)) = self.answers.get_mut(&stream) {
            *sent += bytes as u64;
        }
    }

    /// The agent has ended a stream. Returns whether that was waited for.
    pub fn ended(&mut self, stream: u32, end: AgentEnd) -> bool {
        if let Some(answer) = self.answers.get_mut(&stream)
            && let Answer::Open(sent) = *answer
        {
            *answer = Answer::Ended(sent);
        }
        match self.awaited.get_mut(&stream) {
            Some(awaited) => {
                *awaited = Some(end);
                true
            }
            None => false,
        }
    }

    /// What is known of a stream's answer.
    pub fn answer(&self, stream: u32) -> Answer {
        self.answers.get(&stream).copied().unwrap_or(Answer::Unknown)
    }

    /// Says what is known of the agent's frames from here on. What was not followed to its end cannot be told any more once
    /// some were missed.
    pub fn follow(&mut self, frames: AgentFrames) {
        self.frames = frames;
        if frames != AgentFrames::Followed {
            self.awaited.retain(|_, end| end.is_some());
            self.answers.retain(|_, answer| matches!(answer, Answer::Ended(_)));
        }
    }

    /// What is known of the agent's frames.
    pub fn frames(&self) -> AgentFrames {
        self.frames
    }

    /// It has acknowledged something new.
    pub fn count_acknowledgement(&mut self) {
        self.acknowledged += 1;
    }

    /// How often it has.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Announces that a stream's end will be waited for. False if it would not be told.
    pub fn await_end(&mut self, stream: u32) -> bool {
        let told = self.frames == AgentFrames::Followed;
        if told {
            self.awaited.insert(stream, None);
        }
        told
    }

    /// How a stream ended: `None` while that is waited for, `Some(None)` where it will never be known.
    pub fn awaited(&self, stream: u32) -> Option<Option<AgentEnd>> {
        match self.awaited.get(&stream) {
            Some(None) => None,
            other => Some(other.copied().flatten()),
        }
    }

    /// The stream's end is waited for no more.
    pub fn forget_end(&mut self, stream: u32) {
        self.awaited.remove(&stream);
    }

    /// Whether the plugin lacks a message that is earlier than others that it has.
    pub fn set_behind(&mut self, behind: bool) {
        self.behind = behind;
    }

    /// The same, as it was said last.
    pub fn is_behind(&self) -> bool {
        self.behind
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_counted_from_its_stream_s_begin_to_its_end() {
        let mut side = AgentSide::default();
        side.open(3);
        side.follow(AgentFrames::Followed);
        side.open(5);
        side.sent(3, 10);
        side.sent(5, 10);
        side.sent(5, 7);
        assert_eq!((side.answer(3), side.answer(5)), (Answer::Unknown, Answer::Open(17)));
        side.ended(3, AgentEnd::Connected);
        side.ended(5, AgentEnd::Connected);
        // What cannot be: nothing follows an end.
        side.sent(5, 1);
        assert_eq!((side.answer(3), side.answer(5)), (Answer::Unknown, Answer::Ended(17)));
        side.forget_answer(5);
        assert_eq!(side.answer(5), Answer::Unknown);
    }

    #[test]
    fn an_answer_with_a_gap_in_it_is_unknown_and_stays_so() {
        let mut side = AgentSide::default();
        side.follow(AgentFrames::Followed);
        side.open(3);
        side.open(5);
        side.ended(3, AgentEnd::Connected);
        side.follow(AgentFrames::Lost);
        side.open(7);
        side.follow(AgentFrames::Followed);
        side.open(9);
        (5..=9).step_by(2).for_each(|stream| assert!(!side.ended(stream, AgentEnd::Connected)));
        let answers = [3, 5, 7, 9].map(|stream| side.answer(stream));
        assert_eq!(answers, [Answer::Ended(0), Answer::Unknown, Answer::Unknown, Answer::Ended(0)]);
    }
}
