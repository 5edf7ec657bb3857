//! The control socket and the commands, as an operator has them: the built program against a running daemon.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use autossm_lab::Lab;
use autossm_lab::fault::{ApiFault, Call, Fault};
use autossm_lab::load::Load;
use autossm_lab::options::Options;
use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::daemon::{Daemon, PATIENCE, PROGRAM, own_address, tunnel, until};

/// What a command has answered.
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    /// Runs a command to its end.
    pub async fn of(mut command: Command) -> Self {
        let output = tokio::time::timeout(PATIENCE, command.output()).await.unwrap().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {} {}", self.out, self.err))
    }
}

pub fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).arg("--runtime-dir").arg(folder.join("run"));
    command.arg("--config").arg(folder.join("config.toml")).env_clear().kill_on_drop(true);
    command
}

pub async fn say(folder: &Path, arguments: &[&str]) -> Said {
    Said::of(command(folder, arguments)).await
}

impl Daemon {
    pub async fn say(&self, arguments: &[&str]) -> Said {
        say(self.folder.path(), arguments).await
    }

    /// Waits until the tunnel's status is as wanted.
    pub async fn status(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let status = self.say(&["status", "echo", "--json"]).await.json();
            if wanted(&status) {
                return status;
            }
            assert!(began.elapsed() < PATIENCE, "never: {what}\n{status:#}\n{}", self.tail());
        }
    }
}

async fn echoes(client: &mut TcpStream) -> bool {
    let mut buffer = [0; 5];
    let echoed = async {
        client.write_all(b"hello").await?;
        client.read_exact(&mut buffer).await
    };
    tokio::time::timeout(PATIENCE, echoed).await.is_ok_and(|result| result.is_ok()) && &buffer == b"hello"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_says_all_that_there_is_to_know() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let daemon = Daemon::echo(&lab, "keepalive = \"1s\"\nrotate = \"11h\"").await;
    let mut client = TcpStream::connect(daemon.address).await.unwrap();
    assert!(echoes(&mut client).await);
    let status = daemon.status("a round trip", |status| status["agent_rtt_ms"].is_f64()).await;
    assert_eq!((&status["name"], &status["state"]), (&"echo".into(), &"up".into()));
    assert_eq!(status["daemon"]["pid"], daemon.pid().as_raw());
    assert_eq!(status["listen"][0], daemon.address.to_string());
    assert_eq!(status["targets"][0], "i-0123456789abcdef0");
    let session = &status["sessions"][0];
    assert_eq!((&session["phase"], &session["generation"]), (&"ready".into(), &1.into()));
    assert_eq!(session["id"].as_str(), Some(lab.sessions()[0].as_str()));
    assert_eq!(session["plugin_pid"], daemon.plugins()[0].as_raw());
    assert_eq!((&session["open"], &session["encrypted"]), (&1.into(), &false.into()));
    assert!(session["agent_version"].is_string() && session["agent_rtt_ms"].is_f64(), "{session:#}");
    assert_eq!((&session["up_bytes"], &session["down_bytes"]), (&5.into(), &5.into()));
    let connections = &status["connections"];
    assert_eq!((&connections["open"], &connections["served"]), (&1.into(), &1.into()));
    assert_eq!((&status["up_bytes"], &status["down_bytes"]), (&5.into(), &5.into()));
    let credentials = serde_json::json!({
        "access_key_id": "AKIDTESTTESTTESTTEST", "source": "environment", "expiry": "never", "expires": null,
    });
    assert_eq!(status["credentials"], credentials);
    assert_eq!(status["next"]["what"], "rotation", "{status:#}");
    assert_eq!(status["metrics"]["session_starts"]["ok"], 1);
    assert!(status["metrics"]["agent_rtt_seconds"]["counts"].as_array().unwrap().len() == 12);
    let events: Vec<_> = status["events"].as_array().unwrap().iter().map(|event| &event["event"]).collect();
    assert!(events.contains(&&"listening".into()) && events.contains(&&"ready".into()), "{events:?}");

    // For people.
    let said = daemon.say(&["status", "echo"]).await;
    assert_eq!((said.code, said.err.as_str()), (0, ""));
    let id = &lab.sessions()[0];
    let pid = format!("plugin pid {}", daemon.plugins()[0]);
    for part in [
        "echo · up for ",
        id.as_str(),
        pid.as_str(),
        "1 open, 0 held · 1 served, 0 failed",
        "last events",
        "AKIDTESTTESTTESTTEST (environment), do not expire",
    ] {
        assert!(said.out.contains(part), "{part:?} is missing:\n{}", said.out);
    }
    assert!(!said.out.contains('\x1b'), "no colours where nobody sees them");
    let table = daemon.say(&["status"]).await;
    assert_eq!(table.code, 0);
    let row = table.out.lines().find(|line| line.starts_with("echo ")).unwrap();
    assert!(row.contains(" up ") && row.contains(" 1/1 "), "{}", table.out);

    // The socket's own permissions, and a client that speaks for itself.
    let socket = daemon.folder.path().join("run/echo/control.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
    drop(client);
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interruption_says_when_it_is_tried_again() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let daemon = Daemon::echo(&lab, "failover_after = \"10m\"").await;
    lab.set(Fault::Api(Call::Resume, ApiFault::Forbidden));
    lab.close_all(1000, "Bye");
    daemon.event("resume_failed").await;
    let next =
        |status: &Value| status["sessions"][0]["interruption"]["next_attempt"].as_str().map(str::to_owned);
    let status = daemon.status("a next attempt", |status| next(status).is_some()).await;
    let moment = |text: &str| -> SystemTime { humantime::parse_rfc3339(text).unwrap() };
    let (now, next) = (moment(status["now"].as_str().unwrap()), moment(&next(&status).unwrap()));
    let left = next.duration_since(now).unwrap_or_default();
    assert!(left <= Duration::from_secs(5), "{left:?}");
    lab.clear_all();
    daemon.event("resumed").await;
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_run_is_shown_and_said() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let (address, spare) = (own_address(), own_address());
    let config = tunnel(&lab, "echo", address, lab.echo_addr(), "")
        + &tunnel(&lab, "spare", spare, lab.echo_addr(), "")
        + &tunnel(&lab, "off", own_address(), lab.echo_addr(), "enabled = false");
    let daemon = Daemon::start(address, &tunnel(&lab, "echo", address, lab.echo_addr(), ""));
    daemon.event("ready").await;
    std::fs::write(daemon.folder.path().join("config.toml"), config).unwrap();
    let said = daemon.say(&["status"]).await;
    assert_eq!(said.code, 69, "{}{}", said.out, said.err);
    assert!(said.out.contains("spare   not running"), "{}", said.out);
    assert!(said.out.contains("systemctl start autossm@spare") && !said.out.contains("off"), "{}", said.out);
    let json = daemon.say(&["status", "--json"]).await.json();
    let states: Vec<_> = json.as_array().unwrap().iter().map(|t| (&t["name"], &t["state"])).collect();
    assert_eq!(states, [(&"echo".into(), &"up".into()), (&"spare".into(), &"stopped".into())]);

    for arguments in [&["status", "spare"][..], &["rotate", "spare"], &["events", "spare"]] {
        let said = daemon.say(arguments).await;
        assert_eq!(said.code, 69, "{arguments:?}: {}", said.err);
        assert!(said.err.contains("not running; start it: systemctl start autossm@spare"), "{}", said.err);
    }
    let said = daemon.say(&["drain", "spar"]).await;
    assert_eq!(said.code, 78, "{}", said.err);
    assert!(said.err.contains("did you mean `spare`"), "{}", said.err);

    // Killed, it leaves its socket behind; the next daemon binds over it.
    let folder = daemon.folder.clone();
    let plugins = daemon.plugins();
    let socket = folder.path().join("run/echo/control.sock");
    drop(daemon);
    for plugin in plugins {
        let _ = kill(plugin, Signal::SIGKILL);
    }
    until("a socket that nobody listens on", || std::os::unix::net::UnixStream::connect(&socket).err()).await;
    let said = say(folder.path(), &["status", "echo"]).await;
    assert_eq!(said.code, 69);
    assert!(said.err.contains("left by a daemon that was killed"), "{}", said.err);
    let daemon = Daemon::start_in(folder, address, &tunnel(&lab, "echo", address, lab.echo_addr(), ""));
    daemon.event("ready").await;
    assert_eq!(daemon.say(&["status", "echo"]).await.code, 0);
    daemon.event("leftover").await;
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_fails_no_connection_and_an_open_one_goes_on() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let daemon = Daemon::echo(&lab, "").await;
    let mut long = TcpStream::connect(daemon.address).await.unwrap();
    assert!(echoes(&mut long).await);
    let load = Load::start(daemon.address, 20);
    for round in 2..5 {
        let said = daemon.say(&["rotate", "echo"]).await;
        assert_eq!(
            (said.code, said.out.as_str()),
            (0, "echo: replacing the session; open connections go on\n")
        );
        daemon.event_times("ready", round).await;
        assert!(echoes(&mut long).await, "round {round}");
        until("connections of each round", || (load.seen().attempts.len() > 5 * round).then_some(())).await;
    }
    let seen = load.finish().await;
    assert!(seen.attempts.len() > 10 && seen.failures().count() == 0, "{} failed", seen.failures().count());
    let requested = daemon.event("requested").await;
    assert!(
        requested.field("command") == "rotate" && !requested.field("by").is_empty(),
        "{}",
        requested.text
    );
    drop(long);
    daemon.status("the others are gone", |status| status["sessions"].as_array().unwrap().len() == 1).await;
    let status = daemon.status("counted", |status| status["metrics"]["session_ends"]["replaced"] == 3).await;
    assert_eq!(status["connections"]["failed"], 0);
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_keeps_the_port_and_begins_anew() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let daemon = Daemon::echo(&lab, "").await;
    let first = lab.sessions()[0].clone();
    let mut open = TcpStream::connect(daemon.address).await.unwrap();
    assert!(echoes(&mut open).await);
    let said = daemon.say(&["restart", "echo", "--json"]).await;
    assert_eq!((said.code, &said.json()["done"]), (0, &true.into()));
    // At once, and it is let in at once: the port was never away.
    let mut next = TcpStream::connect(daemon.address).await.unwrap();
    assert!(echoes(&mut next).await);
    assert!(!echoes(&mut open).await, "what was open is cut");
    assert!(!lab.sessions().contains(&first));
    let status = daemon.status("counted", |status| status["metrics"]["session_ends"]["requested"] == 1).await;
    assert_eq!((&status["connections"]["cut"], &status["state"]), (&1.into(), &"up".into()));
    drop((open, next));
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_drained_tunnel_wait_and_open_connections_go_on() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let daemon = Daemon::echo(&lab, "").await;
    let mut open = TcpStream::connect(daemon.address).await.unwrap();
    assert!(echoes(&mut open).await);
    let said = daemon.say(&["drain", "echo"]).await;
    assert_eq!(
        (said.code, said.out.as_str()),
        (0, "echo: new clients wait up to 30s; open connections go on\n")
    );
    let held = TcpStream::connect(daemon.address).await.unwrap();
    let status = daemon.status("one is held", |status| status["connections"]["held"] == 1).await;
    assert_eq!((&status["state"], &status["draining"]), (&"draining".into(), &true.into()));
    assert!(echoes(&mut open).await, "it goes on");
    let table = daemon.say(&["status"]).await;
    assert_eq!(table.code, 1);
    assert!(table.out.contains("clients are held until: autossm resume echo"), "{}", table.out);
    let waited = daemon.say(&["wait", "echo", "--timeout", "0s"]).await;
    assert_eq!(waited.code, 1);
    assert!(waited.err.contains("echo: not up after 0s: draining"), "{}", waited.err);

    assert_eq!(daemon.say(&["resume", "echo"]).await.code, 0);
    let mut held = held;
    assert!(echoes(&mut held).await, "and whoever waited is served");
    assert_eq!(daemon.say(&["wait", "echo"]).await.code, 0);
    let status = daemon.status("up", |status| status["state"] == "up").await;
    assert_eq!(status["metrics"]["hold_seconds"]["sum"].as_f64().map(|sum| sum > 0.0), Some(true));
    drop((open, held));
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wait_waits_for_a_daemon_that_is_yet_to_come() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let folder = std::sync::Arc::new(tempfile::Builder::new().prefix("e2e-").tempdir_in("/tmp").unwrap());
    let address = own_address();
    let config = tunnel(&lab, "echo", address, lab.echo_addr(), "");
    std::fs::write(folder.path().join("config.toml"), &config).unwrap();
    let too_short = say(folder.path(), &["wait", "echo", "--timeout", "300ms"]).await;
    assert_eq!(too_short.code, 1);
    assert!(
        too_short.err.contains("echo: not up after") && too_short.err.contains("not running"),
        "{}",
        too_short.err
    );
    let json = say(folder.path(), &["wait", "echo", "--timeout", "0s", "--json"]).await;
    assert_eq!((json.code, &json.json()["state"]), (1, &"stopped".into()));
    assert!(json.json()["error"].as_str().unwrap().starts_with("not running"), "{}", json.out);
    let unknown = say(folder.path(), &["wait", "ecko", "--json"]).await;
    assert!(unknown.json()["error"].as_str().unwrap().contains("did you mean"), "{}", unknown.out);
    assert_eq!(unknown.code, 78, "{}", unknown.err);

    let mut waiting =
        command(folder.path(), &["wait", "echo", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let daemon = Daemon::start_in(folder, address, &config);
    let mut out = String::new();
    waiting.stdout.take().unwrap().read_to_string(&mut out).await.unwrap();
    assert!(waiting.wait().await.unwrap().success());
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["state"], "up");
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_that_cannot_come_up_says_what_it_waits_for() {
    let lab = Lab::start(Options::default()).await.unwrap();
    lab.set(Fault::Api(Call::Start, ApiFault::TargetNotConnected));
    let address = own_address();
    let daemon = Daemon::start(address, &tunnel(&lab, "echo", address, lab.echo_addr(), ""));
    let status = daemon.status("it waits", |status| status["state"] == "waiting").await;
    assert_eq!(status["failure"]["class"], "target_not_connected", "{status:#}");
    assert_eq!(status["next"]["what"], "start");
    let said = daemon.status("said", |_| true).await;
    drop(said);
    let text = until_text(&daemon, "next try in ").await;
    assert!(text.contains("target not connected: "), "{text}");
    daemon.stop(&lab).await;
}

/// An outage of a weekend must not fill the record, nor hide in it when it began.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_that_fail_alike_are_one_outage_since_its_beginning() {
    let lab = Lab::start(Options::default()).await.unwrap();
    lab.set(Fault::Api(Call::Start, ApiFault::Internal));
    let address = own_address();
    let daemon = Daemon::start(address, &tunnel(&lab, "echo", address, lab.echo_addr(), ""));
    daemon.event("failed").await;
    let first = daemon.status("it waits", |status| status["state"] == "waiting").await;
    daemon.event_times("failed", 5).await;
    let later = daemon.status("it waits again", |status| status["state"] == "waiting").await;
    assert_eq!(later["since"], first["since"], "{later:#}");
    assert!(later["failed_attempts"].as_u64().unwrap() >= 5, "{later:#}");
    let why = daemon.say(&["why", "echo"]).await;
    assert!(why.out.contains(" attempts to have a session failed, the first at "), "{}", why.out);
    let detail = until_text(&daemon, "echo · waiting for").await;
    assert!(!detail.contains("waiting for 0s"), "{detail}");

    lab.clear_all();
    let ready = daemon.event("ready").await;
    let attempts = daemon.events("failed").len();
    let loud = daemon.events("failed").iter().filter(|line| line.fields["level"] != "DEBUG").count();
    assert_eq!((loud, ready.number("repeated")), (1, attempts as u64 - 1), "{}", ready.text);
    daemon.status("up", |status| status["state"] == "up").await;
    let said = daemon.say(&["events", "echo", "--json"]).await;
    let told: Vec<Value> = said.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let count = |word: &str| told.iter().filter(|event| event["event"] == word).count();
    assert_eq!(count("failed"), 1, "{}", said.out);
    let states = told.iter().filter(|event| event["event"] == "state");
    let states: Vec<_> = states.map(|event| event["fields"]["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["starting", "waiting", "up"]);
    let up = told.iter().rfind(|event| event["event"] == "state").unwrap();
    assert!(up["duration_ms"].as_u64().unwrap() > 1000 && up["fields"]["was"] == "waiting", "{up}");
    let why = daemon.say(&["why", "echo"]).await;
    assert!(why.out.contains(&format!("{attempts} attempts to have a session failed")), "{}", why.out);
    daemon.stop(&lab).await;
}

async fn until_text(daemon: &Daemon, part: &str) -> String {
    let began = Instant::now();
    loop {
        let said = daemon.say(&["status", "echo"]).await;
        if said.out.contains(part) {
            return said.out;
        }
        assert!(began.elapsed() < PATIENCE, "never said: {part}\n{}", said.out);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_outlive_the_daemon_and_can_be_followed() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let address = own_address();
    let config = tunnel(&lab, "echo", address, lab.echo_addr(), "");
    let daemon = Daemon::start(address, &config);
    daemon.event("ready").await;
    let folder = daemon.folder.clone();
    daemon.stop(&lab).await;

    let daemon = Daemon::start_in(folder, address, &config);
    daemon.event("ready").await;
    let words = async || {
        let said = daemon.say(&["events", "echo", "--json"]).await;
        assert_eq!(said.code, 0, "{}", said.err);
        let events: Vec<Value> = said.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let numbers: Vec<_> = events.iter().map(|event| event["seq"].as_u64().unwrap()).collect();
        assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{numbers:?}");
        events.iter().map(|event| event["event"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let told = words().await;
    let count = |word: &str| told.iter().filter(|told| *told == word).count();
    assert_eq!((count("begun"), count("ready"), count("stopped")), (2, 2, 1), "{told:?}");
    assert!(count("state") >= 3 && count("listening") == 2, "{told:?}");

    let mut follower = command(daemon.folder.path(), &["events", "-f"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    // It shows the last ones first; what was seen of them is not told again.
    let ready = lab.sessions()[0].clone();
    let mut next =
        async || tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap();
    while !next().await.contains(&format!("({ready})")) {}
    lab.close_all(1000, "Bye");
    let mut seen = Vec::new();
    while !seen.last().is_some_and(|line: &String| line.contains("resumed after")) {
        seen.push(next().await);
    }
    assert!(seen.iter().any(|line| line.contains(" INFO echo: interrupted (code 1000: Bye)")), "{seen:#?}");
    assert_eq!(words().await.iter().filter(|word| *word == "resumed").count(), 1);
    let recent = daemon.say(&["events", "echo", "--since", "1h", "-n", "1"]).await;
    assert_eq!(recent.out.lines().count(), 1, "{}", recent.out);
    let status = daemon.status("counted", |status| status["resumes"]["last_day"] == 1).await;
    assert_eq!(status["metrics"]["stream_closes"]["1000"], 1);
    assert_eq!(status["metrics"]["resumes"]["ok"], 1);
    assert_eq!(status["sessions"][0]["resumes"], 1);

    // It waits for the next daemon, and shows what that one does: nothing twice, and nothing left out.
    let folder = daemon.folder.clone();
    daemon.stop(&lab).await;
    let mut said = BufReader::new(follower.stderr.take().unwrap()).lines();
    let said = tokio::time::timeout(PATIENCE, said.next_line()).await.unwrap().unwrap().unwrap();
    assert_eq!(said, "autossm: echo: its daemon has ended; waiting for it to come back");
    // What is stopped has its record.
    let state = folder.path().join("state").display().to_string();
    let stopped = say(folder.path(), &["events", "echo", "--state-dir", &state, "-n", "1"]).await;
    assert_eq!(stopped.code, 0, "{}", stopped.err);
    assert!(stopped.out.contains(" INFO stopped"), "{}", stopped.out);
    assert!(stopped.err.contains("echo: not running; start it"), "{}", stopped.err);
    let without = say(folder.path(), &["events", "echo"]).await;
    assert_eq!((without.code, without.out.as_str()), (69, ""), "{}", without.err);

    let further = tunnel(&lab, "further", own_address(), lab.echo_addr(), "");
    let daemon = Daemon::start_in(folder, address, &(config + &further));
    daemon.event_times("ready", 2).await;
    let ready = |name: &str, line: &str| line.contains(&format!(" INFO {name}: ready after"));
    let mut seen: Vec<String> = Vec::new();
    while !["echo", "further"].iter().all(|name| seen.iter().any(|line| ready(name, line))) {
        seen.push(next().await);
    }
    assert_eq!(seen.iter().filter(|line| line.contains(" INFO echo: stopped")).count(), 1, "{seen:#?}");
    assert_eq!(seen.iter().filter(|line| ready("echo", line)).count(), 1, "{seen:#?}");
    assert!(follower.try_wait().unwrap().is_none());
    follower.kill().await.unwrap();
    daemon.stop(&lab).await;
}

/// One process of the program reads the sockets of 200 tunnels at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures the program as it ships, which takes minutes to build; run with --ignored"]
async fn status_of_200_tunnels_takes_less_than_50_ms() {
    const TUNNELS: usize = 200;
    let program = crate::cost::shipped().await;
    let lab = Lab::start(Options::default()).await.unwrap();
    // Without a plugin: 200 of them would be the test's burden, not the daemon's.
    let one = |n| tunnel(&lab, &format!("number-{n}"), own_address(), lab.echo_addr(), "");
    let config: String = (0..TUNNELS).map(one).collect();
    let config = config.replace("plugin = \"", "plugin = \"/nonexistent");
    let daemon = Daemon::start_build(&program, own_address(), &config);
    daemon.event_times("failed", TUNNELS).await;
    assert_eq!(daemon.events("record_behind").len(), 0, "{}", daemon.tail());
    let mut times = Vec::new();
    for _ in 0..21 {
        let began = Instant::now();
        let output = Command::new(&program)
            .args(["status", "--json", "--runtime-dir"])
            .arg(daemon.folder.path().join("run"))
            .arg("--config")
            .arg(daemon.folder.path().join("config.toml"))
            .output()
            .await
            .unwrap();
        times.push(began.elapsed());
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        let waiting = json.as_array().unwrap().iter().filter(|tunnel| tunnel["state"] == "waiting").count();
        assert_eq!(waiting, TUNNELS);
    }
    times.sort_unstable();
    println!("status of {TUNNELS} tunnels: median {:?}, all {times:?}", times[times.len() / 2]);
    assert!(times[times.len() / 2] < Duration::from_millis(50));
    daemon.stop(&lab).await;
}
