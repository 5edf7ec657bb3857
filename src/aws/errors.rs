//! What the service, the SDK and the credential providers say when they refuse, as classes.
//!
//! The words are theirs: the error's code and message. A hint follows where the cause is known and not plain from the
//! words.

use std::error::Error;
use std::io;

use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::{ConnectorError, SdkError};
use aws_smithy_types::error::ErrorMetadata;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use http::StatusCode;
use http::header::CONTENT_TYPE;

use crate::network::{self, Answer, Peer};
use crate::tunnel::failure::{Class, Failure};

/// Longest message of a service that is passed on, in characters.
const MESSAGE: usize = 500;

/// A refused call: the failure, and the service's error code where there is one.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// Such as `AccessDeniedException`.
    pub code: Option<String>,
    /// Its class, and what was said.
    pub failure: Failure,
}

impl Refusal {
    /// IAM does not allow the call, as opposed to credentials that are good for nothing.
    pub fn is_denied(&self) -> bool {
        self.code.as_deref().is_some_and(|code| code.starts_with("AccessDenied"))
    }

    /// The service does not take the credentials, whatever is asked with them: others may help.
    pub(super) fn is_of_credentials(&self) -> bool {
        let code = self.code.as_deref().unwrap_or_default();
        let code = code.strip_suffix("Exception").unwrap_or(code);
        blames_credentials(code)
    }
}

/// Whether a code, without `Exception` at its end, says that these credentials are no good.
fn blames_credentials(code: &str) -> bool {
    code.starts_with("ExpiredToken")
        || matches!(
            code,
            "RequestExpired"
                | "UnrecognizedClient"
                | "InvalidSignature"
                | "SignatureDoesNotMatch"
                | "IncompleteSignature"
                | "InvalidClientTokenId"
                | "InvalidAccessKeyId"
                | "InvalidToken"
                | "InvalidIdentityToken"
                | "MissingAuthenticationToken"
                | "AuthFailure"
        )
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self { code: None, failure }
    }
}

/// Why `operation` was refused.
pub(super) fn refusal<E>(operation: &str, error: &SdkError<E, HttpResponse>) -> Refusal
where
    E: ProvideErrorMetadata + Error + 'static,
{
    if let Some(failure) = find::<Failure>(error) {
        return match error {
            SdkError::DispatchFailure(dispatch) if dispatch.as_connector_error().is_some() => {
                Failure::new(failure.class, format!("{operation}: {failure}")).into()
            }
            // Credentials that could not be had stop a call before it is made; their failure is complete in itself.
            _ => failure.clone().into(),
        };
    }
    let status = error.raw_response().map(|response| response.status().as_u16());
    match error {
        SdkError::ServiceError(context) => service(operation, status, context.err().meta()),
        SdkError::ConstructionFailure(_) => Failure::new(
            Class::NeedsChange,
            format!("{operation}: the request cannot be made: {}", causes(error)),
        )
        .into(),
        // Not an answer of the API, or none at all: what is between us and it may still have said something.
        _ => match error.raw_response().and_then(|raw| stranger(raw, || causes(error))) {
            Some(failure) => Failure::new(failure.class, format!("{operation}: {failure}")).into(),
            None => Failure::new(class(None, status), format!("{operation}: {}", causes(error))).into(),
        },
    }
}

/// What was answered, where that is nothing that the API says.
fn stranger(raw: &HttpResponse, unread: impl FnOnce() -> String) -> Option<Failure> {
    let peer = raw.extension::<Peer>()?;
    let status = StatusCode::from_u16(raw.status().as_u16()).ok()?;
    let content_type = raw.headers().get("content-type").and_then(|name| name.parse().ok());
    let headers = content_type.map(|name| (CONTENT_TYPE, name)).into_iter().collect();
    let answer = Answer::new(status, &headers, raw.body().bytes().unwrap_or_default());
    let is_json = raw.headers().get("content-type").is_some_and(|name| name.contains("json"));
    if is_json && status.is_success() {
        // The API's as a rule: cut, or of a kind that is not known.
        let text = format!("{peer} has answered with {answer}, which cannot be read: {}", unread());
        return Some(Failure::new(Class::Network, text));
    }
    Some(answer.instead_of("the API's answer", peer))
}

/// Whether IAM does not allow the `operation` that has failed so, as opposed to credentials that are good for nothing: from
/// the words that are put together here.
pub fn is_denied(operation: &str, failure: &Failure) -> bool {
    let said = failure.text.strip_prefix(operation).and_then(|rest| rest.strip_prefix(": "));
    failure.class == Class::Access && said.is_some_and(|said| said.starts_with("AccessDenied"))
}

/// Why `operation` was refused, of a call that was made without the SDK: from the answer to it. `None` if it was not.
pub fn answered(operation: &str, status: u16, body: &[u8]) -> Option<Failure> {
    if (200..300).contains(&status) {
        return None;
    }
    let said: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |name: &str| said.get(name).and_then(serde_json::Value::as_str);
    let mut meta = ErrorMetadata::builder();
    if let Some(code) = text("__type") {
        meta = meta.code(code);
    }
    if let Some(message) = text("message").or_else(|| text("Message")) {
        meta = meta.message(message);
    }
    let mut failure = service(operation, Some(status), &meta.build()).failure;
    if text("__type").is_some_and(|code| code.contains("AccessDenied")) {
        failure.text += &format!(
            "; allow {operation} to the daemon's credentials, in their own policy or in that of what it is about"
        );
    }
    Some(failure)
}

/// A call that took longer than it may.
pub(super) fn overdue(operation: &str, limit: std::time::Duration) -> Failure {
    Failure::new(Class::Network, format!("{operation}: no answer within {} s", limit.as_secs()))
}

/// Why there are no credentials. `profile` is the configured one.
pub(super) fn no_credentials(error: &CredentialsError, profile: Option<&str>) -> Failure {
    if let Some(failure) = find::<Failure>(error)
        && !matches!(error, CredentialsError::CredentialsNotLoaded(_))
    {
        return Failure::new(failure.class, format!("credentials: {failure}"));
    }
    // The network's failure is nobody's to mend, though it came between us and the credentials.
    let connector = find::<ConnectorError>(error);
    let network = connector.is_some_and(|e| e.is_io() || e.is_timeout())
        || matches!(error, CredentialsError::ProviderTimedOut(_));
    if network && !matches!(error, CredentialsError::CredentialsNotLoaded(_)) {
        return Failure::new(Class::Network, format!("credentials: {}", causes(error)));
    }
    if let Some(said) = find::<ErrorMetadata>(error)
        && said.code().is_some()
    {
        return service("credentials", None, said).failure;
    }
    let words = causes(error);
    let sso = words.to_ascii_lowercase().contains("sso");
    let hint = match profile {
        Some(profile) if sso => format!("run `aws sso login --profile {profile}` as the daemon's user"),
        None if sso => "run `aws sso login` as the daemon's user".to_owned(),
        Some(profile) => format!("look at profile `{profile}` in the daemon's user's ~/.aws/config and credentials"),
        None => "attach a role to the instance, set `profile`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in \
                 the daemon's environment"
            .to_owned(),
    };
    Failure::new(Class::Access, format!("no AWS credentials: {words}; {hint}"))
}

fn service(operation: &str, status: Option<u16>, said: &ErrorMetadata) -> Refusal {
    // In some answers the code comes with its namespace: `com.amazonaws.ssm#TargetNotConnected`.
    let code = said.code().map(|code| code.rsplit('#').next().unwrap_or(code).to_owned());
    let class = class(code.as_deref(), status);
    let mut text = operation.to_owned();
    match (&code, status) {
        (Some(code), _) => text.push_str(&format!(": {code}")),
        (None, Some(status)) => text.push_str(&format!(": HTTP {status}")),
        (None, None) => {}
    }
    if let Some(message) = said.message().filter(|message| !message.is_empty()) {
        text.push_str(": ");
        text.extend(message.chars().take(MESSAGE).map(|c| if c.is_control() { ' ' } else { c }));
    }
    if let Some(hint) = code.as_deref().and_then(hint) {
        text.push_str(&format!("; {hint}"));
    }
    Refusal { code, failure: Failure::new(class, text) }
}

/// The class of a service's error. The codes are those of the API reference, of its "common errors", and of what the
/// services in front of it answer.
fn class(code: Option<&str>, status: Option<u16>) -> Class {
    let Some(code) = code else {
        return match status {
            Some(401 | 403) => Class::Access,
            Some(429) => Class::Throttled,
            _ => Class::Network,
        };
    };
    match code.strip_suffix("Exception").unwrap_or(code) {
        "TargetNotConnected" => Class::TargetNotConnected,
        "Throttling"
        | "Throttled"
        | "ThrottledRequest"
        | "RequestThrottled"
        | "TooManyRequests"
        | "TooManyUpdates"
        | "RequestLimitExceeded"
        | "BandwidthLimitExceeded"
        | "LimitExceeded"
        | "PriorRequestNotComplete"
        | "SlowDown"
        | "ProvisionedThroughputExceeded" => Class::Throttled,
        "RequestTimeTooSkewed"
        | "NotAuthorized"
        | "UnauthorizedOperation"
        | "Unauthorized"
        | "OptInRequired"
        | "RegionDisabled" => Class::Access,
        other if other.starts_with("AccessDenied") || blames_credentials(other) => Class::Access,
        "Validation"
        | "MissingParameter"
        | "MissingAction"
        | "MalformedQueryString"
        | "UnsupportedOperation"
        | "UnknownOperation"
        | "DoesNotExist"
        // Of KMS: the key.
        | "NotFound"
        | "Disabled"
        | "KMSInvalidState"
        | "Serialization"
        | "PackedPolicyTooLarge"
        | "MalformedPolicyDocument" => Class::NeedsChange,
        other if other.starts_with("Invalid") => Class::NeedsChange,
        // The rest, and what is not known: the service's trouble, and worth another try soon.
        _ => Class::Network,
    }
}

fn hint(code: &str) -> Option<&'static str> {
    match code.strip_suffix("Exception").unwrap_or(code) {
        "TargetNotConnected" => Some("is its agent running, and is this its account and region?"),
        "RequestExpired" | "RequestTimeTooSkewed" | "InvalidSignature" | "SignatureDoesNotMatch" => {
            Some("is this host's clock right?")
        }
        "ExpiredToken" => {
            Some("temporary credentials have to be renewed by whoever issued them, or use a role")
        }
        _ => None,
    }
}

/// The error's own words and those of what caused it. Only `Display` texts: the `Debug` form of an SDK error holds the
/// raw answer, which may hold a token.
fn causes(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    for cause in std::iter::successors(Some(error), |&e| e.source()) {
        let words = match cause.downcast_ref::<io::Error>() {
            Some(error) => network::words(error),
            None => cause.to_string(),
        };
        if !text.contains(&words) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&words);
        }
    }
    text
}

fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    std::iter::successors(Some(error), |&e| e.source()).find_map(|e| e.downcast_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_classes() {
        let table = [
            (Class::TargetNotConnected, "TargetNotConnected"),
            (Class::Throttled, "ThrottlingException Throttling TooManyUpdates RequestLimitExceeded"),
            (Class::Throttled, "TooManyRequestsException SlowDown"),
            (Class::Access, "AccessDenied AccessDeniedException ExpiredToken ExpiredTokenException"),
            (Class::Access, "UnrecognizedClientException InvalidSignatureException InvalidClientTokenId"),
            (Class::Access, "MissingAuthenticationToken MissingAuthenticationTokenException RequestExpired"),
            (Class::NeedsChange, "InvalidDocument InvalidParameters InvalidInstanceId ValidationException"),
            (Class::NeedsChange, "InvalidTarget InvalidFilterKey UnsupportedOperationException"),
            (Class::Network, "InternalServerError InternalFailure ServiceUnavailable SomethingNew"),
        ];
        for (expected, codes) in table {
            for code in codes.split(' ') {
                assert_eq!(class(Some(code), Some(400)), expected, "{code}");
            }
        }
        let by_status = [(401, Class::Access), (403, Class::Access), (429, Class::Throttled)];
        for (status, expected) in by_status.into_iter().chain([(400, Class::Network), (503, Class::Network)])
        {
            assert_eq!(class(None, Some(status)), expected, "{status}");
        }
    }

    #[test]
    fn missing_credentials_say_what_to_do() {
        let none = CredentialsError::not_loaded("no providers in chain provided credentials");
        let failure = no_credentials(&none, None);
        assert_eq!(failure.class, Class::Access);
        assert!(failure.text.contains("attach a role to the instance"), "{failure}");

        let expired = CredentialsError::provider_error("the SSO session has expired");
        let failure = no_credentials(&expired, Some("ops"));
        assert_eq!(failure.class, Class::Access);
        assert!(failure.text.contains("aws sso login --profile ops"), "{failure}");

        let cut = CredentialsError::provider_error(ConnectorError::io("connection reset".into()));
        assert_eq!(no_credentials(&cut, None).class, Class::Network);

        let denied = ErrorMetadata::builder().code("AccessDenied").message("not authorized").build();
        let failure = no_credentials(&CredentialsError::provider_error(denied), None);
        assert_eq!(
            (failure.class, &*failure.text),
            (Class::Access, "credentials: AccessDenied: not authorized")
        );
    }

    #[test]
    fn answers_of_kms_have_classes_and_a_remedy() {
        let said = |code: &str| format!(r#"{{"__type":"{code}","message":"the words"}}"#);
        let failure = |status, body: &str| answered("kms:GenerateDataKey", status, body.as_bytes()).unwrap();
        assert_eq!(answered("kms:GenerateDataKey", 200, b"{}"), None);
        let denied = failure(400, &said("AccessDeniedException"));
        assert_eq!(denied.class, Class::Access);
        assert!(denied.text.starts_with("kms:GenerateDataKey: AccessDeniedException: the words; allow kms:"));
        for code in ["NotFoundException", "DisabledException", "KMSInvalidStateException"] {
            assert_eq!(failure(400, &said(code)).class, Class::NeedsChange, "{code}");
        }
        assert_eq!(failure(400, &said("ThrottlingException")).class, Class::Throttled);
        assert_eq!(failure(500, &said("KMSInternalException")).class, Class::Network);
        assert_eq!(failure(403, "<html>").text, "kms:GenerateDataKey: HTTP 403");
    }

    #[test]
    fn messages_are_cut_and_tidy() {
        let said =
            ErrorMetadata::builder().code("a.b#InvalidDocument").message(format!("x\n{}", "y".repeat(900)));
        let refusal = service("StartSession", Some(400), &said.build());
        assert_eq!(refusal.code.as_deref(), Some("InvalidDocument"));
        let said =
            |code: &str| service("StartSession", Some(400), &ErrorMetadata::builder().code(code).build());
        assert!(is_denied("StartSession", &said("AccessDeniedException").failure));
        assert!(!is_denied("StartSession", &said("ExpiredTokenException").failure));
        assert!(!is_denied("StartSession", &refusal.failure));
        let role = Failure::new(Class::Access, "credentials: AccessDenied: not authorized");
        assert!(!is_denied("StartSession", &role));
        assert!(refusal.failure.text.starts_with("StartSession: InvalidDocument: x y"));
        assert!(refusal.failure.text.len() < 600 && !refusal.failure.text.contains('\n'));
    }
}
