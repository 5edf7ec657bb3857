//! PURE. Follows the agent's mux frames, for the ends of its streams.
//!
//! An agent answers a new stream with nothing: not when it has connected to the destination, nor while it tries. But it
//! ends each stream once it has tried, and says before whether it failed: where the other side has ended the stream
//! already, at once. So the end of a stream that was opened and closed tells that the agent has connected, which nothing
//! else does where the destination does not speak first. (`handleServerConnections` and `handleDataTransfer` in the
//! agent's `port_mux.go`; it connects for one stream after the other.)
//!
//! A frame may be cut anywhere, so that messages have to be followed in their order. Those that come early wait for the
//! missing one.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::ledger::{AgentEnd, Ledger};
use super::message::{self, View};
use super::mux::{Follower, Piece};

/// Messages that wait for an earlier one. The agent's window is larger; beyond this nothing is followed any more.
const MAX_EARLY: usize = 1_000;

/// Tells the ledger of the agent's ends of streams, as long as its frames can be followed.
#[derive(Debug)]
pub struct Answers {
    ledger: Arc<Ledger>,
    /// `None` for good once they cannot, and before it is known that they can.
    follower: Option<Follower>,
    next: i64,
    early: BTreeMap<i64, Bytes>,
    /// The agent has said that it could not connect, and no stream has ended since.
    refused: bool,
}

impl Answers {
    /// Of a session's first message on.
    pub fn new(ledger: Arc<Ledger>) -> Self {
        Self { ledger, follower: Some(Follower::default()), next: 0, early: BTreeMap::new(), refused: false }
    }

    /// The data is mux frames, and they can be read.
    pub fn begin(&mut self) {
        self.ledger.follow_agent(self.follower.is_some());
    }

    /// They cannot be followed any more.
    pub fn end(&mut self) {
        self.follower = None;
        self.early.clear();
        self.ledger.follow_agent(false);
    }

    /// A message of the agent's stream, of any number, as often as it comes.
    pub fn take(&mut self, view: &View<'_>) {
        if self.follower.is_none() || view.number() < self.next {
            return;
        }
        if view.number() > self.next {
            if self.early.len() >= MAX_EARLY {
                self.end();
            } else {
                self.early.insert(view.number(), view.copied());
            }
            return;
        }
        self.follow(view);
        while let Some(bytes) = self.early.remove(&self.next) {
            if let Ok(view) = View::new(&bytes) {
                self.follow(&view);
            }
        }
    }

    fn follow(&mut self, view: &View<'_>) {
        self.next = self.next.saturating_add(1);
        if view.payload_type() == message::FLAG && view.payload() == message::CONNECT_TO_PORT_ERROR {
            self.refused = true;
        }
        if view.payload_type() != message::DATA {
            return;
        }
        let Some(follower) = &mut self.follower else { return };
        let (ledger, refused) = (&self.ledger, &mut self.refused);
        let followed = follower.follow(view.payload(), |piece| {
            if let Piece::Close(stream) = piece {
                let end = if std::mem::take(refused) { AgentEnd::Refused } else { AgentEnd::Connected };
                ledger.agent_ended(stream, end);
            }
        });
        if followed.is_err() {
            self.end();
        }
    }
}
