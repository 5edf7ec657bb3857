//! How the commands reach running tunnels.

use std::path::PathBuf;

use clap::Args;
use futures_util::future::join_all;

use super::{CONFIG, EXIT_CONFIG, EXIT_NO_PERMISSION, EXIT_OS, EXIT_UNAVAILABLE};
use crate::config::{self, Tunnel};
use crate::control::client::{self, Error};
use crate::control::place;
use crate::control::protocol::{ErrorCode, State, Status};

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
        self.configured().into_iter().find(|tunnel| tunnel.name == name)
    }

    /// The file's tunnels. Somebody who may not read it, or finds errors in it, sees what runs all the same.
    fn configured(&self) -> Vec<Tunnel> {
        let tunnels = config::load(&self.config).map(|config| config.tunnels);
        tunnels.unwrap_or_default()
    }

    /// Every tunnel that is enabled or runs, in the order of the names, each as it is now.
    pub async fn every_status(&self) -> Vec<Answer<Box<Status>>> {
        let sockets = place::sockets(&self.directories());
        let mut names: Vec<_> = sockets.keys().cloned().collect();
        let configured = self.configured();
        let asked = sockets.values().map(|socket| client::status(socket));
        let mut answers: Vec<Answer<Box<Status>>> = names.drain(..).zip(join_all(asked).await).collect();
        for tunnel in configured {
            match answers.binary_search_by(|(name, _)| name.as_str().cmp(&tunnel.name)) {
                Ok(at) => {
                    if let Some((_, answer)) = answers.get_mut(at) {
                        describe(answer, &tunnel);
                    }
                }
                Err(at) if tunnel.enabled => {
                    let mut answer = Err(Error::NotRunning);
                    describe(&mut answer, &tunnel);
                    answers.insert(at, (tunnel.name, answer));
                }
                Err(_) => {}
            }
        }
        answers
    }

    /// What to do about an error, for the person who has asked for this tunnel; and the exit status.
    pub fn explain(&self, tunnel: &str, error: &Error) -> (String, u8) {
        let start = format!("start it: systemctl start autossm@{tunnel}, or autossm run {tunnel}");
        match error {
            Error::NotRunning => {
                // Nobody is told to start what there is not.
                let config = config::load(&self.config);
                match config.map(|config| config.select(&[tunnel.to_owned()]).err()) {
                    Ok(Some(unknown)) => (unknown.to_string(), EXIT_CONFIG),
                    _ => (format!("{tunnel}: {error}; {start}"), EXIT_UNAVAILABLE),
                }
            }
            Error::Dead(_) => (format!("{tunnel}: {error}; if it stays away, {start}"), EXIT_UNAVAILABLE),
            Error::Denied(_) | Error::Refused { code: ErrorCode::Denied, .. } => {
                (format!("{tunnel}: {error}"), EXIT_NO_PERMISSION)
            }
            Error::Refused { .. } | Error::TimedOut => (format!("{tunnel}: {error}"), EXIT_UNAVAILABLE),
            Error::Strange(_) | Error::Io(_) => (format!("{tunnel}: {error}"), EXIT_OS),
        }
    }
}

/// A tunnel that does not run has at least what its configuration says.
fn describe(answer: &mut Result<Box<Status>, Error>, tunnel: &Tunnel) {
    if let Err(Error::NotRunning) = answer {
        *answer = Ok(Box::new(Status {
            name: tunnel.name.clone(),
            state: State::Stopped,
            listen: tunnel.listen.iter().map(ToString::to_string).collect(),
            targets: vec![tunnel.target.to_string()],
            remote_host: tunnel.remote_host.clone(),
            remote_port: tunnel.remote_port,
            gateway: tunnel.gateway.to_string(),
            sessions_wanted: u64::from(tunnel.sessions),
            ..Status::default()
        }));
    }
}

/// Runs a command's asynchronous part.
///
/// # Errors
/// There is no runtime to be had.
pub fn block_on<T>(future: impl Future<Output = T>) -> std::io::Result<T> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future))
}
