//! `autossm drill`: a plugin killed on purpose, and what is measured of it.

use std::process::Stdio;

use autossm_lab::Lab;
use autossm_lab::load::Load;
use autossm_lab::options::Options;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::control::command;
use crate::daemon::{Daemon, PATIENCE, until};
use crate::terminal::Terminal;

const PROBE: &str = "[tunnel.probe]\nkind = \"custom\"\nsend = \"hello\"\nexpect = \"hello\"\n";

async fn open(daemon: &Daemon) -> TcpStream {
    let mut client = TcpStream::connect(daemon.address).await.unwrap();
    client.write_all(b"x").await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'x');
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_recovery_is_measured_as_a_client_meets_it() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let daemon = Daemon::echo(&lab, PROBE).await;
    let mut client = open(&daemon).await;
    let (session, plugin) = (lab.sessions()[0].clone(), daemon.plugin().await);

    // Nobody is there to be asked: nothing is done.
    let said = daemon.say(&["drill", "echo"]).await;
    assert_eq!(said.code, 2, "{}{}", said.out, said.err);
    assert!(said.err.contains("say --yes"), "{}", said.err);
    assert_eq!(daemon.plugins(), [plugin]);

    let load = Load::start(daemon.address, 20);
    until("load", || (load.seen().attempts.len() >= 20).then_some(())).await;
    let said = daemon.say(&["drill", "echo", "--yes", "--json"]).await;
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    let outcome = said.json();
    println!("{outcome:#}");
    assert_eq!(
        (outcome["session"].as_str(), outcome["plugin_pid"].as_i64()),
        (Some(&*session), Some(plugin.as_raw().into()))
    );
    assert_eq!(outcome["replacement"].as_str(), Some(&*lab.sessions()[0]));
    let ms = |name: &str| outcome[name].as_u64().unwrap_or_else(|| panic!("{name}: {outcome:#}"));
    assert!(ms("noticed_ms") <= ms("ready_ms") && ms("without_session_ms") <= ms("ready_ms"), "{outcome:#}");
    // Nobody is served before there is a session.
    assert!(ms("client_ms") >= ms("without_session_ms") && ms("cut") >= 1, "{outcome:#}");
    assert!(client.read_u8().await.is_err(), "it was cut");
    load.finish().await;

    let why = daemon.say(&["why", "echo"]).await;
    println!("{}", why.out);
    let first = why.out.lines().next().unwrap_or_default();
    assert!(
        first.contains("a drill, asked for by ") && first.contains("killed its plugin on purpose"),
        "{first}"
    );
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_pool_one_session_is_hit_and_the_others_serve() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let daemon = Daemon::echo(&lab, "sessions = 2").await;
    daemon.event_times("ready", 2).await;
    let mut client = open(&daemon).await;
    let before = daemon.plugins();
    let said = daemon.say(&["drill", "echo", "--yes"]).await;
    println!("{}", said.out);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    assert!(
        said.out.starts_with("echo served all the while; the session was replaced after "),
        "{}",
        said.out
    );
    assert!(said.out.contains("not measured: there is no [tunnel.probe]"), "{}", said.out);
    assert!(said.out.contains("connections  0 were cut"), "{}", said.out);
    // The one with fewer connections was hit: this one's lives.
    client.write_all(b"y").await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'y');
    let after = daemon.plugins();
    assert_eq!(after.iter().filter(|pid| before.contains(pid)).count(), 1, "{before:?} {after:?}");
    drop(client);
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_that_is_down_is_not_exercised() {
    use autossm_lab::fault::{ApiFault, Call, Fault};

    let lab = Lab::start(Options::default()).await.unwrap();
    lab.set(Fault::Api(Call::Start, ApiFault::Throttled));
    let address = crate::daemon::own_address();
    let daemon = Daemon::start(address, &crate::daemon::tunnel(&lab, "echo", address, lab.echo_addr(), ""));
    daemon.event("failed").await;
    let said = daemon.say(&["drill", "echo", "--yes"]).await;
    assert_eq!(said.code, 1, "{}", said.out);
    assert!(said.err.contains("cannot show how it comes back: autossm why echo"), "{}", said.err);
    daemon.stop(&lab).await;
}

/// A destination that does not answer is no reason for the tunnel not to be back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_degraded_tunnel_comes_back_as_it_was() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let probe = "[tunnel.probe]\nkind = \"custom\"\nsend = \"hello\"\nexpect = \"bye\"\ninterval = \"1s\"\ntimeout = \"1s\"\nfall = 1\n";
    let daemon = Daemon::echo(&lab, probe).await;
    daemon.event("degraded").await;
    let said = daemon.say(&["drill", "echo", "--yes", "--json", "--timeout", "10s"]).await;
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    let outcome = said.json();
    assert_eq!(outcome["back"], true, "{outcome:#}");
    assert!(outcome["without_session_ms"].is_u64(), "{outcome:#}");
    assert!(outcome["client"].as_str().unwrap().contains("did not answer before"), "{outcome:#}");
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_sits_at_a_terminal_is_asked() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let daemon = Daemon::echo(&lab, "").await;
    let client = open(&daemon).await;
    let (session, plugin) = (lab.sessions()[0].clone(), daemon.plugin().await);
    for (answer, code) in [("\n", 2), ("no\n", 2), ("maybe\n", 2), ("\u{4}", 2), ("Yes\n", 0)] {
        assert_eq!(daemon.plugins(), [plugin], "before {answer:?}");
        let mut terminal = Terminal::new(80);
        let mut drill = command(daemon.folder.path(), &["drill", "echo"]);
        let drill = drill.stdin(terminal.stdio()).stdout(Stdio::piped()).stderr(terminal.stdio());
        let drill = drill.spawn().unwrap();
        let asked = terminal.shows("the question", |text| text.ends_with("[y/N] ")).await;
        assert_eq!(
            asked,
            format!(
                "echo: kill the plugin of session {session} (pid {plugin})? Its 1 open connections will be cut; clients that \
                 come meanwhile wait. [y/N] "
            )
        );
        terminal.types(answer);
        let output = tokio::time::timeout(PATIENCE, drill.wait_with_output()).await.unwrap().unwrap();
        assert_eq!(output.status.code(), Some(code), "{answer:?}");
    }
    assert_ne!(daemon.plugin().await, plugin);
    drop(client);
    daemon.stop(&lab).await;
}
