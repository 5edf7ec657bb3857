//! PURE. What becomes of each message between the plugin and the service, while connections on either side come and go.
//!
//! ```text
//!             input_stream_data ──► Repair ──► Input (kept until acknowledged) ──►
//!   plugin ──► acknowledge ──────────────────► Output remembers it ──────────────► service
//!          ◄── Output (waits for the plugin) ◄──────────── output_stream_data ◄──
//!          ◄──────────────── Input releases the message ◄─────── acknowledge ◄──
//! ```
//!
//! Whatever is lost with a connection is sent again: by the agent and the plugin, as they do by themselves, and where
//! they do not, by the relay (see [`super::input`] and [`super::output`]). Messages go in with `plugin_sent` and
//! `service_sent`; `next_for_plugin` and `next_for_service` give out what is to be written. No message is given out
//! before there is somewhere to write it, and `reads_plugin` and `reads_service` say when to stop reading: so
//! back-pressure needs no further rule.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tracing::{info, trace, warn};

use super::Event;
use super::input::{Input, Place};
use super::ledger::Ledger;
use super::message::{self, Handshake, Kind, View};
use super::output::Output;
use super::repair::{Finding, Repair};

/// Acknowledgements towards the service that may wait; they are made again if one is dropped.
const MAX_ACKNOWLEDGEMENTS: usize = 1_000;

/// One session's relay.
#[derive(Debug)]
pub struct Relay {
    input: Input,
    output: Output,
    /// What goes to the service beside the stream.
    acknowledgements: VecDeque<Bytes>,
    repair: Repair,
    service_is_open: bool,
    handshake_seen: bool,
    established: bool,
    ended: bool,
    malformed: u64,
}

impl Relay {
    /// A session's, before its first message.
    pub fn new(ledger: Arc<Ledger>) -> Self {
        Self {
            input: Input::default(),
            output: Output::default(),
            acknowledgements: VecDeque::new(),
            repair: Repair::new(ledger),
            service_is_open: false,
            handshake_seen: false,
            established: false,
            ended: false,
            malformed: 0,
        }
    }

    /// The data channel to the service is open: everything unacknowledged will be given out again.
    pub fn service_opened(&mut self) {
        self.service_is_open = true;
        self.input.start_over();
    }

    /// The data channel to the service is lost.
    pub fn service_closed(&mut self) {
        self.service_is_open = false;
        // The agent sends again what it got no acknowledgement for, and gets a fresh one then.
        self.acknowledgements.clear();
    }

    /// Whether another message may be read from the plugin.
    pub fn reads_plugin(&self) -> bool {
        !self.input.is_full() && self.acknowledgements.len() < MAX_ACKNOWLEDGEMENTS
    }

    /// Whether another message may be read from the service.
    ///
    /// Where the plugin is not read, it may be stuck writing and so not read either. What would get it going is an
    /// acknowledgement of the agent's: so then the service is read in any case, and data beyond the room left to the
    /// agent's resending.
    pub fn reads_service(&self) -> bool {
        self.output.has_room() || !self.reads_plugin()
    }

    /// Whether the plugin has taken and acknowledged all that came for it.
    pub fn plugin_owes_nothing(&self) -> bool {
        self.output.is_settled()
    }

    /// Whether the ledger is kept up with what leaves the plugin.
    pub fn follows_streams(&self) -> bool {
        self.repair.is_active()
    }

    /// Whether the handshake is complete.
    pub fn is_established(&self) -> bool {
        self.established
    }

    /// Whether the service has ended the session.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// The next message to be written to the service.
    pub fn next_for_service(&mut self, now: Instant) -> Option<Bytes> {
        if !self.service_is_open {
            return None;
        }
        self.acknowledgements.pop_front().or_else(|| self.input.next(now)).or_else(|| {
            // Nothing is overdue while acknowledgements are not read.
            if self.reads_service() { self.input.next_overdue(now) } else { None }
        })
    }

    /// The next message to be written to the plugin.
    pub fn next_for_plugin(&mut self) -> Option<Bytes> {
        self.output.next()
    }

    /// When [`Self::next_for_service`] will have something without anything else happening.
    pub fn deadline(&self) -> Option<Instant> {
        if self.service_is_open && self.reads_service() { self.input.overdue_at() } else { None }
    }

    /// A binary message from the plugin. Returns whether it brought new stream data, and what is to be told.
    pub fn plugin_sent(&mut self, bytes: &Bytes) -> (bool, Option<Event>) {
        let view = match View::new(bytes) {
            Ok(view) => view,
            Err(error) => return (false, self.drop_malformed("plugin", &error)),
        };
        match view.kind() {
            Kind::Input => match self.input.place(view.number()) {
                Place::Next => return (true, self.keep(view)),
                Place::Early | Place::Kept => (),
                Place::Acknowledged => self.pass_on(view.acknowledgement(), false),
            },
            Kind::Acknowledge => {
                if let Some(number) = view.acknowledged() {
                    self.output.acknowledge(number);
                }
                self.acknowledge(bytes.clone());
            }
            Kind::Output | Kind::ChannelClosed | Kind::Other => self.acknowledge(bytes.clone()),
        }
        (false, None)
    }

    /// A binary message from the service. Returns what is to be told.
    pub fn service_sent(&mut self, now: Instant, bytes: Bytes) -> Option<Event> {
        let view = match View::new(&bytes) {
            Ok(view) => view,
            Err(error) => return self.drop_malformed("service", &error),
        };
        match view.kind() {
            Kind::Output if self.output.is_acknowledged(view.number()) => {
                self.acknowledge(view.acknowledgement());
                None
            }
            Kind::Output if !self.output.has_room() => None,
            Kind::Output => {
                let new = self.output.add(view.number(), bytes.clone());
                if new { self.look_into(view) } else { None }
            }
            Kind::Acknowledge => {
                let released = view.acknowledged().is_some_and(|number| self.input.acknowledge(now, number));
                self.pass_on(bytes.clone(), released);
                None
            }
            Kind::ChannelClosed => {
                let reason = message::closing_reason(view.payload());
                self.pass_on(bytes.clone(), !self.ended);
                self.ended = true;
                Some(Event::SessionEnded { reason })
            }
            Kind::Input | Kind::Other => {
                self.pass_on(bytes.clone(), false);
                None
            }
        }
    }

    /// Takes the plugin's next message.
    fn keep(&mut self, view: View<'_>) -> Option<Event> {
        let finding = match view.payload_type() {
            message::DATA => self.repair.inspect(view.payload()),
            _ => Finding::Unchanged,
        };
        self.input.keep(match finding {
            Finding::ChangedLineFeed => view.with_only_byte(b'\n'),
            // As it was read it is a slice of a larger buffer; kept for minutes, it has to stand on its own.
            _ => view.detached(),
        });
        match finding {
            Finding::Foreign => Some(Event::ForeignConnection),
            Finding::LostTrack => {
                warn!(
                    "the plugin's data is not multiplexed: lone line feeds cannot be repaired in this session"
                );
                None
            }
            Finding::ChangedLineFeed => {
                trace!(
                    event = "line_feed_restored",
                    number = view.number(),
                    "a line feed that the plugin had changed"
                );
                None
            }
            Finding::Unchanged => None,
        }
    }

    /// Gives the plugin something beside the stream: if there is room, or if it must have it.
    fn pass_on(&mut self, bytes: Bytes, needed: bool) {
        if needed || self.output.has_room() {
            self.output.add_unnumbered(bytes);
        }
    }

    /// Something of the agent's that says more than its bytes.
    fn look_into(&mut self, view: View<'_>) -> Option<Event> {
        match view.payload_type() {
            message::HANDSHAKE_REQUEST if !self.handshake_seen => {
                let Handshake { agent_version, session_type, encrypted } = Handshake::parse(view.payload())?;
                self.handshake_seen = true;
                if encrypted {
                    info!("the session is encrypted: lone line feeds cannot be repaired in it");
                    self.repair.end();
                }
                Some(Event::Handshake { agent_version, session_type, encrypted })
            }
            message::HANDSHAKE_COMPLETE => {
                self.established = true;
                None
            }
            message::FLAG if view.payload() == message::CONNECT_TO_PORT_ERROR => {
                Some(Event::DestinationFailed)
            }
            _ => None,
        }
    }

    fn acknowledge(&mut self, bytes: Bytes) {
        if self.service_is_open && self.acknowledgements.len() < 2 * MAX_ACKNOWLEDGEMENTS {
            self.acknowledgements.push_back(bytes);
        }
    }

    /// Says so once, and ever more rarely: a peer that sends garbage may send much of it.
    fn drop_malformed(&mut self, from: &str, error: &message::Malformed) -> Option<Event> {
        self.malformed += 1;
        if self.malformed.is_power_of_two() {
            warn!(from, %error, count = self.malformed, "dropped what is no message of the data channel");
        }
        None
    }
}

#[cfg(test)]
mod tests;
