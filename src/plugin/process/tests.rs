//! Plugins of the tests' own, as shell scripts.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::time::Instant;

use super::*;
use crate::aws::api::StartedSession;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);
const TOKEN: &str = "TOKEN-0123456789";
const PROXY: &str = "http://user:PROXY-PASSWORD@127.0.0.1:4711";

/// A program in `folder` that does `lines`.
pub fn script(folder: &Path, lines: &str) -> PathBuf {
    let path = folder.join("plugin");
    std::fs::write(&path, format!("#!/bin/sh\n{lines}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Tries until the script is not "busy": a process that another test is just starting may hold it open for writing.
pub async fn started<T>(attempt: impl AsyncFn() -> Result<T, Failure>) -> Result<T, Failure> {
    loop {
        match attempt().await {
            Err(failure) if failure.text.contains("Text file busy") => tokio::task::yield_now().await,
            result => return result,
        }
    }
}

struct Plugin {
    running: Option<Running>,
    events: mpsc::Receiver<Event>,
    /// Where the plugin's folder is made.
    home: TempDir,
    _script: TempDir,
}

impl Plugin {
    async fn start(lines: &str) -> Self {
        Self::start_with(lines, 16).await
    }

    async fn start_with(lines: &str, capacity: usize) -> Self {
        let (script_dir, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let program = script(script_dir.path(), lines);
        let (sender, events) = mpsc::channel(capacity);
        let launch = async || super::launch(spec(program.clone(), home.path()), sender.clone());
        let running = Some(started(launch).await.unwrap());
        drop(sender);
        Self { running, events, home, _script: script_dir }
    }

    fn running(&self) -> &Running {
        self.running.as_ref().unwrap()
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.running().pid().try_into().unwrap())
    }

    async fn event(&mut self) -> Option<Event> {
        tokio::time::timeout(PATIENCE, self.events.recv()).await.expect("an event comes")
    }

    /// The next line that means nothing to the parser.
    async fn line(&mut self) -> String {
        match self.event().await {
            Some(Event::Output(Output::Unknown(line))) => line,
            other => panic!("{other:?}"),
        }
    }

    /// Waits for the end, and returns all events with it.
    async fn end(mut self) -> (Vec<Event>, Option<String>, ExitStatus) {
        let mut events = Vec::new();
        while let Some(event) = self.event().await {
            events.push(event);
        }
        let Some(Event::Exited { words, status: Some(status) }) = events.pop() else {
            panic!("Exited comes last: {events:?}")
        };
        assert!(!events.iter().any(|event| matches!(event, Event::Exited { .. })), "and once: {events:?}");
        assert_eq!(std::fs::read_dir(self.home.path()).unwrap().count(), 0, "the folder is gone");
        (events, words, status)
    }
}

fn spec(plugin: PathBuf, runtime_dir: &Path) -> Launch {
    Launch {
        plugin,
        tunnel: "billing-db".to_owned(),
        region: "eu-west-1".to_owned(),
        request: StartRequest {
            target: "i-1".to_owned(),
            document: "AWS-StartPortForwardingSession".to_owned(),
            parameters: [("portNumber".to_owned(), vec!["5432".to_owned()])].into(),
            reason: String::new(),
        },
        access: PluginAccess {
            environment: vec![("HTTPS_PROXY", PROXY.into()), ("AWS_EC2_METADATA_DISABLED", "true".into())],
            session: StartedSession {
                session_id: "s-1".to_owned(),
                token: TOKEN.into(),
                stream_url: "wss://stream/1".to_owned(),
            },
            api_endpoint: "https://ssm.eu-west-1.amazonaws.com".to_owned(),
            address: ([127, 0, 0, 1], 4711).into(),
        },
        runtime_dir: runtime_dir.to_owned(),
    }
}

fn is_there(pid: &str) -> bool {
    // A zombie whose parent has not looked yet is gone, too.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test]
async fn gets_its_arguments_and_a_clean_environment() {
    let plugin = Plugin::start(
        "for a in \"$@\"; do echo \"arg $a\"; done; tr '\\0' '\\n' < /proc/$$/environ | sed 's/^/env /'; ls -ld $TMPDIR",
    )
    .await;
    let home = plugin.home.path().to_owned();
    let (events, ..) = plugin.end().await;
    let lines: Vec<_> = events
        .iter()
        .map(|event| match event {
            Event::Output(Output::Unknown(line)) => line.clone(),
            other => panic!("{other:?}"),
        })
        .collect();
    let args: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix("arg")).map(str::trim).collect();
    let request = r#"{"DocumentName":"AWS-StartPortForwardingSession","Parameters":{"portNumber":["5432"]},"Target":"i-1"}"#;
    let endpoint = "https://ssm.eu-west-1.amazonaws.com";
    assert_eq!(args, [RESPONSE, "eu-west-1", "StartSession", "", request, endpoint]);

    let env: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix("env ")?.split_once('=')).collect();
    let mut names: Vec<_> =
        env.iter().map(|(name, _)| *name).filter(|name| !["LANG", "TZ"].contains(name)).collect();
    names.sort_unstable();
    assert_eq!(names, ["AWS_EC2_METADATA_DISABLED", RESPONSE, "HOME", "HTTPS_PROXY", "PATH", "TMPDIR"]);
    let value = |name: &str| env.iter().find(|(other, _)| *other == name).unwrap().1;
    assert_eq!(value("HOME"), value("TMPDIR"));
    assert_eq!(Path::new(value("HOME")).parent(), Some(&*home));
    // As it is logged: what is secret in it is not.
    assert_eq!(value("HTTPS_PROXY"), "[secret]");
    assert_eq!(
        value(RESPONSE),
        r#"{"SessionId":"s-1","StreamUrl":"wss://stream/1","TokenValue":"[secret]"}"#
    );
    assert!(lines.last().unwrap().starts_with("drwx------"), "{lines:?}");
}

#[tokio::test]
async fn the_token_is_not_among_its_arguments() {
    let mut plugin = Plugin::start("echo ready; exec sleep 600").await;
    assert_eq!(plugin.line().await, "ready");
    let arguments = std::fs::read(format!("/proc/{}/cmdline", plugin.pid())).unwrap();
    assert!(!String::from_utf8_lossy(&arguments).contains(TOKEN));
    plugin.running().kill();
    plugin.end().await;
}

#[tokio::test]
async fn tells_what_it_says_and_why_it_ends() {
    let plugin = Plugin::start(
        "printf 'Port 40'; printf '123 opened for sessionId s-1.\\nWaiting'; printf ' for connections...\\n'; \
         echo oops >&2; printf '\\n\\nSessionId: s-1 : it is over'",
    )
    .await;
    let (events, words, status) = plugin.end().await;
    for expected in [
        Output::PortOpened(40123),
        Output::Unknown("oops".to_owned()),
        Output::SessionClosed { reason: "it is over".to_owned() },
    ] {
        assert!(events.contains(&Event::Output(expected)), "{events:?}");
    }
    assert_eq!((words.as_deref(), status.success()), (Some("it is over"), true));

    let (_, words, _) = Plugin::start("echo one; echo two; exit 3").await.end().await;
    assert_eq!(words.as_deref(), Some("two"));
}

#[tokio::test]
async fn stops_at_sigint() {
    // The daemon has a handler for SIGINT, which programs that it starts do not inherit. A test that is run in the
    // background has it ignored, which they do.
    let _handler = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()).unwrap();
    // Nothing is forked after "ready": dash loses a signal that comes while it does.
    let mut plugin = Plugin::start(
        "sleep 600 &\ntrap 'echo Terminate signal received, exiting.; exit 0' INT\necho ready\nwait",
    )
    .await;
    assert_eq!(plugin.line().await, "ready");
    plugin.running().stop();
    plugin.running().stop();
    let (events, words, status) = plugin.end().await;
    assert_eq!(events, [Event::Output(Output::Terminating)], "{words:?}, {status}");
    assert_eq!((words.as_deref(), status.success()), (Some("terminate signal received"), true));
}

#[tokio::test]
async fn stops_at_sigterm_after_three_seconds() {
    let mut plugin = Plugin::start("trap '' INT\necho ready\nexec sleep 600").await;
    assert_eq!(plugin.line().await, "ready");
    let begun = Instant::now();
    plugin.running().stop();
    let (_, _, status) = plugin.end().await;
    assert_eq!(status.signal(), Some(Signal::SIGTERM as i32));
    assert!(begun.elapsed() >= AFTER_INT, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn stops_at_sigkill_after_five_seconds() {
    let mut plugin = Plugin::start("trap '' INT TERM\necho ready\nexec sleep 600").await;
    assert_eq!(plugin.line().await, "ready");
    let begun = Instant::now();
    plugin.running().stop();
    let (_, _, status) = plugin.end().await;
    assert_eq!(status.signal(), Some(Signal::SIGKILL as i32));
    assert!(begun.elapsed() >= AFTER_INT + AFTER_TERM, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn is_killed_at_once_even_while_it_is_stopping() {
    let mut plugin = Plugin::start("trap '' INT TERM\necho ready\nexec sleep 600").await;
    assert_eq!(plugin.line().await, "ready");
    let begun = Instant::now();
    plugin.running().stop();
    plugin.running().kill();
    plugin.running().stop();
    let (_, _, status) = plugin.end().await;
    assert_eq!(status.signal(), Some(Signal::SIGKILL as i32));
    assert!(begun.elapsed() < AFTER_INT, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn is_killed_when_it_is_dropped() {
    let mut plugin = Plugin::start("trap '' INT TERM\necho ready\nexec sleep 600").await;
    assert_eq!(plugin.line().await, "ready");
    plugin.running = None;
    let (_, _, status) = plugin.end().await;
    assert_eq!(status.signal(), Some(Signal::SIGKILL as i32));
}

#[tokio::test]
async fn what_it_started_ends_with_it() {
    for end in ["exit 0", "exec sleep 600"] {
        let mut plugin = Plugin::start(&format!("sleep 600 &\necho $!\n{end}")).await;
        let child = plugin.line().await;
        if end != "exit 0" {
            plugin.running().kill();
        }
        plugin.end().await;
        // The signal was sent before `Exited`; the child's own end may take a moment.
        let gone = async {
            while is_there(&child) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.expect("the child ends");
    }
}

#[tokio::test]
async fn its_folder_goes_with_the_socket_in_it() {
    let mut plugin = Plugin::start("echo $TMPDIR; exec sleep 600").await;
    let folder = plugin.line().await;
    let socket = Path::new(&folder).join("4294967295_session_manager_plugin_mux.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    plugin.running().kill();
    plugin.end().await;
    assert!(!Path::new(&folder).exists());
}

#[tokio::test]
async fn a_flood_does_not_block_it_when_nobody_listens() {
    // One place in the channel, and nobody takes anything from it until the plugin has written 4 MB and ended.
    let flood = "echo Port 4711 opened for sessionId s-1.\nyes 'flood flood flood flood' | head -c 4000000\n\
                 echo SessionId: s-1 : over\nmkdir \"${0%/*}/done\"";
    let plugin = Plugin::start_with(flood, 1).await;
    let done = plugin._script.path().join("done");
    let wait = async {
        while !done.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the plugin writes everything");
    let (events, words, _) = plugin.end().await;
    assert_eq!(events.first(), Some(&Event::Output(Output::PortOpened(4711))), "what matters is kept");
    assert!(events.len() <= WAITING + 2, "{}", events.len());
    assert_eq!(words.as_deref(), Some("over"));
}

#[tokio::test]
async fn a_stopped_one_is_noticed() {
    let mut plugin = Plugin::start("echo ready; exec sleep 600").await;
    assert_eq!(plugin.line().await, "ready");
    killpg(plugin.pid(), Signal::SIGSTOP).unwrap();
    assert_eq!(plugin.event().await, Some(Event::Stopped));
    plugin.running().kill();
    let (events, ..) = plugin.end().await;
    assert_eq!(events, []);
}

#[tokio::test]
async fn what_cannot_be_started_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let (sender, _events) = mpsc::channel(1);
    let missing =
        launch(spec(PathBuf::from("/nonexistent/plugin"), home.path()), sender.clone()).unwrap_err();
    assert_eq!(missing.class, Class::NeedsChange);
    assert!(missing.text.contains("/nonexistent/plugin cannot be started"), "{missing}");
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0, "the folder is gone");
    let nowhere = launch(spec(PathBuf::from("/bin/true"), Path::new("/nonexistent")), sender).unwrap_err();
    assert_eq!(nowhere.class, Class::NeedsChange);
}

#[test]
fn a_folder_too_long_for_its_socket_is_made_elsewhere() {
    let root = tempfile::tempdir().unwrap();
    let long = root.path().join("x".repeat(80));
    std::fs::create_dir(&long).unwrap();
    let folder = private_folder(&long).unwrap();
    assert_eq!(folder.path().parent(), Some(&*std::env::temp_dir()));
    let near = private_folder(root.path()).unwrap();
    assert_eq!(near.path().parent(), Some(root.path()));
    assert!(near.path().as_os_str().len() <= LONGEST_FOLDER);
}
