//! Between a session's two data channels: its client's and its agent's. What one side says goes on to the other.
//!
//! Nothing is known of how the real service does it. Assumed is, of what matters to either side:
//! - It keeps nothing for a side that is away: what is sent to it is dropped, and the two ends repair it. Only before
//!   a side has come for the first time, its messages wait.
//! - A side that takes nothing is no reason to drop anything: the other side's connection is not read meanwhile (behind
//!   64 messages and what kernels hold), so that its pings are not answered either.
//! - It tells each side once when the other one has gone and when it has come back, and a side that was away itself
//!   then is not told later. A client hears of its agent at its very beginning, too (third parties have seen that). The agent, which is to stop sending, is told of a missing client also when it reconnects.
//! - It notices a connection's end when its TCP connection ends, never by silence.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::observer::Observer;
use crate::channel::{Link, Outbound};
use crate::line::Side;
use crate::state::State;
use crate::wire::message::{Header, Message, MessageType, payload};

/// What the agent says to the service alone.
const SESSION_STATE: &str = "agent_session_state";

/// One side's data channel.
#[derive(Default)]
struct End {
    link: watch::Sender<Option<Link>>,
    /// It was open once.
    met: AtomicBool,
}

/// Why a session is to end: the words for the client, and whether the client has asked for it.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub output: String,
    pub by_client: bool,
}

/// What is between a session's client and its agent.
pub(crate) struct Relay {
    state: Arc<State>,
    pub session: String,
    client: End,
    agent: End,
    /// The agent has said that the handshake is complete.
    shaken: AtomicBool,
    last_data: Mutex<Instant>,
    /// Looks at what an agent that is another process does. The lab's own tells by itself.
    observer: Option<Mutex<Observer>>,
    /// Cancelled when the session is over.
    pub ended: CancellationToken,
    /// What the agent's worker has ended with.
    pub outcome: watch::Sender<Option<Outcome>>,
}

impl Relay {
    /// Between two sides that have not come yet.
    pub fn start(state: Arc<State>, session: String, observed: bool) -> Arc<Self> {
        let observer = observed.then(|| Mutex::new(Observer::new(state.clone(), session.clone())));
        let relay = Arc::new(Self {
            client: End::default(),
            agent: End::default(),
            shaken: AtomicBool::new(false),
            last_data: Mutex::new(Instant::now()),
            ended: CancellationToken::new(),
            outcome: watch::Sender::new(None),
            observer,
            state,
            session,
        });
        let handle = relay.state.handle.clone();
        for side in [Side::Client, Side::Agent] {
            let (relay, ended) = (relay.clone(), relay.ended.clone());
            let telling = async move { ended.run_until_cancelled(relay.tell(side)).await };
            handle.spawn(telling);
        }
        relay
    }

    fn end(&self, side: Side) -> &End {
        match side {
            Side::Client => &self.client,
            Side::Agent => &self.agent,
        }
    }

    /// A side has opened a data channel; an older one is forgotten.
    pub fn attach(&self, side: Side, link: Link) {
        let end = self.end(side);
        end.link.send_replace(Some(link));
        end.met.store(true, Ordering::Release);
        self.connected(side, true);
    }

    /// A side's data channel is closed.
    pub fn detach(&self, side: Side, connection: u64) {
        let gone = self.end(side).link.send_if_modified(|link| {
            let current = link.as_ref().is_some_and(|link| link.connection == connection);
            if current {
                *link = None;
            }
            current
        });
        if gone {
            self.connected(side, false);
        }
    }

    fn connected(&self, side: Side, connected: bool) {
        self.state.count(|status| {
            status.session(&self.session, |session| match side {
                Side::Client => {
                    session.connected = connected;
                    session.met = true;
                }
                Side::Agent => session.agent_connected = connected,
            });
        });
    }

    /// A side's data channel, if it is open.
    pub fn link(&self, side: Side) -> Option<Link> {
        self.end(side).link.borrow().clone()
    }

    /// Since the last stream data in either direction.
    pub fn idle(&self) -> Duration {
        self.last_data.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// Stream data has passed.
    pub fn touch(&self) {
        *self.last_data.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// From the client. Waits while the agent takes nothing.
    pub async fn to_agent(&self, message: &Message, encoded: Bytes) {
        if self.state.faults.borrow().agent_away {
            return self.state.count(|status| status.lost += 1);
        }
        let lost = self.shaken.load(Ordering::Acquire)
            && match message.kind {
                MessageType::Acknowledge => self.state.loses(|loss| loss.acknowledgements_in),
                _ => self.state.loses(|loss| loss.input),
            };
        if !lost {
            self.observe(|observer| observer.client_said(message));
            self.pass(Side::Agent, encoded).await;
        }
    }

    /// From the agent. Waits while the client takes nothing.
    pub async fn to_client(&self, encoded: Bytes) {
        let Some(header) = Header::of(&encoded) else {
            return self.state.violation(&self.session, "the agent has sent what is no message");
        };
        let data = matches!(header.payload_type, payload::DATA | payload::FLAG);
        let shaken = self.shaken.load(Ordering::Acquire);
        let lost = match header.kind {
            Some(_) if self.state.faults.borrow().agent_away => {
                self.state.count(|status| status.lost += 1);
                true
            }
            Some(MessageType::Acknowledge) => shaken && self.state.loses(|loss| loss.acknowledgements_out),
            // The handshake is spared, whoever has it sent again.
            Some(MessageType::OutputStreamData) => data && self.state.loses(|loss| loss.output),
            None if header.name == SESSION_STATE => return,
            _ => {
                let words = format!("an agent has sent {}", header.name);
                return self.state.violation(&self.session, words);
            }
        };
        if header.payload_type == payload::HANDSHAKE_COMPLETE {
            self.shaken.store(true, Ordering::Release);
        }
        self.observe(|observer| observer.agent_said(&encoded));
        if !lost {
            self.pass(Side::Client, encoded).await;
        }
    }

    fn observe(&self, look: impl FnOnce(&mut Observer) -> bool) {
        if let Some(observer) = &self.observer
            && look(&mut observer.lock().unwrap_or_else(PoisonError::into_inner))
        {
            self.touch();
        }
    }

    /// What a dying connection swallows is lost, as is what nobody takes.
    async fn pass(&self, to: Side, encoded: Bytes) {
        let end = self.end(to);
        let link = if end.met.load(Ordering::Acquire) {
            end.link.borrow().clone()
        } else {
            let mut first = end.link.subscribe();
            first.wait_for(Option::is_some).await.ok().and_then(|link| link.clone())
        };
        let sent = match link {
            Some(link) => link.queue.send(Outbound::Message(encoded)).await.is_ok(),
            None => false,
        };
        if !sent {
            self.state.count(|status| status.undelivered += 1);
        }
    }

    /// Tells one side when the other one goes and comes.
    async fn tell(&self, side: Side) {
        let other = match side {
            Side::Client => Side::Agent,
            Side::Agent => Side::Client,
        };
        let mut others = self.end(other).link.subscribe();
        let (mut own, mut faults) = (self.end(side).link.subscribe(), self.state.faults.subscribe());
        if others.wait_for(Option::is_some).await.is_err() {
            return;
        }
        if side == Side::Client && own.wait_for(Option::is_some).await.is_err() {
            return;
        }
        // What this side was told last, and under which connection. A client is told of its agent at its beginning.
        let (mut told, mut under) = (side == Side::Agent, None);
        loop {
            let away = side == Side::Client && faults.borrow_and_update().agent_away;
            let there = others.borrow_and_update().is_some() && !away;
            let link = own.borrow_and_update().clone();
            let connection = link.as_ref().map(|link| link.connection);
            if side == Side::Agent && connection.is_some() && connection != under {
                told = true;
            }
            under = connection;
            let silent = side == Side::Agent && !self.state.options.pauses_agent;
            if std::mem::replace(&mut told, there) != there && !silent {
                let kind = match there {
                    true => MessageType::StartPublication,
                    false => MessageType::PausePublication,
                };
                if let Some(link) = link {
                    let message = Message::unnumbered(kind, "").encode_of_service();
                    let _ = link.queue.send(Outbound::Message(message)).await;
                }
            }
            tokio::select! {
                _ = others.changed() => {}
                _ = own.changed() => {}
                _ = faults.changed() => {}
            }
        }
    }
}
