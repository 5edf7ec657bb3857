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

/// Further requests after the first one of a call, for errors that may pass: of the old SDK.
const RETRIES: u32 = 3;
/// Of the new one, for KMS alone: the calls about a session are made once, by a configuration for quick checks.
const NEW_RETRIES: u32 = 2;
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
    /// Version 2 of the SDK makes the calls.
    pub new_sdk: bool,
}

/// What ResumeSession returned.
pub struct Resumption {
    /// For reopening the data channel; `None` if the session is gone.
    pub token: Option<String>,
    /// Where.
    pub stream_url: Option<String>,
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
    /// What the data channel is reopened with.
    ///
    /// # Errors
    /// In the SDK's words.
    pub async fn resume(&self, session: &str) -> Result<Resumption, String> {
        let answer = self.call("AmazonSSM.ResumeSession", json!({ "SessionId": session })).await?;
        let text = |name| answer.get(name).and_then(Value::as_str).map(str::to_owned);
        Ok(Resumption { token: text("TokenValue"), stream_url: text("StreamUrl") })
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
        let retries = match self.new_sdk {
            false => RETRIES,
            true if operation.starts_with("TrentService") => NEW_RETRIES,
            true => 0,
        };
        let mut tried = 0;
        loop {
            match self.request(operation, &input).await {
                Ok(answer) => return Ok(answer),
                Err(failure) if failure.passing && tried < retries => tokio::time::sleep(pause(tried)).await,
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
        let names = Names::of(|name| std::env::var(name).ok());
        let given = Some(self.endpoint.as_str()).filter(|given| service == "ssm" && !given.is_empty());
        let address = match (given, names.refusal().filter(|_| self.new_sdk)) {
            (None, _) => format!("https://{}", names.host(service, &self.region)),
            (Some(_), Some(refusal)) => {
                let operation = operation.rsplit('.').next().unwrap_or_default();
                let words = format!(
                    "operation error SSM: {operation}, resolve auth scheme: resolve endpoint: endpoint rule error, {refusal}"
                );
                return Err(Failure { passing: false, words });
            }
            (Some(given), None) if given.contains("://") => given.into(),
            (Some(given), None) => format!("https://{given}"),
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

/// Which names the SDK makes of a service and a region, by its environment.
#[derive(Clone, Copy, Debug)]
struct Names {
    fips: bool,
    dual_stack: bool,
}

impl Names {
    fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        let is_set = |name| variable(name).is_some_and(|value| value.eq_ignore_ascii_case("true"));
        Self { fips: is_set("AWS_USE_FIPS_ENDPOINT"), dual_stack: is_set("AWS_USE_DUALSTACK_ENDPOINT") }
    }

    fn host(self, service: &str, region: &str) -> String {
        let fips = if self.fips { "-fips" } else { "" };
        let domain = match (self.dual_stack, region.starts_with("cn-")) {
            (false, false) => "amazonaws.com",
            (false, true) => "amazonaws.com.cn",
            (true, false) => "api.aws",
            (true, true) => "api.amazonwebservices.com.cn",
        };
        format!("{service}{fips}.{region}.{domain}")
    }

    /// Why version 2 of the SDK takes no explicit endpoint beside these names; `None` where it does.
    fn refusal(self) -> Option<&'static str> {
        match self {
            Self { fips: true, .. } => {
                Some("Invalid Configuration: FIPS and custom endpoint are not supported")
            }
            Self { dual_stack: true, .. } => {
                Some("Invalid Configuration: Dualstack and custom endpoint are not supported")
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_environment() {
        for (set, host, refused) in [
            (&[][..], "ssm.us-west-2.amazonaws.com", None),
            (&["AWS_USE_FIPS_ENDPOINT"], "ssm-fips.us-west-2.amazonaws.com", Some("FIPS")),
            (&["AWS_USE_DUALSTACK_ENDPOINT"], "ssm.us-west-2.api.aws", Some("Dualstack")),
            (
                &["AWS_USE_FIPS_ENDPOINT", "AWS_USE_DUALSTACK_ENDPOINT"],
                "ssm-fips.us-west-2.api.aws",
                Some("FIPS"),
            ),
        ] {
            let names = Names::of(|name| set.contains(&name).then(|| "True".to_owned()));
            assert_eq!(names.host("ssm", "us-west-2"), host);
            assert_eq!(
                names.refusal().map(|words| words.split_whitespace().nth(2).unwrap_or_default()),
                refused
            );
        }
    }
}
