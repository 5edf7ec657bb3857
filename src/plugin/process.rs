//! A running plugin: started, listened to, stopped, and reaped in any case.
//!
//! A task owns the child. It never lets the plugin wait for anybody: what it prints is read at once, and what it said
//! waits here, bounded, until the driver takes it. [`Event::Exited`] comes exactly once and last, when nothing of the
//! plugin is left: no process of its group, no folder, no socket.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use secrecy::ExposeSecret;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, ChildStderr, ChildStdout};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use super::listener::Listener;
use super::output::{Output, OutputParser};
use super::survivor::Note;
use super::{clean_command, version};
use crate::aws::api::StartRequest;
use crate::gateway::PluginAccess;
use crate::tunnel::failure::{Class, Failure};

/// Named in the first argument; the plugin takes the response out of its environment at once.
const RESPONSE: &str = "AWS_SSM_START_SESSION_RESPONSE";
/// SIGINT lets the plugin say goodbye to the agent; it does not handle SIGTERM, and may be stopped or stuck.
const AFTER_INT: Duration = Duration::from_secs(3);
const AFTER_TERM: Duration = Duration::from_secs(2);
/// Between two looks at the process's state.
const LOOK: Duration = Duration::from_secs(2);
/// For output that is still in the pipe when the plugin has exited.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// What was said and not yet taken by the driver; more is left out.
const WAITING: usize = 256;
/// The longest folder in which the plugin can bind its socket `4294967295_session_manager_plugin_mux.sock`: a socket's
/// path has at most 107 bytes.
const LONGEST_FOLDER: usize = 107 - 43;

/// What a plugin is started with.
pub struct Launch {
    /// The program.
    pub plugin: PathBuf,
    /// For log lines.
    pub tunnel: String,
    /// The session's region.
    pub region: String,
    /// The request that StartSession was called with.
    pub request: StartRequest,
    /// The session and the way to the service.
    pub access: PluginAccess,
    /// Where its private folder is made; in the system's temporary folder instead if the path is too long for a socket.
    pub runtime_dir: PathBuf,
}

/// What happens to a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It said something.
    Output(Output),
    /// It was seen stopped (by SIGSTOP or a debugger) twice, 2 s apart. Said once until it goes on.
    Stopped,
    /// It has ended. The last event.
    Exited {
        /// Why, in its words: the last line that gives a reason, else the last line.
        words: Option<String>,
        /// The status is 0 whatever happened, but a signal can be seen here.
        status: Option<ExitStatus>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Order {
    Run,
    Stop,
    Kill,
}

/// A plugin that was started. Dropping it kills the plugin.
#[derive(Debug)]
pub struct Running {
    pid: u32,
    order: watch::Sender<Order>,
}

impl Running {
    /// The process's id, which is also its group's. It means nothing any more after [`Event::Exited`].
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Ends it politely: SIGINT, SIGTERM after 3 s, SIGKILL after 2 s more. Returns at once.
    pub fn stop(&self) {
        self.give(Order::Stop);
    }

    /// Ends it and all of its process group with SIGKILL. Returns at once.
    pub fn kill(&self) {
        self.give(Order::Kill);
    }

    /// An order is never taken back.
    fn give(&self, order: Order) {
        self.order.send_if_modified(|current| {
            let higher = order > *current;
            *current = order.max(*current);
            higher
        });
    }
}

/// Starts a plugin; what happens to it is told to `events`.
///
/// Fails if it cannot be executed, or its private folder not be made.
pub fn launch(spec: Launch, events: mpsc::Sender<Event>) -> Result<Running, Failure> {
    let folder = private_folder(&spec.runtime_dir)?;
    let session = &spec.access.session;
    let response = serde_json::json!({
        "SessionId": session.session_id,
        "TokenValue": session.token.expose_secret(),
        "StreamUrl": session.stream_url,
    });
    let request = serde_json::json!({
        "Target": spec.request.target,
        "DocumentName": spec.request.document,
        "Parameters": spec.request.parameters,
    });
    let mut command = clean_command(&spec.plugin);
    command
        // No profile: the plugin's credentials come with `environment`.
        .args([RESPONSE, &spec.region, "StartSession", "", &request.to_string(), &spec.access.api_endpoint])
        .current_dir("/")
        .env("HOME", folder.path())
        .env("TMPDIR", folder.path())
        .env(RESPONSE, response.to_string());
    for (name, value) in &spec.access.environment {
        command.env(name, value.expose_secret());
    }
    let mut child = command.spawn().map_err(|e| version::spawn_failure(&spec.plugin, &e))?;
    let pid = child.id().unwrap_or_default();
    let group = i32::try_from(pid).ok().filter(|pid| *pid > 1).map(Pid::from_raw);
    let (Some(group), Some(stdout), Some(stderr)) = (group, child.stdout.take(), child.stderr.take()) else {
        return Err(Failure::new(Class::Network, "the plugin ended while it was started"));
    };
    let (order, orders) = watch::channel(Order::Run);
    let task = Task {
        child,
        group,
        orders,
        events,
        waiting: VecDeque::new(),
        note: Note::write(&spec.runtime_dir, group)
            .inspect_err(|error| tracing::debug!(tunnel = spec.tunnel, %error, "the plugin is not noted"))
            .ok(),
        listener: Listener::new(spec.tunnel, &spec.access),
        folder,
    };
    tokio::spawn(task.run(stdout, stderr));
    Ok(Running { pid, order })
}

fn private_folder(runtime_dir: &Path) -> Result<TempDir, Failure> {
    // Room for the slash and the folder's own name.
    let fits = |dir: &Path| dir.as_os_str().len() + 8 <= LONGEST_FOLDER;
    let temporary = std::env::temp_dir();
    let parent = if fits(runtime_dir) || !fits(&temporary) { runtime_dir } else { &temporary };
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    tempfile::Builder::new().prefix("p").permissions(private).tempdir_in(parent).map_err(|e| {
        Failure::new(version::class(&e), format!("no folder can be made in {}: {e}", parent.display()))
    })
}

struct Task {
    child: Child,
    group: Pid,
    orders: watch::Receiver<Order>,
    events: mpsc::Sender<Event>,
    /// For the driver, the oldest first.
    waiting: VecDeque<Event>,
    listener: Listener,
    folder: TempDir,
    /// For a daemon that finds it running after this one was killed.
    note: Option<Note>,
}

impl Task {
    async fn run(mut self, stdout: ChildStdout, stderr: ChildStderr) {
        let (mut stdout, mut stderr) = (Stream::new(stdout), Stream::new(stderr));
        let events = self.events.clone();
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stopped = 0_u8;
        let mut escalation: VecDeque<(tokio::time::Instant, Signal)> = VecDeque::new();
        let status = loop {
            let next = escalation.front().copied();
            tokio::select! {
                status = self.child.wait() => break status.ok(),
                changed = self.orders.changed() => {
                    let order = *self.orders.borrow_and_update();
                    if changed.is_err() || order == Order::Kill {
                        self.signal(Signal::SIGKILL);
                        break self.child.wait().await.ok();
                    }
                    self.signal(Signal::SIGINT);
                    let term = tokio::time::Instant::now() + AFTER_INT;
                    escalation = [(term, Signal::SIGTERM), (term + AFTER_TERM, Signal::SIGKILL)].into();
                }
                () = at(next.map(|(time, _)| time)) => {
                    if let Some((_, signal)) = escalation.pop_front() {
                        self.signal(signal);
                    }
                }
                () = stdout.read() => self.listen(&mut stdout),
                () = stderr.read() => self.listen(&mut stderr),
                _ = looks.tick() => {
                    stopped = if is_stopped(self.group) { stopped.saturating_add(1) } else { 0 };
                    if stopped == 2 {
                        self.tell(Event::Stopped);
                    }
                }
                permit = events.reserve(), if !self.waiting.is_empty() => {
                    match (permit, self.waiting.pop_front()) {
                        (Ok(permit), Some(event)) => permit.send(event),
                        // Nobody listens any more.
                        _ => self.waiting.clear(),
                    }
                }
            }
        };
        self.end(stdout, stderr, status).await;
    }

    /// The plugin has been reaped.
    async fn end(
        mut self,
        mut stdout: Stream<ChildStdout>,
        mut stderr: Stream<ChildStderr>,
        status: Option<ExitStatus>,
    ) {
        // Whatever it started ends with it. The group's number cannot belong to another one yet: numbers are given out
        // in turn, and this one was free for less than a moment.
        self.signal(Signal::SIGKILL);
        let rest = async {
            while !stdout.ended {
                stdout.read().await;
                self.listen(&mut stdout);
            }
            while !stderr.ended {
                stderr.read().await;
                self.listen(&mut stderr);
            }
        };
        // A process that has left the group may hold the pipes open for ever.
        let _ = tokio::time::timeout(LAST_WORDS, rest).await;
        for outputs in [self.listener.finish(&mut stdout.parser), self.listener.finish(&mut stderr.parser)] {
            outputs.into_iter().for_each(|output| self.tell(Event::Output(output)));
        }
        drop(self.note);
        if let Err(error) = self.folder.close() {
            tracing::warn!(tunnel = self.listener.tunnel(), %error, "the plugin's folder could not be removed");
        }
        let words = self.listener.ended();
        for event in self.waiting.into_iter().chain([Event::Exited { words, status }]) {
            if self.events.send(event).await.is_err() {
                return;
            }
        }
    }

    fn listen<R>(&mut self, stream: &mut Stream<R>) {
        let bytes = stream.buffer.get(..stream.filled).unwrap_or_default();
        for output in self.listener.hear(&mut stream.parser, bytes) {
            self.tell(Event::Output(output));
        }
    }

    fn tell(&mut self, event: Event) {
        // The oldest stay: among them is the port.
        if self.waiting.len() < WAITING {
            self.waiting.push_back(event);
        }
    }

    fn signal(&self, signal: Signal) {
        // It may have gone by itself.
        let _ = killpg(self.group, signal);
    }
}

async fn at(time: Option<tokio::time::Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

fn is_stopped(pid: Pid) -> bool {
    let stat = procfs::process::Process::new(pid.as_raw()).and_then(|process| process.stat());
    stat.is_ok_and(|stat| matches!(stat.state, 'T' | 't'))
}

/// One of the plugin's two streams.
struct Stream<R> {
    pipe: R,
    buffer: Box<[u8]>,
    filled: usize,
    ended: bool,
    parser: OutputParser,
}

impl<R: AsyncRead + Unpin> Stream<R> {
    fn new(pipe: R) -> Self {
        Self { pipe, buffer: vec![0; 4096].into(), filled: 0, ended: false, parser: OutputParser::new() }
    }

    /// Fills the buffer; never returns once the stream has ended.
    async fn read(&mut self) {
        if self.ended {
            return std::future::pending().await;
        }
        self.filled = self.pipe.read(&mut self.buffer).await.unwrap_or_default();
        self.ended = self.filled == 0;
    }
}

#[cfg(test)]
pub(super) mod tests;
