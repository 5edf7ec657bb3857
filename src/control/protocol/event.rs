//! What has happened, one event at a time.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::control::time::Timestamp;

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
    /// The tunnel's state is another one: fields `state` (a word of [`State`](super::super::State)), `was`, and
    /// `duration_ms`, how long it was in the one before; `reason`, where one is known. While no session can be had
    /// `starting` and `waiting` take turns: after a `waiting` that is not told any more.
    pub const STATE: &str = "state";
}
