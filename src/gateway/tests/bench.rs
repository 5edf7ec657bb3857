//! A gateway between a plugin and a service that the test plays.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Mutex;

use aws_credential_types::Credentials;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client};
use tokio_tungstenite::{WebSocketStream, accept_hdr_async, client_async};

use super::*;
use crate::aws::api::{Node, Resumption, StartRequest};
use crate::gateway::link::Connection;
use crate::gateway::message::{self, Header};
use crate::network::Environment;

pub(super) const SESSION: &str = "session-0123456789abcdef0";
pub(super) const HOST: &str = "ssmmessages.us-east-1.amazonaws.com";
pub(super) const TOKEN: &str = "the-real-token";

pub(super) fn stream_url(cell: &str) -> String {
    format!("wss://{HOST}/v1/data-channel/{SESSION}?role=publish_subscribe&cell-number={cell}")
}

/// The API: resumes as told, and for ever once nothing more is told.
#[derive(Default)]
pub(super) struct TestApi {
    pub(super) resumptions: Mutex<VecDeque<Result<Resumption, Failure>>>,
    pub(super) resumed: Mutex<u32>,
}

impl Api for TestApi {
    fn maximum_session_duration(&self) -> BoxFuture<'_, crate::tunnel::rotation::Limit> {
        unreachable!("the gateway asks for no limit")
    }

    fn start_session<'a>(&'a self, _: &'a StartRequest) -> BoxFuture<'a, Result<StartedSession, Failure>> {
        unreachable!("the gateway starts no session")
    }

    fn resume_session<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, Result<Resumption, Failure>> {
        assert_eq!(session_id, SESSION);
        let mut resumed = self.resumed.lock().unwrap();
        *resumed += 1;
        let (token, stream_url) = (format!("token-{resumed}").into(), stream_url(&resumed.to_string()));
        let told = self.resumptions.lock().unwrap().pop_front();
        let answer = told.unwrap_or(Ok(Resumption::Resumed { token, stream_url }));
        async move { answer }.boxed()
    }

    fn terminate_session<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), Failure>> {
        unreachable!("the gateway terminates no session")
    }

    fn online_nodes<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
        _: Duration,
    ) -> BoxFuture<'a, Result<Vec<Node>, Failure>> {
        unreachable!("the gateway looks for no target")
    }

    fn last_nodes(&self, _: &str, _: &str) -> Vec<Node> {
        Vec::new()
    }

    fn credentials(&self) -> BoxFuture<'_, Result<Credentials, Failure>> {
        async { Ok(Credentials::new("AKIAREAL", "real-secret", Some("real-session".into()), None, "test")) }
            .boxed()
    }

    fn held_credentials(&self) -> Option<crate::aws::api::HeldCredentials> {
        None
    }

    fn region(&self) -> &str {
        "us-east-1"
    }

    fn endpoint(&self) -> &str {
        "https://ssm.us-east-1.amazonaws.com"
    }
}

type Socket<T> = WebSocketStream<T>;
pub(super) type ServiceSocket = Socket<Box<dyn Connection>>;
pub(super) type PluginSocket = Socket<client::TlsStream<TcpStream>>;

/// The service's end: a listener with TLS.
pub(super) struct Service {
    pub(super) listener: TcpListener,
    authority: Authority,
    tls: bool,
}

impl Service {
    pub(super) async fn tcp(&self) -> Box<dyn Connection> {
        let (stream, _) = self.listener.accept().await.unwrap();
        if !self.tls {
            return Box::new(stream);
        }
        let acceptor = TlsAcceptor::from(self.authority.server_config("localhost").unwrap());
        Box::new(acceptor.accept(stream).await.unwrap())
    }

    /// The next data channel, with its request's query and headers, and its first message.
    pub(super) async fn accept(&self) -> (ServiceSocket, String, HeaderMap, serde_json::Value) {
        let mut seen = None;
        #[expect(clippy::result_large_err, reason = "tungstenite's callback has this type")]
        let note = |request: &Request<()>, response| {
            seen = Some((request.uri().to_string(), request.headers().clone()));
            Ok(response)
        };
        let connection = self.tcp().await;
        let mut socket = accept_hdr_async(connection, note).await.unwrap();
        let Message::Text(text) = socket.next().await.unwrap().unwrap() else { panic!("no text") };
        let (uri, headers) = seen.unwrap();
        (socket, uri, headers, serde_json::from_str(&text).unwrap())
    }

    /// Answers the next upgrade with `status`.
    pub(super) async fn refuse(&self, status: StatusCode) {
        let service = service_fn(|_| async move {
            let mut response = Response::new(Full::<Bytes>::default());
            *response.status_mut() = status;
            Ok::<_, Infallible>(response)
        });
        // The gateway hangs up.
        let _ = http1::Builder::new().serve_connection(TokioIo::new(self.tcp().await), service).await;
    }
}

/// A gateway with all that is around it.
pub(super) struct Bench {
    pub(super) gateway: Gateway,
    pub(super) service: Service,
    pub(super) api: Arc<TestApi>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) events: mpsc::Receiver<Event>,
    dir: tempfile::TempDir,
}

impl Bench {
    pub(super) async fn new(mode: GatewayMode) -> Self {
        Self::with_endpoint(mode, true).await
    }

    pub(super) async fn with_endpoint(mode: GatewayMode, tls: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let service = Service { listener, authority: Authority::new().unwrap(), tls };
        let ca = dir.path().join("service");
        std::fs::create_dir(&ca).unwrap();
        service.authority.write_certificate(&ca).unwrap();
        let authority = Arc::new(Authority::new().unwrap());
        authority.write_certificate(dir.path()).unwrap();
        let (sender, events) = mpsc::channel(32);
        let (api, ledger) = (Arc::new(TestApi::default()), Arc::new(Ledger::new()));
        let port = service.listener.local_addr().unwrap().port();
        let spec = Spec {
            tunnel: "test".into(),
            session: StartedSession {
                session_id: SESSION.into(),
                token: TOKEN.into(),
                stream_url: stream_url("0"),
            },
            mode,
            stream_endpoint: Some(StreamEndpoint { tls, host: "localhost".into(), port }),
            kms_endpoint: None,
            endpoint_url: None,
            network: Network::new(&Environment::default(), Some(&ca.join("autossm-ca.pem"))).unwrap(),
            ca_file: Some(ca.join("autossm-ca.pem")),
            keepalive: None,
            api: api.clone(),
            ledger: ledger.clone(),
        };
        let gateway = Gateway::open(spec, authority, dir.path(), sender).unwrap();
        Self { gateway, service, api, ledger, events, dir }
    }

    pub(super) fn variable(&self, name: &str) -> &str {
        let environment = &self.gateway.access().environment;
        environment.iter().find(|(found, _)| *found == name).unwrap().1.expose_secret()
    }

    /// Asks the proxy for a tunnel; returns its answer's first line too.
    pub(super) async fn connect(&self, target: &str, credentials: Option<&str>) -> (TcpStream, String) {
        use base64::Engine as _;
        let proxy: http::Uri = self.variable("HTTPS_PROXY").parse().unwrap();
        let own = proxy.authority().unwrap().as_str().rsplit_once('@').unwrap().0.to_owned();
        let encoded = base64::engine::general_purpose::STANDARD.encode(credentials.unwrap_or(&own));
        let mut stream = TcpStream::connect(self.gateway.access().address).await.unwrap();
        let request = format!(
            "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nProxy-Authorization: Basic {encoded}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        (stream, head.lines().next().unwrap().to_owned())
    }

    /// TLS through the proxy, trusting what the plugin is told to trust.
    pub(super) async fn secure(&self, host: &str, port: u16) -> client::TlsStream<TcpStream> {
        let (stream, answer) = self.connect(&format!("{host}:{port}"), None).await;
        assert_eq!(answer, "HTTP/1.1 200 OK");
        let trusted = tls::trusting(&self.dir.path().join("autossm-ca.pem"));
        let name = ServerName::try_from(host.to_owned()).unwrap();
        TlsConnector::from(trusted).connect(name, stream).await.unwrap()
    }

    /// The plugin opens its data channel.
    pub(super) async fn plugin(&self) -> PluginSocket {
        let access = self.gateway.access();
        let (mut socket, _) =
            client_async(&access.session.stream_url, self.secure(HOST, 443).await).await.unwrap();
        let opening = serde_json::json!({
            "MessageSchemaVersion": "1.0", "RequestId": "r", "ClientId": "the-client",
            "TokenValue": access.session.token.expose_secret(), "ClientVersion": "1.2.3",
        });
        socket.send(Message::text(opening.to_string())).await.unwrap();
        socket
    }

    /// The next event; what the messages are and how long they took is of no interest here.
    pub(super) async fn event(&mut self) -> Event {
        loop {
            let event = self.events.recv().await.unwrap();
            if is_of_interest(&event) {
                return event;
            }
        }
    }

    /// One that has been told by now.
    pub(super) fn event_so_far(&mut self) -> Option<Event> {
        std::iter::from_fn(|| self.events.try_recv().ok()).find(is_of_interest)
    }

    /// Both ends, and the channel open.
    pub(super) async fn opened(&mut self) -> (PluginSocket, ServiceSocket) {
        let plugin = self.plugin().await;
        let (service, ..) = self.service.accept().await;
        assert_eq!(self.event().await, Event::ChannelOpened);
        (plugin, service)
    }
}

fn is_of_interest(event: &Event) -> bool {
    !matches!(event, Event::RoundTrip(_) | Event::LostTrack | Event::RetryIn(_))
}

fn stream_data(kind: &[u8], number: i64, payload: &[u8]) -> Message {
    let header = Header { kind, created: 1, number, flags: 0, payload_type: message::DATA };
    Message::Binary(header.with_payload(payload))
}

pub(super) fn input(number: i64, payload: &[u8]) -> Message {
    stream_data(b"input_stream_data", number, payload)
}

pub(super) fn output(number: i64, payload: &[u8]) -> Message {
    stream_data(b"output_stream_data", number, payload)
}

/// The end of the handshake, which the plugin acknowledges.
pub(super) async fn establish(plugin: &mut PluginSocket, service: &mut ServiceSocket) {
    let header = Header {
        kind: b"output_stream_data",
        created: 1,
        number: 0,
        flags: 0,
        payload_type: message::HANDSHAKE_COMPLETE,
    };
    service.send(Message::Binary(header.with_payload(b"{}"))).await.unwrap();
    let bytes = binary(plugin).await;
    plugin.send(Message::Binary(View::new(&bytes).unwrap().acknowledgement())).await.unwrap();
    binary(service).await;
}

/// The next binary message.
pub(super) async fn binary<T: Connection>(socket: &mut Socket<T>) -> Bytes {
    loop {
        if let Message::Binary(bytes) = socket.next().await.unwrap().unwrap() {
            return bytes;
        }
    }
}
