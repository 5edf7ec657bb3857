//! The service's refusals, in its own words.

use bytes::Bytes;
use http::StatusCode;
use serde_json::json;

use crate::fault::ApiFault;

/// A refusal.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub status: StatusCode,
    pub body: Bytes,
}

impl Refusal {
    /// `{"__type": kind, "message": message}` with status 400.
    pub fn new(kind: &str, message: impl Into<String>) -> Self {
        Self::with_status(StatusCode::BAD_REQUEST, kind, message)
    }

    fn with_status(status: StatusCode, kind: &str, message: impl Into<String>) -> Self {
        let body = json!({ "__type": kind, "message": message.into() }).to_string();
        Self { status, body: body.into() }
    }

    /// How a call (`ssm:StartSession`) on a resource fails under a fault; `None` for the faults that are no refusal.
    pub fn of(fault: ApiFault, call: &str, resource: &str) -> Option<Self> {
        Some(match fault {
            ApiFault::Throttled => Self::new("ThrottlingException", "Rate exceeded"),
            ApiFault::Denied => Self::new(
                "AccessDeniedException",
                format!(
                    "User: arn:aws:sts::111122223333:assumed-role/lab/autossm is not authorized to perform: {call} on resource: {resource} because no identity-based policy allows the {call} action"
                ),
            ),
            ApiFault::Forbidden => {
                Self { status: StatusCode::FORBIDDEN, body: Bytes::from_static(b"<html>Forbidden</html>") }
            }
            ApiFault::Expired => {
                Self::new("ExpiredTokenException", "The security token included in the request is expired")
            }
            ApiFault::TargetNotConnected => Self::new(
                "TargetNotConnected",
                format!("{} is not connected.", resource.rsplit('/').next().unwrap_or_default()),
            ),
            ApiFault::Internal => Self::with_status(
                StatusCode::INTERNAL_SERVER_ERROR,
                "InternalServerError",
                "An error occurred on the server side.",
            ),
            ApiFault::Garbage => {
                Self { status: StatusCode::OK, body: Bytes::from_static(b"<html>\xff\xfe not what you want") }
            }
            ApiFault::Silence | ApiFault::NoToken => return None,
        })
    }
}
