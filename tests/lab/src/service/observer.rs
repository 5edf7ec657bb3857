//! What can be seen from between of an agent that is another process: the figures that the lab's own agent tells of itself, and
//! the breaches of the protocol that it would notice.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use bytes::Bytes;

use crate::agent::numbering::{Incoming, Verdict};
use crate::state::State;
use crate::wire::handshake::HandshakeResponse;
use crate::wire::message::{Message, MessageType, payload};
use crate::wire::mux::{Command, Decoder};

/// What has passed of one session.
pub(super) struct Observer {
    state: Arc<State>,
    session: String,
    from_client: Direction,
    from_agent: Direction,
    /// The agent's numbers that the client has not acknowledged.
    unacknowledged: BTreeSet<i64>,
    sent: i64,
    /// Mux streams that the client has opened and the agent has not ended.
    open: HashSet<u32>,
    known: HashSet<u32>,
}

#[derive(Default)]
struct Direction {
    numbers: Incoming,
    decoder: Decoder,
    broken: bool,
}

impl Observer {
    pub fn new(state: Arc<State>, session: String) -> Self {
        Self {
            state,
            session,
            from_client: Direction::default(),
            from_agent: Direction::default(),
            unacknowledged: BTreeSet::new(),
            sent: 0,
            open: HashSet::new(),
            known: HashSet::new(),
        }
    }

    /// Takes note of a client's message. Whether it has data that has not passed before.
    pub fn client_said(&mut self, message: &Message) -> bool {
        if message.kind == MessageType::Acknowledge {
            self.acknowledged(message);
            return false;
        }
        let new = match self.from_client.numbers.receive(message.clone()) {
            Ok(Verdict::Process(message)) => {
                self.in_order(&message);
                while let Some(message) = self.from_client.numbers.next_in_order() {
                    self.in_order(&message);
                }
                true
            }
            Ok(Verdict::Kept) => true,
            Ok(Verdict::Repeated) => {
                self.state.count(|status| status.duplicates += 1);
                false
            }
            Ok(Verdict::FlagCollision) => {
                self.state.count(|status| status.flag_collisions += 1);
                false
            }
            Ok(Verdict::NoRoom) => false,
            Err(violation) => {
                self.state.violation(&self.session, violation);
                false
            }
        };
        self.tell();
        new && message.payload_type == payload::DATA
    }

    /// Takes note of an agent's message. Whether it has data that has not passed before.
    pub fn agent_said(&mut self, encoded: &Bytes) -> bool {
        let message = match Message::decode(encoded) {
            Ok(message) => message,
            Err(error) => {
                self.state.violation(&self.session, format_args!("of the agent: {error}"));
                return false;
            }
        };
        if message.kind != MessageType::OutputStreamData {
            return false;
        }
        let new = message.sequence >= self.sent;
        if new {
            self.sent = message.sequence + 1;
            self.unacknowledged.insert(message.sequence);
        } else {
            self.state.count(|status| status.resent += 1);
        }
        if message.payload_type == payload::HANDSHAKE_COMPLETE {
            self.state.count(|status| status.session(&self.session, |session| session.ready = true));
        }
        let data = message.payload_type == payload::DATA;
        // A number of the agent's stands for one message; where it does not, its numbering is not this lab's to judge.
        if let Ok(Verdict::Process(message)) = self.from_agent.numbers.receive(message) {
            self.ended(&message);
            while let Some(message) = self.from_agent.numbers.next_in_order() {
                self.ended(&message);
            }
        }
        self.tell();
        new && data
    }

    fn acknowledged(&mut self, message: &Message) {
        match message.acknowledged() {
            Ok(content) if (0..self.sent).contains(&content.sequence) => {
                self.unacknowledged.remove(&content.sequence);
            }
            Ok(content) => {
                let words =
                    format!("acknowledges {} {}, which was never sent", content.kind, content.sequence);
                self.state.violation(&self.session, words);
            }
            Err(error) => {
                let words = format!("an acknowledgement that cannot be read: {error}");
                self.state.violation(&self.session, words);
            }
        }
        self.tell();
    }

    /// A client's message whose turn it is.
    fn in_order(&mut self, message: &Message) {
        match message.payload_type {
            payload::HANDSHAKE_RESPONSE => {
                if let Ok(response) = serde_json::from_slice::<HandshakeResponse>(&message.payload) {
                    self.state.count(|status| {
                        let version = response.client_version;
                        status.session(&self.session, |session| session.client_version = version);
                    });
                }
            }
            payload::DATA => self.frames(&message.payload),
            _ => {}
        }
    }

    fn frames(&mut self, bytes: &[u8]) {
        if self.from_client.broken {
            return;
        }
        self.from_client.decoder.push(bytes);
        loop {
            let frame = match self.from_client.decoder.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => return,
                Err(error) => {
                    self.from_client.broken = true;
                    return self.state.violation(&self.session, error);
                }
            };
            let stream = frame.stream;
            match frame.command {
                Command::Syn if stream < 3 || stream.is_multiple_of(2) || !self.known.insert(stream) => {
                    let words = format!("stream {stream} cannot be opened");
                    self.state.violation(&self.session, words);
                }
                Command::Syn => drop(self.open.insert(stream)),
                Command::Fin | Command::Push if !self.known.contains(&stream) => {
                    let words = format!("{:?} for unknown stream {stream}", frame.command);
                    self.state.violation(&self.session, words);
                }
                Command::Fin | Command::Push | Command::Nop => {}
            }
        }
    }

    /// An agent's message whose turn it is.
    fn ended(&mut self, message: &Message) {
        if message.payload_type != payload::DATA || self.from_agent.broken {
            return;
        }
        self.from_agent.decoder.push(&message.payload);
        loop {
            match self.from_agent.decoder.next_frame() {
                Ok(Some(frame)) if frame.command == Command::Fin => drop(self.open.remove(&frame.stream)),
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(_) => {
                    self.from_agent.broken = true;
                    return;
                }
            }
        }
    }

    fn tell(&self) {
        let (received, sent) = (self.from_client.numbers.expected(), self.sent);
        let (unacknowledged, streams) = (self.unacknowledged.len(), self.open.len());
        self.state.count(|status| {
            status.session(&self.session, |session| {
                session.received = received;
                session.sent = sent;
                session.unacknowledged = unacknowledged;
                session.streams = streams;
            });
        });
    }
}
