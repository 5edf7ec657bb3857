//! The service's HTTP side: the API, and the upgrades to data channels. All three listeners of clients answer both, as the
//! plugin's own API calls come through the same TLS as its data channel. Agents have a listener of their own.

pub(crate) mod agents;
mod api;
mod error;
pub(crate) mod kms;
mod observer;
pub(crate) mod relay;
pub(crate) mod session;
mod signature;
mod sts;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, DATE, HOST};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use crate::channel;
use crate::line::Side;
use crate::state::State;
use error::Refusal;

/// The longest request body.
const LONGEST_BODY: usize = 64 * 1024;

type Answer = Response<Full<Bytes>>;

/// Serves one connection until it is closed; `line` resets it.
pub(crate) async fn serve<S>(state: Arc<State>, stream: S, line: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let (state, line) = (state.clone(), line.clone());
        async move {
            let mut answer = route(state.clone(), line, request).await;
            answer.headers_mut().insert(DATE, date(&state));
            Ok::<_, Infallible>(answer)
        }
    });
    let http = hyper::server::conn::http1::Builder::new();
    // A client that resets its connection is nothing to report.
    let _ = http.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
}

/// What time it is at the service.
fn date(state: &State) -> http::HeaderValue {
    let ahead = state.faults.borrow().clock;
    let here = SystemTime::now();
    let there = match ahead {
        0.. => here.checked_add(Duration::from_secs(ahead.unsigned_abs())),
        _ => here.checked_sub(Duration::from_secs(ahead.unsigned_abs())),
    };
    let text = httpdate::fmt_http_date(there.unwrap_or(here));
    text.parse().unwrap_or(http::HeaderValue::from_static(""))
}

async fn route(state: Arc<State>, line: CancellationToken, request: Request<Incoming>) -> Answer {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let form =
        request.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == "application/x-www-form-urlencoded");
    let has_expired = signature::has_expired(request.headers(), now);
    if has_expired {
        state.count(|status| status.expired_keys += 1);
    }
    if has_expired && !form {
        let refusal =
            Refusal::new("ExpiredTokenException", "The security token included in the request is expired");
        return answer(refusal.status, refusal.body);
    }
    if request.method() == Method::GET && !request.uri().path().starts_with(channel::PATH) {
        return answer(StatusCode::NOT_FOUND, Bytes::from_static(b"<UnknownOperationException/>\n"));
    }
    if request.method() == Method::GET {
        let signed = signature::signer(request.headers(), "ssmmessages", &state.options.region).is_some();
        check_host(&state, request.headers());
        state.count(|status| {
            status.upgrades += 1;
            status.unsigned_upgrades += u64::from(!signed);
        });
        return channel::upgrade(state, Side::Client, line, request).await;
    }
    let target = request.headers().get("x-amz-target").and_then(|value| value.to_str().ok());
    let (service, call) = match target.unwrap_or_default().split_once('.') {
        Some(("TrentService", call)) => ("kms", call.to_owned()),
        Some(("AmazonSSM", call)) => ("ssm", call.to_owned()),
        _ => ("ssm", String::new()),
    };
    let service = if form { "sts" } else { service };
    let signer = signature::signer(request.headers(), service, &state.options.region);
    let Ok(body) = Limited::new(request.into_body(), LONGEST_BODY).collect().await else {
        return answer(StatusCode::BAD_REQUEST, Bytes::new());
    };
    let Some(signer) = signer else {
        state.count(|status| status.unsigned_calls += 1);
        let refusal = Refusal::new("MissingAuthenticationTokenException", "Missing Authentication Token");
        return answer(refusal.status, refusal.body);
    };
    if service == "sts" {
        return sts::answer(&state, &body.to_bytes(), has_expired);
    }
    let result: Result<Value, Refusal> = if service == "kms" {
        state.count(|status| _ = status.data_key_signers.insert(signer));
        kms::answer(&state, &call, &body.to_bytes()).await
    } else {
        api::answer(&state, &call, &body.to_bytes()).await
    };
    match result {
        Ok(content) => answer(StatusCode::OK, content.to_string().into()),
        Err(refusal) => answer(refusal.status, refusal.body),
    }
}

/// The data channel's name is part of what is signed and of how the service finds its cell.
fn check_host(state: &State, headers: &HeaderMap) {
    let host = headers.get(HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if host != state.options.stream_host() {
        state.count(|status| status.wrong_hosts += 1);
    }
}

pub(crate) fn answer(status: StatusCode, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    let json = http::HeaderValue::from_static("application/x-amz-json-1.1");
    answer.headers_mut().insert(CONTENT_TYPE, json);
    answer
}
