//! The tunnels of a process in one line, for `systemctl status`.

use std::time::Duration;

use tokio::time::Instant;

use super::report::span;
use super::snapshot::Snapshot;
use crate::proxy::Counts;
use crate::tunnel::status::State;

/// A reason that is longer than this, in characters, loses its end: the log has the whole of it.
const REASON: usize = 160;
/// So many tunnels of one kind are named.
const NAMED: usize = 5;

/// One tunnel at one moment.
pub(super) struct View<'a> {
    pub name: &'a str,
    pub tunnel: &'a Snapshot,
    pub clients: Counts,
}

/// All that an operator wants to see at a glance.
pub(super) fn line(views: &[View<'_>], now: Instant) -> String {
    match views {
        // A configuration without tunnels is refused: they are being stopped.
        [] => "stopping".to_owned(),
        [view] => one(view, now),
        views => several(views),
    }
}

fn one(View { tunnel, clients, .. }: &View<'_>, now: Instant) -> String {
    let mut parts = Vec::new();
    let lasts = now.saturating_duration_since(tunnel.since);
    match tunnel.status.state {
        State::Up => {
            parts.push(format!("up {}", age(lasts)));
            match tunnel.serving.as_slice() {
                [] => {}
                [session] => parts.push(format!("session …{}", tail(session))),
                sessions => parts.push(format!("{} sessions", sessions.len())),
            }
            if let (Some(degraded), Some(since)) = (&tunnel.status.degraded, tunnel.degraded_since) {
                let lasts = age(now.saturating_duration_since(since));
                parts.push(format!("degraded for {lasts}: {}", cut(&degraded.reason)));
            }
        }
        State::Interrupted => parts.push(format!("data channel down for {}, resuming", age(lasts))),
        State::Starting => parts.push("starting a session".to_owned()),
        State::Waiting => {
            let wait = tunnel.next_attempt.map(|at| at.saturating_duration_since(now)).unwrap_or_default();
            parts.push(match &tunnel.status.failure {
                Some(failure) => {
                    format!("waiting {}: {}: {}", whole(wait), failure.class, cut(&failure.text))
                }
                None => format!("waiting {}", whole(wait)),
            });
        }
        State::Draining => parts.push(format!("drained for {}: clients are held", age(lasts))),
        State::Stopping | State::Stopped => parts.push("stopping".to_owned()),
    }
    let served = clients.accepted.saturating_sub(clients.held as u64 + clients.timed_out + clients.gone);
    let open = clients.open.saturating_sub(clients.held);
    parts.push(match clients.held {
        0 => format!("{open} open, {served} served"),
        held => format!("{open} open, {held} held, {served} served"),
    });
    if let Some(last) = tunnel.last_resumed {
        parts.push(format!("resumed {}×, last {}", tunnel.resumed, span(last)));
    }
    parts.join(" · ")
}

fn several(views: &[View<'_>]) -> String {
    let up = views.iter().filter(|view| view.tunnel.is_up()).count();
    let mut parts = vec![format!("{up} of {} up", views.len())];
    let states = [
        (State::Interrupted, "resuming"),
        (State::Starting, "starting"),
        (State::Waiting, "waiting"),
        (State::Draining, "drained"),
        (State::Stopping, "stopping"),
    ];
    let in_state = |state| -> Vec<String> {
        views.iter().filter(|view| view.tunnel.status.state == state).map(named).collect()
    };
    let degraded = views.iter().filter(|view| view.tunnel.is_up() && view.tunnel.status.degraded.is_some());
    let kinds = states.map(|(state, word)| (in_state(state), word));
    for (named, word) in kinds.into_iter().chain([(degraded.map(named).collect(), "degraded")]) {
        if named.is_empty() {
            continue;
        }
        let rest = named.len().saturating_sub(NAMED);
        let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
        let named: Vec<_> = named.into_iter().take(NAMED).collect();
        parts.push(format!("{word}: {}{more}", named.join(", ")));
    }
    parts.join(" · ")
}

fn named(view: &View<'_>) -> String {
    match &view.tunnel.status.failure {
        Some(failure) => format!("{} ({})", view.name, failure.class),
        None => view.name.to_owned(),
    }
}

/// `42 s`, `3h12m`: without what would change the line every second once the first minute is over.
fn age(lasts: Duration) -> String {
    match lasts.as_secs() {
        seconds @ ..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{}m", seconds / 60),
        _ => span(lasts).replace(' ', ""),
    }
}

/// Whole seconds, rounded up: what is still waited for is never zero.
fn whole(wait: Duration) -> String {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    if seconds < 60 { format!("{seconds} s") } else { span(Duration::from_secs(seconds)) }
}

/// The end of a session's id, by which the console's list can be searched.
fn tail(id: &str) -> &str {
    let from = id.char_indices().rev().nth(3).map_or(0, |(at, _)| at);
    id.get(from..).unwrap_or(id)
}

/// Enough of a text.
pub(super) fn cut(text: &str) -> String {
    let mut short: String = text.chars().take(REASON).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::failure::{Class, Failure};
    use crate::tunnel::status::Status;

    fn snapshot(state: State, since: Instant) -> Snapshot {
        let status =
            Status { state, sessions: Vec::new(), next_attempt: None, failure: None, degraded: None };
        Snapshot::new(status, since)
    }

    fn said(tunnel: &Snapshot, clients: Counts, now: Instant) -> String {
        line(&[View { name: "db", tunnel, clients }], now)
    }

    fn failed(class: Class, text: &str, began: Instant) -> Snapshot {
        let mut tunnel = snapshot(State::Waiting, began);
        tunnel.next_attempt = Some(began + Duration::from_millis(11_200));
        tunnel.status.failure = Some(Failure::new(class, text));
        tunnel
    }

    #[test]
    fn one_tunnel_in_each_state() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let clients = Counts { accepted: 123, open: 2, timed_out: 3, gone: 2, ..Counts::default() };
        let mut up = snapshot(State::Up, began);
        up.serving = vec!["ops-0a1b2c3d4e5f64f2a".to_owned()];
        assert_eq!(said(&up, clients, at(12)), "up 12 s · session …4f2a · 2 open, 118 served");
        up.resumed = 3;
        up.last_resumed = Some(Duration::from_millis(400));
        assert_eq!(
            said(&up, clients, at(3 * 3600 + 12 * 60 + 7)),
            "up 3h12m · session …4f2a · 2 open, 118 served · resumed 3×, last 0.4 s"
        );
        up.serving.push("x".to_owned());
        assert!(said(&up, clients, at(125)).starts_with("up 2m · 2 sessions · "));

        let held = Counts { accepted: 5, open: 3, held: 2, ..Counts::default() };
        let interrupted = snapshot(State::Interrupted, began);
        assert_eq!(
            said(&interrupted, held, at(4)),
            "data channel down for 4 s, resuming · 1 open, 2 held, 3 served"
        );
        assert!(
            said(&snapshot(State::Starting, began), held, at(0)).starts_with("starting a session · 1 open")
        );
        assert!(said(&snapshot(State::Stopping, began), held, at(0)).starts_with("stopping · 1 open"));
        let waiting = failed(Class::TargetNotConnected, "i-1 is not connected", began);
        assert!(
            said(&waiting, held, began)
                .starts_with("waiting 12 s: target not connected: i-1 is not connected · 1 open")
        );
    }

    #[test]
    fn a_destination_that_is_down_is_said_although_the_tunnel_is_up() {
        let began = Instant::now();
        let mut up = snapshot(State::Up, began);
        let reason = "connection refused".to_owned();
        up.status.degraded = Some(crate::tunnel::status::Degraded { since: Duration::ZERO, reason });
        up.degraded_since = Some(began + Duration::from_secs(60));
        assert_eq!(
            said(&up, Counts::default(), began + Duration::from_secs(300)),
            "up 5m · degraded for 4m: connection refused · 0 open, 0 served"
        );
        let view = View { name: "db", tunnel: &up, clients: Counts::default() };
        let other = View { name: "b", tunnel: &snapshot(State::Up, began), clients: Counts::default() };
        assert_eq!(line(&[view, other], began), "2 of 2 up · degraded: db");
    }

    #[test]
    fn several_tunnels_are_counted_and_the_others_named() {
        let began = Instant::now();
        let up = snapshot(State::Up, began);
        let denied = failed(Class::Access, "AccessDenied", began);
        let view = |name, tunnel| View { name, tunnel, clients: Counts::default() };
        let views = [view("a", &up), view("search", &denied), view("b", &up), view("c", &up)];
        assert_eq!(line(&views, began), "3 of 4 up · waiting: search (access)");
        assert_eq!(line(&[view("a", &up), view("b", &up)], began), "2 of 2 up");
        let many: Vec<_> = (0..8).map(|_| view("x", &denied)).collect();
        assert!(line(&many, began).ends_with("x (access) and 3 more"));
        assert_eq!(line(&[], began), "stopping");
    }

    #[test]
    fn a_long_reason_loses_its_end() {
        let began = Instant::now();
        let waiting = failed(Class::Network, &"ä".repeat(5000), began);
        let said = said(&waiting, Counts::default(), began);
        assert!(said.contains("ä… · 0 open") && said.chars().count() < 250, "{said}");
        assert_eq!(tail("abc"), "abc");
        assert_eq!(tail("äöüäö"), "öüäö");
    }
}
