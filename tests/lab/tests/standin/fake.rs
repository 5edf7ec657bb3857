//! A service of a few lines, which does only what a test tells it: CONNECT, TLS, the API's answers, and WebSockets.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, Request, Response};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{self, Message as Frame};

use autossm_lab::wire::handshake::{HandshakeResponse, OpenDataChannel};
use autossm_lab::wire::message::{Message, MessageType, payload};
use autossm_lab::wire::mux;

/// The longest wait for anything.
pub const SOON: Duration = Duration::from_secs(20);
/// The API's host.
pub const API_HOST: &str = "ssm.us-west-2.amazonaws.com";
/// The same where FIPS and dual-stack names are asked for.
pub const OTHER_API_HOSTS: [&str; 2] = ["ssm-fips.us-west-2.amazonaws.com", "ssm.us-west-2.api.aws"];
/// The data channel's host.
pub const CHANNEL_HOST: &str = "ssmmessages.us-west-2.amazonaws.com";
/// The proxy's user and password.
pub const PROXY_USER: &str = "gateway:se%63ret";

/// The API's next answers, status and body; the last one stays. And the calls that it got, under which names.
#[derive(Default)]
pub struct Api {
    pub answers: VecDeque<(u16, String)>,
    pub calls: Vec<String>,
    pub hosts: Vec<String>,
}

/// The upgrades to WebSockets that were asked for.
#[derive(Default)]
struct Upgrades {
    refused: AtomicBool,
    asked: AtomicUsize,
}

/// The request by which a WebSocket was opened.
#[derive(Default)]
pub struct Upgrade {
    /// Path and query.
    pub path: String,
    pub headers: HeaderMap,
}

type Socket = WebSocketStream<TlsStream<TcpStream>>;

/// The service.
pub struct Fake {
    pub port: u16,
    pub authorities: TempDir,
    pub api: Arc<Mutex<Api>>,
    upgrades: Arc<Upgrades>,
    sockets: mpsc::Receiver<(Socket, Upgrade)>,
}

impl Fake {
    pub async fn start() -> Self {
        let authorities = tempfile::tempdir().unwrap();
        let tls = tls(authorities.path());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let api = Arc::new(Mutex::new(Api::default()));
        let (opened, sockets) = mpsc::channel(8);
        let answering = api.clone();
        let upgrades = Arc::new(Upgrades::default());
        let asked = upgrades.clone();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                tokio::spawn(serve(tcp, tls.clone(), answering.clone(), asked.clone(), opened.clone()));
            }
        });
        Self { port, authorities, api, upgrades, sockets }
    }

    /// The next WebSocket that the plugin opens, and its first message.
    pub async fn opened(&mut self) -> (Agent, OpenDataChannel, Upgrade) {
        let (mut socket, upgrade) = timeout(SOON, self.sockets.recv()).await.unwrap().unwrap();
        let first = loop {
            match timeout(SOON, socket.next()).await.unwrap().unwrap().unwrap() {
                Frame::Text(text) => break serde_json::from_str(&text).unwrap(),
                Frame::Ping(_) => {}
                other => panic!("{other:?} before the first message"),
            }
        };
        (Agent { socket, next: 0, last: None, mux: BytesMut::new(), flags: Vec::new() }, first, upgrade)
    }

    pub fn answer(&self, answers: &[(u16, &str)]) {
        self.api.lock().unwrap().answers =
            answers.iter().map(|(code, text)| (*code, (*text).into())).collect();
    }

    /// From now on upgrades are refused with 503.
    pub fn refuse_sockets(&self) {
        self.upgrades.refused.store(true, Ordering::SeqCst);
    }

    pub fn upgrades(&self) -> usize {
        self.upgrades.asked.load(Ordering::SeqCst)
    }

    pub fn calls(&self) -> usize {
        self.api.lock().unwrap().calls.len()
    }
}

fn tls(authorities: &Path) -> TlsAcceptor {
    let key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(authorities.join("ca.pem"), ca.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(ca, key);
    let key = KeyPair::generate().unwrap();
    let names = [API_HOST, CHANNEL_HOST].into_iter().chain(OTHER_API_HOSTS).map(str::to_owned);
    let leaf = CertificateParams::new(names.collect::<Vec<_>>()).unwrap();
    let leaf = leaf.signed_by(&key, &issuer).unwrap().der().clone();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

async fn serve(
    mut tcp: TcpStream,
    tls: TlsAcceptor,
    api: Arc<Mutex<Api>>,
    upgrades: Arc<Upgrades>,
    opened: mpsc::Sender<(Socket, Upgrade)>,
) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        assert_ne!(tcp.read_buf(&mut request).await.unwrap(), 0);
    }
    let request = String::from_utf8(request).unwrap();
    let authorization = BASE64_STANDARD.encode("gateway:secret");
    assert!(request.contains(&format!("Proxy-Authorization: Basic {authorization}\r\n")), "{request}");
    tcp.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    // A plugin that is stopped meanwhile breaks the connection anywhere from here on.
    let Ok(stream) = tls.accept(tcp).await else {
        return;
    };
    if request.starts_with(&format!("CONNECT {CHANNEL_HOST}:443 ")) {
        let mut upgrade = Upgrade::default();
        #[expect(clippy::result_large_err, reason = "the WebSocket library's signature")]
        let note = |request: &tungstenite::handshake::server::Request, response| {
            upgrade = Upgrade { path: request.uri().to_string(), headers: request.headers().clone() };
            upgrades.asked.fetch_add(1, Ordering::SeqCst);
            if !upgrades.refused.load(Ordering::SeqCst) {
                return Ok(response);
            }
            let mut refusal = http::Response::new(None);
            *refusal.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
            Err(refusal)
        };
        if let Ok(socket) = tokio_tungstenite::accept_hdr_async(stream, note).await {
            // The test may be over.
            drop(opened.send((socket, upgrade)).await);
        }
        return;
    }
    let mut names = [API_HOST].into_iter().chain(OTHER_API_HOSTS);
    assert!(names.any(|name| request.starts_with(&format!("CONNECT {name}:443 "))), "{request}");
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let api = api.clone();
        async move {
            let mut api = api.lock().unwrap();
            assert!(request.headers().contains_key("authorization"));
            api.calls.push(request.headers()["x-amz-target"].to_str().unwrap().to_owned());
            api.hosts.push(request.headers()["host"].to_str().unwrap().to_owned());
            let answer =
                if api.answers.len() > 1 { api.answers.pop_front() } else { api.answers.front().cloned() };
            let (status, body) = answer.unwrap_or((500, "{}".into()));
            Response::builder().status(status).body(Full::new(Bytes::from(body)))
        }
    });
    // Ends with the plugin's connection.
    drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
}

/// The service's end of one WebSocket, and the agent behind it. It acknowledges what it reads and resends nothing.
pub struct Agent {
    socket: Socket,
    next: i64,
    /// The number of the last stream message that was read. What a busy machine acknowledges late comes again.
    last: Option<i64>,
    /// Bytes of the mux that were read and not taken.
    pub mux: BytesMut,
    /// Flags that were read.
    pub flags: Vec<u32>,
}

impl Agent {
    /// The handshake of a session of this kind.
    pub async fn shake_hands(&mut self, kind: &str) {
        let request = format!(
            r#"{{"AgentVersion":"3.3.2299.0","RequestedClientActions":[{{"ActionType":"SessionType","ActionParameters":{{"SessionType":"{kind}","Properties":{{"portNumber":"5432","localPortNumber":"0","type":"LocalPortForwarding"}}}}}}]}}"#
        );
        self.send(payload::HANDSHAKE_REQUEST, request).await;
        let response = self.input().await;
        assert_eq!((response.payload_type, response.sequence), (payload::HANDSHAKE_RESPONSE, 0));
        let response: HandshakeResponse = serde_json::from_slice(&response.payload).unwrap();
        let status = if kind == "Nonsense" { 2 } else { 1 };
        assert_eq!(response.processed_client_actions[0].action_status, status);
        self.send(payload::HANDSHAKE_COMPLETE, r#"{"HandshakeTimeToComplete":1,"CustomerMessage":""}"#).await;
    }

    pub async fn send(&mut self, payload_type: u32, data: impl Into<Bytes>) {
        let message = Message::stream(MessageType::OutputStreamData, self.next, payload_type, data);
        self.next += 1;
        self.send_message(&message).await;
    }

    pub async fn send_message(&mut self, message: &Message) {
        timeout(SOON, self.socket.send(Frame::Binary(message.encode()))).await.unwrap().unwrap();
    }

    /// Sends a ping; an error if the network does not take it any more.
    pub async fn ping(&mut self) -> bool {
        timeout(Duration::from_secs(1), self.socket.send(Frame::Ping(Bytes::from_static(b"?")))).await.is_ok()
    }

    /// Whether a pong comes within this time.
    pub async fn ponged(&mut self, patience: Duration) -> bool {
        let wait = async {
            loop {
                if let Frame::Pong(_) = self.socket.next().await.unwrap().unwrap() {
                    return;
                }
            }
        };
        timeout(patience, wait).await.is_ok()
    }

    /// The next binary message, of whatever type.
    pub async fn message(&mut self) -> Message {
        loop {
            match timeout(SOON, self.socket.next()).await.unwrap().unwrap().unwrap() {
                Frame::Binary(bytes) => return Message::decode(&bytes).unwrap(),
                Frame::Ping(_) | Frame::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// The next stream message, acknowledged.
    pub async fn input(&mut self) -> Message {
        loop {
            let message = self.message().await;
            if message.kind == MessageType::InputStreamData {
                self.send_message(&message.acknowledgement()).await;
                if self.last.is_none_or(|last| last < message.sequence) {
                    self.last = Some(message.sequence);
                    return message;
                }
            }
        }
    }

    /// The next stream message of data or flags; its content is kept. Returns the payload.
    pub async fn take(&mut self) -> Bytes {
        let message = self.input().await;
        match message.flag() {
            Some(flag) => self.flags.push(flag),
            None => self.mux.extend_from_slice(&message.payload),
        }
        message.payload
    }

    /// The next mux frame: command, stream, data.
    pub async fn frame(&mut self) -> (u8, u32, Bytes) {
        loop {
            if let Some([_, command, low, high, stream @ ..]) =
                self.mux.first_chunk::<{ mux::HEADER }>().copied()
            {
                let whole = mux::HEADER + usize::from(u16::from_le_bytes([low, high]));
                if self.mux.len() >= whole {
                    let data = self.mux.split_to(whole).freeze().slice(mux::HEADER..);
                    return (command, u32::from_le_bytes(stream), data);
                }
            }
            self.take().await;
        }
    }

    /// Sends a mux frame in one message.
    pub async fn send_frame(&mut self, command: mux::Command, stream: u32, data: &[u8]) {
        let frame = [&mux::header(command, data.len() as u16, stream)[..], data].concat();
        self.send(payload::DATA, frame).await;
    }

    /// Closes the WebSocket as the service does every hour.
    pub async fn close(mut self) {
        let bye = CloseFrame { code: CloseCode::Normal, reason: "Bye".into() };
        self.socket.send(Frame::Close(Some(bye))).await.unwrap();
        // Until the plugin has answered and the connection is closed.
        while let Some(Ok(_)) = timeout(SOON, self.socket.next()).await.unwrap() {}
    }
    /// Breaks the connection: with a reset, or with an end and no close frame before it.
    pub fn abort(self, reset: bool) {
        let tcp = self.socket.get_ref().get_ref().0;
        if reset {
            tcp.set_zero_linger().unwrap();
        }
    }
}
