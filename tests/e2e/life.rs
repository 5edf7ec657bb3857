//! The daemon's own life: signals, reload, exit codes, and what it must never give away.

use std::time::{Duration, Instant};

use autossm_lab::Lab;
use autossm_lab::fault::{ApiFault, Call, Fault};
use autossm_lab::load::Load;
use autossm_lab::options::{Document, Options};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::daemon::{Daemon, PATIENCE, SECRET_KEY, own_address, tunnel, until};

async fn echoes(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"ping").await?;
    let mut back = [0; 4];
    stream.read_exact(&mut back).await?;
    assert_eq!(&back, b"ping");
    Ok(())
}

/// Everything that an outage, a resume, a killed plugin and a stop write down, at the most talkative level.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_ever_written_down() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let daemon = Daemon::echo(&lab, "").await;
    let load = Load::start(daemon.address, 20);
    lab.close_all(1000, "Bye");
    daemon.event("resumed").await;
    lab.wait_for("the data channel", PATIENCE, |status| status.ready_sessions() == 1).await.unwrap();
    lab.set_for(Fault::Api(Call::Resume, ApiFault::Expired), Duration::from_secs(1));
    assert_eq!(lab.abort_all(), 1);
    daemon.event_times("resumed", 2).await;
    let plugin = daemon.plugin().await;
    let seen_by_ps = std::fs::read(format!("/proc/{plugin}/cmdline")).unwrap();
    let environment = String::from_utf8(std::fs::read(format!("/proc/{plugin}/environ")).unwrap()).unwrap();
    let proxy_secret = environment
        .split('\0')
        .find_map(|variable| variable.strip_prefix("HTTPS_PROXY=http://"))
        .and_then(|rest| rest.split(['@', ':']).nth(1))
        .expect("the plugin goes through the gateway")
        .to_owned();
    // One of the things that are told at trace level only: a line feed restored.
    let mut stream = TcpStream::connect(daemon.address).await.unwrap();
    let mut message = vec![b'a'; 1017];
    message[1016] = b'\n';
    let mut restored = false;
    for _ in 0..50 {
        stream.write_all(&message).await.unwrap();
        stream.read_exact(&mut vec![0; 1017]).await.unwrap();
        restored |= !daemon.events("line_feed_restored").is_empty();
    }
    assert!(restored, "the plugin changed no line feed");
    kill(plugin, Signal::SIGKILL).unwrap();
    daemon.event_times("ready", 2).await;
    load.finish().await;
    let folder = daemon.folder.clone();
    let log = daemon.stop(&lab).await;

    assert!(log.iter().any(|line| line.fields["level"] == "TRACE"), "the log is not at its most talkative");
    // The lab's tokens begin like the service's.
    let secrets = ["AAEAA", SECRET_KEY, &proxy_secret];
    for secret in secrets {
        let told: Vec<_> =
            log.iter().filter(|line| line.text.contains(secret)).map(|line| &line.text).collect();
        assert!(told.is_empty(), "{secret} in the log: {told:?}");
        assert!(!String::from_utf8_lossy(&seen_by_ps).contains(secret), "{secret} in argv");
    }
    assert!(
        !environment.contains("AAEAA") && !environment.contains(SECRET_KEY),
        "the plugin holds no real secret"
    );
    for inherited in ["AWS_CA_BUNDLE", "SSL_CERT_FILE", "/nonexistent", "127.0.0.1:1\0"] {
        assert!(!environment.contains(inherited), "{inherited} was inherited");
    }
    let files = std::process::Command::new("grep")
        .args(["-rl", "-e", "AAEAA", "-e", SECRET_KEY])
        .arg(folder.path())
        .output()
        .unwrap();
    assert!(files.stdout.is_empty(), "a secret in a file: {}", String::from_utf8_lossy(&files.stdout));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_connections_have_their_grace_and_new_ones_are_refused() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let mut daemon = Daemon::echo(&lab, "stop_grace = \"3s\"").await;
    let mut open = TcpStream::connect(daemon.address).await.unwrap();
    echoes(&mut open).await.unwrap();
    let began = Instant::now();
    daemon.signal(Signal::SIGTERM);
    until("refused", || std::net::TcpStream::connect(daemon.address).is_err().then_some(())).await;
    echoes(&mut open).await.expect("an open connection goes on");
    assert_eq!(open.read(&mut [0; 1]).await.unwrap_or(0), 0, "until its grace is over");
    assert!(began.elapsed() > Duration::from_millis(2900));
    assert!(daemon.exit().await.success());
    assert!(began.elapsed() < Duration::from_secs(15));
    assert!(lab.sessions().is_empty());
}

/// A plugin that cannot be stopped politely and a service that answers nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_ends_whatever_hangs() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let mut daemon = Daemon::echo(&lab, "").await;
    let mut open = TcpStream::connect(daemon.address).await.unwrap();
    echoes(&mut open).await.unwrap();
    let plugin = daemon.plugin().await;
    lab.set(Fault::BlackHole);
    kill(plugin, Signal::SIGSTOP).unwrap();
    let began = Instant::now();
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.exit().await.success());
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert!(kill(plugin, None).is_err(), "the plugin is still there");
    println!("stopped after {:.1} s", began.elapsed().as_secs_f64());

    // What could not be terminated is on record, and the next process terminates it.
    assert_eq!(lab.sessions().len(), 1);
    let left = lab.sessions().remove(0);
    lab.clear(Fault::BlackHole);
    let address = own_address();
    let config = tunnel(&lab, "echo", address, lab.echo_addr(), "");
    let daemon = Daemon::start_in(daemon.folder.clone(), address, &config);
    daemon.event("leftover").await;
    assert!(!lab.sessions().contains(&left));
    daemon.event("ready").await;
    daemon.stop(&lab).await;
}

/// In a container or in the foreground nothing else ends what a killed daemon has left running.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plugins_of_a_killed_daemon_are_ended_by_the_next_one() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let mut daemon = Daemon::echo(&lab, "sessions = 2").await;
    daemon.event_times("ready", 2).await;
    let plugins = daemon.plugins();
    assert_eq!(plugins.len(), 2);
    daemon.signal(Signal::SIGKILL);
    daemon.exit().await;
    assert!(plugins.iter().all(|plugin| kill(*plugin, None).is_ok()), "they end by themselves");
    let (folder, address) = (daemon.folder.clone(), daemon.address);
    let config = tunnel(&lab, "echo", address, lab.echo_addr(), "sessions = 2");
    let daemon = Daemon::start_in(folder, address, &config);
    daemon.event_times("survivor_ended", 2).await;
    until("the plugins' end", || plugins.iter().all(|plugin| !runs(*plugin)).then_some(())).await;
    daemon.event_times("ready", 2).await;
    daemon.event_times("leftover", 2).await;
    let log = daemon.stop(&lab).await;
    let ended = log.iter().filter(|line| line.field("event") == "survivor_ended");
    assert_eq!(ended.count(), 2, "its own are not among them");
}

/// Whether a process does more than wait for whoever has inherited it.
fn runs(pid: Pid) -> bool {
    let stat = procfs::process::Process::new(pid.as_raw()).and_then(|process| process.stat());
    stat.is_ok_and(|stat| stat.state != 'Z')
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_earlier_process_has_left_is_tried_again_when_a_session_is_ready() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let mut daemon = Daemon::echo(&lab, "sessions = 6").await;
    daemon.event_times("ready", 6).await;
    let left = lab.sessions();
    for plugin in daemon.plugins() {
        kill(plugin, Signal::SIGSTOP).unwrap();
    }
    daemon.signal(Signal::SIGKILL);
    daemon.exit().await;
    // The host has been started again, and its network has not.
    lab.set(Fault::Refuse);
    let (folder, address) = (daemon.folder.clone(), daemon.address);
    let daemon = Daemon::start_in(folder, address, &tunnel(&lab, "echo", address, lab.echo_addr(), ""));
    let failed = "session that was left behind not terminated";
    daemon
        .logged("6 × not terminated", |log| {
            log.iter().filter(|line| line.text.contains(failed)).count() == left.len()
        })
        .await;
    assert!(daemon.events("leftover").is_empty());
    lab.clear(Fault::Refuse);
    daemon.event("ready").await;
    daemon.event_times("leftover", left.len()).await;
    assert!(lab.sessions().iter().all(|session| !left.contains(session)));
    daemon.stop(&lab).await;
}

/// The service terminates nothing for longer than is tried. The daemon may run for months until it is started again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_could_not_be_terminated_is_when_the_service_answers_again() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let daemon = Daemon::echo(&lab, "").await;
    let left = lab.sessions().remove(0);
    let denied = Fault::Api(Call::Terminate, ApiFault::Denied);
    lab.set(denied);
    kill(daemon.plugin().await, Signal::SIGKILL).unwrap();
    daemon.event("not_terminated").await;
    assert!(lab.sessions().contains(&left));
    lab.clear(denied);
    kill(daemon.plugin().await, Signal::SIGKILL).unwrap();
    assert_eq!(daemon.event("leftover").await.field("session"), left);
    assert!(!lab.sessions().contains(&left));
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_it_at_once() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let mut daemon = Daemon::echo(&lab, "stop_grace = \"10s\"").await;
    let mut open = TcpStream::connect(daemon.address).await.unwrap();
    echoes(&mut open).await.unwrap();
    let plugin = daemon.plugin().await;
    daemon.signal(Signal::SIGINT);
    daemon.event("stopping").await;
    let began = Instant::now();
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.exit().await.success());
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(kill(plugin, None).is_err(), "the plugin is still there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_accepted_before_there_is_a_session() {
    let lab = Lab::start(Options::default()).await.unwrap();
    lab.set(Fault::Api(Call::Start, ApiFault::Internal));
    let address = own_address();
    let daemon = Daemon::start(address, &tunnel(&lab, "echo", address, lab.echo_addr(), ""));
    daemon.event("failed").await;
    let mut early = TcpStream::connect(address).await.unwrap();
    early.write_all(b"ping").await.unwrap();
    lab.clear(Fault::Api(Call::Start, ApiFault::Internal));
    let mut back = [0; 4];
    early.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"ping");
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_is_taken_is_named_with_its_holder() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let address = own_address();
    let _holder = TcpListener::bind(address).await.unwrap();
    let mut daemon = Daemon::start(address, &tunnel(&lab, "echo", address, lab.echo_addr(), ""));
    assert_eq!(daemon.exit().await.code(), Some(69));
    let said = daemon.event("bind_failed").await;
    let me = std::process::id().to_string();
    assert!(said.text.contains(&address.to_string()) && said.text.contains(&me), "{}", said.text);
    assert_eq!(lab.status().start.processed, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_configuration_is_refused_at_start() {
    let address = own_address();
    let mut daemon = Daemon::start(address, "[[tunnel]]\nname = \"DB\"\n");
    assert_eq!(daemon.exit().await.code(), Some(78));
    daemon.logged("the error", |log| log.iter().any(|line| line.text.contains("config.toml:2:8"))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_touches_only_what_has_changed() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let (a, b, moved, new) = (own_address(), own_address(), own_address(), own_address());
    let one = |name, address| tunnel(&lab, name, address, lab.echo_addr(), "");
    let daemon = Daemon::start(a, &format!("{}{}{}", one("same", a), one("changed", b), one("moved", moved)));
    daemon.event_times("ready", 3).await;
    let file = daemon.folder.path().join("config.toml");
    let mut on_same = TcpStream::connect(a).await.unwrap();
    let mut on_changed = TcpStream::connect(b).await.unwrap();
    let mut on_moved = TcpStream::connect(moved).await.unwrap();
    for stream in [&mut on_same, &mut on_changed, &mut on_moved] {
        echoes(stream).await.unwrap();
    }
    let before = lab.sessions();

    // A bad file changes nothing, and says why.
    std::fs::write(&file, "[[tunnel]]\nname = \"same\"\nlisten = 3\n").unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon
        .logged("refusal", |log| {
            log.iter().any(|l| l.field("event") == "reload_refused" && l.text.contains("config.toml:3:10"))
        })
        .await;
    assert_eq!(lab.sessions(), before);

    // Another session for one, another address for one, one more.
    let moved_to = own_address();
    let changed = format!("{}reason = \"another\"\n", one("changed", b));
    std::fs::write(
        &file,
        format!("{}{changed}{}{}", one("same", a), one("moved", moved_to), one("new", new)),
    )
    .unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.event("reloaded").await;
    daemon.event_times("ready", 5).await;
    for stream in [&mut on_same, &mut on_changed, &mut on_moved] {
        echoes(stream).await.expect("open connections go on");
    }
    for address in [a, b, moved_to, new] {
        echoes(&mut TcpStream::connect(address).await.unwrap()).await.unwrap();
    }
    assert!(TcpStream::connect(moved).await.is_err(), "the old address is closed");
    let kept = lab.sessions().iter().filter(|id| before.contains(id)).count();
    assert_eq!(kept, 3, "the changed one's old session lives for its open connection");
    drop(on_changed);
    lab.wait_for("the end of the replaced session", Duration::from_secs(30), |status| {
        status.sessions.len() == 4
    })
    .await
    .unwrap();

    // A tunnel that is removed drains.
    std::fs::write(&file, one("same", a)).unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.event_times("reloaded", 2).await;
    assert!(TcpStream::connect(new).await.is_err());
    echoes(&mut on_moved).await.expect("an open connection of a removed tunnel goes on");
    drop(on_moved);
    lab.wait_for("only one session", Duration::from_secs(30), |status| status.sessions.len() == 1)
        .await
        .unwrap();
    echoes(&mut on_same).await.unwrap();
    drop(on_same);
    daemon.stop(&lab).await;
}

/// Most often that is a tunnel with a new name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_goes_from_one_tunnel_to_another_without_refusing_anybody() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let address = own_address();
    let one = |name| tunnel(&lab, name, address, lab.echo_addr(), "");
    let daemon = Daemon::start(address, &one("old-name"));
    daemon.event("ready").await;
    let load = Load::start(address, 50);
    for (reloads, name) in ["new-name", "old-name", "new-name"].into_iter().enumerate() {
        std::fs::write(daemon.folder.path().join("config.toml"), one(name)).unwrap();
        daemon.signal(Signal::SIGHUP);
        daemon.event_times("ready", reloads + 2).await;
        let served = load.seen().attempts.len();
        until("served by the new one", || (load.seen().attempts.len() > served + 20).then_some(())).await;
    }
    let seen = load.finish().await;
    assert_eq!(seen.failures().count(), 0, "{:?}\n{}", seen.failures().collect::<Vec<_>>(), daemon.tail());
    assert!(seen.long_lived.cuts.is_empty(), "the first one's session drains: {:?}", seen.long_lived.cuts);
    daemon.stop(&lab).await;
}

/// It would have ten minutes; the daemon has fifteen seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_that_drains_does_not_hold_up_a_stop() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let (a, b) = (own_address(), own_address());
    let one = |name, address| tunnel(&lab, name, address, lab.echo_addr(), "");
    let daemon = Daemon::start(a, &format!("{}{}", one("stays", a), one("leaves", b)));
    daemon.event_times("ready", 2).await;
    let mut open = TcpStream::connect(b).await.unwrap();
    echoes(&mut open).await.unwrap();
    std::fs::write(daemon.folder.path().join("config.toml"), one("stays", a)).unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.event("reloaded").await;
    echoes(&mut open).await.expect("it drains");
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_system_that_refuses_has_an_exit_code_of_its_own() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let address = own_address();
    let folder = std::sync::Arc::new(tempfile::tempdir().unwrap());
    // Where the runtime directory is to be there is a file.
    std::fs::write(folder.path().join("run"), "").unwrap();
    let config = tunnel(&lab, "echo", address, lab.echo_addr(), "");
    let mut daemon = Daemon::start_in(folder, address, &config);
    assert_eq!(daemon.exit().await.code(), Some(71));
    daemon.event("os_fault").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_that_forwards_no_port_is_said_to_be_wrong() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let address = own_address();
    let forwarding = Document::port([("portNumber", None), ("host", None), ("localPortNumber", Some("0"))]);
    lab.set_document("Team-Shell", Document { session_type: "Standard_Stream".into(), ..forwarding });
    let config = tunnel(&lab, "shell", address, lab.echo_addr(), "document = \"Team-Shell\"");
    let daemon = Daemon::start(address, &config);
    let failed = daemon.event("failed").await;
    assert_eq!(failed.field("class"), "needs a change", "{}", failed.text);
    assert!(failed.text.contains("Standard_Stream"), "{}", failed.text);
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_process_on_the_plugins_port_has_the_session_replaced() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let daemon = Daemon::echo(&lab, "").await;
    let mut before = TcpStream::connect(daemon.address).await.unwrap();
    echoes(&mut before).await.unwrap();
    let port = until("the plugin's port", || listening_port(daemon.plugins().first()?.as_raw())).await;
    let mut stranger = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    echoes(&mut stranger).await.unwrap();
    daemon.event("replacing").await;
    daemon.event_times("ready", 2).await;
    echoes(&mut before).await.expect("open connections go on");
    echoes(&mut TcpStream::connect(daemon.address).await.unwrap()).await.unwrap();
    drop((before, stranger));
    daemon.stop(&lab).await;
}

/// The loopback port that a process listens on.
fn listening_port(pid: i32) -> Option<u16> {
    let process = procfs::process::Process::new(pid).ok()?;
    let inodes: Vec<u64> = process
        .fd()
        .ok()?
        .flatten()
        .filter_map(|fd| match fd.target {
            procfs::process::FDTarget::Socket(inode) => Some(inode),
            _ => None,
        })
        .collect();
    let mut tcp = procfs::net::tcp().ok()?;
    tcp.extend(procfs::net::tcp6().ok()?);
    let listening = |entry: &procfs::net::TcpNetEntry| {
        entry.state == procfs::net::TcpState::Listen && inodes.contains(&entry.inode)
    };
    tcp.iter().find(|entry| listening(entry)).map(|entry| entry.local_address.port())
}

/// StartSession answers when the tunnel that has asked for the session is no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_for_a_tunnel_that_is_gone_is_terminated() {
    let lab = Lab::start(Options::default()).await.unwrap();
    lab.set(Fault::Api(Call::Start, ApiFault::Silence));
    let (address, other) = (own_address(), own_address());
    let stays = tunnel(&lab, "echo", address, lab.echo_addr(), "");
    let goes = tunnel(&lab, "gone", other, lab.echo_addr(), "drain = \"0s\"");
    let daemon = Daemon::start(address, &format!("{stays}{goes}"));
    daemon.event_times("listening", 2).await;
    std::fs::write(daemon.folder.path().join("config.toml"), &stays).unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.event("removed").await;
    // It waits for what it has begun, but not for long.
    assert_eq!(daemon.event("not_terminated").await.field("tunnel"), "gone");
    lab.clear(Fault::Api(Call::Start, ApiFault::Silence));
    assert_eq!(daemon.event("ready").await.field("tunnel"), "echo");
    assert_eq!(daemon.event("leftover").await.field("tunnel"), "gone");
    assert_eq!((lab.status().start.succeeded, lab.sessions().len()), (2, 1));
    daemon.stop(&lab).await;
}
