//! A session as the service keeps it: its token, and its end.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use uuid::Uuid;

use super::agents::TERMINATED;
use super::relay::Relay;
use crate::agent::Plan;
use crate::channel::Outbound;
use crate::line::Side;
use crate::state::State;
use crate::status::{Ended, SessionStatus};
use crate::wire::handshake::{ChannelClosed, OpenDataChannel};
use crate::wire::message::{Message, MessageType};
use crate::worker::Worker;

/// How often the idle and life limits are looked at.
const LIMITS_INTERVAL: Duration = Duration::from_millis(50);
/// A client is given so long to take the word that its session has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A live or ended session.
pub(crate) struct Session {
    pub id: String,
    pub target: String,
    pub document: String,
    pub reason: String,
    pub relay: Arc<Relay>,
    pub worker: Worker,
    started: Instant,
    grant: Mutex<Grant>,
    /// What opens the agent's data channel: once.
    agent_token: Mutex<Option<String>>,
}

/// What opens the data channel: once, with this token under this address.
#[derive(Default)]
struct Grant {
    token: String,
    cell: String,
    used: bool,
    client: Option<String>,
}

/// What a session is asked for.
pub(crate) struct Request {
    pub target: String,
    pub document: String,
    pub reason: String,
    pub plan: Plan,
}

impl Session {
    pub fn start(state: &Arc<State>, request: Request) -> Arc<Self> {
        let id = format!("lab-{}", &Uuid::new_v4().simple().to_string()[..17]);
        let observed = Worker::is_external(state, &request.plan);
        let relay = Relay::start(state.clone(), id.clone(), observed);
        let worker = Worker::new(state, &relay, &request.target, request.plan);
        let session = Arc::new(Self {
            target: request.target,
            document: request.document,
            reason: request.reason,
            started: Instant::now(),
            grant: Mutex::default(),
            agent_token: Mutex::default(),
            relay,
            worker,
            id,
        });
        state.world().sessions.insert(session.id.clone(), session.clone());
        state.count(|status| {
            let entry = SessionStatus {
                target: session.target.clone(),
                document: session.document.clone(),
                reason: session.reason.clone(),
                ..SessionStatus::default()
            };
            status.sessions.insert(session.id.clone(), entry);
        });
        state.handle.spawn(session.clone().watch_limits(state.clone()));
        // It asks for its token at once.
        session.worker.start();
        session
    }

    pub fn is_live(&self) -> bool {
        !self.relay.ended.is_cancelled()
    }

    /// A fresh token and stream URL; older ones are void from now on.
    pub fn grant(&self, host: &str) -> (String, String) {
        let random: Vec<u8> = (0..6).flat_map(|_| *Uuid::new_v4().as_bytes()).collect();
        let token = format!("AAEAA{}", BASE64_STANDARD.encode(&random));
        let cell = format!("AAEx{}", &BASE64_STANDARD.encode(&random[..48]).replace(['+', '/', '='], "x"));
        let url =
            format!("wss://{host}/v1/data-channel/{}?role=publish_subscribe&cell-number={cell}", self.id);
        let mut grant = self.grant.lock().unwrap_or_else(PoisonError::into_inner);
        *grant = Grant { token: token.clone(), cell, used: false, client: grant.client.take() };
        (token, url)
    }

    /// A fresh token for the agent; older ones are void from now on.
    pub fn grant_to_agent(&self) -> String {
        let token = format!("agent-{}", Uuid::new_v4().simple());
        *self.agent_token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token.clone());
        token
    }

    /// Checks the first message of the agent's data channel and uses its token up.
    ///
    /// # Errors
    /// Why it does not open the channel.
    pub fn admit_agent(&self, open: &OpenDataChannel) -> Result<(), &'static str> {
        let mut token = self.agent_token.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_live() {
            return Err(TERMINATED);
        }
        match token.take_if(|token| *token == open.token_value) {
            Some(_) => Ok(()),
            None => Err("the token is wrong, old or used"),
        }
    }

    /// Checks the first message of a client's data channel and uses its token up.
    ///
    /// # Errors
    /// Why it does not open the channel.
    pub fn admit(&self, state: &State, open: &OpenDataChannel, cell: &str) -> Result<(), &'static str> {
        let mut grant = self.grant.lock().unwrap_or_else(PoisonError::into_inner);
        let old_url = cell != grant.cell;
        if !self.is_live() {
            return Err(TERMINATED);
        } else if open.token_value != grant.token {
            return Err("the token is wrong or old");
        } else if old_url && state.options.cells_expire {
            return Err("the stream URL is old");
        } else if std::mem::replace(&mut grant.used, true) {
            return Err("the token has been used");
        }
        state.count(|status| status.old_urls += u64::from(old_url));
        if open.message_schema_version != "1.0" || Uuid::parse_str(&open.request_id).is_err() {
            state.violation(&self.id, "the first message is malformed");
        }
        if grant.client.get_or_insert_with(|| open.client_id.clone()) != &open.client_id {
            state.violation(&self.id, "the client id has changed");
        }
        Ok(())
    }

    /// Ends the session, and tells the client if it is connected.
    pub fn end(&self, state: &Arc<State>, output: &str, by_client: bool) {
        let mut first = false;
        state.count(|status| {
            first = status.sessions.remove(&self.id).is_some();
            if first {
                let (session, output) = (self.id.clone(), output.to_owned());
                status.ended.push(Ended { session, output, by_client });
            }
        });
        if !first {
            return;
        }
        self.relay.ended.cancel();
        let content = ChannelClosed {
            message_type: MessageType::ChannelClosed.as_str().into(),
            message_id: Uuid::new_v4().to_string(),
            destination_id: self.target.clone(),
            session_id: self.id.clone(),
            schema_version: 1,
            created_date: "Thu Jan 01 00:00:00 UTC 2026".into(),
            output: output.into(),
        };
        // Strings and numbers: serialization cannot fail.
        let content = Bytes::from(serde_json::to_vec(&content).unwrap_or_default());
        for link in [Side::Client, Side::Agent].into_iter().filter_map(|side| self.relay.link(side)) {
            let content = content.clone();
            state.handle.spawn(async move {
                let farewell = async {
                    let message =
                        Message::unnumbered(MessageType::ChannelClosed, content).encode_of_service();
                    let _ = link.queue.send(Outbound::Message(message)).await;
                    let _ = link.queue.send(Outbound::Close(1000, String::new())).await;
                };
                if tokio::time::timeout(LAST_WORDS, farewell).await.is_err() {
                    link.line.cancel();
                }
            });
        }
    }

    /// Ends the session when it has been idle too long, lived too long, or the agent gives up.
    async fn watch_limits(self: Arc<Self>, state: Arc<State>) {
        let mut outcome = self.relay.outcome.subscribe();
        let mut tick = tokio::time::interval(LIMITS_INTERVAL);
        loop {
            tokio::select! {
                () = self.relay.ended.cancelled() => return,
                _ = tick.tick() => {}
                _ = outcome.changed() => {}
            }
            let faults = *state.faults.borrow();
            let outcome = outcome.borrow_and_update().clone();
            if let Some(outcome) = outcome {
                self.end(&state, &outcome.output, outcome.by_client);
            } else if faults.maximum_life.is_some_and(|limit| self.started.elapsed() >= limit) {
                self.end(&state, "Your session timed out due to maximum session duration", false);
            } else if self.relay.idle() >= faults.idle_timeout {
                self.end(&state, "Your session timed out due to inactivity", false);
            }
        }
    }
}

/// The addresses of a session's destination, as the agent finds them at its start. Nothing beyond loopback is ever
/// dialled.
pub(crate) async fn resolve(state: &State, host: Option<&str>, port: u16) -> Vec<SocketAddr> {
    let Some(host) = host.filter(|host| !host.is_empty()) else {
        return crate::agent::own_port(port);
    };
    let known = state.world().hosts.get(host).cloned();
    let addresses = match known {
        Some(addresses) => addresses,
        None => tokio::net::lookup_host((host, port)).await.map(Iterator::collect).unwrap_or_default(),
    };
    addresses.into_iter().filter(|address| address.ip().is_loopback()).collect()
}
