//! `autossm drill`: kills a plugin on purpose and measures how the tunnel comes back.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::paint::{Colour, Painter, print, took};
use super::reach::{Reach, block_on};
use super::{EXIT_NOT_UP, EXIT_USAGE};
use crate::config::{ProbeKind, Tunnel};
use crate::control::client::{Client, Error};
use crate::control::protocol::{Event, Phase, Reply, Request, Session, State, Status, history};
use crate::control::time::Timestamp;
use crate::probe::{Destination, ask};

/// Between two tries of the probe: what was cut with the session is tried again.
const AGAIN: Duration = Duration::from_millis(20);

/// What `autossm drill` takes.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct DrillArgs {
    /// The tunnel
    #[arg(value_name = "TUNNEL")]
    pub tunnel: String,

    /// Where the tunnel is.
    #[command(flatten)]
    pub reach: Reach,

    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,

    /// Wait so long for the tunnel to come back
    #[arg(short, long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    pub timeout: Duration,

    /// Write a JSON object
    #[arg(long)]
    pub json: bool,
}

const EXAMPLES: &str = "\
Of a tunnel with several sessions one is hit, that with the fewest open connections. The times are the daemon's own, from
the command to each of its events. What a client meets is measured only where the configuration has a [tunnel.probe] that
expects an answer: that a connection can be opened says nothing, because the port is never closed.

Examples:
  autossm drill billing-db                    Says what will be cut, asks, and measures
  autossm drill billing-db --yes --json       From a timer, once a month

Exit status:
  0   the tunnel came back
  1   it did not within the time, or was not up before
  2   it was not wanted after all, or nobody could be asked
  69  the tunnel does not run
  77  not permitted: ask as root, or as a member of the group autossm
  78  there is no such tunnel";

/// What came of it. Times are milliseconds from the kill.
#[derive(Debug, Default, Serialize)]
struct Outcome {
    name: String,
    /// A session has taken its place, and new connections go through, within the time.
    back: bool,
    /// The session that was hit.
    session: String,
    plugin_pid: Option<u32>,
    /// The plugin's end was noticed.
    noticed_ms: Option<u64>,
    /// The session that has taken its place.
    replacement: Option<String>,
    ready_ms: Option<u64>,
    /// How long no session took new connections.
    without_session_ms: Option<u64>,
    /// Others that served meanwhile.
    other_sessions: usize,
    /// Connections cut with the session.
    cut: u64,
    /// Clients that waited and were served.
    waited: u64,
    /// Clients that waited in vain.
    timed_out: u64,
    /// A probe through the tunnel's own address was answered.
    client_ms: Option<u64>,
    /// What the client did, or why there was none.
    client: String,
}

/// Kills and measures.
///
/// # Errors
/// Standard output cannot be written to.
pub fn run(args: &DrillArgs) -> io::Result<ExitCode> {
    block_on(async {
        match drill(args).await {
            Ok(code) => code.map(ExitCode::from),
            Err(error) => {
                let (text, code) = args.reach.explain(&args.tunnel, &error);
                eprintln!("autossm: {text}");
                Ok(ExitCode::from(code))
            }
        }
    })?
}

async fn drill(args: &DrillArgs) -> Result<io::Result<u8>, Error> {
    let name = &args.tunnel;
    let socket = args.reach.socket(name);
    let mut client = Client::connect(&socket).await?;
    let before = client.status().await?;
    let serving = before.sessions.iter().filter(|s| s.phase == Phase::Ready && s.id.is_some());
    if !before.state.serves() {
        let state = before.state.word();
        eprintln!("autossm: {name}: it is {state}, and cannot show how it comes back: autossm why {name}");
        return Ok(Ok(EXIT_NOT_UP));
    }
    let Some(victim) = serving.clone().min_by_key(|session| session.open) else {
        eprintln!("autossm: {name}: no session serves, so there is nothing to exercise: autossm why {name}");
        return Ok(Ok(EXIT_NOT_UP));
    };
    let others = serving.count() - 1;
    if !args.yes {
        match confirmed(&before, victim, others) {
            Ok(true) => {}
            Ok(false) => return Ok(Ok(EXIT_USAGE)),
            Err(error) => return Ok(Err(error)),
        }
        // Somebody may have thought about it for long.
        client = Client::connect(&socket).await?;
    }
    let events = follow(&socket).await?;
    let session = victim.id.clone().unwrap_or_default();
    let killed = Instant::now();
    client.ask(Request::Drill { session: session.clone() }).await?;
    let mut outcome = Outcome {
        name: name.clone(),
        session,
        plugin_pid: victim.plugin_pid,
        other_sessions: others,
        ..Outcome::default()
    };
    let tunnel = args.reach.tunnel(name);
    let lost = Notify::new();
    let (back, answered) = tokio::join!(
        timeout(args.timeout, watch(events, &mut outcome, &lost)),
        client_view(tunnel.as_ref(), &before, killed, args.timeout, &lost)
    );
    (outcome.client_ms, outcome.client) = answered;
    if let Ok(after) = client.status().await {
        let (now, then) = (&after.connections, &before.connections);
        outcome.waited = now.released.saturating_sub(then.released);
        outcome.timed_out = now.timed_out.saturating_sub(then.timed_out);
    }
    outcome.back = match back {
        Ok(Ok(())) => true,
        Ok(Err(error)) => return Err(error),
        Err(_) => false,
    };
    let text = if args.json {
        serde_json::to_string(&outcome).map(|text| text + "\n").map_err(io::Error::from)
    } else {
        Ok(written(&outcome, Painter::stdout()))
    };
    if !outcome.back {
        eprintln!("autossm: {name}: not back after {:?}: autossm why {name}", args.timeout);
    }
    Ok(text.and_then(|text| print(&text)).map(|_| if outcome.back { 0 } else { EXIT_NOT_UP }))
}

/// Says what will be cut and asks whoever sits at the terminal.
fn confirmed(status: &Status, victim: &Session, others: usize) -> io::Result<bool> {
    let name = &status.name;
    if !io::stdin().is_terminal() {
        eprintln!("autossm: {name}: nobody can be asked here; say --yes where that is what you want");
        return Ok(false);
    }
    let beside = match others {
        0 => "clients that come meanwhile wait".to_owned(),
        1 => "one other session goes on serving".to_owned(),
        others => format!("{others} other sessions go on serving"),
    };
    eprint!(
        "{name}: kill the plugin of session {} (pid {})? Its {} open connections will be cut; {beside}. [y/N] ",
        victim.id.as_deref().unwrap_or_default(),
        victim.plugin_pid.unwrap_or_default(),
        victim.open,
    );
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

/// The events from now on.
async fn follow(socket: &Path) -> Result<Client, Error> {
    let mut events = Client::connect(socket).await?;
    events.send(Request::Events { since: None, after: None, last: Some(1), follow: false }).await?;
    let mut after = 0;
    while let Reply::Event(event) = events.reply().await? {
        after = event.seq;
    }
    events.send(Request::Events { since: None, after: Some(after), last: None, follow: true }).await?;
    Ok(events)
}

/// Reads events until the session has its replacement, and new connections go through.
async fn watch(mut events: Client, outcome: &mut Outcome, lost: &Notify) -> Result<(), Error> {
    let mut progress = Progress::default();
    while let Some(reply) = events.next().await {
        let Reply::Event(event) = reply? else { continue };
        let back = progress.note(&event, outcome);
        if outcome.noticed_ms.is_some() {
            lost.notify_one();
        }
        if back {
            return Ok(());
        }
    }
    Err(Error::Io(io::ErrorKind::UnexpectedEof.into()))
}

/// What is known so far.
#[derive(Default)]
struct Progress {
    killed: Option<Timestamp>,
    /// Since when no new connection goes through.
    down: Option<Timestamp>,
}

impl Progress {
    /// Whether the tunnel is back with this event.
    fn note(&mut self, event: &Event, outcome: &mut Outcome) -> bool {
        let about_it = event.session.as_deref() == Some(&outcome.session);
        match event.event.as_str() {
            "requested" if about_it => self.killed = Some(event.at),
            _ if self.killed.is_none() => {}
            "lost" if about_it => {
                outcome.noticed_ms = since(event, self.killed);
                outcome.cut = event.fields.get("cut").and_then(serde_json::Value::as_u64).unwrap_or(0);
            }
            "ready" if outcome.replacement.is_none() => {
                outcome.ready_ms = since(event, self.killed);
                outcome.replacement.clone_from(&event.session);
            }
            history::STATE if serves(event) => {
                outcome.without_session_ms = since(event, self.down.take()).or(outcome.without_session_ms);
            }
            history::STATE => self.down = self.down.or(Some(event.at)),
            _ => {}
        }
        // `ready` is told before the state that follows from it.
        outcome.replacement.is_some() && self.down.is_none()
    }
}

/// New connections go through, even if the destination does not answer them.
fn serves(event: &Event) -> bool {
    let word = event.fields.get("state").and_then(serde_json::Value::as_str);
    [State::Up, State::Degraded].iter().any(|state| word == Some(state.word()))
}

fn since(event: &Event, start: Option<Timestamp>) -> Option<u64> {
    let lasted = event.at.since(start?);
    Some(u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX))
}

/// How long until a client gets an answer of the destination; and what was asked, or why nobody was.
/// It comes when the session is lost: one that is earlier may still be answered through the plugin that dies.
async fn client_view(
    tunnel: Option<&Tunnel>,
    status: &Status,
    killed: Instant,
    patience: Duration,
    lost: &Notify,
) -> (Option<u64>, String) {
    let Some(tunnel) = tunnel else {
        return (
            None,
            "not measured: the configuration file cannot be read, or has other tunnels".to_owned(),
        );
    };
    if status.state == State::Degraded {
        return (None, "not measured: the destination did not answer before, either".to_owned());
    }
    let Some(probe) = &tunnel.probe else {
        return (
            None,
            "not measured: there is no [tunnel.probe], and a connection that opens says nothing of the destination"
                .to_owned(),
        );
    };
    if probe.kind == ProbeKind::Tcp {
        return (
            None,
            "not measured: a probe of the kind tcp waits for no answer of the destination".to_owned(),
        );
    }
    let Some(address) = status.listen.first() else { return (None, "not measured: no address".to_owned()) };
    let destination = Destination {
        host: tunnel.remote_host.as_deref(),
        port: tunnel.remote_port,
        ca_file: tunnel.identity.ca_file.as_deref(),
    };
    let (until, mut tries) = (killed + patience, 0);
    if tokio::time::timeout_at(until, lost.notified()).await.is_err() {
        return (None, "not measured: the session was not lost".to_owned());
    }
    loop {
        tries += 1;
        let answered = async {
            let asked = match address.strip_prefix("unix:") {
                Some(path) => ask(&probe.kind, destination, UnixStream::connect(path).await?).await,
                None => ask(&probe.kind, destination, TcpStream::connect(address.as_str()).await?).await,
            };
            asked.map_err(|bad| io::Error::other(bad.to_string()))
        };
        let error = match tokio::time::timeout_at(until, answered).await {
            Ok(Ok(())) => {
                let took = u64::try_from(killed.elapsed().as_millis()).unwrap_or(u64::MAX);
                let tries = if tries == 1 { "its first try".to_owned() } else { format!("try {tries}") };
                return (Some(took), format!("a probe through {address} was answered on {tries}"));
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        if Instant::now() + AGAIN > until {
            return (None, format!("a probe through {address} got no good answer: {error}"));
        }
        sleep(AGAIN).await;
    }
}

fn written(outcome: &Outcome, painter: Painter) -> String {
    let millis = |ms: Option<u64>| ms.map_or_else(|| "never".to_owned(), took);
    let (headline, colour) = match (outcome.back, outcome.without_session_ms, outcome.ready_ms) {
        (true, Some(without), _) => {
            (format!("{} was back after {}", outcome.name, took(without)), Colour::Green)
        }
        (true, None, ready) => (
            format!(
                "{} served all the while; the session was replaced after {}",
                outcome.name,
                millis(ready)
            ),
            Colour::Green,
        ),
        (false, ..) => (format!("{} has not come back", outcome.name), Colour::Red),
    };
    let mut text = painter.paint(&headline, colour) + "\n";
    let mut fact = |name: &str, value: &str| {
        text +=
            &format!("  {}{}\n", painter.padded(name, Colour::Dim, 13), painter.paint(value, Colour::Plain));
    };
    let pid = outcome.plugin_pid.map(|pid| format!(", plugin pid {pid}")).unwrap_or_default();
    fact(
        "killed",
        &format!("session {}{pid}; noticed after {}", outcome.session, millis(outcome.noticed_ms)),
    );
    if let Some(replacement) = &outcome.replacement {
        fact("replaced by", &format!("session {replacement}, ready after {}", millis(outcome.ready_ms)));
    }
    match outcome.other_sessions {
        0 => {}
        1 => fact("meanwhile", "the other session took new connections"),
        others => fact("meanwhile", &format!("{others} other sessions took new connections")),
    }
    let (cut, waited) = (outcome.cut, outcome.waited);
    let timed_out = match outcome.timed_out {
        0 => String::new(),
        count => format!(", {count} waited in vain"),
    };
    fact("connections", &format!("{cut} were cut, {waited} waited and were served{timed_out}"));
    let client = outcome.client_ms.map(|ms| format!("{}: ", took(ms))).unwrap_or_default();
    fact("a client", &format!("{client}{}", outcome.client));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(at: u64, word: &str, session: Option<&str>, state: Option<&str>) -> Event {
        let (at, session) = (Timestamp::from_millis(at), session.map(str::to_owned));
        let fields = state.map(|state| ("state".to_owned(), state.into())).into_iter().collect();
        Event { at, event: word.to_owned(), session, fields, ..Event::default() }
    }

    /// The time until a tunnel was back, and how long it did not serve.
    fn back(events: &[Event]) -> Option<(u64, Option<u64>)> {
        let mut outcome = Outcome { session: "a".to_owned(), ..Outcome::default() };
        let mut progress = Progress::default();
        let last = events.iter().find(|event| progress.note(event, &mut outcome))?;
        Some((last.at.millis(), outcome.without_session_ms))
    }

    #[test]
    fn a_tunnel_is_back_when_it_serves_whether_or_not_its_destination_answers() {
        let state = |at, state| event(at, history::STATE, None, Some(state));
        let killed = event(100, "requested", Some("a"), None);
        let lost = event(102, "lost", Some("a"), None);
        let ready = event(900, "ready", Some("b"), None);
        for last in ["up", "degraded"] {
            let events =
                [killed.clone(), lost.clone(), state(103, "starting"), ready.clone(), state(901, last)];
            assert_eq!(back(&events), Some((901, Some(798))), "{last}");
            assert_eq!(back(&events[..4]), None);
        }
        // Others serve meanwhile, and find the destination down.
        let events = [killed.clone(), lost.clone(), state(500, "degraded"), ready.clone()];
        assert_eq!(back(&events), Some((900, None)));
        // What was before the kill, or is about another session, says nothing.
        assert_eq!(back(&[state(1, "waiting"), ready, killed, lost]), None);
    }
}
