//! The plugin's only door: a CONNECT proxy on loopback, for whoever knows the secret, to AWS and nowhere else.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION,
};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use subtle::ConstantTimeEq;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::link::Connection;
use super::local_api::{LocalApi, status};
use super::observe::{self, Channels};
use super::tls::Authority;
use crate::aws::api::Api;
use crate::config::StreamEndpoint;
use crate::network::Network;

/// The plugin has three or four; others on this host may connect too, though they know no secret. Of those, the one that
/// came first has to go where there is no room: else whoever opens so many and says nothing would keep the plugin out.
const MAX_CONNECTIONS: usize = 64;
/// For a request's head and for a TLS handshake.
const PATIENCE: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// AWS's domains, the second of each pair for dual-stack endpoints, as the SDK's `partitions.json` has them. VPC endpoints
/// are below the first (`….vpce.amazonaws.com`), FIPS endpoints beside the others.
const AWS: &[&str] = &[
    ".amazonaws.com",
    ".api.aws",
    ".amazonaws.com.cn",
    ".api.amazonwebservices.com.cn",
    ".amazonaws.eu",
    ".api.amazonwebservices.eu",
    ".c2s.ic.gov",
    ".api.aws.ic.gov",
    ".sc2s.sgov.gov",
    ".api.aws.scloud",
    ".cloud.adc-e.uk",
    ".api.cloud-aws.adc-e.uk",
    ".csp.hci.ic.gov",
    ".api.aws.hci.ic.gov",
];

/// One session's proxy.
pub struct Proxy {
    /// Who gets in.
    pub secret: SecretString,
    /// Hosts beside those of AWS.
    pub endpoints: Vec<Endpoint>,
    /// What happens to a connection that was let through.
    pub mode: Mode,
}

/// Hold or observe, with what each needs.
pub enum Mode {
    /// TLS ends here.
    Hold {
        /// Makes certificates.
        authority: Arc<Authority>,
        /// Speaks with the plugin.
        local_api: LocalApi,
    },
    /// TLS is passed on.
    Observe {
        /// The host of the stream URL.
        stream_host: String,
        /// Where to dial instead of it.
        stream_endpoint: Option<StreamEndpoint>,
        /// Where to dial instead of the host of KMS.
        kms_endpoint: Option<StreamEndpoint>,
        /// The way there.
        network: Network,
        /// For the plugin's own calls.
        api: Arc<dyn Api>,
        /// Opens and closes of the data channel.
        channels: Arc<Channels>,
    },
}

/// Where the plugin wants to be connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// A name or an address, without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl Endpoint {
    /// From a URL of a known scheme.
    pub fn of_url(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let usual = if matches!(uri.scheme_str(), Some("http" | "ws")) { 80 } else { 443 };
        Some(Self::new(uri.host()?, uri.port_u16().unwrap_or(usual)))
    }

    fn of_connect(uri: &Uri) -> Option<Self> {
        Some(Self::new(uri.host()?, uri.port_u16()?))
    }

    fn new(host: &str, port: u16) -> Self {
        Self { host: host.trim_matches(['[', ']']).to_ascii_lowercase(), port }
    }

    /// A regional host of KMS, by its name.
    pub fn is_kms(&self) -> bool {
        self.is_aws() && matches!(self.host.split('.').next(), Some("kms" | "kms-fips"))
    }

    fn is_aws(&self) -> bool {
        self.port == 443 && AWS.iter().any(|suffix| self.host.ends_with(suffix))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            return write!(f, "[{}]:{}", self.host, self.port);
        }
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// A CONNECT that was granted.
struct Granted {
    endpoint: Endpoint,
    upgrade: OnUpgrade,
    /// In observe mode: the connection, made before the grant.
    service: Option<Box<dyn Connection>>,
}

impl Proxy {
    /// Serves the plugin until it is dropped, with all connections.
    pub async fn run(self, listener: TcpListener) {
        let proxy = Arc::new(self);
        let mut connections = JoinSet::new();
        let mut strangers: VecDeque<(AbortHandle, Arc<AtomicBool>)> = VecDeque::new();
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    while connections.try_join_next().is_some() {}
                    strangers.retain(|(task, let_in)| !task.is_finished() && !let_in.load(Relaxed));
                    let full = connections.len() >= MAX_CONNECTIONS;
                    if full && let Some((oldest, _)) = strangers.pop_front() {
                        oldest.abort();
                    } else if full {
                        continue;
                    }
                    let (proxy, let_in) = (proxy.clone(), Arc::new(AtomicBool::new(false)));
                    let known = let_in.clone();
                    let task = connections.spawn(async move { proxy.serve(stream, &known).await });
                    strangers.push_back((task, let_in));
                }
                Err(error) => {
                    // Out of file descriptors, for example: others will be closed.
                    warn!(%error, "the gateway cannot accept");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Serves one connection; `let_in` is set when it has shown the secret.
    async fn serve(&self, stream: TcpStream, let_in: &AtomicBool) {
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "a connection of the plugin's ended");
            return;
        }
        self.speak(stream, let_in).await;
    }

    /// The same for any connection.
    pub(super) async fn speak(&self, stream: impl Connection + 'static, let_in: &AtomicBool) {
        let granted = Mutex::new(None);
        let service = service_fn(async |request| {
            let answer = self.answer(request, &granted).await;
            let_in.fetch_or(answer.status() == StatusCode::OK, Relaxed);
            Ok::<_, Infallible>(answer)
        });
        if let Err(error) =
            http_server().serve_connection(TokioIo::new(stream), service).with_upgrades().await
        {
            debug!(%error, "a connection of the plugin's ended");
        }
        let granted = granted.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(granted) = granted
            && let Err(error) = self.tunnel(granted).await
        {
            warn!(%error, "a connection of the plugin's failed");
        }
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        granted: &Mutex<Option<Granted>>,
    ) -> Response<Full<Bytes>> {
        if request.method() == Method::CONNECT {
            return match self.grant(request).await {
                Ok(grant) => {
                    *granted.lock().unwrap_or_else(PoisonError::into_inner) = Some(grant);
                    status(StatusCode::OK)
                }
                Err(refusal) => refusal,
            };
        }
        match &self.mode {
            Mode::Observe { api, .. }
                if request.method() == Method::GET && request.uri().path() == "/credentials" =>
            {
                if !presents(&request, AUTHORIZATION, self.secret.expose_secret()) {
                    return status(StatusCode::UNAUTHORIZED);
                }
                credentials(api.as_ref()).await
            }
            _ => status(StatusCode::NOT_FOUND),
        }
    }

    async fn grant(&self, mut request: Request<Incoming>) -> Result<Granted, Response<Full<Bytes>>> {
        let expected =
            format!("Basic {}", STANDARD.encode(format!("autossm:{}", self.secret.expose_secret())));
        if !presents(&request, PROXY_AUTHORIZATION, &expected) {
            let mut refusal = status(StatusCode::PROXY_AUTHENTICATION_REQUIRED);
            refusal.headers_mut().insert(PROXY_AUTHENTICATE, HeaderValue::from_static("Basic"));
            return Err(refusal);
        }
        let endpoint = Endpoint::of_connect(request.uri()).ok_or_else(|| status(StatusCode::BAD_REQUEST))?;
        if !endpoint.is_aws() && !self.endpoints.contains(&endpoint) {
            warn!(%endpoint, "the plugin may not connect there: it is no host of AWS");
            return Err(status(StatusCode::FORBIDDEN));
        }
        let service = match &self.mode {
            Mode::Hold { .. } => None,
            Mode::Observe { stream_endpoint, kms_endpoint, network, .. } => {
                let instead = match endpoint.is_kms() {
                    true => kms_endpoint.as_ref(),
                    false => stream_endpoint.as_ref().filter(|_| self.is_channel(&endpoint)),
                };
                let (host, port) =
                    instead.map_or((&endpoint.host, endpoint.port), |instead| (&instead.host, instead.port));
                Some(network.connect(host, port).await.map_err(|error| {
                    warn!(%endpoint, %error, "the plugin could not be connected");
                    status(StatusCode::BAD_GATEWAY)
                })?)
            }
        };
        Ok(Granted { endpoint, upgrade: hyper::upgrade::on(&mut request), service })
    }

    async fn tunnel(&self, granted: Granted) -> io::Result<()> {
        let plugin = TokioIo::new(granted.upgrade.await.map_err(io::Error::other)?);
        match (&self.mode, granted.service) {
            (Mode::Hold { authority, local_api }, _) => {
                let acceptor = TlsAcceptor::from(authority.server_config(&granted.endpoint.host)?);
                let connection = timeout(PATIENCE, acceptor.accept(plugin)).await??;
                local_api.serve(connection, &granted.endpoint).await;
            }
            (Mode::Observe { channels, .. }, Some(service)) if self.is_channel(&granted.endpoint) => {
                observe::channel(plugin, service, channels).await;
            }
            (Mode::Observe { .. }, Some(service)) => observe::pass(plugin, service).await,
            (Mode::Observe { .. }, None) => (),
        }
        Ok(())
    }

    fn is_channel(&self, endpoint: &Endpoint) -> bool {
        matches!(&self.mode, Mode::Observe { stream_host, .. } if stream_host.eq_ignore_ascii_case(&endpoint.host))
    }
}

/// Compares in constant time: the listener is open to every process of this host.
fn presents(request: &Request<Incoming>, header: HeaderName, expected: &str) -> bool {
    let presented = request.headers().get(header).map_or(&b""[..], HeaderValue::as_bytes);
    presented.ct_eq(expected.as_bytes()).into()
}

/// Small buffers and little patience; for both layers of HTTP that the plugin speaks to us.
pub fn http_server() -> http1::Builder {
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(16 << 10);
    server
}

/// What the plugin's SDK expects of a container's credentials endpoint.
async fn credentials(api: &dyn Api) -> Response<Full<Bytes>> {
    let credentials = match api.credentials().await {
        Ok(credentials) => credentials,
        Err(failure) => {
            warn!(%failure, "no credentials for the plugin");
            return status(StatusCode::SERVICE_UNAVAILABLE);
        }
    };
    let expiry = credentials.expiry().unwrap_or_else(|| SystemTime::now() + Duration::from_secs(3600));
    let answer = json!({
        "AccessKeyId": credentials.access_key_id(),
        "SecretAccessKey": credentials.secret_access_key(),
        "Token": credentials.session_token().unwrap_or_default(),
        "Expiration": humantime::format_rfc3339_seconds(expiry).to_string(),
    });
    let mut response = Response::new(Full::from(answer.to_string()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_aws_is_let_through() {
        for (authority, expected) in [
            ("ssmmessages.us-east-1.amazonaws.com:443", true),
            ("SSM.cn-north-1.amazonaws.com.cn:443", true),
            ("ssmmessages-fips.us-gov-west-1.amazonaws.com:443", true),
            ("vpce-0a1b-2c3d.ssmmessages.us-west-2.vpce.amazonaws.com:443", true),
            ("vpce-0a1b-2c3d.ssm.cn-north-1.vpce.amazonaws.com.cn:443", true),
            ("kms.eu-west-1.api.aws:443", true),
            ("kms-fips.us-east-1.amazonaws.com:443", true),
            ("ssm.cn-northwest-1.api.amazonwebservices.com.cn:443", true),
            ("ssmmessages.eusc-de-east-1.amazonaws.eu:443", true),
            ("ssmmessages.us-iso-east-1.c2s.ic.gov:443", true),
            ("ssm.us-east-1.amazonaws.com:80", false),
            ("amazonaws.com.evil.example:443", false),
            ("evilamazonaws.com:443", false),
            ("169.254.169.254:443", false),
            ("[::1]:443", false),
        ] {
            let endpoint = Endpoint::of_connect(&authority.parse().unwrap()).unwrap();
            assert_eq!(endpoint.is_aws(), expected, "{authority}");
            assert_eq!(endpoint.is_kms(), authority.starts_with("kms"), "{authority}");
        }
    }

    #[test]
    fn endpoints_of_urls() {
        for (url, host, port) in [
            (
                "https://vpce-1.ssm.us-east-1.vpce.amazonaws.com",
                "vpce-1.ssm.us-east-1.vpce.amazonaws.com",
                443,
            ),
            ("http://127.0.0.1:8080/x", "127.0.0.1", 8080),
            ("wss://[::1]:9443", "::1", 9443),
        ] {
            assert_eq!(Endpoint::of_url(url), Some(Endpoint { host: host.into(), port }));
        }
    }
}
