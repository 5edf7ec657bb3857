//! `autossm events`: what has happened, and what happens.

use std::io;
use std::process::ExitCode;

use clap::Args;
use tokio::sync::mpsc;

use super::paint::{Colour, Painter, Read, print};
use super::reach::{Reach, block_on};
use super::{EXIT_UNAVAILABLE, paint};
use crate::control::client::{Client, Error};
use crate::control::protocol::{Event, Level, Reply, Request};
use crate::control::time::Timestamp;

/// Events on their way to the screen.
const AHEAD: usize = 256;

/// What `autossm events` takes.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct EventsArgs {
    /// Those of this tunnel only [default: of every tunnel that runs]
    #[arg(value_name = "TUNNEL")]
    pub tunnel: Option<String>,

    /// Where the tunnels are.
    #[command(flatten)]
    pub reach: Reach,

    /// Go on with those that happen from now on, until Ctrl-C
    #[arg(short, long)]
    pub follow: bool,

    /// Only those since then: so long ago (30m, 2h, 7d), or a time (2026-02-28T14:00:00Z)
    #[arg(short, long, value_name = "WHEN", value_parser = when)]
    pub since: Option<Timestamp>,

    /// Only so many of the latest [default: all; with --follow 10]
    #[arg(short = 'n', long, value_name = "NUMBER")]
    pub last: Option<usize>,

    /// Write a JSON object on each line
    #[arg(long)]
    pub json: bool,
}

const EXAMPLES: &str = "\
Examples:
  autossm events billing-db --since 2h     Of one tunnel, of the last two hours
  autossm events -f                        Of every tunnel, as they happen
  autossm events --since 24h --json | jq -r 'select(.level == \"error\").message'

Exit status:
  0   they were shown
  69  the tunnel does not run
  77  not permitted: ask as root, or as a member of the group autossm
  78  there is no such tunnel";

fn when(text: &str) -> Result<Timestamp, String> {
    if let Ok(ago) = humantime::parse_duration(text) {
        return Ok(Timestamp::now().before(ago));
    }
    text.parse().map_err(|error| format!("{error}, or how long ago: 30m, 2h, 7d"))
}

/// Shows them.
///
/// # Errors
/// Standard output cannot be written to.
pub fn run(args: &EventsArgs) -> io::Result<ExitCode> {
    block_on(show(args))?
}

async fn show(args: &EventsArgs) -> io::Result<ExitCode> {
    let names = match &args.tunnel {
        Some(tunnel) => vec![tunnel.clone()],
        None => args.reach.running(),
    };
    if names.is_empty() {
        eprintln!("autossm: no tunnel runs");
        return Ok(ExitCode::from(EXIT_UNAVAILABLE));
    }
    let several = args.tunnel.is_none();
    let last = args.last.or((args.follow && args.since.is_none()).then_some(10));
    let (mut clients, mut code) = (Vec::new(), 0);
    let mut past = Vec::new();
    for name in names {
        match collect(args, &name, last).await {
            Ok((client, events)) => {
                past.extend(events);
                clients.push((name, client));
            }
            Err(error) => {
                let (text, failed) = args.reach.explain(&name, &error);
                eprintln!("autossm: {text}");
                // Of several tunnels one may well have been killed.
                code = if several { code } else { failed };
            }
        }
    }
    past.sort_by_key(|event| event.at);
    past.retain(|event| args.json || is_told(event));
    if let Some(last) = last {
        past.drain(..past.len().saturating_sub(last));
    }
    let painter = Painter::stdout();
    let text: String = past.iter().map(|event| written(event, several, args.json, painter)).collect();
    if print(&text)? == Read::Enough || !args.follow || clients.is_empty() {
        return Ok(ExitCode::from(code));
    }
    follow(args, clients, several, painter).await
}

/// The past of one tunnel, and a connection that goes on with what comes.
async fn collect(
    args: &EventsArgs,
    name: &str,
    last: Option<usize>,
) -> Result<(Option<Client>, Vec<Event>), Error> {
    let mut client = Client::connect(&args.reach.socket(name)).await?;
    // Of those that are for the record only there are at most as many again.
    let asked = last.map(|last| if args.json { last } else { last.saturating_mul(3) });
    client.send(Request::Events { since: args.since, after: None, last: asked, follow: false }).await?;
    let mut events = Vec::new();
    loop {
        match client.reply().await? {
            Reply::Event(event) => events.push(*event),
            Reply::End => break,
            _ => {}
        }
    }
    if !args.follow {
        return Ok((None, events));
    }
    let after = Some(events.last().map_or(0, |event| event.seq));
    // Without one that was shown, only what comes from now on is new.
    let (after, since) = if events.is_empty() { (None, Some(Timestamp::now())) } else { (after, None) };
    client.send(Request::Events { since, after, last: None, follow: true }).await?;
    Ok((Some(client), events))
}

async fn follow(
    args: &EventsArgs,
    clients: Vec<(String, Option<Client>)>,
    several: bool,
    painter: Painter,
) -> io::Result<ExitCode> {
    let (sender, mut replies) = mpsc::channel(AHEAD);
    for (name, client) in clients {
        let (Some(mut client), sender) = (client, sender.clone()) else { continue };
        tokio::spawn(async move {
            while let Some(reply) = client.next().await {
                if sender.send((name.clone(), reply)).await.is_err() {
                    return;
                }
            }
        });
    }
    drop(sender);
    while let Some((name, reply)) = replies.recv().await {
        let text = match reply {
            Ok(Reply::Event(event)) => written(&event, several, args.json, painter),
            Ok(Reply::Missed { events }) => {
                eprintln!("autossm: {name}: {events} events came too fast and are not shown");
                continue;
            }
            Ok(_) => continue,
            Err(error) => {
                eprintln!("autossm: {name}: {error}");
                continue;
            }
        };
        if print(&text)? == Read::Enough {
            return Ok(ExitCode::SUCCESS);
        }
    }
    eprintln!("autossm: the daemon has ended");
    Ok(ExitCode::from(EXIT_UNAVAILABLE))
}

fn written(event: &Event, several: bool, json: bool, painter: Painter) -> String {
    if json {
        return serde_json::to_string(event).map(|text| text + "\n").unwrap_or_default();
    }
    if is_told(event) { line(event, several, painter) + "\n" } else { String::new() }
}

/// Whether it is for people. The others are made for those who draw the past, and say the same in fewer words.
pub fn is_told(event: &Event) -> bool {
    event.level != Level::Debug
}

/// An event on one line.
pub fn line(event: &Event, with_tunnel: bool, painter: Painter) -> String {
    let level = match event.level {
        Level::Debug => "DEBUG",
        Level::Info => " INFO",
        Level::Warn => " WARN",
        Level::Error => "ERROR",
    };
    let time = painter.paint(&event.at.to_string(), Colour::Dim);
    let level = painter.paint(level, Colour::of_level(event.level));
    let tunnel =
        if with_tunnel { format!("{}: ", painter.paint(&event.tunnel, Colour::Bold)) } else { String::new() };
    let session =
        event.session.as_ref().map(|id| format!(" {}", painter.paint(&format!("({id})"), Colour::Dim)));
    format!("{time} {level} {tunnel}{}{}", paint::harmless(&event.message), session.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn since_is_a_time_or_so_long_ago() {
        let ago = when("2h").unwrap();
        assert!(Timestamp::now().since(ago) >= Duration::from_secs(7200));
        assert_eq!(when("2026-02-28T14:00:00Z").unwrap().to_string(), "2026-02-28T14:00:00.000Z");
        assert!(when("yesterday").unwrap_err().contains("2h"));
    }

    #[test]
    fn a_line_has_what_one_looks_for() {
        let at = Timestamp::from_millis(1_772_287_387_250);
        let (tunnel, session) = ("db".to_owned(), Some("s-1".to_owned()));
        let message = "lost\x1b[2J\nhere".to_owned();
        let event = Event { at, tunnel, session, message, level: Level::Warn, ..Event::default() };
        let said = line(&event, true, Painter::plain());
        assert_eq!(said, "2026-02-28T14:03:07.250Z  WARN db: lost\u{fffd}[2J here (s-1)");
    }
}
