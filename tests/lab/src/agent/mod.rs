//! The agent of one session: it lives as long as the session, whatever becomes of the client's WebSockets.
//!
//! Three tasks: one receives the client's messages in order, one numbers and sends the agent's, one sends again
//! what was not acknowledged.

mod handshake;
mod numbering;
mod streams;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::channel::Outbound;
use crate::fault::Network;
use crate::state::State;
use crate::wire::cipher::Cipher;
use crate::wire::message::{Message, MessageType, flag, payload};
use handshake::{Encryption, Handshake};
use numbering::{Incoming, Outgoing, Verdict};
use streams::Streams;

/// The agent cuts its output into messages of this size.
const PAYLOAD: usize = 1024;
/// How often the agent looks whether something has to be sent again.
const RESEND_INTERVAL: Duration = Duration::from_millis(100);

/// What the agent has to send, in order.
pub(crate) enum Output {
    /// Mux bytes; cut and joined at will.
    Frame(Bytes),
    /// A message of its own.
    Message(u32, Bytes),
    /// All of a stream is said. It counts as open until that is numbered: otherwise the session would look quiet a moment too soon.
    StreamEnded,
}

/// Where the agent reaches the client at the moment.
#[derive(Clone)]
pub(crate) struct Link {
    pub connection: u64,
    pub queue: mpsc::Sender<Outbound>,
    /// Resets its TCP connection.
    pub line: CancellationToken,
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
    session: String,
    outgoing: Mutex<Outgoing>,
    link: watch::Sender<Option<Link>>,
    inbound: mpsc::Sender<Message>,
    handshake: watch::Sender<Handshake>,
    kms_key: Option<KmsKey>,
    encryption: OnceLock<Encryption>,
    last_data: Mutex<Instant>,
    /// Does nothing at all, and nobody says so.
    pub hangs: watch::Sender<bool>,
    /// Cancelled when the session is over.
    pub ended: CancellationToken,
    /// The agent's own reason to end the session: its words, and whether the client asked for it.
    pub gives_up: watch::Sender<Option<(String, bool)>>,
}

impl Agent {
    /// Starts the agent of a session; it ends with `ended`.
    pub fn start(state: Arc<State>, session: String, plan: Plan, ended: CancellationToken) -> Arc<Self> {
        let (inbound, inbox) = mpsc::channel(64);
        let (output, outbox) = mpsc::channel(8);
        let agent = Arc::new(Self {
            outgoing: Mutex::new(Outgoing::new()),
            link: watch::Sender::new(None),
            inbound,
            handshake: watch::Sender::new(Handshake::Requested),
            kms_key: plan.encryption.clone(),
            encryption: OnceLock::new(),
            last_data: Mutex::new(Instant::now()),
            hangs: watch::Sender::new(false),
            gives_up: watch::Sender::new(None),
            ended,
            state,
            session,
        });
        let tasks: [futures_util::future::BoxFuture<'static, ()>; 3] = [
            Box::pin(agent.clone().receive_all(inbox, plan.clone(), output.clone())),
            Box::pin(agent.clone().send_all(outbox)),
            Box::pin(agent.clone().repeat_and_watch()),
        ];
        for task in tasks {
            let ended = agent.ended.clone();
            agent.state.handle.spawn(async move { ended.run_until_cancelled(task).await });
        }
        let (opening, ended) = (agent.clone().open(plan, output), agent.ended.clone());
        agent.state.handle.spawn(async move { ended.run_until_cancelled(opening).await });
        agent
    }

    /// The client has opened a data channel; an older one is forgotten.
    pub fn attach(&self, link: Link) {
        self.link.send_replace(Some(link));
        self.state.count(|status| status.session(&self.session, |session| session.connected = true));
    }

    /// The client's data channel is closed.
    pub fn detach(&self, connection: u64) {
        let gone = self.link.send_if_modified(|link| {
            let current = link.as_ref().is_some_and(|link| link.connection == connection);
            if current {
                *link = None;
            }
            current
        });
        if gone {
            self.state.count(|status| status.session(&self.session, |session| session.connected = false));
        }
    }

    /// The client's data channel, if it is open.
    pub fn client(&self) -> Option<Link> {
        self.link.borrow().clone()
    }

    /// Hands a client's message to the agent. Waits while the agent is busy.
    pub async fn deliver(&self, message: Message) {
        let away = self.state.faults.borrow().agent_away || *self.hangs.borrow();
        let shaking_hands = *self.handshake.borrow() != Handshake::Complete;
        let lost = match message.kind {
            _ if away => {
                self.state.count(|status| status.lost += 1);
                true
            }
            _ if shaking_hands => false,
            MessageType::Acknowledge => self.state.loses(|loss| loss.acknowledgements_in),
            _ => self.state.loses(|loss| loss.input),
        };
        if !lost {
            let _ = self.inbound.send(message).await;
        }
    }

    /// The session is over: the tasks end, and what was kept for resending goes.
    pub fn end(&self) {
        self.ended.cancel();
        self.outgoing().forget();
    }

    /// Since the last stream data in either direction.
    pub fn idle(&self) -> Duration {
        self.last_data.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    fn touch(&self) {
        *self.last_data.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// From the handshake on, if the session is encrypted.
    fn cipher(&self) -> Option<&Cipher> {
        self.encryption.get().map(|encryption| &encryption.cipher)
    }

    fn outgoing(&self) -> MutexGuard<'_, Outgoing> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the agent sends nothing: told to pause, away, or hanging.
    fn paused(&self) -> bool {
        self.state.faults.borrow().agent_away
            || *self.hangs.borrow()
            || (self.state.options.pauses_agent && self.link.borrow().is_none())
    }

    /// Sends into the client's connection, if there is one. What a dying connection swallows is lost.
    async fn transmit(&self, encoded: Bytes) {
        let link = self.link.borrow().clone();
        if let Some(link) = link {
            let _ = link.queue.send(Outbound::Message(encoded)).await;
        }
    }

    async fn receive_all(
        self: Arc<Self>,
        mut inbox: mpsc::Receiver<Message>,
        plan: Plan,
        output: mpsc::Sender<Output>,
    ) {
        let mut incoming = Incoming::default();
        let mut missing: Option<(i64, Duration)> = None;
        let mut tick = tokio::time::interval(RESEND_INTERVAL);
        let mut streams = (plan.session_type == "Port").then(|| {
            Streams::new(self.state.clone(), self.session.clone(), plan.addresses, output, self.ended.clone())
        });
        loop {
            let message = tokio::select! {
                Some(message) = inbox.recv() => message,
                _ = tick.tick() => {
                    self.watch_gap(&incoming, &mut missing);
                    continue;
                }
            };
            match message.kind {
                MessageType::Acknowledge => self.acknowledged(&message),
                MessageType::InputStreamData => {
                    let acknowledgement = message.acknowledgement();
                    match incoming.receive(message) {
                        Ok(Verdict::Process(message)) => {
                            self.process(message, &mut streams).await;
                            self.acknowledge(acknowledgement).await;
                            while let Some(message) = incoming.next_in_order() {
                                self.process(message, &mut streams).await;
                            }
                        }
                        Ok(Verdict::Kept) => self.acknowledge(acknowledgement).await,
                        Ok(Verdict::Repeated) => {
                            self.state.count(|status| status.duplicates += 1);
                            self.acknowledge(acknowledgement).await;
                        }
                        Ok(Verdict::FlagCollision) => {
                            self.state.count(|status| status.flag_collisions += 1);
                            self.acknowledge(acknowledgement).await;
                        }
                        Ok(Verdict::NoRoom) => {}
                        Err(violation) => self.state.violation(&self.session, violation),
                    }
                    let received = incoming.expected();
                    self.state
                        .count(|status| status.session(&self.session, |session| session.received = received));
                }
                other => {
                    self.state.violation(&self.session, format_args!("a client sent {}", other.as_str()))
                }
            }
        }
    }

    /// A number that stays missing although everything works is a message that its sender has forgotten.
    fn watch_gap(&self, incoming: &Incoming, missing: &mut Option<(i64, Duration)>) {
        let faults = *self.state.faults.borrow();
        let works = faults.network == Network::Up
            && !faults.agent_away
            && !*self.hangs.borrow()
            && self.link.borrow().is_some();
        *missing = match (incoming.gap(), *missing) {
            (None, _) => None,
            (Some(gap), Some((same, since))) if gap == same => {
                let longer = if works { since + RESEND_INTERVAL } else { Duration::ZERO };
                let limit = self.state.options.gap_limit;
                if since < limit && longer >= limit {
                    self.state.violation(
                        &self.session,
                        format_args!("message {gap} has been missing for {limit:?}"),
                    );
                }
                Some((gap, longer))
            }
            (Some(gap), _) => Some((gap, Duration::ZERO)),
        };
    }

    fn acknowledged(&self, message: &Message) {
        let outcome = match message.acknowledged() {
            Ok(content) => self.outgoing().acknowledge(Instant::now(), &content),
            Err(error) => Err(format!("an acknowledgement that cannot be read: {error}")),
        };
        if let Err(violation) = outcome {
            self.state.violation(&self.session, violation);
        }
        let unacknowledged = self.outgoing().unacknowledged();
        self.state.count(|status| {
            status.session(&self.session, |session| session.unacknowledged = unacknowledged);
        });
    }

    async fn acknowledge(&self, acknowledgement: Message) {
        let shaking_hands = *self.handshake.borrow() != Handshake::Complete;
        if shaking_hands || !self.state.loses(|loss| loss.acknowledgements_out) {
            self.transmit(acknowledgement.encode()).await;
        }
    }

    async fn process(&self, message: Message, streams: &mut Option<Streams>) {
        let handshake = *self.handshake.borrow();
        match message.payload_type {
            payload::HANDSHAKE_RESPONSE => self.handshake_response(&message),
            payload::CHALLENGE_RESPONSE => self.challenge_response(&message),
            payload::FLAG if message.flag() == Some(flag::TERMINATE_SESSION) => {
                self.gives_up.send_replace(Some((String::new(), true)));
            }
            payload::FLAG => {}
            // The real agent acknowledges such a message and throws it away: it would be lost without a trace.
            payload::DATA if handshake != Handshake::Complete => {
                self.state.violation(&self.session, "stream data before the handshake was complete");
            }
            payload::DATA => {
                self.touch();
                let data = match self.cipher() {
                    Some(cipher) => cipher.open(&message.payload),
                    None => Some(message.payload),
                };
                match (data, streams) {
                    (Some(data), Some(streams)) => streams.receive(&data).await,
                    (None, _) => self.state.violation(&self.session, "data that cannot be decrypted"),
                    (Some(_), None) => {}
                }
            }
            // Terminal sizes of shell sessions.
            3 => {}
            other => self.state.violation(&self.session, format_args!("payload type {other} from a client")),
        }
    }

    async fn send_all(self: Arc<Self>, mut outbox: mpsc::Receiver<Output>) {
        let (mut link, mut faults) = (self.link.subscribe(), self.state.faults.subscribe());
        let mut hangs = self.hangs.subscribe();
        let mut next = tokio::time::Instant::now();
        let (mut bytes, mut own) = (BytesMut::new(), None);
        // How many bytes are to be sent before a stream has ended.
        let mut ends: Vec<usize> = Vec::new();
        loop {
            while self.paused() {
                tokio::select! {
                    _ = link.changed() => {}
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
                self.send(kind, content, &mut next).await;
            } else {
                let cut = bytes.split_to(bytes.len().min(PAYLOAD)).freeze();
                ends.iter_mut().for_each(|before| *before = before.saturating_sub(cut.len()));
                self.send(payload::DATA, cut, &mut next).await;
            }
        }
    }

    async fn send(&self, kind: u32, content: Bytes, next: &mut tokio::time::Instant) {
        let content = match self.cipher() {
            Some(cipher) if kind == payload::DATA => cipher.seal(&content),
            _ => content,
        };
        if kind == payload::DATA {
            self.touch();
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
                session.ready |= kind == payload::HANDSHAKE_COMPLETE;
            });
        });
        // Paused in between: kept for resending, as the real agent does.
        let spared = !matches!(kind, payload::DATA | payload::FLAG);
        if !self.paused() && (spared || !self.state.loses(|loss| loss.output)) {
            self.transmit(encoded).await;
        }
        // A millisecond after each message, kept on the average: timers are coarser than that.
        let now = tokio::time::Instant::now();
        *next = (*next).max(now - 4 * self.state.options.pace) + self.state.options.pace;
        if *next > now + self.state.options.pace {
            tokio::time::sleep_until(*next).await;
        }
    }

    async fn repeat_and_watch(self: Arc<Self>) {
        let mut tick = tokio::time::interval(RESEND_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut away = false;
        loop {
            tick.tick().await;
            let away_now = self.state.faults.borrow().agent_away;
            if std::mem::replace(&mut away, away_now) != away_now {
                let kind = if away { MessageType::PausePublication } else { MessageType::StartPublication };
                self.transmit(Message::unnumbered(kind, "").encode()).await;
            }
            if self.paused() {
                continue;
            }
            let due = self.outgoing().due(Instant::now());
            if let Some(resend) = due {
                self.state.count(|status| {
                    status.resent += 1;
                    status.never_acknowledged += u64::from(resend.hopeless);
                });
                if !self.state.loses(|loss| loss.output) {
                    self.transmit(resend.encoded).await;
                }
            }
        }
    }
}

/// The port of the target itself.
pub(crate) fn own_port(port: u16) -> Vec<SocketAddr> {
    vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)]
}
