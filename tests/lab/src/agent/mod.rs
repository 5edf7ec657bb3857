//! The agent of one session, as the real one's worker is: it has a WebSocket of its own to the service, opens it again six times in a few
//! seconds when it is lost, and then never again.
//!
//! | task | what it does |
//! |---|---|
//! | `receive` | opens the WebSocket, and takes the client's messages in order; what a destination does not take stops it |
//! | `send` | numbers and sends the agent's own: at its pace, whatever is acknowledged |
//! | `repeat` | at each tick sends the oldest again that is not acknowledged, and no other |
//! | `open` | the handshake, and then the mux |

mod handshake;
pub(crate) mod numbering;
mod receive;
mod send;
mod socket;
mod streams;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio_tungstenite::tungstenite::Message as Frame;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::service::relay::{Outcome, Relay};
use crate::state::State;
use crate::wire::cipher::Cipher;
use handshake::{Encryption, Handshake};
use numbering::Outgoing;
use streams::Mux;

/// The agent cuts its output into messages of this size.
const PAYLOAD: usize = 1024;
/// How often the agent looks whether something has to be sent again.
const RESEND_INTERVAL: Duration = Duration::from_millis(100);
/// What is not acknowledged is waited for so long before the agent ends.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How often it looks meanwhile.
const LAST_WORDS_INTERVAL: Duration = Duration::from_millis(10);

/// What the agent has to send, in order.
pub(crate) enum Output {
    /// Mux bytes; cut and joined at will.
    Frame(Bytes),
    /// A message of its own.
    Message(u32, Bytes),
    /// All of a stream is said. It counts as open until that is numbered: otherwise the session would look quiet a moment too soon.
    StreamEnded,
}

/// What a session is for.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub session_type: String,
    pub properties: Value,
    /// Resolved at the session's start, once.
    pub addresses: Vec<SocketAddr>,
    /// What the session is encrypted with.
    pub encryption: Option<KmsKey>,
}

/// The KMS key of a session, and what its data key is bound to beside the session.
#[derive(Clone, Debug)]
pub(crate) struct KmsKey {
    pub id: String,
    pub target: String,
    /// Bound too by clients that know of it.
    pub challenge: String,
}

/// The agent's handle; its tasks hold it too.
pub(crate) struct Agent {
    state: Arc<State>,
    /// Only what the service sees of an agent's end, and of its data, goes by this; all messages go by the WebSocket.
    relay: Arc<Relay>,
    session: String,
    target: String,
    client_id: String,
    plan: Plan,
    outgoing: Mutex<Outgoing>,
    /// Its WebSocket's sending side. Full while the way takes nothing.
    socket: watch::Sender<Option<mpsc::Sender<Frame>>>,
    /// Told so by the service: nothing is sent but acknowledgements.
    paused: watch::Sender<bool>,
    handshake: watch::Sender<Handshake>,
    encryption: OnceLock<Encryption>,
    mux: Arc<Mux>,
    /// Does nothing at all, and nobody says so.
    pub hangs: watch::Sender<bool>,
    /// Cancelled when the session is over or its worker killed.
    life: CancellationToken,
}

impl Agent {
    /// The agent of a session; it ends with the session.
    pub fn new(state: Arc<State>, relay: Arc<Relay>, target: String, plan: Plan) -> Arc<Self> {
        Arc::new(Self {
            outgoing: Mutex::new(Outgoing::new()),
            socket: watch::Sender::new(None),
            paused: watch::Sender::new(false),
            handshake: watch::Sender::new(Handshake::Requested),
            encryption: OnceLock::new(),
            mux: Arc::new(Mux::new(relay.ended.child_token())),
            hangs: watch::Sender::new(false),
            life: relay.ended.child_token(),
            session: relay.session.clone(),
            client_id: Uuid::new_v4().to_string(),
            target,
            plan,
            relay,
            state,
        })
    }

    /// Begins.
    pub fn start(self: Arc<Self>) {
        let (output, outbox) = mpsc::channel(8);
        let tasks: [futures_util::future::BoxFuture<'static, ()>; 4] = [
            Box::pin(self.clone().receive(output.clone())),
            Box::pin(self.clone().send(outbox)),
            Box::pin(self.clone().repeat()),
            Box::pin(self.clone().open(output)),
        ];
        for task in tasks {
            let life = self.life.clone();
            self.state.handle.spawn(async move { life.run_until_cancelled(task).await });
        }
        let state = self.state.clone();
        state.handle.spawn(async move {
            self.life.cancelled().await;
            self.outgoing().forget();
        });
    }

    /// Dies at once, as a worker that is killed.
    pub fn kill(&self) {
        self.mux.over.cancel();
        self.life.cancel();
    }

    /// Ends as the worker does that has a result: its streams are over, and what is not acknowledged is waited for a little.
    fn wind_up(self: &Arc<Self>, output: &str, by_client: bool) {
        if self.mux.over.is_cancelled() {
            return;
        }
        self.mux.over.cancel();
        let (agent, outcome) = (self.clone(), Outcome { output: output.to_owned(), by_client });
        let wait = async move {
            // The acknowledgement of what has ended it goes out first.
            tokio::time::sleep(LAST_WORDS_INTERVAL).await;
            let acknowledged = async {
                while agent.outgoing().unacknowledged() > 0 {
                    tokio::time::sleep(LAST_WORDS_INTERVAL).await;
                }
            };
            let _ = tokio::time::timeout(LAST_WORDS, acknowledged).await;
            agent.relay.outcome.send_replace(Some(outcome));
        };
        let life = self.life.clone();
        self.state.handle.spawn(async move { life.run_until_cancelled(wait).await });
    }

    /// From the handshake on, if the session is encrypted.
    fn cipher(&self) -> Option<&Cipher> {
        self.encryption.get().map(|encryption| &encryption.cipher)
    }

    fn outgoing(&self) -> MutexGuard<'_, Outgoing> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the agent sends nothing: told to pause, away, or hanging.
    fn rests(&self) -> bool {
        self.state.faults.borrow().agent_away || *self.hangs.borrow() || *self.paused.borrow()
    }

    /// Sends into its WebSocket, if there is one. Waits while the way takes nothing; what a dying one swallows is lost.
    async fn transmit(&self, encoded: Bytes) {
        let socket = self.socket.borrow().clone();
        if let Some(socket) = socket {
            let _ = socket.send(Frame::Binary(encoded)).await;
        }
    }
}

/// The port of the target itself.
pub(crate) fn own_port(port: u16) -> Vec<SocketAddr> {
    vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)]
}
