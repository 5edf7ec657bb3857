//! KMS, as far as sessions need it: data keys, bound to a session by their encryption context.

use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};

use super::error::Refusal;
use crate::fault::{ApiFault, Call};
use crate::state::State;
use crate::wire::cipher::KEY_LENGTH;

/// What a data key is bound to.
pub(crate) type Context = BTreeMap<String, String>;

/// A data key that was given out.
pub(crate) struct DataKey {
    plain: Vec<u8>,
    context: Context,
}

/// Answers one call of a client.
pub(crate) async fn answer(state: &State, call: &str, body: &Bytes) -> Result<Value, Refusal> {
    if call != "GenerateDataKey" {
        return Err(Refusal::new("UnknownOperationException", ""));
    }
    // A client that goes away meanwhile takes this future with it.
    let mut faults = state.faults.subscribe();
    let _ = faults.wait_for(|faults| faults.on(Call::DataKey) != Some(ApiFault::Silence)).await;
    let result = generate(state, body);
    state.count(|status| {
        status.data_key.processed += 1;
        status.data_key.succeeded += u64::from(result.is_ok());
    });
    result
}

fn generate(state: &State, body: &Bytes) -> Result<Value, Refusal> {
    let input: Value = serde_json::from_slice(body)
        .map_err(|error| Refusal::new("SerializationException", error.to_string()))?;
    let key = input["KeyId"].as_str().unwrap_or_default();
    let fault = state.faults.borrow().on(Call::DataKey);
    if let Some(refusal) = fault.and_then(|fault| Refusal::of(fault, "kms:GenerateDataKey", key)) {
        return Err(refusal);
    }
    if state.options.kms_key.as_deref() != Some(key) {
        return Err(Refusal::new("NotFoundException", format!("Key '{key}' does not exist")));
    }
    let context: Context = serde_json::from_value(input["EncryptionContext"].clone())
        .map_err(|error| Refusal::new("SerializationException", error.to_string()))?;
    let session = context.get("aws:ssm:SessionId").and_then(|id| state.world().sessions.get(id).cloned());
    let bound = session
        .is_some_and(|session| session.is_live() && context.get("aws:ssm:TargetId") == Some(&session.target));
    if !bound || input["NumberOfBytes"].as_u64() != Some(KEY_LENGTH as u64) {
        let words = format!("a data key for no session: {context:?}, {} bytes", input["NumberOfBytes"]);
        state.count(|status| status.violation(words.clone()));
        return Err(Refusal::new("ValidationException", words));
    }
    let (plain, blob): ([u8; KEY_LENGTH], [u8; 32]) = (rand::random(), rand::random());
    let answer = json!({
        "KeyId": key,
        "Plaintext": BASE64_STANDARD.encode(plain),
        "CiphertextBlob": BASE64_STANDARD.encode(blob),
    });
    state.world().data_keys.insert(blob.to_vec(), DataKey { plain: plain.to_vec(), context });
    Ok(answer)
}

/// The agent's call: the data key, if it was given out for the same context.
pub(crate) fn decrypt(state: &State, blob: &[u8], context: &Context) -> Option<Vec<u8>> {
    let world = state.world();
    world.data_keys.get(blob).filter(|key| key.context == *context).map(|key| key.plain.clone())
}
