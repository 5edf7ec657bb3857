//! What is answered to each path.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, VARY};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::board::{About, Board, Known};
use super::exposition::{self, Format, Told};
use super::guard::Guard;
use super::{Settings, page, streams};
use crate::control::protocol::{Event, Status};
use crate::control::time::Timestamp;

/// A body: whole, or a stream.
pub type Answer = UnsyncBoxBody<Bytes, Infallible>;

/// Tunnels that have not answered by then are told as they were, or as unreachable.
const REFRESH: Duration = Duration::from_millis(1500);
/// A load balancer is answered by then: many do not wait for more than a second.
const REFRESH_ONE: Duration = Duration::from_millis(800);
/// What a tunnel has said so short a time ago is good enough for a load balancer: it comes again.
const FRESH: Duration = Duration::from_millis(500);
/// Events in an answer, unless more or fewer are asked for.
const LAST: usize = 100;

/// The most that can be asked for: half a megabyte.
const MOST: usize = 2000;

/// The version of this program.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Everything that answers need.
#[derive(Debug)]
pub struct Site {
    pub(super) board: Arc<Board>,
    guard: Guard,
    pub(super) about: About,
    /// Room for streams.
    pub(super) streams: Arc<Semaphore>,
    /// What numbers of events hold for: another process counts anew.
    pub(super) instance: Timestamp,
}

impl Site {
    /// Over this board.
    pub fn new(board: Arc<Board>, settings: Settings, streams: usize) -> Self {
        let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        let host = host.unwrap_or_default();
        let directories: Vec<_> =
            settings.directories.iter().map(|path| path.display().to_string()).collect();
        let guard = Guard::new(&settings.hosts, &host);
        let host = settings.title.unwrap_or(host);
        Self {
            board,
            guard,
            about: About { host, version: VERSION, runtime_dir: directories.join(" or ") },
            streams: Arc::new(Semaphore::new(streams)),
            instance: Timestamp::now(),
        }
    }

    /// Answers a request. What it carries beside its head is not read.
    pub async fn answer<B>(self: &Arc<Self>, request: &Request<B>) -> Response<Answer> {
        let mut response = match self.guard.refuse(request) {
            Some(refusal) => refusal,
            None => self.route(request).await,
        };
        let headers = response.headers_mut();
        headers
            .insert(HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
        headers.insert(HeaderName::from_static("referrer-policy"), HeaderValue::from_static("no-referrer"));
        let own = HeaderValue::from_static("same-origin");
        headers.insert(HeaderName::from_static("cross-origin-resource-policy"), own);
        headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        if request.method() == Method::HEAD {
            // The stream is not begun, and its place given back.
            response.extensions_mut().remove::<streams::Endless>();
            response.map(|_| full(Full::default()))
        } else {
            response
        }
    }

    async fn route<B>(self: &Arc<Self>, request: &Request<B>) -> Response<Answer> {
        let path = request.uri().path();
        if let Some(file) = page::file(path) {
            return file;
        }
        match path {
            "/metrics" => self.metrics(header(request, &ACCEPT)).await,
            "/livez" => plain(StatusCode::OK, "ok\n"),
            "/readyz" => self.ready(),
            "/api/tunnels" => self.tunnels().await,
            "/api/events" => self.events(request),
            "/api/live" => streams::live(self),
            _ => match path.strip_prefix("/readyz/") {
                Some(name) => self.tunnel_ready(name).await,
                None => plain(
                    StatusCode::NOT_FOUND,
                    "There is: /  /metrics  /livez  /readyz  /readyz/NAME  /api/tunnels  /api/events\n",
                ),
            },
        }
    }

    async fn fresh(&self) -> Vec<Known> {
        self.board.refresh(Instant::now() + REFRESH).await;
        self.board.all()
    }

    async fn metrics(&self, accept: &str) -> Response<Answer> {
        let tunnels = self.fresh().await;
        let told: Vec<_> =
            tunnels.iter().map(|one| Told { status: &one.status, answers: one.answers() }).collect();
        let format = Format::wanted(accept);
        let text = exposition::expose(&told, VERSION, Timestamp::now(), format);
        let mut response = Response::new(full(Full::from(text)));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
        headers.insert(VARY, HeaderValue::from_static("accept"));
        response
    }

    fn ready(&self) -> Response<Answer> {
        match self.board.is_ready() {
            Ok(tunnels) => json(StatusCode::OK, &json!({ "ready": true, "tunnels": tunnels })),
            Err(reason) => {
                json(StatusCode::SERVICE_UNAVAILABLE, &json!({ "ready": false, "reason": reason }))
            }
        }
    }

    async fn tunnel_ready(&self, name: &str) -> Response<Answer> {
        let now = Instant::now();
        let since = now.checked_sub(FRESH).unwrap_or(now);
        let Some(Known { status, lost }) = self.board.refreshed(name, since, now + REFRESH_ONE).await else {
            let reason = format!("there is no tunnel of this name in {}", self.about.runtime_dir);
            return json(StatusCode::NOT_FOUND, &json!({ "name": name, "ready": false, "reason": reason }));
        };
        if let Some(lost) = lost {
            let answer = json!({ "name": name, "ready": false, "state": "unreachable", "since": lost.since,
                "reason": lost.why });
            return json(StatusCode::SERVICE_UNAVAILABLE, &answer);
        }
        let ready = status.state.serves();
        let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let reason = status.failure.as_ref().map(|failure| &failure.text);
        let answer = json!({ "name": name, "ready": ready, "state": status.state, "since": status.since,
            "reason": reason });
        json(code, &answer)
    }

    async fn tunnels(&self) -> Response<Answer> {
        #[derive(Serialize)]
        struct Tunnels<'a> {
            now: Timestamp,
            host: &'a str,
            tunnels: Vec<Tunnel<'a>>,
        }
        #[derive(Serialize)]
        struct Tunnel<'a> {
            reachable: bool,
            unreachable: Option<Value>,
            status: &'a Status,
        }
        let all = self.fresh().await;
        let tunnels = all.iter().map(|Known { status, lost }| {
            let lost = lost.as_ref().filter(|lost| lost.is_news());
            let unreachable = lost.map(|lost| json!({ "since": lost.since, "reason": lost.why }));
            Tunnel { reachable: lost.is_none(), unreachable, status }
        });
        let tunnels = tunnels.collect();
        json(StatusCode::OK, &Tunnels { now: Timestamp::now(), host: &self.about.host, tunnels })
    }

    fn events<B>(self: &Arc<Self>, request: &Request<B>) -> Response<Answer> {
        let query = request.uri().query().unwrap_or_default();
        let (mut tunnel, mut last) = (None, LAST);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=').unwrap_or((pair, "")) {
                ("tunnel", name) => tunnel = Some(name),
                ("last", number) => match number.parse() {
                    Ok(number) => last = MOST.min(number),
                    Err(_) => return plain(StatusCode::BAD_REQUEST, "last= takes a number of events\n"),
                },
                _ => return plain(StatusCode::BAD_REQUEST, "There is: ?tunnel=NAME  &last=NUMBER\n"),
            }
        }
        if header(request, &ACCEPT).contains("text/event-stream") {
            let back = header(request, &HeaderName::from_static("last-event-id"));
            return streams::events(self, tunnel.map(str::to_owned), back);
        }
        if let Some(name) = tunnel
            && self.board.one(name).is_none()
        {
            return plain(StatusCode::NOT_FOUND, "There is no tunnel of this name.\n");
        }
        #[derive(Serialize)]
        struct Events<'a> {
            events: Vec<&'a Event>,
        }
        let events = self.board.events(tunnel, last);
        json(StatusCode::OK, &Events { events: events.iter().map(Arc::as_ref).collect() })
    }
}

fn header<'a, B>(request: &'a Request<B>, name: &HeaderName) -> &'a str {
    request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// A whole body.
pub fn full(body: Full<Bytes>) -> Answer {
    body.boxed_unsync()
}

/// An answer for people.
pub fn plain(code: StatusCode, text: &'static str) -> Response<Answer> {
    let mut response = Response::new(full(Full::from(text)));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn json(code: StatusCode, value: &impl Serialize) -> Response<Answer> {
    let text = serde_json::to_vec(value).unwrap_or_else(|error| {
        tracing::debug!(%error, "an answer could not be written");
        Vec::new()
    });
    let mut response = Response::new(full(Full::from(text)));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
