//! Requests that make something else of a connection than HTTP: CONNECT, and the upgrade to a WebSocket.

use std::error::Error;
use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use http::response::Parts;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Body;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout_at};

use super::{Answer, CUT, Connection, words};

/// Of an answer's head; the services' have 300 bytes, and those of portals their cookies.
const LONGEST_HEAD: usize = 16 << 10;
/// Of an answer's body, for its title, …
pub(super) const BEGINNING: usize = 16 << 10;
/// … and the time that it has to come.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// What became of such a request.
pub enum Switched<S> {
    /// The server agrees. Whether that is worth anything is to be seen from the answer's head.
    Yes {
        /// The answer's head.
        head: Parts,
        /// The connection …
        stream: S,
        /// … and what was read of it behind the head.
        read: Bytes,
    },
    /// The server has something else to say.
    No(Answer),
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoAnswer(String);

/// Sends `request`, a CONNECT or an upgrade, and waits for the answer to it.
///
/// Answers may be odd, as long as it is clear what they mean: proxies on the way rewrite headers.
///
/// # Errors
/// The connection is cut, or what comes is not HTTP.
pub async fn switch<S: Connection + 'static>(
    stream: S,
    request: Request<Empty<Bytes>>,
) -> Result<Switched<S>, NoAnswer> {
    let connects = request.method() == Method::CONNECT;
    let (mut sender, connection) = http1::Builder::new()
        .title_case_headers(true)
        .allow_spaces_after_header_name_in_responses(true)
        .allow_obsolete_multiline_headers_in_responses(true)
        .max_buf_size(LONGEST_HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(no_answer)?;
    let exchange = pin!(async move {
        let mut response = sender.send_request(request).await.map_err(no_answer)?;
        let upgrade = hyper::upgrade::on(&mut response);
        let (head, body) = response.into_parts();
        let agreed = match connects {
            true => head.status.is_success(),
            false => head.status == StatusCode::SWITCHING_PROTOCOLS,
        };
        if !agreed {
            let answer = Answer::new(head.status, &head.headers, &beginning(body).await);
            return Ok(Switched::No(answer));
        }
        let parts = upgrade.await.map_err(no_answer)?.downcast::<TokioIo<S>>();
        let parts = parts.map_err(|_| NoAnswer("it has become something else".to_owned()))?;
        Ok(Switched::Yes { head, stream: parts.io.into_inner(), read: parts.read_buf })
    });
    match select(exchange, pin!(connection.with_upgrades())).await {
        Either::Left((result, _)) => result,
        // The connection has been handed over, or has ended; the exchange knows which.
        Either::Right((_, exchange)) => exchange.await,
    }
}

/// The beginning of a body, as far as it comes in time: enough for a title.
pub async fn beginning<B: Body<Data = Bytes> + Unpin>(mut body: B) -> Vec<u8> {
    let (until, mut bytes) = (Instant::now() + PATIENCE, Vec::new());
    while bytes.len() < BEGINNING {
        let Ok(Some(Ok(frame))) = timeout_at(until, body.frame()).await else { break };
        bytes.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
    }
    bytes.truncate(BEGINNING);
    bytes
}

fn no_answer(error: hyper::Error) -> NoAnswer {
    let causes = || std::iter::successors(Some(&error as &dyn Error), |&e| e.source());
    let cut = error.is_incomplete_message() || error.is_closed() || error.is_canceled();
    match causes().find_map(|cause| cause.downcast_ref::<io::Error>()) {
        Some(error) => NoAnswer(words(error)),
        None if cut => NoAnswer(CUT.to_owned()),
        None => NoAnswer(causes().map(ToString::to_string).collect::<Vec<_>>().join(": ")),
    }
}
