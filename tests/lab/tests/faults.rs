//! Each fault as a client meets it, and each breach of the protocol as the lab sees it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod client;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use autossm_lab::Lab;
use autossm_lab::destination::{BANNER, SLOW_ANSWER, slow_answer};
use autossm_lab::fault::{ApiFault, Call, Fault, Link, Loss, UpgradeFault};
use autossm_lab::options::{Document, Node, Options};
use autossm_lab::status::Status;
use autossm_lab::wire::handshake::ChannelClosed;
use autossm_lab::wire::message::{Message, MessageType, flag, payload};
use autossm_lab::wire::mux::{Command, Decoder, Frame};
use bytes::BytesMut;
use client::{Channel, PATIENCE, TARGET, call, ok, resume, start};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message as WsFrame;

async fn lab() -> Lab {
    Lab::start(Options::default()).await.unwrap()
}

async fn wait(lab: &Lab, what: &str, condition: impl FnMut(&Status) -> bool) -> Status {
    lab.wait_for(what, PATIENCE, condition).await.unwrap()
}

fn encoded(frames: &[Frame]) -> BytesMut {
    let mut bytes = BytesMut::new();
    frames.iter().for_each(|frame| frame.encode(&mut bytes));
    bytes
}

/// Mux frames of the next stream messages, until one fulfils the condition.
async fn frames_until(
    channel: &mut Channel,
    decoder: &mut Decoder,
    done: impl Fn(&[Frame]) -> bool,
) -> Vec<Frame> {
    let mut frames = Vec::new();
    while !done(&frames) {
        let message = channel.output().await;
        if message.payload_type == payload::DATA {
            decoder.push(&message.payload);
        }
        while let Some(frame) = decoder.next_frame().unwrap() {
            frames.push(frame);
        }
    }
    frames
}

fn pushed(frames: &[Frame]) -> Vec<u8> {
    frames.iter().flat_map(|frame| frame.data.to_vec()).collect()
}

#[tokio::test]
async fn a_stream_reaches_its_destination_and_comes_back() {
    let lab = lab().await;
    let session = start(&lab, lab.echo_addr().port()).await;
    let mut channel = Channel::open_and_greet(&lab, &session).await;
    let sent: Vec<u8> = (0..5000).map(|at| at as u8).collect();
    let syn = Frame::control(Command::Syn, 3);
    channel.data(1, encoded(&[syn, Frame::push(3, sent.clone())])).await;
    let mut decoder = Decoder::default();
    let frames = frames_until(&mut channel, &mut decoder, |frames| pushed(frames).len() >= 5000).await;
    assert_eq!(pushed(&frames), sent);
    // The client's end of the stream ends it at both sides.
    channel.data(2, encoded(&[Frame::control(Command::Fin, 3)])).await;
    let frames = frames_until(&mut channel, &mut decoder, |frames| !frames.is_empty()).await;
    assert_eq!(frames, [Frame::control(Command::Fin, 3)]);
    let status = wait(&lab, "quiet", |status| status.sessions.values().all(|s| s.streams == 0)).await;
    assert_eq!((status.dialled, status.violation_count, status.unsigned_upgrades), (1, 0, 0));
}

#[tokio::test]
async fn destinations_have_their_habits() {
    let lab = lab().await;
    let destinations = lab.addresses().destinations;
    let session = start(&lab, destinations.slow.port()).await;
    let mut channel = Channel::open_and_greet(&lab, &session).await;
    channel.data(1, encoded(&[Frame::control(Command::Syn, 3), Frame::push(3, "GET\n")])).await;
    let fin = |frames: &[Frame]| frames.iter().any(|frame| frame.command == Command::Fin);
    let frames = frames_until(&mut channel, &mut Decoder::default(), fin).await;
    assert_eq!(pushed(&frames).len(), SLOW_ANSWER);
    assert!(pushed(&frames) == slow_answer());

    let session = start(&lab, destinations.banner.port()).await;
    let mut channel = Channel::open_and_greet(&lab, &session).await;
    channel.data(1, encoded(&[Frame::control(Command::Syn, 3)])).await;
    let frames = frames_until(&mut channel, &mut Decoder::default(), |frames| !frames.is_empty()).await;
    assert_eq!(pushed(&frames), BANNER);
}

/// smux has one receive buffer for a whole session.
#[tokio::test]
async fn a_destination_that_does_not_read_stops_the_whole_session() {
    let lab = lab().await;
    let session = start(&lab, lab.addresses().destinations.deaf.port()).await;
    let mut channel = Channel::open_and_greet(&lab, &session).await;
    channel.data(1, encoded(&[Frame::control(Command::Syn, 3)])).await;
    let piece = vec![0; 32 * 1024];
    let mut sequence = 2;
    // The kernel's buffers and the receive buffer fill up, then nothing moves any more.
    loop {
        let data = encoded(&[Frame::push(3, piece.clone())]);
        if tokio::time::timeout(Duration::from_secs(2), channel.data(sequence, data)).await.is_err() {
            break;
        }
        sequence += 1;
    }
    let received = lab.status().sessions.values().next().unwrap().received;
    assert!(received * 32 * 1024 > 4 << 20, "{received} messages");
    assert!(received < sequence, "{received} of {sequence} messages");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(lab.status().sessions.values().next().unwrap().received, received);
}

#[tokio::test]
async fn a_refused_destination_is_flagged() {
    let lab = lab().await;
    lab.set(Fault::DestinationRefused);
    let session = start(&lab, lab.echo_addr().port()).await;
    let mut channel = Channel::open_and_greet(&lab, &session).await;
    channel.data(1, encoded(&[Frame::control(Command::Syn, 3)])).await;
    assert_eq!(channel.output().await.flag(), Some(flag::CONNECT_TO_PORT_ERROR));
    let frames = frames_until(&mut channel, &mut Decoder::default(), |frames| !frames.is_empty()).await;
    assert_eq!(frames, [Frame::control(Command::Fin, 3)]);
}

#[tokio::test]
async fn a_token_opens_one_channel() {
    let lab = Lab::start(Options { cells_expire: true, ..Options::default() }).await.unwrap();
    let first = start(&lab, 1).await;
    let mut channel = Channel::open_and_greet(&lab, &first).await;
    assert!(Channel::open(&lab, &first).await.next().await.is_none(), "a used token");
    let second = resume(&lab, &first).await;
    assert!(Channel::open(&lab, &first).await.next().await.is_none(), "an old token");
    let mixed = json!({ "StreamUrl": first["StreamUrl"], "TokenValue": second["TokenValue"] });
    assert!(Channel::open(&lab, &mixed).await.next().await.is_none(), "an old URL");
    assert_eq!(lab.status().bad_tokens, 3);
    // The new channel takes the place of the old one.
    Channel::open(&lab, &second).await;
    while channel.next().await.is_some() {}
    assert_eq!(lab.status().opened, 2);
}

#[tokio::test]
async fn sessions_outlive_their_channels_and_repair_what_was_lost() {
    for pauses_agent in [true, false] {
        let lab = Lab::start(Options { pauses_agent, ..Options::default() }).await.unwrap();
        let session = start(&lab, lab.echo_addr().port()).await;
        let mut channel = Channel::open_and_greet(&lab, &session).await;
        channel.data(1, encoded(&[Frame::control(Command::Syn, 3), Frame::push(3, "one")])).await;
        let mut decoder = Decoder::default();
        frames_until(&mut channel, &mut decoder, |frames| pushed(frames) == b"one").await;
        let lost = channel.data(2, encoded(&[Frame::push(3, "two")])).await;
        wait(&lab, "message 2", |status| status.sessions.values().all(|s| s.received == 3)).await;
        assert_eq!(lab.abort_all(), 1);
        assert!(channel.next().await.is_none_or(|_| true));
        wait(&lab, "closed channel", |status| status.closed == 1).await;

        let mut channel = Channel::open(&lab, &resume(&lab, &session).await).await;
        channel.send(&lost).await;
        let frames = frames_until(&mut channel, &mut decoder, |frames| !frames.is_empty()).await;
        assert_eq!(pushed(&frames), b"two");
        wait(&lab, "duplicate", |status| status.duplicates == 1 && status.violation_count == 0).await;
    }
}

#[tokio::test]
async fn closes_carry_code_and_reason() {
    let lab = lab().await;
    let session = start(&lab, 1).await;
    let mut channel = Channel::open_and_greet(&lab, &session).await;
    assert!(lab.close(session["SessionId"].as_str().unwrap(), 1000, "Bye"));
    let frame = loop {
        if let WsFrame::Close(frame) = channel.socket.next().await.unwrap().unwrap() {
            break frame.unwrap();
        }
    };
    assert_eq!((u16::from(frame.code), frame.reason.as_str()), (1000, "Bye"));
    wait(&lab, "closed channel", |status| status.closed == 1).await;
    assert_eq!(lab.close_all(1000, "Bye"), 0);
}

#[tokio::test]
async fn a_session_ends_with_its_reason() {
    let lab = lab().await;
    let session = start(&lab, 1).await;
    let mut channel = Channel::open_and_greet(&lab, &session).await;
    lab.terminate_all("because");
    let closed = loop {
        let message = channel.next().await.unwrap();
        if message.kind == MessageType::ChannelClosed {
            break serde_json::from_slice::<ChannelClosed>(&message.payload).unwrap();
        }
    };
    assert_eq!((closed.output.as_str(), json!(closed.session_id)), ("because", session["SessionId"].clone()));
    assert!(channel.next().await.is_none());
    assert_eq!(resume(&lab, &session).await["TokenValue"], Value::Null);
    assert!(!lab.terminate(session["SessionId"].as_str().unwrap(), "again"));

    for (fault, words) in [
        (Fault::IdleTimeout(Duration::from_millis(300)), "inactivity"),
        (Fault::MaximumLife(Duration::from_millis(300)), "maximum session duration"),
    ] {
        start(&lab, 1).await;
        lab.set(fault);
        let ended = wait(&lab, "end", |status| status.sessions.is_empty()).await.ended;
        assert!(ended.last().unwrap().output.contains(words));
        lab.clear(fault);
    }
    let session = start(&lab, 1).await;
    ok(&lab, "TerminateSession", json!({ "SessionId": session["SessionId"] })).await;
    assert!(lab.status().ended.last().unwrap().by_client);
    let mut channel = Channel::open_and_greet(&lab, &start(&lab, 1).await).await;
    let terminate = flag::TERMINATE_SESSION.to_be_bytes().to_vec();
    channel.send(&Message::stream(MessageType::InputStreamData, 1, payload::FLAG, terminate)).await;
    wait(&lab, "end", |status| status.sessions.is_empty()).await;
}

#[tokio::test]
async fn calls_fail_as_told() {
    let lab = lab().await;
    let input = json!({ "Target": TARGET });
    for (fault, status, words) in [
        (ApiFault::Throttled, 400, "ThrottlingException"),
        (ApiFault::Denied, 400, "not authorized to perform: ssm:StartSession"),
        (ApiFault::Forbidden, 403, "Forbidden"),
        (ApiFault::Expired, 400, "ExpiredTokenException"),
        (ApiFault::TargetNotConnected, 400, "mi-0123456789abcdef0 is not connected."),
        (ApiFault::Internal, 500, "InternalServerError"),
        (ApiFault::Garbage, 200, "<html>"),
    ] {
        lab.set(Fault::Api(Call::Start, fault));
        let answer = call(&lab, "StartSession", input.clone()).await.unwrap();
        assert!(answer.0 == status && answer.1.contains(words), "{answer:?}");
    }
    let start = lab.status().start;
    assert_eq!((start.processed, start.succeeded), (7, 0));
    lab.clear_all();
    let session = ok(&lab, "StartSession", input).await;
    lab.set(Fault::Api(Call::Resume, ApiFault::NoToken));
    assert_eq!(resume(&lab, &session).await["TokenValue"], Value::Null);
    for (input, words) in [
        (json!({ "Target": "x" }), "ValidationException"),
        (json!({ "Target": TARGET, "DocumentName": "none" }), "InvalidDocument"),
        (json!({ "Target": TARGET, "Parameters": { "x": ["1"] } }), "InvalidParameters"),
    ] {
        assert!(call(&lab, "StartSession", input).await.unwrap().1.contains(words), "{words}");
    }
}

/// A call is pending in a black hole, one client gives up, the other one waits.
#[tokio::test]
async fn a_black_hole_swallows_and_gives_back_only_to_who_waited() {
    let lab = lab().await;
    let session = start(&lab, lab.echo_addr().port()).await;
    let mut channel = Channel::open_and_greet(&lab, &session).await;
    lab.set(Fault::BlackHole);
    channel.data(1, encoded(&[Frame::control(Command::Syn, 3), Frame::push(3, "x")])).await;
    let abandoned = tokio::time::timeout(Duration::from_millis(300), start(&lab, 1)).await;
    assert!(abandoned.is_err(), "answered out of a black hole");
    let patient = start(&lab, 2);
    tokio::pin!(patient);
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut patient).await.is_err());
    assert_eq!(lab.status().sessions.values().next().unwrap().received, 1);
    lab.clear(Fault::BlackHole);
    patient.await;
    let frames = frames_until(&mut channel, &mut Decoder::default(), |frames| !frames.is_empty()).await;
    assert_eq!(pushed(&frames), b"x");
    assert_eq!(lab.status().start.processed, 2);
}

#[tokio::test]
async fn a_silent_call_is_answered_later_or_never_counted() {
    let lab = lab().await;
    let silence = Fault::Api(Call::Start, ApiFault::Silence);
    lab.set(silence);
    assert!(tokio::time::timeout(Duration::from_millis(300), start(&lab, 1)).await.is_err());
    let (patient, ()) =
        tokio::join!(start(&lab, 1), async { drop(lab.set_for(silence, Duration::from_millis(200))) });
    assert!(patient["TokenValue"].is_string());
    assert_eq!(lab.status().start.processed, 1);
}

#[tokio::test]
async fn refusing_resets_what_is_open_and_what_is_new() {
    let lab = lab().await;
    let session = start(&lab, 1).await;
    let mut channel = Channel::open_and_greet(&lab, &session).await;
    let end = lab.set_for(Fault::Refuse, Duration::from_millis(500));
    assert!(matches!(channel.socket.next().await, None | Some(Err(_))));
    assert!(call(&lab, "StartSession", json!({ "Target": TARGET })).await.is_err());
    assert!(Channel::connect(&lab, &session).await.is_err());
    end.await.unwrap();
    let mut channel = Channel::open(&lab, &resume(&lab, &session).await).await;
    channel.data(1, "").await;
    assert_eq!(channel.acknowledged().await, 1);
    let status = lab.status();
    assert_eq!((status.start.processed, status.resume.processed, status.upgrades), (1, 1, 2));
}

#[tokio::test]
async fn upgrades_are_refused_or_stalled() {
    let lab = lab().await;
    let session = start(&lab, 1).await;
    lab.set(Fault::Upgrades(UpgradeFault::Refused(503)));
    let error = Channel::connect(&lab, &session).await.err().unwrap();
    assert!(error.to_string().contains("503"), "{error}");
    lab.set(Fault::Upgrades(UpgradeFault::Stalled));
    let stalled = Channel::connect(&lab, &session);
    assert!(tokio::time::timeout(Duration::from_millis(200), stalled).await.is_err());
    lab.clear_all();
    Channel::open_and_greet(&lab, &session).await;
}

#[tokio::test]
async fn a_slow_link_is_slow() {
    let lab = lab().await;
    let session = start(&lab, lab.echo_addr().port()).await;
    let mut channel = Channel::open_and_greet(&lab, &session).await;
    lab.set(Fault::SlowLink(Link { latency: Duration::from_millis(150), bandwidth: 0 }));
    let begun = Instant::now();
    channel.data(1, "").await;
    channel.acknowledged().await;
    assert!(begun.elapsed() >= Duration::from_millis(300), "{:?}", begun.elapsed());
    lab.set(Fault::SlowLink(Link { latency: Duration::ZERO, bandwidth: 50_000 }));
    let begun = Instant::now();
    let data = encoded(&[Frame::control(Command::Syn, 3), Frame::push(3, vec![7; 25_000])]);
    channel.data(2, data).await;
    assert_eq!(channel.acknowledged().await, 2);
    assert!(begun.elapsed() >= Duration::from_millis(450), "{:?}", begun.elapsed());
}

/// The agent loses messages and acknowledgements; resending the oldest repairs it all.
#[tokio::test]
async fn lost_messages_are_repaired() {
    let lab = lab().await;
    let session = start(&lab, lab.echo_addr().port()).await;
    let mut channel = Channel::open_and_greet(&lab, &session).await;
    let lossy = Loss { output: 0.3, acknowledgements_in: 0.3, ..Loss::default() };
    lab.set(Fault::LostMessages(lossy));
    let sent: Vec<u8> = (0..20_000).map(|at| (at % 251) as u8).collect();
    channel.data(1, encoded(&[Frame::control(Command::Syn, 3), Frame::push(3, sent.clone())])).await;
    // Acknowledges every copy, as a gateway has to, and puts them in order.
    let (mut early, mut next, mut decoder, mut received) =
        (BTreeMap::new(), 2, Decoder::default(), Vec::new());
    while received.len() < sent.len() {
        let message = channel.output().await;
        early.insert(message.sequence, message.payload);
        while let Some(bytes) = early.remove(&next) {
            decoder.push(&bytes);
            next += 1;
        }
        while let Some(frame) = decoder.next_frame().unwrap() {
            received.extend_from_slice(&frame.data);
        }
        early.retain(|sequence, _| *sequence >= next);
    }
    assert!(received == sent);
    assert!(lab.status().resent > 0);
    lab.set(Fault::LostMessages(Loss { input: 1.0, ..Loss::default() }));
    let before = lab.status().lost;
    let lost = channel.data(2, "").await;
    wait(&lab, "lost message", |status| status.lost == before + 1).await;
    lab.clear_all();
    channel.send(&lost).await;
    assert_eq!(channel.acknowledged().await, 2);
}

#[tokio::test]
async fn an_agent_goes_away_and_comes_back() {
    let lab = lab().await;
    let session = start(&lab, 1).await;
    let mut channel = Channel::open_and_greet(&lab, &session).await;
    wait(&lab, "silence", |status| status.sessions.values().all(|s| s.unacknowledged == 0)).await;
    lab.set(Fault::AgentAway);
    while channel.next().await.unwrap().kind != MessageType::PausePublication {}
    let ignored = channel.data(1, "").await;
    wait(&lab, "lost message", |status| status.lost == 1).await;
    lab.clear_all();
    while channel.next().await.unwrap().kind != MessageType::StartPublication {}
    channel.send(&ignored).await;
    assert_eq!(channel.acknowledged().await, 1);
    assert_eq!(lab.status().duplicates, 0);
}

#[tokio::test]
async fn breaches_of_the_protocol_are_recorded() {
    let lab =
        Lab::start(Options { gap_limit: Duration::from_millis(300), ..Options::default() }).await.unwrap();
    let session = start(&lab, 1).await;
    let mut channel = Channel::open_and_greet(&lab, &session).await;
    let mut violations = 0;
    macro_rules! expect {
        ($words:expr) => {
            violations += 1;
            let status = wait(&lab, $words, |status| status.violation_count >= violations).await;
            let last = status.violations.last().unwrap();
            assert!(last.contains($words) && status.violation_count == violations, "{:?}", status.violations);
        };
    }
    let mut damaged =
        Message::stream(MessageType::InputStreamData, 1, payload::DATA, "abc").encode().to_vec();
    damaged[122] = b'x';
    channel.socket.send(WsFrame::binary(damaged)).await.unwrap();
    expect!("digest");
    let undated =
        Message { created: 0, ..Message::stream(MessageType::InputStreamData, 1, payload::DATA, "") };
    channel.send(&undated).await;
    expect!("date");
    channel.data(1, "").await;
    channel.data(1, "").await;
    expect!("two different messages");
    channel.data(-1, "").await;
    expect!("number -1");
    channel
        .send(&Message::stream(MessageType::OutputStreamData, 99, payload::DATA, "").acknowledgement())
        .await;
    expect!("never sent");
    channel.send(&Message::stream(MessageType::OutputStreamData, 0, payload::DATA, "")).await;
    expect!("a client sent output_stream_data");
    channel.data(3, "").await;
    expect!("message 2 has been missing");
    channel.data(2, encoded(&[Frame::push(9, "x")])).await;
    expect!("unknown stream 9");
    channel.data(4, encoded(&[Frame::control(Command::Syn, 4)])).await;
    expect!("stream 4 cannot be opened");
    channel.data(5, &b"GET / HTTP/1.1"[..]).await;
    expect!("no smux frame");
    channel.socket.send(WsFrame::text("{}")).await.unwrap();
    expect!("text message");
    let mut early = Channel::open(&lab, &start(&lab, 1).await).await;
    early.data(0, "x").await;
    expect!("before the handshake");
}

#[tokio::test]
async fn documents_nodes_and_hosts_can_be_changed() {
    let lab = lab().await;
    for at in 0..12 {
        lab.set_node(Node::tagged(&format!("mi-{at:017x}"), "Role", "bastion"));
    }
    lab.set_node(Node { online: false, ..Node::tagged(TARGET, "Role", "bastion") });
    let filters =
        json!([{ "Key": "tag:Role", "Values": ["bastion"] }, { "Key": "PingStatus", "Values": ["Online"] }]);
    let first = ok(&lab, "DescribeInstanceInformation", json!({ "Filters": filters })).await;
    let input = json!({ "Filters": filters, "NextToken": first["NextToken"] });
    let second = ok(&lab, "DescribeInstanceInformation", input).await;
    let count = |page: &Value| page["InstanceInformationList"].as_array().unwrap().len();
    assert_eq!((count(&first), count(&second), &second["NextToken"]), (10, 2, &Value::Null));
    let (status, body) = call(&lab, "StartSession", json!({ "Target": TARGET })).await.unwrap();
    assert!(status == 400 && body.contains("TargetNotConnected"), "{body}");

    lab.set_document(
        "Own",
        Document::port([("portNumber", Some("5432")), ("localPortNumber", Some("0")), ("host", Some("db"))]),
    );
    lab.set_host("db", vec![lab.echo_addr()]);
    let input = json!({ "Target": "i-0123456789abcdef0", "DocumentName": "Own", "Reason": "test" });
    let session = ok(&lab, "StartSession", input).await;
    // A session keeps the address of its start.
    lab.set_host("db", vec![]);
    let mut channel = Channel::open_and_greet(&lab, &session).await;
    channel.data(1, encoded(&[Frame::control(Command::Syn, 3), Frame::push(3, "x")])).await;
    let frames = frames_until(&mut channel, &mut Decoder::default(), |frames| !frames.is_empty()).await;
    assert_eq!(pushed(&frames), b"x");
    let document = ok(&lab, "GetDocument", json!({ "Name": "Own" })).await;
    assert!(document["Content"].as_str().unwrap().contains("\"sessionType\":\"Port\""));
    let sessions = ok(&lab, "DescribeSessions", json!({ "State": "Active" })).await;
    assert_eq!(sessions["Sessions"][0]["Reason"], "test");

    let shell = ok(&lab, "StartSession", json!({ "Target": "i-0123456789abcdef0" })).await;
    let request = Channel::open(&lab, &shell).await.output().await;
    assert!(String::from_utf8_lossy(&request.payload).contains("\"Standard_Stream\""));
}

#[tokio::test]
async fn an_unanswered_handshake_ends_the_session() {
    let handshake_timeout = Duration::from_millis(300);
    let lab = Lab::start(Options { handshake_timeout, ..Options::default() }).await.unwrap();
    start(&lab, 1).await;
    let status = wait(&lab, "end", |status| !status.ended.is_empty()).await;
    assert!(status.ended[0].output.starts_with("Handshake timed out."));
}

#[tokio::test]
async fn a_dropped_lab_takes_everything_with_it() {
    let lab = lab().await;
    let addresses = lab.addresses();
    let mut channel = Channel::open_and_greet(&lab, &start(&lab, 1).await).await;
    drop(lab);
    assert!(matches!(channel.socket.next().await, None | Some(Err(_))));
    let gone = async {
        while tokio::net::TcpStream::connect(addresses.api).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
}

/// Not even a client that reads nothing keeps the service from closing.
#[tokio::test]
async fn a_channel_that_is_not_read_can_be_closed() {
    let lab = lab().await;
    let session = start(&lab, lab.addresses().destinations.endless.port()).await;
    let mut channel = Channel::open_and_greet(&lab, &session).await;
    channel.data(1, encoded(&[Frame::control(Command::Syn, 3)])).await;
    // Far more than fits on the way: the agent is held back by what is not read.
    let mut before = -1;
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let sent = lab.status().sessions.values().next().unwrap().sent;
        if sent == before {
            break;
        }
        before = sent;
    }
    assert_eq!(lab.close_all(1000, "Bye"), 1);
    wait(&lab, "closed channel", |status| status.closed == 1).await;
    let mut channel = Channel::open(&lab, &resume(&lab, &session).await).await;
    channel.output().await;
}

/// A client that does what the plugin and a gateway do together: keeps its messages until they are acknowledged, sends
/// them again after each resumption, acknowledges duplicates.
#[tokio::test]
async fn nothing_is_lost_or_doubled_over_many_lost_channels() {
    const PIECES: i64 = 400;
    let lab = lab().await;
    let mut session = start(&lab, lab.echo_addr().port()).await;
    let mut channel = Channel::open_and_greet(&lab, &session).await;
    let piece = |number: i64| vec![number as u8; 700];
    let expected: Vec<u8> = (0..PIECES).flat_map(piece).collect();
    let (mut kept, mut early) = (BTreeMap::new(), BTreeMap::new());
    let (mut next_out, mut next_in, mut decoder, mut received) = (1, 2, Decoder::default(), Vec::new());
    let (mut cut_due, mut cuts) = (false, 0);
    while received.len() < expected.len() {
        let mut alive = true;
        if cut_due {
            // Goes on until one more channel has died: this one may just be being opened again.
            if cuts % 2 == 0 {
                lab.abort_all()
            } else {
                lab.close_all(1000, "Bye")
            };
            let closed = lab.status().closed;
            cut_due = closed == cuts;
            cuts = closed;
        } else if next_out <= PIECES {
            let mut frames = vec![Frame::push(3, piece(next_out - 1))];
            if next_out == 1 {
                frames.insert(0, Frame::control(Command::Syn, 3));
            }
            let message = Message::stream(
                MessageType::InputStreamData,
                next_out,
                payload::DATA,
                encoded(&frames).freeze(),
            );
            alive = channel.socket.send(WsFrame::Binary(message.encode())).await.is_ok();
            kept.insert(next_out, message);
            next_out += 1;
            cut_due = next_out % 30 == 0;
        }
        tokio::select! {
            _ = tokio::time::sleep(Duration::from_millis(2)), if cut_due || next_out <= PIECES => {}
            frame = channel.socket.next() => match frame {
                Some(Ok(WsFrame::Binary(bytes))) => {
                    let message = Message::decode(&bytes).unwrap();
                    if message.kind == MessageType::Acknowledge {
                        kept.remove(&message.acknowledged().unwrap().sequence);
                    } else if message.kind == MessageType::OutputStreamData {
                        let acknowledgement = message.acknowledgement().encode();
                        alive &= channel.socket.send(WsFrame::Binary(acknowledgement)).await.is_ok();
                        early.insert(message.sequence, message.payload);
                    }
                }
                Some(Ok(WsFrame::Close(_)) | Err(_)) | None => alive = false,
                Some(Ok(_)) => {}
            }
        }
        while let Some(bytes) = early.remove(&next_in) {
            decoder.push(&bytes);
            next_in += 1;
        }
        early.retain(|sequence, _| *sequence > next_in);
        while let Some(frame) = decoder.next_frame().unwrap() {
            received.extend_from_slice(&frame.data);
        }
        if !alive {
            session = resume(&lab, &session).await;
            channel = Channel::open(&lab, &session).await;
            for message in kept.values() {
                // A failure shows when the channel is read.
                let _ = channel.socket.send(WsFrame::Binary(message.encode())).await;
            }
        }
    }
    assert!(received == expected);
    let status = lab.status();
    assert_eq!(
        (status.violation_count, status.bad_tokens, status.never_acknowledged),
        (0, 0, 0),
        "{:?}",
        status.violations
    );
    assert!(cuts >= 13 && status.opened > cuts, "{cuts} cuts, {} channels", status.opened);
}
