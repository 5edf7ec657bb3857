//! The data channel and the agent behind it, driven by hand; and each breach of the protocol as the lab sees it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod client;

use std::collections::BTreeMap;
use std::time::Duration;

use autossm_lab::Lab;
use autossm_lab::destination::{BANNER, SLOW_ANSWER, slow_answer};
use autossm_lab::fault::Fault;
use autossm_lab::options::Options;
use autossm_lab::wire::message::{Message, MessageType, flag, payload};
use autossm_lab::wire::mux::{Command, Decoder, Frame};
use client::{Channel, encoded, frames_until, lab, pushed, resume, start, wait};
use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio_tungstenite::tungstenite::Message as WsFrame;

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
async fn an_unanswered_handshake_ends_the_session() {
    let handshake_timeout = Duration::from_millis(300);
    let lab = Lab::start(Options { handshake_timeout, ..Options::default() }).await.unwrap();
    start(&lab, 1).await;
    let status = wait(&lab, "end", |status| !status.ended.is_empty()).await;
    let words = &status.ended[0].output;
    assert!(
        words.starts_with("\n----------ERROR-------\nEncountered error")
            && words.contains("Handshake timed out.")
    );
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
