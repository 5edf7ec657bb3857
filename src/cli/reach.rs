//! How the commands reach running tunnels.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use futures_util::future::join_all;

use super::{CONFIG, EXIT_CONFIG, EXIT_NO_PERMISSION, EXIT_OS, EXIT_UNAVAILABLE};
use crate::config::{self, Config, Tunnel};
use crate::control::client::{self, Error};
use crate::control::place;
use crate::control::protocol::{ErrorCode, State, Status};
use crate::control::time::Timestamp;

/// Where running tunnels are looked for.
#[derive(Clone, Debug, Args)]
pub struct Reach {
    /// Where the control sockets are: what `autossm run` was given as --runtime-dir
    ///
    /// [default: /run/autossm, and $XDG_RUNTIME_DIR/autossm]
    #[arg(long, value_name = "DIR")]
    pub runtime_dir: Option<PathBuf>,

    /// The configuration file, for the names of tunnels that do not run
    #[arg(short = 'c', long = "config", value_name = "FILE", env = "AUTOSSM_CONFIG", default_value = CONFIG)]
    pub config: PathBuf,
}

/// Why the configuration is not known.
#[derive(Clone, Debug)]
pub struct NotKnown {
    /// What is wrong first, with its place.
    pub text: String,
    /// How it is with the file.
    pub kind: NotKnownKind,
}

/// How it is with a configuration file that says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotKnownKind {
    /// There is none; the tunnels that run may have another one.
    Missing,
    /// Whoever asks may not read it.
    NotForYou,
    /// It has errors, and no daemon starts with it.
    Wrong,
}

impl NotKnown {
    /// The exit status of a command that has nothing else to show.
    pub fn code(&self) -> u8 {
        if self.kind == NotKnownKind::NotForYou { EXIT_NO_PERMISSION } else { EXIT_CONFIG }
    }
}

/// What became of a request to one tunnel.
pub type Answer<T> = (String, Result<T, Error>);

impl Reach {
    fn directories(&self) -> Vec<PathBuf> {
        place::directories(self.runtime_dir.as_deref())
    }

    /// The control socket of a tunnel, or where it would be.
    pub fn socket(&self, tunnel: &str) -> PathBuf {
        place::socket(&self.directories(), tunnel)
    }

    /// The names of all tunnels that have a socket, in order.
    pub fn running(&self) -> Vec<String> {
        place::sockets(&self.directories()).into_keys().collect()
    }

    /// A tunnel as the file has it, where that can be read.
    pub fn tunnel(&self, name: &str) -> Option<Tunnel> {
        self.configured().ok()?.tunnels.into_iter().find(|tunnel| tunnel.name == name)
    }

    /// The file's tunnels.
    ///
    /// # Errors
    /// The file cannot be read, or has errors.
    pub fn configured(&self) -> Result<Config, NotKnown> {
        let problems = match config::load(&self.config) {
            Ok(config) => return Ok(config),
            Err(problems) => problems,
        };
        let kind = match File::open(&self.config).map_err(|error| error.kind()) {
            // As the package leaves it.
            Ok(_) if config::has_no_tunnel(&self.config) => return Ok(Config::default()),
            Err(io::ErrorKind::NotFound) => NotKnownKind::Missing,
            Err(io::ErrorKind::PermissionDenied) => NotKnownKind::NotForYou,
            _ => NotKnownKind::Wrong,
        };
        let mut text = problems.to_string().lines().next().unwrap_or_default().to_owned();
        if kind == NotKnownKind::Wrong {
            text.push_str(match problems.list.len() {
                1 => "; see: autossm check",
                _ => "; and more: autossm check",
            });
            if self.config != Path::new(CONFIG) {
                text.push_str(&format!(" --config {}", self.config.display()));
            }
        }
        Err(NotKnown { text, kind })
    }

    /// Every tunnel that is enabled or runs, in the order of the names, each as it is now. Somebody who may not read the
    /// file, or finds errors in it, sees what runs all the same.
    pub async fn every_status(&self) -> Vec<Answer<Box<Status>>> {
        self.statuses(&self.configured().unwrap_or_default().tunnels).await
    }

    /// The same, of a configuration that is known already.
    pub async fn statuses(&self, configured: &[Tunnel]) -> Vec<Answer<Box<Status>>> {
        let sockets = place::sockets(&self.directories());
        let asked = sockets.values().map(|socket| client::status(socket));
        let mut answers: Vec<Answer<Box<Status>>> =
            sockets.keys().cloned().zip(join_all(asked).await).collect();
        for tunnel in configured {
            match answers.binary_search_by(|(name, _)| name.as_str().cmp(&tunnel.name)) {
                Ok(at) => {
                    if let Some((_, answer @ Err(Error::NotRunning))) = answers.get_mut(at) {
                        *answer = Ok(Box::new(without_daemon(&tunnel.name, Some(tunnel), State::Stopped)));
                    }
                }
                Err(at) if tunnel.enabled => {
                    let status = without_daemon(&tunnel.name, Some(tunnel), State::Stopped);
                    answers.insert(at, (tunnel.name.clone(), Ok(Box::new(status))));
                }
                Err(_) => {}
            }
        }
        answers
    }

    /// What to do about an error, for the person who has asked for this tunnel; and the exit status.
    pub fn explain(&self, tunnel: &str, error: &Error) -> (String, u8) {
        match error {
            Error::NotRunning | Error::Dead(_) => self.explain_absence(tunnel, error),
            Error::Denied(_) | Error::Refused { code: ErrorCode::Denied, .. } => {
                (format!("{tunnel}: {error}"), EXIT_NO_PERMISSION)
            }
            Error::TimedOut => {
                let look = format!("its daemon is there, and hangs: systemctl status autossm@{tunnel}");
                (format!("{tunnel}: {error}; {look}"), EXIT_UNAVAILABLE)
            }
            Error::Refused { .. } => (format!("{tunnel}: {error}"), EXIT_UNAVAILABLE),
            Error::Strange(_) | Error::Io(_) => (format!("{tunnel}: {error}"), EXIT_OS),
        }
    }

    /// No daemon runs it. Nobody is told to start what there is not, or what cannot be started.
    fn explain_absence(&self, tunnel: &str, error: &Error) -> (String, u8) {
        let dead = matches!(error, Error::Dead(_));
        let start = format!("start it: systemctl start autossm@{tunnel}, or autossm run {tunnel}");
        let unavailable = |text: String| (format!("{tunnel}: {error}{text}"), EXIT_UNAVAILABLE);
        match self.configured().map_err(|unknown| (unknown.kind, unknown.text)) {
            Err((NotKnownKind::Wrong, text)) => {
                (format!("{tunnel}: {error}; it cannot be started: {text}"), EXIT_CONFIG)
            }
            _ if dead => unavailable(format!("; if it stays away, {start}")),
            Err((NotKnownKind::Missing, text)) => unavailable(format!(", and {text}; name it with --config")),
            // Whoever may start it may well read the file.
            Err((NotKnownKind::NotForYou, _)) => unavailable(format!("; {start}")),
            Ok(config) => match config.select(&[tunnel.to_owned()]) {
                Err(unknown) => (unknown.to_string(), EXIT_CONFIG),
                Ok(_) => unavailable(format!("; {start}")),
            },
        }
    }
}

/// What is known of a tunnel that no daemon has told of: what its configuration says, if it has one.
pub fn without_daemon(name: &str, tunnel: Option<&Tunnel>, state: State) -> Status {
    let status = Status { name: name.to_owned(), now: Timestamp::now(), state, ..Status::default() };
    let Some(tunnel) = tunnel else { return status };
    Status {
        listen: tunnel.listen.iter().map(ToString::to_string).collect(),
        targets: vec![tunnel.target.to_string()],
        remote_host: tunnel.remote_host.clone(),
        remote_port: tunnel.remote_port,
        gateway: tunnel.gateway.to_string(),
        sessions_wanted: u64::from(tunnel.sessions),
        ..status
    }
}

/// Runs a command's asynchronous part.
///
/// # Errors
/// There is no runtime to be had.
pub fn block_on<T>(future: impl Future<Output = T>) -> std::io::Result<T> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future))
}
