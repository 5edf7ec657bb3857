//! PURE. What the service may not send, and what may be repeated of its words.
//!
//! Neither end of a session recovers from a message that cannot be read: it is never acknowledged, so it is sent again for
//! ever, and everything behind it waits. So such a message ends its session, with the reason, and another one is started.
//! A message of an unknown type is none of these: the plugin ignores it, and a later version may know it.

use super::message::Malformed;

/// Of an acknowledgement's payload, in bytes; the agent's have about 200.
pub const MAX_ACKNOWLEDGEMENT: usize = 1 << 10;
/// How far the agent's numbers may be ahead of what the plugin has acknowledged. The agent keeps 100 000 messages that are
/// not acknowledged, and sends what comes later once only; of those ahead the plugin takes and acknowledges 10 000. So
/// what is further ahead has left something behind that never comes again. (Both numbers are of the public sources.)
pub const MAX_AHEAD: i64 = 110_000;
/// Longest text of the service that is repeated, in characters.
const MAX_WORDS: usize = 200;

/// What cannot be a message of this session's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Breach {
    /// Not in the form that every message has.
    #[error("a message that cannot be read ({0})")]
    Malformed(#[from] Malformed),
    /// Not even a frame of the WebSocket's, or one that is too long.
    #[error("no proper WebSocket message ({0})")]
    WebSocket(String),
    /// Everything after the opening is binary.
    #[error("a text message")]
    Text,
    /// Stream data that only a client sends.
    #[error("a message that only a client sends")]
    Direction,
    /// Below zero.
    #[error("stream message {0}: the numbers begin with 0")]
    Negative(i64),
    /// Beyond what the agent keeps: what is missing in between is never sent again.
    #[error(
        "stream message {0} while {1} is missing: the agent keeps no more than 100000, so that the rest never comes"
    )]
    Ahead(i64, i64),
    /// The payload of an acknowledgement cannot be read.
    #[error("an acknowledgement that cannot be read")]
    Acknowledgement,
    /// An acknowledgement of what was never sent.
    #[error("an acknowledgement of message {0}, which was never sent")]
    NeverSent(i64),
    /// The payload of a handshake request cannot be read.
    #[error("a handshake that cannot be read")]
    Handshake,
}

impl Breach {
    /// As the reason of the session's end.
    pub fn reason(&self) -> String {
        match self {
            Self::Ahead(..) => format!("too much is lost to be repaired: the agent has sent {self}"),
            _ => format!("the service has broken the data channel's protocol: it sent {self}"),
        }
    }
}

/// Words of the other side's, fit for a log line: on one line, without control characters, and not too long.
pub fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_WORDS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_short_and_on_one_line() {
        assert_eq!(plain("timed out\r\n\u{1b}[31m"), "timed out[31m");
        assert_eq!(plain(&"ä".repeat(1 << 16)).chars().count(), MAX_WORDS);
    }

    #[test]
    fn a_reason_says_who_and_what() {
        let reason = Breach::from(Malformed::HeaderLength(7)).reason();
        assert_eq!(
            reason,
            "the service has broken the data channel's protocol: it sent a message that cannot be read (unknown header \
             length 7)"
        );
    }
}
