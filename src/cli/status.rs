//! `autossm status`: what every tunnel is doing, or one of them in full.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use terminal_size::{Width, terminal_size_of};

use super::detail::detail;
use super::events::is_told;
use super::paint::{Painter, Read, print};
use super::reach::{Reach, block_on};
use super::table::table;
use super::{EXIT_NOT_UP, EXIT_UNAVAILABLE};
use crate::control::client::{Client, Error};
use crate::control::protocol::{Event, Reply, Request, State, Status};

/// How often `--watch` looks.
const WATCH: Duration = Duration::from_secs(1);
/// Events shown with one tunnel.
const EVENTS: usize = 10;

/// What `autossm status` takes.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct StatusArgs {
    /// Show everything about this tunnel [default: a row for each]
    #[arg(value_name = "TUNNEL")]
    pub tunnel: Option<String>,

    /// Where the tunnels are.
    #[command(flatten)]
    pub reach: Reach,

    /// Show it again every second, until Ctrl-C
    #[arg(short, long)]
    pub watch: bool,

    /// Write JSON: an array of tunnels, or one tunnel with its last events; with --watch a line each second
    #[arg(long)]
    pub json: bool,
}

const EXAMPLES: &str = "\
Examples:
  autossm status                                             Every tunnel
  autossm status --watch                                     Again and again
  autossm status billing-db                                  Everything about one
  autossm status --json | jq -r '.[] | select(.state != \"up\").name'

Exit status:
  0   every tunnel shown is up
  1   one is not, or its destination is down
  69  one does not run
  77  not permitted: ask as root, or as a member of the group autossm
  78  there is no such tunnel";

/// Shows it.
///
/// # Errors
/// Standard output cannot be written to.
pub fn run(args: &StatusArgs) -> io::Result<ExitCode> {
    block_on(async {
        loop {
            let (text, code) = match &args.tunnel {
                Some(tunnel) => one(args, tunnel).await?,
                None => all(args).await?,
            };
            if !args.watch {
                print(&text)?;
                return Ok(ExitCode::from(code));
            }
            // From the top left, and what was below it goes.
            let screen = if args.json || width().is_none() { "" } else { "\x1b[H\x1b[2J" };
            if print(&format!("{screen}{text}"))? == Read::Enough {
                return Ok(ExitCode::from(code));
            }
            tokio::time::sleep(WATCH).await;
        }
    })?
}

async fn all(args: &StatusArgs) -> io::Result<(String, u8)> {
    let answers = args.reach.every_status().await;
    let mut code = 0;
    let mut statuses = Vec::new();
    for (name, answer) in answers {
        let status = match answer {
            Ok(status) => *status,
            Err(error) => {
                let (text, failed) = args.reach.explain(&name, &error);
                eprintln!("autossm: {text}");
                code = code.max(failed);
                unreachable(name, &error)
            }
        };
        code = code.max(exit(&status));
        statuses.push(status);
    }
    let text = if args.json {
        json(&statuses, args.watch)?
    } else if statuses.is_empty() {
        format!("no tunnel runs, and {} has none\n", args.reach.config.display())
    } else {
        table(&statuses, Painter::stdout(), width())
    };
    Ok((text, code))
}

/// One tunnel and its last events.
#[derive(Serialize)]
struct One {
    #[serde(flatten)]
    status: Box<Status>,
    events: Vec<Event>,
}

async fn one(args: &StatusArgs, tunnel: &str) -> io::Result<(String, u8)> {
    let socket = args.reach.socket(tunnel);
    let asked: Result<One, Error> = async {
        let mut client = Client::connect(&socket).await?;
        let status = client.status().await?;
        let events = events(&mut client).await?;
        Ok(One { status, events })
    }
    .await;
    match asked {
        Ok(one) if args.json => {
            let code = exit(&one.status);
            Ok((json(&one, args.watch)?, code))
        }
        Ok(one) => Ok((detail(&one.status, &one.events, Painter::stdout()), exit(&one.status))),
        Err(error) => {
            let (text, code) = args.reach.explain(tunnel, &error);
            eprintln!("autossm: {text}");
            let status = Box::new(unreachable(tunnel.to_owned(), &error));
            let text = if args.json {
                json(&One { status, events: Vec::new() }, args.watch)?
            } else {
                String::new()
            };
            Ok((text, code))
        }
    }
}

async fn events(client: &mut Client) -> Result<Vec<Event>, Error> {
    client.send(Request::Events { since: None, after: None, last: Some(3 * EVENTS), follow: false }).await?;
    let mut events = Vec::new();
    loop {
        match client.reply().await? {
            Reply::Event(event) if is_told(&event) => events.push(*event),
            Reply::End => return Ok(events.split_off(events.len().saturating_sub(EVENTS))),
            _ => {}
        }
    }
}

/// What is known of a tunnel that does not answer.
fn unreachable(name: String, error: &Error) -> Status {
    let running = !matches!(error, Error::NotRunning | Error::Dead(_));
    let state = if running { State::Unknown } else { State::Stopped };
    Status { name, state, ..Status::default() }
}

fn exit(status: &Status) -> u8 {
    match status.state {
        State::Up => 0,
        State::Stopped => EXIT_UNAVAILABLE,
        _ => EXIT_NOT_UP,
    }
}

fn json(value: &impl Serialize, one_line: bool) -> io::Result<String> {
    let text = if one_line { serde_json::to_string(value)? } else { serde_json::to_string_pretty(value)? };
    Ok(text + "\n")
}

/// Of the terminal, if standard output is one.
fn width() -> Option<usize> {
    terminal_size_of(io::stdout()).map(|(Width(width), _)| usize::from(width))
}
