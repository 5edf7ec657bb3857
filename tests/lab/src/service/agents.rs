//! What agents ask of the service: a token for a session's data channel, and the channel. On a listener of their own, without
//! TLS, so that their way can fail alone.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::LONGEST_BODY;
use crate::channel;
use crate::line::Side;
use crate::state::State;

/// An agent that is told so does not ask again.
pub(crate) const TERMINATED: &str = "Session is already terminated";

/// Serves one connection until it is closed; `line` resets it.
pub(crate) async fn serve<S>(state: Arc<State>, stream: S, line: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let (state, line) = (state.clone(), line.clone());
        async move { Ok::<_, Infallible>(route(state, line, request).await) }
    });
    let http = hyper::server::conn::http1::Builder::new();
    let _ = http.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
}

async fn route(
    state: Arc<State>,
    line: CancellationToken,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    if request.method() == Method::GET {
        return channel::upgrade(state, Side::Agent, line, request).await;
    }
    let id = request.uri().path().strip_prefix(channel::PATH).unwrap_or_default();
    let session = state.world().sessions.get(id).cloned();
    if Limited::new(request.into_body(), LONGEST_BODY).collect().await.is_err() {
        return xml(StatusCode::BAD_REQUEST, "<Error/>".into());
    }
    match session.filter(|session| session.is_live()) {
        Some(session) => {
            let token = session.grant_to_agent();
            let body = format!(
                "<CreateDataChannelResponse><MessageSchemaVersion>1.0</MessageSchemaVersion>\
                 <TokenValue>{token}</TokenValue></CreateDataChannelResponse>"
            );
            xml(StatusCode::CREATED, body)
        }
        None => xml(StatusCode::BAD_REQUEST, format!("<Error><Message>{TERMINATED}</Message></Error>")),
    }
}

fn xml(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    answer
}
