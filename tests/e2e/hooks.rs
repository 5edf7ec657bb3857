//! Hooks: run for what has happened, and no harm to anybody whatever they do.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use autossm_lab::Lab;
use autossm_lab::fault::{ApiFault, Call, Fault};
use autossm_lab::load::Load;
use autossm_lab::options::Options;
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::process::Command;

use crate::daemon::{Daemon, PROGRAM, folder, own_address, tunnel, until};

/// A `[[hook]]` that runs a script of the shell.
fn hook(name: &str, events: &[&str], script: &str, keys: &str) -> String {
    format!(
        "[[hook]]\nname = \"{name}\"\nevents = {events:?}\ncommand = [\"/bin/sh\", \"-c\", '''{script}''']\n{keys}\n"
    )
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_is_told_what_it_asked_for_in_a_clean_environment() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let (address, folder) = (own_address(), folder());
    let told = folder.path().join("told");
    let environment = folder.path().join("environment");
    let asked = folder.path().join("asked");
    let config = tunnel(&lab, "echo", address, lab.echo_addr(), "")
        + &hook(
            "chat",
            &["ready", "stopping", "stopped"],
            &format!("cat >> {}; env > {}; echo a word; exit 0", told.display(), environment.display()),
            "tunnels = \"echo\"",
        )
        + &hook(
            "keys",
            &["ready"],
            &format!("env > {}", asked.display()),
            "environment = \"AWS_ACCESS_KEY_ID\"",
        );
    let daemon = Daemon::start_in(folder, address, &config);
    let ready = daemon.event("ready").await;
    until("told", || (!lines(&told).is_empty()).then_some(())).await;
    let event: Value = serde_json::from_str(&lines(&told)[0]).unwrap();
    assert_eq!((&event["v"], &event["hook"], &event["left_out"]), (&1.into(), &"chat".into(), &0.into()));
    assert_eq!((&event["event"], &event["tunnel"]), (&"ready".into(), &"echo".into()));
    assert_eq!(event["session"], ready.fields["session"]);
    assert!(event["at"].is_string() && event["message"].is_string(), "{event}");
    daemon
        .logged("its words", |log| log.iter().any(|line| line.text.contains("hook chat says: a word")))
        .await;
    // The script's end: what it prints is logged after it.
    let variables = lines(&environment);
    assert!(variables.contains(&"AUTOSSM_EVENT=ready".to_owned()), "{variables:?}");
    assert!(variables.contains(&"AUTOSSM_TUNNEL=echo".to_owned()), "{variables:?}");
    let known =
        ["PATH", "HOME", "LANG", "TZ", "PWD", "OLDPWD", "SHLVL", "_", "AUTOSSM_EVENT", "AUTOSSM_TUNNEL"];
    for variable in &variables {
        assert!(known.contains(&variable.split('=').next().unwrap()), "{variable}");
    }
    until("the other one", || {
        lines(&asked).iter().any(|line| line.starts_with("AWS_ACCESS_KEY_ID=")).then_some(())
    })
    .await;
    assert!(!lines(&asked).iter().any(|line| line.starts_with("AWS_SECRET_ACCESS_KEY=")));

    // The end is told too.
    let _folder = daemon.folder.clone();
    daemon.stop(&lab).await;
    let events: Vec<Value> = lines(&told).iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let words: Vec<_> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert!(words.starts_with(&["ready", "stopping"]) && words.ends_with(&["stopped"]), "{words:?}");
    assert!(events.iter().all(|event| event["tunnel"] == "echo"));
}

/// systemd starts the daemon again every second: nobody is to be told each time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_cannot_start_tells_of_it_once() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let (address, folder) = (own_address(), folder());
    let _held = std::net::TcpListener::bind(address).unwrap();
    let told = folder.path().join("told");
    let config = tunnel(&lab, "echo", address, lab.echo_addr(), "")
        + &hook("chat", &["bind_failed"], &format!("cat >> {}", told.display()), "");
    for _ in 0..3 {
        let mut daemon = Daemon::start_in(folder.clone(), address, &config);
        assert_eq!(daemon.exit().await.code(), Some(69));
        daemon.event("bind_failed").await;
    }
    let [line] = &lines(&told)[..] else { panic!("{:?}", lines(&told)) };
    let event: Value = serde_json::from_str(line).unwrap();
    assert_eq!((&event["event"], &event["tunnel"]), (&"bind_failed".into(), &"echo".into()));
    assert!(event["reason"].as_str().unwrap().contains("is in use by e2e"), "{line}");
}

/// Processes that have this in their environment.
fn marked(mark: &str) -> Vec<String> {
    let Ok(processes) = procfs::process::all_processes() else { return Vec::new() };
    processes
        .flatten()
        .filter(|process| process.environ().is_ok_and(|all| all.values().any(|value| value == mark)))
        .map(|process| format!("{} {:?}", process.pid, process.cmdline().unwrap_or_default()))
        .collect()
}

/// Each is two events of the kind that the hooks are for.
const ROUNDS: usize = 500;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hooks_that_hang_fail_or_flood_do_no_harm() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let (address, folder) = (own_address(), folder());
    let told = folder.path().join("told");
    let mark = folder.path().display().to_string();
    let events = ["requested"];
    let keys = |timeout: &str| {
        format!(
            "timeout = \"{timeout}\"\nmin_interval = \"0s\"\nburst = 2\nenvironment = \"AUTOSSM_TEST_MARK\""
        )
    };
    let config = tunnel(&lab, "echo", address, lab.echo_addr(), "")
        + &hook("good", &events, &format!("cat >> {}", told.display()), &keys("10s"))
        + &hook("hangs", &events, "trap \"\" TERM INT; sleep 1000 & sleep 1000", &keys("1s"))
        + &hook("hangs-for-long", &events, "sleep 1000 & sleep 1000", &keys("5m"))
        + &hook("fails", &events, "exit 3", &keys("10s"))
        + &hook("prints", &events, "exec yes", &keys("10s"))
        + &hook("leaves-one-behind", &events, "sleep 1000 & exit 0", &keys("10s"))
        + &hook("x", &events, "", &keys("10s")).replace("/bin/sh", "/nonexistent/hook");
    let mut command = Command::new(PROGRAM);
    command.env_clear().env("AUTOSSM_TEST_MARK", &mark);
    let daemon = Daemon::start_by(command, folder, address, &config);
    daemon.event("ready").await;

    let load = Load::start(address, 20);
    let socket = UnixStream::connect(daemon.folder.path().join("run/echo/control.sock")).await.unwrap();
    let (reader, mut writer) = socket.into_split();
    let mut replies = BufReader::new(reader).lines();
    let mut ask = async |request: &str| {
        let line = format!("{{\"v\":1,\"request\":\"{request}\"}}\n");
        writer.write_all(line.as_bytes()).await.unwrap();
        let reply = replies.next_line().await.unwrap().unwrap();
        assert!(reply.contains("\"done\""), "{reply}");
    };
    for _ in 0..ROUNDS {
        ask("drain").await;
        ask("resume").await;
    }
    // And some more while those of the flood still run, at a pace at which clients are served in between.
    for _ in 0..20 {
        ask("resume").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    daemon.event_times("hook_failed", 4).await;
    for (hook, reason) in [
        ("hangs", "not done within 1s, killed"),
        ("fails", "exit status: 3"),
        ("prints", "printed more than 64 KiB, killed"),
        ("x", "there is no /nonexistent/hook"),
    ] {
        let said = |line: &&std::sync::Arc<crate::daemon::Line>| line.field("hook") == hook;
        let failed = daemon.events("hook_failed");
        let failed: Vec<_> = failed.iter().filter(said).collect();
        // Once a minute, however often it fails.
        assert!((1..=2).contains(&failed.len()), "{hook}: {failed:?}\n{}", daemon.tail());
        assert!(failed[0].field("reason").starts_with(reason), "{}", failed[0].text);
    }
    let behind = daemon.events("hook_behind");
    assert!(behind.iter().any(|line| line.field("hook") == "hangs"), "{behind:?}");
    let seen = load.finish().await;
    assert!(seen.attempts.len() > 20 && seen.failures().count() == 0, "{} failed", seen.failures().count());

    // Whoever is well hears of everything, or of how much was left out.
    let sum = || -> u64 {
        let told = lines(&told);
        let left_out =
            |line: &String| serde_json::from_str::<Value>(line).unwrap()["left_out"].as_u64().unwrap();
        told.iter().map(left_out).sum::<u64>() + told.len() as u64
    };
    until("all is told", || (sum() == 2 * ROUNDS as u64 + 20).then_some(())).await;
    assert!(!marked(&mark).is_empty(), "two of them hang");
    let began = Instant::now();
    daemon.stop(&lab).await;
    println!(
        "{} connections, none failed; stopped in {:?} with a hook that hangs",
        seen.attempts.len(),
        began.elapsed()
    );
    assert_eq!(marked(&mark), [] as [String; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_takes_on_hooks_and_leaves_them_off() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let address = own_address();
    let without = tunnel(&lab, "echo", address, lab.echo_addr(), "");
    let daemon = Daemon::start(address, &without);
    daemon.event("ready").await;
    let told = daemon.folder.path().join("told");
    let with = |name: &str| {
        without.clone()
            + &hook(name, &["reloaded"], &format!("cat >> {}", told.display()), "min_interval = \"0s\"")
    };
    let mut reloads = 0;
    let mut reload = async |config: String| {
        reloads += 1;
        fs::write(daemon.folder.path().join("config.toml"), config).unwrap();
        daemon.signal(Signal::SIGHUP);
        daemon.event_times("reloaded", reloads).await;
    };
    reload(with("first")).await;
    until("the new one is run", || (lines(&told).len() == 1).then_some(())).await;
    reload(with("first")).await;
    until("and again", || (lines(&told).len() == 2).then_some(())).await;
    reload(without.clone()).await;
    reload(with("second")).await;
    until("another one", || (lines(&told).len() == 3).then_some(())).await;
    assert!(lines(&told)[2].contains("\"hook\":\"second\""), "{:?}", lines(&told));
    // A file with a wrong hook is refused, and the old one stays.
    fs::write(daemon.folder.path().join("config.toml"), with("second").replace("reloaded", "reloadet"))
        .unwrap();
    daemon.signal(Signal::SIGHUP);
    let refused = daemon.event("reload_refused").await;
    assert!(refused.text.contains("hook.events: `reloadet` is no event"), "{}", refused.text);
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_is_told_once_and_so_is_its_end() {
    let lab = Arc::new(Lab::start(Options::default()).await.unwrap());
    let (address, folder) = (own_address(), folder());
    let told = folder.path().join("told");
    let config = tunnel(&lab, "echo", address, lab.echo_addr(), "")
        + &hook("chat", &["down", "back"], &format!("cat >> {}", told.display()), "");
    let daemon = Daemon::start_in(folder, address, &config);
    daemon.event("ready").await;
    lab.close_all(1000, "Bye");
    daemon.event("resumed").await;

    lab.set(Fault::Api(Call::Start, ApiFault::TargetNotConnected));
    lab.terminate_all("Session terminated by an administrator");
    daemon.event_times("failed", 3).await;
    daemon.event("down").await;
    until("down", || (!lines(&told).is_empty()).then_some(())).await;
    lab.clear_all();
    daemon.event("back").await;
    until("back", || (lines(&told).len() > 1).then_some(())).await;
    let events: Vec<Value> = lines(&told).iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let words: Vec<_> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(words, ["down", "back"], "neither the close nor each attempt");
    let (down, back) = (&events[0], &events[1]);
    assert!(down["reason"].as_str().unwrap().contains("not connected"), "{down}");
    assert!(down["duration_ms"].as_u64().unwrap() >= 5000, "{down}");
    assert!(back["duration_ms"].as_u64() > down["duration_ms"].as_u64(), "{back}");
    daemon.stop(&lab).await;
}
