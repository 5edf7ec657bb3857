//! What the lab's own tests need of a client: API calls, and a data channel driven by hand.

#![allow(dead_code, reason = "each test program uses its part")]

use std::collections::HashSet;

use autossm_lab::Lab;
use autossm_lab::options::Options;
use autossm_lab::status::Status;
use autossm_lab::wire::handshake::{HandshakeResponse, OpenDataChannel, ProcessedAction};
use autossm_lab::wire::message::{Message, MessageType, payload};
use autossm_lab::wire::mux::{Decoder, Frame as MuxFrame};
use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use http::Request;
use http::header::{AUTHORIZATION, HOST};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message as Frame;
use tokio_tungstenite::{WebSocketStream, client_async};

/// Far longer than anything here takes.
pub const PATIENCE: Duration = Duration::from_secs(20);
pub const TARGET: &str = "mi-0123456789abcdef0";

fn authorization(service: &str) -> String {
    format!(
        "AWS4-HMAC-SHA256 Credential=AKID/20260102/us-west-2/{service}/aws4_request, SignedHeaders=host;x-amz-date, Signature={}",
        "0".repeat(64)
    )
}

/// One call of the API; the connection is closed after it.
pub async fn call(lab: &Lab, name: &str, input: Value) -> std::io::Result<(u16, String)> {
    let body = input.to_string();
    let request = format!(
        "POST / HTTP/1.1\r\nHost: ssm.us-west-2.amazonaws.com\r\nX-Amz-Target: AmazonSSM.{name}\r\n\
         X-Amz-Date: 20260102T030405Z\r\nAuthorization: {}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        authorization("ssm"),
        body.len()
    );
    let mut tcp = TcpStream::connect(lab.addresses().api).await?;
    tcp.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    tcp.read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.map(|status| (status, body.to_owned())).ok_or(std::io::ErrorKind::UnexpectedEof.into())
}

/// A call that succeeds.
pub async fn ok(lab: &Lab, name: &str, input: Value) -> Value {
    let (status, body) = call(lab, name, input).await.unwrap();
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

/// Starts a session to a port of the target.
pub async fn start(lab: &Lab, port: u16) -> Value {
    let parameters = json!({ "portNumber": [port.to_string()], "localPortNumber": ["0"] });
    let input = json!({ "Target": TARGET, "DocumentName": "AWS-StartPortForwardingSession", "Parameters": parameters });
    ok(lab, "StartSession", input).await
}

pub async fn resume(lab: &Lab, session: &Value) -> Value {
    ok(lab, "ResumeSession", json!({ "SessionId": session["SessionId"] })).await
}

/// A client's end of a data channel.
pub struct Channel {
    pub socket: WebSocketStream<TcpStream>,
    /// Numbers of the agent's that have come.
    seen: HashSet<i64>,
}

impl Channel {
    /// Upgrades without sending the token.
    pub async fn connect(lab: &Lab, session: &Value) -> Result<Self, Box<dyn std::error::Error>> {
        let url = session["StreamUrl"].as_str().unwrap();
        let host = url.trim_start_matches("wss://").split('/').next().unwrap();
        let request = Request::builder()
            .uri(url.replacen("wss://", "ws://", 1))
            .header(HOST, host)
            .header(AUTHORIZATION, authorization("ssmmessages"))
            .header("X-Amz-Date", "20260102T030405Z")
            .header("Connection", "Upgrade")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
            .body(())?;
        let tcp = TcpStream::connect(lab.addresses().ws).await?;
        let (socket, _) = client_async(request, tcp).await?;
        Ok(Self { socket, seen: HashSet::new() })
    }

    pub async fn open(lab: &Lab, session: &Value) -> Self {
        let mut channel = Self::connect(lab, session).await.unwrap();
        let open = OpenDataChannel {
            message_schema_version: "1.0".into(),
            request_id: "6b2f3a10-7a52-4b9c-8f0e-3d5b1f0c9a11".into(),
            token_value: session["TokenValue"].as_str().unwrap().into(),
            client_id: "0d9c1b7e-2f64-4f0d-9d58-6a7b8c9d0e1f".into(),
            client_version: "1.2.764.0".into(),
        };
        let open = serde_json::to_string(&open).unwrap();
        channel.socket.send(Frame::Text(open.into())).await.unwrap();
        channel
    }

    /// Opens and shakes hands, until the agent takes data: message 0 of the client is used up.
    pub async fn open_and_greet(lab: &Lab, session: &Value) -> Self {
        let mut channel = Self::open(lab, session).await;
        channel.greet().await;
        let id = session["SessionId"].as_str().unwrap();
        wait(lab, "session set up", |status| status.sessions.get(id).is_none_or(|session| session.ready))
            .await;
        channel
    }

    /// Shakes hands, until the agent says that it is done.
    pub async fn greet(&mut self) {
        self.greet_as("1.2.764.0").await;
    }

    pub async fn greet_as(&mut self, version: &str) {
        let request = self.output().await;
        assert_eq!((request.sequence, request.payload_type), (0, payload::HANDSHAKE_REQUEST));
        self.answer(version).await;
        assert_eq!(self.output().await.payload_type, payload::HANDSHAKE_COMPLETE);
    }

    /// Answers the agent's handshake request.
    pub async fn answer(&mut self, version: &str) {
        let response = HandshakeResponse {
            client_version: version.into(),
            processed_client_actions: vec![ProcessedAction {
                action_type: "SessionType".into(),
                action_status: 1,
                action_result: Value::Null,
                error: String::new(),
            }],
            errors: None,
        };
        let response = serde_json::to_vec(&response).unwrap();
        self.send(&Message::stream(MessageType::InputStreamData, 0, payload::HANDSHAKE_RESPONSE, response))
            .await;
    }

    pub async fn send(&mut self, message: &Message) {
        self.socket.send(Frame::Binary(message.encode())).await.unwrap();
    }

    /// Sends numbered data and returns the message.
    pub async fn data(&mut self, sequence: i64, bytes: impl Into<Bytes>) -> Message {
        let message = Message::stream(MessageType::InputStreamData, sequence, payload::DATA, bytes);
        self.send(&message).await;
        message
    }

    /// The next message, whatever it is; `None` when the channel is closed.
    pub async fn next(&mut self) -> Option<Message> {
        let next = async {
            loop {
                match self.socket.next().await?.ok()? {
                    Frame::Binary(bytes) => return Some(Message::decode(&bytes).unwrap()),
                    Frame::Close(_) => return None,
                    _ => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, next).await.expect("no message came")
    }

    /// The next stream message that has not come before, acknowledged. On a busy machine some come again.
    pub async fn output(&mut self) -> Message {
        loop {
            let message = self.next().await.expect("the channel was closed");
            if message.kind == MessageType::OutputStreamData {
                self.send(&message.acknowledgement()).await;
                if self.seen.insert(message.sequence) {
                    return message;
                }
            }
        }
    }

    /// The number of the next acknowledgement.
    pub async fn acknowledged(&mut self) -> i64 {
        loop {
            let message = self.next().await.expect("the channel was closed");
            if message.kind == MessageType::Acknowledge {
                return message.acknowledged().unwrap().sequence;
            }
        }
    }
}

pub async fn lab() -> Lab {
    Lab::start(Options::default()).await.unwrap()
}

pub async fn wait(lab: &Lab, what: &str, condition: impl FnMut(&Status) -> bool) -> Status {
    lab.wait_for(what, PATIENCE, condition).await.unwrap()
}

pub fn encoded(frames: &[MuxFrame]) -> BytesMut {
    let mut bytes = BytesMut::new();
    frames.iter().for_each(|frame| frame.encode(&mut bytes));
    bytes
}

/// Mux frames of the next stream messages, until one fulfils the condition.
pub async fn frames_until(
    channel: &mut Channel,
    decoder: &mut Decoder,
    done: impl Fn(&[MuxFrame]) -> bool,
) -> Vec<MuxFrame> {
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

pub fn pushed(frames: &[MuxFrame]) -> Vec<u8> {
    frames.iter().flat_map(|frame| frame.data.to_vec()).collect()
}
