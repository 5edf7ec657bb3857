//! `autossm run`: keeps tunnels up until it is told to stop.

use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use nix::sys::resource::{Resource, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info};

use super::{EXIT_CONFIG, EXIT_OS, EXIT_UNAVAILABLE, RunArgs};
use crate::aws::sdk::Clients;
use crate::config::{self, Tunnel};
use crate::driver::Shared;
use crate::driver::folder::Folder;
use crate::driver::service::Service;
use crate::driver::tunnels::{Tunnels, bind};
use crate::gateway::Authority;
use crate::network::Environment;
use crate::plugin::version::Versions;
use crate::systemd::fdstore::{self, Kept};
use crate::systemd::notify;
use crate::telemetry::recorder::Recorder;
use crate::telemetry::{self, Format};

/// Runs the tunnels; returns the exit status.
pub fn run(args: &RunArgs) -> ExitCode {
    // Before a file is opened that could take a socket's number.
    let kept = fdstore::kept();
    if let Err(error) = telemetry::init(args.log_format, &args.log_level, &Recorder::default()) {
        eprintln!("autossm: {error}");
        return ExitCode::from(EXIT_CONFIG);
    }
    let tunnels = match read(args) {
        Ok(tunnels) => tunnels,
        Err(text) => return invalid(args.log_format, &text),
    };
    // One thread: what goes through a plugin is limited by the plugin, and a second thread costs memory.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return os_fault(&error.into()),
    };
    let code = runtime.block_on(serve(args, tunnels, kept));
    // A name look-up that hangs in a thread of its own must not keep the process.
    runtime.shutdown_background();
    code
}

async fn serve(args: &RunArgs, tunnels: Vec<Tunnel>, kept: Vec<Kept>) -> ExitCode {
    let bound = match bind(tunnels, kept) {
        Ok(bound) => bound,
        Err(errors) => {
            for error in &errors {
                error!(event = "bind_failed", "{error}");
            }
            notify::status(&errors.first().map(ToString::to_string).unwrap_or_default());
            return ExitCode::from(EXIT_UNAVAILABLE);
        }
    };
    let started = prepare(args).and_then(|shared| {
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
        let refusal = reload(args, &mut tunnels).await;
        service.reloaded(refusal.as_deref());
    }
    info!(event = "stopping", "stopping");
    notify::stopping();
    tunnels
        .stop(async {
            while signals.next().await != Request::Stop {}
            info!(event = "stopping", "stopping at once");
        })
        .await;
    info!(event = "stopped", "stopped");
    ExitCode::SUCCESS
}

/// The tunnels that this process is to run, or all that is wrong with the configuration.
fn read(args: &RunArgs) -> Result<Vec<Tunnel>, String> {
    let config = config::load(&args.config.path).map_err(|problems| problems.to_string())?;
    let tunnels = config.select(&args.tunnels).map_err(|unknown| unknown.to_string())?;
    if tunnels.is_empty() {
        let file = args.config.path.display();
        return Err(format!("{file}: no tunnel is enabled; name those to run, or write enabled = true"));
    }
    Ok(tunnels.into_iter().cloned().collect())
}

/// Takes on the file as it is now. One with errors is refused whole, and everything stays as it was.
/// The first of them is returned.
async fn reload(args: &RunArgs, tunnels: &mut Tunnels) -> Option<String> {
    let refused = match read(args) {
        Ok(wanted) => match tunnels.reload(wanted).await {
            Ok(()) => {
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
fn invalid(format: Format, text: &str) -> ExitCode {
    if format == Format::Text || (format == Format::Auto && !telemetry::stderr_is_journal()) {
        eprintln!("{text}");
    } else {
        for line in text.lines() {
            error!(event = "config_invalid", "{line}");
        }
    }
    notify::status(text.lines().next().unwrap_or_default());
    ExitCode::from(EXIT_CONFIG)
}

/// Everything that all tunnels share, and a process that leaks no secret.
fn prepare(args: &RunArgs) -> anyhow::Result<Shared> {
    // Tokens and keys are in this process's memory. A core file would write them to the disk, and so would another
    // process of the same user that attaches to this one; neither limit is enough by itself, because a core pattern
    // that is a pipe ignores the first.
    setrlimit(Resource::RLIMIT_CORE, 0, 0).context("core file limit")?;
    nix::sys::prctl::set_dumpable(false).context("PR_SET_DUMPABLE")?;

    let runtime_dir = directory(args.runtime_dir.as_deref(), "RUNTIME_DIRECTORY", "/run", "XDG_RUNTIME_DIR")?;
    let state_dir = match (&args.runtime_dir, std::env::var_os("STATE_DIRECTORY")) {
        // The runtime directory goes when the service stops, and with the host.
        (None, Some(given)) => PathBuf::from(given),
        _ => runtime_dir.clone(),
    };
    make(&runtime_dir)?;
    // Of its own: several processes may share the runtime directory.
    let folder = Folder::make(&runtime_dir).context("a folder in the runtime directory")?;
    let authority = Authority::new().context("making the gateway's certificate authority")?;
    make(&folder.certificates())?;
    authority.write_certificate(&folder.certificates()).context("writing the gateway's certificate")?;
    Ok(Shared {
        clients: Arc::new(Clients::new(Environment::of_process())),
        versions: Arc::new(Versions::new()),
        authority: Arc::new(authority),
        folder: Arc::new(folder),
        state_dir,
    })
}

/// What was asked for, else what systemd gives, else the usual place for this user.
fn directory(
    asked: Option<&Path>,
    from_systemd: &str,
    for_root: &str,
    from_session: &str,
) -> anyhow::Result<PathBuf> {
    if let Some(path) = asked {
        return std::path::absolute(path).with_context(|| format!("{}", path.display()));
    }
    if let Some(given) = std::env::var_os(from_systemd) {
        // systemd separates several by colons; the unit has one.
        return Ok(PathBuf::from(given));
    }
    if nix::unistd::geteuid().is_root() {
        return Ok(Path::new(for_root).join("autossm"));
    }
    let base = std::env::var_os(from_session).with_context(|| {
        format!("there is no place for sockets: set {from_session}, or choose a directory with --runtime-dir")
    })?;
    Ok(Path::new(&base).join("autossm"))
}

fn make(path: &Path) -> anyhow::Result<()> {
    match std::fs::DirBuilder::new().recursive(true).mode(0o750).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("making {}", path.display()))
        }
        _ => Ok(()),
    }
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
