//! The relay between a modelled plugin and a modelled agent.

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
                if let Some(bytes) = self.relay.next_for_plugin() {
                    self.plugin.take(&bytes);
                }
            }
            Step::RelayToAgent => {
                if let Some(bytes) = self.relay.next_for_service(self.now) {
                    self.agent.take(&bytes);
                }
            }
            Step::LoseToAgent => drop(self.relay.next_for_service(self.now)),
            Step::LoseFromAgent => drop(self.agent.out.pop_front()),
            Step::ServiceCloses => {
                self.relay.service_closed();
                self.service_open = false;
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
                // What the relay had written and the plugin not yet read is lost.
                (0..3).for_each(|_| drop(self.relay.next_for_plugin()));
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
                for step in [Step::PluginToRelay, Step::RelayToAgent, Step::AgentToRelay, Step::RelayToPlugin]
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
    let expected =
        Event::Handshake { agent_version: "3.3.1.0".into(), session_type: "Port".into(), encrypted: false };
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
