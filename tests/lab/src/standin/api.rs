//! The plugin's own API calls, ResumeSession, TerminateSession and KMS's GenerateDataKey, with the retries of its SDK.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::{BodyExt, Full};
use rand::RngExt;
use serde_json::{Value, json};

use super::{dial, sign, trust};
use crate::wire::cipher::KEY_LENGTH;

/// Further requests after the first one of a call, for errors that may pass.
const RETRIES: u32 = 3;
/// Errors that may pass whatever the HTTP status is.
const PASSING: [&str; 9] = [
    "RequestError",
    "RequestTimeout",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "TooManyRequestsException",
    "ExpiredToken",
    "ExpiredTokenException",
    "RequestExpired",
];

/// The Systems Manager API as the plugin reaches it.
#[derive(Debug)]
pub struct Api {
    /// Signed for.
    pub region: String,
    /// Its address; empty for the region's own.
    pub endpoint: String,
}

/// A data key, fresh from KMS.
pub struct DataKey {
    /// To encrypt with.
    pub plain: Vec<u8>,
    /// For the agent, which has KMS decrypt it; base64.
    pub encrypted: String,
}

/// A failed request: the SDK's error code and its words.
struct Failure {
    passing: bool,
    words: String,
}

impl Failure {
    fn new(code: &str, words: impl std::fmt::Display, status: u16) -> Self {
        Self { passing: PASSING.contains(&code) || status >= 500, words: format!("{code}: {words}") }
    }
}

impl Api {
    /// The token for reopening the data channel, `None` if the session is gone.
    ///
    /// # Errors
    /// In the SDK's words.
    pub async fn resume(&self, session: &str) -> Result<Option<String>, String> {
        let answer = self.call("AmazonSSM.ResumeSession", json!({ "SessionId": session })).await?;
        Ok(answer.get("TokenValue").and_then(Value::as_str).map(str::to_owned))
    }

    /// Ends the session.
    ///
    /// # Errors
    /// In the SDK's words.
    pub async fn terminate(&self, session: &str) -> Result<(), String> {
        self.call("AmazonSSM.TerminateSession", json!({ "SessionId": session })).await.map(drop)
    }

    /// A data key for an encrypted session.
    ///
    /// # Errors
    /// In the SDK's words.
    pub async fn data_key(&self, key: &str, session: &str, target: &str) -> Result<DataKey, String> {
        let input = json!({
            "KeyId": key,
            "NumberOfBytes": KEY_LENGTH,
            "EncryptionContext": { "aws:ssm:SessionId": session, "aws:ssm:TargetId": target },
        });
        let answer = self.call("TrentService.GenerateDataKey", input).await?;
        let text = |name| answer.get(name).and_then(Value::as_str).unwrap_or_default();
        let plain = BASE64_STANDARD.decode(text("Plaintext"));
        let plain = plain.map_err(|error| format!("SerializationError: {error}"))?;
        Ok(DataKey { plain, encrypted: text("CiphertextBlob").to_owned() })
    }

    async fn call(&self, operation: &str, input: Value) -> Result<Value, String> {
        let mut tried = 0;
        loop {
            match self.request(operation, &input).await {
                Ok(answer) => return Ok(answer),
                Err(failure) if failure.passing && tried < RETRIES => tokio::time::sleep(pause(tried)).await,
                Err(failure) => return Err(failure.words),
            }
            tried += 1;
        }
    }

    /// No deadline anywhere, like the stock plugin: a service that answers nothing holds it for ever.
    async fn request(&self, operation: &str, input: &Value) -> Result<Value, Failure> {
        let unsent = |words: String| {
            Failure::new("RequestError", format!("send request failed\ncaused by: {words}"), 0)
        };
        let service = if operation.starts_with("TrentService") { "kms" } else { "ssm" };
        let address = match self.endpoint.as_str() {
            _ if service == "kms" => kms_address(&self.region),
            "" => format!("https://ssm.{}.amazonaws.com", self.region),
            given if given.contains("://") => given.into(),
            given => format!("https://{given}"),
        };
        let uri: Uri = address.parse().map_err(|error| unsent(format!("{error}")))?;
        let body = input.to_string();
        let mut request = Request::post("/")
            .header("Content-Type", "application/x-amz-json-1.1")
            .header("X-Amz-Target", operation)
            .header("User-Agent", "aws-sdk-go/1.54.10 (stand-in plugin)")
            .body(Full::new(Bytes::from(body.clone())))
            .map_err(|error| unsent(error.to_string()))?;
        let missing = |words: String| Failure { passing: false, words };
        let credentials = sign::credentials().await.map_err(missing)?;
        let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
        sign::apply(&mut request, &authority, body.as_bytes(), (service, &self.region), credentials)
            .map_err(missing)?;
        let encrypted = uri.scheme_str() == Some("https");
        let tls = if encrypted { Some(trust::api().map_err(missing)?) } else { None };
        let port = uri.port_u16().unwrap_or(if encrypted { 443 } else { 80 });
        let link = dial::dial(uri.host().unwrap_or_default(), port, tls).await.map_err(unsent)?;
        let answer = dial::exchange(link, &uri, request).await.map_err(unsent)?;
        let status = answer.status();
        let body = answer.into_body().collect().await.map_err(|error| unsent(error.to_string()))?.to_bytes();
        let content: Value = serde_json::from_slice(&body).unwrap_or_default();
        if status.is_success() && content.is_object() {
            return Ok(content);
        }
        let text = |name: &str| content.get(name).and_then(Value::as_str).unwrap_or_default();
        let code =
            text("__type").rsplit('#').next().filter(|code| !code.is_empty()).unwrap_or("SerializationError");
        let message = [text("message"), text("Message")].concat();
        let words = format!("{message}\n\tstatus code: {}, request id: ", status.as_u16());
        Err(Failure::new(code, words, status.as_u16()))
    }
}

/// 1 to 1.5 s, twice as long after each request.
fn pause(tried: u32) -> Duration {
    Duration::from_millis(rand::rng().random_range(1000..1500) << tried)
}
/// By the name that the SDK makes of the region and its environment.
fn kms_address(region: &str) -> String {
    let is_set = |name| std::env::var(name).is_ok_and(|value| value.eq_ignore_ascii_case("true"));
    let service = if is_set("AWS_USE_FIPS_ENDPOINT") { "kms-fips" } else { "kms" };
    let domain = if is_set("AWS_USE_DUALSTACK_ENDPOINT") { "api.aws" } else { "amazonaws.com" };
    format!("https://{service}.{region}.{domain}")
}
