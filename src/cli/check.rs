//! `autossm check`: is the configuration right, and what is in it?

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;

use super::reach::block_on;
use super::{ConfigArg, EXIT_CONFIG};
use crate::aws::sdk::excluded;
use crate::config::{self, Config, Problem, Problems, Tunnel, problem_text};

/// What `autossm check` takes.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct CheckArgs {
    /// The configuration file.
    #[command(flatten)]
    pub config: ConfigArg,

    /// List nothing: only say what is wrong
    #[arg(short, long)]
    pub quiet: bool,
}

const EXAMPLES: &str = "\
Examples:
  autossm check                                    Check /etc/autossm/config.toml
  autossm check --config ./config.toml             Check another file
  autossm check && systemctl reload 'autossm@*'    Reload only what is right";

/// Prints the tunnels, or what is wrong.
///
/// # Errors
/// Standard output or standard error cannot be written to.
pub fn run(args: &CheckArgs) -> io::Result<ExitCode> {
    let mut read = config::load(&args.config.path);
    if let Ok(config) = &read {
        let list = block_on(beyond_the_file(config))?;
        if !list.is_empty() {
            read = Err(Problems { file: args.config.path.display().to_string(), list });
        }
    }
    for warning in read.iter().flat_map(|config| &config.warnings) {
        writeln!(io::stderr().lock(), "warning: {warning}")?;
    }
    match read {
        Ok(_) if args.quiet => Ok(ExitCode::SUCCESS),
        Ok(config) => match io::stdout().lock().write_all(listing(&config).as_bytes()) {
            // Whoever reads has read enough.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok(ExitCode::SUCCESS),
        },
        Err(problems) => {
            writeln!(io::stderr().lock(), "{problems}")?;
            Ok(ExitCode::from(EXIT_CONFIG))
        }
    }
}

/// What cannot work together with this process's environment and this user's profiles, which are the daemon's where it is the
/// daemon's unit that asks.
async fn beyond_the_file(config: &Config) -> Vec<Problem> {
    let mut problems = Vec::new();
    for tunnel in &config.tunnels {
        if let Some(exclusion) = excluded(&tunnel.identity).await {
            let what = format!("tunnel {}: {exclusion}", problem_text(&tunnel.name));
            problems.push(Problem { position: None, what, help: exclusion.remedy() });
        }
    }
    problems
}

/// One line for each tunnel, in columns.
fn listing(config: &Config) -> String {
    let rows: Vec<[String; 6]> = config.tunnels.iter().map(row).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 5] = std::array::from_fn(width);
    let line = |row: &[String; 6]| {
        let [name, listen, target, destination, sessions, gateway] = row;
        let [a, b, c, d, e] = widths;
        format!("{name:a$}  {listen:b$} → {target:c$} → {destination:d$}  {sessions:e$}  {gateway}\n")
    };
    rows.iter().map(line).collect()
}

fn row(tunnel: &Tunnel) -> [String; 6] {
    let port = tunnel.remote_port;
    let listen: Vec<String> = tunnel.listen.iter().map(ToString::to_string).collect();
    let destination = match &tunnel.remote_host {
        Some(address) if address.contains(':') => format!("[{address}]:{port}"),
        Some(host) => format!("{host}:{port}"),
        None => format!("its port {port}"),
    };
    let sessions =
        if tunnel.sessions == 1 { "1 session".to_owned() } else { format!("{} sessions", tunnel.sessions) };
    let disabled = if tunnel.enabled { "" } else { "  disabled" };
    let gateway = format!("{}{disabled}", tunnel.gateway);
    [tunnel.name.clone(), listen.join(", "), tunnel.target.to_string(), destination, sessions, gateway]
}
