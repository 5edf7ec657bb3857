//! What the plugin says over HTTPS once its TLS has been ended here: the data channel's upgrade goes to the channel,
//! the calls that would resume or end the session are answered, any other call goes on under the daemon's credentials.

use std::convert::Infallible;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, TRANSFER_ENCODING, UPGRADE};
use http::{Request, Response, StatusCode, Uri, response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tracing::{debug, warn};

use super::Event;
use super::link::Connection;
use super::proxy::{Endpoint, http_server};
use crate::aws::api::Api;
use crate::aws::errors::answered;
use crate::aws::sign::sign_forwarded;
use crate::config::StreamEndpoint;
use crate::network::{Answer, Network};
use crate::tunnel::failure::{Class, Failure};

/// Of a call that is forwarded, and of its answer: a KMS call has a few hundred bytes.
const MAX_BODY: usize = 64 << 10;
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// The plugin's side of one session.
pub struct LocalApi {
    /// In answers to the plugin.
    pub session_id: String,
    /// The plugin must find an AWS name in it, or it refuses it.
    pub stream_url: String,
    /// What the plugin gets for a token; it opens nothing.
    pub stand_in: SecretString,
    /// Credentials for forwarded calls.
    pub api: Arc<dyn Api>,
    /// Where to dial instead of the host of KMS.
    pub kms_endpoint: Option<StreamEndpoint>,
    /// Is told of calls to KMS that failed: without them there is no session.
    pub events: mpsc::Sender<Event>,
    /// The way there.
    pub network: Network,
    /// Takes the plugin's data channels.
    pub attach: mpsc::Sender<Box<dyn Connection>>,
}

impl LocalApi {
    /// Serves one connection that the plugin made to `target`.
    pub async fn serve(&self, connection: impl Connection + 'static, target: &Endpoint) {
        let upgrade = Mutex::new(None);
        let service =
            service_fn(async |request| Ok::<_, Infallible>(self.answer(request, target, &upgrade).await));
        if let Err(error) =
            http_server().serve_connection(TokioIo::new(connection), service).with_upgrades().await
        {
            debug!(%error, %target, "a connection of the plugin's ended");
        }
        let upgrade = upgrade.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(upgrade) = upgrade
            && let Ok(upgraded) = upgrade.await
        {
            // Without a receiver the session is about to be closed.
            let _ = self.attach.send(Box::new(TokioIo::new(upgraded))).await;
        }
    }

    async fn answer(
        &self,
        mut request: Request<Incoming>,
        target: &Endpoint,
        upgrade: &Mutex<Option<OnUpgrade>>,
    ) -> Response<Full<Bytes>> {
        let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
        if request.uri().path().starts_with("/v1/data-channel/") {
            let Some(key) = header("sec-websocket-key") else { return status(StatusCode::BAD_REQUEST) };
            let accept = derive_accept_key(key.as_bytes());
            *upgrade.lock().unwrap_or_else(PoisonError::into_inner) = Some(hyper::upgrade::on(&mut request));
            return switching_protocols(&accept);
        }
        match header("x-amz-target") {
            Some("AmazonSSM.ResumeSession") => Self::json(&json!({
                "SessionId": self.session_id,
                "TokenValue": self.stand_in.expose_secret(),
                "StreamUrl": self.stream_url,
            })),
            // The plugin asks for this when its resending has given up. The session's end is for others to decide.
            Some("AmazonSSM.TerminateSession") => Self::json(&json!({ "SessionId": self.session_id })),
            // `Service_20260101.Operation`, or the plugin uses a protocol with the operation elsewhere.
            operation => {
                let operation = operation.and_then(|target| target.split('.').nth(1)).unwrap_or_default();
                let service = target.host.split('.').next().unwrap_or_default();
                let operation = format!("{service}:{operation}");
                self.pass_on(request, target, &operation).await
            }
        }
    }

    /// Sends a call on and returns the answer. Of a failure the plugin learns what there is to learn, and then exits
    /// without a word of it: so it is told here.
    async fn pass_on(
        &self,
        request: Request<Incoming>,
        target: &Endpoint,
        operation: &str,
    ) -> Response<Full<Bytes>> {
        debug!(%target, operation, "forwarding a call of the plugin's");
        let answer = match timeout(CALL_TIMEOUT, self.forward(request, target)).await {
            Ok(answer) => answer,
            Err(_) => Err(failed(format!("no answer within {} s", CALL_TIMEOUT.as_secs()))),
        };
        let (response, failure) = match answer {
            Ok((parts, body)) => {
                let failure = answered(operation, parts.status.as_u16(), &body);
                (Response::from_parts(parts, Full::new(body)), failure)
            }
            Err(failure) => {
                let failure = Failure::new(failure.class, format!("{operation} at {target}: {failure}"));
                (status(StatusCode::BAD_GATEWAY), Some(failure))
            }
        };
        match failure {
            Some(failure) if target.is_kms() => {
                // Without a receiver the session is about to be closed.
                let _ = self.events.send(Event::KmsFailed(failure)).await;
            }
            Some(failure) => warn!(%target, %failure, "a call of the plugin's failed"),
            None => {}
        }
        response
    }

    /// Sends a call on, signed anew.
    async fn forward(
        &self,
        request: Request<Incoming>,
        target: &Endpoint,
    ) -> Result<(response::Parts, Bytes), Failure> {
        let (mut parts, body) = request.into_parts();
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        parts.uri = format!("https://{target}{path}").parse().map_err(failed)?;
        let request = Request::from_parts(parts, whole(body).await?);
        let credentials = self.api.credentials().await?;
        let signed = sign_forwarded(request, &credentials, SystemTime::now())?;

        let (mut parts, body) = signed.into_parts();
        parts.headers.remove(TRANSFER_ENCODING);
        let origin = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        parts.uri = origin.parse::<Uri>().map_err(failed)?;
        let (tls, host, port) = self.place(target);
        let peer = self.network.peer(host, port)?;
        let stream = match tls {
            true => self.network.connect_tls(host, port).await?,
            false => self.network.connect(host, port).await?,
        };
        let stream = TokioIo::new(stream);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.map_err(failed)?;
        let call = async move {
            let request = Request::from_parts(parts, Full::new(body));
            let (mut parts, body) = sender.send_request(request).await.map_err(failed)?.into_parts();
            let body = whole(body).await?;
            let answer = Answer::new(parts.status, &parts.headers, &body);
            if answer.is_for_browsers() {
                return Err(answer.instead_of("the API's answer", &peer));
            }
            // The body has a length now, whatever it had before; and what goes on is another connection.
            parts.headers.remove(TRANSFER_ENCODING);
            parts.headers.remove(CONNECTION);
            Ok((parts, body))
        };
        // The connection ends with the call, which drops its sender.
        tokio::join!(call, connection).0
    }

    /// Where a call goes: whether with TLS, host and port.
    fn place<'a>(&'a self, target: &'a Endpoint) -> (bool, &'a str, u16) {
        let instead = self.kms_endpoint.as_ref().filter(|_| target.is_kms());
        instead.map_or((true, &target.host, target.port), |e| (e.tls, &e.host, e.port))
    }

    fn json(answer: &serde_json::Value) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::from(answer.to_string()));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-amz-json-1.1"));
        response
    }
}

async fn whole(body: Incoming) -> Result<Bytes, Failure> {
    let body = Limited::new(body, MAX_BODY).collect().await;
    Ok(body.map_err(failed)?.to_bytes())
}

fn failed(error: impl Display) -> Failure {
    Failure::new(Class::Network, error.to_string())
}

/// An empty answer.
pub fn status(code: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::default();
    *response.status_mut() = code;
    response
}

fn switching_protocols(accept: &str) -> Response<Full<Bytes>> {
    let mut response = status(StatusCode::SWITCHING_PROTOCOLS);
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::from_str(accept) {
        headers.insert(HeaderName::from_static("sec-websocket-accept"), accept);
    }
    response
}
