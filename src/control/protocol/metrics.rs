//! Counters and histograms, and the words that they are kept by.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

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
