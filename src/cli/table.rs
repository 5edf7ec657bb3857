//! The table of `autossm status`.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::paint::{Colour, Painter, age, bytes, wait};
use super::reach::without_daemon;
use crate::config::Tunnel;
use crate::control::client::Error;
use crate::control::protocol::{Expiry, InterruptionCause, Phase, State, Status, Step};

/// A column's heading, and how early it goes where the terminal is too narrow: those with 0 stay.
const COLUMNS: [(&str, u8); 16] = [
    ("TUNNEL", 0),
    ("STATE", 0),
    ("SINCE", 0),
    ("LISTEN", 1),
    ("TARGET", 4),
    ("SESSIONS", 5),
    ("AGE", 10),
    ("RESUMES/24H", 8),
    ("OPEN", 2),
    ("SERVED", 7),
    ("HELD", 3),
    ("FAILED", 6),
    ("UP", 12),
    ("DOWN", 13),
    ("RTT", 11),
    ("CREDENTIALS", 9),
];
/// Between two columns.
const GAP: usize = 2;
/// Where there is nothing to say.
const NOTHING: &str = "–";

/// One tunnel.
pub struct Row {
    /// As the daemon has told it, else what is known without it.
    pub status: Status,
    /// Why nothing could be learnt from the daemon.
    pub error: Option<String>,
}

impl Row {
    /// One whose daemon does not tell; `text` says why, and what to do.
    pub fn unreachable(name: &str, tunnel: Option<&Tunnel>, error: &Error, text: &str) -> Self {
        let stopped = matches!(error, Error::NotRunning | Error::Dead(_));
        let state = if stopped { State::Stopped } else { State::Unknown };
        let text = text.strip_prefix(name).and_then(|text| text.strip_prefix(": ")).unwrap_or(text);
        Self { status: without_daemon(name, tunnel, state), error: Some(text.to_owned()) }
    }

    /// As it is written for programs: in the daemon's own words, or without the fields that only a daemon can fill.
    ///
    /// # Errors
    /// None that could happen.
    pub fn json(&self) -> serde_json::Result<Written<'_>> {
        if is_told(&self.status) {
            return Ok(Written::Told(&self.status));
        }
        let mut value = serde_json::to_value(&self.status)?;
        if let Some(fields) = value.as_object_mut() {
            fields.remove("since");
            fields.remove("daemon");
            if let Some(error) = &self.error {
                fields.insert("error".to_owned(), Value::from(error.as_str()));
            }
        }
        Ok(Written::Known(value))
    }

    fn trouble(&self) -> Option<String> {
        self.error.clone().or_else(|| trouble(&self.status))
    }
}

/// One tunnel for programs.
#[derive(Serialize)]
#[serde(untagged)]
pub enum Written<'a> {
    /// The daemon's status, as it came.
    Told(&'a Status),
    /// What is known without it.
    Known(Value),
}

/// Every tunnel a row, and below them what is wrong. `width`: of the terminal, if it is one.
pub fn table(tunnels: &[Row], painter: Painter, width: Option<usize>) -> String {
    let rows: Vec<[String; 16]> = tunnels.iter().map(|tunnel| row(&tunnel.status)).collect();
    let widths: [usize; 16] = std::array::from_fn(|column| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(COLUMNS.get(column).map(|(heading, _)| heading.len())).max().unwrap_or(0)
    });
    let shown = shown(&widths, width);
    let mut text = String::new();
    let mut line = |cells: &dyn Fn(usize) -> (String, Colour)| {
        let mut line = String::new();
        for &column in &shown {
            let (cell, colour) = cells(column);
            let width = widths.get(column).copied().unwrap_or(0);
            line.push_str(&painter.padded(&cell, colour, width + GAP));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    };
    let heading = |column: usize| COLUMNS.get(column).map_or("", |(heading, _)| heading);
    line(&|column| (heading(column).to_owned(), Colour::Dim));
    for (row, Row { status, .. }) in rows.iter().zip(tunnels) {
        line(&|column| {
            let colour = match (column, status.connections.failed) {
                (0, _) => Colour::Bold,
                (1, _) => Colour::of_state(status.state),
                (11, 1..) => Colour::Yellow,
                _ => Colour::Plain,
            };
            (row.get(column).cloned().unwrap_or_default(), colour)
        });
    }
    for row in tunnels {
        let status = &row.status;
        if let Some(trouble) = row.trouble() {
            let name = painter.paint(&status.name, Colour::Bold);
            let trouble = painter.paint(&trouble, Colour::of_trouble(status.state));
            text.push_str(&format!("{name}: {trouble}\n"));
        }
    }
    text
}

/// The columns that fit.
fn shown(widths: &[usize; 16], width: Option<usize>) -> Vec<usize> {
    let mut shown: Vec<usize> = (0..COLUMNS.len()).collect();
    let needed = |shown: &[usize]| -> usize {
        shown.iter().filter_map(|column| widths.get(*column)).map(|width| width + GAP).sum::<usize>() - GAP
    };
    while let Some(width) = width
        && needed(&shown) > width
    {
        let rank = |column: &usize| COLUMNS.get(*column).map_or(0, |(_, rank)| *rank);
        let Some(last) = shown.iter().copied().max_by_key(rank).filter(|column| rank(column) > 0) else {
            break;
        };
        shown.retain(|column| *column != last);
    }
    shown
}

fn row(status: &Status) -> [String; 16] {
    if !is_told(status) {
        let state = if status.state == State::Stopped { "not running" } else { status.state.word() };
        return std::array::from_fn(|column| match column {
            0 => status.name.clone(),
            1 => state.to_owned(),
            3 => status.listen.join(" "),
            4 => status.targets.join(" "),
            _ => NOTHING.to_owned(),
        });
    }
    let ready = status.sessions.iter().filter(|session| session.phase == Phase::Ready);
    let oldest = ready.clone().map(|session| session.began).min();
    // The one that serves; of several the first.
    let target = status.sessions.iter().find_map(|session| session.target.clone());
    let connections = &status.connections;
    [
        status.name.clone(),
        status.state.word().to_owned(),
        age(status.now.since(status.since)),
        status.listen.join(" "),
        target.unwrap_or_else(|| status.targets.join(" ")),
        format!("{}/{}", ready.count(), status.sessions_wanted),
        oldest.map_or_else(|| NOTHING.to_owned(), |began| age(status.now.since(began))),
        status.resumes.last_day.to_string(),
        connections.open.to_string(),
        connections.served.to_string(),
        connections.held.to_string(),
        connections.failed.to_string(),
        bytes(status.up_bytes),
        bytes(status.down_bytes),
        status.agent_rtt_ms.map_or_else(|| NOTHING.to_owned(), |millis| format!("{millis:.0} ms")),
        credentials(status),
    ]
}

/// What no daemon has told is described without a process: nobody runs the tunnel, or nobody could be asked.
fn is_told(status: &Status) -> bool {
    status.daemon.pid != 0
}

/// When the credentials expire, in few words.
fn credentials(status: &Status) -> String {
    let Some(credentials) = &status.credentials else { return NOTHING.to_owned() };
    match (credentials.expires, credentials.expiry) {
        (Some(at), _) if at > status.now => format!("in {}", age(at.since(status.now))),
        (Some(at), _) => format!("expired {} ago", age(status.now.since(at))),
        (None, Expiry::None) => "none yet".to_owned(),
        (None, Expiry::Never) => "do not expire".to_owned(),
        (None, Expiry::At | Expiry::Unknown) => "unknown".to_owned(),
    }
}

/// What is waited for and why, where the tunnel does not simply serve.
pub fn trouble(status: &Status) -> Option<String> {
    let reason = status.failure.as_ref().map(|failure| failure.text.clone());
    let interrupted = status.sessions.iter().find_map(|session| session.interruption.as_ref());
    match status.state {
        State::Stopped if !is_told(status) => {
            Some(format!("start it: systemctl start autossm@{}", status.name))
        }
        State::Up => missing(status),
        State::Unknown | State::Stopped => None,
        State::Degraded => {
            Some(status.destination.as_ref().and_then(|d| d.reason.clone()).unwrap_or_else(|| next(status)))
        }
        State::Draining => Some(format!("clients are held until: autossm resume {}", status.name)),
        State::Interrupted => {
            let why = interrupted.map(|interruption| match &interruption.failure {
                Some(failure) => format!("{}; not resumed yet: {}", interruption.reason, failure.text),
                None => interruption.reason.clone(),
            });
            let what = match interrupted.map(|interruption| interruption.cause) {
                Some(InterruptionCause::Gap) => "messages lost",
                Some(InterruptionCause::AgentAway | InterruptionCause::AgentSilent) => "agent away",
                _ => "data channel down",
            };
            Some(format!("{what} ({}); {}", why.unwrap_or_default(), next(status)))
        }
        State::Waiting => Some(next(status)),
        State::Starting => reason.map(|reason| format!("trying again after: {reason}")),
        State::Stopping => Some(next(status)),
    }
}

/// What keeps a pool from having all of its sessions.
fn missing(status: &Status) -> Option<String> {
    let ready = status.sessions.iter().filter(|session| session.phase == Phase::Ready).count() as u64;
    let failure = status.failure.as_ref().filter(|_| ready < status.sessions_wanted)?;
    let next = status.next.as_ref().filter(|next| next.what == Step::Start).and_then(|_| next_step(status));
    let next = next.map(|next| format!("; {next}")).unwrap_or_default();
    let class = failure.class.replace('_', " ");
    Some(format!("{ready} of {} sessions: {class}: {}{next}", status.sessions_wanted, failure.text))
}

/// `next try in 12s: target not connected: …`
pub fn next(status: &Status) -> String {
    let Some(what) = next_step(status) else { return "nothing is waited for".to_owned() };
    match status.next.as_ref().and_then(|next| next.reason.as_ref()) {
        Some(reason) => format!("{what}: {reason}"),
        None => what,
    }
}

/// `next try in 12s`, if anything is waited for.
pub fn next_step(status: &Status) -> Option<String> {
    let next = status.next.as_ref()?;
    let within = wait(if next.at > status.now { next.at.since(status.now) } else { Duration::ZERO });
    Some(match next.what {
        Step::Start => format!("next try in {within}"),
        Step::Failover => format!("a second session is started in {within}"),
        Step::OpeningOver => format!("the session that opens is given up in {within}"),
        Step::ResumingOver => format!("the interrupted session is given up in {within}"),
        Step::Rotation => format!("the session is replaced in {within}"),
        Step::DrainOver => format!("the retired session's connections are cut in {within}"),
        Step::StoppingOver => format!("stopped in {within} at the latest"),
        Step::Unknown => format!("something in {within}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::protocol::{Credentials, Daemon, Failure, Next, Session};
    use crate::control::time::Timestamp;

    fn status(name: &str, state: State) -> Status {
        let now = Timestamp::from_millis(1_772_287_387_250);
        Status {
            name: name.to_owned(),
            now,
            since: now.before(Duration::from_secs(11_520)),
            state,
            listen: vec!["127.0.0.1:15432".to_owned()],
            targets: vec!["i-0123456789abcdef0".to_owned()],
            sessions_wanted: 1,
            daemon: Daemon { pid: 1, ..Daemon::default() },
            ..Status::default()
        }
    }

    #[test]
    fn a_tunnel_has_a_row_and_trouble_its_reason() {
        let mut up = status("billing-db", State::Up);
        up.sessions.push(Session {
            phase: Phase::Ready,
            began: up.now.before(Duration::from_secs(61)),
            ..Session::default()
        });
        up.credentials = Some(Credentials { expiry: Expiry::Never, ..Credentials::default() });
        let mut waiting = status("search", State::Waiting);
        waiting.credentials = Some(Credentials { expiry: Expiry::None, ..Credentials::default() });
        waiting.next = Some(Next {
            at: waiting.now.after(Duration::from_millis(11_200)),
            what: Step::Start,
            reason: Some("target not connected: i-0 is not connected".to_owned()),
        });
        let not = Status { daemon: Daemon::default(), ..status("spare", State::Stopped) };
        let rows = [up, waiting, not].map(|status| Row { status, error: None });
        let text = table(&rows, Painter::plain(), None);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("TUNNEL") && lines[0].ends_with("CREDENTIALS"), "{text}");
        assert!(lines[1].starts_with("billing-db  up           3h12m  127.0.0.1:15432"), "{text}");
        assert!(lines[1].contains("  1/1       1m "), "{text}");
        assert!(lines[1].ends_with("do not expire") && lines[2].ends_with("none yet"), "{text}");
        assert!(lines[3].starts_with("spare       not running  –      127.0.0.1:15432"), "{text}");
        assert_eq!(lines[4], "search: next try in 12s: target not connected: i-0 is not connected");
        assert_eq!(lines[5], "spare: start it: systemctl start autossm@spare");
    }

    #[test]
    fn a_pool_that_lacks_sessions_says_why_though_it_is_up() {
        let mut pool = status("pool", State::Up);
        pool.sessions_wanted = 4;
        pool.sessions.push(Session { phase: Phase::Ready, ..Session::default() });
        assert_eq!(trouble(&pool), None, "the others are being started for the first time");
        let text = "AccessDeniedException: not authorized".to_owned();
        pool.failure = Some(Failure { class: "access".to_owned(), text, ..Failure::default() });
        let failed = "1 of 4 sessions: access: AccessDeniedException: not authorized";
        assert_eq!(trouble(&pool).unwrap(), failed);
        pool.next =
            Some(Next { at: pool.now.after(Duration::from_secs(12)), what: Step::Start, reason: None });
        let rows = [Row { status: pool.clone(), error: None }];
        let shown = table(&rows, Painter::plain(), None);
        assert_eq!(shown.lines().last(), Some(&*format!("pool: {failed}; next try in 12s")));
        pool.sessions_wanted = 1;
        assert_eq!(trouble(&pool), None);
    }

    #[test]
    fn a_narrow_terminal_loses_what_matters_least() {
        let statuses = [Row { status: status("db", State::Up), error: None }];
        for width in [40, 60, 80, 100, 140] {
            let text = table(&statuses, Painter::plain(), Some(width));
            assert!(text.lines().all(|line| line.chars().count() <= width), "{width}: {text}");
            assert!(text.starts_with("TUNNEL  STATE  SINCE"), "{width}: {text}");
        }
        assert!(table(&statuses, Painter::plain(), Some(80)).contains("LISTEN"));
    }
}
