//! The plugin's part in the handshake.

use super::channel::DataChannel;
use super::console::print;
use crate::wire::cipher::Cipher;
use crate::wire::handshake::{
    Challenge, EncryptionParameters, EncryptionResult, HandshakeComplete, HandshakeRequest,
    HandshakeResponse, ProcessedAction, SessionTypeParameters,
};
use crate::wire::message::{Message, payload};

/// Port forwarding.
pub const PORT: &str = "Port";
/// A shell: what a session with the wrong document is.
pub const SHELL: &str = "Standard_Stream";

const SUCCESS: i64 = 1;
const FAILED: i64 = 2;

impl DataChannel {
    /// Notes what the agent says of the session and answers it.
    ///
    /// # Errors
    /// It cannot be read, or the answer not be sent; in words.
    pub(super) async fn answer_handshake(&self, message: &Message) -> Result<(), String> {
        let request: HandshakeRequest =
            serde_json::from_slice(&message.payload).map_err(|error| error.to_string())?;
        self.handshake().agent_version = request.agent_version;
        let mut errors = Vec::new();
        let mut processed_client_actions = Vec::new();
        for action in request.requested_client_actions {
            let kind = action.action_type;
            let result = match kind.as_str() {
                "SessionType" => self.set_kind(action.action_parameters).map(|()| serde_json::Value::Null),
                "KMSEncryption" => self.set_key(action.action_parameters).await,
                _ => Err(format!("Unsupported action {kind}")),
            };
            let error = match &result {
                Ok(_) => String::new(),
                Err(error) if error.starts_with("Unsupported") => error.clone(),
                Err(error) => format!("Failed to process action {kind}: {error}"),
            };
            processed_client_actions.push(ProcessedAction {
                action_type: kind,
                action_status: if result.is_ok() { SUCCESS } else { FAILED },
                action_result: result.as_ref().ok().cloned().unwrap_or_default(),
                error,
            });
            errors.extend(result.err());
        }
        let response = HandshakeResponse {
            client_version: self.version.clone(),
            processed_client_actions,
            errors: Some(errors).filter(|errors| !errors.is_empty()),
        };
        let response = serde_json::to_vec(&response).map_err(|error| error.to_string())?;
        self.send_input(payload::HANDSHAKE_RESPONSE, response).await
    }

    fn set_kind(&self, parameters: serde_json::Value) -> Result<(), String> {
        let parameters: SessionTypeParameters =
            serde_json::from_value(parameters).map_err(|error| error.to_string())?;
        let kind = match parameters.session_type.as_str() {
            "Standard_Stream" | "InteractiveCommands" | "NonInteractiveCommands" => SHELL,
            "Port" => PORT,
            other => return Err(format!("Unknown session type {other}")),
        };
        let mut handshake = self.handshake();
        handshake.kind = Some(kind);
        handshake.properties = parameters.properties;
        Ok(())
    }

    /// Has KMS make a data key, and encrypts with it from now on.
    async fn set_key(&self, parameters: serde_json::Value) -> Result<serde_json::Value, String> {
        let parameters: EncryptionParameters =
            serde_json::from_value(parameters).map_err(|error| error.to_string())?;
        let key = self.api.data_key(&parameters.key, &self.session, &self.target).await;
        let key = key.map_err(|error| format!("Error calling KMS GenerateDataKey API: {error}"))?;
        let cipher = Cipher::of_client(&key.plain).ok_or("error creating NewCipher")?;
        // Asked for once a session.
        drop(self.cipher.set(cipher));
        let result = EncryptionResult { key: key.encrypted, hash: None, challenged: false };
        serde_json::to_value(result).map_err(|error| error.to_string())
    }

    /// Shows the agent that both ends have the same key.
    ///
    /// # Errors
    /// They have not, or the answer cannot be sent; in words.
    pub(super) async fn answer_challenge(&self, message: &Message) -> Result<(), String> {
        let challenge: Challenge =
            serde_json::from_slice(&message.payload).map_err(|error| error.to_string())?;
        let cipher = self.cipher.get().ok_or("no encryption")?;
        let challenge = challenge.sealed().and_then(|sealed| cipher.open(&sealed));
        let challenge = challenge.ok_or("error decrypting encrypted test")?;
        let answer = serde_json::to_vec(&Challenge::of(&cipher.seal(&challenge)))
            .map_err(|error| error.to_string())?;
        self.send_input(payload::CHALLENGE_RESPONSE, answer).await
    }

    /// The handshake is over: the session may begin.
    ///
    /// # Errors
    /// It cannot be read; in words.
    pub(super) fn complete_handshake(&self, message: &Message) -> Result<(), String> {
        let complete: HandshakeComplete =
            serde_json::from_slice(&message.payload).map_err(|error| error.to_string())?;
        // Told once; a full channel has been told already.
        let _ = self.kind_known.try_send(self.handshake().kind.is_some());
        if !complete.customer_message.is_empty() {
            print(&format!("{}\n", complete.customer_message));
        }
        Ok(())
    }
}
