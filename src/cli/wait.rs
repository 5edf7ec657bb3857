//! `autossm wait`: until a tunnel is up, for scripts and for units that need it.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::time::{Instant, sleep};

use super::paint::{age, print};
use super::reach::{Reach, block_on};
use super::table::{Row, trouble};
use super::{EXIT_CONFIG, EXIT_NO_PERMISSION, EXIT_NOT_UP};
use crate::control::client;

/// How often it looks. A tunnel is up within 1 to 3 s of its start.
const LOOK: Duration = Duration::from_millis(200);

/// What `autossm wait` takes.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct WaitArgs {
    /// The tunnel
    #[arg(value_name = "TUNNEL")]
    pub tunnel: String,

    /// Where the tunnel is.
    #[command(flatten)]
    pub reach: Reach,

    /// Give up after this time; 0s only looks
    #[arg(short, long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    pub timeout: Duration,

    /// Write the tunnel's status as JSON
    #[arg(long)]
    pub json: bool,
}

const EXAMPLES: &str = "\
The daemon need not run yet: it is waited for as well. A tunnel is up when new connections go through it.

Examples:
  autossm wait billing-db && psql -h 127.0.0.1 -p 15432
  ExecStartPre=autossm wait billing-db --timeout 2m     In the unit of a service that needs the tunnel

Exit status:
  0   it is up
  1   it was not up in time
  77  not permitted: ask as root, or as a member of the group autossm
  78  there is no such tunnel";

/// Waits.
///
/// # Errors
/// Standard output cannot be written to.
pub fn run(args: &WaitArgs) -> io::Result<ExitCode> {
    block_on(wait(args))?
}

async fn wait(args: &WaitArgs) -> io::Result<ExitCode> {
    let until = Instant::now() + args.timeout;
    loop {
        // It may come into being meanwhile, here or there.
        let answer = client::status(&args.reach.socket(&args.tunnel)).await;
        let (why, row) = match answer {
            Ok(status) => {
                let serves = status.state.serves();
                let word = status.state.word();
                let why =
                    trouble(&status).map_or_else(|| word.to_owned(), |trouble| format!("{word}: {trouble}"));
                let row = Row { status: *status, error: None };
                if serves {
                    return told(args, &row, EXIT_UP, "");
                }
                (why, row)
            }
            Err(error) => {
                let (text, code) = args.reach.explain(&args.tunnel, &error);
                let configured = args.reach.configured();
                let tunnels = configured.as_ref().map(|config| config.tunnels.as_slice()).unwrap_or_default();
                let tunnel = tunnels.iter().find(|tunnel| tunnel.name == args.tunnel);
                let row = Row::unreachable(&args.tunnel, tunnel, &error, &text);
                // Waiting changes nothing about these. A file with errors may be one that is just being written.
                if code == EXIT_NO_PERMISSION || (code == EXIT_CONFIG && configured.is_ok()) {
                    return told(args, &row, code, &text);
                }
                (row.error.clone().unwrap_or_default(), row)
            }
        };
        if Instant::now() + LOOK > until {
            let text = format!("{}: not up after {}: {why}", args.tunnel, age(args.timeout));
            return told(args, &row, EXIT_NOT_UP, &text);
        }
        sleep(LOOK).await;
    }
}

const EXIT_UP: u8 = 0;

fn told(args: &WaitArgs, row: &Row, code: u8, text: &str) -> io::Result<ExitCode> {
    if code != EXIT_UP {
        eprintln!("autossm: {text}");
    }
    if args.json {
        print(&(serde_json::to_string(&row.json()?)? + "\n"))?;
    }
    Ok(ExitCode::from(code))
}
