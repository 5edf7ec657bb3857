//! The data channel: numbered messages, acknowledgements and resending, as the stock plugin does them, faults included.
//!
//! - A message that could not be sent is neither kept nor numbered: its bytes are lost and its sender gives up.
//! - Data is acknowledged after it was taken in. If the acknowledgement cannot be sent, the message counts as not
//!   received, and is taken in a second time when the agent sends it again.
//! - Duplicates are dropped without another acknowledgement.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Uri;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::api::Api;
use super::console::{Level, log, print, print_bytes};
use super::retry::Schedule;
use super::version::Version;
use super::websocket::{BINARY, Connection};
use crate::wire::cipher::Cipher;
use crate::wire::handshake::ChannelClosed;
use crate::wire::message::{Message, MessageType, flag, payload};

/// Messages kept until they are acknowledged; the oldest is dropped for one more.
const OUTGOING: usize = 10_000;
/// Messages that wait for one before them.
const INCOMING: usize = 10_000;
/// How often the oldest unacknowledged message is looked at.
const RESEND_INTERVAL: Duration = Duration::from_millis(100);
/// After as many resends of one message the session is terminated.
const RESEND_ATTEMPTS: u32 = 3000;
const CLOCK_GRANULARITY: f64 = 0.01;
const LONGEST_RETRANSMISSION: Duration = Duration::from_secs(1);

/// One session's data channel.
pub struct DataChannel {
    pub(super) session: String,
    pub(super) target: String,
    pub(super) url: Mutex<Uri>,
    pub(super) token: Mutex<String>,
    pub(super) client: Uuid,
    pub(super) version: String,
    pub(super) line: Version,
    pub(super) api: Api,
    pub(super) schedule: Schedule,
    /// Whether messages may be sent; false from the plugin's own close on until the next opening.
    pub(super) open: AtomicBool,
    pub(super) connection: Mutex<Option<Arc<Connection>>>,
    pub(super) handshake: Mutex<Handshake>,
    /// Set where the agent asks for encryption.
    pub(super) cipher: OnceLock<Cipher>,
    /// Told once, whether the kind of session is known.
    pub(super) kind_known: mpsc::Sender<bool>,
    /// Where the session's data goes, once the session runs.
    pub(super) consumer: OnceLock<Consumer>,
    /// Removed when the session ends in an orderly way.
    pub(super) socket_file: OnceLock<PathBuf>,
    /// The program is to end.
    pub(super) ended: CancellationToken,
    numbers: Mutex<Numbers>,
}

/// What the agent has said of itself and the session.
#[derive(Debug, Default)]
pub(super) struct Handshake {
    pub(super) agent_version: String,
    /// `Port` or `Standard_Stream`.
    pub(super) kind: Option<&'static str>,
    pub(super) properties: Value,
    /// Data has come; without a handshake before it the agent is an old one, with a shell.
    pub(super) data_seen: bool,
}

/// Where the session's data goes.
pub enum Consumer {
    /// Into the mux of a port session.
    Mux(tokio::sync::Mutex<OwnedWriteHalf>),
    /// To stdout.
    Stdout,
}

/// Both directions' numbers.
struct Numbers {
    next: i64,
    outgoing: VecDeque<Outgoing>,
    expected: i64,
    incoming: HashMap<i64, Message>,
    times: RoundTrip,
}

/// A message sent and not acknowledged.
struct Outgoing {
    sequence: i64,
    bytes: Bytes,
    /// The first sending: resends do not change it.
    sent: Instant,
    resent: u32,
}

/// When an unacknowledged message is sent again, from the round trips seen.
#[derive(Clone, Copy, Debug)]
struct RoundTrip {
    mean: f64,
    variation: f64,
    retransmission: Duration,
}

impl RoundTrip {
    fn new() -> Self {
        Self { mean: 0.1, variation: 0.0, retransmission: Duration::from_millis(200) }
    }

    fn seen(&mut self, round_trip: Duration) {
        let round_trip = round_trip.as_secs_f64();
        self.variation = 0.75 * self.variation + 0.25 * (self.mean - round_trip).abs();
        self.mean = 0.875 * self.mean + 0.125 * round_trip;
        let wait = self.mean + (4.0 * self.variation).max(CLOCK_GRANULARITY);
        self.retransmission = Duration::from_secs_f64(wait.min(LONGEST_RETRANSMISSION.as_secs_f64()));
    }
}

/// The one change that the plugin makes to data, meant for Windows shells and made in every session: a payload that
/// is nothing but a line feed becomes a carriage return.
fn lone_line_feed(data: Bytes) -> Bytes {
    if data.as_ref() == b"\n" { Bytes::from_static(b"\r") } else { data }
}

impl DataChannel {
    /// A channel that is not open yet; `kind_known` is told once when the handshake is over.
    pub fn new(
        start: super::command::Start,
        url: Uri,
        version: String,
        kind_known: mpsc::Sender<bool>,
    ) -> Arc<Self> {
        let line = Version::parse(&version);
        let numbers = Numbers {
            next: 0,
            outgoing: VecDeque::new(),
            expected: 0,
            incoming: HashMap::new(),
            times: RoundTrip::new(),
        };
        Arc::new(Self {
            session: start.session.session_id,
            target: start.target,
            url: Mutex::new(url),
            token: Mutex::new(start.session.token_value),
            client: Uuid::new_v4(),
            version,
            api: Api { region: start.region, endpoint: start.endpoint, new_sdk: line.has_new_sdk() },
            line,
            schedule: Schedule::draw(),
            open: AtomicBool::new(false),
            connection: Mutex::new(None),
            handshake: Mutex::new(Handshake::default()),
            cipher: OnceLock::new(),
            kind_known,
            consumer: OnceLock::new(),
            socket_file: OnceLock::new(),
            ended: CancellationToken::new(),
            numbers: Mutex::new(numbers),
        })
    }

    /// Ends the program with status 0. Never returns, so that nothing else is done meanwhile.
    pub async fn stop(&self) {
        if let Some(file) = self.socket_file.get() {
            // Whether it is still there does not matter.
            drop(std::fs::remove_file(file));
        }
        self.ended.cancel();
        std::future::pending().await
    }

    /// Sends one numbered message and keeps it until it is acknowledged.
    ///
    /// # Errors
    /// It could not be sent, and is lost; in words.
    pub async fn send_input(&self, payload_type: u32, data: impl Into<Bytes>) -> Result<(), String> {
        let sequence = self.numbers().next;
        let data = match (lone_line_feed(data.into()), self.cipher.get()) {
            (data, Some(cipher)) if payload_type == payload::DATA => cipher.seal(&data),
            (data, _) => data,
        };
        let message = Message::stream(MessageType::InputStreamData, sequence, payload_type, data);
        let bytes = message.encode();
        self.send(BINARY, &bytes)
            .await
            .inspect_err(|error| log(Level::Error, &format!("Error sending stream data message {error}")))?;
        let mut numbers = self.numbers();
        if numbers.outgoing.len() == OUTGOING {
            numbers.outgoing.pop_front();
        }
        numbers.outgoing.push_back(Outgoing { sequence, bytes, sent: Instant::now(), resent: 0 });
        numbers.next += 1;
        Ok(())
    }

    /// Sends a flag to the agent, see [`flag`].
    ///
    /// # Errors
    /// As [`DataChannel::send_input`].
    pub async fn send_flag(&self, flag: u32) -> Result<(), String> {
        self.send_input(payload::FLAG, flag.to_be_bytes().to_vec()).await
    }

    /// Sends the oldest unacknowledged message again and again, until one of them was resent too often.
    pub async fn resend(self: Arc<Self>) {
        let (exhausted, mut asked) = mpsc::channel(1);
        let channel = self.clone();
        tokio::spawn(async move {
            // Terminates the session once. Kept alive afterwards with its place for one more word, so that the
            // resending is stuck for good with the word after that.
            if asked.recv().await.is_some() {
                channel.terminate().await;
            }
            std::future::pending::<()>().await;
            drop(asked);
        });
        loop {
            tokio::time::sleep(RESEND_INTERVAL).await;
            let Some((bytes, resent, sequence)) = self.due() else {
                continue;
            };
            if resent >= RESEND_ATTEMPTS {
                log(Level::Warn, &format!("Message {sequence} was resent over {RESEND_ATTEMPTS} times."));
                // The receiver is never dropped.
                let _ = exhausted.send(()).await;
            }
            if let Err(error) = self.send(BINARY, &bytes).await {
                log(Level::Error, &format!("Unable to send stream data message: {error}"));
            }
        }
    }

    /// The oldest unacknowledged message, if it is time to send it again; its counter goes up.
    fn due(&self) -> Option<(Bytes, u32, i64)> {
        let mut numbers = self.numbers();
        let wait = numbers.times.retransmission;
        let oldest = numbers.outgoing.front_mut().filter(|oldest| oldest.sent.elapsed() > wait)?;
        oldest.resent += 1;
        Some((oldest.bytes.clone(), oldest.resent - 1, oldest.sequence))
    }

    async fn terminate(&self) {
        let session = &self.session;
        log(
            Level::Error,
            &format!("Terminating session {session} as the stream data was not processed before timeout."),
        );
        if let Err(error) = self.api.terminate(session).await {
            log(Level::Error, &format!("Terminate Session failed: {error}"));
            log(Level::Error, &format!("Unable to terminate session upon stream data timeout. {error}"));
        }
    }

    /// Takes in one binary message. What cannot be understood is passed over; so are the errors of taking it in, which
    /// leave the message to be sent again.
    pub(super) async fn receive(&self, raw: Bytes) {
        let message = match Message::decode(&raw) {
            Ok(message) => message,
            Err(error) => return log(Level::Error, &format!("Cannot deserialize raw message: {error}")),
        };
        match message.kind {
            MessageType::OutputStreamData => {
                if let Err(error) = self.receive_output(message).await {
                    log(Level::Error, &format!("Failed to process stream data message: {error}"));
                }
            }
            MessageType::Acknowledge => self.acknowledged(&message),
            MessageType::ChannelClosed => self.closed_by_service(&message).await,
            MessageType::StartPublication | MessageType::PausePublication | MessageType::InputStreamData => {}
        }
    }

    async fn closed_by_service(&self, message: &Message) {
        let session = &self.session;
        let closed: Option<ChannelClosed> = serde_json::from_slice(&message.payload).ok();
        match closed.map(|closed| closed.output).filter(|reason| !reason.is_empty()) {
            Some(reason) => print(&format!("\n\nSessionId: {session} : {reason}\n\n")),
            None => print(&format!("\n\nExiting session with sessionId: {session}.\n\n")),
        }
        self.stop().await;
    }

    fn acknowledged(&self, message: &Message) {
        let Ok(acknowledgement) = message.acknowledged() else {
            return log(Level::Error, "Cannot deserialize payload to AcknowledgeMessage");
        };
        let mut numbers = self.numbers();
        let at = numbers.outgoing.iter().position(|sent| sent.sequence == acknowledgement.sequence);
        if let Some(sent) = at.and_then(|at| numbers.outgoing.remove(at)) {
            numbers.times.seen(sent.sent.elapsed());
        }
    }

    async fn receive_output(&self, message: Message) -> Result<(), String> {
        let expected = self.numbers().expected;
        if message.sequence > expected {
            if self.numbers().incoming.len() < INCOMING {
                self.acknowledge(&message).await?;
                self.numbers().incoming.insert(message.sequence, message);
            }
            return Ok(());
        }
        if message.sequence < expected {
            return Ok(());
        }
        match message.payload_type {
            payload::HANDSHAKE_REQUEST => {
                self.acknowledge(&message).await?;
                self.answer_handshake(&message).await?;
            }
            payload::CHALLENGE => {
                self.acknowledge(&message).await?;
                self.answer_challenge(&message).await?;
            }
            payload::HANDSHAKE_COMPLETE => {
                self.acknowledge(&message).await?;
                self.complete_handshake(&message)?;
            }
            _ => {
                if !self.deliver(&message).await? {
                    return Ok(());
                }
                self.acknowledge(&message).await?;
            }
        }
        let mut buffered = self.advance();
        while let Some(message) = buffered {
            // Acknowledged already, so it passes whatever becomes of it.
            drop(self.deliver(&message).await);
            buffered = self.advance();
        }
        Ok(())
    }

    /// The expected message has been taken in: the one after it, if it waits here.
    fn advance(&self) -> Option<Message> {
        let mut numbers = self.numbers();
        numbers.expected += 1;
        let expected = numbers.expected;
        numbers.incoming.remove(&expected)
    }

    async fn acknowledge(&self, message: &Message) -> Result<(), String> {
        self.send(BINARY, &message.acknowledgement().encode())
            .await
            .inspect_err(|error| log(Level::Error, &format!("Error sending acknowledge message {error}")))
    }

    /// Gives data to the session; false if there is none to take it yet. Blocks while the session takes none, and with
    /// it the reading of the WebSocket.
    async fn deliver(&self, message: &Message) -> Result<bool, String> {
        let first = {
            let mut handshake = self.handshake();
            if handshake.kind.is_some() && self.consumer.get().is_none() {
                return Ok(false);
            }
            let first = !std::mem::replace(&mut handshake.data_seen, true);
            if first && handshake.kind.is_none() && message.payload_type == payload::DATA {
                // An agent older than the handshake: it starts with the shell's output.
                handshake.kind = Some(super::handshake::SHELL);
                print_bytes(&message.payload);
                // Told once; a full channel has been told already.
                let _ = self.kind_known.try_send(true);
            }
            first
        };
        let data = match self.cipher.get() {
            Some(cipher) if message.payload_type == payload::DATA => {
                cipher.open(&message.payload).ok_or("error decrypting encrypted test")?
            }
            _ => message.payload.clone(),
        };
        match self.consumer.get() {
            None => return Ok(first),
            Some(Consumer::Stdout) => print_bytes(&data),
            Some(Consumer::Mux(mux)) if message.payload_type == payload::DATA => {
                mux.lock().await.write_all(&data).await.map_err(|error| error.to_string())?;
            }
            Some(Consumer::Mux(_)) => {
                if message.flag() == Some(flag::CONNECT_TO_PORT_ERROR) {
                    print("\nConnection to destination port failed, check SSM Agent logs.\n");
                }
            }
        }
        Ok(true)
    }

    pub(super) fn handshake(&self) -> MutexGuard<'_, Handshake> {
        lock(&self.handshake)
    }

    /// The number of the next message.
    pub(super) fn next_number(&self) -> i64 {
        self.numbers().next
    }

    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        lock(&self.numbers)
    }
}

/// A poisoned lock is taken all the same: nothing panics while it holds one.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lone_line_feed_is_changed() {
        for (data, sent) in [("\n", "\r"), ("\r", "\r"), ("\n\n", "\n\n"), ("a\n", "a\n"), ("", "")] {
            assert_eq!(lone_line_feed(Bytes::from(data)), sent);
        }
    }

    #[test]
    fn retransmission_follows_the_round_trips_up_to_a_second() {
        let mut times = RoundTrip::new();
        assert_eq!(times.retransmission, Duration::from_millis(200));
        for _ in 0..100 {
            times.seen(Duration::from_millis(1));
        }
        let fast = times.retransmission.as_secs_f64();
        assert!((0.011..0.012).contains(&fast), "{fast}");
        for _ in 0..20 {
            times.seen(Duration::from_secs(30));
        }
        assert_eq!(times.retransmission, LONGEST_RETRANSMISSION);
    }
}
