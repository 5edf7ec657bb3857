//! The HTTP client beneath every call: the API's, and those of the credential providers.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::uri::Scheme;
use http::{Response, Uri};
use http_body_util::{BodyExt, Collected, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{Connected, Connection as Pooled};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::time::timeout;

use crate::network::{Answer, Connection, Network, Peer};
use crate::tunnel::failure::{Class, Failure};

/// Calls come in bursts, an hour apart: a connection is kept for the next call of a burst, and its buffers not for
/// longer.
const IDLE: Duration = Duration::from_secs(5);

/// For a connection through a proxy, which has to make one of its own first: its name, its answer and TLS with the host.
const PROXIED: Duration = Duration::from_secs(15);
/// The longest answer that is read: a page of 50 nodes has 100 kB. Whoever is between us and the service may answer without
/// an end.
const LONGEST: usize = 4 << 20;

/// The time that a page has to come.
const PAGE: Duration = Duration::from_secs(5);

/// A client that goes out through `network`.
pub(super) fn client(network: Network) -> SharedHttpClient {
    SharedHttpClient::new(Client { network, pools: Mutex::default() })
}

type Pool = legacy::Client<Dial, SdkBody>;

#[derive(Debug)]
struct Client {
    network: Network,
    /// By the time for a connection: providers of credentials have less patience with an instance's metadata service
    /// than with the API.
    pools: Mutex<HashMap<Option<Duration>, Pool>>,
}

impl HttpClient for Client {
    fn http_connector(&self, settings: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        let patience = settings.connect_timeout();
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let pool = pools.entry(patience).or_insert_with(|| {
            legacy::Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE)
                .build(Dial { network: self.network.clone(), patience })
        });
        let (network, pool) = (self.network.clone(), pool.clone());
        SharedHttpConnector::new(Connector { network, pool, read_timeout: settings.read_timeout() })
    }
}

#[derive(Debug)]
struct Connector {
    network: Network,
    pool: Pool,
    read_timeout: Option<Duration>,
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let request = match request.try_into_http1x() {
            Ok(request) => request,
            Err(error) => return HttpConnectorFuture::ready(Err(ConnectorError::user(error.into()))),
        };
        let (host, tls, port) = place(request.uri());
        let peer = if tls { self.network.peer(host, port) } else { Ok(Peer::direct(host, port)) };
        let (answer, read_timeout) = (self.pool.request(request), self.read_timeout);
        HttpConnectorFuture::new(async move {
            let answer = match read_timeout {
                Some(limit) => timeout(limit, answer).await.map_err(|e| ConnectorError::timeout(e.into()))?,
                None => answer.await,
            };
            let (answer, peer) = (answer.map_err(broken)?, peer.map_err(told)?);
            let mut answer = sifted(answer, &peer, tls).await.map_err(told)?;
            // For those who cannot make anything of the answer.
            answer.extensions_mut().insert(peer);
            HttpResponse::try_from(answer).map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}

/// Host, whether with TLS, and port.
fn place(uri: &Uri) -> (&str, bool, u16) {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let tls = uri.scheme() == Some(&Scheme::HTTPS);
    (host, tls, uri.port_u16().unwrap_or(if tls { 443 } else { 80 }))
}

/// The answer, if it can be one of a service's: none of them speaks to browsers, or leads elsewhere. Only an instance's
/// metadata service, which is called without TLS, has pages for what it does not know.
async fn sifted(answer: Response<Incoming>, peer: &Peer, tls: bool) -> Result<Response<SdkBody>, Failure> {
    let status = answer.status();
    if !status.is_redirection() && !Answer::says_page(answer.headers()) {
        return Ok(answer.map(|body| SdkBody::from_body_1_x(Limited::new(body, LONGEST))));
    }
    let (head, body) = answer.into_parts();
    let read = timeout(PAGE, Limited::new(body, LONGEST).collect()).await;
    let body = read.ok().and_then(Result::ok).map(Collected::to_bytes).unwrap_or_default();
    let answer = Answer::new(status, &head.headers, &body);
    if answer.is_for_browsers() && (tls || !(status.is_client_error() || status.is_server_error())) {
        return Err(answer.instead_of("the API's answer", peer));
    }
    Ok(Response::from_parts(head, SdkBody::from(body)))
}

/// A connection that could not be had explains itself; the HTTP client's words around it say less.
fn broken(error: legacy::Error) -> ConnectorError {
    let mut next: Option<&(dyn Error + 'static)> = Some(&error);
    while let Some(cause) = next {
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            return told(failure.clone());
        }
        next = cause.source();
    }
    ConnectorError::io(error.into())
}

fn told(failure: Failure) -> ConnectorError {
    match failure.class {
        Class::Network => ConnectorError::io(Box::new(failure)),
        _ => ConnectorError::user(Box::new(failure)),
    }
}

/// Makes the pool's connections.
#[derive(Clone, Debug)]
struct Dial {
    network: Network,
    patience: Option<Duration>,
}

impl tower_service::Service<Uri> for Dial {
    type Response = TokioIo<Box<dyn Connection>>;
    type Error = Failure;
    type Future = BoxFuture<'static, Result<Self::Response, Failure>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Self { network, patience } = self.clone();
        async move {
            let (host, tls, port) = place(&uri);
            let connecting = async {
                match tls {
                    true => network.connect_tls(host, port).await,
                    // This host, or its metadata service: no proxy's business.
                    false => network.connect_directly(host, port).await,
                }
            };
            let peer = if tls { network.peer(host, port)? } else { Peer::direct(host, port) };
            let patience = patience.map(|limit| if peer.is_proxied() { limit.max(PROXIED) } else { limit });
            let connected = match patience {
                Some(limit) => timeout(limit, connecting).await.unwrap_or_else(|_| {
                    let text = format!("connecting to {peer}: no answer within {limit:?}");
                    Err(Failure::new(Class::Network, text))
                }),
                None => connecting.await,
            };
            connected.map(TokioIo::new)
        }
        .boxed()
    }
}

impl Pooled for Box<dyn Connection> {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::Instant;
    use tower_service::Service as _;

    use super::*;
    use crate::network::Environment;

    /// What is said, and after how many seconds, of a proxy that answers after so long, and then of a host that does not.
    async fn through(answers: Duration) -> (String, u64) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let proxy = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await.unwrap();
            tokio::time::sleep(answers).await;
            let _ = stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await;
            std::future::pending::<()>().await;
        });
        let environment =
            Environment::read(|name| (name == "HTTPS_PROXY").then(|| format!("http://{address}")));
        let network = Network::new(&environment, None).unwrap();
        let began = Instant::now();
        let uri = Uri::from_static("https://ssm.us-west-2.amazonaws.com");
        let connected = Dial { network, patience: Some(Duration::from_secs(5)) }.call(uri).await;
        proxy.abort();
        let text = connected.err().unwrap().text;
        (text.replace(&address.to_string(), "PROXY"), began.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn a_proxy_has_its_own_time_and_is_named() {
        let dead = through(Duration::from_secs(3600)).await;
        assert_eq!(dead, ("the proxy PROXY did not answer within 10 s".to_owned(), 10));
        // Longer than a host that is reached directly may take.
        let (text, after) = through(Duration::from_secs(7)).await;
        let host = "ssm.us-west-2.amazonaws.com:443";
        assert_eq!(text, format!("connecting to {host} through the proxy PROXY: no answer within 15s"));
        assert_eq!(after, 15);
        let (text, after) = through(Duration::ZERO).await;
        assert_eq!(text, format!("TLS with {host} through the proxy PROXY: no answer within 10 s"));
        assert_eq!(after, 10);
    }

    /// What comes of a call without TLS, as to an instance's metadata service, that is answered so.
    async fn called(answer: String) -> Result<(u16, Vec<u8>), String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let network = Network::new(&Environment::default(), None).unwrap();
        let dial = Dial { network: network.clone(), patience: None };
        let pool = legacy::Client::builder(TokioExecutor::new()).build(dial);
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
        };
        let mut request = HttpRequest::new(SdkBody::empty());
        request.set_uri(format!("http://{address}/latest/meta-data/")).unwrap();
        let call = Connector { network, pool, read_timeout: None }.call(request);
        let (answer, ()) = tokio::join!(call, server);
        let mut answer = answer.map_err(|error| format!("{}", error.source().unwrap()))?;
        let body = std::mem::replace(answer.body_mut(), SdkBody::taken());
        Ok((answer.status().as_u16(), body.collect().await.unwrap().to_bytes().to_vec()))
    }

    /// That service has pages of its own for what it does not know, and those who stand in for it say of everything that it
    /// is a page.
    #[tokio::test]
    async fn a_metadata_services_pages_are_its_own() {
        let answer = |status: &str, body: &str| {
            format!(
                "HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
        };
        const PAGE: &str = "<?xml version=\"1.0\"?><html><title>404 - Not Found</title></html>";
        assert_eq!(called(answer("404 Not Found", PAGE)).await, Ok((404, PAGE.into())));
        assert_eq!(called(answer("401 Unauthorized", PAGE)).await, Ok((401, PAGE.into())));
        let keys = "{\"Code\" : \"Success\"}";
        assert_eq!(called(answer("200 OK", keys)).await, Ok((200, keys.into())));
        let told = called(answer("200 OK", "<html><title>Sign in</title>")).await.unwrap_err();
        assert!(told.contains("a page (text/html) “Sign in” instead of"), "{told}");
    }
}
