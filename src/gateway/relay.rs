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
use tracing::{info, warn};

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
            Finding::Unchanged | Finding::ChangedLineFeed => None,
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
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::gateway::message::Header;
    use crate::gateway::mux::tests::frame;

    const RESEND: Duration = Duration::from_millis(250);

    fn stream_message(kind: &[u8], number: i64, payload_type: u32, payload: &[u8]) -> Bytes {
        Header { kind, created: 1, number, flags: 0, payload_type }.with_payload(payload)
    }

    /// One end of the session, as its public source has it: numbers, keeps and resends what it sends, and takes what
    /// it gets in order.
    struct End {
        kind: &'static [u8],
        /// The agent acknowledges a duplicate again, the plugin does not.
        acknowledges_again: bool,
        numbered: i64,
        unacknowledged: BTreeMap<i64, Bytes>,
        expected: i64,
        early: BTreeMap<i64, Vec<u8>>,
        received: Vec<Vec<u8>>,
        out: VecDeque<Bytes>,
    }

    impl End {
        fn new(kind: &'static [u8], acknowledges_again: bool) -> Self {
            Self {
                kind,
                acknowledges_again,
                numbered: 0,
                unacknowledged: BTreeMap::new(),
                expected: 0,
                early: BTreeMap::new(),
                received: Vec::new(),
                out: VecDeque::new(),
            }
        }

        fn send(&mut self, payload: &[u8]) {
            let message = stream_message(self.kind, self.numbered, message::DATA, payload);
            self.unacknowledged.insert(self.numbered, message.clone());
            self.numbered += 1;
            self.out.push_back(message);
        }

        fn resend_oldest(&mut self) {
            self.out.extend(self.unacknowledged.values().next().cloned());
        }

        fn take(&mut self, bytes: &Bytes) {
            let view = View::new(bytes).unwrap();
            let number = view.number();
            match view.kind() {
                Kind::Acknowledge => {
                    self.unacknowledged.remove(&view.acknowledged().unwrap());
                }
                _ if number < self.expected => {
                    if self.acknowledges_again {
                        self.out.push_back(view.acknowledgement());
                    }
                }
                _ => {
                    self.out.push_back(view.acknowledgement());
                    self.early.insert(number, view.payload().to_vec());
                    while let Some(payload) = self.early.remove(&self.expected) {
                        self.received.push(payload);
                        self.expected += 1;
                    }
                }
            }
        }
    }

    /// A plugin, the relay and an agent. What lies in an end's `out` is on its way to the relay.
    struct World {
        now: Instant,
        relay: Relay,
        plugin: End,
        agent: End,
        to_plugin: VecDeque<Bytes>,
        to_agent: VecDeque<Bytes>,
        service_open: bool,
        plugin_resends: bool,
        /// The plugin's mux stream that it has not cut into messages yet.
        stream: VecDeque<u8>,
    }

    #[derive(Clone, Debug)]
    enum Step {
        PluginSends(usize),
        AgentSends,
        PluginToRelay,
        RelayToPlugin,
        AgentToRelay,
        RelayToAgent,
        LoseToAgent,
        LoseFromAgent,
        ServiceCloses,
        ServiceOpens,
        PluginReconnects,
        Wait,
    }

    impl World {
        fn new(data: &[Vec<u8>], plugin_resends: bool) -> (Self, Vec<u8>) {
            let ledger = Arc::new(Ledger::new());
            let stream = ledger.open();
            let mut bytes = frame(0, stream, b"");
            for data in data.iter().filter(|data| data.len() != 10) {
                ledger.write(stream, data);
                bytes.extend(frame(2, stream, data));
            }
            let world = Self {
                now: Instant::now(),
                relay: Relay::new(ledger),
                plugin: End::new(b"input_stream_data", false),
                agent: End::new(b"output_stream_data", true),
                to_plugin: VecDeque::new(),
                to_agent: VecDeque::new(),
                service_open: false,
                plugin_resends,
                stream: bytes.iter().copied().collect(),
            };
            (world, bytes)
        }

        fn step(&mut self, step: &Step) {
            match step {
                Step::PluginSends(most) => {
                    let cut: Vec<u8> = self.stream.drain(..(*most).min(self.stream.len())).collect();
                    match &cut[..] {
                        b"" => (),
                        b"\n" => self.plugin.send(b"\r"),
                        _ => self.plugin.send(&cut),
                    }
                }
                Step::AgentSends => {
                    let payload = self.agent.numbered.to_be_bytes();
                    self.agent.send(&payload);
                    if !self.service_open {
                        self.agent.out.clear();
                    }
                }
                Step::PluginToRelay => {
                    if self.relay.reads_plugin()
                        && let Some(bytes) = self.plugin.out.pop_front()
                    {
                        self.relay.plugin_sent(&bytes);
                    }
                }
                Step::AgentToRelay => {
                    if self.relay.reads_service()
                        && let Some(bytes) = self.agent.out.pop_front()
                    {
                        self.relay.service_sent(self.now, bytes);
                    }
                }
                Step::RelayToPlugin => {
                    self.to_plugin.extend(self.relay.next_for_plugin());
                    if let Some(bytes) = self.to_plugin.pop_front() {
                        self.plugin.take(&bytes);
                    }
                }
                Step::RelayToAgent => {
                    self.to_agent.extend(self.relay.next_for_service(self.now));
                    if let Some(bytes) = self.to_agent.pop_front() {
                        self.agent.take(&bytes);
                    }
                }
                Step::LoseToAgent => drop(self.relay.next_for_service(self.now)),
                Step::LoseFromAgent => drop(self.agent.out.pop_front()),
                Step::ServiceCloses => {
                    self.relay.service_closed();
                    self.service_open = false;
                    self.to_agent.clear();
                    self.agent.out.clear();
                }
                Step::ServiceOpens => {
                    if !self.service_open {
                        self.relay.service_opened();
                        self.service_open = true;
                    }
                }
                // Only a plugin that still resends can get over the loss of its connection.
                // What a plugin wrote before it closed is still read, at least its acknowledgements.
                Step::PluginReconnects if self.plugin_resends => {
                    for bytes in std::mem::take(&mut self.plugin.out) {
                        if View::new(&bytes).unwrap().kind() == Kind::Acknowledge {
                            self.relay.plugin_sent(&bytes);
                        }
                    }
                    self.to_plugin.clear();
                }
                Step::PluginReconnects => (),
                Step::Wait => {
                    self.now += RESEND;
                    if self.plugin_resends {
                        self.plugin.resend_oldest();
                    }
                    if self.service_open {
                        self.agent.resend_oldest();
                    }
                }
            }
        }

        /// All goes well from here on, until nothing is left to do.
        fn settle(&mut self) {
            self.step(&Step::ServiceOpens);
            for round in 0.. {
                assert!(round < 5_000, "it does not come to rest");
                let busy = !self.stream.is_empty()
                    || !self.plugin.unacknowledged.is_empty()
                    || !self.agent.unacknowledged.is_empty()
                    || !self.relay.plugin_owes_nothing();
                if !busy {
                    break;
                }
                self.step(&Step::PluginSends(1024));
                for _ in 0..4 {
                    for step in
                        [Step::PluginToRelay, Step::RelayToAgent, Step::AgentToRelay, Step::RelayToPlugin]
                    {
                        self.step(&step);
                    }
                }
                self.step(&Step::Wait);
            }
        }
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => prop_oneof![Just(1usize), 1usize..30].prop_map(Step::PluginSends),
            4 => Just(Step::AgentSends),
            8 => Just(Step::PluginToRelay),
            8 => Just(Step::RelayToPlugin),
            8 => Just(Step::AgentToRelay),
            8 => Just(Step::RelayToAgent),
            1 => Just(Step::LoseToAgent),
            1 => Just(Step::LoseFromAgent),
            1 => Just(Step::ServiceCloses),
            3 => Just(Step::ServiceOpens),
            1 => Just(Step::PluginReconnects),
            2 => Just(Step::Wait),
        ]
    }

    proptest! {
        /// Whatever is lost on the way and whoever reconnects when: both ends get exactly the other's stream, in
        /// order, with every lone line feed as the client sent it, and everything is acknowledged in the end.
        #[test]
        fn both_ends_get_exactly_the_stream(
            data in proptest::collection::vec(
                proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), any::<u8>()], 1..60), 0..12),
            steps in proptest::collection::vec(any_step(), 0..400),
            plugin_resends in any::<bool>(),
        ) {
            let (mut world, sent) = World::new(&data, plugin_resends);
            for step in &steps {
                world.step(step);
            }
            world.settle();
            prop_assert_eq!(world.agent.received.concat(), sent);
            let expected: Vec<Vec<u8>> = (0..world.agent.numbered).map(|n| n.to_be_bytes().to_vec()).collect();
            prop_assert_eq!(world.plugin.received, expected);
            prop_assert_eq!(world.relay.input.place(world.plugin.numbered), Place::Next);
            prop_assert_eq!(world.relay.input.overdue_at(), None);
        }
    }

    fn relay() -> Relay {
        let mut relay = Relay::new(Arc::new(Ledger::new()));
        relay.service_opened();
        relay
    }

    fn output(number: i64, payload_type: u32, payload: &[u8]) -> Bytes {
        stream_message(b"output_stream_data", number, payload_type, payload)
    }

    #[test]
    fn answers_the_agents_duplicate_for_the_plugin() {
        let (mut relay, now) = (relay(), Instant::now());
        let message = output(0, message::DATA, b"x");
        relay.service_sent(now, message.clone());
        assert_eq!(relay.next_for_plugin(), Some(message.clone()));
        relay.plugin_sent(&View::new(&message).unwrap().acknowledgement());
        // It is lost with the connection.
        relay.service_closed();
        relay.service_opened();
        assert_eq!(relay.next_for_service(now), None);
        relay.service_sent(now, message);
        assert_eq!(relay.next_for_plugin(), None, "the plugin would not answer");
        let answer = relay.next_for_service(now).unwrap();
        assert_eq!(View::new(&answer).unwrap().acknowledged(), Some(0));
    }

    #[test]
    fn swallows_what_the_plugin_resends_and_goes_on_when_it_has_given_up() {
        let (mut relay, now) = (relay(), Instant::now());
        relay.service_closed();
        let message = stream_message(b"input_stream_data", 0, message::DATA, b"x");
        assert!(relay.plugin_sent(&message).0);
        (0..3000).for_each(|_| assert!(!relay.plugin_sent(&message).0));
        let later = now + Duration::from_secs(3600);
        relay.service_opened();
        assert_eq!(relay.next_for_service(later), Some(message.clone()));
        assert_eq!(relay.next_for_service(later), None);
        let due = relay.deadline().unwrap();
        assert_eq!(relay.next_for_service(due), Some(message));
    }

    #[test]
    fn tells_what_the_agent_says_once() {
        let (mut relay, now) = (relay(), Instant::now());
        let request = br#"{"AgentVersion":"3.3.1.0","RequestedClientActions":[{"ActionType":"SessionType","ActionParameters":{"SessionType":"Port"}}]}"#;
        let handshake = output(0, message::HANDSHAKE_REQUEST, request);
        let expected = Event::Handshake {
            agent_version: "3.3.1.0".into(),
            session_type: "Port".into(),
            encrypted: false,
        };
        assert_eq!(relay.service_sent(now, handshake.clone()), Some(expected));
        assert_eq!(relay.service_sent(now, handshake), None);
        let flag = output(1, message::FLAG, &message::CONNECT_TO_PORT_ERROR);
        assert_eq!(relay.service_sent(now, flag.clone()), Some(Event::DestinationFailed));
        assert_eq!(relay.service_sent(now, flag), None);
        let closed = Header { kind: b"channel_closed", created: 1, number: 0, flags: 0, payload_type: 0 }
            .with_payload(br#"{"Output":"timed out due to inactivity"}"#);
        let expected = Event::SessionEnded { reason: "timed out due to inactivity".into() };
        assert_eq!(relay.service_sent(now, closed), Some(expected));
        assert!(relay.has_ended());
    }

    #[test]
    fn leaves_encrypted_sessions_alone() {
        let ledger = Arc::new(Ledger::new());
        let stream = ledger.open();
        ledger.write(stream, b"\n");
        let mut relay = Relay::new(ledger);
        let request = br#"{"AgentVersion":"3","RequestedClientActions":[{"ActionType":"KMSEncryption"}]}"#;
        relay.service_sent(Instant::now(), output(0, message::HANDSHAKE_REQUEST, request));
        assert!(!relay.follows_streams());
    }

    #[test]
    fn tells_of_a_foreign_connection_once() {
        let mut relay = relay();
        let told: Vec<_> = [3, 5]
            .iter()
            .enumerate()
            .filter_map(|(n, stream)| {
                let message =
                    stream_message(b"input_stream_data", n as i64, message::DATA, &frame(0, *stream, b""));
                relay.plugin_sent(&message).1
            })
            .collect();
        assert_eq!(told, [Event::ForeignConnection]);
    }

    /// Neither side can get stuck for good: where the plugin's messages fill the store, it is not read; so it may be
    /// unable to write its acknowledgements and thus to read; and yet the agent's acknowledgements get through.
    #[test]
    fn two_full_directions_do_not_lock_each_other() {
        let (mut relay, now) = (relay(), Instant::now());
        let mut number = 0;
        while relay.reads_plugin() {
            relay.plugin_sent(&stream_message(b"input_stream_data", number, message::DATA, &[0; 1024]));
            number += 1;
        }
        (0..1000).for_each(|n| drop(relay.service_sent(now, output(n, message::DATA, &[0; 1024]))));
        assert!(relay.reads_service());
        let first = stream_message(b"input_stream_data", 0, message::DATA, b"");
        relay.service_sent(now, View::new(&first).unwrap().acknowledgement());
        assert!(relay.reads_plugin());
        assert!(!relay.reads_service(), "now the plugin is read, and so will read");
    }

    #[test]
    fn drops_what_is_no_message() {
        let mut relay = relay();
        assert_eq!(relay.service_sent(Instant::now(), Bytes::from_static(b"garbage")), None);
        assert_eq!(relay.plugin_sent(&Bytes::from_static(b"")), (false, None));
        assert_eq!(relay.next_for_plugin(), None);
        assert_eq!(relay.next_for_service(Instant::now()), None);
    }
}
