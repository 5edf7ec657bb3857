//! The gateway as a whole, between a plugin and a service played by the test, over real sockets on loopback.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Mutex;

use aws_credential_types::Credentials;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, SinkExt, StreamExt};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::{WebSocketStream, accept_hdr_async, client_async};

use super::link::Connection;
use super::message::{self, Header, View};
use super::*;
use crate::aws::api::{Node, Resumption, StartRequest};
use crate::network::Environment;
use crate::tunnel::failure::Class;

const SESSION: &str = "session-0123456789abcdef0";
const HOST: &str = "ssmmessages.us-east-1.amazonaws.com";
const TOKEN: &str = "the-real-token";

fn stream_url(cell: &str) -> String {
    format!("wss://{HOST}/v1/data-channel/{SESSION}?role=publish_subscribe&cell-number={cell}")
}

/// The API: resumes as told, and for ever once nothing more is told.
#[derive(Default)]
struct TestApi {
    resumptions: Mutex<VecDeque<Result<Resumption, Failure>>>,
    resumed: Mutex<u32>,
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
type ServiceSocket = Socket<Box<dyn Connection>>;
type PluginSocket = Socket<client::TlsStream<TcpStream>>;

/// The service's end: a listener with TLS.
struct Service {
    listener: TcpListener,
    authority: Authority,
    tls: bool,
}

impl Service {
    async fn tcp(&self) -> Box<dyn Connection> {
        let (stream, _) = self.listener.accept().await.unwrap();
        if !self.tls {
            return Box::new(stream);
        }
        let acceptor = TlsAcceptor::from(self.authority.server_config("localhost").unwrap());
        Box::new(acceptor.accept(stream).await.unwrap())
    }

    /// The next data channel, with its request's query and headers, and its first message.
    async fn accept(&self) -> (ServiceSocket, String, HeaderMap, serde_json::Value) {
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
    async fn refuse(&self, status: StatusCode) {
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
struct Bench {
    gateway: Gateway,
    service: Service,
    api: Arc<TestApi>,
    ledger: Arc<Ledger>,
    events: mpsc::Receiver<Event>,
    dir: tempfile::TempDir,
}

impl Bench {
    async fn new(mode: GatewayMode) -> Self {
        Self::with_endpoint(mode, true).await
    }

    async fn with_endpoint(mode: GatewayMode, tls: bool) -> Self {
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

    fn variable(&self, name: &str) -> &str {
        let environment = &self.gateway.access().environment;
        environment.iter().find(|(found, _)| *found == name).unwrap().1.expose_secret()
    }

    /// Asks the proxy for a tunnel; returns its answer's first line too.
    async fn connect(&self, target: &str, credentials: Option<&str>) -> (TcpStream, String) {
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
    async fn secure(&self, host: &str, port: u16) -> client::TlsStream<TcpStream> {
        let (stream, answer) = self.connect(&format!("{host}:{port}"), None).await;
        assert_eq!(answer, "HTTP/1.1 200 OK");
        let trusted = tls::trusting(&self.dir.path().join("autossm-ca.pem"));
        let name = ServerName::try_from(host.to_owned()).unwrap();
        TlsConnector::from(trusted).connect(name, stream).await.unwrap()
    }

    /// The plugin opens its data channel.
    async fn plugin(&self) -> PluginSocket {
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
    async fn event(&mut self) -> Event {
        loop {
            match self.events.recv().await.unwrap() {
                Event::RoundTrip(_) | Event::LostTrack | Event::RetryIn(_) => (),
                event => return event,
            }
        }
    }

    /// Both ends, and the channel open.
    async fn opened(&mut self) -> (PluginSocket, ServiceSocket) {
        let plugin = self.plugin().await;
        let (service, ..) = self.service.accept().await;
        assert_eq!(self.event().await, Event::ChannelOpened);
        (plugin, service)
    }
}

fn stream_data(kind: &[u8], number: i64, payload: &[u8]) -> Message {
    let header = Header { kind, created: 1, number, flags: 0, payload_type: message::DATA };
    Message::Binary(header.with_payload(payload))
}

fn input(number: i64, payload: &[u8]) -> Message {
    stream_data(b"input_stream_data", number, payload)
}

fn output(number: i64, payload: &[u8]) -> Message {
    stream_data(b"output_stream_data", number, payload)
}

/// The end of the handshake, which the plugin acknowledges.
async fn establish(plugin: &mut PluginSocket, service: &mut ServiceSocket) {
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
async fn binary<T: Connection>(socket: &mut Socket<T>) -> Bytes {
    loop {
        if let Message::Binary(bytes) = socket.next().await.unwrap().unwrap() {
            return bytes;
        }
    }
}

#[tokio::test]
async fn the_first_opening_is_the_plugins_with_the_real_token() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let _plugin = bench.plugin().await;
    let (_service, uri, headers, opening) = bench.service.accept().await;
    assert_eq!(bench.event().await, Event::ChannelOpened);
    assert!(uri.ends_with("cell-number=0"));
    assert_eq!(headers["host"], HOST);
    let authorization = headers["authorization"].to_str().unwrap();
    assert!(
        authorization.contains("Credential=AKIAREAL/") && authorization.contains("/us-east-1/ssmmessages/")
    );
    assert_eq!((&opening["TokenValue"], &opening["ClientId"]), (&TOKEN.into(), &"the-client".into()));
    let access = bench.gateway.access();
    assert_ne!(access.session.token.expose_secret(), TOKEN);
    assert_eq!(access.api_endpoint, "https://ssm.us-east-1.amazonaws.com");
}

#[tokio::test]
async fn a_close_is_survived_and_what_was_lost_is_sent_again() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let (mut plugin, mut service) = bench.opened().await;
    plugin.send(input(0, b"before")).await.unwrap();
    assert_eq!(View::new(&binary(&mut service).await).unwrap().payload(), b"before");
    service.send(output(0, b"answer")).await.unwrap();
    assert_eq!(View::new(&binary(&mut plugin).await).unwrap().payload(), b"answer");

    let bye = CloseFrame { code: CloseCode::Normal, reason: "Bye".into() };
    service.close(Some(bye)).await.unwrap();
    assert_eq!(bench.event().await, Event::ChannelClosed { code: Some(1000), reason: "Bye".into() });
    plugin.send(input(1, b"meanwhile")).await.unwrap();

    let (mut service, uri, _, opening) = bench.service.accept().await;
    assert!(uri.ends_with("cell-number=1"), "the fresh stream URL");
    assert_eq!(opening["TokenValue"], "token-1");
    assert!(matches!(bench.event().await, Event::ChannelResumed { attempts: 1, .. }));
    for (number, payload) in [(0, &b"before"[..]), (1, b"meanwhile")] {
        let bytes = binary(&mut service).await;
        let view = View::new(&bytes).unwrap();
        assert_eq!((view.number(), view.payload()), (number, payload));
        service.send(Message::Binary(view.acknowledgement())).await.unwrap();
        let acknowledgement = binary(&mut plugin).await;
        assert_eq!(View::new(&acknowledgement).unwrap().acknowledged(), Some(number));
    }
}

#[tokio::test]
async fn an_endpoint_on_loopback_may_do_without_tls() {
    let mut bench = Bench::with_endpoint(GatewayMode::Hold, false).await;
    let (mut plugin, mut service) = bench.opened().await;
    plugin.send(input(0, b"hello")).await.unwrap();
    assert_eq!(View::new(&binary(&mut service).await).unwrap().payload(), b"hello");
}

/// A close is answered, as the protocol has it.
#[tokio::test]
async fn the_service_gets_an_answer_to_its_close() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let (_plugin, mut service) = bench.opened().await;
    service.close(None).await.unwrap();
    assert!(matches!(service.next().await, Some(Ok(Message::Close(_)))));
}

#[tokio::test]
async fn failed_attempts_are_told_and_a_session_that_is_gone_is_an_end() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let denied = Failure::new(Class::Access, "ExpiredTokenException");
    bench.api.resumptions.lock().unwrap().extend([Err(denied.clone()), Ok(Resumption::Gone)]);
    let (_plugin, service) = bench.opened().await;
    drop(service);
    assert_eq!(
        bench.event().await,
        Event::ChannelClosed { code: None, reason: "the connection was cut".into() }
    );
    assert_eq!(bench.event().await, Event::ResumeFailed(denied));
    assert!(matches!(bench.event().await, Event::SessionEnded { .. }));
}

#[tokio::test]
async fn the_next_attempt_is_told_after_each_failure() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let denied = Failure::new(Class::Access, "ExpiredTokenException");
    bench.api.resumptions.lock().unwrap().extend([Err(denied.clone()), Err(denied), Ok(Resumption::Gone)]);
    let (plugin, service) = bench.opened().await;
    // Closed as soon as it was open: not even the first attempt is made at once.
    drop(service);
    let mut told = Vec::new();
    loop {
        match bench.events.recv().await.unwrap() {
            Event::RetryIn(delay) => told.push(delay.as_millis()),
            Event::SessionEnded { .. } => break,
            _ => (),
        }
    }
    let [first, second, third] = told[..] else { panic!("{told:?}") };
    assert!(
        (100..=200).contains(&first) && (200..=400).contains(&second) && (400..=800).contains(&third),
        "{told:?}"
    );
    drop(plugin);
}

/// A connection that brings nothing and is closed at once is followed by a pause.
#[tokio::test]
async fn a_service_that_closes_at_once_is_not_asked_without_pause() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let (_plugin, service) = bench.opened().await;
    let closed = std::time::Instant::now();
    drop(service);
    let (service, ..) = bench.service.accept().await;
    assert!(closed.elapsed() >= Duration::from_millis(100), "half of 200 ms");
    drop(service);
    let (_service, ..) = bench.service.accept().await;
    assert!(closed.elapsed() >= Duration::from_millis(300), "and half of 400 ms");
}

/// Something on the way kills each data channel after a second.
#[tokio::test]
async fn data_channels_that_are_killed_young_are_soon_opened_with_pauses() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let (mut plugin, mut service) = bench.opened().await;
    let mut paused = Vec::new();
    for number in 0..7 {
        service.send(output(number, b"something")).await.unwrap();
        binary(&mut plugin).await;
        tokio::time::sleep(Duration::from_millis(1050)).await;
        let closed = std::time::Instant::now();
        drop(service);
        (service, ..) = bench.service.accept().await;
        paused.push(closed.elapsed() >= Duration::from_millis(100));
        assert!(matches!(bench.event().await, Event::ChannelClosed { .. }));
        assert!(matches!(bench.event().await, Event::ChannelResumed { .. }));
    }
    // Half of 200 ms, and half of 400.
    assert_eq!(paused[5..], [true, true]);
    assert!(paused[..5].contains(&false), "the first ones follow at once");
}

#[tokio::test]
async fn a_refused_first_opening_is_resumed() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let _plugin = bench.plugin().await;
    bench.service.refuse(StatusCode::FORBIDDEN).await;
    let Event::ResumeFailed(failure) = bench.event().await else { panic!("no failure") };
    assert_eq!(failure.class, Class::Access);
    let (_service, _, _, opening) = bench.service.accept().await;
    assert_eq!(opening["TokenValue"], "token-1");
    assert_eq!(bench.event().await, Event::ChannelOpened);
}

#[tokio::test]
async fn a_plugin_that_reconnects_goes_on_with_the_same_service() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let (mut plugin, mut service) = bench.opened().await;
    plugin.send(input(0, b"one")).await.unwrap();
    binary(&mut service).await;
    drop(plugin);
    let mut plugin = bench.plugin().await;
    plugin.send(input(1, b"two")).await.unwrap();
    loop {
        // The first is sent again until it is acknowledged; the second opening message never comes.
        let message = service.next().await.unwrap().unwrap();
        let Message::Binary(bytes) = message else {
            panic!("the service saw the plugin reconnect: {message}")
        };
        if View::new(&bytes).unwrap().payload() == b"two" {
            break;
        }
    }
    service.send(output(0, b"answer")).await.unwrap();
    assert_eq!(View::new(&binary(&mut plugin).await).unwrap().payload(), b"answer");
    assert_eq!(*bench.api.resumed.lock().unwrap(), 0);
}

#[tokio::test]
async fn a_changed_line_feed_arrives_as_it_was_sent() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let (mut plugin, mut service) = bench.opened().await;
    let stream = bench.ledger.open();
    bench.ledger.write(stream, b"x\n");
    let frames = [mux::tests::frame(0, stream, b""), mux::tests::frame(2, stream, b"x\n")].concat();
    plugin.send(input(0, &frames[..frames.len() - 1])).await.unwrap();
    plugin.send(input(1, b"\r")).await.unwrap();
    let mut received = Vec::new();
    for number in 0..2 {
        let bytes = binary(&mut service).await;
        let view = View::new(&bytes).unwrap();
        if view.number() == number {
            received.extend_from_slice(view.payload());
        }
    }
    assert_eq!(received, frames);
}

/// The plugin does not read: its direction waits, the other one goes on.
#[tokio::test]
async fn a_plugin_that_does_not_read_blocks_only_its_direction() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let (mut plugin, service) = bench.opened().await;
    let (mut to_gateway, mut from_gateway) = service.split();
    let flood = tokio::spawn(async move {
        for number in 0.. {
            // Ends with the gateway.
            if to_gateway.send(output(number, &[0; 60_000])).await.is_err() {
                return number;
            }
        }
        unreachable!()
    });
    for number in 0..200 {
        plugin.feed(input(number, &[1; 1024])).await.unwrap();
        plugin.flush().await.unwrap();
        loop {
            let Message::Binary(bytes) = from_gateway.next().await.unwrap().unwrap() else { continue };
            if View::new(&bytes).unwrap().number() == number {
                break;
            }
        }
    }
    assert!(!flood.is_finished());
    bench.gateway.close().await;
    drop((plugin, from_gateway));
    let sent = flood.await.unwrap();
    assert!(sent * 60_000 < 64 << 20, "buffers are bounded: {sent} messages went in");
}

#[tokio::test]
async fn the_services_end_of_the_session_is_passed_on_and_told() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let (mut plugin, mut service) = bench.opened().await;
    let closed = Header { kind: b"channel_closed", created: 1, number: 0, flags: 0, payload_type: 0 }
        .with_payload(br#"{"Output":"Your session timed out due to inactivity"}"#);
    service.send(Message::Binary(closed.clone())).await.unwrap();
    assert_eq!(binary(&mut plugin).await, closed);
    let reason = "Your session timed out due to inactivity".to_owned();
    assert_eq!(bench.event().await, Event::SessionEnded { reason, declared: true });
    drop(service);
    drop(plugin);
    bench.gateway.close().await;
    assert_eq!(bench.events.recv().await, None, "an ended session is not resumed");
    assert_eq!(*bench.api.resumed.lock().unwrap(), 0);
}

#[tokio::test]
async fn nobody_gets_in_without_the_secret_and_nowhere_but_to_aws() {
    let bench = Bench::new(GatewayMode::Hold).await;
    let port = bench.service.listener.local_addr().unwrap().port();
    for (target, credentials, expected) in [
        (format!("{HOST}:443"), Some("autossm:guess"), "HTTP/1.1 407 Proxy Authentication Required"),
        (format!("{HOST}:443"), Some(""), "HTTP/1.1 407 Proxy Authentication Required"),
        ("evil.example:443".into(), None, "HTTP/1.1 403 Forbidden"),
        (format!("{HOST}:22"), None, "HTTP/1.1 403 Forbidden"),
        (format!("{HOST}:443"), None, "HTTP/1.1 200 OK"),
        (format!("localhost:{port}"), None, "HTTP/1.1 200 OK"),
    ] {
        assert_eq!(bench.connect(&target, credentials).await.1, expected, "{target}");
    }
}

/// Whoever speaks without end is answered before it has ended, and whoever speaks slowly not at all.
#[tokio::test]
async fn a_request_has_to_be_short_and_soon() {
    let bench = Bench::new(GatewayMode::Hold).await;
    let address = bench.gateway.access().address;
    let mut endless = TcpStream::connect(address).await.unwrap();
    endless.write_all(b"CONNECT a.amazonaws.com:443 HTTP/1.1\r\n").await.unwrap();
    let mut written = 0;
    // Both may be seen: the answer, or that nobody reads any more.
    while written < 10_000 && endless.write_all(b"x: 0123456789\r\n").await.is_ok() {
        written += 1;
    }
    assert!(written <= 10_000);
    let mut answer = Vec::new();
    let _ = endless.read_to_end(&mut answer).await;
    assert!(
        answer.is_empty() || answer.starts_with(b"HTTP/1.1 431 "),
        "{}",
        String::from_utf8_lossy(&answer)
    );

    let mut slow = TcpStream::connect(address).await.unwrap();
    let mut silent = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"CONNECT a.amazonaws.com:443 HTT").await.unwrap();
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    for stream in [&mut slow, &mut silent] {
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
    }
    assert!((10..12).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

/// A process of this host that knows no secret opens as many connections as there may be, and more.
#[tokio::test]
async fn strangers_do_not_keep_the_plugin_out() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let (mut plugin, mut service) = bench.opened().await;
    let address = bench.gateway.access().address;
    let mut strangers = Vec::new();
    for _ in 0..200 {
        strangers.push(TcpStream::connect(address).await.unwrap());
    }
    assert_eq!(bench.connect(&format!("{HOST}:443"), None).await.1, "HTTP/1.1 200 OK");
    // The first of them were closed; what had been let in was not.
    assert_eq!(strangers[0].read(&mut [0; 1]).await.unwrap_or(0), 0);
    plugin.send(input(0, b"hello")).await.unwrap();
    assert_eq!(View::new(&binary(&mut service).await).unwrap().payload(), b"hello");
}

#[tokio::test]
async fn the_plugins_calls_about_its_session_are_answered_here() {
    let bench = Bench::new(GatewayMode::Hold).await;
    let host = "ssm.us-east-1.amazonaws.com";
    let io = TokioIo::new(bench.secure(host, 443).await);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut call = async |operation: &str| -> serde_json::Value {
        let request = Request::post("/")
            .header("host", host)
            .header("x-amz-target", format!("AmazonSSM.{operation}"))
            .body(Full::new(Bytes::from_static(b"{}")))
            .unwrap();
        let body = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap();
        serde_json::from_slice(&body.to_bytes()).unwrap()
    };
    let resumed = call("ResumeSession").await;
    assert_eq!(resumed["StreamUrl"], stream_url("0"));
    assert_eq!(resumed["TokenValue"], bench.gateway.access().session.token.expose_secret());
    assert_eq!(call("TerminateSession").await["SessionId"], SESSION);
    assert_eq!(*bench.api.resumed.lock().unwrap(), 0);
    drop(sender);
    connection.await.unwrap().unwrap();
}

#[tokio::test]
async fn another_call_goes_on_with_real_credentials() {
    let bench = Bench::new(GatewayMode::Hold).await;
    let port = bench.service.listener.local_addr().unwrap().port();
    let io = TokioIo::new(bench.secure("localhost", port).await);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::post("/")
        .header("host", "localhost")
        .header("x-amz-target", "TrentService.GenerateDataKey")
        .header(
            "authorization",
            "AWS4-HMAC-SHA256 Credential=STANDIN/20260101/us-east-1/kms/aws4_request, SignedHeaders=host, Signature=0",
        )
        .body(Full::new(Bytes::from_static(b"{\"KeyId\":\"k\"}")))
        .unwrap();
    let service = service_fn(|request: Request<hyper::body::Incoming>| async move {
        let authorization = request.headers()["authorization"].to_str().unwrap().to_owned();
        assert_eq!(request.uri(), "/");
        assert!(
            authorization.contains("AKIAREAL/") && authorization.contains("/us-east-1/kms/"),
            "{authorization}"
        );
        assert_eq!(request.headers()["x-amz-security-token"], "real-session");
        let body = request.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "{\"KeyId\":\"k\"}");
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"the key"))))
    });
    let served = async {
        http1::Builder::new()
            .serve_connection(TokioIo::new(bench.service.tcp().await), service)
            .await
            .unwrap();
    };
    let (response, ()) = tokio::join!(sender.send_request(request), served);
    let response = response.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "the key");
    drop(sender);
    connection.await.unwrap().unwrap();
}

/// Neither end answers a ping; time is turned by hand.
#[tokio::test]
async fn silent_ends_are_noticed() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let (mut plugin, mut service) = bench.opened().await;
    establish(&mut plugin, &mut service).await;
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    assert!(matches!(bench.event().await, Event::PluginHung { .. }));
    assert!((15..18).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    let Event::ChannelClosed { code: None, reason } = bench.event().await else { panic!("not closed") };
    assert_eq!(reason, "no answer to a ping for 10 s");
    assert!((25..28).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

/// The plugin is stuck with a message that a client does not take: it owes an acknowledgement.
#[tokio::test]
async fn a_plugin_whose_client_does_not_read_is_not_hung() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let (mut plugin, mut service) = bench.opened().await;
    establish(&mut plugin, &mut service).await;
    service.send(output(1, b"for the client")).await.unwrap();
    binary(&mut plugin).await;
    tokio::time::pause();
    assert!(
        matches!(bench.event().await, Event::ChannelClosed { .. }),
        "the silent service is noticed after 25 s"
    );
}

/// The plugin answers every ping, but lets a client's bytes lie.
#[tokio::test]
async fn a_plugin_that_lets_bytes_lie_is_noticed() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let (plugin, service) = bench.opened().await;
    let answering = tokio::spawn(async {
        let (mut plugin, mut service) = (plugin, service);
        loop {
            tokio::select! {
                _ = plugin.next() => (),
                _ = service.next() => (),
            }
        }
    });
    bench.ledger.write(bench.ledger.open(), b"hello");
    tokio::time::pause();
    let Event::PluginHung { reason } = bench.event().await else { panic!("not hung") };
    assert_eq!(reason, "it has held 5 bytes of clients' data for 15 s");
    answering.abort();
}

#[tokio::test]
async fn observe_passes_tls_on_and_watches_the_data_channel() {
    let mut bench = Bench::new(GatewayMode::Observe).await;
    let access = bench.gateway.access();
    assert_eq!(access.session.token.expose_secret(), TOKEN);
    let trusted = bench.variable("SSL_CERT_DIR").split(':').next().unwrap().to_owned();
    let (stream, answer) = bench.connect(&format!("{HOST}:443"), None).await;
    assert_eq!(answer, "HTTP/1.1 200 OK");

    let config = tls::trusting(&Path::new(&trusted).join("ca.pem"));
    let connector = TlsConnector::from(config);
    // The service's certificate in this test is for `localhost`.
    let (plugin, service) = tokio::join!(
        connector.connect(ServerName::try_from("localhost").unwrap(), stream),
        bench.service.tcp()
    );
    let (mut plugin, mut service) = (plugin.unwrap(), service);
    let said = [b'x'; 400];
    let mut heard = [0; 400];
    for opened in [false, true] {
        plugin.write_all(&said).await.unwrap();
        service.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, said);
        if opened {
            assert_eq!(bench.event().await, Event::ChannelOpened);
        }
        service.write_all(b"answer").await.unwrap();
        plugin.read_exact(&mut heard[..6]).await.unwrap();
    }
    drop(service);
    // The plugin keeps its own side open.
    assert!(matches!(bench.event().await, Event::ChannelClosed { code: None, .. }));
    drop(plugin);
}

/// An upgrade that is refused was no opening, and its end is told all the same: better twice than never.
#[tokio::test]
async fn observe_takes_no_connection_for_a_data_channel_before_the_upgrade() {
    let mut bench = Bench::new(GatewayMode::Observe).await;
    let trusted = bench.variable("SSL_CERT_DIR").split(':').next().unwrap().to_owned();
    let (stream, _) = bench.connect(&format!("{HOST}:443"), None).await;
    let config = tls::trusting(&Path::new(&trusted).join("ca.pem"));
    let (plugin, service) = tokio::join!(
        TlsConnector::from(config).connect(ServerName::try_from("localhost").unwrap(), stream),
        bench.service.tcp()
    );
    let (mut plugin, mut service) = (plugin.unwrap(), service);
    plugin.write_all(&[b'x'; 400]).await.unwrap();
    service.read_exact(&mut [0; 400]).await.unwrap();
    service.write_all(b"HTTP/1.1 403 Forbidden\r\n\r\n").await.unwrap();
    service.shutdown().await.unwrap();
    assert!(matches!(bench.event().await, Event::ChannelClosed { code: None, .. }));
}

#[tokio::test]
async fn observe_hands_out_credentials_to_the_plugin_only() {
    let bench = Bench::new(GatewayMode::Observe).await;
    let token = bench.variable("AWS_CONTAINER_AUTHORIZATION_TOKEN");
    for (presented, expected) in [(token, 200), ("guess", 401), ("", 401)] {
        let stream = TcpStream::connect(bench.gateway.access().address).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(connection);
        let request =
            Request::get("/credentials").header("authorization", presented).body(Full::<Bytes>::default());
        let response = sender.send_request(request.unwrap()).await.unwrap();
        assert_eq!(response.status(), expected);
        if expected == 200 {
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!((&body["AccessKeyId"], &body["Token"]), (&"AKIAREAL".into(), &"real-session".into()));
        }
        drop(sender);
        connection.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn dropping_the_gateway_ends_everything() {
    let mut bench = Bench::new(GatewayMode::Hold).await;
    let (mut plugin, mut service) = bench.opened().await;
    let address = bench.gateway.access().address;
    drop(bench.gateway);
    assert!(!matches!(plugin.next().await, Some(Ok(_))));
    assert!(!matches!(service.next().await, Some(Ok(_))));
    assert_eq!(bench.events.recv().await, None);
    TcpStream::connect(address).await.unwrap_err();
}
