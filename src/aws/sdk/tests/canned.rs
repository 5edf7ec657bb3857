//! The server that plays the answers.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{AppName, BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials;
use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::super::{CONNECT, Sdk};
use crate::aws::credentials::Source;
use crate::aws::transport;
use crate::config::Identity;
use crate::network::{Environment, Network};

type Answer = Box<dyn Fn(&str, usize) -> (u16, String) + Send + Sync>;
/// Of every answer.
pub type Headers = &'static [(&'static str, &'static str)];
const HEADERS: Headers = &[("content-type", "application/x-amz-json-1.1")];
pub type Seen = Arc<Mutex<Vec<(http::request::Parts, serde_json::Value)>>>;

/// Answers `answer(operation, number of the request)` until the test ends.
pub struct Service {
    pub url: String,
    pub seen: Seen,
    /// What a client trusts beside the system's authorities.
    pub ca_file: Option<tempfile::NamedTempFile>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Service {
    pub async fn new(answer: impl Fn(&str, usize) -> (u16, String) + Send + Sync + 'static) -> Self {
        Self::serve(answer, HEADERS, None).await
    }

    /// With a certificate that only its `ca_file` vouches for.
    pub async fn over_tls(answer: impl Fn(&str, usize) -> (u16, String) + Send + Sync + 'static) -> Self {
        Self::in_its_place(HEADERS, answer).await
    }

    /// Stands in for the service, with such a certificate and other headers.
    pub async fn in_its_place(
        headers: Headers,
        answer: impl Fn(&str, usize) -> (u16, String) + Send + Sync + 'static,
    ) -> Self {
        let own = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let mut ca_file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut ca_file, own.cert.pem().as_bytes()).unwrap();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(own.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![own.cert.der().clone()], key.into())
            .unwrap();
        let mut service = Self::serve(answer, headers, Some(Arc::new(config).into())).await;
        service.ca_file = Some(ca_file);
        service
    }

    async fn serve(
        answer: impl Fn(&str, usize) -> (u16, String) + Send + Sync + 'static,
        headers: Headers,
        tls: Option<TlsAcceptor>,
    ) -> Self {
        let answer: Arc<Answer> = Arc::new(Box::new(answer));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let url = if tls.is_some() {
            format!("https://localhost:{port}")
        } else {
            format!("http://127.0.0.1:{port}")
        };
        let seen = Seen::default();
        let all = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                let (all, answer) = (Arc::clone(&all), Arc::clone(&answer));
                let service =
                    service_fn(move |request| reply(request, Arc::clone(&all), Arc::clone(&answer), headers));
                let http = hyper::server::conn::http1::Builder::new();
                let tls = tls.clone();
                tokio::spawn(async move {
                    // A client that does not trust the certificate, or goes away, is the test's own.
                    match tls {
                        Some(tls) => {
                            if let Ok(connection) = tls.accept(connection).await {
                                let _ = http.serve_connection(TokioIo::new(connection), service).await;
                            }
                        }
                        None => {
                            let _ = http.serve_connection(TokioIo::new(connection), service).await;
                        }
                    }
                });
            }
        });
        Self { url, seen, ca_file: None, task }
    }

    fn config(&self) -> SdkConfig {
        SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("eu-west-1"))
            .http_client(transport::client(
                Network::new(&Environment::default(), self.ca_file.as_ref().map(|file| file.path())).unwrap(),
            ))
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT).build())
            .app_name(AppName::new("autossm").unwrap())
            .endpoint_url(&self.url)
            .time_source(aws_smithy_async::time::SystemTimeSource::new())
            .sleep_impl(aws_smithy_async::rt::sleep::TokioSleep::new())
            .build()
    }

    pub fn api(&self) -> Sdk {
        self.api_with(Credentials::new("AKIDEXAMPLE", "secret-key", None, None, "test"))
    }

    pub fn api_with(&self, base: impl ProvideCredentials + 'static) -> Sdk {
        self.api_of(identity(), base)
    }

    pub fn api_of(&self, identity: Identity, base: impl ProvideCredentials + 'static) -> Sdk {
        let config = self.config();
        let source = Source::with_base(identity, config.clone(), base);
        Sdk::new(&config, Some(&self.url), source, Arc::default()).now_or_never().unwrap().unwrap()
    }

    pub fn requests(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

async fn reply(
    request: http::Request<hyper::body::Incoming>,
    seen: Seen,
    answer: Arc<Answer>,
    headers: Headers,
) -> Result<http::Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    // The security token service has no such header, and a form for a body.
    let target =
        parts.headers.get("x-amz-target").map_or("AssumeRole", |target| target.to_str().unwrap()).to_owned();
    let number = {
        let mut seen = seen.lock().unwrap();
        seen.push((
            parts,
            serde_json::from_slice(&body).unwrap_or_else(|_| String::from_utf8_lossy(&body).into()),
        ));
        seen.len()
    };
    let (status, text) = answer(target.trim_start_matches("AmazonSSM."), number);
    let response = http::Response::builder().status(status);
    let response = headers.iter().fold(response, |response, (name, value)| response.header(*name, *value));
    Ok(response.body(Full::from(text)).unwrap())
}

pub fn identity() -> Identity {
    Identity {
        region: Some("eu-west-1".to_owned()),
        profile: None,
        role_arn: None,
        external_id: None,
        endpoint_url: Some("http://127.0.0.1:9".to_owned()),
        ca_file: None,
    }
}
