//! The JSON inside the data channel: the first message, the handshake, and the word that a session has ended.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The first message on a WebSocket, as text: it opens the data channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct OpenDataChannel {
    /// `1.0`.
    pub message_schema_version: String,
    /// A UUID.
    pub request_id: String,
    /// Good for one opening.
    pub token_value: String,
    /// A UUID, the same for the session's whole life.
    pub client_id: String,
    /// The plugin's version. The agent's own opening has none.
    #[serde(default)]
    pub client_version: String,
}

/// Payload type 5, from the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HandshakeRequest {
    /// For example `3.3.2299.0`.
    pub agent_version: String,
    /// What the client has to take in.
    pub requested_client_actions: Vec<RequestedAction>,
}

/// One thing that the agent asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RequestedAction {
    /// `SessionType` or `KMSEncryption`.
    pub action_type: String,
    /// [`SessionTypeParameters`] or [`EncryptionParameters`].
    pub action_parameters: Value,
}

/// Parameters of the action `SessionType`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct SessionTypeParameters {
    /// `Port`, `Standard_Stream` …
    pub session_type: String,
    /// The document's properties with the parameters put in: `portNumber`, `localPortNumber`, `type`, `host` …
    #[serde(default)]
    pub properties: Value,
}

/// Parameters of the action `KMSEncryption`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncryptionParameters {
    /// The key's id or ARN.
    #[serde(rename = "KMSKeyId")]
    pub key: String,
    /// To go into the encryption context, by clients that know of it.
    #[serde(rename = "Challenge", default)]
    pub challenge: String,
}

/// The result of the action `KMSEncryption`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncryptionResult {
    /// The data key as KMS has encrypted it; base64.
    #[serde(rename = "KMSCipherTextKey")]
    pub key: String,
    /// Not used by anybody; `null`.
    #[serde(rename = "KMSCipherTextHash", default)]
    pub hash: Option<String>,
    /// The challenge is in the encryption context.
    #[serde(rename = "ChallengeAcknowledgement", default)]
    pub challenged: bool,
}

/// Payload types 8, from the agent, and 9, from the client: the same bytes, encrypted by the one and by the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Challenge {
    /// base64.
    pub challenge: String,
}

impl Challenge {
    /// Of encrypted bytes.
    pub fn of(sealed: &[u8]) -> Self {
        Self { challenge: BASE64_STANDARD.encode(sealed) }
    }

    /// The encrypted bytes.
    pub fn sealed(&self) -> Option<Vec<u8>> {
        BASE64_STANDARD.decode(&self.challenge).ok()
    }
}

/// Payload type 6, from the client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HandshakeResponse {
    /// The plugin's version.
    pub client_version: String,
    /// One for each requested action.
    pub processed_client_actions: Vec<ProcessedAction>,
    /// `null` where there are none.
    #[serde(default)]
    pub errors: Option<Vec<String>>,
}

/// What the client did with a requested action.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ProcessedAction {
    /// The same as in the request.
    pub action_type: String,
    /// 1 success, 2 failed, 3 unsupported.
    pub action_status: i64,
    /// `null` for `SessionType`, [`EncryptionResult`] for `KMSEncryption`.
    #[serde(default)]
    pub action_result: Value,
    /// Empty on success.
    #[serde(default)]
    pub error: String,
}

/// Payload type 7, from the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HandshakeComplete {
    /// Nanoseconds.
    pub handshake_time_to_complete: u64,
    /// Printed by the plugin if it is not empty.
    pub customer_message: String,
}

/// The payload of a `channel_closed` message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ChannelClosed {
    /// `channel_closed` again.
    pub message_type: String,
    /// A UUID.
    pub message_id: String,
    /// The target.
    pub destination_id: String,
    /// The session.
    pub session_id: String,
    /// Always 1.
    pub schema_version: i64,
    /// When; free text.
    pub created_date: String,
    /// The reason; empty where the client asked for the end.
    pub output: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_the_wires_own() {
        let text = r#"{"AgentVersion":"3.3.0.0","RequestedClientActions":[{"ActionType":"SessionType","ActionParameters":{"SessionType":"Port","Properties":{"portNumber":"5432"}}}]}"#;
        let request: HandshakeRequest = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_value(&request).unwrap(), serde_json::from_str::<Value>(text).unwrap());
        let action: SessionTypeParameters =
            serde_json::from_value(request.requested_client_actions[0].action_parameters.clone()).unwrap();
        assert_eq!(action.session_type, "Port");
        // As the plugin writes it: null where there is nothing.
        let text = r#"{"ClientVersion":"1.2.0.0","ProcessedClientActions":[{"ActionType":"SessionType","ActionStatus":1,"ActionResult":null,"Error":""}],"Errors":null}"#;
        let response: HandshakeResponse = serde_json::from_str(text).unwrap();
        assert_eq!(response.processed_client_actions[0].action_status, 1);
    }
}
