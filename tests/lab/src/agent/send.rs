//! What the agent sends: numbered, at its pace and without a window; and again, one message at each tick.

use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

use super::handshake::Handshake;
use super::{Agent, Output, PAYLOAD, RESEND_INTERVAL};
use crate::wire::message::payload;

impl Agent {
    /// Sends what there is, in order.
    pub(super) async fn send(self: Arc<Self>, mut outbox: mpsc::Receiver<Output>) {
        let (mut paused, mut faults) = (self.paused.subscribe(), self.state.faults.subscribe());
        let mut hangs = self.hangs.subscribe();
        let mut next = tokio::time::Instant::now();
        let (mut bytes, mut own) = (BytesMut::new(), None);
        // How many bytes are to be sent before a stream has ended.
        let mut ends: Vec<usize> = Vec::new();
        loop {
            while self.rests() {
                tokio::select! {
                    _ = paused.changed() => {}
                    _ = faults.changed() => {}
                    _ = hangs.changed() => {}
                }
            }
            let said = ends.extract_if(.., |before| *before == 0).count();
            if said > 0 {
                self.state.count(|status| status.session(&self.session, |session| session.streams -= said));
            }
            if bytes.is_empty() && own.is_none() {
                match outbox.recv().await {
                    Some(Output::Frame(frame)) => bytes.extend_from_slice(&frame),
                    Some(Output::Message(kind, content)) => own = Some((kind, content)),
                    Some(Output::StreamEnded) => {
                        ends.push(0);
                        continue;
                    }
                    None => return,
                }
            }
            while bytes.len() < PAYLOAD && own.is_none() {
                match outbox.try_recv() {
                    Ok(Output::Frame(frame)) => bytes.extend_from_slice(&frame),
                    Ok(Output::Message(kind, content)) => own = Some((kind, content)),
                    Ok(Output::StreamEnded) => ends.push(bytes.len()),
                    Err(_) => break,
                }
            }
            if let Some((kind, content)) = own.take_if(|_| bytes.is_empty()) {
                self.send_one(kind, content, &mut next).await;
            } else {
                let cut = bytes.split_to(bytes.len().min(PAYLOAD)).freeze();
                ends.iter_mut().for_each(|before| *before = before.saturating_sub(cut.len()));
                self.send_one(payload::DATA, cut, &mut next).await;
            }
        }
    }

    async fn send_one(&self, kind: u32, content: Bytes, next: &mut tokio::time::Instant) {
        let content = match self.cipher() {
            Some(cipher) if kind == payload::DATA => cipher.seal(&content),
            _ => content,
        };
        if kind == payload::DATA {
            self.relay.touch();
        }
        let (encoded, sent, unacknowledged) = {
            let mut outgoing = self.outgoing();
            (outgoing.push(Instant::now(), kind, content), outgoing.sent(), outgoing.unacknowledged())
        };
        if kind == payload::HANDSHAKE_COMPLETE {
            self.handshake.send_replace(Handshake::Complete);
        }
        self.state.count(|status| {
            status.session(&self.session, |session| {
                session.sent = sent;
                session.unacknowledged = unacknowledged;
            });
        });
        // Told to pause in between: kept for resending, as the real agent does.
        if !self.rests() {
            self.transmit(encoded).await;
        }
        // Its pause after each message, kept on the average: timers are coarser than that.
        let (now, pace) = (tokio::time::Instant::now(), self.state.options.pace);
        *next = (*next).max(now - 4 * pace) + pace;
        if *next > now + pace {
            tokio::time::sleep_until(*next).await;
        }
    }

    /// Sends the oldest message again that is not acknowledged.
    pub(super) async fn repeat(self: Arc<Self>) {
        let mut tick = tokio::time::interval(RESEND_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if self.rests() {
                continue;
            }
            let due = self.outgoing().due(Instant::now());
            if let Some(resend) = due {
                self.state.count(|status| {
                    status.resent += 1;
                    status.never_acknowledged += u64::from(resend.hopeless);
                });
                self.transmit(resend.encoded).await;
            }
        }
    }
}
