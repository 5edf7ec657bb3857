//! The handshake, from the agent's side: it asks, the client answers, the agent says that it is over.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use serde_json::json;
use tokio::sync::mpsc;

use super::{Agent, Output, Plan};
use crate::wire::handshake::{HandshakeComplete, HandshakeRequest, HandshakeResponse, RequestedAction};
use crate::wire::message::{Message, payload};

/// How far the handshake has come.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Handshake {
    Requested,
    Answered,
    Complete,
}

impl Agent {
    /// The handshake, from the agent's side.
    pub(super) async fn open(self: Arc<Self>, plan: Plan, output: mpsc::Sender<Output>) {
        let begun = Instant::now();
        let request = HandshakeRequest {
            agent_version: self.state.options.agent_version.clone(),
            requested_client_actions: vec![RequestedAction {
                action_type: "SessionType".into(),
                action_parameters: json!({ "SessionType": plan.session_type, "Properties": plan.properties }),
            }],
        };
        let request = Output::Message(payload::HANDSHAKE_REQUEST, json_bytes(&request));
        let _ = output.send(request).await;
        let mut handshake = self.handshake.subscribe();
        let answered = handshake.wait_for(|handshake| *handshake == Handshake::Answered);
        if !matches!(tokio::time::timeout(self.state.options.handshake_timeout, answered).await, Ok(Ok(_))) {
            let words = "Handshake timed out. Please ensure that you have the latest version of the session manager plugin.";
            self.gives_up.send_replace(Some((words.into(), false)));
            return;
        }
        let complete = HandshakeComplete {
            handshake_time_to_complete: begun.elapsed().as_nanos() as u64,
            customer_message: String::new(),
        };
        let _ = output.send(Output::Message(payload::HANDSHAKE_COMPLETE, json_bytes(&complete))).await;
        if plan.session_type != "Port" {
            let _ = output.send(Output::Message(payload::DATA, Bytes::from_static(b"sh-5.2$ "))).await;
        }
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
            let words = format!(
                "{} failed on client with status {} error: {}",
                failed.action_type, failed.action_status, failed.error
            );
            self.gives_up.send_replace(Some((words, false)));
            return;
        }
        self.state.count(|status| {
            status.session(&self.session, |session| session.client_version = response.client_version);
        });
        self.handshake.send_replace(Handshake::Answered);
    }
}

fn json_bytes(content: &impl serde::Serialize) -> Bytes {
    // Strings and numbers: serialization cannot fail.
    serde_json::to_vec(content).unwrap_or_default().into()
}
