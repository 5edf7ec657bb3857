//! `autossm web`: metrics, health, events and a page of all tunnels of the host.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{debug, error, info};

use super::{EXIT_CONFIG, EXIT_OS, EXIT_UNAVAILABLE};
use crate::control::place;
use crate::systemd::notify;
use crate::telemetry::recorder::Recorder;
use crate::telemetry::{self, Format};
use crate::web::{self, Settings};

/// What `autossm web` takes.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct WebArgs {
    /// The address to listen on
    ///
    /// Whoever reaches it sees the names of tunnels, targets and destinations, but can change nothing. Keep it on
    /// loopback, or put a proxy that asks for a password in front.
    #[arg(long, value_name = "ADDRESS", env = "AUTOSSM_WEB_LISTEN", default_value = "127.0.0.1:9464")]
    pub listen: SocketAddr,

    /// Where the tunnels' control sockets are [default: /run/autossm, and $XDG_RUNTIME_DIR/autossm]
    #[arg(long, value_name = "DIR")]
    pub runtime_dir: Option<PathBuf>,

    /// Where systemd's links say which tunnels are to run, for tests [default: its own, without --runtime-dir]
    #[arg(long, value_name = "DIR", hide = true)]
    pub units_dir: Option<PathBuf>,

    /// A further name under which browsers may ask for the page
    ///
    /// Names that are not known are refused, so that no web site can read the page through a visitor's browser. Known
    /// are all addresses, localhost and this host's name.
    #[arg(long = "host", value_name = "NAME", env = "AUTOSSM_WEB_HOST", value_delimiter = ',')]
    pub hosts: Vec<String>,

    /// The host's name in the page's head [default: this host's]
    #[arg(long, value_name = "NAME", env = "AUTOSSM_WEB_TITLE")]
    pub title: Option<String>,

    /// How log lines look
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Auto)]
    pub log_format: Format,

    /// What is logged, as for `autossm run`
    #[arg(long, value_name = "FILTER", env = "RUST_LOG", default_value = "info", value_parser = super::log_filter)]
    pub log_level: String,
}

const EXAMPLES: &str = "\
Examples:
  autossm web                             Then open http://127.0.0.1:9464/
  autossm web --runtime-dir ./run         The tunnels of autossm run --runtime-dir ./run
  systemctl enable --now autossm-web      As a service
  ssh -L 9464:127.0.0.1:9464 HOST         Look at it from elsewhere";

/// Serves until it is told to stop; returns the exit status.
pub fn run(args: WebArgs) -> ExitCode {
    if let Err(error) = telemetry::init(args.log_format, &args.log_level, &Recorder::default()) {
        eprintln!("autossm: {error}");
        return ExitCode::from(EXIT_CONFIG);
    }
    raise_file_limit();
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(serve(args)),
        Err(error) => os_fault(&error),
    }
}

async fn serve(args: WebArgs) -> ExitCode {
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (mut terminate, mut interrupt) = match signals {
        (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
        (Err(error), _) | (_, Err(error)) => return os_fault(&error),
    };
    let listener = match TcpListener::bind(args.listen).await {
        Ok(listener) => listener,
        Err(error) => {
            let listen = args.listen;
            error!(event = "bind_failed", %listen, "cannot listen on {listen}: {error}; choose another address with --listen");
            return ExitCode::from(EXIT_UNAVAILABLE);
        }
    };
    // With port 0 it is the kernel's choice.
    let listen = listener.local_addr().unwrap_or(args.listen);
    info!(event = "web_listening", %listen, "the page is at http://{listen}/");
    notify::ready();
    let units = match (&args.units_dir, &args.runtime_dir) {
        (Some(directory), _) => vec![directory.clone()],
        (None, Some(_)) => Vec::new(),
        (None, None) => web::UNITS.map(PathBuf::from).to_vec(),
    };
    let directories = place::directories(args.runtime_dir.as_deref());
    let settings = Settings { directories, units, hosts: args.hosts, title: args.title };
    tokio::select! {
        () = web::serve(listener, settings) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    notify::stopping();
    ExitCode::SUCCESS
}

/// Two connections to each tunnel, and hosts have hundreds.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most.min(65_536), most));
    if let Err(error) = raised {
        debug!(%error, "the limit on open files could not be raised");
    }
}

fn os_fault(error: &std::io::Error) -> ExitCode {
    error!(event = "os_fault", "{error}");
    ExitCode::from(EXIT_OS)
}
