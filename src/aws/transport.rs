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
use http::Uri;
use http::uri::Scheme;
use http_body_util::Limited;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{Connected, Connection as Pooled};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::time::timeout;

use crate::network::{Connection, Network};
use crate::tunnel::failure::{Class, Failure};

/// Calls come in bursts, an hour apart: a connection is kept for the next call of a burst, and its buffers not for
/// longer.
const IDLE: Duration = Duration::from_secs(5);

/// For a connection through a proxy, which has to make one of its own first: its name, its answer and TLS with the host.
const PROXIED: Duration = Duration::from_secs(15);
/// The longest answer that is read: a page of 50 nodes has 100 kB. Whoever is between us and the service may answer without
/// an end.
const LONGEST: usize = 4 << 20;

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
        SharedHttpConnector::new(Connector { pool: pool.clone(), read_timeout: settings.read_timeout() })
    }
}

#[derive(Debug)]
struct Connector {
    pool: Pool,
    read_timeout: Option<Duration>,
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let request = match request.try_into_http1x() {
            Ok(request) => request,
            Err(error) => return HttpConnectorFuture::ready(Err(ConnectorError::user(error.into()))),
        };
        let (answer, read_timeout) = (self.pool.request(request), self.read_timeout);
        HttpConnectorFuture::new(async move {
            let answer = match read_timeout {
                Some(limit) => timeout(limit, answer).await.map_err(|e| ConnectorError::timeout(e.into()))?,
                None => answer.await,
            };
            let answer = answer.map_err(broken)?;
            let answer = answer.map(|body| SdkBody::from_body_1_x(Limited::new(body, LONGEST)));
            HttpResponse::try_from(answer).map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}

/// A connection that could not be had explains itself; the HTTP client's words around it say less.
fn broken(error: legacy::Error) -> ConnectorError {
    let mut next: Option<&(dyn Error + 'static)> = Some(&error);
    while let Some(cause) = next {
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            let failure = Box::new(failure.clone());
            return match failure.class {
                Class::Network => ConnectorError::io(failure),
                _ => ConnectorError::user(failure),
            };
        }
        next = cause.source();
    }
    ConnectorError::io(error.into())
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
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
            let tls = uri.scheme() == Some(&Scheme::HTTPS);
            let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
            let connecting = async {
                match tls {
                    true => network.connect_tls(host, port).await,
                    // This host, or its metadata service: no proxy's business.
                    false => network.connect_directly(host, port).await,
                }
            };
            let proxy = if tls { network.proxy_for(host, port)? } else { None };
            let through =
                proxy.as_ref().map(|proxy| format!(" through the proxy {proxy}")).unwrap_or_default();
            let patience = patience.map(|limit| if proxy.is_some() { limit.max(PROXIED) } else { limit });
            let connected = match patience {
                Some(limit) => timeout(limit, connecting).await.unwrap_or_else(|_| {
                    let text = format!("connecting to {host}:{port}{through}: no answer within {limit:?}");
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
}
