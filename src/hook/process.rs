//! One run of a hook's command: in a clean environment, in a process group of its own, for a limited time. Nothing of it
//! is left when it is over but what has left the group on purpose.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{ChildStdin, Command};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

use super::Order;
use crate::config::Hook;
use crate::control::protocol::Event;

/// What every hook gets of the daemon's environment. Nothing of `AWS_*` or a proxy, which may hold a password.
const INHERITED: [&str; 4] = ["PATH", "HOME", "LANG", "TZ"];
/// A hook that prints more is ended: the daemon would have to read it all day.
const MOST_OUTPUT: usize = 64 << 10;
/// So much of it goes to the log, in so many lines.
const LOGGED: usize = 4 << 10;
const LOGGED_LINES: usize = 20;
/// For output that is still in the pipe when the command has exited.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Runs the command until it has ended, its time is over, or the daemon's is.
///
/// # Errors
/// Why it has failed, to follow the hook's name and a colon.
pub(super) async fn run(
    hook: &Hook,
    event: &Event,
    line: Vec<u8>,
    orders: &mut watch::Receiver<Order>,
) -> Result<(), String> {
    let mut command = Command::new(&hook.program);
    command
        .args(&hook.arguments)
        .env_clear()
        .env("AUTOSSM_EVENT", &event.event)
        .env("AUTOSSM_TUNNEL", &event.tunnel)
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    for name in INHERITED.into_iter().chain(hook.environment.iter().map(String::as_str)) {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    let mut child = command.spawn().map_err(|error| not_started(hook, &error))?;
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).filter(|pid| *pid > 1).map(Pid::from_raw);
    let group = Group(pid);
    let mut output = Output::new(child.stdout.take(), child.stderr.take());
    let mut input = Box::pin(feed(child.stdin.take(), line));
    let mut fed = false;
    let mut deadline = (Instant::now() + hook.timeout, format!("not done within {:?}", hook.timeout));
    let ended = loop {
        if let Order::Stop(until) = *orders.borrow_and_update()
            && until < deadline.0
        {
            deadline = (until, "not done when the daemon stopped".to_owned());
        }
        tokio::select! {
            status = child.wait() => break match status {
                Ok(status) if status.success() => Ok(()),
                Ok(status) => Err(status.to_string()),
                Err(error) => Err(error.to_string()),
            },
            () = sleep_until(deadline.0) => break Err(format!("{}, killed", deadline.1)),
            () = &mut input, if !fed => fed = true,
            more = output.read() => if !more {
                break Err(format!("printed more than {} KiB, killed", MOST_OUTPUT >> 10));
            },
            // Whoever gave orders has gone: the rest of the loop is all the same.
            _ = orders.changed(), if orders.has_changed().is_ok() => {}
        }
    };
    // Whatever it has started ends with it.
    drop(group);
    let _ = child.wait().await;
    // A process that has left the group may hold the pipes open for ever.
    let _ = timeout(LAST_WORDS, async { while !output.ended() && output.read().await {} }).await;
    for line in String::from_utf8_lossy(&output.kept).lines().take(LOGGED_LINES) {
        debug!(hook = hook.name, tunnel = event.tunnel, "hook {} says: {line}", hook.name);
    }
    ended
}

fn not_started(hook: &Hook, error: &io::Error) -> String {
    let program = hook.program.display();
    match error.kind() {
        io::ErrorKind::NotFound => format!("there is no {program}, or not what its first line names"),
        io::ErrorKind::PermissionDenied => format!("the daemon's user may not execute {program}"),
        _ => format!("{program} cannot be started: {error}"),
    }
}

/// A command need not read what it is told.
async fn feed(stdin: Option<ChildStdin>, line: Vec<u8>) {
    if let Some(mut stdin) = stdin {
        let _ = stdin.write_all(&line).await;
    }
}

/// Dropping it kills what is left of the group.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may have gone by itself. Its number cannot belong to another one yet: numbers are given out in turn.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

/// What the command prints, both of its outputs as one.
struct Output<O, E> {
    out: Option<O>,
    err: Option<E>,
    buffers: [Box<[u8]>; 2],
    kept: Vec<u8>,
    read: usize,
}

impl<O: AsyncRead + Unpin, E: AsyncRead + Unpin> Output<O, E> {
    fn new(out: Option<O>, err: Option<E>) -> Self {
        Self { out, err, buffers: [vec![0; 1024].into(), vec![0; 1024].into()], kept: Vec::new(), read: 0 }
    }

    fn ended(&self) -> bool {
        self.out.is_none() && self.err.is_none()
    }

    /// Reads some; `false` when it was too much. Never returns once both have ended.
    async fn read(&mut self) -> bool {
        let [first, second] = &mut self.buffers;
        let (bytes, count) = tokio::select! {
            count = some(&mut self.out, first) => (&*first, count),
            count = some(&mut self.err, second) => (&*second, count),
        };
        let room = LOGGED.saturating_sub(self.kept.len()).min(count);
        self.kept.extend_from_slice(bytes.get(..room).unwrap_or_default());
        self.read += count;
        self.read <= MOST_OUTPUT
    }
}

async fn some<R: AsyncRead + Unpin>(pipe: &mut Option<R>, buffer: &mut [u8]) -> usize {
    let Some(open) = pipe else { return std::future::pending().await };
    let count = open.read(buffer).await.unwrap_or_default();
    if count == 0 {
        *pipe = None;
    }
    count
}
