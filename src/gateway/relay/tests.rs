//! What the relay makes of single messages.

mod hostile;
mod keep_alive;
mod world;

use std::time::Duration;

use super::*;
use crate::gateway::message::Header;
use crate::gateway::mux::tests::frame;

fn stream_message(kind: &[u8], number: i64, payload_type: u32, payload: &[u8]) -> Bytes {
    Header { kind, created: 1, number, flags: 0, payload_type }.with_payload(payload)
}

fn relay() -> Relay {
    let mut relay = Relay::new(Arc::new(Ledger::new()), None);
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
    // It is lost with the connection, and again with the next one, on which it went out again.
    for _ in 0..2 {
        relay.service_closed();
        relay.service_opened();
        let again = relay.next_for_service(now).unwrap();
        assert_eq!(View::new(&again).unwrap().acknowledged(), Some(0));
        assert_eq!(relay.next_for_service(now), None);
    }
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
        multiplexed: false,
    };
    assert_eq!(relay.service_sent(now, handshake.clone()), Some(expected));
    assert_eq!(relay.service_sent(now, handshake), None);
    let flag = output(1, message::FLAG, &message::CONNECT_TO_PORT_ERROR);
    assert_eq!(relay.service_sent(now, flag.clone()), Some(Event::DestinationFailed));
    assert_eq!(relay.service_sent(now, flag), None);
    let closed = Header { kind: b"channel_closed", created: 1, number: 0, flags: 0, payload_type: 0 }
        .with_payload(br#"{"Output":"timed out due to inactivity"}"#);
    let expected = Event::SessionEnded { reason: "timed out due to inactivity".into(), declared: true };
    assert_eq!(relay.service_sent(now, closed), Some(expected));
    assert!(relay.has_ended());
}

/// The plugin would acknowledge it and never take it for what it is.
#[test]
fn an_early_part_of_the_handshake_waits_for_its_turn() {
    let (mut relay, now) = (relay(), Instant::now());
    let complete = output(1, message::HANDSHAKE_COMPLETE, b"{}");
    relay.service_sent(now, complete.clone());
    assert_eq!(relay.next_for_plugin(), None);
    let request = output(0, message::HANDSHAKE_REQUEST, br#"{"AgentVersion":"3"}"#);
    relay.service_sent(now, request.clone());
    relay.service_sent(now, complete.clone());
    assert_eq!((relay.next_for_plugin(), relay.next_for_plugin()), (Some(request), Some(complete)));
    assert!(relay.is_established());
}

/// All that is kept goes out again, but not faster than the service likes.
#[test]
fn what_is_sent_again_is_paced() {
    let (mut relay, mut now) = (relay(), Instant::now());
    for number in 0..2000 {
        relay.plugin_sent(&stream_message(b"input_stream_data", number, message::DATA, b"x"));
        assert!(relay.next_for_service(now).is_some(), "what the plugin has just sent is not held up");
    }
    relay.service_closed();
    relay.service_opened();
    let began = now;
    let mut sent = 0;
    while sent < 2000 {
        match relay.next_for_service(now) {
            Some(_) => sent += 1,
            None => now = relay.deadline().unwrap(),
        }
        assert!(now >= began && now - began < Duration::from_secs(3));
    }
    assert!(now - began > Duration::from_secs(2), "{:?}", now - began);
}

#[test]
fn leaves_encrypted_sessions_alone() {
    let ledger = Arc::new(Ledger::new());
    let stream = ledger.open();
    ledger.write(stream, b"\n");
    let mut relay = Relay::new(ledger, None);
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

/// On a busy tunnel no keep-alives are sent, and yet the round trip is known; of what was sent twice nothing is.
#[test]
fn the_round_trip_of_clients_messages_is_told_every_5_s() {
    let (mut relay, mut now, mut told) = (relay(), Instant::now(), Vec::new());
    for number in 0..100 {
        let message = stream_message(b"input_stream_data", number, message::DATA, &frame(3, 0, b""));
        relay.plugin_sent(&message);
        assert!(relay.next_for_service(now).is_some());
        now += Duration::from_millis(150);
        if number >= 90 {
            now += Duration::from_secs(1);
            assert!(relay.next_for_service(now).is_some(), "again");
        }
        let event = relay.service_sent(now, View::new(&message).unwrap().acknowledgement());
        told.extend(event.map(|event| (number, event)));
    }
    let round_trip = Event::RoundTrip(Duration::from_millis(150));
    assert_eq!(told, [(0, round_trip.clone()), (34, round_trip.clone()), (68, round_trip)]);
}
