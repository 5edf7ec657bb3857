//! `autossm why`: a tunnel broken in one way after the other, and what its operator is told.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use autossm_lab::Lab;
use autossm_lab::fault::{ApiFault, Call, Fault};
use autossm_lab::options::{Node, Options};
use nix::sys::signal::{Signal, kill};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::control::{Said, say};
use crate::daemon::{self, Daemon, PATIENCE, PROGRAM, own_address, tunnel};
use crate::{doctor, encrypted};

/// A tunnel that is broken, and what is to be said of it.
struct Broken {
    row: &'static str,
    lab: Lab,
    daemon: Daemon,
    /// As it stands in `--json`.
    cause: &'static str,
    /// In the first line, and in no other row's.
    says: &'static str,
    code: i32,
    /// What `autossm doctor` finds failing beside the daemon that runs: the check, and words in its message. None: it is
    /// over.
    failing: &'static [(&'static str, &'static str)],
}

impl Broken {
    /// Waits until this is found to be the cause, and reads what a person would.
    async fn told(&self) -> Said {
        let began = Instant::now();
        loop {
            let state = self.daemon.folder.path().join("state");
            let why = ["why", "echo", "--state-dir", state.to_str().unwrap()];
            let story = self.daemon.say(&[&why[..], &["--json"]].concat()).await.json();
            if story["cause"] == self.cause {
                return self.daemon.say(&why).await;
            }
            assert!(began.elapsed() < PATIENCE, "{}: {story:#}\n{}", self.row, self.daemon.tail());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Doctor names the same cause, and no other one.
    async fn examined(&self) {
        let said = doctor::say(doctor::doctor(Command::new(PROGRAM), self.daemon.folder.path())).await;
        let failures = said.with("failure");
        println!("--- {}", self.row);
        for found in [failures.clone(), said.with("warning")].concat() {
            println!("{found:#}");
        }
        assert_eq!(failures.len(), self.failing.len(), "{}: {}", self.row, said.text);
        for (found, (check, words)) in failures.iter().zip(self.failing) {
            assert_eq!(found["check"], *check, "{}: {}", self.row, said.text);
            assert!(doctor::message(found).contains(words), "{}: {found:#}", self.row);
            assert!(
                found["remedy"].as_str().is_some_and(|remedy| remedy.len() > 10),
                "{}: {found:#}",
                self.row
            );
        }
        assert_eq!(said.code, i32::from(!self.failing.is_empty()), "{}", self.row);
    }
}

async fn lab() -> Lab {
    let lab = Lab::start(Options::default()).await.unwrap();
    lab.set_node(node());
    lab
}

fn node() -> Node {
    Node { id: doctor::NODE.into(), online: true, tags: [].into() }
}

fn start(lab: &Lab, keys: &str) -> Daemon {
    let address = own_address();
    Daemon::start(address, &tunnel(lab, "echo", address, lab.echo_addr(), keys))
}

/// StartSession is refused from the beginning.
async fn refused(
    row: &'static str,
    fault: ApiFault,
    (cause, says): (&'static str, &'static str),
    failing: &'static [(&'static str, &'static str)],
) -> Broken {
    let lab = lab().await;
    lab.set(Fault::Api(Call::Start, fault));
    let daemon = start(&lab, "");
    Broken { row, lab, daemon, cause, says, code: 1, failing }
}

/// The configuration is wrong, or what it needs is missing.
async fn misconfigured(
    row: &'static str,
    change: impl FnOnce(String) -> String,
    (cause, says): (&'static str, &'static str),
    failing: &'static [(&'static str, &'static str)],
) -> Broken {
    let lab = lab().await;
    let address = own_address();
    let daemon = Daemon::start(address, &change(tunnel(&lab, "echo", address, lab.echo_addr(), "")));
    Broken { row, lab, daemon, cause, says, code: 1, failing }
}

/// Something happens to a tunnel that is up; it comes back by itself, or not.
async fn disturbed(
    row: &'static str,
    keys: &str,
    disturb: impl AsyncFnOnce(&Lab, &Daemon),
    (cause, says): (&'static str, &'static str),
    failing: &'static [(&'static str, &'static str)],
) -> Broken {
    let lab = lab().await;
    let daemon = Daemon::echo(&lab, keys).await;
    disturb(&lab, &daemon).await;
    Broken { row, lab, daemon, cause, says, code: i32::from(!failing.is_empty()), failing }
}

async fn connect_in_vain(address: SocketAddr) {
    let mut client = TcpStream::connect(address).await.unwrap();
    // It is closed as soon as the agent has said that the destination takes nobody.
    let _ = client.write_all(b"hello").await;
    let _ = tokio::time::timeout(PATIENCE, client.read(&mut [0; 8])).await;
}

async fn all() -> Vec<Broken> {
    let mut rows = JoinSet::new();
    rows.spawn(refused(
        "denied",
        ApiFault::Denied,
        ("denied", "AWS denies ssm:StartSession on i-0123456789abcdef0"),
        &[("permission", "ssm:StartSession: the daemon of echo was refused")],
    ));
    rows.spawn(refused(
        "expired",
        ApiFault::Expired,
        ("expired", "the AWS credentials have expired"),
        &[("daemon", "the AWS credentials have expired")],
    ));
    rows.spawn(refused(
        "proxy",
        ApiFault::Forbidden,
        ("forbidden", "something on the way to AWS refuses"),
        &[("daemon", "something on the way to AWS refuses")],
    ));
    rows.spawn(refused(
        "throttled",
        ApiFault::Throttled,
        ("throttled", "AWS throttles StartSession"),
        &[("daemon", "AWS throttles StartSession")],
    ));
    rows.spawn(refused(
        "service",
        ApiFault::Internal,
        ("service", "AWS answers with an error of its own"),
        &[("daemon", "AWS answers with an error of its own")],
    ));
    rows.spawn(refused(
        "not connected",
        ApiFault::TargetNotConnected,
        ("target_not_connected", "i-0123456789abcdef0 is not connected to Session Manager"),
        &[("daemon", "i-0123456789abcdef0 is not connected to Session Manager")],
    ));
    rows.spawn(misconfigured(
        "no credentials",
        |config| config + "profile = \"nobody-has-it\"\n",
        ("credentials", "there are no AWS credentials"),
        &[("credentials", "no AWS credentials")],
    ));
    rows.spawn(misconfigured(
        "document",
        |config| config + "document = \"No-Such-Document\"\n",
        ("document", "AWS does not start a session with this document"),
        &[("document", "No-Such-Document does not exist")],
    ));
    rows.spawn(misconfigured(
        "no plugin",
        |config| config.replace("plugin = \"", "plugin = \"/nonexistent"),
        ("plugin", "the session-manager-plugin does not run"),
        &[("plugin", "is no program")],
    ));
    rows.spawn(async {
        let lab = encrypted::lab().await;
        lab.set_node(node());
        lab.set(Fault::Api(Call::DataKey, ApiFault::Denied));
        let daemon = start(&lab, &format!("kms_endpoint = \"{}\"", lab.api_url()));
        let says = "KMS gives no data key";
        Broken {
            row: "kms",
            lab,
            daemon,
            cause: "key",
            says,
            code: 1,
            failing: &[("daemon", "KMS gives no data key")],
        }
    });
    rows.spawn(async {
        let lab = lab().await;
        lab.set(Fault::AgentAway);
        let daemon = start(&lab, "");
        // The agent puts a line of dashes before it.
        let says = "Encountered error while initiating handshake";
        let failing = &[("daemon", "the target's SSM agent does not answer in the session")];
        Broken { row: "agent away", lab, daemon, cause: "agent", says, code: 1, failing }
    });
    rows.spawn(disturbed(
        "network",
        "",
        async |lab, _| lab.set(Fault::Refuse),
        ("unreachable", "AWS cannot be reached"),
        &[("api", "cannot be reached"), ("data-channel", "cannot be reached")],
    ));
    rows.spawn(disturbed(
        "killed",
        "",
        async |_, daemon| {
            kill(daemon.plugin().await, Signal::SIGKILL).unwrap();
            daemon.event_times("ready", 2).await;
        },
        ("plugin_killed", "its plugin was killed by signal 9"),
        &[],
    ));
    rows.spawn(disturbed(
        "stopped",
        "",
        async |_, daemon| {
            kill(daemon.plugin().await, Signal::SIGSTOP).unwrap();
            daemon.event_times("ready", 2).await;
        },
        ("plugin_hung", "its plugin hung"),
        &[],
    ));
    rows.spawn(disturbed(
        "terminated",
        "",
        async |lab, daemon| {
            lab.terminate_all("Session was terminated by alice");
            daemon.event_times("ready", 2).await;
        },
        ("terminated", "its session was terminated at the service: Session was terminated by alice"),
        &[],
    ));
    rows.spawn(disturbed(
        "idle",
        "keepalive = \"off\"",
        async |lab, daemon| {
            lab.set(Fault::IdleTimeout(Duration::from_secs(2)));
            daemon.event("lost").await;
            lab.clear_all();
            daemon.event_times("ready", 2).await;
        },
        ("idle_timeout", "its session ran into the account's idle timeout"),
        &[],
    ));
    rows.spawn(disturbed(
        "agent hangs",
        "keepalive = \"1s\"",
        async |lab, daemon| {
            assert!(lab.hang_agent(&lab.sessions()[0], true));
            daemon.event("failover").await;
            daemon.event_times("ready", 2).await;
        },
        ("agent", "the target's SSM agent did not answer in the session: the agent acknowledges nothing"),
        &[],
    ));
    rows.spawn(disturbed(
        "destination",
        "",
        async |lab, daemon| {
            lab.set(Fault::DestinationRefused);
            for _ in 0..3 {
                connect_in_vain(daemon.address).await;
            }
            daemon.event("degraded").await;
        },
        ("destination", "echo is up, but its destination is down since"),
        &[("daemon", "the destination is down")],
    ));
    rows.spawn(disturbed(
        "drained",
        "",
        async |_, daemon| assert_eq!(daemon.say(&["drain", "echo"]).await.code, 0),
        ("drained", "drained it; until: autossm resume echo"),
        &[("daemon", "somebody has drained it")],
    ));
    rows.spawn(async {
        let lab = lab().await;
        let address = own_address();
        // Held for as long as the test runs.
        std::mem::forget(std::net::TcpListener::bind(address).unwrap());
        let mut daemon = Daemon::start(address, &tunnel(&lab, "echo", address, lab.echo_addr(), ""));
        assert_eq!(daemon.exit().await.code(), Some(69));
        let failing = &[("listen", "is taken by e2e")];
        Broken {
            row: "port taken",
            lab,
            daemon,
            cause: "address",
            says: "is in use by e2e",
            code: 69,
            failing,
        }
    });
    rows.spawn(async {
        let lab = lab().await;
        let daemon = Daemon::echo(&lab, "").await;
        let (folder, address) = (daemon.folder.clone(), daemon.address);
        daemon.end().await;
        let mut daemon = Daemon::start_in(folder, address, "[[tunnel]]\nname = \"echo\"\nlisten = 3\n");
        assert_eq!(daemon.exit().await.code(), Some(78));
        let says = "its configuration cannot be used";
        let failing = &[("configuration", "has no `target`")];
        Broken { row: "file broken", lab, daemon, cause: "invalid", says, code: 78, failing }
    });
    rows.join_all().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn why_and_doctor_name_the_cause_and_no_other() {
    let rows = all().await;
    let mut told = JoinSet::new();
    for broken in rows {
        told.spawn(async move {
            let said = broken.told().await;
            broken.examined().await;
            (said, broken)
        });
    }
    let told = told.join_all().await;
    for (said, broken) in &told {
        println!("--- {}\n{}", broken.row, said.out);
    }
    for (said, broken) in &told {
        let first = said.out.lines().next().unwrap_or_default();
        for (_, other) in &told {
            assert_eq!(first.contains(other.says), other.row == broken.row, "{}: {first}", broken.row);
        }
        let tries = said.out.matches("starting a second session for new connections").count();
        assert!(tries <= 1, "each attempt is told:\n{}", said.out);
        let line = |start: &str| said.out.lines().any(|line| line.trim_start().starts_with(start));
        assert!(line("what to do") && line("what happened"), "{}:\n{}", broken.row, said.out);
        assert_eq!(said.code, broken.code, "{}: {first}", broken.row);
        let runs = broken.code <= 1;
        assert_eq!(said.err.is_empty(), runs, "{}: {}", broken.row, said.err);
        assert!(!said.out.replace("autossm@", "").contains('@'), "{}:\n{}", broken.row, said.out);
    }
    for (_, broken) in told {
        broken.lab.clear_all();
        if broken.code <= 1 {
            broken.daemon.end().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_unit_s_daemon_recorded_is_found_when_it_does_not_run() {
    let lab = lab().await;
    let folder = daemon::folder();
    let (state, runtime) = (folder.path().join("autossm"), folder.path().join("run/autossm"));
    // What autossm@echo.service gives it: directories of its own, and a umask that leaves nothing to the group.
    let mut unit = Command::new("sh");
    unit.env_clear().args([
        "-c",
        "umask 077; exec \"$0\" run --log-format json --config \"$CONFIG\" echo",
        PROGRAM,
    ]);
    unit.env("CONFIG", folder.path().join("config.toml"));
    unit.env("STATE_DIRECTORY", state.join("echo")).env("RUNTIME_DIRECTORY", runtime.join("echo"));
    // Where its end is checked to have left nothing.
    std::fs::create_dir(folder.path().join("state")).unwrap();
    let address = own_address();
    let config = tunnel(&lab, "echo", address, lab.echo_addr(), "");
    let daemon = Daemon::start_by(unit, folder.clone(), address, &config);
    daemon.event("ready").await;
    daemon.stop(&lab).await;

    let mode = |path: &str| state.join(path).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("echo"), mode("echo/events.jsonl")), (0o750, 0o640));
    assert_eq!(std::fs::read_dir(&state).unwrap().count(), 1);
    let said = say(folder.path(), &["why", "echo", "--state-dir", state.to_str().unwrap()]).await;
    assert_eq!(said.code, 69, "{}", said.err);
    assert!(
        said.out.contains("is not running since ") && said.out.contains("it was stopped"),
        "{}",
        said.out
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_that_was_never_down_and_one_that_does_not_run() {
    let lab = lab().await;
    let daemon = Daemon::echo(&lab, "").await;
    let said = daemon.say(&["why", "echo"]).await;
    assert_eq!((said.code, said.err.as_str()), (0, ""));
    assert!(said.out.starts_with("echo is up for ") && said.out.contains("was never down"), "{}", said.out);

    // The hourly close is nothing to tell at three in the morning.
    lab.close_all(1000, "Bye");
    daemon.event("resumed").await;
    let said = daemon.say(&["why", "echo"]).await;
    println!("{}", said.out);
    assert!(
        said.out.contains("was never down") && said.out.contains("closed once, as the service"),
        "{}",
        said.out
    );

    let unknown = daemon.say(&["why", "ecko"]).await;
    assert_eq!(unknown.code, 78, "{}", unknown.err);
    let folder = daemon.folder.clone();
    let (address, config) = (daemon.address, tunnel(&lab, "echo", daemon.address, lab.echo_addr(), ""));
    let state = folder.path().join("state");
    let stopped = async || say(folder.path(), &["why", "echo", "--state-dir", state.to_str().unwrap()]).await;
    daemon.stop(&lab).await;
    let said = stopped().await;
    println!("{}", said.out);
    assert_eq!(said.code, 69, "{}", said.err);
    assert!(
        said.out.starts_with("echo is not running since ") && said.out.contains("it was stopped"),
        "{}",
        said.out
    );
    assert!(said.out.contains("systemctl start autossm@echo"), "{}", said.out);

    let daemon = Daemon::start_in(folder.clone(), address, &config);
    daemon.event("ready").await;
    let said = daemon.say(&["why", "echo"]).await;
    println!("{}", said.out);
    assert!(said.out.starts_with("echo is up; it was last down at ") && said.out.contains("it was stopped"));
    let plugins = daemon.plugins();
    drop(daemon);
    for plugin in plugins {
        let _ = kill(plugin, Signal::SIGKILL);
    }
    let began = Instant::now();
    let said = loop {
        let said = stopped().await;
        if said.code == 69 {
            break said;
        }
        assert!(began.elapsed() < PATIENCE, "{}{}", said.out, said.err);
    };
    println!("{}", said.out);
    assert!(
        said.out.contains("its daemon was killed, or the host went down, some time after"),
        "{}",
        said.out
    );
    let daemon = Daemon::start_in(folder, address, &config);
    daemon.event("leftover").await;
    let began = Instant::now();
    loop {
        let said = daemon.say(&["why", "echo"]).await;
        if said.code == 0 {
            println!("{}", said.out);
            assert!(said.out.contains("its daemon was killed, or the host went down"), "{}", said.out);
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{}", said.out);
    }
    daemon.stop(&lab).await;
}
