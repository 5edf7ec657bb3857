//! A tunnel as its status tells it: what clients meet, what is waited for, what has failed, and what it works with.

use serde::{Deserialize, Serialize};

use super::{Metrics, Session};
use crate::control::time::Timestamp;

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
    /// One of [`super::words::FAILURE_CLASSES`].
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
