//! A service that breaks the protocol, or floods: the session in which it does is closed, with the reason, and nothing else
//! happens: the other session, the clients and the memory of the daemon do not feel it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use autossm_lab::Lab;
use autossm_lab::options::Options;
use autossm_lab::wire::message::{Message, MessageType, payload};
use bytes::Bytes;
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message as Frame;

use crate::daemon::{Daemon, own_address, tunnel, until};

async fn echoes(address: SocketAddr) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"ping").await.unwrap();
    let mut back = [0; 4];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"ping");
}

fn message(kind: MessageType, sequence: i64, payload_type: u32, content: &[u8]) -> Bytes {
    Message::stream(kind, sequence, payload_type, Bytes::copy_from_slice(content)).encode()
}

fn output(sequence: i64) -> Bytes {
    message(MessageType::OutputStreamData, sequence, payload::DATA, &[0; 1024])
}

/// A message with four of its bytes replaced.
fn patched(offset: usize, bytes: [u8; 4]) -> Frame {
    let mut message = output(0).to_vec();
    message[offset..offset + 4].copy_from_slice(&bytes);
    Frame::Binary(message.into())
}

/// The most memory that the daemon has had, in KiB.
fn peak(daemon: &Daemon) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Such a lab has much to complain about: what the plugin answers to messages that its agent never sent.
async fn stop(mut daemon: Daemon, lab: &Lab) {
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.exit().await.success(), "{}", daemon.tail());
    assert!(lab.sessions().is_empty(), "{:?}", lab.sessions());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_breaks_the_protocol_ends_that_session_and_nothing_else() {
    let acknowledge = |content: &[u8]| Frame::Binary(message(MessageType::Acknowledge, 0, 0, content));
    let closed = br#"{"SessionId":"s","Output":"over \u001b[2J\r\nfor good"}"#;
    let rows: Vec<(&str, Frame, usize, &str)> = vec![
        ("garbage", Frame::binary(&b"garbage"[..]), 1, "a message that cannot be read (truncated)"),
        ("nothing", Frame::binary(&b""[..]), 1, "a message that cannot be read (truncated)"),
        ("wrong header length", patched(0, [0xff; 4]), 1, "(unknown header length 4294967295)"),
        ("huge payload length", patched(116, [0xff; 4]), 1, "a message that cannot be read (truncated)"),
        ("text", Frame::text("{\"hello\":1}"), 1, "a text message"),
        (
            "giant frame",
            Frame::binary(vec![0; 8 << 20]),
            1,
            "no proper WebSocket message (Space limit exceeded",
        ),
        ("negative number", Frame::Binary(output(-1)), 1, "stream message -1: "),
        ("far ahead", Frame::Binary(output(i64::MAX)), 1, "stream message 9223372036854775807 while "),
        (
            "a client's message",
            Frame::Binary(message(MessageType::InputStreamData, 0, 1, b"x")),
            1,
            "only a client sends",
        ),
        ("acknowledgement, not JSON", acknowledge(b"{"), 1, "an acknowledgement that cannot be read"),
        (
            "acknowledgement, mistyped",
            acknowledge(br#"{"AcknowledgedMessageSequenceNumber":"1"}"#),
            1,
            "that cannot be read",
        ),
        (
            "acknowledgement of nothing",
            acknowledge(br#"{"AcknowledgedMessageSequenceNumber":4711}"#),
            1,
            "message 4711, which was never sent",
        ),
        (
            "closed, and closed, and closed",
            Frame::Binary(message(MessageType::ChannelClosed, 0, 0, closed)),
            10_000,
            "over [2Jfor good",
        ),
    ];
    let lab = Lab::start(Options::default()).await.unwrap();
    let daemon = Daemon::echo(&lab, "sessions = 2").await;
    daemon.event_times("ready", 2).await;
    let before = peak(&daemon);
    for (index, (what, frame, times, words)) in rows.into_iter().enumerate() {
        let sessions =
            until("two sessions", || Some(lab.sessions()).filter(|sessions| sessions.len() == 2)).await;
        let (victim, other) = (&sessions[index % 2], &sessions[1 - index % 2]);
        // One that has been Ready for less than a second would count as a failed start.
        until("a session that is Ready for a second", || {
            let ready = daemon.events("ready").into_iter().find(|line| line.field("session") == victim)?;
            ready.at.elapsed().is_ok_and(|age| age > Duration::from_millis(1100)).then_some(())
        })
        .await;
        lab.say(victim, frame, times).await;
        let lost = daemon.event_times("lost", index + 1).await.pop().unwrap();
        println!("{what}: {}", lost.field("reason"));
        assert_eq!(lost.field("session"), victim, "{what}: {}", lost.text);
        assert!(lost.field("reason").contains(words), "{what}: {}", lost.text);
        echoes(daemon.address).await;
        assert!(lab.sessions().contains(other), "{what}: the other session is gone");
        daemon.event_times("ready", index + 3).await;
    }
    assert_eq!(daemon.events("interrupted").len(), 0, "{}", daemon.tail());
    let after = peak(&daemon);
    println!("memory: {before} KiB before, {after} KiB at most");
    assert!(after < before + 20 * 1024, "{before} KiB before, {after} KiB at most");
    stop(daemon, &lab).await;
}

/// Messages that the plugin can never put in order, and many more than it keeps; the same message over and over; news of
/// an agent that comes and goes: nothing of that is kept without a bound.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_is_not_kept() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let daemon = Daemon::echo(&lab, "sessions = 2").await;
    daemon.event_times("ready", 2).await;
    let before = peak(&daemon);
    let victim = lab.sessions().remove(0);
    for sequence in 100..15_000 {
        if lab.say(&victim, Frame::Binary(output(sequence)), 1).await == 0 {
            break;
        }
    }
    lab.say(&victim, Frame::Binary(output(15_000)), 20_000).await;
    for kind in [MessageType::PausePublication, MessageType::StartPublication] {
        lab.say(&victim, Frame::Binary(message(kind, 0, 0, &[b' '; 60_000])), 1_000).await;
    }
    lab.say(&victim, Frame::Ping(Bytes::from_static(&[0; 125])), 20_000).await;
    let after = peak(&daemon);
    println!("memory: {before} KiB before, {after} KiB at most");
    assert!(after < before + 40 * 1024, "{before} KiB before, {after} KiB at most");
    lab.terminate(&victim, "an end of it");
    daemon.event_times("ready", 3).await;
    for _ in 0..10 {
        echoes(daemon.address).await;
    }
    stop(daemon, &lab).await;
}

/// Data channels that begin with something else than the agent's handshake.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_beginning_is_a_failure_with_its_reason() {
    let handshake =
        message(MessageType::OutputStreamData, 0, payload::HANDSHAKE_REQUEST, b"{\"AgentVersion\":3}");
    for (what, frame, words) in [
        ("garbage", Frame::binary(&b"garbage"[..]), "a message that cannot be read"),
        ("text", Frame::text("hello"), "a text message"),
        ("mistyped handshake", Frame::Binary(handshake), "a handshake that cannot be read"),
    ] {
        let lab = Lab::start(Options::default()).await.unwrap();
        lab.greet_with(vec![frame]);
        let address = own_address();
        let daemon = Daemon::start(address, &tunnel(&lab, "echo", address, lab.echo_addr(), ""));
        let failed = daemon.event("failed").await;
        println!("{what}: {}", failed.field("message"));
        assert_eq!(failed.field("class"), "network or service", "{}", failed.text);
        assert!(failed.field("reason").contains(words), "{}", failed.text);
        lab.greet_with(Vec::new());
        daemon.event("ready").await;
        echoes(address).await;
        stop(daemon, &lab).await;
    }

    // Stream data that no handshake came before is for the plugin to ignore.
    let lab = Lab::start(Options::default()).await.unwrap();
    lab.greet_with(vec![Frame::Binary(output(3)); 50]);
    let address = own_address();
    let daemon = Daemon::start(address, &tunnel(&lab, "echo", address, lab.echo_addr(), ""));
    until("a data channel", || (lab.status().opened > 0).then_some(())).await;
    lab.greet_with(Vec::new());
    let first = lab.sessions();
    lab.terminate_all("an end of it");
    let is_next = |line: &Arc<crate::daemon::Line>| {
        line.field("event") == "ready" && !first.iter().any(|id| id == line.field("session"))
    };
    daemon.logged("another session", |log| log.iter().any(is_next)).await;
    echoes(address).await;
    stop(daemon, &lab).await;
}
