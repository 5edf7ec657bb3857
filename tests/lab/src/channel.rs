//! The service's end of a data channel: one WebSocket of a client or of an agent, from its upgrade to its end. Sessions
//! outlive it.

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

use crate::fault::UpgradeFault;
use crate::line::Side;
use crate::service::answer;
use crate::service::session::Session;
use crate::state::State;
use crate::wire::handshake::OpenDataChannel;
use crate::wire::message::{Message, MessageType};

/// Its token has to come within this time.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(10);
/// The other end is given so long to answer a close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Messages on their way to one side.
const QUEUE: usize = 64;

type WebSocket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// What goes to one side, in order.
pub(crate) enum Outbound {
    /// An encoded message.
    Message(Bytes),
    /// Whatever a test wants said.
    Raw(Frame),
    /// The end: code and reason.
    Close(u16, String),
}

/// Where one side is reached at the moment.
#[derive(Clone)]
pub(crate) struct Link {
    pub connection: u64,
    pub queue: mpsc::Sender<Outbound>,
    /// Resets its TCP connection.
    pub line: CancellationToken,
}

/// An open data channel, as commands reach it.
pub(crate) struct Connection {
    pub id: u64,
    pub side: Side,
    pub session: String,
    /// Closes it at once: what is queued is lost.
    pub close: mpsc::Sender<(u16, String)>,
    /// What goes there.
    pub queue: mpsc::WeakSender<Outbound>,
    /// Resets its TCP connection.
    pub line: CancellationToken,
}

impl Connection {
    pub fn is_of(&self, session: &str, side: Side) -> bool {
        self.session == session && self.side == side
    }

    /// Asks its task to close it; one that is being closed already stays at that.
    pub fn close(&self, code: u16, reason: &str) {
        let _ = self.close.try_send((code, reason.to_owned()));
    }
}

/// What the path of a data channel begins with; the session's id follows.
pub(crate) const PATH: &str = "/v1/data-channel/";

/// Answers a request for a WebSocket.
pub(crate) async fn upgrade(
    state: Arc<State>,
    side: Side,
    line: CancellationToken,
    mut request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    if side == Side::Client {
        let mut faults = state.faults.subscribe();
        let _ = faults.wait_for(|faults| faults.upgrades != Some(UpgradeFault::Stalled)).await;
        let fault = faults.borrow().upgrades;
        if let Some(UpgradeFault::Refused(status)) = fault {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
            return answer(status, Bytes::new());
        }
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
            run(state, session, side, cell, socket, line).await;
        }
    });
    response.map(|()| Full::default())
}

async fn run(
    state: Arc<State>,
    session: Arc<Session>,
    side: Side,
    cell: String,
    mut socket: WebSocket,
    line: CancellationToken,
) {
    let first = timeout(TOKEN_TIMEOUT, first_message(&mut socket)).await.ok().flatten();
    let admitted = match (&first, side) {
        (Some(open), Side::Client) => session.admit(&state, open, &cell),
        (Some(open), Side::Agent) => session.admit_agent(open),
        (None, _) => Err("no token was sent"),
    };
    if let Err(why) = admitted {
        tracing::warn!("{}: {side:?}'s data channel refused: {why}", session.id);
        state.count(|status| status.bad_tokens += u64::from(side == Side::Client));
        let _ = timeout(CLOSE_TIMEOUT, close(&mut socket, 1008, why)).await;
        return;
    }
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    let (queue, outbound) = mpsc::channel(QUEUE);
    let (close, commands) = mpsc::channel(1);
    for frame in if side == Side::Client { state.greeting() } else { Vec::new() } {
        let _ = queue.send(Outbound::Raw(frame)).await;
    }
    let weak = queue.downgrade();
    let connection =
        Connection { id, side, session: session.id.clone(), close, queue: weak, line: line.clone() };
    state.world().connections.push(connection);
    session.relay.attach(side, Link { connection: id, queue, line: line.clone() });
    state.count(|status| match side {
        Side::Client => status.opened += 1,
        Side::Agent => status.agents_opened += 1,
    });

    let (mut sink, mut stream) = socket.split();
    let closing = tokio::select! {
        () = line.cancelled() => None,
        () = read(&state, &session, side, &mut stream) => None,
        frame = write(&mut sink, outbound, commands) => frame,
    };
    session.relay.detach(side, id);
    state.world().connections.retain(|connection| connection.id != id);
    state.count(|status| match side {
        Side::Client => status.closed += 1,
        Side::Agent => status.agents_closed += 1,
    });
    if let Some(frame) = closing {
        // What was sent here before the close frame was seen is lost, as with a connection that dies. Who does not read
        // cannot be told.
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

/// From this side to the other, until this one is gone.
async fn read(state: &State, session: &Session, side: Side, stream: &mut SplitStream<WebSocket>) {
    while let Some(Ok(frame)) = stream.next().await {
        match (frame, side) {
            (Frame::Binary(bytes), Side::Agent) => session.relay.to_client(bytes).await,
            (Frame::Binary(bytes), Side::Client) => match Message::decode(&bytes) {
                Ok(message) if message.schema_version != 1 || message.created == 0 => {
                    state.violation(&session.id, "a message without schema version 1 or date");
                }
                Ok(message)
                    if matches!(message.kind, MessageType::InputStreamData | MessageType::Acknowledge) =>
                {
                    session.relay.to_agent(&message, bytes).await;
                }
                Ok(message) => {
                    state.violation(&session.id, format_args!("a client sent {}", message.kind.as_str()));
                }
                Err(error) => state.violation(&session.id, error),
            },
            (Frame::Text(_), _) => state.violation(&session.id, "a text message on an open data channel"),
            (Frame::Ping(_), Side::Client) => {
                state.count(|status| status.session(&session.id, |session| session.pings += 1));
            }
            (Frame::Ping(_) | Frame::Close(_) | Frame::Pong(_) | Frame::Frame(_), _) => {}
        }
    }
}

/// From the other side to this one. The close frame to end with, `None` if this one is gone.
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
