//! The handshake, from the agent's side: it asks, the client answers, the agent says that it is over. Where the session
//! is encrypted the agent has the client prove in between that both have the same key.

use std::sync::Arc;
use std::time::Instant;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde_json::json;
use tokio::sync::mpsc;

use super::{Agent, KmsKey, Output, Plan};
use crate::service::kms;
use crate::wire::cipher::Cipher;
use crate::wire::handshake::{
    Challenge, EncryptionParameters, EncryptionResult, HandshakeComplete, HandshakeRequest,
    HandshakeResponse, RequestedAction,
};
use crate::wire::message::{Message, payload};

/// How far the handshake has come.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
pub(super) enum Handshake {
    Requested,
    Answered,
    /// The client has proven its key.
    Challenged,
    Complete,
}

/// The keys of an encrypted session.
pub(super) struct Encryption {
    pub cipher: Cipher,
    /// What the client has to send back.
    challenge: [u8; 64],
}

impl Agent {
    /// The handshake, from the agent's side.
    pub(super) async fn open(self: Arc<Self>, plan: Plan, output: mpsc::Sender<Output>) {
        let begun = Instant::now();
        let mut requested_client_actions = vec![RequestedAction {
            action_type: "SessionType".into(),
            action_parameters: json!({ "SessionType": plan.session_type, "Properties": plan.properties }),
        }];
        if let Some(KmsKey { id, challenge, .. }) = self.kms_key.clone() {
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
            return self.give_up(
                "Handshake timed out. Please ensure that you have the latest version of the session manager plugin.",
            );
        }
        if let Some(encryption) = self.encryption.get() {
            let challenge = Challenge::of(&encryption.cipher.seal(&encryption.challenge));
            let _ = output.send(Output::Message(payload::CHALLENGE, json_bytes(&challenge))).await;
            if !self.comes_to(Handshake::Challenged).await {
                return self.give_up("Timed out waiting for encryption challenge.");
            }
        }
        let customer_message = match self.kms_key {
            Some(_) => "This session is encrypted using AWS KMS.".to_owned(),
            None => String::new(),
        };
        let handshake_time_to_complete = begun.elapsed().as_nanos() as u64;
        let complete = HandshakeComplete { handshake_time_to_complete, customer_message };
        let _ = output.send(Output::Message(payload::HANDSHAKE_COMPLETE, json_bytes(&complete))).await;
        if plan.session_type != "Port" {
            let _ = output.send(Output::Message(payload::DATA, Bytes::from_static(b"sh-5.2$ "))).await;
        }
    }

    async fn comes_to(&self, wanted: Handshake) -> bool {
        let mut handshake = self.handshake.subscribe();
        let come = handshake.wait_for(|handshake| *handshake >= wanted);
        matches!(tokio::time::timeout(self.state.options.handshake_timeout, come).await, Ok(Ok(_)))
    }

    fn give_up(&self, words: &str) {
        self.gives_up.send_replace(Some((words.into(), false)));
    }

    pub(super) fn handshake_response(&self, message: &Message) {
        let response: HandshakeResponse = match serde_json::from_slice(&message.payload) {
            Ok(response) => response,
            Err(error) => {
                return self.state.violation(&self.session, format_args!("handshake response: {error}"));
            }
        };
        if let Some(failed) =
            response.processed_client_actions.iter().find(|action| action.action_status != 1)
        {
            return self.give_up(&format!(
                "{} failed on client with status {} error: {}",
                failed.action_type, failed.action_status, failed.error
            ));
        }
        if let Some(key) = &self.kms_key {
            let result = response.processed_client_actions.iter().find(|a| a.action_type == "KMSEncryption");
            let cipher = result
                .and_then(|action| serde_json::from_value(action.action_result.clone()).ok())
                .and_then(|result| self.cipher_of(&result, key));
            let Some(cipher) = cipher else {
                return self.give_up("Fetching data key failed: Unable to retrieve data key");
            };
            let challenge = rand::random();
            // Once: the agent processes a message number once.
            let _ = self.encryption.set(Encryption { cipher, challenge });
        }
        self.state.count(|status| {
            status.session(&self.session, |session| {
                session.client_version = response.client_version;
                session.encrypted = self.kms_key.is_some();
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
