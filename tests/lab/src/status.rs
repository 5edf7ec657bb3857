//! What the lab has seen: counters, live sessions, and everything that a client did wrong.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

/// How often a call was answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Calls {
    /// Answered at all. A call whose client went away before it was processed does not count.
    pub processed: u64,
    /// Answered with success.
    pub succeeded: u64,
}

/// A snapshot of what the lab has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Status {
    /// `StartSession`.
    pub start: Calls,
    /// `ResumeSession`.
    pub resume: Calls,
    /// `TerminateSession`.
    pub terminate: Calls,
    /// `GenerateDataKey`, of KMS.
    pub data_key: Calls,
    /// The access keys that `GenerateDataKey` was signed with.
    pub data_key_signers: BTreeSet<String>,
    /// Every other call.
    pub other: Calls,
    /// Of these, `DescribeInstanceInformation`.
    pub nodes_listed: u64,
    /// `AssumeRole`, of STS.
    pub roles_assumed: u64,
    /// API calls without a plausible signature.
    pub unsigned_calls: u64,
    /// Calls and upgrades signed with a key that says that its time is over.
    pub expired_keys: u64,
    /// WebSocket upgrades without a plausible signature. They are let through: the plugin signs from 1.2.764.0 on only.
    pub unsigned_upgrades: u64,
    /// Upgrades asked for, the refused ones included.
    pub upgrades: u64,
    /// Data channels opened with a good token.
    pub opened: u64,
    /// Data channels closed, by whomever.
    pub closed: u64,
    /// Data channels of agents opened.
    pub agents_opened: u64,
    /// Data channels of agents closed.
    pub agents_closed: u64,
    /// First messages with a token that was wrong, old or used already; with an old stream URL too if they expire.
    pub bad_tokens: u64,
    /// Data channels opened under the stream URL of an earlier token: plugins before 1.2.835.0 do that, and fail when
    /// its cell number has expired.
    pub old_urls: u64,
    /// Upgrades whose `Host` header is no name of the service.
    pub wrong_hosts: u64,
    /// Connections made to destinations.
    pub dialled: u64,
    /// Connections that could not be made to destinations.
    pub dial_failures: u64,
    /// Bytes that the sink has received.
    pub sunk: u64,
    /// Stream messages of clients that the agent had already.
    pub duplicates: u64,
    /// Stream messages of clients that an agent neither took nor acknowledged, because its session was not set up yet or over.
    pub not_taken: u64,
    /// Flags of clients that were lost because their number was used for data too, or the other way round: a fault
    /// of the stock plugin when it is interrupted while it sends.
    pub flag_collisions: u64,
    /// Messages and acknowledgements that a fault swallowed.
    pub lost: u64,
    /// Messages of either side that the other one was not there for.
    pub undelivered: u64,
    /// Messages that agents sent again.
    pub resent: u64,
    /// Messages that a client never acknowledged although it acknowledged later ones and got this one 20 times. The
    /// stock plugin does not acknowledge a duplicate, so one lost acknowledgement is enough for this.
    pub never_acknowledged: u64,
    /// Breaches of the protocol by clients; `violations` has the first 100.
    pub violation_count: u64,
    /// What clients did wrong, in words.
    pub violations: Vec<String>,
    /// Live sessions by id.
    pub sessions: BTreeMap<String, SessionStatus>,
    /// Sessions that have ended, oldest first.
    pub ended: Vec<Ended>,
}

/// A live session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SessionStatus {
    /// Where its agent is.
    pub target: String,
    /// Its document.
    pub document: String,
    /// As given to StartSession.
    pub reason: String,
    /// Its client's data channel is open.
    pub connected: bool,
    /// Its agent's data channel is open.
    pub agent_connected: bool,
    /// Its agent has given up to reconnect: its worker stays, and does nothing for ever.
    pub agent_gave_up: bool,
    /// Its data is encrypted.
    pub encrypted: bool,
    /// The handshake is complete, and the agent takes data.
    pub ready: bool,
    /// The plugin's version as told in the handshake.
    pub client_version: String,
    /// Mux streams open at the agent.
    pub streams: usize,
    /// Stream messages processed by the agent.
    pub received: i64,
    /// Stream messages numbered by the agent.
    pub sent: i64,
    /// Of these, not yet acknowledged.
    pub unacknowledged: usize,
    /// WebSocket pings from the client.
    pub pings: u64,
}

/// A session that has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Ended {
    /// Its id.
    pub session: String,
    /// The words sent to the client; empty if the client asked for the end.
    pub output: String,
    /// The client asked for the end.
    pub by_client: bool,
}

impl Status {
    pub(crate) fn violation(&mut self, text: String) {
        tracing::error!("protocol violation: {text}");
        self.violation_count += 1;
        if self.violations.len() < 100 {
            self.violations.push(text);
        }
    }

    pub(crate) fn session(&mut self, id: &str, change: impl FnOnce(&mut SessionStatus)) {
        if let Some(session) = self.sessions.get_mut(id) {
            change(session);
        }
    }

    /// Sessions whose data channel is open and whose handshake is complete.
    pub fn ready_sessions(&self) -> usize {
        self.sessions.values().filter(|session| session.connected && session.ready).count()
    }
}
