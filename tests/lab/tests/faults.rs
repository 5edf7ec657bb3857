//! Each fault as a client meets it, and what tests can change while a lab runs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod client;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use autossm_lab::fault::{ApiFault, Call, Fault, Link, Loss, UpgradeFault};
use autossm_lab::options::{Document, Node};
use autossm_lab::wire::handshake::ChannelClosed;
use autossm_lab::wire::message::{Message, MessageType, flag, payload};
use autossm_lab::wire::mux::{Command, Decoder, Frame};
use client::{Channel, PATIENCE, TARGET, call, encoded, frames_until, lab, ok, pushed, resume, start, wait};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message as WsFrame;

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

/// All that was said before and during a freeze arrives after it, in order and once; new connections wait, too.
#[tokio::test]
async fn a_frozen_link_loses_nothing() {
    let lab = lab().await;
    let session = start(&lab, lab.echo_addr().port()).await;
    let mut channel = Channel::open_and_greet(&lab, &session).await;
    channel.data(1, encoded(&[Frame::control(Command::Syn, 3)])).await;
    wait(&lab, "connection", |status| status.dialled == 1).await;
    let (pieces, sent) = (300, (0..300_000).map(|at| (at % 251) as u8).collect::<Vec<_>>());
    let (mut sink, mut stream) = channel.socket.split();
    let upload = async {
        for (number, piece) in sent.chunks(sent.len() / pieces).enumerate() {
            if number == pieces / 3 {
                lab.set(Fault::Freeze);
            }
            let frames = encoded(&[Frame::push(3, piece.to_vec())]).freeze();
            let sequence = number as i64 + 2;
            let message = Message::stream(MessageType::InputStreamData, sequence, payload::DATA, frames);
            sink.send(WsFrame::Binary(message.encode())).await.unwrap();
        }
        let received = lab.status().sessions.values().next().unwrap().received;
        let new = tokio::time::timeout(Duration::from_millis(300), start(&lab, 1)).await;
        assert!(new.is_err(), "a call was answered over a frozen link");
        let meanwhile = lab.status().sessions.values().next().unwrap().received;
        // What had passed the line when it froze.
        assert!(meanwhile - received <= 64 && meanwhile < pieces as i64, "{received}, then {meanwhile}");
        lab.clear(Fault::Freeze);
    };
    let download = async {
        let (mut decoder, mut back, mut next) = (Decoder::default(), Vec::new(), 2);
        while back.len() < sent.len() {
            let WsFrame::Binary(bytes) = stream.next().await.unwrap().unwrap() else { continue };
            let message = Message::decode(&bytes).unwrap();
            if message.kind != MessageType::OutputStreamData || message.sequence != next {
                assert!(message.sequence < next, "message {} where {next} was next", message.sequence);
                continue;
            }
            next += 1;
            decoder.push(&message.payload);
            while let Some(frame) = decoder.next_frame().unwrap() {
                back.extend_from_slice(&frame.data);
            }
        }
        back
    };
    let ((), back) = tokio::time::timeout(PATIENCE, async { tokio::join!(upload, download) }).await.unwrap();
    assert!(back == sent);
    let status = lab.status();
    assert_eq!((status.closed, status.duplicates, status.violation_count), (0, 0, 0));
}

/// A client that hangs up during a freeze has still said what it said.
#[tokio::test]
async fn what_was_sent_into_a_freeze_arrives_after_its_sender_has_gone() {
    let lab = lab().await;
    let session = start(&lab, lab.addresses().destinations.sink.port()).await;
    let mut channel = Channel::open_and_greet(&lab, &session).await;
    lab.set(Fault::Freeze);
    let data = encoded(&[Frame::control(Command::Syn, 3), Frame::push(3, vec![7; 1000])]);
    channel.data(1, data).await;
    drop(channel);
    lab.clear(Fault::Freeze);
    wait(&lab, "bytes", |status| status.sunk == 1000).await;
    wait(&lab, "closed channel", |status| status.closed == 1).await;
}

/// For a while nothing arrives at either end, not even an acknowledgement, and the connection stays open.
#[tokio::test]
async fn a_lost_interval_loses_everything_in_it() {
    let lab = lab().await;
    let session = start(&lab, lab.echo_addr().port()).await;
    let mut channel = Channel::open_and_greet(&lab, &session).await;
    channel.data(1, encoded(&[Frame::control(Command::Syn, 3), Frame::push(3, "before")])).await;
    let mut decoder = Decoder::default();
    frames_until(&mut channel, &mut decoder, |frames| pushed(frames) == b"before").await;
    wait(&lab, "silence", |status| status.sessions.values().all(|s| s.unacknowledged == 0)).await;
    lab.set(Fault::LostMessages(Loss::of(1.0)));
    let lost = channel.data(2, encoded(&[Frame::push(3, "lost")])).await;
    wait(&lab, "lost message", |status| status.lost == 1).await;
    lab.clear_all();
    // Later ones are acknowledged at once, and wait.
    channel.data(3, encoded(&[Frame::push(3, " and later")])).await;
    while channel.acknowledged().await != 3 {}
    assert_eq!(lab.status().sessions.values().next().unwrap().received, 2);
    channel.send(&lost).await;
    let both = |frames: &[Frame]| pushed(frames) == b"lost and later";
    frames_until(&mut channel, &mut decoder, both).await;
    assert_eq!((lab.status().closed, lab.status().violation_count), (0, 0));
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
async fn the_agent_of_one_session_hangs_and_goes_on() {
    let lab = lab().await;
    let (session, other) = (start(&lab, 1).await, start(&lab, 1).await);
    let mut channel = Channel::open_and_greet(&lab, &session).await;
    let mut beside = Channel::open_and_greet(&lab, &other).await;
    wait(&lab, "silence", |status| status.sessions.values().all(|s| s.unacknowledged == 0)).await;
    let id = session["SessionId"].as_str().unwrap();
    assert!(lab.hang_agent(id, true));
    let ignored = channel.data(1, "").await;
    wait(&lab, "lost message", |status| status.lost == 1).await;
    beside.data(1, "").await;
    assert_eq!(beside.acknowledged().await, 1);
    assert!(lab.hang_agent(id, false));
    channel.send(&ignored).await;
    assert_eq!(channel.acknowledged().await, 1);
    assert!(!lab.hang_agent("nobody", true));
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
