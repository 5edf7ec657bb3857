//! What an operator meets at night: no permission, a daemon that hangs, a file with an error in it, a terminal.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use autossm_lab::Lab;
use autossm_lab::options::Options;
use nix::sys::signal::Signal;
use nix::unistd::geteuid;

use crate::control::{Said, command, say};
use crate::daemon::{Daemon, PROGRAM, own_address, tunnel};
use crate::terminal::Terminal;

/// What somebody is told who is neither root nor the daemon's user nor in its group.
async fn stranger_says(folder: &Path, arguments: &[&str]) -> Said {
    let socket = folder.join("run/echo/control.sock");
    if !geteuid().is_root() {
        // Only root can be somebody else; without permission on the file the own user is as good as one.
        std::fs::set_permissions(&socket, PermissionsExt::from_mode(0o000)).unwrap();
        return say(folder, arguments).await;
    }
    for open in [folder.to_owned(), folder.join("run"), folder.join("run/echo")] {
        std::fs::set_permissions(open, PermissionsExt::from_mode(0o755)).unwrap();
    }
    // The folder of the build need not be open to everybody.
    let program = folder.join("autossm");
    if !program.exists() {
        std::fs::copy(PROGRAM, &program).unwrap();
    }
    let mut stranger = tokio::process::Command::new(program);
    stranger.args(arguments).arg("--runtime-dir").arg(folder.join("run")).env_clear();
    stranger.arg("--config").arg(folder.join("config.toml")).uid(4242).gid(4242).current_dir("/");
    Said::of(stranger).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_that_runs_is_not_said_to_be_stopped_because_nobody_may_ask() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let daemon = Daemon::echo(&lab, "").await;
    let folder = daemon.folder.clone();
    let said = stranger_says(folder.path(), &["status"]).await;
    assert_eq!(said.code, 77, "{}{}", said.out, said.err);
    assert!(said.out.contains("echo    unknown") && !said.out.contains("not running"), "{}", said.out);
    assert!(said.out.contains("control.sock is not for you: ask as root, or as a member"), "{}", said.out);
    assert!(said.out.contains(&daemon.address.to_string()), "what the file says is known: {}", said.out);
    let json = stranger_says(folder.path(), &["status", "--json"]).await.json();
    assert_eq!(json[0]["state"], "unknown");
    assert!(json[0]["error"].as_str().unwrap().contains("not for you"), "{json:#}");
    assert!(json[0].get("since").is_none() && json[0].get("daemon").is_none(), "{json:#}");
    let said = stranger_says(folder.path(), &["events"]).await;
    assert_eq!((said.code, said.out.as_str()), (77, ""), "{}", said.err);
    for arguments in [&["wait", "echo"][..], &["drain", "echo"], &["events", "echo"], &["status", "echo"]] {
        let said = stranger_says(folder.path(), arguments).await;
        assert_eq!(said.code, 77, "{arguments:?}: {}{}", said.out, said.err);
        assert!(said.err.contains("echo: ") && said.err.contains("not for you"), "{}", said.err);
    }
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_does_not_answer_is_said_to_run() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let daemon = Daemon::echo(&lab, "").await;
    daemon.signal(Signal::SIGSTOP);
    let said = daemon.say(&["status"]).await;
    daemon.signal(Signal::SIGCONT);
    assert_eq!(said.code, 69, "{}{}", said.out, said.err);
    assert!(said.out.contains("echo    unknown") && !said.out.contains("not running"), "{}", said.out);
    assert!(said.out.contains("echo: no answer within 5 s"), "{}", said.out);
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_with_errors_is_said_and_nobody_is_told_to_start_it() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let daemon = Daemon::echo(&lab, "").await;
    let file = daemon.folder.path().join("config.toml");
    let good = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{good}regoin = 1\n")).unwrap();
    let line = good.lines().count() + 1;
    let wrong = format!("{}:{line}:1: unknown key `regoin`", file.display());
    let check = format!("autossm check --config {}", file.display());

    // What runs is shown all the same.
    let said = daemon.say(&["status"]).await;
    assert_eq!(said.code, 78, "{}{}", said.out, said.err);
    assert!(said.out.contains("echo    up"), "{}", said.out);
    assert!(said.err.contains(&wrong) && said.err.contains(&check), "{}", said.err);
    assert_eq!(daemon.say(&["status", "echo"]).await.code, 0, "this one is up");

    let folder = daemon.folder.clone();
    daemon.stop(&lab).await;
    for arguments in [&["status"][..], &["status", "--json"], &["status", "echo"], &["rotate", "echo"]] {
        let said = say(folder.path(), arguments).await;
        assert_eq!(said.code, 78, "{arguments:?}: {}{}", said.out, said.err);
        assert!(said.err.contains(&wrong) && said.err.contains(&check), "{arguments:?}: {}", said.err);
        assert!(!said.err.contains("start it"), "{}", said.err);
    }
    std::fs::write(&file, "# nothing yet\n").unwrap();
    let said = say(folder.path(), &["status"]).await;
    assert_eq!((said.code, said.err.as_str()), (0, ""));
    assert!(said.out.contains("has none"), "{}", said.out);
    std::fs::remove_file(&file).unwrap();
    let said = say(folder.path(), &["status"]).await;
    assert_eq!(said.code, 78);
    assert!(said.err.contains("no tunnel runs; ") && said.err.contains("no such file"), "{}", said.err);
    let said = say(folder.path(), &["status", "echo"]).await;
    assert_eq!(said.code, 69);
    assert!(said.err.contains("name it with --config"), "{}", said.err);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_watched_says_why_there_is_nothing_to_see() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let address = own_address();
    let folder = crate::daemon::folder();
    let config = tunnel(&lab, "echo", address, lab.echo_addr(), "");
    std::fs::write(folder.path().join("config.toml"), &config).unwrap();
    for arguments in [&["status", "echo", "--watch"][..], &["status", "--watch"]] {
        let terminal = Terminal::new(60);
        let mut watch = command(folder.path(), arguments);
        let mut watch = watch.stdout(terminal.stdio()).stderr(Stdio::null()).spawn().unwrap();
        let shown = terminal.shows("two looks", |text| text.matches("\x1b[2J").count() >= 2).await;
        let look = shown.split("\x1b[2J").nth(1).unwrap();
        assert!(look.contains("start it: systemctl start autossm@echo"), "{arguments:?}: {shown:?}");
        watch.kill().await.unwrap();
    }

    // And it goes on with the daemon that comes, in as many columns as there are.
    let terminal = Terminal::new(60);
    let mut watch = command(folder.path(), &["status", "--watch"]).stdout(terminal.stdio()).spawn().unwrap();
    let daemon = Daemon::start_in(folder, address, &config);
    let shown = terminal.shows("it is up", |text| text.contains("\x1b[32mup\x1b[0m")).await;
    let look = shown.rsplit("\x1b[2J").find(|look| look.contains("\x1b[32mup")).unwrap();
    assert!(look.contains("LISTEN") && !look.contains("CREDENTIALS"), "{look:?}");
    watch.kill().await.unwrap();
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_that_is_answered_is_told_too() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let probe =
        "[tunnel.probe]\nkind = \"custom\"\nsend = \"hello\"\nexpect = \"hello\"\ninterval = \"1s\"\n";
    let daemon = Daemon::echo(&lab, probe).await;
    let destination = |status: &serde_json::Value| status["destination"].clone();
    let first = daemon.status("it answers", |status| destination(status)["state"] == "up").await;
    let first = destination(&first);
    assert!(
        first["took_ms"].as_f64().is_some_and(|millis| millis > 0.0) && first["reason"].is_null(),
        "{first:#}"
    );
    let again = |status: &serde_json::Value| destination(status)["checked"] != first["checked"];
    let later = destination(&daemon.status("it is probed again", again).await);
    assert_eq!((&later["state"], &later["since"]), (&"up".into(), &first["since"]));
    let said = daemon.say(&["status", "echo"]).await;
    assert!(said.out.contains("  destination  up for ") && said.out.contains("; probed "), "{}", said.out);
    daemon.stop(&lab).await;
}

#[tokio::test]
async fn a_reply_that_is_not_understood_is_no_success() {
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

    let folder = crate::daemon::folder();
    std::fs::create_dir_all(folder.path().join("run/echo")).unwrap();
    let socket = folder.path().join("run/echo/control.sock");
    let listener = tokio::net::UnixListener::bind(socket).unwrap();
    let answers = tokio::spawn(async move {
        for _ in 0..2 {
            let mut client = BufReader::new(listener.accept().await.unwrap().0);
            client.read_line(&mut String::new()).await.unwrap();
            client.get_mut().write_all(b"{\"v\":1,\"reply\":\"end\"}\n").await.unwrap();
        }
    });
    let said = say(folder.path(), &["rotate", "echo"]).await;
    assert_eq!((said.code, said.out.as_str()), (71, ""), "{}", said.err);
    assert!(said.err.contains("echo: not understood: "), "{}", said.err);
    let json = say(folder.path(), &["rotate", "echo", "--json"]).await;
    assert_eq!((json.code, &json.json()["done"]), (71, &false.into()));
    answers.await.unwrap();
}
