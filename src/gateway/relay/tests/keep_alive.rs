//! When a keep-alive goes out, when not, and what its acknowledgement or its absence says.

use super::*;
use crate::gateway::agent_clock::PATIENCE;
use crate::gateway::mux::NOP;

const KEEPALIVE: Duration = Duration::from_secs(60);
const MILLISECOND: Duration = Duration::from_millis(1);

fn handshake(agent_version: &str, kind: &str, more: &str) -> Bytes {
    let request = format!(
        r#"{{"AgentVersion":"{agent_version}","RequestedClientActions":[{{"ActionType":"SessionType","ActionParameters":{{"SessionType":"Port","Properties":{{"type":"{kind}"}}}}}}{more}]}}"#
    );
    output(0, message::HANDSHAKE_REQUEST, request.as_bytes())
}

/// A session whose handshake was completed at `now`.
fn established(keepalive: Option<Duration>, request: Bytes, now: Instant) -> Relay {
    let ledger = Arc::new(Ledger::new());
    ledger.open();
    let mut relay = Relay::new(ledger, keepalive);
    relay.service_opened();
    relay.service_sent(now, request);
    relay.service_sent(now, output(1, message::HANDSHAKE_COMPLETE, b"{}"));
    relay
}

fn usual(now: Instant) -> Relay {
    established(Some(KEEPALIVE), handshake("3.3.2299.0", "LocalPortForwarding", ""), now)
}

/// What goes out when nothing has happened for the time of a keep-alive.
fn after_idling(relay: &mut Relay, now: Instant) -> Option<Bytes> {
    relay.look(now + KEEPALIVE - MILLISECOND);
    assert_eq!(relay.next_for_service(now + KEEPALIVE - MILLISECOND), None, "too early");
    relay.look(now + KEEPALIVE);
    relay.next_for_service(now + KEEPALIVE)
}

fn acknowledge(relay: &mut Relay, now: Instant, message: &Bytes) -> Option<Event> {
    relay.service_sent(now, View::new(message).unwrap().acknowledgement())
}

#[test]
fn an_idle_session_asks_its_agent_and_measures_the_round_trip() {
    let (now, tens) = (Instant::now(), Duration::from_millis(30));
    let mut relay = usual(now);
    assert_eq!(relay.deadline(), Some(now + KEEPALIVE));
    let message = after_idling(&mut relay, now).unwrap();
    let view = View::new(&message).unwrap();
    assert_eq!((view.kind(), view.number(), view.payload()), (Kind::Input, 0, &NOP[..]));
    (0..2).for_each(|_| drop(relay.next_for_plugin()));
    let answered = now + KEEPALIVE + tens;
    assert_eq!(acknowledge(&mut relay, answered, &message), Some(Event::RoundTrip(tens)));
    assert_eq!(acknowledge(&mut relay, answered, &message), None, "a repetition tells nothing");
    assert_eq!(relay.next_for_plugin(), None, "the plugin has not sent it");
    assert_eq!(relay.deadline(), Some(answered + KEEPALIVE));
}

#[test]
fn the_plugin_counts_on_as_if_nothing_had_been_sent() {
    let now = Instant::now();
    let mut relay = usual(now);
    let keep_alive = after_idling(&mut relay, now).unwrap();
    acknowledge(&mut relay, now + KEEPALIVE, &keep_alive);
    (0..2).for_each(|_| drop(relay.next_for_plugin()));
    let message = stream_message(b"input_stream_data", 0, message::DATA, &frame(0, 3, b""));
    assert_eq!(relay.plugin_sent(&message), (true, None));
    let sent = relay.next_for_service(now + KEEPALIVE).unwrap();
    let (before, after) = (View::new(&message).unwrap(), View::new(&sent).unwrap());
    assert_eq!((after.number(), after.payload()), (1, before.payload()));
    assert_eq!(relay.plugin_sent(&message), (false, None), "known under its own number");
    acknowledge(&mut relay, now + KEEPALIVE, &sent);
    let answer = relay.next_for_plugin().unwrap();
    let (answer, expected) = (View::new(&answer).unwrap(), before.acknowledgement());
    assert_eq!(answer.acknowledged(), Some(0));
    assert_eq!(answer.payload(), View::new(&expected).unwrap().payload());
}

#[test]
fn no_keep_alive_goes_where_it_would_do_harm() {
    let now = Instant::now();
    let kms = r#",{"ActionType":"KMSEncryption"}"#;
    for (why, keepalive, request) in [
        ("off", None, handshake("3.3.2299.0", "LocalPortForwarding", "")),
        ("encrypted", Some(KEEPALIVE), handshake("3.3.2299.0", "LocalPortForwarding", kms)),
        ("without mux", Some(KEEPALIVE), handshake("3.0.196.0", "LocalPortForwarding", "")),
        ("of unknown version", Some(KEEPALIVE), handshake("mine", "LocalPortForwarding", "")),
        ("of another kind", Some(KEEPALIVE), handshake("3.3.2299.0", "", "")),
    ] {
        let mut relay = established(keepalive, request, now);
        assert_eq!(after_idling(&mut relay, now), None, "{why}");
    }
    let mut shaking_hands = Relay::new(Arc::new(Ledger::new()), Some(KEEPALIVE));
    shaking_hands.service_opened();
    shaking_hands.service_sent(now, handshake("3.3.2299.0", "LocalPortForwarding", ""));
    assert_eq!(after_idling(&mut shaking_hands, now), None);
    let mut closed = usual(now);
    closed.service_closed();
    assert_eq!(after_idling(&mut closed, now), None);
    let mut lost_track = usual(now);
    lost_track.plugin_sent(&stream_message(b"input_stream_data", 0, message::DATA, b"SSH-2.0-OpenSSH\r\n"));
    let data = lost_track.next_for_service(now).unwrap();
    acknowledge(&mut lost_track, now, &data);
    assert_eq!(after_idling(&mut lost_track, now), None);
}

#[test]
fn a_frame_is_never_cut_in_two() {
    let now = Instant::now();
    let mut relay = usual(now);
    let bytes = [frame(0, 3, b""), frame(2, 3, b"half")].concat();
    for (number, cut) in [&bytes[..12], &bytes[12..]].into_iter().enumerate() {
        relay.plugin_sent(&stream_message(b"input_stream_data", number as i64, message::DATA, cut));
        let sent = relay.next_for_service(now).unwrap();
        acknowledge(&mut relay, now, &sent);
        assert_eq!(after_idling(&mut relay, now).is_some(), number == 1);
    }
}

#[test]
fn a_lost_keep_alive_is_sent_again_over_a_reconnect_too() {
    let now = Instant::now();
    let mut relay = usual(now);
    let message = after_idling(&mut relay, now).unwrap();
    let due = relay.deadline().unwrap();
    assert_eq!(relay.next_for_service(due), Some(message.clone()));
    relay.service_closed();
    relay.service_opened();
    assert_eq!(relay.next_for_service(due), Some(message.clone()));
    assert_eq!(acknowledge(&mut relay, due, &message), None, "which of the three was it?");
}

#[test]
fn an_agent_that_acknowledges_nothing_is_silent_until_it_does() {
    let now = Instant::now();
    let mut relay = usual(now);
    let message = after_idling(&mut relay, now).unwrap();
    let falls = now + KEEPALIVE + PATIENCE;
    relay.look(falls - MILLISECOND);
    assert!(!relay.agent_is_silent());
    relay.look(falls);
    assert!(relay.agent_is_silent());
    // A new connection is no proof of the agent's.
    relay.service_closed();
    relay.service_opened();
    assert!(relay.agent_is_silent());
    relay.service_sent(falls, output(2, message::DATA, b"x"));
    assert!(relay.agent_is_silent(), "it may send and not take");
    assert_eq!(relay.next_for_service(falls), Some(message.clone()));
    acknowledge(&mut relay, falls, &message);
    assert!(!relay.agent_is_silent());
}

/// The oldest alone is sent again until it is acknowledged, and then each in its turn; an agent that was gone has lost
/// them all.
#[test]
fn an_agent_that_is_back_gets_everything_at_once() {
    let now = Instant::now();
    let mut relay = usual(now);
    let messages: Vec<_> = (0..4)
        .map(|number| stream_message(b"input_stream_data", number, message::DATA, &frame(3, 0, b"")))
        .collect();
    messages.iter().for_each(|message| assert!(relay.plugin_sent(message).0));
    while relay.next_for_service(now).is_some() {}
    relay.look(now + PATIENCE);
    assert!(relay.agent_is_silent());
    let back = now + PATIENCE;
    assert_eq!(relay.next_for_service(back).as_ref(), messages.first());
    acknowledge(&mut relay, back, &messages[0]);
    let sent: Vec<_> = std::iter::from_fn(|| relay.next_for_service(back)).collect();
    assert_eq!(sent, messages[1..]);
}

#[test]
fn an_agent_that_is_said_to_be_away_is_asked_for_its_return() {
    let now = Instant::now();
    let other = |kind| stream_message(kind, 0, 0, b"");
    let mut relay = usual(now);
    relay.service_sent(now, other(b"pause_publication"));
    assert!(relay.agent_is_away());
    assert_eq!(relay.deadline(), Some(now + PATIENCE));
    relay.look(now + PATIENCE);
    assert!(relay.agent_is_silent());
    let message = relay.next_for_service(now + PATIENCE).unwrap();
    relay.service_sent(now + KEEPALIVE, other(b"start_publication"));
    assert!(!relay.agent_is_away() && relay.agent_is_silent());
    assert_eq!(relay.next_for_service(now + KEEPALIVE), Some(message.clone()), "at once");
    acknowledge(&mut relay, now + KEEPALIVE, &message);
    assert!(!relay.agent_is_silent());

    // Where nothing can be asked, it is believed.
    let mut relay = established(None, handshake("3.3.2299.0", "LocalPortForwarding", ""), now);
    relay.service_sent(now, other(b"pause_publication"));
    relay.look(now + PATIENCE);
    assert!(relay.agent_is_silent());
    relay.service_sent(now + KEEPALIVE, other(b"start_publication"));
    assert!(!relay.agent_is_silent());
}

/// Whoever asks again and again for what cannot be done turns in circles.
#[test]
fn a_deadline_is_never_in_the_past() {
    let now = Instant::now();
    let mut relay = usual(now);
    relay.plugin_sent(&stream_message(b"input_stream_data", 0, message::DATA, &frame(0, 3, b"")[..4]));
    let sent = relay.next_for_service(now).unwrap();
    acknowledge(&mut relay, now, &sent);
    let late = now + KEEPALIVE * 2;
    relay.look(late);
    assert_eq!(relay.deadline(), None, "within a frame nothing can go out");
    let mut relay = usual(now);
    after_idling(&mut relay, now);
    let closed = stream_message(b"channel_closed", 0, 0, br#"{"Output":"idle"}"#);
    relay.service_sent(late, closed);
    relay.look(late + PATIENCE);
    while relay.next_for_service(late + PATIENCE).is_some() {}
    assert!(relay.deadline().is_none_or(|at| at > late + PATIENCE));
    assert!(!relay.agent_is_silent(), "it is over");
}

/// A session of a plugin of this version, with an agent that sends its own keep-alives; returns the most that passes in five
/// minutes without anything for the agent.
fn longest_without_a_frame(version: &str, keepalive: Option<Duration>) -> Option<Duration> {
    let mut now = Instant::now();
    let ledger = Arc::new(Ledger::new());
    let mut relay = Relay::new(ledger, keepalive);
    relay.service_opened();
    relay.service_sent(now, handshake("3.3.2299.0", "LocalPortForwarding", ""));
    let response = format!(r#"{{"ClientVersion":"{version}","ProcessedClientActions":[]}}"#);
    relay.plugin_sent(&stream_message(
        b"input_stream_data",
        0,
        message::HANDSHAKE_RESPONSE,
        response.as_bytes(),
    ));
    let sent = relay.next_for_service(now).unwrap();
    acknowledge(&mut relay, now, &sent);
    relay.service_sent(now, output(1, message::HANDSHAKE_COMPLETE, b"{}"));
    let (end, mut number, mut last, mut longest) = (now + KEEPALIVE * 5, 2, now, None);
    let mut nop = now + Duration::from_secs(10);
    while now < end {
        // At its own time, and when the relay wants to be looked at.
        now = relay.deadline().map_or(nop, |deadline| deadline.min(nop)).min(end);
        if now == nop {
            relay.service_sent(now, output(number, message::DATA, &NOP));
            number += 1;
            nop += Duration::from_secs(10);
        }
        while relay.next_for_plugin().is_some() {}
        relay.look(now);
        while let Some(frame) = relay.next_for_service(now) {
            assert_eq!(View::new(&frame).unwrap().payload(), NOP);
            longest = longest.max(Some(now - last));
            last = now;
            acknowledge(&mut relay, now, &frame);
        }
    }
    longest.max((longest.is_some()).then_some(end - last))
}

/// For such a plugin it looks every 30 s whether anything of the client's has come, and ends the session if not: its own
/// keep-alives, which come every 10 s, do not count.
#[test]
fn an_agent_that_expects_frames_of_its_client_gets_them() {
    let seconds = Duration::from_secs;
    for keepalive in [None, Some(seconds(5)), Some(seconds(10)), Some(KEEPALIVE), Some(KEEPALIVE * 60)] {
        let longest = longest_without_a_frame("1.2.0.0", keepalive);
        assert!(longest.is_some_and(|longest| longest <= seconds(10)), "{keepalive:?}: {longest:?}");
        // Of another plugin none is expected, and where the agent sends, none is needed.
        let longest = longest_without_a_frame("1.2.677.0", keepalive);
        assert_eq!(longest.is_some(), keepalive == Some(seconds(5)), "{keepalive:?}: {longest:?}");
    }
}
