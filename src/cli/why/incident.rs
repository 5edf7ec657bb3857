//! The times at which clients did not get through, found in a tunnel's recorded events.

use std::time::Duration;

use super::cause::{Cause, NOT_RESUMED};
use crate::control::protocol::{Event, InterruptionCause, history};
use crate::control::time::Timestamp;

/// Data channels that are back sooner than this, with nobody sent away, are everyday life: the service closes each of
/// them every hour.
const EVERYDAY: Duration = Duration::from_secs(10);
/// What is told so shortly before the state changes has led to it.
const BEFORE: Duration = Duration::from_secs(2);

/// A time without service, or a lost session.
#[derive(Debug)]
pub struct Incident<'a> {
    /// Since when.
    pub began: Timestamp,
    /// Until when; none: it lasts.
    pub ended: Option<Timestamp>,
    /// What has happened, from what led to it to what came of it.
    pub events: &'a [Event],
    /// What stood in the way, one after the other.
    pub obstacles: Vec<Obstacle>,
    /// Clients were served all the while: the destination was down, or a session was lost beside others.
    pub served: bool,
}

/// Something that stands in the way until the next one does.
#[derive(Clone, Debug)]
pub struct Obstacle {
    /// Since when.
    pub at: Timestamp,
    /// What it is.
    pub cause: Cause,
    /// In whose words.
    pub words: String,
    /// Who has asked for it, if anybody.
    pub by: String,
    /// The session that it is about.
    pub session: Option<String>,
}

impl Incident<'_> {
    /// What stood in the way for most of the time; while it lasts, the last thing that did.
    pub fn main(&self) -> Option<&Obstacle> {
        let Some(ended) = self.ended else { return self.obstacles.last() };
        let ends = self.obstacles.iter().skip(1).map(|next| next.at).chain([ended]);
        let lasted = |cause| -> Duration {
            let spans = self.obstacles.iter().zip(ends.clone());
            spans.filter(|(obstacle, _)| obstacle.cause == cause).map(|(o, end)| end.since(o.at)).sum()
        };
        // Of equals the first: what follows from it comes later.
        self.obstacles.iter().rev().max_by_key(|obstacle| lasted(obstacle.cause))
    }
}

/// An incident by the numbers of its events.
struct Span {
    /// The first event, of those that led to it.
    from: usize,
    /// The one that ended it.
    to: usize,
    began: Timestamp,
    ended: Option<Timestamp>,
    /// The process's first session: nobody was without it before.
    first: bool,
    everyday: bool,
    served: bool,
}

/// All of them, oldest first; and how often a data channel was closed and back at once after the last of them.
pub fn incidents(events: &[Event]) -> (Vec<Incident<'_>>, usize) {
    let mut spans: Vec<Span> = Vec::new();
    let mut runs = false;
    for (at, event) in events.iter().enumerate() {
        let open = spans.last_mut().filter(|span| span.ended.is_none());
        match (event.event.as_str(), open) {
            (history::BEGUN | "bind_failed" | "config_invalid", None) => spans.push(Span {
                from: at,
                to: at,
                began: event.at,
                ended: None,
                first: !runs,
                everyday: false,
                served: false,
            }),
            (history::STATE, Some(open)) => {
                let state = state(event);
                open.everyday &= state == "interrupted" || state == "up";
                open.served &= state == "degraded" || state == "up";
                open.to = at;
                if state == "up" {
                    open.ended = Some(event.at);
                }
            }
            (history::STATE, None) if state(event) != "up" => spans.push(Span {
                from: led_to(events, at),
                to: at,
                began: event.at,
                ended: None,
                first: false,
                everyday: state(event) == "interrupted",
                served: state(event) == "degraded",
            }),
            ("lost", None) => spans.push(Span {
                from: led_to(events, at),
                to: at,
                began: event.at,
                ended: Some(event.at),
                first: false,
                everyday: false,
                served: true,
            }),
            (_, Some(open)) => open.to = at,
            _ => {}
        }
        runs |= event.event == history::BEGUN;
    }
    // A loss that the state followed is told with it.
    let mut kept: Vec<Span> = Vec::new();
    for span in spans {
        if kept.last().is_some_and(|last| last.from >= span.from && last.served && !span.served) {
            kept.pop();
        }
        kept.push(span);
    }
    let of_importance = |span: &Span| {
        let inside = events.get(span.from..=span.to).unwrap_or_default();
        let has = |words: &[&str]| inside.iter().any(|event| words.contains(&event.event.as_str()));
        let lasted = span.ended.map(|ended| ended.since(span.began));
        match lasted {
            None => true,
            Some(_) if span.first => has(&["failed"]),
            Some(lasted) if span.everyday => lasted >= EVERYDAY || has(&["failover", "lost", "failed"]),
            Some(_) => true,
        }
    };
    let mut everyday = 0;
    let mut important: Vec<Span> = Vec::new();
    for span in kept {
        if of_importance(&span) {
            everyday = 0;
            important.push(span);
        } else {
            everyday += usize::from(span.everyday);
        }
    }
    let mut found = Vec::new();
    let starts: Vec<_> = important.iter().map(|span| span.from).skip(1).chain([events.len()]).collect();
    for (span, next) in important.iter().zip(starts) {
        // What became of the clients is told a little later than its end.
        let inside = events.get(span.from..next).unwrap_or_default();
        let until = events.get(span.from..=span.to).unwrap_or_default();
        found.push(Incident {
            began: span.began,
            ended: span.ended,
            events: inside,
            obstacles: obstacles(until, span),
            served: span.served,
        });
    }
    (found, everyday)
}

/// The word of a change of state.
pub fn state(event: &Event) -> &str {
    field(event, "state")
}

/// A field of an event, empty where there is none.
pub fn field<'a>(event: &'a Event, name: &str) -> &'a str {
    event.fields.get(name).and_then(serde_json::Value::as_str).unwrap_or_default()
}

/// The same of a number, 0 where there is none.
pub fn number(event: &Event, name: &str) -> u64 {
    event.fields.get(name).and_then(serde_json::Value::as_u64).unwrap_or_default()
}

/// The first of the events that led to this one.
fn led_to(events: &[Event], at: usize) -> usize {
    let Some(event) = events.get(at) else { return at };
    let earlier = events.get(..at).unwrap_or_default();
    let near = earlier.iter().rev().take_while(|earlier| {
        let done = ["ready", "resumed", "recovered", "serves_again", history::STATE, history::BEGUN];
        event.at.since(earlier.at) <= BEFORE && !done.contains(&earlier.event.as_str())
    });
    at - near.count()
}

fn obstacles(events: &[Event], span: &Span) -> Vec<Obstacle> {
    let mut found: Vec<Obstacle> = Vec::new();
    // A process ended without having said so.
    let mut ends_said = span.first;
    for event in events {
        let words = event.reason.clone().unwrap_or_default();
        let class = field(event, "class");
        let drilled = |o: &Obstacle| o.cause == Cause::Drill && o.session == event.session;
        let cause = match event.event.as_str() {
            // That was the drill's doing.
            "failed" | "lost" if found.iter().any(drilled) => continue,
            "failed" | "resume_failed" => Cause::of_failure(class, &words),
            // Why not was said before.
            "lost" if words.starts_with(NOT_RESUMED) && !found.is_empty() => continue,
            "lost" => Cause::of_loss(&words),
            "interrupted" => {
                let cause = InterruptionCause::of_word(field(event, "cause"));
                Cause::of_interruption(cause, &words)
            }
            "degraded" => Cause::Destination,
            "bind_failed" => Cause::Address,
            // The first of its lines has it.
            "config_invalid" if event.reason.is_some() => Cause::Invalid,
            "requested" => match field(event, "command") {
                "drain" => Cause::Drained,
                "restart" => Cause::Restarted,
                "drill" => Cause::Drill,
                _ => continue,
            },
            "stopping" => {
                ends_said = true;
                Cause::Stopped
            }
            history::BEGUN if !std::mem::take(&mut ends_said) => Cause::Killed,
            _ => continue,
        };
        found.push(Obstacle {
            at: event.at.max(span.began),
            cause,
            words,
            by: field(event, "by").to_owned(),
            session: event.session.clone(),
        });
    }
    found
}
