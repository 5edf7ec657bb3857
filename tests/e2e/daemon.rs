//! `autossm run` as an operator runs it: the built program, a configuration file, a clean folder. Whatever it starts
//! ends with the test.

use std::collections::HashSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant, SystemTime};

use autossm_lab::Lab;
use autossm_lab::standin::version::{NEW_LINE, OLD_LINE, named};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

/// Longer than anything here takes on a slow machine; only a test that fails waits for it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A running daemon.
pub struct Daemon {
    child: Child,
    pub folder: Arc<tempfile::TempDir>,
    /// Every line of its log so far.
    log: watch::Receiver<Vec<Arc<Line>>>,
    /// Of its first tunnel.
    pub address: SocketAddr,
}

/// One line of the daemon's JSON log.
#[derive(Debug)]
pub struct Line {
    pub at: SystemTime,
    pub text: String,
    pub fields: Value,
}

impl Line {
    /// A field of the log line.
    pub fn field(&self, name: &str) -> &str {
        self.fields[name].as_str().unwrap_or_default()
    }

    pub fn number(&self, name: &str) -> u64 {
        self.fields[name].as_u64().unwrap_or_default()
    }
}

/// An address that no other test uses, here or in another process: all of 127/8 is loopback, so that no port has to be
/// given up and found again.
pub fn own_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    // Some tests have hundreds.
    let [round, next] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(127, 64 | high, low, next), 15432 + u16::from(round)))
}

/// The plugin that the suite runs with: the stock one where the environment names it, else the stand-in, of the version that
/// the environment names or of the old line.
pub fn plugin() -> PathBuf {
    chosen_plugin().unwrap_or_else(|| standin(OLD_LINE))
}

/// The plugins that the tests of what a version changes run with: both lines of the stand-in, where the environment chooses
/// none.
pub fn plugins() -> Vec<PathBuf> {
    chosen_plugin().map_or_else(|| vec![standin(OLD_LINE), standin(NEW_LINE)], |plugin| vec![plugin])
}

fn chosen_plugin() -> Option<PathBuf> {
    let stock = std::env::var_os("AUTOSSM_TEST_PLUGIN").map(PathBuf::from);
    stock.or_else(|| std::env::var("AUTOSSM_TEST_PLUGIN_LINE").ok().map(|version| standin(&version)))
}

/// A plugin that says what a build of the public source says.
pub fn plugin_from_source() -> PathBuf {
    const VERSION: &str = "1.2.0.0";
    let says_so = |plugin: &PathBuf| {
        let said = std::process::Command::new(plugin).arg("--version").output().unwrap().stdout;
        String::from_utf8_lossy(&said).trim() == VERSION
    };
    chosen_plugin().filter(says_so).unwrap_or_else(|| standin(VERSION))
}

fn standin(version: &str) -> PathBuf {
    let program = std::env::current_exe().expect("this test has a path");
    let folder = program.parent().and_then(Path::parent).expect("target/PROFILE/deps");
    let standin = folder.join("standin-plugin");
    assert!(standin.exists(), "{} is missing: run `cargo test --workspace`", standin.display());
    named(&standin, version).expect("a name beside it")
}

/// One tunnel to `destination` through `lab`, with further keys.
pub fn tunnel(lab: &Lab, name: &str, address: SocketAddr, destination: SocketAddr, keys: &str) -> String {
    tunnel_by(&plugin(), lab, name, address, destination, keys)
}

/// The same by this plugin.
pub fn tunnel_by(
    plugin: &Path,
    lab: &Lab,
    name: &str,
    address: SocketAddr,
    destination: SocketAddr,
    keys: &str,
) -> String {
    format!(
        "[[tunnel]]\nname = \"{name}\"\nlisten = \"{address}\"\ntarget = \"i-0123456789abcdef0\"\n\
         remote_host = \"{}\"\nremote_port = {}\nregion = \"us-west-2\"\nendpoint_url = \"{}\"\n\
         stream_endpoint = \"{}\"\nplugin = \"{}\"\n{keys}\n",
        destination.ip(),
        destination.port(),
        lab.api_url(),
        lab.stream_endpoint_ws(),
        plugin.display(),
    )
}

impl Daemon {
    /// Starts a daemon with one tunnel to the lab's echo server and waits until it is up.
    pub async fn echo(lab: &Lab, keys: &str) -> Self {
        let address = own_address();
        let daemon = Self::start(address, &tunnel(lab, "echo", address, lab.echo_addr(), keys));
        daemon.event("ready").await;
        daemon
    }

    /// Starts a daemon with this configuration.
    pub fn start(address: SocketAddr, config: &str) -> Self {
        Self::start_in(folder(), address, config)
    }

    /// Starts a daemon in a folder that another one may have left.
    pub fn start_in(folder: Arc<tempfile::TempDir>, address: SocketAddr, config: &str) -> Self {
        let mut program = Command::new(PROGRAM);
        program.env_clear();
        Self::start_by(program, folder, address, config)
    }

    /// Starts a daemon by a command that its own arguments are added to.
    pub fn start_by(
        mut command: Command,
        folder: Arc<tempfile::TempDir>,
        address: SocketAddr,
        config: &str,
    ) -> Self {
        // What a host's environment may hold and the plugin must not inherit.
        command
            .env("AWS_CA_BUNDLE", "/nonexistent/bundle.pem")
            .env("SSL_CERT_FILE", "/nonexistent/certificates.pem")
            .env("HTTPS_PROXY", "http://127.0.0.1:1");
        Self::spawn(command, folder, "trace", address, config)
    }

    /// The same without keys in its environment.
    pub fn start_by_role(
        mut command: Command,
        folder: Arc<tempfile::TempDir>,
        address: SocketAddr,
        config: &str,
    ) -> Self {
        command.env("AWS_ACCESS_KEY_ID", "").env("AWS_SECRET_ACCESS_KEY", "");
        Self::start_by(command, folder, address, config)
    }

    /// Starts a daemon by a command whose environment says all of the way out.
    pub fn start_with(command: Command, address: SocketAddr, config: &str) -> Self {
        Self::spawn(command, folder(), "trace", address, config)
    }

    /// Starts another build of the program, with the log and the certificates that an operator has.
    pub fn start_build(program: &Path, address: SocketAddr, config: &str) -> Self {
        let mut command = Command::new(program);
        command.env_clear();
        Self::spawn(command, folder(), "info", address, config)
    }

    /// Runs a command that its own arguments are added to.
    pub fn spawn(
        mut command: Command,
        folder: Arc<tempfile::TempDir>,
        log_level: &str,
        address: SocketAddr,
        config: &str,
    ) -> Self {
        std::fs::write(folder.path().join("config.toml"), config).unwrap();
        if !command.as_std().get_envs().any(|(name, _)| name == "AWS_ACCESS_KEY_ID") {
            command.env("AWS_ACCESS_KEY_ID", "AKIDTESTTESTTESTTEST").env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
        }
        let mut child = command
            .args(["run", "--log-format", "json", "--log-level", log_level, "--config"])
            .arg(folder.path().join("config.toml"))
            .arg("--runtime-dir")
            .arg(folder.path().join("run"))
            .arg("--state-dir")
            .arg(folder.path().join("state"))
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (sender, log) = watch::channel(Vec::new());
        tokio::spawn(async move {
            while let Ok(Some(text)) = lines.next_line().await {
                let fields = serde_json::from_str(&text).unwrap_or(Value::Null);
                sender.send_modify(|log| log.push(Arc::new(Line { at: SystemTime::now(), text, fields })));
            }
        });
        Self { child, folder, log, address }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().expect("it runs").cast_signed())
    }

    /// All lines so far.
    pub fn log(&self) -> Vec<Arc<Line>> {
        self.log.borrow().clone()
    }

    /// The lines so far about this event.
    pub fn events(&self, event: &str) -> Vec<Arc<Line>> {
        self.log().into_iter().filter(|line| line.field("event") == event).collect()
    }

    /// Waits until this event was logged `count` times.
    pub async fn event_times(&self, event: &str, count: usize) -> Vec<Arc<Line>> {
        self.logged(&format!("{count} × {event}"), |log| {
            log.iter().filter(|line| line.field("event") == event).count() >= count
        })
        .await;
        self.events(event)
    }

    /// Waits until this event was logged.
    pub async fn event(&self, event: &str) -> Arc<Line> {
        self.event_times(event, 1).await.remove(0)
    }

    /// Waits for a state of the log.
    pub async fn logged(&self, what: &str, mut wanted: impl FnMut(&[Arc<Line>]) -> bool) {
        let mut log = self.log.clone();
        let waited = tokio::time::timeout(PATIENCE, log.wait_for(|log| wanted(log))).await;
        if !matches!(waited, Ok(Ok(_))) {
            panic!("never logged: {what}\n{}", self.tail());
        }
    }

    /// The last lines of the log that are worth reading.
    pub fn tail(&self) -> String {
        tail(&self.log())
    }

    /// The plugins that run below the daemon.
    pub fn plugins(&self) -> Vec<Pid> {
        children(self.pid())
    }

    /// Waits until there is one plugin, and says which.
    pub async fn plugin(&self) -> Pid {
        until("one plugin", || (self.plugins().len() == 1).then(|| self.plugins()[0])).await
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Waits for its end.
    pub async fn exit(&mut self) -> ExitStatus {
        match tokio::time::timeout(PATIENCE, self.child.wait()).await {
            Ok(status) => status.unwrap(),
            Err(_) => panic!("it does not end\n{}", self.tail()),
        }
    }

    /// Stops it as systemd would, and checks that it leaves nothing: no process, no socket file, no session.
    pub async fn stop(self, lab: &Lab) -> Vec<Arc<Line>> {
        let log = self.end().await;
        let sessions = lab.status().sessions;
        assert!(sessions.is_empty(), "at the service: {sessions:?}\n{}", tail(&log));
        assert_eq!(lab.status().violations, [] as [String; 0], "{}", tail(&log));
        log
    }

    /// The same, whatever there is at the service.
    pub async fn end(mut self) -> Vec<Arc<Line>> {
        let plugins: HashSet<_> = self.plugins().into_iter().collect();
        let began = Instant::now();
        self.signal(Signal::SIGTERM);
        let status = self.exit().await;
        assert!(status.success(), "{status}\n{}", self.tail());
        assert!(began.elapsed() < Duration::from_secs(15), "stopping took {:?}", began.elapsed());
        for plugin in plugins {
            assert!(kill(plugin, None).is_err(), "the plugin {plugin} is still there");
        }
        let mut left = files(&self.folder.path().join("run")).unwrap();
        // The record of events stays; that of sessions at the service must be empty.
        left.extend(files(&self.folder.path().join("state")).unwrap());
        left.retain(|path| path.extension().is_none_or(|extension| extension != "jsonl"));
        assert!(left.is_empty(), "left behind: {left:?}");
        // All of its log has been read when its pipe is closed.
        while self.log.changed().await.is_ok() {}
        self.log()
    }
}

/// A test that fails leaves nothing behind either: the plugins would outlive a daemon that is killed.
impl Drop for Daemon {
    fn drop(&mut self) {
        let Some(id) = self.child.id() else { return };
        let plugins = children(Pid::from_raw(id.cast_signed()));
        let _ = self.child.start_kill();
        for plugin in plugins {
            let _ = kill(plugin, Signal::SIGKILL);
        }
    }
}

fn tail(log: &[Arc<Line>]) -> String {
    let lines: Vec<_> =
        log.iter().filter(|line| line.fields["level"] != "TRACE").map(|line| &*line.text).collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

/// The daemon.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_autossm");

/// Under /tmp itself: the path of the plugin's socket must fit into 107 bytes.
pub fn folder() -> Arc<tempfile::TempDir> {
    Arc::new(tempfile::Builder::new().prefix("e2e-").tempdir_in("/tmp").unwrap())
}

/// The daemon's secret key, to be searched for.
pub const SECRET_KEY: &str = "s3cr3t-k3y-of-the-test-never-to-be-seen";

/// Waits for a condition that nothing announces.
pub async fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(began.elapsed() < PATIENCE, "never came: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The processes whose parent this is.
pub fn children(parent: Pid) -> Vec<Pid> {
    let tasks = format!("/proc/{parent}/task");
    let Ok(tasks) = std::fs::read_dir(tasks) else { return Vec::new() };
    tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>())
        .map(Pid::from_raw)
        .collect()
}

/// Everything below a folder that is not itself a folder.
fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path())?);
        } else {
            found.push(entry.path());
        }
    }
    Ok(found)
}
