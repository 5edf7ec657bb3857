//! `autossm run`: keeps tunnels up until it is told to stop.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::resource::{Resource, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;
use tracing::{debug, error, info};

use super::reach::block_on;
use super::{EXIT_CONFIG, EXIT_OS, EXIT_UNAVAILABLE, RunArgs};
use crate::aws::sdk::Clients;
use crate::config::{self, Hook, Tunnel};
use crate::control::access::Access;
use crate::control::place;
use crate::control::protocol::Event;
use crate::driver::Shared;
use crate::driver::folder::Folder;
use crate::driver::service::Service;
use crate::driver::tunnels::{Tunnels, Unbound, bind};
use crate::gateway::Authority;
use crate::hook::Hooks;
use crate::network::Environment;
use crate::plugin::version::Versions;
use crate::socket_file;
use crate::systemd::fdstore::{self, Kept};
use crate::systemd::notify;
use crate::telemetry::history::{self, History};
use crate::telemetry::recorder::{HISTORY, Recorder};
use crate::telemetry::{self, Format};

/// A disk that does not take the last events in this time does not get them: systemd's patience is limited.
const LAST_EVENTS: Duration = Duration::from_millis(500);

/// For the hooks that tell of the end. Hooks that tell of its beginning have had the tunnels' time too.
const LAST_HOOKS: Duration = Duration::from_secs(2);
/// Since the daemon was told to stop, when the tunnels have needed all of their time: hooks are cut short then.
const STOPPED: Duration = Duration::from_millis(14_500);

/// Runs the tunnels; returns the exit status.
pub fn run(args: &RunArgs) -> ExitCode {
    // Before a file is opened that could take a socket's number.
    let kept = fdstore::kept();
    let recorder = Recorder::default();
    if let Err(error) = telemetry::init(args.log_format, &args.log_level, &recorder) {
        eprintln!("autossm: {error}");
        return ExitCode::from(EXIT_CONFIG);
    }
    let wanted = match read(args) {
        Ok(wanted) => wanted,
        Err(text) => return invalid(args, &recorder, &text),
    };
    // One thread: what goes through a plugin is limited by the plugin, and a second thread costs memory.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return os_fault(&error.into()),
    };
    let code = runtime.block_on(serve(args, wanted, kept, &recorder));
    // A name look-up that hangs in a thread of its own must not keep the process.
    runtime.shutdown_background();
    code
}

async fn serve(args: &RunArgs, wanted: Wanted, kept: Vec<Kept>, recorder: &Recorder) -> ExitCode {
    let mut hooks = Hooks::new(recorder);
    hooks.configure(wanted.hooks);
    let names: Vec<_> = wanted.tunnels.iter().map(|tunnel| tunnel.name.clone()).collect();
    let bound = match bind(wanted.tunnels, kept) {
        Ok(bound) => bound,
        Err(errors) => {
            notify::status(&errors.first().map(ToString::to_string).unwrap_or_default());
            let _histories = not_bound(args, recorder, &names, &errors);
            tokio::join!(hooks.stop(Instant::now() + LAST_HOOKS), recorder.flush(LAST_EVENTS));
            return ExitCode::from(EXIT_UNAVAILABLE);
        }
    };
    let started = prepare(args, recorder).and_then(|shared| {
        // First: from here on there is something to clean up.
        let signals = Signals::new().context("signal handlers")?;
        Ok((Tunnels::start(shared, bound).context("a tunnel's folder in the state directory")?, signals))
    });
    let (mut tunnels, mut signals) = match started {
        Ok(started) => started,
        Err(error) => return os_fault(&error),
    };
    let service = Service::start(tunnels.views());
    while signals.next().await == Request::Reload {
        service.reloading();
        let refusal = reload(args, &mut tunnels, &mut hooks).await;
        service.reloaded(refusal.as_deref());
    }
    info!(event = "stopping", "stopping");
    let at_last = Instant::now() + STOPPED;
    notify::stopping();
    // The last line is theirs too.
    let _histories = recorder.all();
    tunnels
        .stop(async {
            while signals.next().await != Request::Stop {}
            info!(event = "stopping", "stopping at once");
        })
        .await;
    info!(event = "stopped", "stopped");
    let until = at_last.min(Instant::now() + LAST_HOOKS).max(Instant::now() + LAST_EVENTS);
    tokio::join!(hooks.stop(until), recorder.flush(LAST_EVENTS));
    ExitCode::SUCCESS
}

/// Says which addresses cannot be bound, in the log and in the record of every tunnel of this process: none of them runs.
fn not_bound(
    args: &RunArgs,
    recorder: &Recorder,
    tunnels: &[String],
    errors: &[Unbound],
) -> Vec<Arc<History>> {
    const EVENT: &str = "bind_failed";
    let mut histories = Vec::new();
    for name in tunnels {
        let own = || errors.iter().filter(|unbound| unbound.tunnel == *name);
        let Some(error) = own().next_back().or(errors.first()) else { continue };
        let reason = error.to_string();
        // systemd starts the process again every second: what is on record already is only logged.
        let is_new = |last: Option<Event>| {
            last.is_none_or(|last| last.event != EVENT || last.reason.as_deref() != Some(&reason))
        };
        histories.extend(open_record(args, recorder, name, is_new));
        if own().next().is_none() {
            // Said once, of the tunnel that it is about.
            debug!(target: HISTORY, tunnel = name, event = "bind_failed", reason, "not started: {reason}");
        }
        for error in own() {
            error!(tunnel = name, event = "bind_failed", reason = %error, "{error}");
        }
    }
    histories
}

/// The record of a tunnel that could not be started, if it is wanted by what is last on it. That of a tunnel that another
/// process runs is that process's.
fn open_record(
    args: &RunArgs,
    recorder: &Recorder,
    tunnel: &str,
    wanted: impl FnOnce(Option<Event>) -> bool,
) -> Option<Arc<History>> {
    let runtime_dir = runtime_dir(args).ok()?;
    let socket = place::folder(&runtime_dir, tunnel).join(place::FILE);
    if socket.exists() && !socket_file::is_stale(&socket).unwrap_or(false) {
        return None;
    }
    let folder = place::folder(&state_dir(args, &runtime_dir).ok()?, tunnel);
    let last = history::last(&folder).ok()?;
    wanted(last).then(|| recorder.open(tunnel, &folder))
}

/// The names of all tunnels that may have a record.
fn recorded(args: &RunArgs) -> Vec<String> {
    let folder = runtime_dir(args).and_then(|runtime_dir| state_dir(args, &runtime_dir));
    let entries = folder.ok().and_then(|folder| std::fs::read_dir(folder).ok());
    entries.into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// What this process is to run.
struct Wanted {
    tunnels: Vec<Tunnel>,
    hooks: Vec<Hook>,
}

/// The tunnels that this process is to run, with the hooks that are for any of them, or all that is wrong with the
/// configuration.
fn read(args: &RunArgs) -> Result<Wanted, String> {
    let config = config::load(&args.config.path).map_err(|problems| problems.to_string())?;
    let tunnels = config.select(&args.tunnels).map_err(|unknown| unknown.to_string())?;
    if tunnels.is_empty() {
        let file = args.config.path.display();
        return Err(format!("{file}: no tunnel is enabled; name those to run, or write enabled = true"));
    }
    let is_for_us = |hook: &&Hook| {
        let names = hook.tunnels.as_ref();
        names.is_none_or(|names| tunnels.iter().any(|tunnel| names.contains(&tunnel.name)))
    };
    let hooks = config.hooks.iter().filter(is_for_us).cloned().collect();
    Ok(Wanted { tunnels: tunnels.into_iter().cloned().collect(), hooks })
}

/// Takes on the file as it is now. One with errors is refused whole, and everything stays as it was.
/// The first of them is returned.
async fn reload(args: &RunArgs, tunnels: &mut Tunnels, hooks: &mut Hooks) -> Option<String> {
    let refused = match read(args) {
        Ok(wanted) => match tunnels.reload(wanted.tunnels).await {
            Ok(()) => {
                hooks.configure(wanted.hooks);
                info!(event = "reloaded", "configuration reloaded");
                return None;
            }
            Err(errors) => errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
        },
        Err(text) => text,
    };
    for line in refused.lines() {
        error!(event = "reload_refused", "{line}");
    }
    error!(event = "reload_refused", "the configuration was not reloaded; the old one stays in force");
    Some(refused.lines().next().unwrap_or_default().to_owned())
}

/// Tells what is wrong with the configuration: to the journal or a machine as log lines, to a person as it is.
fn invalid(args: &RunArgs, recorder: &Recorder, text: &str) -> ExitCode {
    let format = args.log_format;
    if format == Format::Text || (format == Format::Auto && !telemetry::stderr_is_journal()) {
        eprintln!("{text}");
    } else {
        // Of those that have one: a name that has none may be a slip of the pen.
        let open = |name: &String| open_record(args, recorder, name, |last| last.is_some());
        let names = if args.tunnels.is_empty() { recorded(args) } else { args.tunnels.clone() };
        let _histories: Vec<_> = names.iter().filter_map(open).collect();
        for (at, line) in text.lines().enumerate() {
            error!(event = "config_invalid", reason = (at == 0).then_some(line), "{line}");
        }
        let _ = block_on(recorder.flush(LAST_EVENTS));
    }
    notify::status(text.lines().next().unwrap_or_default());
    ExitCode::from(EXIT_CONFIG)
}

/// Everything that all tunnels share, and a process that leaks no secret.
fn prepare(args: &RunArgs, recorder: &Recorder) -> anyhow::Result<Shared> {
    // Tokens and keys are in this process's memory. A core file would write them to the disk, and so would another
    // process of the same user that attaches to this one; neither limit is enough by itself, because a core pattern
    // that is a pipe ignores the first.
    setrlimit(Resource::RLIMIT_CORE, 0, 0).context("core file limit")?;
    nix::sys::prctl::set_dumpable(false).context("PR_SET_DUMPABLE")?;

    let runtime_dir = runtime_dir(args)?;
    let state_dir = state_dir(args, &runtime_dir)?;
    // Clients of a tunnel's sockets have to get there; what is secret has a folder of its own.
    make(&runtime_dir, 0o755)?;
    make(&state_dir, place::STATE_MODE)?;
    // Of its own: several processes may share the runtime directory.
    let folder = Folder::make(&runtime_dir).context("a folder in the runtime directory")?;
    let authority = Authority::new().context("making the gateway's certificate authority")?;
    make(&folder.certificates(), 0o750)?;
    authority.write_certificate(&folder.certificates()).context("writing the gateway's certificate")?;
    Ok(Shared {
        clients: Arc::new(Clients::new(Environment::of_process())),
        versions: Arc::new(Versions::new()),
        authority: Arc::new(authority),
        folder: Arc::new(folder),
        runtime_dir,
        state_dir,
        access: Access::of_host(),
        recorder: recorder.clone(),
    })
}

/// What was asked for, else what systemd gives, else the usual place for this user.
fn runtime_dir(args: &RunArgs) -> anyhow::Result<PathBuf> {
    if let Some(path) = &args.runtime_dir {
        return absolute(path);
    }
    // systemd separates several by colons; the unit has one.
    if let Some(given) = given("RUNTIME_DIRECTORY") {
        return Ok(given);
    }
    if nix::unistd::geteuid().is_root() {
        return Ok(place::SYSTEM.into());
    }
    let base = given("XDG_RUNTIME_DIR").context(
        "there is no place for sockets: set XDG_RUNTIME_DIR, or choose a directory with --runtime-dir",
    )?;
    Ok(base.join("autossm"))
}

/// The same for what outlives the process. Whoever chooses only the runtime directory has everything there.
fn state_dir(args: &RunArgs, runtime_dir: &Path) -> anyhow::Result<PathBuf> {
    if let Some(path) = &args.state_dir {
        return absolute(path);
    }
    if args.runtime_dir.is_some() {
        return Ok(runtime_dir.to_owned());
    }
    if let Some(given) = given("STATE_DIRECTORY") {
        return Ok(given);
    }
    if nix::unistd::geteuid().is_root() {
        return Ok(SYSTEM_STATE.into());
    }
    Ok(own_state().unwrap_or_else(|| runtime_dir.to_owned()))
}

/// The state directory of all that systemd or root has started.
const SYSTEM_STATE: &str = "/var/lib/autossm";

fn own_state() -> Option<PathBuf> {
    let base = given("XDG_STATE_HOME").or_else(|| Some(given("HOME")?.join(".local/state")));
    base.map(|base| base.join("autossm"))
}

/// Where the record of a tunnel that does not run may be: the host's, and its user's.
pub(super) fn state_directories() -> Vec<PathBuf> {
    std::iter::once(SYSTEM_STATE.into()).chain(own_state()).collect()
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("{}", path.display()))
}

fn given(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn make(path: &Path, mode: u32) -> anyhow::Result<()> {
    place::make(path, mode).with_context(|| format!("making {}", path.display()))
}

fn os_fault(error: &anyhow::Error) -> ExitCode {
    error!(event = "os_fault", "{error:#}");
    ExitCode::from(EXIT_OS)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    Reload,
    Stop,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Request {
        tokio::select! {
            _ = self.terminate.recv() => Request::Stop,
            _ = self.interrupt.recv() => Request::Stop,
            _ = self.hangup.recv() => Request::Reload,
        }
    }
}
