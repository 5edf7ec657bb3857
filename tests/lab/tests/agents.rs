//! The agent as the real one is: its own way to the service and what becomes of it, its pace, its clocks, its end; and a program in
//! its place.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod client;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use autossm_lab::Lab;
use autossm_lab::fault::{Fault, Report};
use autossm_lab::options::{AgentProgram, Options};
use autossm_lab::wire::handshake::{ChannelClosed, HandshakeComplete, HandshakeRequest};
use autossm_lab::wire::message::{Message, MessageType, flag, payload};
use autossm_lab::wire::mux::{Command, Decoder, Frame};
use client::{Channel, PATIENCE, encoded, frames_until, lab, pushed, start, wait};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message as WsFrame;
use tokio_tungstenite::{WebSocketStream, client_async};

async fn said(channel: &mut Channel, kind: MessageType) -> Message {
    loop {
        let message = channel.next().await.expect("the channel was closed");
        if message.kind == kind {
            return message;
        }
    }
}

/// However its connection ends, the agent opens another one, the client is told of both, and what was lost is repaired.
#[tokio::test]
async fn an_agent_reconnects() {
    let lab = lab().await;
    let session = start(&lab, lab.echo_addr().port()).await;
    let mut channel = Channel::open_and_greet(&lab, &session).await;
    channel.data(1, encoded(&[Frame::control(Command::Syn, 3), Frame::push(3, "one")])).await;
    let mut decoder = Decoder::default();
    frames_until(&mut channel, &mut decoder, |frames| pushed(frames) == b"one").await;
    for round in 1..=2 {
        wait(&lab, "silence", |status| status.sessions.values().all(|s| s.unacknowledged == 0)).await;
        // For a moment, so that the client can be told.
        lab.set(Fault::AgentRefuse);
        let lost = match round {
            1 => lab.close_agents(1000, "Bye"),
            _ => lab.abort_agents(),
        };
        assert!(lost <= 1);
        said(&mut channel, MessageType::PausePublication).await;
        let before = lab.status().undelivered;
        let missed = channel.data(round + 1, encoded(&[Frame::push(3, "two")])).await;
        wait(&lab, "dropped message", |status| status.undelivered == before + 1).await;
        lab.clear(Fault::AgentRefuse);
        said(&mut channel, MessageType::StartPublication).await;
        channel.send(&missed).await;
        frames_until(&mut channel, &mut decoder, |frames| pushed(frames) == b"two").await;
    }
    let status = lab.status();
    assert_eq!((status.agents_opened, status.agents_closed, status.opened), (3, 2, 1));
    assert_eq!(status.violation_count, 0, "{:?}", status.violations);
}

/// Six attempts in three to six seconds, and then never again.
#[tokio::test]
async fn an_agent_gives_up_to_reconnect() {
    let lab = lab().await;
    let session = start(&lab, lab.echo_addr().port()).await;
    let mut channel = Channel::open_and_greet(&lab, &session).await;
    let began = Instant::now();
    // Three seconds are always survived.
    let refused = lab.set_for(Fault::AgentRefuse, Duration::from_secs(3));
    wait(&lab, "loss", |status| status.agents_closed == 1).await;
    wait(&lab, "agent", |status| status.agents_opened == 2).await;
    let took = began.elapsed();
    assert!(took > Duration::from_secs(3) && took < Duration::from_secs(8), "{took:?}");
    refused.await.unwrap();

    let began = Instant::now();
    lab.set(Fault::AgentRefuse);
    wait(&lab, "end of all attempts", |status| status.sessions.values().all(|session| session.agent_gave_up))
        .await;
    let took = began.elapsed();
    assert!(took > Duration::from_secs(3) && took < Duration::from_secs(8), "{took:?}");
    lab.clear(Fault::AgentRefuse);
    channel.data(1, "").await;
    wait(&lab, "dropped message", |status| status.undelivered >= 1).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let status = lab.status();
    assert_eq!(
        (status.agents_opened, status.sessions.len()),
        (2, 1),
        "the session stays, and nobody serves it"
    );
}

/// The clients' way is not the agents'.
#[tokio::test]
async fn an_agents_frozen_link_holds_only_what_goes_to_it() {
    let lab = lab().await;
    let session = start(&lab, lab.echo_addr().port()).await;
    let mut channel = Channel::open_and_greet(&lab, &session).await;
    lab.set(Fault::AgentFreeze);
    channel.data(1, encoded(&[Frame::control(Command::Syn, 3), Frame::push(3, "x")])).await;
    start(&lab, 1).await;
    let before = lab.status().sessions[session["SessionId"].as_str().unwrap()].received;
    assert_eq!(before, 1);
    lab.clear(Fault::AgentFreeze);
    frames_until(&mut channel, &mut Decoder::default(), |frames| pushed(frames) == b"x").await;
    assert_eq!((lab.status().agents_closed, lab.status().duplicates), (0, 0));
}

/// No pong comes over a frozen link: the agent takes its connection for dead, not before its time.
#[tokio::test]
async fn an_agent_without_a_pong_reconnects() {
    let (agent_ping, agent_pong_wait) = (Duration::from_millis(500), Duration::from_millis(900));
    let options = Options { agent_ping, agent_pong_wait, ..Options::default() };
    let lab = Lab::start(options).await.unwrap();
    let session = start(&lab, lab.echo_addr().port()).await;
    let mut channel = Channel::open_and_greet(&lab, &session).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(lab.status().agents_closed, 0);
    lab.set(Fault::AgentFreeze);
    tokio::time::sleep(2 * agent_pong_wait).await;
    lab.clear(Fault::AgentFreeze);
    wait(&lab, "second connection", |status| status.agents_opened == 2).await;
    channel.data(1, encoded(&[Frame::control(Command::Syn, 3), Frame::push(3, "x")])).await;
    frames_until(&mut channel, &mut Decoder::default(), |frames| pushed(frames) == b"x").await;
}

/// A destination that takes nothing keeps the agent from reading its pongs; it finds its time over when it reads again.
#[tokio::test]
async fn an_agent_that_cannot_read_trips_its_own_deadline() {
    let agent_pong_wait = Duration::from_secs(3);
    let options = Options { agent_ping: Duration::from_millis(500), agent_pong_wait, ..Options::default() };
    let lab = Lab::start(options).await.unwrap();
    let destination = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let session = start(&lab, destination.local_addr().unwrap().port()).await;
    let id = session["SessionId"].as_str().unwrap();
    let mut channel = Channel::open_and_greet(&lab, &session).await;
    channel.data(1, encoded(&[Frame::control(Command::Syn, 3)])).await;
    let (mut taken, _) = destination.accept().await.unwrap();
    let (piece, mut sequence) = (vec![0; 32 * 1024], 2);
    loop {
        let data = encoded(&[Frame::push(3, piece.clone())]);
        if tokio::time::timeout(Duration::from_secs(1), channel.data(sequence, data)).await.is_err() {
            break;
        }
        sequence += 1;
    }
    let blocked = lab.status();
    tokio::time::sleep(agent_pong_wait).await;
    let (status, before) = (lab.status(), blocked.agents_opened);
    assert_eq!(status.sessions[id].received, blocked.sessions[id].received, "it is not blocked");
    assert_eq!(status.agents_opened, before, "it is blocked, and yet sees the time");
    let reading = tokio::spawn(async move { tokio::io::copy(&mut taken, &mut tokio::io::sink()).await });
    wait(&lab, "another connection", |status| status.agents_opened > before).await;
    reading.abort();
}

#[tokio::test]
async fn a_killed_worker_is_reported_at_once_later_or_never() {
    let lab = lab().await;
    for report in [Report::AtOnce, Report::After(Duration::from_millis(800)), Report::Never] {
        let session = start(&lab, lab.echo_addr().port()).await;
        let id = session["SessionId"].as_str().unwrap();
        let mut channel = Channel::open_and_greet(&lab, &session).await;
        let began = Instant::now();
        assert!(lab.kill_agent(id, report));
        if report == Report::Never {
            said(&mut channel, MessageType::PausePublication).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(lab.sessions().contains(&id.to_owned()));
            continue;
        }
        let closed = said(&mut channel, MessageType::ChannelClosed).await;
        let closed: ChannelClosed = serde_json::from_slice(&closed.payload).unwrap();
        assert!(closed.output.starts_with("document process failed unexpectedly"), "{}", closed.output);
        let late = began.elapsed() >= Duration::from_millis(800);
        assert_eq!(late, report != Report::AtOnce, "{report:?} after {:?}", began.elapsed());
    }
    assert!(!lab.kill_agent("nobody", Report::Never));
}

/// What comes between the handshake's end and the mux's beginning is neither taken nor acknowledged; what is early is, at once.
#[tokio::test]
async fn nothing_is_taken_before_the_session_is_set_up() {
    let set_up = Duration::from_millis(700);
    let lab = Lab::start(Options { set_up, ..Options::default() }).await.unwrap();
    let session = start(&lab, lab.echo_addr().port()).await;
    let mut channel = Channel::open(&lab, &session).await;
    channel.greet().await;
    let rejected = channel.data(1, encoded(&[Frame::control(Command::Syn, 3), Frame::push(3, "one")])).await;
    channel.data(2, encoded(&[Frame::push(3, " two")])).await;
    while channel.acknowledged().await != 2 {}
    let status = wait(&lab, "session set up", |status| status.sessions.values().all(|s| s.ready)).await;
    assert_eq!((status.not_taken, status.sessions.values().next().unwrap().received), (1, 1));
    channel.send(&rejected).await;
    frames_until(&mut channel, &mut Decoder::default(), |frames| pushed(frames) == b"one two").await;
}

/// Whatever is acknowledged, and be it nothing.
#[tokio::test]
async fn the_pace_is_the_agents_and_there_is_no_window() {
    let lab = lab().await;
    let session = start(&lab, lab.addresses().destinations.endless.port()).await;
    let mut channel = Channel::open_and_greet(&lab, &session).await;
    channel.data(1, encoded(&[Frame::control(Command::Syn, 3)])).await;
    let (mut next, mut again, mut began, time) = (2, 0, None, Duration::from_secs(3));
    while began.is_none_or(|began: Instant| began.elapsed() < time) {
        let message = channel.next().await.unwrap();
        if message.kind == MessageType::OutputStreamData {
            began.get_or_insert_with(Instant::now);
            if message.sequence == next {
                next += 1;
            } else {
                // Of all that is not acknowledged, the oldest alone, and no more than once in 100 ms.
                assert_eq!(message.sequence, 2);
                again += 1;
            }
        }
    }
    let rate = (next - 2) as f64 / time.as_secs_f64();
    assert!((400.0..960.0).contains(&rate), "{rate} messages a second");
    assert!((3..=30).contains(&again), "the oldest was sent again {again} times in {time:?}");
}

/// A client of a build from the public source, or an old one: the agent's mux asks whether it is there.
#[tokio::test]
async fn keep_alives_of_the_mux_end_a_silent_session_of_an_old_client() {
    let (mux_keep_alive, mux_keep_alive_timeout) = (Duration::from_millis(200), Duration::from_millis(900));
    let options = Options { mux_keep_alive, mux_keep_alive_timeout, ..Options::default() };
    let lab = Lab::start(options).await.unwrap();
    let new = Channel::open_and_greet(&lab, &start(&lab, 1).await).await;
    let session = start(&lab, lab.echo_addr().port()).await;
    let mut channel = Channel::open(&lab, &session).await;
    channel.greet_as("1.2.331.0").await;
    let nop = |frames: &[Frame]| frames.iter().filter(|frame| frame.command == Command::Nop).count() >= 3;
    let mut decoder = Decoder::default();
    frames_until(&mut channel, &mut decoder, nop).await;
    // A frame of the client's keeps it: longer than two looks.
    let began = Instant::now();
    let mut sequence = 1;
    while began.elapsed() < 3 * mux_keep_alive_timeout {
        channel.data(sequence, encoded(&[Frame::control(Command::Nop, 0)])).await;
        sequence += 1;
        tokio::time::sleep(mux_keep_alive).await;
    }
    let id = session["SessionId"].as_str().unwrap();
    assert!(lab.sessions().contains(&id.to_owned()));
    let status = wait(&lab, "end", |status| status.ended.len() == 1).await;
    assert_eq!((&*status.ended[0].session, &*status.ended[0].output), (id, ""));
    drop(new);
}

/// The agent waits up to two seconds for what is not acknowledged.
#[tokio::test]
async fn a_terminated_session_ends_when_all_is_acknowledged_or_after_two_seconds() {
    let lab = lab().await;
    for acknowledges in [true, false] {
        let session = start(&lab, lab.echo_addr().port()).await;
        let mut channel = Channel::open_and_greet(&lab, &session).await;
        channel.data(1, encoded(&[Frame::control(Command::Syn, 3), Frame::push(3, "x")])).await;
        let echo = loop {
            let message = said(&mut channel, MessageType::OutputStreamData).await;
            if message.sequence >= 2 {
                break message;
            }
        };
        if acknowledges {
            channel.send(&echo.acknowledgement()).await;
        }
        let terminate = flag::TERMINATE_SESSION.to_be_bytes().to_vec();
        channel.send(&Message::stream(MessageType::InputStreamData, 2, payload::FLAG, terminate)).await;
        let began = Instant::now();
        while channel.acknowledged().await != 2 {}
        // No stream is left, hence nothing more is taken.
        channel.data(3, encoded(&[Frame::push(3, "late")])).await;
        let closed = said(&mut channel, MessageType::ChannelClosed).await;
        let closed: ChannelClosed = serde_json::from_slice(&closed.payload).unwrap();
        assert_eq!(closed.output, "");
        let took = began.elapsed();
        assert_eq!(took < Duration::from_millis(1500), acknowledges, "{took:?}");
        assert!(took < Duration::from_secs(5), "{took:?}");
    }
    assert!(lab.status().ended.iter().all(|ended| ended.by_client));
}

/// A worker that leaves its arguments, and then does this.
fn program(folder: &Path, then: &str) -> AgentProgram {
    let path = folder.join("worker");
    let told = folder.join("told");
    let script = format!(
        "#!/bin/sh\nprintf '%s\\n%s\\n%s\\n' \"$1\" \"$2\" \"$LAB_AGENT_PLAN\" > '{0}.new'\nmv '{0}.new' '{0}'\n{then}\n",
        told.display()
    );
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    AgentProgram::External(path)
}

async fn with_program(folder: &Path, then: &str) -> Lab {
    let dead_worker_reported = Duration::from_millis(300);
    let agent = program(folder, then);
    Lab::start(Options { agent, dead_worker_reported, ..Options::default() }).await.unwrap()
}

/// Its arguments, and the plan.
async fn told(folder: &Path) -> (String, String, Value) {
    let began = Instant::now();
    loop {
        if let Ok(text) = std::fs::read_to_string(folder.join("told")) {
            let lines: Vec<_> = text.lines().collect();
            return (lines[0].into(), lines[1].into(), serde_json::from_str(lines[2]).unwrap());
        }
        assert!(began.elapsed() < PATIENCE, "the worker was not started");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The agent's side of a data channel, driven by hand.
async fn open_as_agent(session: &str, endpoint: &str) -> WebSocketStream<TcpStream> {
    let address = endpoint.strip_prefix("http://").unwrap();
    let body = json!({ "MessageSchemaVersion": "1.0", "RequestId": "r", "ClientId": "c" }).to_string();
    let path = format!("/v1/data-channel/{session}");
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    let token = answer.split_once("<TokenValue>").unwrap().1.split_once("</TokenValue>").unwrap().0;
    let tcp = TcpStream::connect(address).await.unwrap();
    let url = format!("ws://{address}{path}?role=publish_subscribe");
    let (mut socket, _) = client_async(url, tcp).await.unwrap();
    let open = json!({ "MessageSchemaVersion": "1.0", "RequestId": "r", "TokenValue": token, "ClientInstanceId": "mi-1", "ClientId": "c" });
    socket.send(WsFrame::text(open.to_string())).await.unwrap();
    socket
}

async fn heard(socket: &mut WebSocketStream<TcpStream>) -> Message {
    loop {
        if let WsFrame::Binary(bytes) =
            tokio::time::timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap()
        {
            return Message::decode(&bytes).unwrap();
        }
    }
}

async fn say(
    socket: &mut WebSocketStream<TcpStream>,
    sequence: i64,
    kind: u32,
    content: &impl serde::Serialize,
) {
    let content = serde_json::to_vec(content).unwrap();
    let message = Message::stream(MessageType::OutputStreamData, sequence, kind, content);
    socket.send(WsFrame::Binary(message.encode())).await.unwrap();
}

/// The whole of it: its plan, its token, the handshake, the figures, the end.
#[tokio::test]
async fn a_program_takes_the_agents_place() {
    let folder = tempfile::tempdir().unwrap();
    let lab = with_program(folder.path(), "exec sleep 1000").await;
    let session = start(&lab, 5432).await;
    let id = session["SessionId"].as_str().unwrap();
    let (named, endpoint, plan) = told(folder.path()).await;
    assert_eq!((&*named, &plan["SessionId"], &plan["SessionType"]), (id, &json!(id), &json!("Port")));
    assert_eq!(plan["Properties"]["portNumber"], "5432");
    let mut agent = open_as_agent(id, &endpoint).await;
    let state = Message::encode_named("agent_session_state", "{}");
    agent.send(WsFrame::Binary(state)).await.unwrap();
    let request = HandshakeRequest {
        agent_version: "3.3.0.0".into(),
        requested_client_actions: vec![
            serde_json::from_value(json!({ "ActionType": "SessionType", "ActionParameters": { "SessionType": "Port", "Properties": plan["Properties"] } })).unwrap(),
        ],
    };
    // Before there is a client: it waits.
    say(&mut agent, 0, payload::HANDSHAKE_REQUEST, &request).await;
    let mut channel = Channel::open(&lab, &session).await;
    let asked = channel.output().await;
    assert_eq!((asked.sequence, asked.payload_type), (0, payload::HANDSHAKE_REQUEST));
    channel.answer("1.2.764.0").await;
    assert_eq!(heard(&mut agent).await.kind, MessageType::Acknowledge);
    let response = heard(&mut agent).await;
    assert_eq!(
        (response.kind, response.payload_type),
        (MessageType::InputStreamData, payload::HANDSHAKE_RESPONSE)
    );
    agent.send(WsFrame::Binary(response.acknowledgement().encode())).await.unwrap();
    let complete = HandshakeComplete { handshake_time_to_complete: 1, customer_message: String::new() };
    say(&mut agent, 1, payload::HANDSHAKE_COMPLETE, &complete).await;
    assert_eq!(channel.output().await.payload_type, payload::HANDSHAKE_COMPLETE);
    channel.data(1, encoded(&[Frame::control(Command::Syn, 3), Frame::push(3, "x")])).await;
    while heard(&mut agent).await.payload_type != payload::DATA {}
    let status = wait(&lab, "figures", |status| {
        status.sessions.values().all(|s| s.streams == 1 && s.received == 2 && s.unacknowledged == 0)
    })
    .await;
    let figures = &status.sessions[id];
    assert!(figures.ready && figures.agent_connected && figures.client_version == "1.2.764.0", "{figures:?}");
    // It is judged as one of the lab's own: by what its client sends.
    channel.data(2, encoded(&[Frame::push(9, "x")])).await;
    wait(&lab, "unknown stream", |status| status.violation_count == 1).await;
    // A service that ends the session tells both.
    lab.terminate(id, "because");
    while heard(&mut agent).await.kind != MessageType::ChannelClosed {}
    said(&mut channel, MessageType::ChannelClosed).await;
}

#[tokio::test]
async fn a_program_ends_its_session_or_dies() {
    let folder = tempfile::tempdir().unwrap();
    for (then, output, by_client) in [
        ("echo '{\"Status\":\"Success\",\"Output\":\"\"}'", "", true),
        ("echo noise; echo '{\"Status\":\"Failed\",\"Output\":\"no way\"}'; exit 0", "no way", false),
        ("exit 2", "document process failed unexpectedly", false),
    ] {
        let lab = with_program(folder.path(), then).await;
        start(&lab, 1).await;
        let status = wait(&lab, "end", |status| !status.ended.is_empty()).await;
        let ended = &status.ended[0];
        assert!(ended.output.starts_with(output) && ended.by_client == by_client, "{then}: {ended:?}");
    }
    // It is stopped, goes on, and is killed: only then its channel is gone.
    let lab = with_program(folder.path(), "while :; do echo >> \"$0.alive\"; sleep 0.02; done").await;
    let session = start(&lab, 1).await;
    let id = session["SessionId"].as_str().unwrap();
    let alive = folder.path().join("worker.alive");
    let lives = || std::fs::metadata(&alive).map_or(0, |file| file.len());
    let until_it_lives = async |more: u64| {
        let (from, began) = (lives(), Instant::now());
        while lives() < from + more {
            assert!(began.elapsed() < PATIENCE, "it does nothing");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    until_it_lives(3).await;
    assert!(lab.hang_agent(id, true));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let before = lives();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(lives(), before, "it was not stopped");
    assert!(lab.hang_agent(id, false));
    until_it_lives(3).await;
    assert!(lab.kill_agent(id, Report::Never));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let before = lives();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(lives(), before, "it was not killed");
    assert_eq!(lab.sessions(), [id]);
}
