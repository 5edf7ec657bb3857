//! `autossm doctor`: looks at everything that tunnels need, and says what is wrong and what to do.
//!
//! A check that cannot be made because of what another one has found is left out, and says so: one cause, one failure.

mod account;
mod finding;
mod host;
mod listen;
mod permissions;
mod plugin;
mod reach_out;
mod settings;
mod target;

use std::collections::BTreeMap;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use futures_util::future::{join, join_all};

use self::finding::{Finding, Section, Verdict};
use super::paint::{Painter, print};
use super::reach::{Reach, block_on};
use super::{EXIT_CONFIG, EXIT_NO_PERMISSION, EXIT_NOT_UP};
use crate::aws::sdk::Clients;
use crate::config::{Config, Identity, Tunnel};
use crate::control::client::Error;
use crate::control::protocol::Status;
use crate::network::Environment;

/// For each thing that is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// What `autossm doctor` takes.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct DoctorArgs {
    /// Tunnels to look at, disabled ones too [default: every enabled one]
    #[arg(value_name = "TUNNEL")]
    pub tunnels: Vec<String>,

    /// Where the tunnels are.
    #[command(flatten)]
    pub reach: Reach,

    /// Write JSON: an array of checks with `check`, `about`, `tunnels`, `verdict` (ok, skipped, warning, failure), `message`
    /// and `remedy`
    #[arg(long)]
    pub json: bool,
}

const EXAMPLES: &str = "\
Examples:
  autossm doctor                             Everything
  autossm doctor billing-db                  What one tunnel needs
  sudo -u autossm autossm doctor             With the service's own files and credentials
  autossm doctor --json | jq '.[] | select(.verdict == \"failure\")'

Exit status:
  0   nothing fails; there may be warnings
  1   something fails
  77  the configuration may not be read by this user
  78  there is no such tunnel";

/// What the running daemons say of themselves, by the tunnels' names.
type Running = BTreeMap<String, Result<Box<Status>, Error>>;

/// Looks, and prints what was found.
///
/// # Errors
/// Standard output cannot be written to.
pub fn run(args: &DoctorArgs) -> io::Result<ExitCode> {
    block_on(examine(args))?
}

async fn examine(args: &DoctorArgs) -> io::Result<ExitCode> {
    let (config, first) = settings::read(&args.reach.config);
    let mut sections = Vec::new();
    let mut code = None;
    match &config {
        Ok(config) => match config.select(&args.tunnels) {
            Ok(tunnels) => sections = all(args, config, &tunnels, first).await,
            Err(unknown) => {
                eprintln!("error: {unknown}");
                return Ok(ExitCode::from(EXIT_CONFIG));
            }
        },
        Err(readable) => {
            if !readable {
                code = Some(EXIT_NO_PERMISSION);
            }
            let mut host = Section::new("host", &[]);
            host.add(first);
            host.extend(host::checks().await);
            sections.push(host);
        }
    }
    let text = if args.json {
        serde_json::to_string_pretty(&finding::flat(&sections))? + "\n"
    } else {
        finding::text(&sections, Painter::stdout())
    };
    print(&text)?;
    let failed = finding::worst(&sections) == Verdict::Failure;
    Ok(ExitCode::from(code.unwrap_or(if failed { EXIT_NOT_UP } else { 0 })))
}

/// Each section's checks at the same time, in a steady order.
async fn all(args: &DoctorArgs, config: &Config, tunnels: &[&Tunnel], first: Finding) -> Vec<Section> {
    let running: Running = args.reach.every_status().await.into_iter().collect();
    let clients = Clients::new(Environment::of_process());
    let mut identities: BTreeMap<&Identity, Vec<&Tunnel>> = BTreeMap::new();
    for tunnel in tunnels {
        identities.entry(&tunnel.identity).or_default().push(tunnel);
    }
    let host = async {
        let mut host = Section::new("host", &[]);
        host.add(first);
        let (plugins, rest) = join(plugin::checks(tunnels), host::checks()).await;
        host.extend(plugins);
        host.extend(rest);
        host.add(host::shell_limit(tunnels, &running));
        host
    };
    let accounts = join_all(identities.iter().map(async |(identity, tunnels)| {
        let seen = account::examine(&clients, identity, tunnels, &running).await;
        let targets = join_all(tunnels.iter().map(|tunnel| target::checks(tunnel, &seen, &running))).await;
        (seen.section, targets)
    }));
    let local = join_all(tunnels.iter().map(async |tunnel| {
        let mut found = vec![host::daemon(tunnel, &running)];
        found.extend(host::unit(&tunnel.name, status(&running, &tunnel.name).is_some()).await);
        found.extend(listen::checks(tunnel, config, &running));
        found
    }));
    let (host, (accounts, local)) = join(host, join(accounts, local)).await;

    let mut by_tunnel: BTreeMap<&str, Vec<Finding>> = BTreeMap::new();
    let mut sections = vec![host];
    for ((section, targets), tunnels) in accounts.into_iter().zip(identities.values()) {
        sections.push(section);
        for (tunnel, found) in tunnels.iter().zip(targets) {
            by_tunnel.insert(&tunnel.name, found);
        }
    }
    for (tunnel, found) in tunnels.iter().zip(local) {
        let mut section = Section::new(&format!("tunnel {}", tunnel.name), &[&tunnel.name]);
        section.extend(found);
        section.extend(by_tunnel.remove(tunnel.name.as_str()).unwrap_or_default());
        sections.push(section);
    }
    finding::settle(&mut sections);
    sections
}

/// The status of a tunnel that runs and answers.
fn status<'a>(running: &'a Running, tunnel: &str) -> Option<&'a Status> {
    let status = running.get(tunnel)?.as_deref().ok()?;
    (status.daemon.pid != 0).then_some(status)
}
