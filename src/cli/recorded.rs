//! The record of events of a tunnel that no daemon runs.

use std::path::PathBuf;

use clap::Args;

use super::reach::Reach;
use super::run::state_directories;
use crate::control::place;
use crate::control::protocol::Event;
use crate::telemetry::history;

/// `--state-dir`, the same for every command that reads it.
#[derive(Clone, Debug, Args)]
pub struct RecordArg {
    /// Where the record of events is, of a tunnel that does not run: what `autossm run` was given as --state-dir
    ///
    /// [default: --runtime-dir if that is given, else /var/lib/autossm, and $XDG_STATE_HOME/autossm or
    /// ~/.local/state/autossm]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

impl RecordArg {
    /// What the state directory has of a tunnel, oldest first. What cannot be read is said on standard error.
    pub fn events(&self, reach: &Reach, tunnel: &str) -> Option<Vec<Event>> {
        let asked = self.state_dir.clone().or_else(|| reach.runtime_dir.clone());
        let directories = asked.map_or_else(state_directories, |asked| vec![asked]);
        for directory in directories {
            let folder = place::folder(&directory, tunnel);
            match history::read(&folder) {
                Ok(events) if !events.is_empty() => return Some(events),
                Ok(_) => {}
                Err(error) => eprintln!(
                    "autossm: {}: {error}; ask as root, or as a member of the group autossm",
                    folder.display()
                ),
            }
        }
        None
    }
}
