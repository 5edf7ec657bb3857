//! The stock `session-manager-plugin`: found, started in a clean environment, listened to, stopped and reaped.
//!
//! It always exits with status 0, so only its words tell what happened: [`output`] reads them. [`process`] owns a running
//! one; [`find`] and [`version`] come before it, [`survivor`] after a daemon that was killed.

pub mod find;
mod lines;
mod listener;
pub mod output;
pub mod process;
pub mod survivor;
mod thinning;
pub mod version;

use std::process::Stdio;

use tokio::process::Command;

/// What a plugin inherits of the daemon's environment. The rest could send it elsewhere or give it credentials of its
/// own: `AWS_*`, `SSL_*`, `*_PROXY`.
const INHERITED: [&str; 3] = ["PATH", "LANG", "TZ"];

/// A command in a clean environment, in a process group of its own, that hears nothing and is heard.
fn clean_command(plugin: &std::path::Path) -> Command {
    let mut command = Command::new(plugin);
    command.env_clear();
    for name in INHERITED {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}
