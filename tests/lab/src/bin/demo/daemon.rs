//! `autossm run` with one tunnel to the lab's echo server, and what it logs.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, ensure};
use autossm_lab::Lab;
use autossm_lab::load::SessionEnd;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// Stopping takes at most 15 s.
const STOPPING: Duration = Duration::from_secs(20);

/// A line of the story: when, by whom, and what.
#[derive(Clone)]
pub struct Line {
    pub at: Instant,
    pub by_autossm: bool,
    pub text: String,
}

#[derive(Default)]
struct Heard {
    lines: Vec<Line>,
    ends: Vec<SessionEnd>,
    /// Its standard error is closed: it has ended.
    over: bool,
}

/// The daemon.
pub struct Daemon {
    child: Child,
    heard: Arc<Mutex<Heard>>,
    pub address: SocketAddr,
    /// Holds its configuration and its sockets.
    _folder: TempDir,
}

impl Daemon {
    /// Starts it.
    pub async fn start(program: &Path, lab: &Lab, plugin: &Path) -> anyhow::Result<Self> {
        let folder = TempDir::with_prefix("demo-")?;
        let address = free_address()?;
        let file = folder.path().join("config.toml");
        std::fs::write(&file, config(lab, plugin, address))?;
        let mut child = Command::new(program)
            .args(["run", "--log-format", "json", "--config"])
            .arg(&file)
            .arg("--runtime-dir")
            .arg(folder.path().join("run"))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            // The lab wants a signature, and believes any.
            .env("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
            .env("AWS_SECRET_ACCESS_KEY", "of-no-account")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C reaches it through us, after the load has ended.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| program.display().to_string())?;
        let stderr = child.stderr.take().context("its standard error")?;
        let heard = Arc::new(Mutex::new(Heard::default()));
        tokio::spawn(hear(BufReader::new(stderr), heard.clone()));
        Ok(Self { child, heard, address, _folder: folder })
    }

    /// Waits until its port is bound; from then on no client is refused.
    pub async fn listening(&self) -> anyhow::Result<()> {
        let mut ticks = tokio::time::interval(Duration::from_millis(20));
        while !self.lines().iter().any(|line| line.text.starts_with("listening")) {
            ensure!(!self.has_ended(), "autossm has ended\n{}", self.last_words());
            ticks.tick().await;
        }
        Ok(())
    }

    /// Puts a line of our own into the story.
    pub fn note(&self, text: &str) {
        let line = Line { at: Instant::now(), by_autossm: false, text: text.into() };
        self.lock().lines.push(line);
    }

    pub fn lines(&self) -> Vec<Line> {
        self.lock().lines.clone()
    }

    pub fn last_words(&self) -> String {
        self.lines().iter().map(|line| format!("{}\n", line.text)).collect()
    }

    /// Sessions that have ended with connections on them.
    pub fn ends(&self) -> Vec<SessionEnd> {
        self.lock().ends.clone()
    }

    pub fn has_ended(&self) -> bool {
        self.lock().over
    }

    /// The plugins below it.
    pub fn plugins(&self) -> Vec<Pid> {
        let Some(pid) = self.child.id() else { return Vec::new() };
        let children =
            std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        children.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect()
    }

    /// Stops it as systemd would; says how long that took.
    pub async fn stop(&mut self) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let pid = self.child.id().context("autossm has ended before")?;
        kill(Pid::from_raw(pid.try_into()?), Signal::SIGTERM)?;
        let status =
            tokio::time::timeout(STOPPING, self.child.wait()).await.context("autossm does not stop")??;
        ensure!(status.success(), "autossm: {status}");
        Ok(began.elapsed())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn hear(stderr: BufReader<tokio::process::ChildStderr>, heard: Arc<Mutex<Heard>>) {
    let mut lines = stderr.lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let fields: Value = serde_json::from_str(&line).unwrap_or_else(|_| Value::from(line.as_str()));
        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cut) = fields["cut"].as_u64() {
            let reason = fields["reason"].as_str().unwrap_or_default();
            heard.ends.push(SessionEnd::told(SystemTime::now(), cut, reason));
        }
        let text = fields["message"].as_str().or(fields.as_str()).unwrap_or(&line).to_owned();
        heard.lines.push(Line { at: Instant::now(), by_autossm: true, text });
    }
    heard.lock().unwrap_or_else(PoisonError::into_inner).over = true;
}

/// A port of this host that is free now: the configuration wants one that is known.
fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn config(lab: &Lab, plugin: &Path, address: SocketAddr) -> String {
    format!(
        "[[tunnel]]\nname = \"demo\"\nlisten = \"{address}\"\ntarget = \"i-0123456789abcdef0\"\n\
         remote_host = \"{}\"\nremote_port = {}\nregion = \"us-west-2\"\nendpoint_url = \"{}\"\n\
         stream_endpoint = \"{}\"\nplugin = \"{}\"\nmax_connections = 4096\nmax_held = 2048\n",
        lab.echo_addr().ip(),
        lab.echo_addr().port(),
        lab.api_url(),
        lab.stream_endpoint_ws(),
        plugin.display()
    )
}
