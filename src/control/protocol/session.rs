//! One session as the status tells it.

use serde::{Deserialize, Serialize};

use super::Failure;
use crate::control::time::Timestamp;

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
    /// Its data channel does not serve.
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

/// What keeps a session from serving.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InterruptionCause {
    /// The data channel is closed and being opened again.
    Closed,
    /// The service answers no ping on it.
    Unanswered,
    /// The service says that the agent has lost its connection.
    AgentAway,
    /// The agent acknowledges nothing.
    AgentSilent,
    /// Messages are missing, and what comes behind them waits.
    Gap,
    /// Another one, of a newer daemon; or not told, by an older one.
    #[default]
    #[serde(other)]
    Unknown,
}

impl InterruptionCause {
    /// All that this build knows.
    pub const ALL: [Self; 5] =
        [Self::Closed, Self::Unanswered, Self::AgentAway, Self::AgentSilent, Self::Gap];

    /// As it stands in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Unanswered => "unanswered",
            Self::AgentAway => "agent_away",
            Self::AgentSilent => "agent_silent",
            Self::Gap => "gap",
            Self::Unknown => "unknown",
        }
    }

    /// Of a word that stands in an event.
    pub fn of_word(word: &str) -> Self {
        Self::ALL.into_iter().find(|cause| cause.word() == word).unwrap_or_default()
    }
}

/// A data channel that does not serve.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Interruption {
    /// Since when.
    pub since: Timestamp,
    /// What kind of interruption it is.
    pub cause: InterruptionCause,
    /// In words: close code and reason, the error, or what was seen.
    pub reason: String,
    /// Messages that are missing while later ones have arrived.
    pub missing_messages: u64,
    /// How long the agent takes to resend them.
    pub repair_ms: u64,
    /// Attempts to resume it that have failed.
    pub failed_attempts: u64,
    /// Why the last of them failed.
    pub failure: Option<Failure>,
    /// When the next attempt is made; none while one is being made, and where only the agent is silent.
    pub next_attempt: Option<Timestamp>,
    /// When the session is given up.
    pub gives_up: Option<Timestamp>,
}
