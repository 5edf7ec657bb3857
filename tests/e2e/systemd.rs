//! What the daemon and systemd have to do with each other, with a systemd of our own: it hears what the daemon tells,
//! keeps its sockets, and hands them to the next process. `tests/systemd` has the same with the real one.

use std::io::IoSliceMut;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use autossm_lab::Lab;
use autossm_lab::fault::{ApiFault, Call, Fault};
use autossm_lab::load::{Attempt, Load};
use autossm_lab::options::Options;
use command_fds::CommandFdExt as _;
use command_fds::FdMapping;
use nix::sys::signal::{Signal, kill};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::{TcpStream, UnixDatagram, UnixStream};
use tokio::process::Command;
use tokio::sync::watch;

use crate::daemon::{Daemon, PATIENCE, PROGRAM, own_address, tunnel, until};

type Store = Arc<Mutex<Vec<(String, OwnedFd)>>>;

/// Stands in for systemd.
struct Manager {
    folder: Arc<tempfile::TempDir>,
    /// Every message so far.
    told: watch::Receiver<Vec<String>>,
    store: Store,
}

impl Manager {
    fn new() -> Self {
        let folder = Arc::new(tempfile::Builder::new().prefix("e2e-").tempdir_in("/tmp").unwrap());
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        let (sender, told) = watch::channel(Vec::new());
        let store = Store::default();
        let kept = store.clone();
        tokio::spawn(async move {
            loop {
                let (text, sockets) =
                    socket.async_io(Interest::READABLE, || receive(&socket)).await.expect("a message");
                keep(&mut kept.lock().unwrap(), &text, sockets);
                sender.send_modify(|told| told.push(text));
            }
        });
        Self { folder, told, store }
    }

    /// Starts the daemon as the main process of a service, with what is in the store.
    fn start(&self, config: &str) -> Daemon {
        let (mut names, mut sockets) = (Vec::new(), Vec::new());
        for (name, socket) in self.store.lock().unwrap().iter() {
            let child_fd = 3 + i32::try_from(names.len()).unwrap();
            sockets.push(FdMapping { parent_fd: socket.try_clone().unwrap(), child_fd });
            names.push(name.clone());
        }
        let mut command = Command::new("sh");
        command
            .args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\"", PROGRAM])
            .env_clear()
            .env("NOTIFY_SOCKET", self.folder.path().join("notify"))
            .env("WATCHDOG_USEC", "2000000")
            .env("LISTEN_FDS", names.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"))
            .fd_mappings(sockets)
            .unwrap();
        Daemon::start_by(command, self.folder.clone(), own_address(), config)
    }

    fn stored(&self) -> Vec<String> {
        let mut names: Vec<_> = self.store.lock().unwrap().iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        names
    }

    /// Waits until so many sockets are in the store.
    async fn stores(&self, count: usize) -> Vec<String> {
        until("the store", || (self.stored().len() == count).then(|| self.stored())).await
    }

    fn count(&self, wanted: impl Fn(&str) -> bool) -> usize {
        self.told.borrow().iter().filter(|text| wanted(text)).count()
    }

    /// Waits for a message, and says which.
    async fn hears(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let mut told = self.told.clone();
        let heard = told.wait_for(|told| told.iter().any(|text| wanted(text)));
        let heard = tokio::time::timeout(PATIENCE, heard).await.is_ok();
        assert!(heard, "never told: {what}\n{:#?}", self.told.borrow());
        self.told.borrow().iter().find(|text| wanted(text)).cloned().unwrap()
    }
}

fn receive(socket: &UnixDatagram) -> std::io::Result<(String, Vec<OwnedFd>)> {
    let mut buffer = [0; 4096];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let parts = &mut [IoSliceMut::new(&mut buffer)];
    let length = recvmsg(socket, parts, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
    let sockets = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(sockets) => sockets.collect(),
        _ => Vec::new(),
    });
    let sockets = sockets.collect();
    Ok((String::from_utf8(buffer[..length].to_vec()).unwrap(), sockets))
}

/// As systemd does: the same socket is stored once, a removal goes by name.
fn keep(store: &mut Vec<(String, OwnedFd)>, text: &str, sockets: Vec<OwnedFd>) {
    let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or("stored");
    let inode = |socket: &OwnedFd| std::fs::File::from(socket.try_clone().unwrap()).metadata().unwrap().ino();
    if text.lines().any(|line| line == "FDSTOREREMOVE=1") {
        store.retain(|(stored, _)| stored != name);
    }
    if text.lines().any(|line| line == "FDSTORE=1") {
        for socket in sockets {
            if !store.iter().any(|(_, stored)| inode(stored) == inode(&socket)) {
                store.push((name.to_owned(), socket));
            }
        }
    }
}

/// Ends the daemon without a word, and its plugins as systemd would: they are in the same cgroup.
async fn kill_all(mut daemon: Daemon) {
    let plugins = daemon.plugins();
    daemon.signal(Signal::SIGKILL);
    for plugin in plugins {
        let _ = kill(plugin, Signal::SIGKILL);
    }
    daemon.exit().await;
}

fn status(text: &str) -> Option<&str> {
    text.strip_prefix("STATUS=").map(str::trim_end)
}

fn is_status(text: &str, part: &str) -> bool {
    status(text).is_some_and(|status| status.contains(part))
}

async fn echoes(mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin) {
    let exchange = async {
        stream.write_all(b"ping").await.unwrap();
        let mut back = [0; 4];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"ping");
    };
    tokio::time::timeout(PATIENCE, exchange).await.expect("an answer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_and_started_again_it_refuses_nobody() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let (manager, address) = (Manager::new(), own_address());
    let config = tunnel(&lab, "echo", address, lab.echo_addr(), "");
    let mut daemon = manager.start(&config);
    daemon.event("ready").await;
    manager.stores(1).await;
    let load = Load::start(address, 20);
    let mut instants = Vec::new();
    for round in 1..=4 {
        let before = load.seen().attempts.len();
        until("load", || (load.seen().attempts.len() >= before + 20).then_some(())).await;
        let sessions = lab.sessions();
        let before_kill = SystemTime::now();
        kill_all(daemon).await;
        instants.push((before_kill, SystemTime::now()));
        // Not at once: clients must have something to wait for.
        until("clients that wait", || (load.seen().waiting >= 5).then_some(())).await;
        daemon = manager.start(&config);
        daemon.event("adopted").await;
        daemon.event("ready").await;
        daemon.event("leftover").await;
        assert!(lab.sessions().iter().all(|id| !sessions.contains(id)), "round {round}: a session is left");
        assert!(daemon.events("listening").is_empty(), "it was not bound anew");
    }
    let before = load.seen().attempts.len();
    until("load", || (load.seen().attempts.len() >= before + 40).then_some(())).await;
    let seen = load.finish().await;

    // Only what was open in the instant of a kill was cut with the process.
    let open = |attempt: &Attempt| {
        instants.iter().any(|(before, after)| {
            attempt.at <= *after && *before <= attempt.at + attempt.took + Duration::from_millis(50)
        })
    };
    let failed: Vec<_> = seen.failures().filter(|attempt| !open(attempt)).collect();
    println!(
        "killed {}×: {} connections, {} failed ({} were open at a kill), longest wait {:.1} s",
        instants.len(),
        seen.attempts.len(),
        failed.len(),
        seen.failures().count() - failed.len(),
        seen.longest_wait().as_secs_f64()
    );
    assert!(failed.is_empty(), "{failed:?}");
    assert!(!seen.failures().any(|attempt| attempt.failure.as_ref().unwrap().contains("refused")));
    assert_eq!(manager.stored().len(), 1);
    daemon.stop(&lab).await;
}

/// A restart cannot be told from a stop: what waits in systemd's store is served by the next process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_and_started_again_it_serves_who_came_meanwhile() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let (manager, address) = (Manager::new(), own_address());
    let path = manager.folder.path().join("db.sock");
    let config = tunnel(&lab, "echo", address, lab.echo_addr(), "");
    let listen = format!("listen = [\"{address}\", \"unix:{}\"]", path.display());
    let config = config.replace(&format!("listen = \"{address}\""), &listen);
    let daemon = manager.start(&config);
    daemon.event("ready").await;
    let port = address.port();
    let names = [format!("echo_{}_{port}", address.ip()), format!("echo_unix_{}", path.display())];
    assert_eq!(manager.stores(2).await, names);
    for _ in 0..2 {
        echoes(UnixStream::connect(&path).await.unwrap()).await;
    }
    daemon.stop(&lab).await;

    let (tcp, unix) = (TcpStream::connect(address).await.unwrap(), UnixStream::connect(&path).await.unwrap());
    let daemon = manager.start(&config);
    daemon.event_times("adopted", 2).await;
    echoes(tcp).await;
    echoes(unix).await;
    assert!(daemon.events("listening").is_empty());
    daemon.stop(&lab).await;

    // The unit is stopped: systemd drops what it has kept.
    manager.store.lock().unwrap().clear();
    assert!(TcpStream::connect(address).await.is_err());
    assert!(UnixStream::connect(&path).await.is_err());

    // A file that nobody listens behind is no hindrance.
    let daemon = manager.start(&config);
    daemon.event_times("listening", 2).await;
    echoes(UnixStream::connect(&path).await.unwrap()).await;
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_configuration_no_longer_has_is_closed_and_forgotten() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let manager = Manager::new();
    let (stays, goes, moved, later) = (own_address(), own_address(), own_address(), own_address());
    let path = manager.folder.path().join("db.sock");
    let one = |name, address| tunnel(&lab, name, address, lab.echo_addr(), "");
    let socket = one("unix", stays).replace(&format!("\"{stays}\""), &format!("\"unix:{}\"", path.display()));
    let first = format!("{}{}{}{socket}", one("stays", stays), one("goes", goes), one("moved", moved));
    let daemon = manager.start(&first);
    daemon.event_times("ready", 4).await;
    manager.stores(4).await;
    daemon.stop(&lab).await;
    assert!(path.exists(), "its socket is in the store");

    // By the next process.
    let second = format!("{}{}", one("stays", stays), one("moved", later));
    let daemon = manager.start(&second);
    daemon.event("adopted").await;
    daemon.event_times("not_adopted", 3).await;
    daemon.event_times("ready", 2).await;
    manager.hears("the second READY", |text| text == "READY=1\n").await;
    let name = |tunnel: &str, address: std::net::SocketAddr| {
        format!("{tunnel}_{}", address.to_string().replace(':', "_"))
    };
    let mut names = vec![name("moved", later), name("stays", stays)];
    names.sort();
    until("the store", || (manager.stored() == names).then_some(())).await;
    for gone in [goes, moved] {
        assert!(TcpStream::connect(gone).await.is_err(), "{gone} is still served");
    }
    assert!(UnixStream::connect(&path).await.is_err());

    // By a reload.
    std::fs::write(manager.folder.path().join("config.toml"), one("stays", stays)).unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.event("reloaded").await;
    assert!(TcpStream::connect(later).await.is_err());
    assert_eq!(manager.stores(1).await, [name("stays", stays)]);
    echoes(TcpStream::connect(stays).await.unwrap()).await;
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ready_is_said_when_the_first_session_serves() {
    let lab = Lab::start(Options::default()).await.unwrap();
    lab.set(Fault::Api(Call::Start, ApiFault::Internal));
    let (manager, address) = (Manager::new(), own_address());
    let daemon = manager.start(&tunnel(&lab, "echo", address, lab.echo_addr(), "start_timeout = \"2m\""));
    daemon.event_times("failed", 2).await;
    manager.hears("what it waits for", |text| is_status(text, "waiting 1 s: network or service: ")).await;
    assert_eq!(manager.count(|text| text == "READY=1\n"), 0);
    lab.clear(Fault::Api(Call::Start, ApiFault::Internal));
    manager.hears("READY", |text| text == "READY=1\n").await;
    // The log comes by another way, and may be behind.
    assert_eq!(daemon.event_times("ready", 1).await.len(), 1);
    // Whoever looks as soon as the unit is up sees that it is.
    let told = manager.told.borrow().clone();
    let ready = told.iter().position(|text| text == "READY=1\n").unwrap();
    assert!(status(&told[ready - 1]).is_some_and(|status| status.starts_with("up 0 s · ")), "{told:?}");
    echoes(TcpStream::connect(address).await.unwrap()).await;
    let id = lab.sessions().remove(0);
    let session = format!("session …{}", &id[id.len() - 4..]);
    manager.hears("who is served", |text| is_status(text, &session) && is_status(text, "1 served")).await;
    lab.close_all(1000, "Bye");
    daemon.event("resumed").await;
    manager.hears("the resumption", |text| is_status(text, "resumed 1×, last ")).await;
    daemon.stop(&lab).await;
    manager.hears("STOPPING", |text| text == "STOPPING=1\n").await;
    assert_eq!(manager.count(|text| text == "READY=1\n"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_waits_no_longer_than_it_should() {
    let lab = Lab::start(Options::default()).await.unwrap();
    lab.set(Fault::Api(Call::Start, ApiFault::Denied));
    let (manager, address) = (Manager::new(), own_address());
    let daemon = manager.start(&tunnel(&lab, "echo", address, lab.echo_addr(), "start_timeout = \"1s\""));
    manager.hears("READY", |text| text == "READY=1\n").await;
    assert!(daemon.events("ready").is_empty());
    manager.hears("why", |text| is_status(text, "waiting ") && is_status(text, ": access: ")).await;
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_is_announced_and_a_refusal_shown() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let (manager, address) = (Manager::new(), own_address());
    let config = tunnel(&lab, "echo", address, lab.echo_addr(), "");
    let daemon = manager.start(&config);
    manager.hears("READY", |text| text == "READY=1\n").await;

    let file = manager.folder.path().join("config.toml");
    let told = |count| manager.told.borrow()[count..].to_vec();
    let before = manager.told.borrow().len();
    std::fs::write(&file, "[[tunnel]]\nname = \"echo\"\nlisten = 3\n").unwrap();
    daemon.signal(Signal::SIGHUP);
    let refused = |text: &str| is_status(text, "reload refused: ") && is_status(text, "config.toml:1:1: ");
    let said = manager.hears("the refusal", refused).await;
    assert!(is_status(&said, " · up "), "{said}");
    until("the end of the reload", || told(before).contains(&"READY=1\n".to_owned()).then_some(())).await;
    let reloading =
        told(before).iter().position(|text| text.starts_with("RELOADING=1\nMONOTONIC_USEC=")).unwrap();
    let ready = told(before).iter().position(|text| text == "READY=1\n").unwrap();
    assert!(reloading < ready);
    echoes(TcpStream::connect(address).await.unwrap()).await;

    let before = manager.told.borrow().len();
    std::fs::write(&file, config).unwrap();
    daemon.signal(Signal::SIGHUP);
    let good = |text: &String| status(text).is_some_and(|status| status.starts_with("up "));
    until("the good one's line", || told(before).iter().any(good).then_some(())).await;
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_watchdog_hears_nothing_of_a_process_that_hangs() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let (manager, address) = (Manager::new(), own_address());
    let daemon = manager.start(&tunnel(&lab, "echo", address, lab.echo_addr(), ""));
    let beats = || manager.count(|text| text == "WATCHDOG=1\n");
    until("beats", || (beats() >= 3).then_some(())).await;
    daemon.signal(Signal::SIGSTOP);
    until("it stops", || is_stopped(daemon.pid().as_raw()).then_some(())).await;
    // What was on its way has arrived.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let before = beats();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(beats(), before);
    daemon.signal(Signal::SIGCONT);
    until("beats again", || (beats() > before).then_some(())).await;
    daemon.stop(&lab).await;
}

fn is_stopped(pid: i32) -> bool {
    let stat = procfs::process::Process::new(pid).and_then(|process| process.stat());
    stat.is_ok_and(|stat| stat.state == 'T')
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_configuration_is_shown_in_the_status() {
    let manager = Manager::new();
    let mut daemon = manager.start("[[tunnel]]\nname = \"DB\"\n");
    assert_eq!(daemon.exit().await.code(), Some(78));
    manager.hears("what is wrong", |text| is_status(text, "config.toml:1:1: ")).await;
}
