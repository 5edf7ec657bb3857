//! The socket against clients of every kind, well-behaved and not.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;

use super::*;
use crate::control::client::{self, Client};
use crate::control::protocol::{Event, Status};
use crate::telemetry::recorder::{HISTORY, Recorder};

/// A tunnel that answers, with its socket.
struct Rig {
    folder: tempfile::TempDir,
    recorder: Recorder,
    server: Server,
    tunnel: JoinHandle<()>,
}

impl Rig {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let recorder = Recorder::default();
        let history = recorder.open("db", &folder.path().join("state"));
        let (asks, mut asked) = mpsc::channel::<Ask>(1);
        let server = Server::open(&folder.path().join("db"), &Access::of_host(), asks, history).unwrap();
        let tunnel = tokio::spawn(async move {
            while let Some(ask) = asked.recv().await {
                let reply = match ask.request {
                    Request::Status => {
                        Reply::Status(Box::new(Status { name: "db".into(), ..Status::default() }))
                    }
                    _ => Reply::Done { message: "as you say".into() },
                };
                let _ = ask.answer.send(reply);
            }
        });
        Self { folder, recorder, server, tunnel }
    }

    async fn client(&self) -> Client {
        Client::connect(self.server.path()).await.unwrap()
    }

    async fn raw(&self) -> UnixStream {
        UnixStream::connect(self.server.path()).await.unwrap()
    }

    fn happens(&self, times: usize) {
        use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
        let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new());
        let layer = self.recorder.clone().with_filter(crate::telemetry::recorder::filter());
        let dispatch = tracing::Dispatch::new(tracing_subscriber::Registry::default().with(layer));
        tracing::dispatcher::with_default(&dispatch, || {
            for _ in 0..times {
                tracing::debug!(target: HISTORY, tunnel = "db", event = "ready", "it has happened");
            }
        });
    }
}

async fn answer(socket: &mut UnixStream, request: &[u8]) -> String {
    socket.write_all(request).await.unwrap();
    let mut text = String::new();
    tokio::time::timeout(Duration::from_secs(20), socket.read_to_string(&mut text)).await.unwrap().unwrap();
    text
}

async fn events(client: &mut Client, request: Request) -> Vec<u64> {
    client.send(request).await.unwrap();
    let mut numbers = Vec::new();
    loop {
        match client.next().await.unwrap().unwrap() {
            Reply::Event(event) => numbers.push(event.seq),
            Reply::End => return numbers,
            other => panic!("{other:?}"),
        }
    }
}

const PAST: Request = Request::Events { since: None, after: None, last: None, follow: false };

#[tokio::test]
async fn one_connection_can_ask_many_times() {
    let rig = Rig::new();
    let mut client = rig.client().await;
    for _ in 0..3 {
        assert_eq!(client.status().await.unwrap().name, "db");
    }
    assert!(
        matches!(client.ask(Request::Rotate).await.unwrap(), Reply::Done { message } if message == "as you say")
    );
    rig.happens(50);
    rig.recorder.flush(Duration::from_secs(20)).await;
    assert_eq!(events(&mut client, PAST).await, (1..=50).collect::<Vec<_>>());
    assert_eq!(client.status().await.unwrap().name, "db");
}

#[tokio::test]
async fn a_follower_sees_what_was_and_what_comes() {
    let rig = Rig::new();
    rig.happens(2);
    let mut client = rig.client().await;
    client.send(Request::Events { since: None, after: None, last: Some(1), follow: true }).await.unwrap();
    let number = |reply: Option<Result<Reply, client::Error>>| match reply.unwrap().unwrap() {
        Reply::Event(event) => event.seq,
        other => panic!("{other:?}"),
    };
    assert_eq!(number(client.next().await), 2);
    rig.happens(1);
    assert_eq!(number(client.next().await), 3);
}

#[tokio::test]
async fn what_is_no_request_is_refused_with_a_reason() {
    let rig = Rig::new();
    for (request, code, says) in [
        (&b"status\n"[..], "bad_request", "one JSON object on a line"),
        (b"{\"v\":1,\"request\":\"explode\"}\n", "bad_request", "explode"),
        (b"{\"request\":\"status\"}\n", "bad_request", "one JSON object"),
        (b"{\"v\":2,\"request\":\"dance\"}\n", "version", "restart it"),
        (b"\xff\xfe\n", "bad_request", "UTF8"),
        (&[b'x'; 2 * MAX_REQUEST], "bad_request", "at most 4096 bytes"),
        (b"[[[[[[[[[[[[[[[[\n", "bad_request", "one JSON object"),
    ] {
        let text = answer(&mut rig.raw().await, request).await;
        let code = format!("\"code\":\"{code}\"");
        assert!(text.contains(&code) && text.contains(says), "{text}");
        assert_eq!(text.lines().count(), 1, "and the connection is closed: {text}");
    }
    assert_eq!(rig.client().await.status().await.unwrap().name, "db");
}

#[tokio::test]
async fn too_many_clients_are_told_so_and_a_place_comes_free() {
    let rig = Rig::new();
    let mut clients = Vec::new();
    for _ in 0..MAX_CLIENTS {
        let mut client = rig.client().await;
        client.status().await.unwrap();
        clients.push(client);
    }
    let refused = client::status(rig.server.path()).await.unwrap_err();
    assert!(matches!(refused, client::Error::Refused { code: ErrorCode::Busy, .. }), "{refused:?}");
    clients.pop();
    let mut last = None;
    for _ in 0..1000 {
        last = client::status(rig.server.path()).await.ok();
        if last.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(last.is_some());
}

/// It follows and never reads: what it misses is its own loss.
#[tokio::test]
async fn a_client_that_does_not_read_is_let_go_and_holds_nobody_up() {
    let rig = Rig::new();
    let mut deaf = rig.raw().await;
    deaf.write_all(b"{\"v\":1,\"request\":\"events\",\"follow\":true}\n").await.unwrap();
    let mut client = rig.client().await;
    let began = tokio::time::Instant::now();
    // Its buffers are full after a few thousand, and some seconds later it is let go.
    let let_go = async {
        loop {
            rig.happens(200);
            let asked = tokio::time::Instant::now();
            client.status().await.unwrap();
            assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
            tokio::time::sleep(Duration::from_millis(100)).await;
            if deaf.ready(tokio::io::Interest::WRITABLE).await.unwrap().is_write_closed() {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), let_go).await.unwrap();
    assert!(began.elapsed() >= WRITING);
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_does_not_answer_is_said_to_be_stuck_and_a_silent_client_let_go() {
    let folder = tempfile::tempdir().unwrap();
    let history = History::in_memory("db");
    let (asks, _never_answered) = mpsc::channel(1);
    let server = Server::open(folder.path(), &Access::of_host(), asks, history).unwrap();
    let mut stuck = UnixStream::connect(server.path()).await.unwrap();
    let began = tokio::time::Instant::now();
    stuck.write_all(b"{\"v\":1,\"request\":\"status\"}\n").await.unwrap();
    let mut text = String::new();
    stuck.read_to_string(&mut text).await.unwrap();
    assert!(text.contains("\"code\":\"stuck\""), "{text}");
    assert_eq!(began.elapsed().as_secs(), (ANSWERING + IDLE).as_secs());
}

#[tokio::test]
async fn a_tunnel_that_has_ended_says_so() {
    let rig = Rig::new();
    rig.tunnel.abort();
    let refused = loop {
        match client::status(rig.server.path()).await {
            Err(refused) => break refused,
            Ok(_) => tokio::task::yield_now().await,
        }
    };
    assert!(matches!(refused, client::Error::Refused { code: ErrorCode::Stopping, .. }), "{refused:?}");
}

#[tokio::test]
async fn a_dead_daemon_s_socket_is_named_and_bound_over_and_a_live_one_s_is_not() {
    use std::os::unix::fs::PermissionsExt as _;
    let rig = Rig::new();
    let path = rig.server.path().to_owned();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    let again = || {
        let (asks, asked) = mpsc::channel(1);
        let folder = rig.folder.path().join("db");
        Server::open(&folder, &Access::of_host(), asks, History::in_memory("db"))
            .map(|server| (server, asked))
    };
    assert_eq!(again().unwrap_err().kind(), io::ErrorKind::AddrInUse);

    // As a process leaves it that is killed.
    let kept = path.with_extension("kept");
    fs::hard_link(&path, &kept).unwrap();
    let Rig { folder, server, .. } = rig;
    drop(server);
    assert!(matches!(client::status(&path).await.unwrap_err(), client::Error::NotRunning));
    fs::rename(&kept, &path).unwrap();
    let dead = loop {
        // Its task ends a moment after it was told to.
        match client::status(&path).await.unwrap_err() {
            dead @ client::Error::Dead(_) => break dead,
            _ => tokio::task::yield_now().await,
        }
    };
    assert!(dead.to_string().contains("was left by a daemon that was killed"), "{dead}");
    let (asks, _asked) = mpsc::channel(1);
    let server =
        Server::open(&folder.path().join("db"), &Access::of_host(), asks, History::in_memory("db")).unwrap();
    Client::connect(server.path()).await.unwrap();

    // What is no socket may be precious.
    drop(server);
    fs::write(&path, "data").unwrap();
    let (asks, _asked) = mpsc::channel(1);
    let refused = Server::open(path.parent().unwrap(), &Access::of_host(), asks, History::in_memory("db"));
    assert!(refused.is_err() && fs::read(&path).unwrap() == b"data");
}

#[tokio::test]
async fn the_folder_goes_with_the_socket_unless_something_is_in_it() {
    let runtime = tempfile::tempdir().unwrap();
    let open = |name: &str| {
        let (asks, _) = mpsc::channel(1);
        Server::open(&runtime.path().join(name), &Access::of_host(), asks, History::in_memory(name)).unwrap()
    };
    let (one, two) = (open("one"), open("two"));
    fs::write(runtime.path().join("two/db.sock"), "").unwrap();
    drop((one, two));
    assert!(!runtime.path().join("one").exists());
    assert!(!runtime.path().join("two").join(place::FILE).exists());
    assert!(runtime.path().join("two/db.sock").exists());
}

#[test]
fn the_longest_event_fits_into_a_reply() {
    let event =
        Event { message: "\u{1}".repeat(4096), reason: Some("\u{1}".repeat(4096)), ..Event::default() };
    assert!(text(&Reply::Event(Box::new(event))).unwrap().len() < super::super::protocol::MAX_REPLY);
}

/// A name service that answers the first question only when it is let go, as one that cannot be reached.
struct Hanging {
    asked: std::sync::atomic::AtomicUsize,
    let_go: std::sync::Mutex<Option<oneshot::Receiver<()>>>,
}

impl crate::control::access::Names for Hanging {
    fn is_member(&self, _: nix::unistd::Uid, _: nix::unistd::Gid, _: nix::unistd::Gid) -> bool {
        if self.asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0 {
            let released = self.let_go.lock().unwrap().take().unwrap();
            let _ = released.blocking_recv();
        }
        true
    }

    fn name(&self, _: nix::unistd::Uid) -> Option<String> {
        None
    }
}

#[tokio::test]
async fn a_name_service_that_hangs_stops_neither_other_clients_nor_other_tunnels() {
    let (let_go, released) = oneshot::channel();
    let names = Arc::new(Hanging { asked: 0.into(), let_go: std::sync::Mutex::new(Some(released)) });
    let folder = tempfile::tempdir().unwrap();
    let (asks, mut asked) = mpsc::channel::<Ask>(1);
    let access = Access::that_asks(names.clone());
    let server = Server::open(&folder.path().join("db"), &access, asks, History::in_memory("db")).unwrap();
    tokio::spawn(async move {
        while let Some(ask) = asked.recv().await {
            let _ = ask.answer.send(Reply::Status(Box::default()));
        }
    });
    let other = Rig::new();

    let path = server.path().to_owned();
    let hanging = tokio::spawn(async move { client::status(&path).await });
    while names.asked.load(std::sync::atomic::Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    client::status(server.path()).await.unwrap();
    assert_eq!(other.client().await.status().await.unwrap().name, "db");
    assert!(!hanging.is_finished());
    // It is not waited for for ever.
    let refused = hanging.await.unwrap().unwrap_err();
    assert!(
        matches!(&refused, client::Error::Refused { code: ErrorCode::Denied, message } if message.contains("name service")),
        "{refused:?}"
    );
    drop(let_go);
}
