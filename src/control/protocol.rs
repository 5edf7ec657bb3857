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

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

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

/// A tunnel at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The tunnel's name.
    pub name: String,
    /// When this was true.
    pub now: Timestamp,
    /// The process that runs it.
    pub daemon: Daemon,
    /// What clients meet.
    pub state: State,
    /// Since when. While there is no session, `interrupted`, `starting` and `waiting` take turns: since the first of them.
    pub since: Timestamp,
    /// New clients are held because somebody has asked for that (`drain`).
    pub draining: bool,
    /// The local addresses, as they stand in the configuration.
    pub listen: Vec<String>,
    /// The targets of the configuration in their order, or `tag KEY=VALUE`.
    pub targets: Vec<String>,
    /// The destination's name or address; none: a port of the target itself.
    pub remote_host: Option<String>,
    /// The destination's port.
    pub remote_port: u16,
    /// The region of its sessions, as far as it is known.
    pub region: Option<String>,
    /// `hold` or `observe`.
    pub gateway: String,
    /// How many sessions are wanted.
    pub sessions_wanted: u64,
    /// Those that there are, oldest first.
    pub sessions: Vec<Session>,
    /// What is waited for next.
    pub next: Option<Next>,
    /// The last failed attempt to have a session, until each that is wanted serves.
    pub failure: Option<Failure>,
    /// The last failure of this process, whether or not it is over.
    pub last_failure: Option<Failure>,
    /// Attempts to have a session that failed since the last one was ready.
    pub failed_attempts: u64,
    /// What the probe of the destination says, or real traffic.
    pub destination: Option<Destination>,
    /// What the API is called with.
    pub credentials: Option<Credentials>,
    /// Clients.
    pub connections: Connections,
    /// Bytes from clients to the destination.
    pub up_bytes: u64,
    /// Bytes from the destination to clients.
    pub down_bytes: u64,
    /// Data channels that were opened again.
    pub resumes: Resumes,
    /// The newest round trip to an agent, of the sessions that there are; as each has it.
    pub agent_rtt_ms: Option<f64>,
    /// Counters and histograms.
    pub metrics: Metrics,
}

/// The process that runs a tunnel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Daemon {
    /// Its id.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// When it began to run this tunnel.
    pub started: Timestamp,
}

/// What clients meet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// New connections go through.
    Up,
    /// New connections go through, but the destination does not answer. (A pool with sessions missing is [`Self::Up`];
    /// see [`Status::failure`].)
    Degraded,
    /// Clients are held; the data channel is down and being resumed.
    Interrupted,
    /// Clients are held; a session is being started.
    Starting,
    /// Clients are held; the next attempt is waited for.
    Waiting,
    /// Clients are held, because somebody has asked for that.
    Draining,
    /// No new clients; open connections have their time.
    Stopping,
    /// Nothing is left. Clients say so of a tunnel that no daemon runs, too.
    Stopped,
    /// Another one, of a newer daemon.
    #[default]
    #[serde(other)]
    Unknown,
}

impl State {
    /// Whether clients get through.
    pub fn serves(self) -> bool {
        matches!(self, Self::Up | Self::Degraded)
    }

    /// As it stands in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Degraded => "degraded",
            Self::Interrupted => "interrupted",
            Self::Starting => "starting",
            Self::Waiting => "waiting",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Unknown => "unknown",
        }
    }
}

/// One session at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Session {
    /// Its number in the tunnel, in the order in which they were begun by this process.
    pub generation: u64,
    /// The service's id of it, as the console and CloudTrail show it; none before StartSession has answered.
    pub id: Option<String>,
    /// Where it stands.
    pub phase: Phase,
    /// When StartSession was called.
    pub began: Timestamp,
    /// When it began to serve.
    pub ready_at: Option<Timestamp>,
    /// The target that it was started with.
    pub target: Option<String>,
    /// For example `3.3.2299.0`.
    pub agent_version: Option<String>,
    /// Whether its payloads are encrypted with a KMS key; none before the handshake.
    pub encrypted: Option<bool>,
    /// Whether keep-alives are sent to its agent; none where that is not known yet.
    pub keepalive: Option<bool>,
    /// Why none are sent.
    pub no_keepalive: Option<String>,
    /// The plugin's process.
    pub plugin_pid: Option<u32>,
    /// Connections open on it.
    pub open: u64,
    /// Bytes from clients that were handed to it.
    pub up_bytes: u64,
    /// Bytes that came from it.
    pub down_bytes: u64,
    /// How often its data channel was opened again.
    pub resumes: u64,
    /// How long its agent took to acknowledge a message the last time that was measured: every 5 s while it is used, by
    /// each keep-alive when it is not. None where that was longer ago than `keepalive` and a minute.
    pub agent_rtt_ms: Option<f64>,
    /// Its data channel is down.
    pub interruption: Option<Interruption>,
    /// Retired: when its open connections are cut, where there is a limit.
    pub until: Option<Timestamp>,
}

/// Where a session stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// StartSession is under way.
    Starting,
    /// The plugin runs; its port is not open yet.
    Opening,
    /// Takes new connections.
    Ready,
    /// Its data channel is down and being resumed.
    Interrupted,
    /// A client that does not read blocks it; new connections go to another one.
    Stalled,
    /// Takes no new connections; open ones go on.
    Retired,
    /// Being ended.
    Ending,
    /// Another one, of a newer daemon.
    #[default]
    #[serde(other)]
    Unknown,
}

impl Phase {
    /// All that this build knows.
    pub const ALL: [Self; 7] = [
        Self::Starting,
        Self::Opening,
        Self::Ready,
        Self::Interrupted,
        Self::Stalled,
        Self::Retired,
        Self::Ending,
    ];

    /// As it stands in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Opening => "opening",
            Self::Ready => "ready",
            Self::Interrupted => "interrupted",
            Self::Stalled => "stalled",
            Self::Retired => "retired",
            Self::Ending => "ending",
            Self::Unknown => "unknown",
        }
    }
}

/// A data channel that is down.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Interruption {
    /// Since when.
    pub since: Timestamp,
    /// Close code and reason, or the error.
    pub reason: String,
    /// Attempts to resume it that have failed.
    pub failed_attempts: u64,
    /// Why the last of them failed.
    pub failure: Option<Failure>,
    /// When the next attempt is made; none while one is being made, and where only the agent is silent.
    pub next_attempt: Option<Timestamp>,
    /// When the session is given up.
    pub gives_up: Option<Timestamp>,
}

/// What is waited for, and until when.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Next {
    /// When.
    pub at: Timestamp,
    /// What happens then.
    pub what: Step,
    /// What has led to it, in the words of whoever refused.
    pub reason: Option<String>,
}

/// What is waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The next attempt to start a session.
    Start,
    /// An interrupted session gets a replacement.
    Failover,
    /// A session that opens is given up.
    OpeningOver,
    /// An interrupted session is given up.
    ResumingOver,
    /// A session that has reached its age is replaced.
    Rotation,
    /// The connections of a retired session are cut.
    DrainOver,
    /// The tunnel is stopped, whatever hangs.
    StoppingOver,
    /// Another one, of a newer daemon.
    #[default]
    #[serde(other)]
    Unknown,
}

/// A failed attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Failure {
    /// When.
    pub at: Timestamp,
    /// One of [`words::FAILURE_CLASSES`].
    pub class: String,
    /// In the words of whoever refused.
    pub text: String,
}

/// The destination, as far as it is known: where it is down, or is probed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Destination {
    /// `up` or `down`.
    pub state: String,
    /// Since when.
    pub since: Timestamp,
    /// What was seen; of one that is up: what was wrong with the last probe, if anything.
    pub reason: Option<String>,
    /// When it was probed last.
    pub checked: Option<Timestamp>,
    /// How long the last probe took, the wait for its turn among the connections included.
    pub took_ms: Option<f64>,
}

/// What the API is called with. Never a secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Credentials {
    /// The access key's id.
    pub access_key_id: Option<String>,
    /// Where they come from: `environment`, `profile` (keys in a file), `process`, `sso`, `role`, `web_identity`, `container`,
    /// `instance`; none where that is not known.
    pub source: Option<String>,
    /// What is known of their end.
    pub expiry: Expiry,
    /// When they expire, with [`Expiry::At`] alone.
    pub expires: Option<Timestamp>,
}

/// What is known of the end of credentials.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expiry {
    /// There are no credentials, or nobody has needed them yet.
    None,
    /// They are a user's keys.
    Never,
    /// At that moment.
    At,
    /// They are temporary and do not say; or the daemon does not, being an older one.
    #[default]
    #[serde(other)]
    Unknown,
}

/// A tunnel's clients.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Connections {
    /// Connections that have a session, now.
    pub open: u64,
    /// Clients that wait for one, now.
    pub held: u64,
    /// Clients that were let in.
    pub accepted: u64,
    /// Clients that have got a session.
    pub served: u64,
    /// Clients that did not get what they came for: the sum of `timed_out`, `refused`, `accept_errors`, `cut` and
    /// `stalled_closed`.
    pub failed: u64,
    /// Clients that waited and then got a session.
    pub released: u64,
    /// Clients that waited in vain.
    pub timed_out: u64,
    /// Clients that went away while they waited.
    pub gone: u64,
    /// Clients closed at once because a limit was reached.
    pub refused: u64,
    /// Clients that could not be accepted (no file descriptor left).
    pub accept_errors: u64,
    /// Connections that were handed to another session because they had carried nothing yet.
    pub moved: u64,
    /// Connections cut in the middle, because their session or the daemon ended.
    pub cut: u64,
    /// Connections closed because the client took nothing for `stalled_client_timeout` and was in others' way.
    pub stalled_closed: u64,
    /// The longest wait of a client that got a session.
    pub longest_hold_ms: u64,
}

/// Data channels that were opened again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resumes {
    /// In the last 24 hours, earlier processes included.
    pub last_day: u64,
    /// By this process.
    pub total: u64,
    /// When the last one was.
    pub last_at: Option<Timestamp>,
    /// How long the data channel was down the last time.
    pub last_ms: Option<u64>,
}

/// Counters and histograms of one tunnel since its daemon was started. Every word of [`words`] is there from the
/// beginning, with 0.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Metrics {
    /// Attempts to start a session, by [`words::START_OUTCOMES`].
    pub session_starts: BTreeMap<String, u64>,
    /// Sessions that had served and ended, by [`words::END_REASONS`].
    pub session_ends: BTreeMap<String, u64>,
    /// Data channels that were closed, by WebSocket close code; `none` without a close frame, `agent_silent` where it is
    /// open and the agent acknowledges nothing.
    pub stream_closes: BTreeMap<String, u64>,
    /// Closed data channels that are open again or given up, by [`words::RESUME_OUTCOMES`].
    pub resumes: BTreeMap<String, u64>,
    /// How long data channels were down that were opened again.
    pub resume_seconds: Histogram,
    /// How long clients were held that got a session.
    pub hold_seconds: Histogram,
    /// Connections that are over, by [`words::CONNECTION_OUTCOMES`]: each counts once.
    pub connections: BTreeMap<String, u64>,
    /// Bytes carried, by [`words::DIRECTIONS`].
    pub bytes: BTreeMap<String, u64>,
    /// Round trips to the agents.
    pub agent_rtt_seconds: Histogram,
    /// Plugins that were lost and replaced, by [`words::PLUGIN_ENDS`].
    pub plugin_restarts: BTreeMap<String, u64>,
}

/// How often something took how long.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Histogram {
    /// The buckets' upper bounds in seconds, rising; the last bucket has none.
    pub le: Vec<f64>,
    /// How many fell into each bucket, not cumulated: one more than `le`.
    pub counts: Vec<u64>,
    /// The sum of all, in seconds.
    pub sum: f64,
}

impl Histogram {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// The words that counters are kept by: fixed and few, so that they can be labels.
pub mod words {
    /// Classes of failures.
    pub const FAILURE_CLASSES: &[&str] =
        &["needs_change", "access", "target_not_connected", "throttled", "network"];
    /// `ok`: the session served; else the class of the failure.
    pub const START_OUTCOMES: &[&str] =
        &["ok", "needs_change", "access", "target_not_connected", "throttled", "network"];
    /// Why sessions end.
    pub const END_REASONS: &[&str] = &[
        "replaced",
        "stopped",
        "requested",
        "service",
        "plugin_exited",
        "plugin_hung",
        "not_resumed",
        "other",
    ];
    /// What becomes of interruptions: `ok`, or the session ended while its data channel was down.
    pub const RESUME_OUTCOMES: &[&str] = &["ok", "lost"];
    /// What becomes of connections. `completed`: ended by client or destination; `cut`: with its session or the daemon;
    /// `stalled`: closed because the client took nothing; `timed_out`, `gone`: held in vain, went away while held; `refused`: a limit was reached; `stopped`: held when the
    /// daemon stopped; `accept_failed`: no file descriptor.
    pub const CONNECTION_OUTCOMES: &[&str] =
        &["completed", "cut", "stalled", "timed_out", "gone", "refused", "stopped", "accept_failed"];
    /// `up`: to the destination.
    pub const DIRECTIONS: &[&str] = &["up", "down"];
    /// How plugins are lost.
    pub const PLUGIN_ENDS: &[&str] = &["exited", "killed", "hung"];
}

/// Something that has happened, as the log has it: the same words, the same fields. Also a line of the record in the
/// state directory.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Event {
    /// Numbers the events of a tunnel without gaps, over restarts; events that were lost leave one.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// The tunnel.
    pub tunnel: String,
    /// How much it matters.
    pub level: Level,
    /// What kind of event: a word of the catalog (`autossm.catalog`), the same for ever.
    pub event: String,
    /// The session's id, where it is about one.
    pub session: Option<String>,
    /// The log line.
    pub message: String,
    /// Why, in the words of whoever gave the reason.
    pub reason: Option<String>,
    /// How long it took or lasted.
    pub duration_ms: Option<u64>,
    /// The other fields of the line, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, Value>,
}

/// How much an event matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// To those who look for something.
    Debug,
    /// Good to know.
    #[default]
    Info,
    /// Somebody should look at it.
    Warn,
    /// Somebody has to do something.
    Error,
}

/// Two events that are made for those who draw the past. They are written at level debug, so that the log has them only
/// when it is asked to: it tells the same in other words.
pub mod history {
    /// The daemon runs the tunnel from here on; fields `pid`, `version`. What came before is over, said or not.
    pub const BEGUN: &str = "begun";
    /// The tunnel's state is another one: fields `state` (a word of [`super::State`]), `was`, and `duration_ms`, how long
    /// it was in the one before; `reason`, where one is known. While no session can be had `starting` and `waiting` take
    /// turns: after a `waiting` that is not told any more.
    pub const STATE: &str = "state";
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
