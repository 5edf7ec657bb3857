//! Which ends a client is told of: an answer that is cut must not look complete, and one that is complete not cut.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

use super::*;
use crate::config::Listen;
use crate::gateway::ledger::{AgentEnd, AgentFrames};
use crate::proxy::rig::{PATIENCE, Rig, accept, end, followed, plugin, settings};
use crate::proxy::route::Route;
use crate::proxy::{Listener, Settings};

/// The stream of a route's first connection.
const STREAM: u32 = 3;

/// A client, and the plugin's end of its connection.
struct Connection {
    rig: Rig,
    route: Arc<Route>,
    client: TcpStream,
    socket: TcpStream,
}

impl Connection {
    /// One that has carried a request, in a session of which so much is known.
    async fn asked(frames: AgentFrames) -> Self {
        let mut connection = Self::open(frames, settings()).await;
        connection.client.write_all(b"request").await.unwrap();
        connection.socket.read_exact(&mut [0; 7]).await.unwrap();
        connection
    }

    async fn open(frames: AgentFrames, settings: Settings) -> Self {
        let rig = Rig::new(settings);
        let (plugin, route) = plugin(1).await;
        route.ledger.follow_agent(frames);
        rig.publish(vec![route.clone()]);
        let client = rig.client().await;
        let socket = accept(&plugin).await;
        Self { rig, route, client, socket }
    }

    /// The agent sends so many bytes of an answer, and the plugin gets them.
    async fn answers(&mut self, bytes: &[u8]) {
        self.route.ledger.agent_sent(STREAM, bytes.len());
        self.socket.write_all(bytes).await.unwrap();
    }

    /// The proxy has read so many bytes. (Nothing announces that.)
    async fn has_come(&self, bytes: usize) {
        let come = async {
            while self.rig.proxy.stats().snapshot().bytes_down < bytes as u64 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, come).await.expect("bytes are missing");
    }

    fn agent_ends(&self) {
        self.route.ledger.agent_ended(STREAM, AgentEnd::Connected);
    }

    fn plugin_closes(self) -> Open {
        Open { rig: self.rig, route: self.route, client: self.client }
    }

    fn plugin_resets(self) -> Open {
        SockRef::from(&self.socket).set_linger(Some(Duration::ZERO)).unwrap();
        self.plugin_closes()
    }
}

/// A client whose connection the plugin has closed.
struct Open {
    rig: Rig,
    route: Arc<Route>,
    client: TcpStream,
}

impl Open {
    /// What the client gets, whether it is told of an end, and whether its connection counts as cut.
    async fn ends(mut self) -> (Vec<u8>, bool, bool) {
        let (bytes, told) = end(&mut self.client).await;
        drop(self.client);
        let counts = self.rig.wait(|counts| counts.open == 0).await;
        assert_eq!(counts.cut + counts.completed, 1, "{counts:?}");
        assert_eq!(*self.route.open.borrow(), 0);
        (bytes, told, counts.cut == 1)
    }
}

fn whole(answer: &[u8]) -> (Vec<u8>, bool, bool) {
    (answer.to_vec(), true, false)
}

fn cut(answer: &[u8]) -> (Vec<u8>, bool, bool) {
    (answer.to_vec(), false, true)
}

#[tokio::test]
async fn an_answer_that_the_agent_has_ended_is_whole() {
    let mut connection = Connection::asked(AgentFrames::Followed).await;
    connection.answers(b"the answer").await;
    connection.agent_ends();
    assert_eq!(connection.plugin_closes().ends().await, whole(b"the answer"));
    // The same where the plugin resets, because of what it has not read: nothing is missing.
    let mut connection = Connection::asked(AgentFrames::Followed).await;
    connection.answers(b"the answer").await;
    connection.agent_ends();
    assert_eq!(connection.plugin_resets().ends().await, whole(b"the answer"));
    // A destination that hangs up, or cannot be reached, has no answer.
    let connection = Connection::open(AgentFrames::Followed, settings()).await;
    connection.agent_ends();
    assert_eq!(connection.plugin_closes().ends().await, whole(b""));
}

/// The kernel closes the connections of a plugin that is killed, as the plugin does itself.
#[tokio::test]
async fn an_answer_that_only_the_plugin_has_ended_is_cut() {
    let mut connection = Connection::asked(AgentFrames::Followed).await;
    connection.answers(b"the ans").await;
    let open = connection.plugin_closes();
    let route = open.route.clone();
    let ends = tokio::spawn(open.ends());
    // For the report of the session's end, which comes a moment later.
    sleep(NEWS / 5).await;
    assert_eq!(*route.open.borrow(), 1);
    route.ended.cancel();
    assert_eq!(ends.await.unwrap(), cut(b"the ans"));
    // Nor is it whole if the session is not over for that.
    let connection = Connection::asked(AgentFrames::Followed).await;
    assert_eq!(connection.plugin_closes().ends().await, cut(b""));
    let connection = Connection::open(AgentFrames::Followed, settings()).await;
    assert_eq!(connection.plugin_closes().ends().await, cut(b""));
}

/// Killed with bytes that it had taken from the agent: those are lost.
#[tokio::test]
async fn an_answer_of_which_bytes_are_missing_is_cut() {
    let mut connection = Connection::asked(AgentFrames::Followed).await;
    connection.answers(b"the ans").await;
    connection.route.ledger.agent_sent(STREAM, 3);
    connection.agent_ends();
    assert_eq!(connection.plugin_closes().ends().await, cut(b"the ans"));
}

#[tokio::test]
async fn a_session_s_end_cuts_what_is_not_whole() {
    let mut connection = Connection::asked(AgentFrames::Followed).await;
    connection.answers(b"the ans").await;
    connection.route.ended.cancel();
    let Connection { rig, route, client, socket: _socket } = connection;
    assert_eq!(Open { rig, route, client }.ends().await, cut(b"the ans"));
}

/// The agent's end came before the session's: the plugin has it, and may need a moment.
#[tokio::test]
async fn a_whole_answer_outlives_its_session() {
    let mut connection = Connection::asked(AgentFrames::Followed).await;
    connection.answers(b"the ans").await;
    connection.route.ledger.agent_sent(STREAM, 3);
    connection.agent_ends();
    connection.route.ended.cancel();
    sleep(Duration::from_millis(300)).await;
    connection.socket.write_all(b"wer").await.unwrap();
    assert_eq!(connection.plugin_closes().ends().await, whole(b"the answer"));
}

/// And its client may take its time.
#[tokio::test]
async fn a_whole_answer_outlives_its_session_for_a_slow_client() {
    const LEN: usize = 12 << 20;
    let settings = Settings { client_buffer: LEN, ..settings() };
    let mut connection = Connection::open(AgentFrames::Followed, settings).await;
    connection.answers(&vec![7; LEN]).await;
    connection.agent_ends();
    connection.has_come(LEN).await;
    connection.route.ended.cancel();
    sleep(DELIVERY + Duration::from_millis(500)).await;
    let (bytes, told, cut) = connection.plugin_closes().ends().await;
    assert_eq!((bytes.len(), told, cut), (LEN, true, false));
}

/// What has been received is the client's, though its connection is reset then.
#[tokio::test]
async fn a_reset_waits_for_what_the_client_has_not_taken_yet() {
    const LEN: usize = 3 << 20;
    let mut connection = Connection::asked(AgentFrames::Followed).await;
    connection.answers(&vec![7; LEN]).await;
    connection.has_come(LEN).await;
    connection.route.ended.cancel();
    sleep(Duration::from_millis(200)).await;
    let (bytes, told, cut) = connection.plugin_closes().ends().await;
    assert_eq!((bytes.len(), told, cut), (LEN, false, true));
}

/// Encrypted frames, or a gateway that only observes.
#[tokio::test]
async fn where_nothing_is_known_an_end_counts_if_the_session_lives_on() {
    let ask = || Connection::asked(AgentFrames::Unreadable);
    let forget = |connection: &Connection| connection.route.ledger.stop();

    let mut connection = ask().await;
    forget(&connection);
    connection.answers(b"the answer").await;
    let began = Instant::now();
    assert_eq!(connection.plugin_closes().ends().await, whole(b"the answer"));
    assert!(began.elapsed() >= NEWS, "it cannot be known before");

    let mut connection = ask().await;
    forget(&connection);
    connection.answers(b"the ans").await;
    let open = connection.plugin_closes();
    let route = open.route.clone();
    let ends = tokio::spawn(open.ends());
    sleep(NEWS / 5).await;
    route.ended.cancel();
    assert_eq!(ends.await.unwrap(), cut(b"the ans"));

    // A plugin that has read nothing for so long closes its connections by itself.
    for before in [true, false] {
        let connection = ask().await;
        forget(&connection);
        connection.route.interrupted.store(before, Relaxed);
        let open = connection.plugin_closes();
        sleep(NEWS / 5).await;
        open.route.interrupted.store(!before, Relaxed);
        assert_eq!(open.ends().await, cut(b""), "interrupted before the end: {before}");
    }

    let mut connection = ask().await;
    forget(&connection);
    connection.answers(b"the ans").await;
    assert_eq!(connection.plugin_resets().ends().await, cut(b"the ans"), "something may be lost with it");
}

/// A slow client gets its answer after the news could have come.
#[tokio::test]
async fn an_end_that_counted_counts_still_when_the_client_has_its_answer() {
    const LEN: usize = 12 << 20;
    let settings = Settings { client_buffer: LEN, ..settings() };
    let mut connection = Connection::open(AgentFrames::Unreadable, settings).await;
    connection.route.ledger.stop();
    connection.answers(&vec![7; LEN]).await;
    connection.has_come(LEN).await;
    let open = connection.plugin_closes();
    sleep(2 * NEWS).await;
    open.route.ended.cancel();
    let (bytes, told, cut) = open.ends().await;
    assert_eq!((bytes.len(), told, cut), (LEN, true, false));
}

/// The plugin's own frames tell: it ends a stream only as the answer to the agent's end.
#[tokio::test]
async fn where_track_was_lost_the_plugin_s_frames_tell() {
    let mut connection = Connection::asked(AgentFrames::Followed).await;
    connection.route.ledger.follow_agent(AgentFrames::Lost);
    connection.answers(b"the answer").await;
    connection.route.ledger.close(STREAM);
    let route = connection.route.clone();
    let ends = tokio::spawn(connection.plugin_closes().ends());
    assert_eq!(ends.await.unwrap(), whole(b"the answer"));
    assert!(!route.ended.is_cancelled());

    let mut connection = Connection::asked(AgentFrames::Followed).await;
    connection.route.ledger.follow_agent(AgentFrames::Lost);
    connection.answers(b"the ans").await;
    let open = connection.plugin_closes();
    let route = open.route.clone();
    let ends = tokio::spawn(open.ends());
    sleep(NEWS / 5).await;
    route.ended.cancel();
    assert_eq!(ends.await.unwrap(), cut(b"the ans"));
}

/// A client that has shut down its side is not told of an end as long as some of the answer is known to be on its way.
#[tokio::test]
async fn silence_is_no_end_while_something_is_missing() {
    const TIMEOUT: Duration = Duration::from_millis(100);
    let settings = Settings { half_close_timeout: TIMEOUT, ..settings() };
    let mut connection = Connection::open(AgentFrames::Followed, settings).await;
    connection.client.write_all(b"request").await.unwrap();
    connection.client.shutdown().await.unwrap();
    let silent = async |connection: &mut Connection| {
        timeout(5 * TIMEOUT, connection.client.read(&mut [0; 16])).await.is_err()
    };
    connection.answers(b"the ans").await;
    connection.client.read_exact(&mut [0; 7]).await.unwrap();
    connection.route.ledger.agent_sent(STREAM, 3);
    assert!(silent(&mut connection).await, "three bytes are with the plugin");
    connection.socket.write_all(b"wer").await.unwrap();
    connection.client.read_exact(&mut [0; 3]).await.unwrap();
    connection.route.ledger.set_behind(true);
    assert!(silent(&mut connection).await, "there is a gap before what came last");
    connection.route.ledger.set_behind(false);
    let Connection { rig, route, client, socket: _socket } = connection;
    assert_eq!(Open { rig, route, client }.ends().await, whole(b""));
}

#[tokio::test]
async fn a_daemon_that_stops_resets_what_is_open() {
    let mut connection = Connection::asked(AgentFrames::Followed).await;
    connection.answers(b"the ans").await;
    let mut got = [0; 7];
    connection.client.read_exact(&mut got).await.unwrap();
    assert_eq!(connection.rig.proxy.stop(Instant::now()).await, 1);
    assert_eq!(end(&mut connection.client).await, (Vec::new(), false));
}

/// A Unix socket has no reset, but a client that has sent something is told.
#[tokio::test]
async fn a_client_on_a_unix_socket_is_told_too() {
    let rig = Rig::new(settings());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db.sock");
    rig.proxy.serve(Listener::bind(&Listen::Unix(path.clone())).unwrap());
    let (plugin, route) = plugin(1).await;
    followed(&route);
    rig.publish(vec![route.clone()]);
    for whole in [true, false] {
        let mut client = UnixStream::connect(&path).await.unwrap();
        let mut socket = accept(&plugin).await;
        for _ in 0..3 {
            client.write_all(b"request").await.unwrap();
            let mut request = [0; 7];
            timeout(PATIENCE, socket.read_exact(&mut request)).await.unwrap().unwrap();
            assert_eq!(&request, b"request");
        }
        socket.write_all(b"answer").await.unwrap();
        let stream = if whole { STREAM } else { STREAM + 2 };
        route.ledger.agent_sent(stream, 6);
        if whole {
            route.ledger.agent_ended(stream, AgentEnd::Connected);
        }
        drop(socket);
        assert_eq!(end(&mut client).await, (b"answer".to_vec(), whole));
    }
}
