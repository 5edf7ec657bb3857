//! The one call of STS that needs no permission: who am I?

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};

use super::Answer;
use crate::fault::{ApiFault, Call};
use crate::state::State;

/// Answers `GetCallerIdentity`, in the XML of the query protocol.
pub(super) fn answer(state: &State, form: &Bytes, has_expired: bool) -> Answer {
    let is_known = form.split(|byte| *byte == b'&').any(|field| field == b"Action=GetCallerIdentity");
    let refused = |kind: &str, words: &str| {
        let body = format!(
            "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type>\
             <Code>{kind}</Code><Message>{words}</Message></Error></ErrorResponse>"
        );
        xml(StatusCode::FORBIDDEN, body)
    };
    let fault =
        if has_expired { Some(ApiFault::Expired) } else { state.faults.borrow().on(Call::CallerIdentity) };
    match fault {
        _ if !is_known => refused("InvalidAction", "Could not find operation"),
        Some(ApiFault::Expired) => {
            refused("ExpiredToken", "The security token included in the request is expired")
        }
        Some(ApiFault::Internal) => xml(StatusCode::INTERNAL_SERVER_ERROR, String::new()),
        Some(_) => refused("InvalidClientTokenId", "The security token included in the request is invalid."),
        None => xml(
            StatusCode::OK,
            "<GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
             <GetCallerIdentityResult><Arn>arn:aws:sts::111122223333:assumed-role/lab/autossm</Arn>\
             <UserId>AROALAB:autossm</UserId><Account>111122223333</Account></GetCallerIdentityResult>\
             </GetCallerIdentityResponse>"
                .to_owned(),
        ),
    }
}

fn xml(status: StatusCode, body: String) -> Answer {
    let mut answer = super::answer(status, body.into());
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/xml"));
    answer
}
