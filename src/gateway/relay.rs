//! PURE. What becomes of each message between the plugin and the service, while connections on either side come and go.
//!
//! ```text
//!             input_stream_data ──► Repair ──► Input (kept until acknowledged) ──►
//!   plugin ──► acknowledge ──────────────────► Output remembers it ──────────────► service
//!          ◄── Output (waits for the plugin) ◄──────────── output_stream_data ◄──
//!          ◄──────────────── Input releases the message ◄─────── acknowledge ◄──
//!              Numbering │  the gateway's own keep-alives among the plugin's messages
//! ```
//! Input counts as the agent does; the plugin's numbers are translated where they come in and go out.
//!
//! Whatever is lost with a connection is sent again: by the agent and the plugin, as they do by themselves, and where
//! they do not, by the relay (see [`super::input`] and [`super::output`]). Messages go in with `plugin_sent` and
//! `service_sent`; `next_for_plugin` and `next_for_service` give out what is to be written. No message is given out
//! before there is somewhere to write it, and `reads_plugin` and `reads_service` say when to stop reading: so
//! back-pressure needs no further rule.

mod from_service;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tracing::{trace, warn};

use super::Event;
use super::acknowledgements::Acknowledgements;
use super::agent_clock::AgentClock;
use super::answers::Answers;
use super::gap::{Gap, GapTimer};
use super::input::{Input, Place};
use super::ledger::Ledger;
use super::message::{self, Kind, View};
use super::numbering::Numbering;
use super::output::Output;
use super::pacer::Pacer;
use super::repair::{Finding, Repair};

/// One session's relay.
#[derive(Debug)]
pub struct Relay {
    input: Input,
    output: Output,
    /// What goes to the service beside the stream.
    acknowledgements: Acknowledgements,
    repair: Repair,
    answers: Answers,
    ledger: Arc<Ledger>,
    numbering: Numbering,
    agent: AgentClock,
    gap: GapTimer,
    pacer: Pacer,
    /// When a round trip was told last.
    sampled: Option<Instant>,
    service_is_open: bool,
    handshake_seen: bool,
    /// Both ends agree that the data is mux frames, and it is not encrypted.
    multiplexed: bool,
    established: bool,
    /// When the agent's latest message was made, as the agent tells the time.
    created: u64,
    ended: bool,
    malformed: u64,
    /// Encrypted messages of one byte.
    lone_bytes: u64,
}

impl Relay {
    /// A session's, before its first message. A keep-alive goes out when nothing has flowed for `keepalive`.
    pub fn new(ledger: Arc<Ledger>, keepalive: Option<Duration>) -> Self {
        Self {
            input: Input::default(),
            output: Output::default(),
            acknowledgements: Acknowledgements::default(),
            repair: Repair::new(ledger.clone()),
            answers: Answers::new(ledger.clone()),
            ledger,
            numbering: Numbering::default(),
            agent: AgentClock::new(keepalive),
            gap: GapTimer::default(),
            pacer: Pacer::default(),
            sampled: None,
            service_is_open: false,
            handshake_seen: false,
            multiplexed: false,
            established: false,
            created: 1,
            ended: false,
            malformed: 0,
            lone_bytes: 0,
        }
    }

    /// The data channel to the service is open: everything unacknowledged will be given out again.
    pub fn service_opened(&mut self) {
        self.service_is_open = true;
        self.input.start_over();
        // The agent has to show that it is there, where there is something that it can acknowledge.
        let asked = !self.input.is_settled() || self.keep_alive();
        self.agent.reopened(asked);
    }

    /// The data channel to the service is lost.
    pub fn service_closed(&mut self) {
        self.service_is_open = false;
        self.agent.closed();
        self.acknowledgements.start_over();
    }

    /// Whether another message may be read from the plugin.
    pub fn reads_plugin(&self) -> bool {
        !self.input.is_full() && !self.acknowledgements.is_full()
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

    /// Whether nothing that was sent was acknowledged for too long.
    pub fn agent_is_silent(&self) -> bool {
        self.agent.is_silent()
    }

    /// Whether the service has said that the agent is away.
    pub fn agent_is_away(&self) -> bool {
        self.agent.is_away()
    }

    /// Whether all that the agent has sent since the data channel was opened again can be relied upon to have shown.
    pub fn agent_is_proven(&self, now: Instant) -> bool {
        self.agent.proven_at(now).is_some_and(|at| at <= now)
    }

    /// Whether an agent that is away does not come back any more.
    pub fn agent_is_gone(&self, now: Instant) -> bool {
        self.agent.gone_at().is_some_and(|at| at <= now)
    }

    /// What is missing below later messages, and for how long something has been.
    pub fn gap(&self, now: Instant) -> (Gap, Duration) {
        (self.gap.gap(), self.gap.lasted(now).unwrap_or_default())
    }

    /// Whether what is missing takes so long to be repaired that the session counts as interrupted.
    pub fn gap_interrupts(&self, now: Instant) -> bool {
        self.gap.interrupts_at().is_some_and(|at| at <= now)
    }

    /// Looks at the time: to be called whenever something has happened, and at the [deadline](Self::deadline).
    pub fn look(&mut self, now: Instant) {
        if !self.reads_service() {
            self.agent.excuse(now);
        }
        self.acknowledgements.look(now);
        // Before the handshake is complete, the plugin takes early messages without acknowledging the one that it waits with.
        if self.established {
            let gap = Gap { from_agent: self.output.missing(), from_plugin: self.input.missing() };
            self.gap.observe(now, gap);
        }
        if self.ended {
            return;
        }
        if self.agent.keep_alive_at().is_some_and(|at| at <= now) {
            self.keep_alive();
        }
        if self.agent.falls_silent(now) {
            // If it is only said to be away: something by which its return is noticed.
            self.keep_alive();
        }
    }

    /// The next message to be written to the service.
    pub fn next_for_service(&mut self, now: Instant) -> Option<Bytes> {
        if !self.service_is_open {
            return None;
        }
        if let Some(acknowledgement) = self.acknowledgements.next(now) {
            return Some(acknowledgement);
        }
        // What has been produced a message at a time, and was only held up, may go at once.
        let repetition = self.input.next_is_repetition();
        if repetition && !self.pacer.is_ready(now) {
            return None;
        }
        let message = self.input.next(now).or_else(|| {
            // Nothing is overdue while acknowledgements are not read.
            if self.reads_service() { self.input.next_overdue(now) } else { None }
        })?;
        if repetition {
            self.pacer.sent(now);
        }
        self.agent.sent(now);
        Some(message)
    }

    /// Bytes that are kept of messages, without what keeps them in order.
    #[cfg(any(test, fuzzing))]
    pub fn held_bytes(&self) -> usize {
        self.input.kept_bytes()
            + self.output.waiting_bytes()
            + self.acknowledgements.bytes()
            + self.answers.early_bytes()
    }

    /// The next message to be written to the plugin.
    pub fn next_for_plugin(&mut self) -> Option<Bytes> {
        self.output.next()
    }

    /// When [`Self::look`] or [`Self::next_for_service`] will have something to do without anything else happening.
    pub fn deadline(&self) -> Option<Instant> {
        if !self.service_is_open {
            return None;
        }
        let next = self.pacer.ready_at().filter(|_| self.input.next_is_repetition());
        if !self.reads_service() {
            return next;
        }
        // While others wait to be sent again, the oldest does not overtake them.
        let overdue = self.input.overdue_at().map(|at| next.map_or(at, |next| at.max(next)));
        let keep_alive = self.agent.keep_alive_at().filter(|_| self.takes_keep_alive());
        let silent = self.agent.silent_at().filter(|_| !self.ended);
        [next, overdue, keep_alive, silent].into_iter().flatten().min()
    }

    /// When what is known of agent and gap changes without anything else happening.
    pub fn next_change(&self, now: Instant) -> Option<Instant> {
        let times = [self.gap.interrupts_at(), self.agent.proven_at(now), self.agent.gone_at()];
        times.into_iter().flatten().filter(|at| *at > now).min()
    }

    /// A binary message from the plugin. Returns whether it brought new stream data, and what is to be told.
    pub fn plugin_sent(&mut self, bytes: &Bytes) -> (bool, Option<Event>) {
        let view = match View::new(bytes) {
            Ok(view) => view,
            Err(error) => {
                self.drop_unreadable("plugin", &error);
                return (false, None);
            }
        };
        match view.kind() {
            Kind::Input => {
                let number = self.numbering.to_agent(view.number());
                match number.map_or(Place::Acknowledged, |number| self.input.place(number)) {
                    Place::Next => return (true, self.keep(view)),
                    Place::Early | Place::Kept => (),
                    Place::Acknowledged => self.pass_on(view.acknowledgement(), false),
                }
            }
            Kind::Acknowledge => {
                if let Some(number) = view.acknowledged() {
                    self.output.acknowledge(number);
                    self.answers.acknowledged(number);
                    self.ledger.set_behind(self.output.has_gap());
                }
                self.acknowledgements.add(view.copied());
            }
            _ => self.acknowledgements.add(view.copied()),
        }
        (false, None)
    }

    /// Puts a message that says nothing into the plugin's stream, if that is possible: the agent acknowledges it, and to
    /// the service it is traffic. Returns whether it was.
    fn keep_alive(&mut self) -> bool {
        let possible = self.takes_keep_alive();
        if possible {
            let number = self.input.next_number();
            self.input.keep(message::keep_alive(self.created, number));
            self.numbering.inject(number);
            trace!(event = "keep_alive", number, "a keep-alive");
        }
        possible
    }

    /// Whether a keep-alive may go out now. An agent that has not completed the handshake acknowledges stream data and
    /// throws it away; and one that does not expect mux frames would send them to the destination.
    fn takes_keep_alive(&self) -> bool {
        self.service_is_open
            && self.established
            && !self.ended
            && self.multiplexed
            && self.agent.asks()
            && self.repair.is_between_frames()
            && self.input.is_settled()
    }

    /// Takes the plugin's next message.
    fn keep(&mut self, view: View<'_>) -> Option<Event> {
        if view.payload_type() == message::HANDSHAKE_RESPONSE && message::is_expected(view.payload()) {
            self.agent.expects_frames();
        }
        let finding = match view.payload_type() {
            message::DATA => self.repair.inspect(view.payload()),
            _ => Finding::Unchanged,
        };
        let number = self.input.next_number();
        self.input.keep(match finding {
            Finding::ChangedLineFeed => view.with_only_byte(number, b'\n'),
            // As it was read it is a slice of a larger buffer; kept for minutes, it has to stand on its own.
            _ => view.numbered(number),
        });
        match finding {
            Finding::Foreign => Some(Event::ForeignConnection),
            Finding::LostTrack => {
                warn!(
                    "the plugin's data is not multiplexed: lone line feeds cannot be repaired in this session, nor keep-alives sent"
                );
                Some(Event::LostTrack)
            }
            Finding::ChangedLineFeed => {
                trace!(
                    event = "line_feed_restored",
                    number = view.number(),
                    "a line feed that the plugin had changed"
                );
                None
            }
            Finding::LoneByte => {
                self.lone_bytes += 1;
                // Ever more rarely: somebody else on the plugin's port may send many.
                if self.lone_bytes.is_power_of_two() {
                    warn!(
                        event = "lone_byte",
                        number = view.number(),
                        count = self.lone_bytes,
                        "the plugin has sent a single byte: if it was a line feed, it arrives as a carriage return"
                    );
                }
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

    /// Says so once, and ever more rarely: a peer that sends garbage may send much of it.
    pub fn drop_unreadable(&mut self, from: &str, error: &impl std::fmt::Display) {
        self.malformed += 1;
        if self.malformed.is_power_of_two() {
            warn!(from, %error, count = self.malformed, "dropped what is no message of the data channel");
        }
    }
}

#[cfg(test)]
mod tests;
