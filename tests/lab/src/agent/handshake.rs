//! The handshake, from the agent's side: it asks, the client answers, the agent says that it is over. Where the session
//! is encrypted the agent has the client prove in between that both have the same key.

use std::sync::Arc;
use std::time::Instant;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::interval_at;

use super::streams::frame_output;
use super::{Agent, KmsKey, Output};
use crate::service::kms;
use crate::wire::cipher::Cipher;
use crate::wire::handshake::{
    Challenge, EncryptionParameters, EncryptionResult, HandshakeComplete, HandshakeRequest,
    HandshakeResponse, RequestedAction,
};
use crate::wire::message::{Message, payload};
use crate::wire::mux::{Command, Frame};

/// The last client version whose mux the agent has keep-alives with: later ones would have their idle timeout reset by them.
const LAST_WITH_KEEP_ALIVES: [u64; 4] = [1, 2, 331, 0];

fn has_keep_alives(client_version: &str) -> bool {
    let mut parts = client_version.split('.').map(|part| part.parse().unwrap_or_default());
    [(); 4].map(|()| parts.next().unwrap_or_default()) <= LAST_WITH_KEEP_ALIVES
}

/// How far the handshake has come.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
pub(super) enum Handshake {
    Requested,
    Answered,
    /// The client has proven its key.
    Challenged,
    /// The agent has said so.
    Complete,
    /// The agent takes data.
    SetUp,
}

/// The keys of an encrypted session.
pub(super) struct Encryption {
    pub cipher: Cipher,
    /// What the client has to send back.
    challenge: [u8; 64],
}

impl Agent {
    /// The handshake, from the agent's side, and what comes after it.
    pub(super) async fn open(self: Arc<Self>, output: mpsc::Sender<Output>) {
        let opened = self.socket.subscribe().wait_for(Option::is_some).await.is_ok();
        if !opened {
            return;
        }
        let state = json!({ "SchemaVersion": 1, "SessionState": "Connected", "SessionId": self.session });
        self.transmit(Message::encode_named("agent_session_state", json_bytes(&state))).await;
        let begun = Instant::now();
        let mut requested_client_actions = vec![RequestedAction {
            action_type: "SessionType".into(),
            action_parameters: json!({
                "SessionType": self.plan.session_type,
                "Properties": self.plan.properties,
            }),
        }];
        if let Some(KmsKey { id, challenge, .. }) = self.plan.encryption.clone() {
            requested_client_actions.push(RequestedAction {
                action_type: "KMSEncryption".into(),
                action_parameters: json!(EncryptionParameters { key: id, challenge }),
            });
        }
        let agent_version = self.state.options.agent_version.clone();
        let request = HandshakeRequest { agent_version, requested_client_actions };
        let request = Output::Message(payload::HANDSHAKE_REQUEST, json_bytes(&request));
        let _ = output.send(request).await;
        if !self.comes_to(Handshake::Answered).await {
            return self.fail(
                "Handshake timed out. Please ensure that you have the latest version of the session manager plugin.",
            );
        }
        if let Some(encryption) = self.encryption.get() {
            let challenge = Challenge::of(&encryption.cipher.seal(&encryption.challenge));
            let _ = output.send(Output::Message(payload::CHALLENGE, json_bytes(&challenge))).await;
            if !self.comes_to(Handshake::Challenged).await {
                return self.fail("Timed out waiting for encryption challenge.");
            }
        }
        let customer_message = match self.plan.encryption {
            Some(_) => "This session is encrypted using AWS KMS.".to_owned(),
            None => String::new(),
        };
        let handshake_time_to_complete = begun.elapsed().as_nanos() as u64;
        let complete = HandshakeComplete { handshake_time_to_complete, customer_message };
        let _ = output.send(Output::Message(payload::HANDSHAKE_COMPLETE, json_bytes(&complete))).await;
        if self.plan.session_type != "Port" {
            let _ = output.send(Output::Message(payload::DATA, Bytes::from_static(b"sh-5.2$ "))).await;
        }
        let _ = self.handshake.subscribe().wait_for(|handshake| *handshake >= Handshake::Complete).await;
        tokio::time::sleep(self.state.options.set_up).await;
        self.handshake.send_replace(Handshake::SetUp);
        let mut version = String::new();
        self.state.count(|status| {
            status.session(&self.session, |session| {
                session.ready = true;
                version.clone_from(&session.client_version);
            });
        });
        if self.plan.session_type == "Port" && has_keep_alives(&version) {
            self.keep_mux_alive(&output).await;
        }
    }

    /// What the mux does where its keep-alives are on. Ends with its session.
    async fn keep_mux_alive(self: &Arc<Self>, output: &mpsc::Sender<Output>) {
        let options = &self.state.options;
        let now = tokio::time::Instant::now();
        let mut ping = interval_at(now + options.mux_keep_alive, options.mux_keep_alive);
        let mut look = interval_at(now + options.mux_keep_alive_timeout, options.mux_keep_alive_timeout);
        loop {
            tokio::select! {
                _ = ping.tick() => {
                    let _ = output.send(frame_output(&Frame::control(Command::Nop, 0))).await;
                }
                _ = look.tick() => if self.mux.is_silent() {
                    return self.wind_up("", false);
                },
            }
        }
    }

    /// Ends for a handshake that has failed, in the words that become of it on their way to the client.
    fn fail(self: &Arc<Self>, words: &str) {
        let words =
            format!("\n----------ERROR-------\nEncountered error while initiating handshake. {words}");
        self.wind_up(&words, false);
    }

    async fn comes_to(&self, wanted: Handshake) -> bool {
        let mut handshake = self.handshake.subscribe();
        let come = handshake.wait_for(|handshake| *handshake >= wanted);
        matches!(tokio::time::timeout(self.state.options.handshake_timeout, come).await, Ok(Ok(_)))
    }

    pub(super) fn handshake_response(self: &Arc<Self>, message: &Message) {
        let response: HandshakeResponse = match serde_json::from_slice(&message.payload) {
            Ok(response) => response,
            Err(error) => {
                return self.state.violation(&self.session, format_args!("handshake response: {error}"));
            }
        };
        if let Some(failed) =
            response.processed_client_actions.iter().find(|action| action.action_status != 1)
        {
            let words = format!(
                "{} failed on client with status {} error: {}",
                failed.action_type, failed.action_status, failed.error
            );
            return self.fail(&words);
        }
        if let Some(key) = &self.plan.encryption {
            let result = response.processed_client_actions.iter().find(|a| a.action_type == "KMSEncryption");
            let cipher = result
                .and_then(|action| serde_json::from_value(action.action_result.clone()).ok())
                .and_then(|result| self.cipher_of(&result, key));
            let Some(cipher) = cipher else {
                return self.fail("Fetching data key failed: Unable to retrieve data key");
            };
            let challenge = rand::random();
            // Once: the agent processes a message number once.
            let _ = self.encryption.set(Encryption { cipher, challenge });
        }
        self.state.count(|status| {
            status.session(&self.session, |session| {
                session.client_version = response.client_version;
                session.encrypted = self.plan.encryption.is_some();
            });
        });
        self.handshake.send_replace(Handshake::Answered);
    }

    fn cipher_of(&self, result: &EncryptionResult, key: &KmsKey) -> Option<Cipher> {
        let blob = BASE64_STANDARD.decode(&result.key).ok()?;
        let mut context = kms::Context::from([
            ("aws:ssm:SessionId".to_owned(), self.session.clone()),
            ("aws:ssm:TargetId".to_owned(), key.target.clone()),
        ]);
        if result.challenged {
            context.insert("aws:ssm:RandomChallenge".to_owned(), key.challenge.clone());
        }
        Cipher::of_agent(&kms::decrypt(&self.state, &blob, &context)?)
    }

    pub(super) fn challenge_response(&self, message: &Message) {
        let right = self.encryption.get().is_some_and(|encryption| {
            serde_json::from_slice(&message.payload)
                .ok()
                .and_then(|answer: Challenge| encryption.cipher.open(&answer.sealed()?))
                .is_some_and(|answer| answer == encryption.challenge[..])
        });
        if right {
            self.handshake.send_replace(Handshake::Challenged);
        } else {
            self.state.violation(&self.session, "Encryption challenge does not match!");
        }
    }
}

fn json_bytes(content: &impl serde::Serialize) -> Bytes {
    // Strings and numbers: serialization cannot fail.
    serde_json::to_vec(content).unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_clients_and_builds_of_the_public_source_have_keep_alives() {
        assert!(has_keep_alives("1.2.331.0") && has_keep_alives("1.2.0.0") && has_keep_alives("1.1.70"));
        assert!(!has_keep_alives("1.2.332.0") && !has_keep_alives("1.2.764.0") && !has_keep_alives("2.0"));
    }
}
