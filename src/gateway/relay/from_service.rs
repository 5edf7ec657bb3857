//! PURE. The service's messages on their way in: whether each can be what it says that it is, and what the agent says
//! in it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tracing::info;

use super::Relay;
use crate::gateway::Event;
use crate::gateway::breach::{Breach, MAX_ACKNOWLEDGEMENT, MAX_AHEAD};
use crate::gateway::message::{self, Handshake, Kind, View};
use crate::gateway::numbering::Origin;

/// The round trip of messages is told so often at most.
const SAMPLED: Duration = Duration::from_secs(5);

impl Relay {
    /// A binary message from the service. Returns what is to be told.
    pub fn service_sent(&mut self, now: Instant, bytes: Bytes) -> Option<Event> {
        if self.ended {
            return None;
        }
        match View::new(&bytes).map_err(Breach::from).and_then(|view| self.checked(view)) {
            Ok(view) => self.take(now, view),
            Err(breach) => self.breached(&breach),
        }
    }

    /// The service has sent what cannot be a part of this session, which so is over.
    pub fn breached(&mut self, breach: &Breach) -> Option<Event> {
        let first = !std::mem::replace(&mut self.ended, true);
        first.then(|| Event::SessionEnded { reason: breach.reason(), declared: false })
    }

    /// A message from the service that can be what it says that it is.
    fn checked<'a>(&self, view: View<'a>) -> Result<View<'a>, Breach> {
        match view.kind() {
            Kind::Input => return Err(Breach::Direction),
            Kind::Output => {
                let (number, next) = (view.number(), self.output.unacknowledged());
                if number < 0 {
                    return Err(Breach::Negative(number));
                }
                if number.saturating_sub(next) > MAX_AHEAD {
                    return Err(Breach::Ahead(number, next));
                }
                let handshake = view.payload_type() == message::HANDSHAKE_REQUEST && !self.handshake_seen;
                if handshake && Handshake::parse(view.payload()).is_none() {
                    return Err(Breach::Handshake);
                }
            }
            Kind::Acknowledge => {
                let short = view.payload().len() <= MAX_ACKNOWLEDGEMENT;
                let number = view.acknowledged().filter(|_| short).ok_or(Breach::Acknowledgement)?;
                if !(0..self.input.next_number()).contains(&number) {
                    return Err(Breach::NeverSent(number));
                }
            }
            Kind::ChannelClosed | Kind::Pause | Kind::Start | Kind::Other => (),
        }
        Ok(view)
    }

    fn take(&mut self, now: Instant, view: View<'_>) -> Option<Event> {
        let kind = view.kind();
        if matches!(kind, Kind::Output | Kind::Start) {
            self.agent.heard(now, !self.input.is_settled());
        }
        match kind {
            Kind::Output if self.output.is_acknowledged(view.number()) => {
                self.acknowledgements.add(view.acknowledgement());
                None
            }
            Kind::Output if !self.output.has_room() => None,
            // The plugin acknowledges an early part of the handshake and forgets that it was one: it would never open its
            // port. The agent sends it again in its turn.
            Kind::Output if !self.established && self.output.is_early(view.number()) => None,
            Kind::Output => {
                self.answers.take(&view);
                let new = self.output.add(view.number(), view.copied());
                if new { self.look_into(now, view) } else { None }
            }
            Kind::Acknowledge => self.release(now, view),
            Kind::ChannelClosed => {
                let reason = message::closing_reason(view.payload());
                self.pass_on(view.copied(), true);
                self.ended = true;
                Some(Event::SessionEnded { reason, declared: true })
            }
            Kind::Pause | Kind::Start | Kind::Other | Kind::Input => {
                match kind {
                    Kind::Pause => self.agent.left(now),
                    // What was sent meanwhile may be lost.
                    Kind::Start => self.input.start_over(),
                    _ => {}
                }
                self.pass_on(view.copied(), false);
                None
            }
        }
    }

    /// Takes the agent's acknowledgement, and hands it on if it is for a message of the plugin's.
    fn release(&mut self, now: Instant, view: View<'_>) -> Option<Event> {
        let number = view.acknowledged()?;
        let round_trip = self.input.sent_once(now, number).map(Event::RoundTrip);
        let released = self.input.acknowledge(now, number);
        if released {
            self.ledger.count_acknowledgement();
            if self.agent.is_silent() {
                // Perhaps nothing that was sent has arrived, the latest neither, whose acknowledgement would tell of the others.
                self.input.start_over();
            }
            self.agent.acknowledged(now, self.input.is_awaited());
        }
        let injected = match self.numbering.to_plugin(number) {
            Origin::Plugin(same) if same == number => {
                self.pass_on(view.copied(), released);
                false
            }
            Origin::Plugin(number) => {
                self.pass_on(view.acknowledging(number)?, released);
                false
            }
            Origin::Injected => true,
            // If the plugin has missed it, it sends the message again and is answered here.
            Origin::Settled => return None,
        };
        let due = injected || self.sampled.is_none_or(|at| now.saturating_duration_since(at) >= SAMPLED);
        let told = round_trip.filter(|_| released && due);
        if told.is_some() {
            self.sampled = Some(now);
        }
        told
    }

    /// Something of the agent's that says more than its bytes.
    fn look_into(&mut self, now: Instant, view: View<'_>) -> Option<Event> {
        self.created = view.created();
        match view.payload_type() {
            message::HANDSHAKE_REQUEST if !self.handshake_seen => {
                let Handshake { agent_version, session_type, encrypted, multiplexed } =
                    Handshake::parse(view.payload())?;
                self.handshake_seen = true;
                self.multiplexed = multiplexed && !encrypted;
                if self.multiplexed {
                    self.answers.begin();
                } else {
                    self.answers.end();
                }
                if encrypted && multiplexed {
                    self.repair.prevent();
                } else if encrypted {
                    info!(
                        "the session is encrypted and not multiplexed: lone line feeds cannot be repaired in it"
                    );
                    self.repair.end();
                } else if !multiplexed && self.agent.asks() {
                    info!("the session is not multiplexed: no keep-alives can be sent in it");
                }
                Some(Event::Handshake { agent_version, session_type, encrypted, multiplexed })
            }
            message::HANDSHAKE_COMPLETE => {
                self.established = true;
                self.agent.begin(now);
                None
            }
            message::DATA => {
                self.agent.flowed(now);
                None
            }
            message::FLAG if view.payload() == message::CONNECT_TO_PORT_ERROR => {
                Some(Event::DestinationFailed)
            }
            _ => None,
        }
    }
}
