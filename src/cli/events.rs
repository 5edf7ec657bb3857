//! `autossm events`: what has happened, and what happens.

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::paint::{Colour, Painter, Read, print};
use super::reach::{Reach, block_on};
use super::recorded::RecordArg;
use super::{EXIT_CONFIG, EXIT_NO_PERMISSION, EXIT_UNAVAILABLE, paint};
use crate::control::client::{Client, Error};
use crate::control::protocol::{ErrorCode, Event, Level, Reply, Request};
use crate::control::time::Timestamp;

/// Events on their way to the screen.
const AHEAD: usize = 256;
/// Between two looks for a daemon that has ended, or a new one.
const AGAIN: Duration = Duration::from_secs(1);

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

    /// Where their records are.
    #[command(flatten)]
    pub record: RecordArg,

    /// Go on with those that happen from now on, until Ctrl-C; daemons may end and begin meanwhile
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
  autossm events -f                        Of every tunnel, those included that are started meanwhile
  autossm events --since 24h --json | jq -r 'select(.level == \"error\").message'

Of a tunnel that does not run, its record is shown; without a name, those that run.

Exit status:
  0   they were shown
  69  the tunnel does not run, and has no record
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
    let since = Timestamp::now();
    let several = args.tunnel.is_none();
    let names = args.tunnel.clone().map_or_else(|| args.reach.running(), |tunnel| vec![tunnel]);
    if names.is_empty() {
        eprintln!("autossm: no tunnel runs{}", if args.follow { "; waiting for one" } else { "" });
        if !args.follow {
            return Ok(ExitCode::from(EXIT_UNAVAILABLE));
        }
    }
    let last = args.last.or((args.follow && args.since.is_none()).then_some(10));
    let known: HashSet<String> = names.iter().cloned().collect();
    let (mut past, mut followed, mut shown, mut worst) = (Vec::new(), Vec::new(), false, 0);
    for name in names {
        let (events, code) = collect(args, &name, last).await;
        let after = events.as_ref().and_then(|events| events.last()).map(|event| event.seq);
        if code != EXIT_NO_PERMISSION && (events.is_some() || code != EXIT_CONFIG) {
            followed.push(Followed { name, after, since, told: code != 0 });
        }
        shown |= events.is_some();
        worst = worst.max(code);
        past.extend(events.into_iter().flatten());
    }
    past.sort_by_key(|event| event.at);
    past.retain(|event| args.json || is_told(event));
    if let Some(last) = last {
        past.drain(..past.len().saturating_sub(last));
    }
    let painter = Painter::stdout();
    let text: String = past.iter().map(|event| written(event, several, args.json, painter)).collect();
    let enough = print(&text)? == Read::Enough;
    if enough || !args.follow || (!several && followed.is_empty()) {
        // Of several tunnels one may well have been killed.
        return Ok(ExitCode::from(if shown { 0 } else { worst }));
    }
    follow(args, followed, several.then_some(known), painter).await
}

/// The past of one tunnel: as its daemon tells it, or as it is recorded where none runs. Why the daemon does not is said,
/// and is the exit status.
async fn collect(args: &EventsArgs, name: &str, last: Option<usize>) -> (Option<Vec<Event>>, u8) {
    // Of those that are for the record only there are at most as many again.
    let last = last.map(|last| if args.json { last } else { last.saturating_mul(3) });
    let asked: Result<_, Error> = async {
        let mut client = Client::connect(&args.reach.socket(name)).await?;
        past(&mut client, args.since, last).await
    }
    .await;
    let error = match asked {
        Ok(events) => return (Some(events), 0),
        Err(error) => error,
    };
    let (text, code) = args.reach.explain(name, &error);
    eprintln!("autossm: {text}");
    let recorded = match error {
        Error::NotRunning | Error::Dead(_) => args.record.events(&args.reach, name),
        _ => None,
    };
    let recorded = recorded.map(|mut events| {
        events.retain(|event| args.since.is_none_or(|since| event.at >= since));
        events
    });
    (recorded, code)
}

async fn past(
    client: &mut Client,
    since: Option<Timestamp>,
    last: Option<usize>,
) -> Result<Vec<Event>, Error> {
    client.send(Request::Events { since, after: None, last, follow: false }).await?;
    let mut events = Vec::new();
    loop {
        match client.reply().await? {
            Reply::Event(event) => events.push(*event),
            Reply::End => return Ok(events),
            _ => {}
        }
    }
}

/// An event, or what is to be said beside the events.
type News = Result<Box<Event>, String>;

/// A tunnel whose events are shown as they happen, from one daemon to the next.
struct Followed {
    name: String,
    /// The number of the last one that was shown.
    after: Option<u64>,
    /// When that was, or when this began.
    since: Timestamp,
    /// It has been said that nothing comes at the moment.
    told: bool,
}

impl Followed {
    /// Ends when nobody reads on, or whoever asks may not.
    async fn follow(mut self, reach: Reach, news: mpsc::Sender<News>) {
        let name = self.name.clone();
        loop {
            let why = match self.connect(&reach.socket(&name)).await {
                Ok(client) => self.listen(client, &news).await,
                Err(error @ (Error::Denied(_) | Error::Refused { code: ErrorCode::Denied, .. })) => {
                    let _ = news.send(Err(reach.explain(&name, &error).0)).await;
                    return;
                }
                Err(error) => error.to_string(),
            };
            if !self.told {
                self.told = true;
                // If nobody reads on, this is over.
                let _ = news.send(Err(format!("{name}: {why}; waiting for it to come back"))).await;
            }
            if news.is_closed() {
                return;
            }
            sleep(AGAIN).await;
        }
    }

    async fn connect(&self, socket: &Path) -> Result<Client, Error> {
        let mut client = Client::connect(socket).await?;
        // A record that somebody has removed begins anew with its numbers.
        let latest = past(&mut client, None, Some(1)).await?.last().map_or(0, |event| event.seq);
        let after = self.after.filter(|after| *after <= latest);
        let since = after.is_none().then_some(self.since);
        client.send(Request::Events { since, after, last: None, follow: true }).await?;
        Ok(client)
    }

    /// Passes on what comes; returns why nothing does any more.
    async fn listen(&mut self, mut client: Client, news: &mpsc::Sender<News>) -> String {
        self.told = false;
        loop {
            let sent = match client.next().await {
                Some(Ok(Reply::Event(event))) => {
                    (self.after, self.since) = (Some(event.seq), event.at);
                    news.send(Ok(event)).await
                }
                Some(Ok(Reply::Missed { events })) => {
                    let name = &self.name;
                    news.send(Err(format!("{name}: {events} events came too fast and are not shown"))).await
                }
                Some(Ok(_)) => Ok(()),
                Some(Err(Error::Io(_))) | None => return "its daemon has ended".to_owned(),
                Some(Err(error)) => return error.to_string(),
            };
            if sent.is_err() {
                return String::new();
            }
        }
    }
}

/// `known`: of every tunnel, those that are found later included.
async fn follow(
    args: &EventsArgs,
    followed: Vec<Followed>,
    known: Option<HashSet<String>>,
    painter: Painter,
) -> io::Result<ExitCode> {
    let (sender, mut news) = mpsc::channel(AHEAD);
    let several = known.is_some();
    for tunnel in followed {
        tokio::spawn(tunnel.follow(args.reach.clone(), sender.clone()));
    }
    if let Some(mut known) = known {
        let (reach, sender, since) = (args.reach.clone(), sender.clone(), Timestamp::now());
        tokio::spawn(async move {
            loop {
                sleep(AGAIN).await;
                for name in reach.running() {
                    if known.insert(name.clone()) {
                        let tunnel = Followed { name, after: None, since, told: false };
                        tokio::spawn(tunnel.follow(reach.clone(), sender.clone()));
                    }
                }
            }
        });
    }
    drop(sender);
    while let Some(news) = news.recv().await {
        let text = match news {
            Ok(event) => written(&event, several, args.json, painter),
            Err(text) => {
                eprintln!("autossm: {text}");
                continue;
            }
        };
        if print(&text)? == Read::Enough {
            return Ok(ExitCode::SUCCESS);
        }
    }
    Ok(ExitCode::from(EXIT_NO_PERMISSION))
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
