//! The relay between a modelled plugin and a modelled agent.

use std::collections::VecDeque;

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::gateway::mux::{Follower, NOP};

const RESEND: Duration = Duration::from_millis(250);
const KEEPALIVE: Duration = Duration::from_secs(1);

/// One end of the session, as its public source has it: numbers, keeps and resends what it sends, and takes what
/// it gets in order.
struct End {
    kind: &'static [u8],
    /// The agent acknowledges a duplicate again, the plugin does not.
    acknowledges_again: bool,
    numbered: i64,
    /// Of what was sent, by number.
    sent_ids: Vec<String>,
    /// Of what was received, by number: one number stands for one message, however often it comes.
    received_ids: BTreeMap<i64, String>,
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
            sent_ids: Vec::new(),
            received_ids: BTreeMap::new(),
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
        self.sent_ids.push(id(&View::new(&message).unwrap().acknowledgement()));
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
                let number = view.acknowledged().unwrap();
                assert_eq!(self.sent_ids[number as usize], id(bytes), "acknowledges another message");
                self.unacknowledged.remove(&number);
                return;
            }
            Kind::Pause | Kind::Start => return,
            _ => {
                let id = id(&view.acknowledgement());
                let before = self.received_ids.insert(number, id.clone());
                assert!(before.is_none_or(|before| before == id), "{number} stands for two messages");
            }
        }
        match number {
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

/// The id of the message that is acknowledged.
fn id(acknowledgement: &Bytes) -> String {
    let view = View::new(acknowledgement).unwrap();
    let content: serde_json::Value = serde_json::from_slice(view.payload()).unwrap();
    content["AcknowledgedMessageId"].as_str().unwrap().to_owned()
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
    NothingFlows,
    SaysThatTheAgentIs(&'static [u8]),
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
        let now = Instant::now();
        let mut relay = Relay::new(ledger, Some(KEEPALIVE));
        // As after the handshake.
        (relay.established, relay.multiplexed) = (true, true);
        relay.agent.begin(now);
        let world = Self {
            now,
            relay,
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
            Step::NothingFlows => self.now += KEEPALIVE,
            Step::SaysThatTheAgentIs(kind) => {
                if self.service_open {
                    self.relay.service_sent(self.now, stream_message(kind, 0, 0, b""));
                }
            }
        }
        self.relay.look(self.now);
    }

    /// All goes well from here on, until nothing is left to do.
    fn settle(&mut self) {
        self.step(&Step::ServiceOpens);
        for round in 0.. {
            assert!(round < 5_000, "it does not come to rest");
            let busy = !self.stream.is_empty()
                || !self.plugin.unacknowledged.is_empty()
                || !self.agent.unacknowledged.is_empty()
                || !self.relay.input.is_settled()
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
        3 => Just(Step::NothingFlows),
        1 => Just(Step::SaysThatTheAgentIs(b"pause_publication")),
        1 => Just(Step::SaysThatTheAgentIs(b"start_publication")),
    ]
}

proptest! {
    /// Whatever is lost on the way, whoever reconnects when, and wherever a keep-alive goes between: both ends get
    /// exactly the other's stream, in order and under numbers without a gap, with every lone line feed as the client
    /// sent it; keep-alives are whole frames between whole frames; everything is acknowledged in the end.
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
        let mut follower = Follower::default();
        let mut received = Vec::new();
        for payload in &world.agent.received {
            if payload == &NOP && follower.is_between_frames() {
                continue;
            }
            prop_assert_eq!(follower.follow(payload, |_| ()), Ok(()));
            received.extend_from_slice(payload);
        }
        prop_assert_eq!(received, sent);
        let expected: Vec<Vec<u8>> = (0..world.agent.numbered).map(|n| n.to_be_bytes().to_vec()).collect();
        prop_assert_eq!(world.plugin.received, expected);
        let next = world.relay.numbering.to_agent(world.plugin.numbered);
        prop_assert_eq!(next, Some(world.relay.input.next_number()));
        prop_assert_eq!(next, Some(world.agent.expected));
        prop_assert_eq!(world.relay.input.overdue_at(), None);
        prop_assert!(!world.relay.agent_is_silent());
    }
}

/// The property above holds for keep-alives only if there are any.
#[test]
fn keep_alives_are_among_the_steps() {
    let (mut world, _) = World::new(&[b"abc".to_vec()], true);
    world.step(&Step::ServiceOpens);
    let round = [Step::NothingFlows, Step::RelayToAgent, Step::AgentToRelay];
    let message = [Step::PluginSends(1024), Step::PluginToRelay, Step::RelayToAgent, Step::AgentToRelay];
    round.iter().chain(&message).chain(&round).chain(&round).for_each(|step| world.step(step));
    let payloads: Vec<_> = world.agent.received.iter().map(|payload| payload == &NOP).collect();
    assert_eq!(payloads, [true, false, true, true]);
    assert_eq!(world.relay.numbering.to_agent(1), Some(4));
}
