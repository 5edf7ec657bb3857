//! Probes of destinations that are right, wrong, refuse or are silent; and who is to blame.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use autossm_lab::Lab;
use autossm_lab::fault::Fault;
use autossm_lab::options::Options;
use rcgen::{CertificateParams, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::daemon::{Daemon, own_address, tunnel, until};

const FAST: &str = "interval = \"1s\"\ntimeout = \"1s\"\nrise = 1\nfall = 2\n";
const KINDS: [(&str, &str); 8] = [
    ("tcp", ""),
    ("banner", "expect = \"220\"\n"),
    ("tls", ""),
    ("http", "path = \"/health\"\n"),
    ("https", "status = 204\n"),
    ("postgres", ""),
    ("redis", ""),
    ("custom", "send = [0x00, 0xff]\nexpect = [0xff, 0x0a]\n"),
];

fn probe(kind: &str, keys: &str) -> String {
    format!("[tunnel.probe]\nkind = \"{kind}\"\n{keys}{FAST}")
}

/// A server that reads so many bytes and then says this, to everybody.
async fn says(reads: usize, words: &'static [u8], tls: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = acceptor();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                match tls {
                    false => converse(tcp, reads, words).await,
                    true => match acceptor.accept(tcp).await {
                        Ok(stream) => converse(stream, reads, words).await,
                        Err(_) => Ok(()),
                    },
                }
            });
        }
    });
    address
}

async fn converse(
    mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin,
    reads: usize,
    words: &[u8],
) -> std::io::Result<()> {
    stream.read_exact(&mut vec![0; reads]).await?;
    stream.write_all(words).await?;
    stream.flush().await?;
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.map(drop)
}

fn acceptor() -> TlsAcceptor {
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(["other.test".to_owned()]).unwrap().self_signed(&key).unwrap().der().clone();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(config.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap()).into()
}

/// A port that nobody else can have and nobody listens on.
fn refusing() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

/// A port whose kernel answers no more connections, like a host that is off.
async fn swallowing() -> (Socket, Vec<TcpStream>, SocketAddr) {
    let (socket, address) = refusing();
    socket.listen(1).unwrap();
    let mut queue = Vec::new();
    while let Ok(Ok(client)) =
        tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await
    {
        queue.push(client);
    }
    (socket, queue, address)
}

/// The same with `gateway = "observe"`, where the plugin's own TLS goes as far as the lab.
fn observing(lab: &Lab, destinations: &BTreeMap<&str, SocketAddr>) -> Daemon {
    let keys = format!("gateway = \"observe\"\nca_file = \"{}\"\n", lab.ca_file().display());
    let config = config(lab, destinations, &keys);
    Daemon::start(own_address(), &config.replace(&lab.stream_endpoint_ws(), &lab.stream_endpoint_wss()))
}

/// One daemon with a tunnel for each of these.
fn daemon(lab: &Lab, destinations: &BTreeMap<&str, SocketAddr>, keys: &str) -> Daemon {
    Daemon::start(own_address(), &config(lab, destinations, keys))
}

fn config(lab: &Lab, destinations: &BTreeMap<&str, SocketAddr>, keys: &str) -> String {
    let mut config = String::new();
    for (kind, of_kind) in KINDS {
        if let Some(destination) = destinations.get(kind) {
            let keys = format!("{keys}{}", probe(kind, of_kind));
            config += &tunnel(lab, kind, own_address(), *destination, &keys);
        }
    }
    config
}

/// Waits until every tunnel counts as degraded, and says why each does.
async fn all_degraded(daemon: &Daemon, kinds: &BTreeMap<&str, SocketAddr>) -> BTreeMap<String, String> {
    let lines = daemon.event_times("degraded", kinds.len()).await;
    let reasons: BTreeMap<_, _> =
        lines.iter().map(|line| (line.field("tunnel").to_owned(), line.field("reason").to_owned())).collect();
    assert_eq!(reasons.len(), lines.len(), "said once for each tunnel: {reasons:#?}");
    println!("{reasons:#?}");
    assert!(lines.iter().all(|line| line.fields["level"] == "ERROR"));
    assert!(daemon.events("lost").is_empty(), "the tunnels stay up\n{}", daemon.tail());
    reasons
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn right_destinations_are_fine() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let there = lab.addresses().destinations;
    let destinations = BTreeMap::from([
        // It neither reads nor writes.
        ("tcp", there.deaf),
        ("banner", there.banner),
        ("tls", says(0, b"", true).await),
        ("http", says(20, b"HTTP/1.1 404 Not Found\r\n\r\n", false).await),
        ("https", says(20, b"HTTP/1.1 204 No Content\r\n\r\n", true).await),
        ("postgres", says(8, b"S", false).await),
        ("redis", says(6, b"-NOAUTH Authentication required.\r\n", false).await),
        ("custom", says(2, b"x\xff\n", false).await),
    ]);
    let daemon = daemon(&lab, &destinations, "");
    for (kind, _) in KINDS {
        daemon
            .logged(&format!("three good probes of the kind {kind}"), |log| {
                let good = |line: &&Arc<crate::daemon::Line>| {
                    line.field("event") == "probed"
                        && line.field("tunnel") == kind
                        && line.field("found") == "Good"
                };
                log.iter().filter(good).count() >= 3
            })
            .await;
    }
    let bad: Vec<_> =
        daemon.events("probed").into_iter().filter(|line| line.field("found") != "Good").collect();
    assert!(bad.is_empty(), "{bad:#?}");
    assert!(daemon.events("degraded").is_empty());
    let warned: Vec<_> =
        daemon.events("probe_without_login").iter().map(|line| line.field("tunnel").to_owned()).collect();
    assert_eq!(warned.len(), 2, "{warned:?}");
    assert!(warned.contains(&"tcp".to_owned()) && warned.contains(&"banner".to_owned()));
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_answers_are_the_destinations_fault() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let wrong = says(0, b"-WRONG\r\n", false).await;
    let mut destinations: BTreeMap<_, _> = KINDS.iter().map(|(kind, _)| (*kind, wrong)).collect();
    // There is no wrong one for it.
    destinations.remove("tcp");
    destinations.insert("http", says(0, b"HTTP/1.1 503 Unavailable\r\n\r\n", false).await);
    let daemon = daemon(&lab, &destinations, "");
    let reasons = all_degraded(&daemon, &destinations).await;
    assert!(reasons["http"].contains("503"), "{reasons:#?}");
    assert!(reasons["tls"].contains("TLS") && reasons["https"].contains("TLS"), "{reasons:#?}");
    for kind in ["postgres", "redis"] {
        assert!(reasons[kind].contains("`-WRONG`"), "{reasons:#?}");
    }
    // More might come.
    for kind in ["banner", "custom"] {
        assert!(reasons[kind].contains("no good answer within 1 s"), "{reasons:#?}");
    }
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusing_destinations_are_down() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let (_socket, address) = refusing();
    let destinations = KINDS.iter().map(|(kind, _)| (*kind, address)).collect();
    let daemon = daemon(&lab, &destinations, "");
    all_degraded(&daemon, &destinations).await;
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_destinations_are_down_and_the_path_is_not() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let (_socket, _queue, swallowing) = swallowing().await;
    let deaf = lab.addresses().destinations.deaf;
    let mut destinations: BTreeMap<_, _> = KINDS.iter().map(|(kind, _)| (*kind, deaf)).collect();
    destinations.insert("tcp", swallowing);
    let daemon = daemon(&lab, &destinations, "");
    let reasons = all_degraded(&daemon, &destinations).await;
    assert!(
        reasons.values().all(|reason| reason.contains("though the target's agent is there")),
        "{reasons:#?}"
    );
    assert!(daemon.events("interrupted").is_empty());
    daemon.stop(&lab).await;
}

/// Without the frames a probe sees less: a second session tells the path from the destination.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn observed_silence_is_the_destinations_if_a_second_session_is_not_answered_either() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let destinations = BTreeMap::from([("redis", lab.addresses().destinations.deaf)]);
    let daemon = observing(&lab, &destinations);
    let replacing = daemon.event("replacing").await;
    assert!(replacing.field("reason").contains("probes are not answered"), "{}", replacing.text);
    assert!(daemon.events("degraded").is_empty());
    all_degraded(&daemon, &destinations).await;
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn observed_silence_of_an_agent_has_its_session_replaced() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let redis = says(6, b"+PONG\r\n", false).await;
    let daemon = observing(&lab, &BTreeMap::from([("redis", redis)]));
    daemon.event_times("probed", 2).await;
    assert!(lab.hang_agent(&lab.sessions()[0], true));
    let began = Instant::now();
    daemon.event_times("ready", 2).await;
    println!("observe: from the agent's hanging to another session {:.1} s", began.elapsed().as_secs_f64());
    let replacing = daemon.event("replacing").await;
    assert!(replacing.field("reason").contains("probes are not answered"), "{}", replacing.text);
    let probed = daemon.events("probed").len();
    daemon.event_times("probed", probed + 3).await;
    assert!(daemon.events("degraded").is_empty(), "{}", daemon.tail());
    daemon.stop(&lab).await;
}

/// Nobody uses the tunnel, and keep-alives are off: the probe is what shows that the agent is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_goes_down_is_not_the_destinations_fault() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let redis = says(6, b"+PONG\r\n", false).await;
    let daemon = daemon(&lab, &BTreeMap::from([("redis", redis)]), "keepalive = \"off\"\n");
    daemon.event_times("probed", 2).await;
    assert!(lab.hang_agent(&lab.sessions()[0], true));
    let began = Instant::now();
    let interrupted = daemon.event("interrupted").await;
    println!("from the agent's hanging to its being noticed: {:.1} s", began.elapsed().as_secs_f64());
    assert!(interrupted.field("reason").contains("the agent acknowledges nothing"), "{}", interrupted.text);
    assert!(began.elapsed() < Duration::from_secs(1 + 15 + 2), "{:?}", began.elapsed());
    daemon.event_times("ready", 2).await;
    let good = daemon.events("probed").len();
    daemon.event_times("probed", good + 2).await;
    assert!(daemon.events("degraded").is_empty(), "{}", daemon.tail());
    daemon.stop(&lab).await;
}

/// The database's name points to another address from now on, which the agent learns only with a new session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_fails_over_is_found() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let (_socket, down) = refusing();
    lab.set_host("db.test", vec![says(8, b"S", false).await]);
    let address = own_address();
    let config = tunnel(&lab, "db", address, down, &probe("postgres", ""));
    let daemon =
        Daemon::start(address, &config.replace("remote_host = \"127.0.0.1\"", "remote_host = \"db.test\""));
    daemon.event_times("probed", 2).await;
    assert!(daemon.events("degraded").is_empty(), "{}", daemon.tail());

    let began = Instant::now();
    lab.set_host("db.test", vec![says(8, b"N", false).await]);
    // The old address refuses for the sessions that have it.
    let refused = lab.set_for(Fault::DestinationRefused, Duration::from_millis(3500));
    daemon.event("degraded").await;
    let replaced = daemon.event("replacing").await;
    assert!(replaced.field("reason").contains("resolved anew"), "{}", replaced.text);
    refused.await.unwrap();
    let recovered = daemon.event("recovered").await;
    println!(
        "fail-over: degraded for {} ms, answered again {:.1} s after it began",
        recovered.number("duration_ms"),
        began.elapsed().as_secs_f64()
    );
    assert_eq!(recovered.field("session"), lab.sessions()[0]);
    assert_eq!(lab.status().start.processed, 2);
    assert_eq!(daemon.events("degraded").len(), 1, "said once");
    daemon.stop(&lab).await;
}

/// Without probes, clients' connections tell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_clients_degrade_a_tunnel_and_an_answer_recovers_it() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let daemon = Daemon::echo(&lab, "").await;
    lab.set(Fault::DestinationRefused);
    for _ in 0..5 {
        let mut client = TcpStream::connect(daemon.address).await.unwrap();
        client.write_all(b"hello").await.unwrap();
        // Closed or reset.
        let _ = tokio::time::timeout(Duration::from_secs(20), client.read(&mut [0; 8])).await.unwrap();
    }
    daemon.event("degraded").await;
    daemon.event_times("ready", 2).await;
    lab.clear(Fault::DestinationRefused);
    let mut client = TcpStream::connect(daemon.address).await.unwrap();
    client.write_all(b"hello").await.unwrap();
    client.read_exact(&mut [0; 5]).await.unwrap();
    let recovered = daemon.event("recovered").await;
    assert!(recovered.number("duration_ms") > 0, "{}", recovered.text);
    until("no session but the new one", || (lab.sessions().len() == 1).then_some(())).await;
    let loud = daemon.events("destination_failed");
    let loud = loud.iter().filter(|line| line.fields["level"] == "WARN").count();
    assert!((1..=4).contains(&loud), "{loud} warnings");
    daemon.stop(&lab).await;
}
