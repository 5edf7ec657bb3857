//! `autossm why`: why a tunnel is down, or was last down.

mod cause;
mod incident;
mod story;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::Args;

use super::EXIT_NOT_UP;
use super::events::line;
use super::paint::{Colour, Painter, print, took};
use super::reach::{Reach, block_on};
use super::recorded::RecordArg;
use crate::control::client::{Client, Error};
use crate::control::protocol::history::STATE;
use crate::control::protocol::{Event, Reply, Request, State, Status};
use crate::control::time::Timestamp;
use crate::telemetry::history::MOST;
pub(super) use cause::Cause;
use incident::state;
pub(super) use story::hindrance;
use story::{Story, tell};

/// The width of the names on the left.
const NAMES: usize = 13;
/// How often a tunnel is asked again whose state changes while it is asked.
const AGAIN: usize = 3;

/// What `autossm why` takes.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct WhyArgs {
    /// The tunnel
    #[arg(value_name = "TUNNEL")]
    pub tunnel: String,

    /// Where the tunnel is.
    #[command(flatten)]
    pub reach: Reach,

    /// Where its record is.
    #[command(flatten)]
    pub record: RecordArg,

    /// Write a JSON object
    #[arg(long)]
    pub json: bool,
}

const EXAMPLES: &str = "\
The first line is the answer. It asks the daemon, or reads the record in the state directory where none runs.

Examples:
  autossm why billing-db
  autossm why billing-db --json | jq -r .cause

Exit status:
  0   the tunnel is up
  1   it is not, or its destination is down
  69  it does not run
  77  not permitted: ask as root, or as a member of the group autossm
  78  there is no such tunnel";

/// Tells it.
///
/// # Errors
/// Standard output cannot be written to.
pub fn run(args: &WhyArgs) -> io::Result<ExitCode> {
    block_on(why(args))?
}

async fn why(args: &WhyArgs) -> io::Result<ExitCode> {
    let (status, events, code) = match ask(&args.reach.socket(&args.tunnel)).await {
        Ok((status, events)) => {
            let code = if status.state == State::Up { 0 } else { EXIT_NOT_UP };
            (status, events, code)
        }
        Err(error) => {
            let (text, code) = args.reach.explain(&args.tunnel, &error);
            let recorded = match error {
                Error::NotRunning | Error::Dead(_) => args.record.events(&args.reach, &args.tunnel),
                _ => None,
            };
            eprintln!("autossm: {text}");
            let Some(events) = recorded else { return Ok(ExitCode::from(code)) };
            let (name, state, now) = (args.tunnel.clone(), State::Stopped, Timestamp::now());
            (Box::new(Status { name, state, now, ..Status::default() }), events, code)
        }
    };
    let story = tell(&status, &events);
    let text = if args.json {
        serde_json::to_string_pretty(&story)? + "\n"
    } else {
        written(&story, Painter::stdout())
    };
    print(&text)?;
    Ok(ExitCode::from(code))
}

async fn ask(socket: &Path) -> Result<(Box<Status>, Vec<Event>), Error> {
    let mut client = Client::connect(socket).await?;
    let (mut status, mut events) = (client.status().await?, events(&mut client).await?);
    // Between the two the state may have changed: they have to speak of the same.
    for _ in 0..AGAIN {
        let last = events.iter().rfind(|event| event.event == STATE).map(state);
        let tries = status.state == State::Starting && last == Some(State::Waiting.word());
        if tries || last.is_none_or(|last| last == status.state.word()) {
            break;
        }
        (status, events) = (client.status().await?, self::events(&mut client).await?);
    }
    Ok((status, events))
}

async fn events(client: &mut Client) -> Result<Vec<Event>, Error> {
    client.send(Request::Events { since: None, after: None, last: Some(MOST), follow: false }).await?;
    let mut events = Vec::new();
    loop {
        match client.reply().await? {
            Reply::Event(event) => events.push(*event),
            Reply::End => return Ok(events),
            _ => {}
        }
    }
}

/// For a person.
fn written(story: &Story, painter: Painter) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "{}", painter.paint(&story.headline, Colour::of_state(story.state)));
    let mut fact = |name: &str, value: &str| {
        let name = painter.padded(name, Colour::Dim, NAMES);
        let _ = writeln!(text, "  {name}{}", painter.paint(value, Colour::Plain));
    };
    if let Some(remedy) = &story.remedy {
        fact("what to do", remedy);
    }
    if let Some(words) = &story.words {
        fact("in its words", words);
    }
    if let Some(first) = &story.began_with {
        fact("it began", first);
    }
    let of_plugin =
        matches!(story.cause, Some(Cause::PluginKilled | Cause::PluginExited | Cause::PluginHung));
    if let Some(words) = story.plugin_said.as_ref().filter(|_| of_plugin) {
        fact("plugin", &format!("its last words: {words}"));
    }
    for (at, line) in clients(story).iter().enumerate() {
        fact(if at == 0 { "clients" } else { "" }, line);
    }
    for (at, line) in story.did.iter().enumerate() {
        fact(if at == 0 { "autossm" } else { "" }, line);
    }
    if let Some(session) = &story.session {
        fact("session", session);
    }
    if let Some(lookup) = &story.lookup {
        fact("CloudTrail", "some 5 minutes after the call, in this account:");
        let _ = writeln!(text, "    {lookup}");
    }
    for note in &story.notes {
        let _ = writeln!(text, "  {}", painter.paint(note, Colour::Plain));
    }
    if !story.events.is_empty() {
        let _ = writeln!(text, "{}", painter.paint("what happened", Colour::Bold));
        let left_out = story.events_left_out;
        for (at, event) in story.events.iter().enumerate() {
            if at == story::SHOWN.0 && left_out > 0 {
                let _ = writeln!(text, "  … {left_out} more: autossm events {}", story.name);
            }
            let _ = writeln!(text, "  {}", line(event, false, painter));
        }
    }
    text
}

fn clients(story: &Story) -> Vec<String> {
    let clients = &story.clients;
    let mut lines = Vec::new();
    if clients.held > 0 {
        lines.push(format!("{} waiting now", clients.held));
    }
    if clients.released > 0 {
        let longest = took(clients.longest_wait_ms);
        lines.push(format!("{} waited and were served, the longest after {longest}", clients.released));
    }
    if clients.timed_out > 0 {
        lines.push(format!("{} waited in vain and were closed", clients.timed_out));
    }
    if clients.cut > 0 {
        lines.push(format!("{} open connections were cut", clients.cut));
    }
    // Those whom the destination refused were neither.
    if lines.is_empty() && story.cause.is_some_and(|cause| cause != Cause::Destination) {
        lines.push("none waited, none was cut".to_owned());
    }
    lines
}
