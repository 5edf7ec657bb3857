//! What must hold in the gateway whatever comes in: the bodies of the fuzz targets (see `fuzz/README.md`).

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use aws_credential_types::Credentials;
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

use super::early::MAX_EARLY_BYTES;
use super::ledger::Ledger;
use super::link::MAX_MESSAGE;
use super::local_api::LocalApi;
use super::message::{self, Handshake, Header, View};
use super::mux::{Follower, LostTrack, Piece};
use super::proxy::{Endpoint, Mode, Proxy};
use super::relay::Relay;
use super::tls::Authority;
use super::upstream::OpeningMessage;
use super::{Event, breach};
use crate::aws::api::{Api, Node, Resumption, StartRequest, StartedSession};
use crate::network::{Environment, Network};
use crate::tunnel::failure::{Class, Failure};

/// The most that one session's relay keeps of messages: 12 MiB of the plugin's, 1.25 MiB of acknowledgements for the service,
/// 256 KiB for the plugin, 2 MiB of the agent's that are early; a message of the longest kind beyond each of the first three;
/// and the agent's acknowledgements of 10 000 messages, which the plugin gets even where it does not read.
pub const MAX_HELD: usize = (12 << 20)
    + (1 << 20)
    + (256 << 10)
    + (256 << 10)
    + MAX_EARLY_BYTES
    + 3 * MAX_MESSAGE
    + 10_001 * (120 + breach::MAX_ACKNOWLEDGEMENT);

/// One message of the data channel, and the JSON that may be in it.
pub(crate) fn message(data: &[u8]) {
    let _ = (Handshake::parse(data), message::closing_reason(data));
    let Ok(view) = View::new(data) else { return };
    let _ = (view.kind(), view.acknowledged(), view.created());
    assert_eq!(&view.copied()[..], data);
    for made in [view.numbered(i64::MIN), view.with_only_byte(-1, b'\n'), view.acknowledgement()] {
        assert!(View::new(&made).is_ok());
    }
    let named = view.acknowledgement();
    assert_eq!(View::new(&named).ok().and_then(|view| view.acknowledged()), Some(view.number()));
    if let Some(other) = view.acknowledging(7) {
        assert_eq!(View::new(&other).ok().and_then(|view| view.acknowledged()), Some(7));
    }
    let reason = message::closing_reason(view.payload());
    assert!(!reason.is_empty() && reason.chars().count() <= 200 && !reason.contains(char::is_control));
}

/// The agent's and the plugin's JSON.
pub(crate) fn handshake(data: &[u8]) {
    if let Some(handshake) = Handshake::parse(data) {
        for words in [handshake.agent_version, handshake.session_type] {
            assert!(words.chars().count() <= 200 && !words.contains(char::is_control));
        }
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Some(opening) = OpeningMessage::parse(text)
    {
        use secrecy::ExposeSecret as _;
        let opening = opening.with_token(&"the-token".into());
        let again: serde_json::Value = serde_json::from_str(opening.expose_secret()).unwrap_or_default();
        assert_eq!(again["TokenValue"], "the-token");
    }
}

/// Mux frames, however they are cut.
pub(crate) fn mux(data: &[u8]) {
    let Some((cut, bytes)) = data.split_first() else { return };
    let follow = |size: usize| -> Result<Vec<Piece>, LostTrack> {
        let (mut follower, mut pieces) = (Follower::default(), Vec::new());
        for chunk in bytes.chunks(size) {
            follower.follow(chunk, |piece| match (pieces.last_mut(), piece) {
                (Some(Piece::Data(last, sum)), Piece::Data(stream, n)) if *last == stream => *sum += n,
                _ => pieces.push(piece),
            })?;
        }
        Ok(pieces)
    };
    assert_eq!(follow(usize::from(*cut) + 1), follow(bytes.len().max(1)));
}

/// The relay between two ends that send what they like, read when they like, and lose their connections.
///
/// The input is a list of steps: a byte that says what happens, and what it needs.
pub(crate) fn relay(data: &[u8]) {
    let ledger = Arc::new(Ledger::new());
    let stream = ledger.open();
    ledger.write(stream, &[b'\n'; 64]);
    let mut relay = Relay::new(ledger, Some(Duration::from_secs(60)));
    let mut now = Instant::now();
    let mut steps = Steps(data);
    let (mut numbers, mut ends) = ([0i64; 2], 0);
    while let Some(step) = steps.byte() {
        let mut event = None;
        match step % 12 {
            0 => relay.service_opened(),
            1 => relay.service_closed(),
            2 => now += Duration::from_millis(u64::from(steps.byte().unwrap_or(1)) * 100),
            3 => drop((0..=steps.byte().unwrap_or(0)).find(|_| relay.next_for_service(now).is_none())),
            4 => drop((0..=steps.byte().unwrap_or(0)).find(|_| relay.next_for_plugin().is_none())),
            5 if relay.reads_service() => event = relay.service_sent(now, steps.rest()),
            6 if relay.reads_plugin() => event = relay.plugin_sent(&steps.rest()).1,
            7..=9 if relay.reads_service() => {
                let message = steps.message(&mut numbers[0]);
                for _ in 0..=(steps.byte().unwrap_or(0) % 32) {
                    let told = relay.service_sent(now, message.clone());
                    ends += usize::from(matches!(told, Some(Event::SessionEnded { .. })));
                }
            }
            10 | 11 if relay.reads_plugin() => event = relay.plugin_sent(&steps.message(&mut numbers[1])).1,
            _ => (),
        }
        ends += usize::from(matches!(event, Some(Event::SessionEnded { .. })));
        assert!(ends <= 1 && relay.has_ended() == (ends == 1), "an end is told once");
        relay.look(now);
        let _ = relay.deadline();
        assert!(relay.held_bytes() <= MAX_HELD, "{} bytes held", relay.held_bytes());
    }
}

/// Reads a fuzzer's bytes as what happens.
struct Steps<'a>(&'a [u8]);

impl Steps<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    /// As many bytes as the next one says.
    fn rest(&mut self) -> Bytes {
        let length = usize::from(self.byte().unwrap_or(0)).min(self.0.len());
        let (taken, rest) = self.0.split_at(length);
        self.0 = rest;
        Bytes::copy_from_slice(taken)
    }

    /// A message that is well-formed, and mostly the next one of its stream.
    fn message(&mut self, next: &mut i64) -> Bytes {
        const KINDS: [&[u8]; 8] = [
            b"input_stream_data",
            b"output_stream_data",
            b"output_stream_data",
            b"acknowledge",
            b"channel_closed",
            b"pause_publication",
            b"start_publication",
            b"else",
        ];
        let [kind, place, payload_type] = [(); 3].map(|()| self.byte().unwrap_or(0));
        let kind = KINDS.get(usize::from(kind % 8)).copied().unwrap_or_default();
        let number = match place {
            0 => i64::MAX,
            1 => i64::MIN,
            2 => -1,
            3..32 => *next - i64::from(place),
            32..64 => *next + i64::from(place) * 1_000,
            _ => *next,
        };
        *next = next.saturating_add(1);
        let payload = match payload_type {
            // Of the largest size, and nothing in it.
            255 => vec![b' '; MAX_MESSAGE - 120],
            254 => format!("{{\"AcknowledgedMessageSequenceNumber\":{number}}}").into_bytes(),
            253 => {
                format!("{{\"AcknowledgedMessageSequenceNumber\":{number},\"x\":\"{}\"}}", "x".repeat(900))
                    .into_bytes()
            }
            _ => self.rest().to_vec(),
        };
        Header { kind, created: 1, number, flags: 0, payload_type: u32::from(payload_type % 16) }
            .with_payload(&payload)
    }
}

/// The proxy's door: whatever a process on this host says to it, it answers or hangs up, and ends.
pub(crate) fn connect(data: &[u8]) {
    static AUTHORITY: OnceLock<Option<Arc<Authority>>> = OnceLock::new();
    let authority = AUTHORITY.get_or_init(|| Authority::new().ok().map(Arc::new));
    let Some(authority) = authority.clone() else { return };
    converse(data, async |far| {
        let (local_api, _attached) = local_api();
        let mode = Mode::Hold { authority, local_api };
        Proxy { secret: "secret".into(), endpoints: Vec::new(), mode }
            .speak(far, &AtomicBool::new(false))
            .await;
    });
}

/// What the plugin says once its TLS has been ended.
pub(crate) fn plugin_http(data: &[u8]) {
    converse(data, async |far| {
        let (local_api, _attached) = local_api();
        let target = Endpoint { host: "ssm.us-east-1.amazonaws.com".into(), port: 443 };
        local_api.serve(far, &target).await;
    });
}

/// Says `data`, hangs up, and waits for the other side's end, on a clock that does not wait.
fn converse(data: &[u8], serve: impl AsyncFnOnce(tokio::io::DuplexStream)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let Ok(runtime) = runtime else { return };
    runtime.block_on(async {
        let (mut near, far) = tokio::io::duplex(64 << 10);
        let speak = async {
            // The other side may have enough before all is said.
            let _ = near.write_all(data).await;
            let _ = near.shutdown().await;
            let mut answer = Vec::new();
            let _ = near.read_to_end(&mut answer).await;
            assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "{answer:?}");
        };
        let both = async { tokio::join!(speak, serve(far)) };
        assert!(tokio::time::timeout(Duration::from_secs(120), both).await.is_ok(), "it does not end");
    });
}

fn local_api() -> (LocalApi, mpsc::Receiver<Box<dyn super::link::Connection>>) {
    let (attach, attached) = mpsc::channel(1);
    let local_api = LocalApi {
        session_id: "session".into(),
        stream_url: "wss://ssmmessages.us-east-1.amazonaws.com/v1/data-channel/session".into(),
        stand_in: "stand-in".into(),
        api: Arc::new(Nobody),
        #[expect(clippy::expect_used, reason = "without a file there is nothing to refuse")]
        network: Network::new(&Environment::default(), None).expect("a way out"),
        attach,
        kms_endpoint: None,
        // Nobody reads them: what cannot be told is dropped.
        events: mpsc::channel(1).0,
    };
    (local_api, attached)
}

/// An API without credentials: nothing is ever sent on.
struct Nobody;

impl Nobody {
    fn failure<T>() -> Result<T, Failure> {
        Err(Failure::new(Class::Access, "no credentials"))
    }
}

impl Api for Nobody {
    fn maximum_session_duration(&self) -> BoxFuture<'_, crate::tunnel::rotation::Limit> {
        std::future::ready(crate::tunnel::rotation::Limit::None).boxed()
    }

    fn start_session<'a>(&'a self, _: &'a StartRequest) -> BoxFuture<'a, Result<StartedSession, Failure>> {
        async { Self::failure() }.boxed()
    }

    fn resume_session<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Resumption, Failure>> {
        async { Self::failure() }.boxed()
    }

    fn terminate_session<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), Failure>> {
        async { Self::failure() }.boxed()
    }

    fn online_nodes<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
        _: Duration,
    ) -> BoxFuture<'a, Result<Vec<Node>, Failure>> {
        async { Self::failure() }.boxed()
    }

    fn last_nodes(&self, _: &str, _: &str) -> Vec<Node> {
        Vec::new()
    }

    fn credentials(&self) -> BoxFuture<'_, Result<Credentials, Failure>> {
        async { Self::failure() }.boxed()
    }

    fn held_credentials(&self) -> Option<crate::aws::api::HeldCredentials> {
        None
    }

    fn region(&self) -> &str {
        "us-east-1"
    }

    fn endpoint(&self) -> &str {
        "https://ssm.us-east-1.amazonaws.com"
    }
}
