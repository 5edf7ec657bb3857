//! The service's end of a data channel: one WebSocket, from its upgrade to its end. Sessions outlive it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message as Frame;
use tokio_tungstenite::tungstenite::handshake::server::create_response;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tokio_util::sync::CancellationToken;

use crate::agent::Link;
use crate::fault::UpgradeFault;
use crate::service::answer;
use crate::service::session::Session;
use crate::state::State;
use crate::wire::handshake::OpenDataChannel;
use crate::wire::message::Message;

/// A client has to send its token within this time.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(10);
/// A client is given so long to answer a close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Messages on their way to a client.
const QUEUE: usize = 64;

type WebSocket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// What goes to a client, in order.
pub(crate) enum Outbound {
    /// An encoded message.
    Message(Bytes),
    /// Whatever a test wants said.
    Raw(Frame),
    /// The end: code and reason.
    Close(u16, String),
}

/// An open data channel, as commands reach it.
pub(crate) struct Connection {
    pub id: u64,
    pub session: String,
    /// Closes it at once: what is queued is lost.
    pub close: mpsc::Sender<(u16, String)>,
    /// What goes to the client.
    pub queue: mpsc::WeakSender<Outbound>,
    /// Resets its TCP connection.
    pub line: CancellationToken,
}

/// What the path of a data channel begins with; the session's id follows.
pub(crate) const PATH: &str = "/v1/data-channel/";

/// Answers a request for a WebSocket.
pub(crate) async fn upgrade(
    state: Arc<State>,
    line: CancellationToken,
    mut request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    let mut faults = state.faults.subscribe();
    let _ = faults.wait_for(|faults| faults.upgrades != Some(UpgradeFault::Stalled)).await;
    let fault = faults.borrow().upgrades;
    if let Some(UpgradeFault::Refused(status)) = fault {
        return answer(StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE), Bytes::new());
    }
    let id = request.uri().path().strip_prefix(PATH).unwrap_or_default();
    let session = state.world().sessions.get(id).cloned();
    let query = request.uri().query().unwrap_or_default();
    let parameter = |name: &str| query.split('&').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
    let cell = parameter("cell-number").unwrap_or_default().to_owned();
    let (Some(session), Some("publish_subscribe")) = (session, parameter("role")) else {
        return answer(StatusCode::NOT_FOUND, Bytes::new());
    };
    let upgrading = hyper::upgrade::on(&mut request);
    let Ok(response) = create_response(&request.map(|_| ())) else {
        return answer(StatusCode::BAD_REQUEST, Bytes::new());
    };
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrading.await {
            let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
            run(state, session, cell, socket, line).await;
        }
    });
    response.map(|()| Full::default())
}

async fn run(
    state: Arc<State>,
    session: Arc<Session>,
    cell: String,
    mut socket: WebSocket,
    line: CancellationToken,
) {
    let first = timeout(TOKEN_TIMEOUT, first_message(&mut socket)).await.ok().flatten();
    let admitted = match &first {
        Some(open) => session.admit(&state, open, &cell),
        None => Err("no token was sent"),
    };
    if let Err(why) = admitted {
        tracing::warn!("{}: data channel refused: {why}", session.id);
        state.count(|status| status.bad_tokens += 1);
        let _ = timeout(CLOSE_TIMEOUT, close(&mut socket, 1008, why)).await;
        return;
    }
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    let (queue, outbound) = mpsc::channel(QUEUE);
    let (close, commands) = mpsc::channel(1);
    for frame in state.greeting() {
        let _ = queue.send(Outbound::Raw(frame)).await;
    }
    let weak = queue.downgrade();
    let connection = Connection { id, session: session.id.clone(), close, queue: weak, line: line.clone() };
    state.world().connections.push(connection);
    session.agent.attach(Link { connection: id, queue, line: line.clone() });
    state.count(|status| status.opened += 1);

    let (mut sink, mut stream) = socket.split();
    let closing = tokio::select! {
        () = line.cancelled() => None,
        () = read(&state, &session, &mut stream) => None,
        frame = write(&mut sink, outbound, commands) => frame,
    };
    session.agent.detach(id);
    state.world().connections.retain(|connection| connection.id != id);
    state.count(|status| status.closed += 1);
    if let Some(frame) = closing {
        // What the client has sent before it saw the close frame is lost, as with a connection that dies. One that does
        // not read cannot be told.
        let farewell = async {
            if sink.send(Frame::Close(Some(frame))).await.is_ok() {
                while let Some(Ok(_)) = stream.next().await {}
            }
        };
        if timeout(CLOSE_TIMEOUT, farewell).await.is_err() {
            line.cancel();
        }
    }
}

async fn first_message(socket: &mut WebSocket) -> Option<OpenDataChannel> {
    loop {
        match socket.next().await?.ok()? {
            Frame::Text(text) => return serde_json::from_str(&text).ok(),
            Frame::Ping(_) | Frame::Pong(_) => {}
            _ => return None,
        }
    }
}

/// From the client to the agent, until the client is gone.
async fn read(state: &State, session: &Session, stream: &mut SplitStream<WebSocket>) {
    while let Some(Ok(frame)) = stream.next().await {
        match frame {
            Frame::Binary(bytes) => match Message::decode(&bytes) {
                Ok(message) if message.schema_version != 1 || message.created == 0 => {
                    state.violation(&session.id, "a message without schema version 1 or date");
                }
                Ok(message) => session.agent.deliver(message).await,
                Err(error) => state.violation(&session.id, error),
            },
            Frame::Text(_) => state.violation(&session.id, "a text message on an open data channel"),
            Frame::Ping(_) => {
                state.count(|status| status.session(&session.id, |session| session.pings += 1));
            }
            Frame::Close(_) | Frame::Pong(_) | Frame::Frame(_) => {}
        }
    }
}

/// From the agent to the client. The close frame to end with, `None` if the client is gone.
async fn write(
    sink: &mut SplitSink<WebSocket, Frame>,
    mut outbound: mpsc::Receiver<Outbound>,
    mut commands: mpsc::Receiver<(u16, String)>,
) -> Option<CloseFrame> {
    loop {
        let next = tokio::select! {
            biased;
            Some(command) = commands.recv() => Err(command),
            next = outbound.recv() => match next {
                Some(Outbound::Message(bytes)) => Ok(Frame::Binary(bytes)),
                Some(Outbound::Raw(frame)) => Ok(frame),
                Some(Outbound::Close(code, reason)) => Err((code, reason)),
                // A newer connection has taken its place.
                None => Err((1000, "replaced".into())),
            }
        };
        let (code, reason) = match next {
            Err(close) => close,
            Ok(frame) => tokio::select! {
                sent = sink.send(frame) => {
                    sent.ok()?;
                    continue;
                }
                Some(command) = commands.recv() => command,
            },
        };
        return Some(CloseFrame { code: code.into(), reason: reason.into() });
    }
}

async fn close(socket: &mut WebSocket, code: u16, reason: &str) {
    let frame = CloseFrame { code: code.into(), reason: reason.to_owned().into() };
    if socket.close(Some(frame)).await.is_ok() {
        while let Some(Ok(_)) = socket.next().await {}
    }
}
