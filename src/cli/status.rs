//! `autossm status`: what every tunnel is doing, or one of them in full.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use terminal_size::{Width, terminal_size_of};

use super::detail::detail;
use super::events::is_told;
use super::paint::{Colour, Painter, Read, print};
use super::reach::{NotKnown, NotKnownKind, Reach, block_on};
use super::table::{Row, Written, table};
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
  69  one does not run, or does not answer
  77  not permitted: ask as root, or as a member of the group autossm
  78  there is no such tunnel, or the configuration is wrong";

/// Shows it.
///
/// # Errors
/// Standard output cannot be written to.
pub fn run(args: &StatusArgs) -> io::Result<ExitCode> {
    block_on(async {
        loop {
            let seen = match &args.tunnel {
                Some(tunnel) => one(args, tunnel).await?,
                None => all(args).await?,
            };
            // From the top left, and what was below it goes: what is said beside it has to stand there too.
            let on_screen = args.watch && !args.json && width().is_some();
            let text = if on_screen { format!("\x1b[H\x1b[2J{}", seen.drawn()) } else { seen.text };
            if !on_screen {
                seen.errors.iter().for_each(|error| eprintln!("autossm: {error}"));
            }
            if print(&text)? == Read::Enough || !args.watch {
                return Ok(ExitCode::from(seen.code));
            }
            tokio::time::sleep(WATCH).await;
        }
    })?
}

/// What one look has shown.
struct Seen {
    /// For standard output.
    text: String,
    /// For standard error.
    errors: Vec<String>,
    code: u8,
}

impl Seen {
    /// All of it, for a screen that shows nothing else.
    fn drawn(&self) -> String {
        let painter = Painter::stdout();
        let errors = self.errors.iter().map(|error| painter.paint(error, Colour::Red) + "\n");
        self.text.clone() + &errors.collect::<String>()
    }
}

async fn all(args: &StatusArgs) -> io::Result<Seen> {
    let configured = args.reach.configured();
    let tunnels = configured.as_ref().map(|config| config.tunnels.as_slice()).unwrap_or_default();
    let (mut errors, mut code) = (Vec::new(), 0);
    let mut rows = Vec::new();
    for (name, answer) in args.reach.statuses(tunnels).await {
        let row = match answer {
            Ok(status) => Row { status: *status, error: None },
            Err(error) => {
                let (text, failed) = args.reach.explain(&name, &error);
                code = code.max(failed);
                if args.json {
                    errors.push(text.clone());
                }
                let tunnel = tunnels.iter().find(|tunnel| tunnel.name == name);
                Row::unreachable(&name, tunnel, &error, &text)
            }
        };
        code = code.max(exit(&row.status));
        rows.push(row);
    }
    match configured.as_ref().err() {
        Some(unknown) if rows.is_empty() => {
            errors.push(format!("no tunnel runs; {}", unknown.text));
            code = unknown.code();
        }
        // What runs may well have another file.
        Some(NotKnown { kind: NotKnownKind::Missing, .. }) | None => {}
        Some(NotKnown { kind: NotKnownKind::NotForYou, text }) => {
            errors.push(format!("tunnels that do not run are not shown: {text}"));
        }
        Some(unknown @ NotKnown { kind: NotKnownKind::Wrong, text }) => {
            errors.push(format!("tunnels that do not run are not shown, and none can be started: {text}"));
            code = code.max(unknown.code());
        }
    }
    let text = if args.json {
        json(&rows.iter().map(Row::json).collect::<Result<Vec<_>, _>>()?, args.watch)?
    } else if !rows.is_empty() {
        table(&rows, Painter::stdout(), width())
    } else if configured.is_ok() {
        format!("no tunnel runs, and {} has none that is enabled\n", args.reach.config.display())
    } else {
        String::new()
    };
    Ok(Seen { text, errors, code })
}

/// One tunnel and its last events.
#[derive(Serialize)]
struct One<'a> {
    #[serde(flatten)]
    row: Written<'a>,
    events: Vec<Event>,
}

async fn one(args: &StatusArgs, tunnel: &str) -> io::Result<Seen> {
    let socket = args.reach.socket(tunnel);
    let asked: Result<_, Error> = async {
        let mut client = Client::connect(&socket).await?;
        let status = client.status().await?;
        let events = events(&mut client).await?;
        Ok((status, events))
    }
    .await;
    let (row, events, errors, code) = match asked {
        Ok((status, events)) => {
            let code = exit(&status);
            (Row { status: *status, error: None }, events, Vec::new(), code)
        }
        Err(error) => {
            let (text, code) = args.reach.explain(tunnel, &error);
            let row = Row::unreachable(tunnel, args.reach.tunnel(tunnel).as_ref(), &error, &text);
            (row, Vec::new(), vec![text], code)
        }
    };
    let text = if args.json {
        let one = One { row: row.json()?, events };
        json(&one, args.watch)?
    } else if row.error.is_none() {
        detail(&row.status, &events, Painter::stdout())
    } else {
        String::new()
    };
    Ok(Seen { text, errors, code })
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
