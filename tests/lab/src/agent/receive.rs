//! What the agent takes in: from its WebSocket, one message after the other, each done with before the next is read. While a destination
//! takes nothing nothing is read, not even a pong.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message as Frame;

use super::handshake::Handshake;
use super::numbering::{Incoming, Verdict};
use super::socket::Opened;
use super::streams::Streams;
use super::{Agent, Output, RESEND_INTERVAL};
use crate::fault::Network;
use crate::line::Side;
use crate::wire::message::{Message, MessageType, flag, payload};

/// What outlives a WebSocket.
struct Receiver {
    incoming: Incoming,
    /// A number that is missing, and for how long although everything works.
    missing: Option<(i64, Duration)>,
    streams: Option<Streams>,
}

impl Agent {
    /// Takes the client's messages, over one WebSocket after the other.
    pub(super) async fn receive(self: Arc<Self>, output: mpsc::Sender<Output>) {
        let streams = (self.plan.session_type == "Port").then(|| {
            Streams::new(self.state.clone(), self.session.clone(), &self.plan, output, self.mux.clone())
        });
        let mut receiver = Receiver { incoming: Incoming::default(), missing: None, streams };
        while let Some(opened) = self.connect().await {
            self.read(opened, &mut receiver).await;
            self.socket.send_replace(None);
        }
        // Its worker stays, useless: whom it could tell it cannot reach.
        self.state.count(|status| status.session(&self.session, |session| session.agent_gave_up = true));
    }

    /// Until the WebSocket is gone, or taken for gone.
    async fn read(self: &Arc<Self>, mut opened: Opened, receiver: &mut Receiver) {
        let options = &self.state.options;
        let mut dead = Instant::now() + options.agent_ping + options.agent_pong_wait;
        let mut tick = tokio::time::interval(RESEND_INTERVAL);
        // One that comes late to its reading finds the time over, whatever there is to be read.
        while Instant::now() < dead {
            let frame = tokio::select! {
                frame = opened.stream.next() => frame,
                () = tokio::time::sleep_until(dead.into()) => return,
                _ = tick.tick() => {
                    self.watch_gap(receiver);
                    continue;
                }
            };
            match frame {
                Some(Ok(Frame::Binary(bytes))) => self.message(&bytes, receiver).await,
                Some(Ok(Frame::Pong(_))) => dead = Instant::now() + options.agent_pong_wait,
                Some(Ok(Frame::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => {}
            }
        }
    }

    async fn message(self: &Arc<Self>, bytes: &Bytes, receiver: &mut Receiver) {
        if *self.hangs.borrow() {
            return self.state.count(|status| status.lost += 1);
        }
        // The service has looked at it.
        let Ok(message) = Message::decode(bytes) else { return };
        match message.kind {
            MessageType::PausePublication => drop(self.paused.send_replace(true)),
            MessageType::StartPublication => drop(self.paused.send_replace(false)),
            MessageType::Acknowledge => {
                self.paused.send_replace(false);
                self.acknowledged(&message);
            }
            MessageType::InputStreamData => {
                self.paused.send_replace(false);
                self.stream_message(message, receiver).await;
            }
            MessageType::ChannelClosed | MessageType::OutputStreamData => {}
        }
    }

    async fn stream_message(self: &Arc<Self>, message: Message, receiver: &mut Receiver) {
        if receiver.incoming.expected() == message.sequence && !self.takes(message.payload_type) {
            // Neither taken nor acknowledged: the client sends it again.
            return self.state.count(|status| status.not_taken += 1);
        }
        let acknowledgement = message.acknowledgement();
        match receiver.incoming.receive(message) {
            Ok(Verdict::Process(message)) => {
                self.process(message, &mut receiver.streams).await;
                self.transmit(acknowledgement.encode()).await;
                while let Some(message) = receiver.incoming.next_in_order() {
                    self.process(message, &mut receiver.streams).await;
                }
            }
            Ok(Verdict::Kept) => self.transmit(acknowledgement.encode()).await,
            Ok(Verdict::Repeated) => {
                self.state.count(|status| status.duplicates += 1);
                self.transmit(acknowledgement.encode()).await;
            }
            Ok(Verdict::FlagCollision) => {
                self.state.count(|status| status.flag_collisions += 1);
                self.transmit(acknowledgement.encode()).await;
            }
            Ok(Verdict::NoRoom) => {}
            Err(violation) => self.state.violation(&self.session, violation),
        }
        let received = receiver.incoming.expected();
        self.state.count(|status| status.session(&self.session, |session| session.received = received));
    }

    /// Between the handshake's end and the mux's beginning data cannot be taken, nor when the streams are over.
    fn takes(&self, payload_type: u32) -> bool {
        let data = matches!(payload_type, payload::DATA | payload::FLAG);
        let handshake = *self.handshake.borrow();
        !data
            || handshake < Handshake::Complete
            || (handshake == Handshake::SetUp && !self.mux.over.is_cancelled())
    }

    /// A number that stays missing although everything works is a message that its sender has forgotten.
    fn watch_gap(&self, receiver: &mut Receiver) {
        let faults = *self.state.faults.borrow();
        let works = faults.network == Network::Up
            && faults.agent_network == Network::Up
            && !faults.agent_away
            && faults.loss.input < 1.0
            && !*self.hangs.borrow()
            && self.relay.link(Side::Client).is_some();
        receiver.missing = match (receiver.incoming.gap(), receiver.missing) {
            (None, _) => None,
            (Some(gap), Some((same, since))) if gap == same => {
                let longer = if works { since + RESEND_INTERVAL } else { Duration::ZERO };
                let limit = self.state.options.gap_limit;
                if since < limit && longer >= limit {
                    self.state.violation(
                        &self.session,
                        format_args!("message {gap} has been missing for {limit:?}"),
                    );
                }
                Some((gap, longer))
            }
            (Some(gap), _) => Some((gap, Duration::ZERO)),
        };
    }

    fn acknowledged(&self, message: &Message) {
        let outcome = match message.acknowledged() {
            Ok(content) => self.outgoing().acknowledge(Instant::now(), &content),
            Err(error) => Err(format!("an acknowledgement that cannot be read: {error}")),
        };
        if let Err(violation) = outcome {
            self.state.violation(&self.session, violation);
        }
        let unacknowledged = self.outgoing().unacknowledged();
        self.state.count(|status| {
            status.session(&self.session, |session| session.unacknowledged = unacknowledged);
        });
    }

    async fn process(self: &Arc<Self>, message: Message, streams: &mut Option<Streams>) {
        let handshake = *self.handshake.borrow();
        match message.payload_type {
            payload::HANDSHAKE_RESPONSE => self.handshake_response(&message),
            payload::CHALLENGE_RESPONSE => self.challenge_response(&message),
            payload::FLAG if message.flag() == Some(flag::TERMINATE_SESSION) => self.wind_up("", true),
            payload::FLAG => {}
            // The real agent acknowledges such a message and throws it away: it would be lost without a trace.
            payload::DATA if handshake < Handshake::Complete => {
                self.state.violation(&self.session, "stream data before the handshake was complete");
            }
            payload::DATA => {
                self.relay.touch();
                let data = match self.cipher() {
                    Some(cipher) => cipher.open(&message.payload),
                    None => Some(message.payload),
                };
                match (data, streams) {
                    (Some(data), Some(streams)) => streams.receive(&data).await,
                    (None, _) => self.state.violation(&self.session, "data that cannot be decrypted"),
                    (Some(_), None) => {}
                }
            }
            // Terminal sizes of shell sessions.
            3 => {}
            other => self.state.violation(&self.session, format_args!("payload type {other} from a client")),
        }
    }
}
