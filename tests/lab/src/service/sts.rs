//! Two calls of STS: who am I, and the keys of a role.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};

use super::Answer;
use crate::fault::{ApiFault, Call};
use crate::state::State;

/// Answers `GetCallerIdentity` and `AssumeRole`, in the XML of the query protocol.
pub(super) fn answer(state: &State, form: &Bytes, has_expired: bool) -> Answer {
    let is = |action: &str| form.split(|byte| *byte == b'&').any(|field| field == action.as_bytes());
    let (identity, role) = (is("Action=GetCallerIdentity"), is("Action=AssumeRole"));
    let refused = |kind: &str, words: &str| {
        let body = format!(
            "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type>\
             <Code>{kind}</Code><Message>{words}</Message></Error></ErrorResponse>"
        );
        xml(StatusCode::FORBIDDEN, body)
    };
    let fault = match has_expired {
        true => Some(ApiFault::Expired),
        false => state.faults.borrow().on(Call::CallerIdentity).filter(|_| identity),
    };
    match fault {
        _ if !identity && !role => refused("InvalidAction", "Could not find operation"),
        Some(ApiFault::Expired) => {
            refused("ExpiredToken", "The security token included in the request is expired")
        }
        Some(ApiFault::Internal) => xml(StatusCode::INTERNAL_SERVER_ERROR, String::new()),
        Some(_) => refused("InvalidClientTokenId", "The security token included in the request is invalid."),
        None if role => xml(StatusCode::OK, assumed(state)),
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

/// Keys that say themselves until when they are good.
fn assumed(state: &State) -> String {
    state.count(|status| status.roles_assumed += 1);
    let until = SystemTime::now() + state.options.role_lives;
    let seconds = until.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let expiration = humantime::format_rfc3339_seconds(until);
    format!(
        "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleResult><Credentials>\
         <AccessKeyId>ASIAUNTIL{seconds}</AccessKeyId><SecretAccessKey>of-no-account</SecretAccessKey>\
         <SessionToken>of-no-account</SessionToken><Expiration>{expiration}</Expiration></Credentials>\
         </AssumeRoleResult></AssumeRoleResponse>"
    )
}

fn xml(status: StatusCode, body: String) -> Answer {
    let mut answer = super::answer(status, body.into());
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/xml"));
    answer
}
