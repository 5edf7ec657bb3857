//! An instance's metadata service, as far as credentials are asked of it: IMDSv2, with a token for each request.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

const TOKEN: &str = "the-metadata-service-knows-you";
const TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";
const ROLES: &str = "/latest/meta-data/iam/security-credentials/";

/// A running metadata service. It ends when it is dropped.
pub struct Metadata {
    address: SocketAddr,
    instance: Arc<Mutex<Instance>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Instance {
    /// How long the keys of its role live, if one is attached.
    role: Option<Duration>,
    /// When the keys of the moment expire, in seconds since 1970.
    until: u64,
    issued: u64,
}

impl Metadata {
    /// Starts one of an instance that no role is attached to.
    ///
    /// # Errors
    /// No port can be bound.
    pub async fn start() -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let instance = Arc::new(Mutex::new(Instance::default()));
        let asked = instance.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let asked = asked.clone();
                tokio::spawn(async move {
                    let service = service_fn(|request| {
                        let answer = answer(&asked, &request);
                        async { Ok::<_, Infallible>(answer) }
                    });
                    let http = hyper::server::conn::http1::Builder::new();
                    // A client that goes away is nothing to report.
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Ok(Self { address, instance, task })
    }

    /// Its address, for `AWS_EC2_METADATA_SERVICE_ENDPOINT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Attaches a role whose keys live so long; new ones are issued when half of that is over, and the service refuses the
    /// old ones afterwards.
    pub fn attach_role(&self, lives: Duration) {
        self.instance.lock().unwrap_or_else(PoisonError::into_inner).role = Some(lives);
    }

    /// How many keys it has issued.
    pub fn issued(&self) -> u64 {
        self.instance.lock().unwrap_or_else(PoisonError::into_inner).issued
    }
}

impl Drop for Metadata {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn answer(instance: &Mutex<Instance>, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let (path, headers) = (request.uri().path(), request.headers());
    if request.method() == Method::PUT && path == "/latest/api/token" && headers.contains_key(TTL) {
        let mut answer = Response::new(Full::from(TOKEN));
        answer.headers_mut().insert(TTL, http::HeaderValue::from_static("21600"));
        return answer;
    }
    let mut instance = instance.lock().unwrap_or_else(PoisonError::into_inner);
    let (status, body) = match (path.strip_prefix(ROLES), instance.role) {
        _ if headers.get("x-aws-ec2-metadata-token").is_none_or(|token| token != TOKEN) => {
            (StatusCode::UNAUTHORIZED, String::new())
        }
        (Some(""), Some(_)) => (StatusCode::OK, "tunnels".to_owned()),
        (Some("tunnels"), Some(lives)) => (StatusCode::OK, instance.keys(lives)),
        _ => (StatusCode::NOT_FOUND, String::new()),
    };
    let mut answer = Response::new(Full::from(body));
    *answer.status_mut() = status;
    answer
}

impl Instance {
    fn keys(&mut self, lives: Duration) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if self.until < now + lives.as_secs() / 2 {
            self.until = now + lives.as_secs();
            self.issued += 1;
        }
        let time = |seconds| {
            let at = UNIX_EPOCH + Duration::from_secs(seconds);
            humantime::format_rfc3339_seconds(at).to_string()
        };
        let keys = json!({
            "Code": "Success",
            "LastUpdated": time(now),
            "Type": "AWS-HMAC",
            "AccessKeyId": format!("ASIAUNTIL{}", self.until),
            "SecretAccessKey": "of-no-account",
            "Token": "of-no-account",
            "Expiration": time(self.until),
        });
        keys.to_string()
    }
}
