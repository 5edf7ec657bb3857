//! What goes over a tunnel's control socket: one JSON object on each line, requests one way, replies the other.
//!
//! ```text
//! → {"v":1,"request":"status"}
//! ← {"v":1,"reply":"status","name":"billing-db","state":"up", …}
//! → {"v":1,"request":"events","last":10,"follow":true}
//! ← {"v":1,"reply":"event","seq":41,"event":"resumed", …}      as many as there are, then
//! ← {"v":1,"reply":"end"}                                      and without `follow` the next request may come
//! ```
//! **Versions.** `v` rises when something changes its meaning or goes away. What is added does not raise it: who reads
//! ignores fields that it does not know, takes words that it does not know for `unknown`, and does without fields that
//! are missing, so that a client and a daemon of different builds understand each other.
//!
//! **Units.** Moments are RFC 3339 in UTC; names in `_ms` are milliseconds, in `_seconds` seconds, `_bytes` bytes.
//! Counters count since the daemon was started, unless they say otherwise.
//!
//! Requests and replies are here, and what replies carry in the files beneath.

mod event;
mod metrics;
mod session;
mod status;

use serde::{Deserialize, Serialize};

pub use self::event::{Event, Level, history};
pub use self::metrics::{Histogram, Metrics, words};
pub use self::session::{Interruption, InterruptionCause, Phase, Session};
pub use self::status::{
    Connections, Credentials, Daemon, Destination, Expiry, Failure, Next, Resumes, State, Status, Step,
};
use super::time::Timestamp;

/// The version that this build speaks.
pub const VERSION: u32 = 1;
/// The longest line of a request, its end included. A longer one ends the connection.
pub const MAX_REQUEST: usize = 4096;
/// The longest line of a reply. A client need not read more.
pub const MAX_REPLY: usize = 1 << 20;

/// One line of either side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line<T> {
    /// [`VERSION`] of whoever wrote it.
    pub v: u32,
    /// With a command: the name of the user who asks, by their own word. The daemon goes by what the kernel says where
    /// that can tell users apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The request or reply itself.
    #[serde(flatten)]
    pub body: T,
}

impl<T> Line<T> {
    /// A line in this build's version.
    pub fn new(body: T) -> Self {
        Self { v: VERSION, by: None, body }
    }
}

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Answered with [`Reply::Status`].
    Status,
    /// Answered with [`Reply::Event`], oldest first, and [`Reply::End`]. With `follow` the end never comes, new events
    /// do, and no other request is read.
    Events {
        /// Only those from this moment on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since: Option<Timestamp>,
        /// Only those with a higher number: for a client that has been here before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<u64>,
        /// Only so many of the latest.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        last: Option<usize>,
        /// Go on with those that happen from now on.
        #[serde(default, skip_serializing_if = "is_false")]
        follow: bool,
    },
    /// Replaces each session by a new one; the old one goes on until its connections are closed, or `drain` is over.
    /// Answered with [`Reply::Done`], as the following are.
    Rotate,
    /// Ends each session with its connections and begins anew. The port stays.
    Restart,
    /// Takes no new connections to sessions: clients are held. Open connections go on.
    Drain,
    /// Takes that back.
    Resume,
    /// Kills the plugin of a session that serves, to see the tunnel come back from that. What follows is what follows
    /// when a plugin dies by itself.
    Drill {
        /// The session's id, as the status has it: what was looked at is what is hit.
        session: String,
    },
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// The tunnel at this moment.
    Status(Box<Status>),
    /// One event.
    Event(Box<Event>),
    /// The client reads too slowly, or the disk is too slow: so many events were left out here.
    Missed {
        /// How many.
        events: u64,
    },
    /// That was all.
    End,
    /// The command was taken on.
    Done {
        /// What happens now, in a sentence.
        message: String,
    },
    /// The request was not fulfilled.
    Error {
        /// For programs.
        code: ErrorCode,
        /// For people: what is wrong and what to do.
        message: String,
    },
}

/// Why a request was not fulfilled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// It is not one, or too long.
    BadRequest,
    /// Its version is newer than the daemon's.
    Version,
    /// Too many clients are connected.
    Busy,
    /// Whoever asks is neither root nor the daemon's user nor in the group `autossm`.
    Denied,
    /// The tunnel is being stopped.
    Stopping,
    /// The tunnel's task has not answered in time.
    Stuck,
    /// What it is about is not there (any more).
    NotThere,
    /// Another one, of a newer daemon.
    #[serde(other)]
    Unknown,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_false(value: &bool) -> bool {
    !*value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: serde::de::DeserializeOwned>(text: &str) -> T {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn requests_look_as_documented() {
        let said = |request| serde_json::to_string(&Line::new(request)).unwrap();
        assert_eq!(said(Request::Status), r#"{"v":1,"request":"status"}"#);
        let events = Request::Events { since: None, after: None, last: Some(10), follow: true };
        assert_eq!(said(events.clone()), r#"{"v":1,"request":"events","last":10,"follow":true}"#);
        assert_eq!(read::<Line<Request>>(&said(events.clone())).body, events);
        let bare: Line<Request> = read(r#"{"v":1,"request":"events","something":"new"}"#);
        assert_eq!(bare.body, Request::Events { since: None, after: None, last: None, follow: false });
    }

    #[test]
    fn replies_come_back_as_they_were() {
        let status = Status { name: "db".into(), state: State::Degraded, ..Status::default() };
        let event = Event { seq: 7, reason: Some("why".into()), level: Level::Warn, ..Event::default() };
        let error = Reply::Error { code: ErrorCode::Busy, message: "later".into() };
        for reply in [Reply::Status(Box::new(status)), Reply::Event(Box::new(event)), Reply::End, error] {
            let line = serde_json::to_string(&Line::new(reply.clone())).unwrap();
            assert!(line.starts_with(r#"{"v":1,"reply":""#) && !line.contains('\n'), "{line}");
            assert_eq!(read::<Line<Reply>>(&line).body, reply);
        }
    }

    /// A daemon goes on running while the program is upgraded, and the other way round.
    #[test]
    fn other_builds_are_understood() {
        let line = r#"{"v":1,"reply":"status","name":"db","state":"asleep","sessions":[{"phase":"new","x":1}],"y":{}}"#;
        let Reply::Status(status) = read::<Line<Reply>>(line).body else { panic!("not a status") };
        assert_eq!((status.state, status.sessions[0].phase), (State::Unknown, Phase::Unknown));
        assert_eq!(status.remote_port, 0);
        let line = r#"{"v":1,"reply":"error","code":"new","message":"m"}"#;
        let error = Reply::Error { code: ErrorCode::Unknown, message: "m".into() };
        assert_eq!(read::<Line<Reply>>(line).body, error);
    }

    #[test]
    fn words_are_those_of_json() {
        for state in [State::Up, State::Degraded, State::Draining, State::Unknown] {
            assert_eq!(serde_json::to_value(state).unwrap(), state.word());
        }
        for phase in Phase::ALL {
            assert_eq!(serde_json::to_value(phase).unwrap(), phase.word());
        }
    }
}
