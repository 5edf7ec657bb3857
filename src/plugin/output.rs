//! PURE. What the plugin's words mean.
//!
//! The plugin prints its texts with a line feed before, after, both or neither, so two may stand in one line; and where
//! its log goes to the console, log lines stand between them and in front of them. So a text is looked for anywhere in a
//! line, and goes on to the next text or to the end of the line. What is not known is not an error: a session document
//! that is not for port forwarding makes the plugin print a shell's output.

use std::borrow::Cow;

use super::lines::Lines;

/// Something that the plugin said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// It has read its arguments and is opening the data channel.
    Started {
        /// As StartSession returned it.
        session_id: String,
    },
    /// It listens on this port of `localhost`: the session is ready. With the log on the console it is said twice.
    PortOpened(u16),
    /// It listens on this Unix socket, for a document that says so.
    SocketOpened {
        /// The socket's path.
        path: String,
    },
    /// The first client has connected to it.
    ConnectionAccepted,
    /// The agent could not reach the destination for a new connection; the session is fine.
    DestinationFailed,
    /// ResumeSession gave no token: the session is gone. It exits.
    TimedOut,
    /// The service closed the session. It exits, unless it said so in its log only.
    SessionClosed {
        /// In the service's words; empty if it gave none.
        reason: String,
    },
    /// It gives up: at the start, or when a client sends data while the WebSocket is down. It exits.
    CannotStart {
        /// A Go error.
        error: String,
    },
    /// It was told to stop by SIGINT. It exits.
    Terminating,
    /// From its log: the WebSocket was closed. Said up to five times for one closing.
    ChannelClosed {
        /// The close code.
        code: u16,
        /// The close frame's reason, or Go's name of the code.
        reason: String,
    },
    /// From its log: it has stopped reading from the WebSocket and begins to resume the session.
    RetryLimit,
    /// From its log: it begins to resume the session.
    Reconnecting,
    /// From its log: ResumeSession was refused. It tries five times, and then does nothing for ever.
    ResumeFailed {
        /// A Go error.
        error: String,
    },
    /// From its log: the data channel is open again.
    Reconnected,
    /// From its log: a message could not be sent.
    SendFailed {
        /// A Go error.
        error: String,
    },
    /// From its log: nothing was acknowledged for five minutes. It has asked to end the session and sends no more.
    DataTimeout,
    /// A line that means nothing known.
    Unknown(String),
}

impl Output {
    /// The plugin exits after this, and it tells why.
    pub fn is_last_word(&self) -> bool {
        matches!(
            self,
            Self::TimedOut | Self::SessionClosed { .. } | Self::CannotStart { .. } | Self::Terminating
        )
    }
}

/// Reads one stream of the plugin's output.
#[derive(Debug, Default)]
pub struct OutputParser(Lines);

impl OutputParser {
    /// At the beginning of the stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the lines that are complete with `bytes` mean. Any bytes will do. Memory is bounded by 8 KiB: a longer line
    /// is read in pieces.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Output> {
        self.push_through(bytes, |line| line)
    }

    /// What the last line means, if the stream ended within one.
    pub fn finish(&mut self) -> Vec<Output> {
        self.finish_through(|line| line)
    }

    /// Like [`push`](Self::push), with each line as `through` returns it.
    pub(super) fn push_through(
        &mut self,
        bytes: &[u8],
        mut through: impl FnMut(Cow<'_, str>) -> Cow<'_, str>,
    ) -> Vec<Output> {
        let mut outputs = Vec::new();
        self.0.push(bytes, |line| read(&through(line), &mut outputs));
        outputs
    }

    /// Like [`finish`](Self::finish), with the line as `through` returns it.
    pub(super) fn finish_through(
        &mut self,
        through: impl FnOnce(Cow<'_, str>) -> Cow<'_, str>,
    ) -> Vec<Output> {
        let mut outputs = Vec::new();
        self.0.finish(|line| read(&through(line), &mut outputs));
        outputs
    }
}

/// The texts, by how they begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Text {
    Started,
    Port,
    Socket,
    Waiting,
    Accepted,
    DestinationFailed,
    TimedOut,
    Closed,
    Exiting,
    CannotStart,
    Terminating,
    Close,
    RetryLimit,
    Reconnecting,
    ResumeFailed,
    Reconnected,
    SendFailed,
    DataTimeout,
    AlreadyTerminated,
}

/// Where one text begins with another, the longer one stands first.
const TEXTS: [(&str, Text); 21] = [
    ("Starting session with SessionId: ", Text::Started),
    ("Port ", Text::Port),
    ("Unix socket ", Text::Socket),
    ("Waiting for connections...", Text::Waiting),
    ("Connection accepted for session ", Text::Accepted),
    ("Connection to destination port failed, check SSM Agent logs.", Text::DestinationFailed),
    ("Session: ", Text::TimedOut),
    ("SessionId: ", Text::Closed),
    ("Exiting session with sessionId: ", Text::Exiting),
    ("Cannot perform start session: ", Text::CannotStart),
    ("Terminate signal received, exiting.", Text::Terminating),
    ("websocket: close ", Text::Close),
    ("Reach the retry limit ", Text::RetryLimit),
    ("Trying to reconnect the session: ", Text::Reconnecting),
    ("Resume Session failed: ", Text::ResumeFailed),
    ("Failed to get token: ", Text::ResumeFailed),
    ("Successfully reconnected to data channel: ", Text::Reconnected),
    ("Unable to send stream data message: ", Text::SendFailed),
    ("Error sending stream data message ", Text::SendFailed),
    ("Terminating session ", Text::DataTimeout),
    ("Session is already terminated", Text::AlreadyTerminated),
];

/// What comes after the port or the socket.
const OPENED: &str = " opened for sessionId ";

/// Texts that also occur as a part of another one's error or reason.
const INNER: [Text; 2] = [Text::Close, Text::AlreadyTerminated];

fn read(line: &str, outputs: &mut Vec<Output>) {
    let texts = texts(line);
    let mut known = false;
    let mut at = 0;
    while let Some((start, text, rest)) = next_text(&texts, at) {
        known = true;
        let end = match text {
            // These go on to the end of the line, whatever is in them.
            Text::CannotStart | Text::Closed | Text::AlreadyTerminated => line.len(),
            _ => end_of(&texts, start, rest, text).unwrap_or(line.len()),
        };
        let said = line.get(rest..end).unwrap_or_default().trim();
        outputs.extend(meaning(text, said));
        // An error may hold a text of its own, such as the close code.
        at = if matches!(text, Text::ResumeFailed | Text::SendFailed) { rest } else { end };
    }
    if !known && !line.trim().is_empty() {
        outputs.push(Output::Unknown(line.trim().to_owned()));
    }
}

/// Where a text begins, what it is, and where its beginning ends.
type Found = (usize, Text, usize);

/// All texts of a line, in order. They are looked for once: a line may be full of them, by chance or by intent.
fn texts(line: &str) -> Vec<Found> {
    let opened = line.rfind(OPENED);
    let at = |start: usize| {
        let rest = line.get(start..).unwrap_or_default();
        TEXTS.iter().find_map(|(words, text)| {
            let after = rest.strip_prefix(words)?;
            let end = start + words.len();
            let whole = match text {
                Text::Socket => opened.is_some_and(|opened| opened >= end),
                _ => is_whole(*text, after),
            };
            whole.then_some((start, *text, end))
        })
    };
    line.char_indices().filter_map(|(start, _)| at(start)).collect()
}

/// The next text that begins at `at` or after.
fn next_text(texts: &[Found], at: usize) -> Option<Found> {
    texts.get(texts.partition_point(|(start, ..)| *start < at)).copied()
}

/// Whether `rest` goes on as it must after the beginning of `text`: some begin with everyday words.
fn is_whole(text: Text, rest: &str) -> bool {
    match text {
        Text::Port => {
            let port = digits(rest);
            let then = rest.get(port.len()..).unwrap_or_default();
            port.parse::<u16>().is_ok() && then.starts_with(OPENED)
        }
        Text::TimedOut => first_word_then(rest, " timed out"),
        Text::Closed => first_word_then(rest, " : "),
        Text::Close => digits(rest).parse::<u16>().is_ok(),
        Text::DataTimeout => first_word_then(rest, " as the stream data was not processed"),
        _ => true,
    }
}

fn first_word_then(rest: &str, then: &str) -> bool {
    rest.find(' ').is_some_and(|end| end > 0 && rest.get(end..).is_some_and(|rest| rest.starts_with(then)))
}

fn digits(text: &str) -> &str {
    text.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default()
}

/// Where the text that begins at `start` ends: at the next one that is not a part of it, if there is one.
fn end_of(texts: &[Found], start: usize, rest: usize, text: Text) -> Option<usize> {
    let mut at = rest;
    while let Some((next, other, after)) = next_text(texts, at) {
        if !INNER.contains(&other) || INNER.contains(&text) || next <= start {
            return Some(next);
        }
        at = after;
    }
    None
}

fn meaning(text: Text, said: &str) -> Option<Output> {
    Some(match text {
        Text::Started => Output::Started { session_id: said.to_owned() },
        Text::Port => Output::PortOpened(digits(said).parse().ok()?),
        Text::Socket => Output::SocketOpened { path: said.split(OPENED).next()?.to_owned() },
        Text::Waiting => return None,
        Text::Accepted => Output::ConnectionAccepted,
        Text::DestinationFailed => Output::DestinationFailed,
        Text::TimedOut => Output::TimedOut,
        Text::Closed => Output::SessionClosed { reason: said.split_once(" : ")?.1.trim().to_owned() },
        // "ID." on the terminal, "ID with output: REASON" in the log.
        Text::Exiting => {
            let reason = said.split_once(" with output: ").map(|(_, reason)| reason).unwrap_or_default();
            Output::SessionClosed { reason: reason.to_owned() }
        }
        Text::CannotStart => Output::CannotStart { error: said.to_owned() },
        Text::Terminating => Output::Terminating,
        Text::Close => close(said)?,
        Text::RetryLimit => Output::RetryLimit,
        Text::Reconnecting => Output::Reconnecting,
        Text::ResumeFailed => Output::ResumeFailed { error: said.to_owned() },
        Text::Reconnected => Output::Reconnected,
        Text::SendFailed => Output::SendFailed { error: said.to_owned() },
        Text::DataTimeout => Output::DataTimeout,
        Text::AlreadyTerminated => {
            Output::SessionClosed { reason: "Session is already terminated".to_owned() }
        }
    })
}

/// `1000 (normal): Bye, Messagetype: -1`
fn close(said: &str) -> Option<Output> {
    let code = digits(said).parse().ok()?;
    let rest = said.split(", Messagetype").next()?.trim_start_matches(|c: char| c.is_ascii_digit()).trim();
    let (name, reason) = rest.split_once("): ").unwrap_or((rest, ""));
    let reason = if reason.is_empty() { name.trim_matches(['(', ')', ':']) } else { reason };
    Some(Output::ChannelClosed { code, reason: reason.to_owned() })
}

/// Whatever the plugin prints, however it is cut into reads: the same is understood.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    let Some((cut, bytes)) = data.split_first() else { return };
    let understood = |size: usize| -> Vec<Output> {
        let mut parser = OutputParser::new();
        let mut outputs: Vec<_> = bytes.chunks(size).flat_map(|chunk| parser.push(chunk)).collect();
        outputs.extend(parser.finish());
        outputs
    };
    assert_eq!(understood(usize::from(*cut) + 1), understood(bytes.len().max(1)));
}

#[cfg(test)]
mod tests;
