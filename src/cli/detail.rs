//! Everything about one tunnel, for `autossm status NAME`.

use std::fmt::Write as _;

use super::events::line;
use super::paint::{Colour, Painter, age, bytes, took};
use super::table::{next, trouble};
use crate::control::protocol::{Credentials, Event, Expiry, Failure, Session, Status};

/// The width of the names on the left.
const NAMES: usize = 13;

/// Written out for a person.
pub fn detail(status: &Status, events: &[Event], painter: Painter) -> String {
    let mut text = String::new();
    let lasts = age(status.now.since(status.since));
    let _ = writeln!(
        text,
        "{} · {} for {lasts}",
        painter.paint(&status.name, Colour::Bold),
        painter.paint(status.state.word(), Colour::of_state(status.state)),
    );
    if let Some(trouble) = trouble(status) {
        let _ = writeln!(text, "{}", painter.paint(&trouble, Colour::of_trouble(status.state)));
    }
    let mut fact = |name: &str, value: &str| {
        let name = painter.padded(name, Colour::Dim, NAMES);
        let _ = writeln!(text, "  {name}{}", painter.paint(value, Colour::Plain));
    };
    fact("listens", &status.listen.join(", "));
    let port = status.remote_port;
    let destination = match &status.remote_host {
        Some(address) if address.contains(':') => format!("[{address}]:{port}"),
        Some(host) => format!("{host}:{port}"),
        None => format!("its port {port}"),
    };
    fact("reaches", &format!("{} → {destination}, gateway {}", status.targets.join(", "), status.gateway));
    if let Some(found) = &status.destination {
        let reason = found.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        let ago = |at| age(status.now.since(at));
        let probed = match (found.checked, found.took_ms) {
            (Some(at), Some(millis)) => format!("; probed {} ago, which took {millis:.0} ms", ago(at)),
            _ => String::new(),
        };
        fact("destination", &format!("{} for {}{reason}{probed}", found.state, ago(found.since)));
    }
    let daemon = &status.daemon;
    let runs = age(status.now.since(daemon.started));
    fact("daemon", &format!("pid {}, autossm {}, for {runs}", daemon.pid, daemon.version));
    fact("next", &next(status));
    if let Some(failure) = &status.last_failure {
        fact("last failure", &told(failure, status));
    }
    if let Some(held) = &status.credentials {
        fact("credentials", &credentials(held, status));
    }
    let clients = &status.connections;
    fact(
        "connections",
        &format!(
            "{} open, {} held · {} served, {} failed",
            clients.open, clients.held, clients.served, clients.failed
        ),
    );
    for (count, what) in [
        (clients.timed_out, "waited in vain"),
        (clients.refused, "refused: a limit was reached"),
        (clients.cut, "cut with their session"),
        (clients.stalled_closed, "closed because they took nothing"),
        (clients.accept_errors, "could not be accepted"),
        (clients.gone, "went away while they waited"),
    ] {
        if count > 0 {
            fact("", &format!("{count} {what}"));
        }
    }
    if clients.released > 0 {
        let longest = took(clients.longest_hold_ms);
        fact("", &format!("{} waited for a session and got one, at most {longest}", clients.released));
    }
    fact("bytes", &format!("{} up, {} down", bytes(status.up_bytes), bytes(status.down_bytes)));
    let resumes = &status.resumes;
    let last = match (resumes.last_at, resumes.last_ms) {
        (Some(at), Some(millis)) => {
            format!("; the last {} ago took {}", age(status.now.since(at)), took(millis))
        }
        _ => String::new(),
    };
    fact("resumes", &format!("{} in the last 24 h{last}", resumes.last_day));
    if let Some(millis) = status.agent_rtt_ms {
        fact("agent", &format!("{millis:.1} ms there and back"));
    }
    let _ = writeln!(
        text,
        "{}",
        painter.paint(&format!("sessions ({} wanted)", status.sessions_wanted), Colour::Bold)
    );
    for session in &status.sessions {
        text.push_str(&of_session(session, status, painter));
    }
    if !events.is_empty() {
        let _ = writeln!(text, "{}", painter.paint("last events", Colour::Bold));
        for event in events {
            let _ = writeln!(text, "  {}", line(event, false, painter));
        }
    }
    text
}

fn of_session(session: &Session, status: &Status, painter: Painter) -> String {
    let mut facts = vec![age(status.now.since(session.began))];
    facts.extend(session.target.clone());
    facts.extend(session.agent_version.as_ref().map(|version| format!("agent {version}")));
    facts.extend(session.plugin_pid.map(|pid| format!("plugin pid {pid}")));
    facts.push(format!("{} open", session.open));
    if session.resumes > 0 {
        facts.push(format!("resumed {}×", session.resumes));
    }
    facts.extend(session.agent_rtt_ms.map(|millis| format!("{millis:.0} ms")));
    if session.encrypted == Some(true) {
        facts.push("encrypted".to_owned());
    }
    if session.keepalive == Some(false) {
        let why = session.no_keepalive.as_ref().map_or(String::new(), |why| format!(" ({why})"));
        facts.push(format!("no keep-alive{why}"));
    }
    if let Some(until) = session.until {
        facts.push(format!("its connections are cut in {}", age(until.since(status.now))));
    }
    let phase = painter.paint(session.phase.word(), Colour::of_phase(session.phase));
    let id = session.id.clone().unwrap_or_else(|| "no id yet".to_owned());
    let mut text = format!(
        "  {} {phase} {}\n",
        painter.paint(&id, Colour::Plain),
        painter.paint(&facts.join(" · "), Colour::Plain)
    );
    if let Some(down) = &session.interruption {
        let mut told = format!("down for {}: {}", age(status.now.since(down.since)), down.reason);
        if let Some(failure) = &down.failure {
            let _ = write!(
                told,
                "; {} attempts to resume it have failed, the last because: {}",
                down.failed_attempts, failure.text
            );
        }
        if let Some(at) = down.next_attempt {
            match u64::try_from(at.since(status.now).as_millis()) {
                Ok(millis @ 1..) => {
                    let _ = write!(told, "; next try in {}", took(millis));
                }
                _ => told.push_str("; being tried now"),
            }
        }
        if let Some(at) = down.gives_up {
            let _ = write!(told, "; given up in {}", age(at.since(status.now)));
        }
        let _ = writeln!(text, "    {}", painter.paint(&told, Colour::Yellow));
    }
    text
}

/// `AKIA… (profile), expire in 52m`
fn credentials(held: &Credentials, status: &Status) -> String {
    let until = match (held.expires, held.expiry) {
        (Some(at), _) if at > status.now => format!("expire in {}, at {at}", age(at.since(status.now))),
        (Some(at), _) => format!("expired {} ago, at {at}", age(status.now.since(at))),
        (None, Expiry::None) => return "none yet".to_owned(),
        (None, Expiry::Never) => "do not expire".to_owned(),
        (None, Expiry::At | Expiry::Unknown) => "unknown when they expire".to_owned(),
    };
    let source = held.source.as_ref().map(|source| format!(" ({source})")).unwrap_or_default();
    match &held.access_key_id {
        Some(key) => format!("{key}{source}, {until}"),
        None => until,
    }
}

fn told(failure: &Failure, status: &Status) -> String {
    let class = failure.class.replace('_', " ");
    format!("{} ago: {class}: {}", age(status.now.since(failure.at)), failure.text)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::control::protocol::{Destination, Interruption, InterruptionCause, Phase, State};
    use crate::control::time::Timestamp;

    #[test]
    fn everything_that_is_known_is_said() {
        let now = Timestamp::from_millis(1_772_287_387_250);
        let ago = |seconds| now.before(Duration::from_secs(seconds));
        let mut status = Status {
            name: "billing-db".into(),
            now,
            since: ago(4),
            state: State::Interrupted,
            ..Status::default()
        };
        status.last_failure = Some(Failure { at: ago(60), class: "access".into(), text: "denied".into() });
        let expires = Some(now.after(Duration::from_secs(600)));
        let source = Some("process".into());
        let held = Credentials { access_key_id: Some("ASIA1".into()), source, expiry: Expiry::At, expires };
        status.credentials = Some(held);
        status.connections.cut = 3;
        status.connections.stalled_closed = 2;
        status.destination = Some(Destination {
            state: "up".into(),
            since: ago(60),
            reason: Some("refused".into()),
            checked: Some(ago(4)),
            took_ms: Some(12.3),
        });
        status.sessions.push(Session {
            id: Some("ops-0a1b".into()),
            phase: Phase::Interrupted,
            began: ago(7200),
            plugin_pid: Some(4711),
            interruption: Some(Interruption {
                since: ago(4),
                cause: InterruptionCause::Closed,
                reason: "code 1000: Bye".into(),
                failed_attempts: 2,
                failure: Some(Failure { text: "HTTP 403".into(), ..Failure::default() }),
                next_attempt: Some(now.after(Duration::from_millis(1200))),
                gives_up: Some(now.after(Duration::from_secs(596))),
                ..Interruption::default()
            }),
            ..Session::default()
        });
        let event = Event { at: ago(4), message: "interrupted".into(), ..Event::default() };
        let text = detail(&status, &[event], Painter::plain());
        for line in [
            "billing-db · interrupted for 4s",
            "  last failure 1m ago: access: denied",
            "  credentials  ASIA1 (process), expire in 10m, at 2026-02-28T14:13:07.250Z",
            "               3 cut with their session",
            "  ops-0a1b interrupted 2h0m · plugin pid 4711 · 0 open",
            "    down for 4s: code 1000: Bye; 2 attempts to resume it have failed, the last because: HTTP 403; next try \
             in 1.2 s; given up in 9m",
            "               2 closed because they took nothing",
            "  destination  up for 1m: refused; probed 4s ago, which took 12 ms",
            "last events",
            "  2026-02-28T14:03:03.250Z  INFO interrupted",
        ] {
            assert!(text.lines().any(|other| other == line), "{line:?} is missing:\n{text}");
        }
    }
}
