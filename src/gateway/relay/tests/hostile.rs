//! A service that breaks the protocol, or says more than anybody can keep.

use super::*;
use crate::gateway::breach::MAX_AHEAD;
use crate::gateway::early::MAX_EARLY_BYTES;
use crate::gateway::fuzz::MAX_HELD;
use crate::gateway::link::MAX_MESSAGE;
use crate::gateway::mux::NOP;

fn acknowledgement(content: &[u8]) -> Bytes {
    stream_message(b"acknowledge", 0, 0, content)
}

fn with_header_length(length: u32) -> Bytes {
    let mut bytes = output(0, message::DATA, b"x").to_vec();
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    bytes.into()
}

fn with_payload_length(length: u32) -> Bytes {
    let mut bytes = output(0, message::DATA, b"x").to_vec();
    bytes[116..120].copy_from_slice(&length.to_be_bytes());
    bytes.into()
}

#[test]
fn what_cannot_be_a_message_ends_its_session_with_the_reason() {
    let table = [
        (Bytes::new(), "a message that cannot be read (truncated)"),
        (Bytes::from_static(b"garbage"), "a message that cannot be read (truncated)"),
        (with_header_length(0), "(unknown header length 0)"),
        (with_header_length(u32::MAX), "(unknown header length 4294967295)"),
        (with_payload_length(2), "(truncated)"),
        (with_payload_length(u32::MAX), "(truncated)"),
        (stream_message(b"input_stream_data", 0, message::DATA, b"x"), "a message that only a client sends"),
        (output(-1, message::DATA, b"x"), "stream message -1: the numbers begin with 0"),
        (output(i64::MIN, message::DATA, b"x"), "stream message -9223372036854775808: "),
        (output(MAX_AHEAD + 1, message::DATA, b"x"), "stream message 110001 while 0 is missing"),
        (output(i64::MAX, message::DATA, b"x"), "stream message 9223372036854775807 while 0 is missing"),
        (output(0, message::HANDSHAKE_REQUEST, b"{\"AgentVersion\":"), "a handshake that cannot be read"),
        (output(0, message::HANDSHAKE_REQUEST, &[b'['; 4096]), "a handshake that cannot be read"),
        (acknowledgement(b"{}"), "an acknowledgement that cannot be read"),
        (
            acknowledgement(b"{\"AcknowledgedMessageSequenceNumber\":\"0\"}"),
            "an acknowledgement that cannot be read",
        ),
        (acknowledgement(&[b'{'; 1 << 16]), "an acknowledgement that cannot be read"),
        (acknowledgement(b"{\"AcknowledgedMessageSequenceNumber\":0}"), "of message 0, which was never sent"),
        (
            acknowledgement(b"{\"AcknowledgedMessageSequenceNumber\":-1}"),
            "of message -1, which was never sent",
        ),
    ];
    for (bytes, words) in table {
        let (mut relay, now) = (relay(), Instant::now());
        let Some(Event::SessionEnded { reason, declared: false }) = relay.service_sent(now, bytes) else {
            panic!("not ended: {words}")
        };
        let broken = "the service has broken the data channel's protocol: it sent ";
        let lost = "too much is lost to be repaired: the agent has sent ";
        assert!(reason.starts_with(if words.contains("missing") { lost } else { broken }), "{reason}");
        assert!(reason.contains(words), "{reason}");
        assert!(relay.has_ended());
        assert_eq!(relay.next_for_plugin(), None, "the plugin has not seen it");
        // The end is told once, and what follows changes nothing.
        assert_eq!(relay.service_sent(now, Bytes::new()), None);
        assert_eq!(relay.service_sent(now, output(0, message::DATA, b"x")), None);
        assert_eq!(relay.next_for_plugin(), None);
    }
}

#[test]
fn what_a_later_version_may_send_is_passed_on() {
    let (mut relay, now) = (relay(), Instant::now());
    let unknown = stream_message(b"weather_forecast", -7, 99, b"rain");
    assert_eq!(relay.service_sent(now, unknown.clone()), None);
    assert_eq!(relay.next_for_plugin(), Some(unknown));
    assert_eq!(relay.service_sent(now, output(0, 4711, b"?")), None);
    assert!(!relay.has_ended() && relay.next_for_plugin().is_some());
}

#[test]
fn garbage_of_the_plugins_is_dropped() {
    let mut relay = relay();
    assert_eq!(relay.plugin_sent(&Bytes::from_static(b"")), (false, None));
    assert_eq!(relay.next_for_service(Instant::now()), None);
    assert!(!relay.has_ended());
}

#[test]
fn the_end_is_told_once_however_often_it_is_said() {
    let (mut relay, now) = (relay(), Instant::now());
    let words = format!("{{\"Output\":\"over\\n\\u001b[2J{}\"}}", "!".repeat(60_000));
    let closed = stream_message(b"channel_closed", 0, 0, words.as_bytes());
    let ends: Vec<_> = (0..10_000).filter_map(|_| relay.service_sent(now, closed.clone())).collect();
    let [Event::SessionEnded { reason, declared: true }] = &ends[..] else { panic!("{} ends", ends.len()) };
    assert!(reason.starts_with("over[2J!") && reason.chars().count() == 200, "{reason}");
    assert!(relay.held_bytes() < 2 * MAX_MESSAGE);
}

/// Both ends send as much as is taken from them, in messages as large as there may be, and nobody acknowledges anything:
/// what can only be acknowledged later, what can never be, gaps that never fill.
#[test]
fn one_session_holds_no_more_than_it_says() {
    for size in [0, 1024, MAX_MESSAGE - 120] {
        let (mut relay, now, payload) = (relay(), Instant::now(), vec![b' '; size]);
        let mut most = 0;
        // Before that nothing is kept behind a gap.
        relay.service_sent(now, output(0, message::HANDSHAKE_COMPLETE, b"{}"));
        // Made once each: a digest takes its time.
        let input = stream_message(b"input_stream_data", 0, message::DATA, &payload);
        // Nothing but headers, so that the messages are kept as they are.
        let data = stream_message(b"output_stream_data", 0, message::DATA, &NOP.repeat(size / NOP.len()));
        let padded = acknowledgement(&[&b"{\"AcknowledgedMessageSequenceNumber\":1}"[..], &payload].concat());
        let pause = stream_message(b"pause_publication", 0, 0, &payload);
        // The plugin's stream, and acknowledgements padded to the same length.
        for number in 0.. {
            if !relay.reads_plugin() {
                break;
            }
            relay.plugin_sent(&View::new(&input).unwrap().numbered(number));
        }
        for number in 0..3_000 {
            if relay.reads_plugin() {
                relay.plugin_sent(&padded);
            }
            // With a gap at 1 that never fills: as much as is kept of what comes behind it, though the plugin takes it all.
            if relay.reads_service() && relay.answers.early_bytes() + data.len() <= MAX_EARLY_BYTES {
                assert_eq!(relay.service_sent(now, View::new(&data).unwrap().numbered(number + 2)), None);
                while relay.next_for_plugin().is_some() {}
            }
            if relay.reads_service() {
                relay.service_sent(now, pause.clone());
            }
            most = most.max(relay.held_bytes());
        }
        assert!(size == 0 || relay.answers.early_bytes() > MAX_EARLY_BYTES / 2, "that was not tried");
        // Acknowledgements, as long as they may be and the plugin takes none.
        for number in 0..12_000 {
            let content =
                format!("{{\"AcknowledgedMessageSequenceNumber\":{number},\"x\":\"{}\"}}", "x".repeat(950));
            if relay.reads_service() {
                relay.service_sent(now, acknowledgement(content.as_bytes()));
            }
            most = most.max(relay.held_bytes());
        }
        println!("payloads of {size} bytes: {} KiB held at most", most >> 10);
        assert!(most <= MAX_HELD, "{most} bytes held");
    }
}

/// A gap at the beginning of a download that goes on: the agent keeps 100 000 messages, of which the plugin takes as many as
/// it has room for.
#[test]
fn a_hundred_thousand_messages_behind_a_gap_take_no_more() {
    let (mut relay, now, mut most) = (relay(), Instant::now(), 0);
    relay.service_sent(now, output(0, message::HANDSHAKE_COMPLETE, b"{}"));
    let complete = relay.next_for_plugin().unwrap();
    relay.plugin_sent(&View::new(&complete).unwrap().acknowledgement());
    let data = output(0, message::DATA, &[b'x'; 1024]);
    for number in 2..=100_000 {
        relay.service_sent(now, View::new(&data).unwrap().numbered(number));
        while let Some(passed_on) = relay.next_for_plugin() {
            if number <= 10_001 {
                relay.plugin_sent(&View::new(&passed_on).unwrap().acknowledgement());
            }
        }
        while relay.next_for_service(now).is_some() {}
        most = most.max(relay.held_bytes());
    }
    relay.look(now);
    assert_eq!(relay.gap(now).0.from_agent, 100_000 - 10_000);
    assert!(!relay.has_ended(), "it may be repaired yet");
    // And the latest acknowledgements.
    assert!(most <= MAX_EARLY_BYTES + (256 << 10) + 2048, "{most} bytes held");
    let beyond = View::new(&data).unwrap().numbered(1 + MAX_AHEAD + 1);
    let Some(Event::SessionEnded { reason, .. }) = relay.service_sent(now, beyond) else { panic!("goes on") };
    assert!(reason.starts_with("too much is lost to be repaired"), "{reason}");
}
