//! An answer that is cut never looks complete, whatever cuts it; and one that is complete never looks cut.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use autossm_lab::Lab;
use autossm_lab::bulk::{Content, bulk_request};
use autossm_lab::fault::{ApiFault, Call, Fault, Loss};
use autossm_lab::options::Options;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_tungstenite::tungstenite::Message as Frame;

use crate::daemon::{Daemon, PATIENCE, folder, own_address, tunnel, until};
use crate::encrypted;

/// More than any session moves before it is cut here.
const LONG: usize = 256 << 20;
/// What has come of each answer when it is cut.
const SOME: usize = 512 << 10;

/// How an answer ended for its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// With an end.
    Told(usize),
    /// With a reset.
    Reset(usize),
}

/// Asks for an answer and reads it to its end, whatever that is. What comes has to be what was asked for.
async fn ask(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    bytes: usize,
    come: watch::Sender<usize>,
) -> Ended {
    stream.write_all(&bulk_request(bytes)).await.unwrap();
    let (mut piece, mut at) = (vec![0; 64 << 10], 0);
    let (mut content, mut expected) = (Content::default(), Vec::new());
    loop {
        match stream.read(&mut piece).await {
            Ok(0) => return Ended::Told(at),
            Ok(read) => {
                while expected.len() < read {
                    let mut more = [0; 4096];
                    content.fill(&mut more);
                    expected.extend_from_slice(&more);
                }
                assert!(piece[..read] == expected[..read], "other bytes");
                expected.drain(..read);
                at += read;
                come.send_replace(at);
            }
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(nix::libc::ECONNRESET), "{error}");
                return Ended::Reset(at);
            }
        }
    }
}

/// An answer that is being read.
struct Download {
    come: watch::Receiver<usize>,
    ended: JoinHandle<Ended>,
}

impl Download {
    fn begin(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let (sender, come) = watch::channel(0);
        Self { come, ended: tokio::spawn(ask(stream, LONG, sender)) }
    }

    async fn is_under_way(&mut self) {
        let some = self.come.wait_for(|come| *come >= SOME);
        tokio::time::timeout(PATIENCE, some).await.expect("the answer stands still").unwrap();
    }
}

/// How the gateway goes about the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Hold,
    Encrypted,
    Observe,
}

impl Mode {
    async fn lab(self) -> Lab {
        match self {
            Self::Encrypted => encrypted::lab().await,
            Self::Hold | Self::Observe => Lab::start(Options::default()).await.unwrap(),
        }
    }

    /// A tunnel, with further keys.
    fn tunnel(self, lab: &Lab, address: SocketAddr, destination: SocketAddr, keys: &str) -> String {
        let own = match self {
            Self::Hold => String::new(),
            Self::Encrypted => format!("kms_endpoint = \"{}\"\n", lab.api_url()),
            // The plugin speaks TLS with the service itself.
            Self::Observe => format!("gateway = \"observe\"\nca_file = \"{}\"\n", lab.ca_file().display()),
        };
        let plain = tunnel(lab, "bulk", address, destination, &(own + keys));
        match self {
            Self::Hold | Self::Encrypted => plain,
            Self::Observe => plain.replace(&lab.stream_endpoint_ws(), &lab.stream_endpoint_wss()),
        }
    }

    /// A daemon with a tunnel to the lab's bulk server, on an address and on a Unix socket.
    async fn daemon(self, lab: &Lab, socket: &Path, keys: &str) -> Daemon {
        let address = own_address();
        let config = self.tunnel(lab, address, lab.addresses().destinations.bulk, keys).replace(
            &format!("listen = \"{address}\""),
            &format!("listen = [\"{address}\", \"unix:{}\"]", socket.display()),
        );
        let daemon = Daemon::start(address, &config);
        daemon.event("ready").await;
        daemon
    }
}

/// What cuts answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    PluginKilled,
    PluginInterrupted,
    SessionTerminated,
    ProtocolError,
    DrainOver,
    ResumeForOver,
    TunnelRestarted,
    DaemonStopped,
    DaemonKilled,
}

impl Cut {
    fn keys(self) -> &'static str {
        match self {
            Self::DrainOver => "drain = \"1s\"\n",
            Self::ResumeForOver => "resume_for = \"1s\"\nfailover_after = \"1s\"\n",
            Self::DaemonStopped => "stop_grace = \"1s\"\n",
            _ => "",
        }
    }

    async fn happens(self, lab: &Lab, daemon: &Daemon) {
        match self {
            Self::PluginKilled => kill(daemon.plugin().await, Signal::SIGKILL).unwrap(),
            Self::PluginInterrupted => kill(daemon.plugin().await, Signal::SIGINT).unwrap(),
            Self::SessionTerminated => assert_eq!(lab.terminate_all("terminated by the administrator"), 1),
            Self::ProtocolError => {
                let session = lab.sessions().remove(0);
                assert_eq!(lab.say(&session, Frame::binary(&b"garbage"[..]), 1).await, 1);
            }
            Self::DrainOver => assert_eq!(daemon.say(&["rotate", "bulk"]).await.code, 0),
            Self::ResumeForOver => {
                lab.set(Fault::Api(Call::Resume, ApiFault::Internal));
                assert_eq!(lab.close_all(1000, "Bye"), 1);
            }
            Self::TunnelRestarted => assert_eq!(daemon.say(&["restart", "bulk"]).await.code, 0),
            Self::DaemonStopped => daemon.signal(Signal::SIGTERM),
            Self::DaemonKilled => daemon.signal(Signal::SIGKILL),
        }
    }
}

async fn no_answer_looks_complete(mode: Mode, cut: Cut) {
    let (lab, folder) = (mode.lab().await, folder());
    let socket = folder.path().join("bulk.sock");
    let mut daemon = mode.daemon(&lab, &socket, cut.keys()).await;
    let mut downloads = vec![Download::begin(UnixStream::connect(&socket).await.unwrap())];
    for _ in 0..3 {
        downloads.push(Download::begin(TcpStream::connect(daemon.address).await.unwrap()));
    }
    for download in &mut downloads {
        download.is_under_way().await;
    }
    let plugins = daemon.plugins();
    cut.happens(&lab, &daemon).await;
    for download in downloads {
        let ended = tokio::time::timeout(PATIENCE, download.ended).await;
        let ended = ended.unwrap_or_else(|_| panic!("{mode:?}, {cut:?}: no end\n{}", daemon.tail())).unwrap();
        assert!(
            matches!(ended, Ended::Reset(come) if (SOME..LONG).contains(&come)),
            "{mode:?}, {cut:?}: {ended:?}\n{}",
            daemon.tail()
        );
    }
    lab.clear_all();
    if matches!(cut, Cut::DaemonKilled | Cut::DaemonStopped) {
        daemon.exit().await;
        for plugin in plugins {
            ends(plugin).await;
        }
    } else {
        daemon.end().await;
    }
}

/// A plugin whose daemon is gone.
async fn ends(plugin: Pid) {
    let _ = kill(plugin, Signal::SIGKILL);
    until("the plugin's end", || kill(plugin, None).is_err().then_some(())).await;
}

async fn none_looks_complete(mode: Mode, cuts: &[Cut]) {
    for cut in cuts {
        no_answer_looks_complete(mode, *cut).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_cut_by_its_plugin_or_its_session_is_reset() {
    use Cut::{PluginInterrupted, PluginKilled, ProtocolError, ResumeForOver, SessionTerminated};
    let cuts = [PluginKilled, PluginInterrupted, SessionTerminated, ProtocolError, ResumeForOver];
    none_looks_complete(Mode::Hold, &cuts).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_cut_by_the_daemon_is_reset() {
    use Cut::{DaemonKilled, DaemonStopped, DrainOver, TunnelRestarted};
    none_looks_complete(Mode::Hold, &[DrainOver, TunnelRestarted, DaemonStopped, DaemonKilled]).await;
}

/// There the agent's frames cannot be read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_cut_is_reset_in_an_encrypted_session_too() {
    use Cut::{DaemonStopped, PluginInterrupted, PluginKilled, SessionTerminated};
    let cuts = [PluginKilled, PluginInterrupted, SessionTerminated, DaemonStopped];
    none_looks_complete(Mode::Encrypted, &cuts).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_cut_is_reset_where_the_gateway_observes_too() {
    use Cut::{DaemonStopped, DrainOver, PluginInterrupted, PluginKilled, SessionTerminated};
    let cuts = [PluginKilled, PluginInterrupted, SessionTerminated, DrainOver, DaemonStopped];
    none_looks_complete(Mode::Observe, &cuts).await;
}

/// So many answers of these lengths, 16 at a time, of which none may look cut.
async fn none_looks_cut(address: SocketAddr, count: usize, length: impl Fn(usize) -> usize) {
    let mut asked = JoinSet::new();
    for n in 0..count {
        if asked.len() == 16 {
            asked.join_next().await.unwrap().unwrap();
        }
        let bytes = length(n);
        asked.spawn(async move {
            let stream = TcpStream::connect(address).await.unwrap();
            let ended = tokio::time::timeout(PATIENCE, ask(stream, bytes, watch::channel(0).0)).await;
            assert_eq!(ended.expect("an end"), Ended::Told(bytes));
        });
    }
    asked.join_all().await;
}

async fn a_thousand_answers(mode: Mode) {
    let (lab, folder) = (mode.lab().await, folder());
    let daemon = mode.daemon(&lab, &folder.path().join("bulk.sock"), "").await;
    none_looks_cut(daemon.address, 1000, |n| if n % 100 == 0 { 300_000 } else { n * n % 5_003 }).await;
    assert_eq!(daemon.events("lost").len(), 0);
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_answers_are_told_to_be_complete() {
    a_thousand_answers(Mode::Hold).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_answers_are_told_to_be_complete_where_the_frames_cannot_be_read() {
    tokio::join!(a_thousand_answers(Mode::Encrypted), a_thousand_answers(Mode::Observe));
}

/// Messages are lost both ways, so that the agent's come in another order than it sent them; and data channels are closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_were_repaired_are_told_to_be_complete() {
    let (lab, folder) = (Mode::Hold.lab().await, folder());
    let daemon = Mode::Hold.daemon(&lab, &folder.path().join("bulk.sock"), "").await;
    lab.set(Fault::LostMessages(Loss {
        input: 0.01,
        output: 0.01,
        acknowledgements_in: 0.01,
        acknowledgements_out: 0.01,
    }));
    let closing = async {
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            lab.close_all(1000, "Bye");
        }
    };
    tokio::join!(none_looks_cut(daemon.address, 150, |n| n * 211), closing);
    lab.clear_all();
    daemon.stop(&lab).await;
}

/// Thousands of messages wait behind those that the agent sends again one by one: its frames are followed all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_with_a_long_gap_is_told_to_be_complete() {
    const LENGTH: usize = 6 << 20;
    let (lab, folder) = (Mode::Hold.lab().await, folder());
    let daemon = Mode::Hold.daemon(&lab, &folder.path().join("bulk.sock"), "").await;
    let (come, mut comes) = watch::channel(0);
    let ended = tokio::spawn(ask(TcpStream::connect(daemon.address).await.unwrap(), LENGTH, come));
    comes.wait_for(|come| *come >= SOME).await.unwrap();
    let loss = Loss { output: 1.0, ..Loss::default() };
    lab.set_for(Fault::LostMessages(loss), Duration::from_millis(60)).await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, ended).await.expect("an end").unwrap();
    assert_eq!(ended, Ended::Told(LENGTH), "{}", daemon.tail());
    let log = daemon.stop(&lab).await;
    let lost = log.iter().find(|line| line.text.contains("cannot be followed"));
    assert!(lost.is_none(), "{lost:?}");
}

/// A destination without an answer: it hangs up at once, or cannot be reached. As with the bare plugin its end is an end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_destination_that_says_nothing_is_told() {
    let closes = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let destination = closes.local_addr().unwrap();
    let closing = tokio::spawn(async move {
        loop {
            // Some are read first, so that the destination does not reset.
            let (mut stream, _) = closes.accept().await.unwrap();
            tokio::spawn(async move { stream.read(&mut [0; 4]).await });
        }
    });
    for mode in [Mode::Hold, Mode::Encrypted, Mode::Observe] {
        let lab = mode.lab().await;
        let address = own_address();
        let daemon = Daemon::start(address, &mode.tunnel(&lab, address, destination, ""));
        daemon.event("ready").await;
        for refused in [false, true] {
            if refused {
                lab.set(Fault::DestinationRefused);
            }
            for says in [&b"ping"[..], b"more than it reads"] {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.write_all(says).await.unwrap();
                let end = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 1])).await.expect("an end");
                assert!(matches!(end, Ok(0)), "{mode:?}, refused: {refused}: {end:?}\n{}", daemon.tail());
            }
        }
        lab.clear_all();
        daemon.stop(&lab).await;
    }
    closing.abort();
}
