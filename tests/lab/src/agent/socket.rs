//! The agent's WebSocket: a token, the upgrade, the first message; and how often it is opened again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use http::header::HOST;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};
use tokio_tungstenite::tungstenite::Message as Frame;
use tokio_tungstenite::{WebSocketStream, client_async};
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use super::Agent;
use crate::channel::PATH;
use crate::line;
use crate::service::agents::TERMINATED;

/// Beyond the first. Each waits twice as long as the one before.
const MORE_ATTEMPTS: u32 = 5;
/// Before the second attempt: at least this and at most twice as much.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// For the token. Nothing limits the upgrade.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(15);
const LONGEST_ANSWER: usize = 64 * 1024;

type WebSocket = WebSocketStream<TcpStream>;

/// An open WebSocket's receiving side. Its sending side ends when it is dropped.
pub(super) struct Opened {
    pub stream: SplitStream<WebSocket>,
    _sending: DropGuard,
}

enum NotOpened {
    /// The session is over: nothing is tried again.
    Terminated,
    Failed(String),
}

impl Agent {
    /// Opens the WebSocket, within the attempts that the agent has each time. `None` if it never will again.
    pub(super) async fn connect(self: &Arc<Self>) -> Option<Opened> {
        let mut delay = FIRST_DELAY.mul_f64(1.0 + rand::random::<f64>());
        for attempt in 0..=MORE_ATTEMPTS {
            match self.try_to_connect().await {
                Ok(opened) => return Some(opened),
                Err(NotOpened::Terminated) => return None,
                Err(NotOpened::Failed(words)) if attempt < MORE_ATTEMPTS => {
                    tracing::debug!("{}: the agent's WebSocket: {words}", self.session);
                    sleep(delay).await;
                    delay *= 2;
                }
                Err(NotOpened::Failed(words)) => {
                    tracing::warn!("{}: the agent has given up to reconnect: {words}", self.session);
                }
            }
        }
        None
    }

    async fn try_to_connect(self: &Arc<Self>) -> Result<Opened, NotOpened> {
        let failed = |error: &dyn std::fmt::Display| NotOpened::Failed(error.to_string());
        let token = match timeout(TOKEN_TIMEOUT, self.token()).await {
            Ok(Ok(token)) => token,
            Ok(Err(words)) if words.contains(TERMINATED) => return Err(NotOpened::Terminated),
            Ok(Err(words)) => return Err(NotOpened::Failed(words)),
            Err(_) => return Err(NotOpened::Failed("no token was given in time".into())),
        };
        let address = self.state.agents();
        let url = format!("ws://{address}{PATH}{}?role=publish_subscribe", self.session);
        let socket = TcpSocket::new_v4().map_err(|error| failed(&error))?;
        line::limit(&socket);
        let tcp = socket.connect(address).await.map_err(|error| failed(&error))?;
        let _ = tcp.set_nodelay(true);
        let (socket, _) = client_async(url, tcp).await.map_err(|error| failed(&error))?;
        let open = json!({
            "MessageSchemaVersion": "1.0",
            "RequestId": Uuid::new_v4().to_string(),
            "TokenValue": token,
            "ClientInstanceId": self.target,
            "ClientId": self.client_id,
        });
        let (mut sink, stream) = socket.split();
        sink.send(Frame::text(open.to_string())).await.map_err(|error| failed(&error))?;
        let (queue, outbound) = mpsc::channel(1);
        let over = self.life.child_token();
        let (writing, ending) = (write(sink, outbound, self.state.options.agent_ping), over.clone());
        self.state.handle.spawn(async move { ending.run_until_cancelled(writing).await });
        self.paused.send_replace(false);
        self.socket.send_replace(Some(queue));
        Ok(Opened { stream, _sending: CancellationToken::drop_guard(over) })
    }

    async fn token(&self) -> Result<String, String> {
        let address = self.state.agents();
        let words = |error: &dyn std::fmt::Display| error.to_string();
        let input = json!({
            "MessageSchemaVersion": "1.0",
            "RequestId": Uuid::new_v4().to_string(),
            "ClientId": self.client_id,
        });
        let request = Request::post(format!("{PATH}{}", self.session))
            .header(HOST, address.to_string())
            .body(Full::new(Bytes::from(input.to_string())))
            .map_err(|error| words(&error))?;
        let tcp = TcpStream::connect(address).await.map_err(|error| words(&error))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await.map_err(|error| words(&error))?;
        let answer = async {
            let answer = sender.send_request(request).await.map_err(|error| words(&error))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), LONGEST_ANSWER).collect().await;
            let body = body.map_err(|error| words(&error))?.to_bytes();
            Ok::<_, String>((status, String::from_utf8_lossy(&body).into_owned()))
        };
        tokio::pin!(answer);
        let (status, body) = tokio::select! {
            answer = &mut answer => answer?,
            // Whatever it has read is in the answer.
            _ = connection => answer.await?,
        };
        let token = body.split_once("<TokenValue>").and_then(|(_, rest)| rest.split_once("</TokenValue>"));
        match token {
            Some((token, _)) if status == StatusCode::CREATED => Ok(token.to_owned()),
            _ => Err(format!("{status}: {body}")),
        }
    }
}

/// What the agent sends, and its pings, until the WebSocket takes no more.
async fn write(mut sink: SplitSink<WebSocket, Frame>, mut outbound: mpsc::Receiver<Frame>, ping: Duration) {
    let mut pings = interval_at(Instant::now() + ping, ping);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let frame = tokio::select! {
            frame = outbound.recv() => match frame {
                Some(frame) => frame,
                None => return,
            },
            _ = pings.tick() => Frame::Ping(Bytes::from_static(b"keepalive")),
        };
        if sink.send(frame).await.is_err() {
            return;
        }
    }
}
