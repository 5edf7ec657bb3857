//! The last 24 hours of a tunnel, drawn from its recorded events: spans of one state, and marks for what happened at a
//! moment. Pure: the moment is an argument. What is drawn of an event stays when the event itself is no longer kept.
//!
//! `starting` and `waiting` take turns while no session can be had. For those who look at it that is one outage: what
//! has once been down is down until it is up again.

use std::collections::HashMap;
use std::time::Duration;

use serde::ser::{Serialize, SerializeTuple as _, Serializer};

use crate::control::protocol::{Event, State, history};
use crate::control::time::Timestamp;

/// How far back it goes.
pub const LENGTH: Duration = Duration::from_secs(24 * 3600);
/// What `failover_after` is, where nobody has changed it: until then nothing is done but to resume.
const CALM: Duration = Duration::from_secs(5);
/// More than these cannot be told from one another on a screen, and a tunnel that flaps has thousands: spans that are
/// shorter than [`GRAIN`] are put together then, and only the latest marks are kept. A day of 16 sessions has 384 marks.
const MOST: usize = 400;
/// A 288th of the whole.
const GRAIN: Duration = Duration::from_secs(300);

/// What clients met. The later ones are the worse ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Nothing is recorded.
    Unknown,
    /// They got through.
    Up,
    /// They got through, but not all was well.
    Degraded,
    /// They were held while a session was resumed, or replaced at once.
    Interrupted,
    /// They were held, and it was not known for how long; or the daemon did not run.
    Down,
}

/// From one moment to the next span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its beginning.
    pub at: Timestamp,
    /// What clients met in it.
    pub kind: Kind,
    /// Why, where that is known.
    pub text: String,
}

/// What a mark stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Sort {
    /// The data channel was closed, and opened again.
    Resumed,
    /// A session was replaced on purpose, or the daemon started.
    Changed,
    /// Clients were cut or sent away.
    Lost,
}

/// Something that happened at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// When it began.
    pub at: Timestamp,
    /// How long it lasted.
    pub lasted_ms: u64,
    /// What it was.
    pub sort: Sort,
    /// The same in a sentence.
    pub text: String,
}

/// Of one tunnel.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Timeline {
    /// In their order; together they reach from the beginning until now.
    pub spans: Vec<Span>,
    /// In their order.
    pub marks: Vec<Mark>,
}

impl Serialize for Span {
    /// `[milliseconds, kind, text]`: there are many.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut tuple = serializer.serialize_tuple(3)?;
        tuple.serialize_element(&self.at.millis())?;
        tuple.serialize_element(&self.kind)?;
        tuple.serialize_element(&self.text)?;
        tuple.end()
    }
}

impl Serialize for Mark {
    /// `[milliseconds, how long in milliseconds, sort, text]`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut tuple = serializer.serialize_tuple(4)?;
        tuple.serialize_element(&self.at.millis())?;
        tuple.serialize_element(&self.lasted_ms)?;
        tuple.serialize_element(&self.sort)?;
        tuple.serialize_element(&self.text)?;
        tuple.end()
    }
}

/// What is known at the right end, beside the events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Present {
    /// The state, by the tunnel's own word; `None`: the daemon does not answer.
    pub state: Option<State>,
    /// Since when.
    pub since: Timestamp,
}

/// Interruptions that were over within [`CALM`] are told by their marks alone: the service does it every hour, and nobody
/// is to take that for an outage.
fn calmed(spans: Vec<Span>) -> Vec<Span> {
    let mut calm: Vec<Span> = Vec::new();
    let mut spans = spans.into_iter().peekable();
    while let Some(span) = spans.next() {
        let short = spans.peek().is_some_and(|next| next.at.since(span.at) < CALM);
        let before = calm.last().map(|last| last.kind);
        let back = spans.peek().map(|next| next.kind);
        if span.kind == Kind::Interrupted && short && before == back {
            // What comes next goes on with what was before.
            spans.next();
        } else if span.kind == Kind::Interrupted && short && before == Some(Kind::Unknown) {
            // A daemon that starts.
            calm.extend(spans.next().map(|next| Span { at: span.at, ..next }));
        } else {
            calm.push(span);
        }
    }
    calm
}

/// What has been drawn of a tunnel: takes its events one by one, in their order, and stays small.
#[derive(Clone, Debug)]
pub struct Past {
    spans: Vec<Span>,
    marks: Vec<Mark>,
    /// Why each session's data channel was closed, until it is open again.
    closed: HashMap<String, String>,
    /// The state of the last process is known to be over.
    stopped: bool,
}

impl Default for Past {
    fn default() -> Self {
        let unknown = Span { at: Timestamp::default(), kind: Kind::Unknown, text: String::new() };
        Self { spans: vec![unknown], marks: Vec::new(), closed: HashMap::new(), stopped: true }
    }
}

impl Past {
    /// The 24 hours up to `now`.
    pub fn draw(&self, present: Option<&Present>, now: Timestamp) -> Timeline {
        let from = now.before(LENGTH);
        let mut past = self.clone();
        if let Some(present) = present {
            past.end_with(present, from);
        }
        let mut spans = since(past.spans, from);
        if let Some(first) = spans.first_mut() {
            first.at = from;
        }
        let mut marks = past.marks;
        marks.retain(|mark| mark.at.after(Duration::from_millis(mark.lasted_ms)) >= from);
        Timeline { spans: fewer(calmed(spans)), marks: latest(marks) }
    }

    /// Keeps what can be told apart.
    fn shrink(&mut self) {
        if self.spans.len() > 2 * MOST {
            let now = self.spans.last().map_or_else(Timestamp::default, |last| last.at);
            self.spans = fewer(calmed(since(std::mem::take(&mut self.spans), now.before(LENGTH))));
        }
        if self.marks.len() > 2 * MOST {
            self.marks = latest(std::mem::take(&mut self.marks));
        }
        if self.closed.len() > MOST {
            // Of sessions that were lost before they were resumed.
            self.closed.clear();
        }
    }

    fn kind(&self) -> Kind {
        self.spans.last().map_or(Kind::Unknown, |span| span.kind)
    }

    fn state(&mut self, at: Timestamp, state: State, why: &str) {
        let kind = match state {
            State::Up => Kind::Up,
            State::Degraded => Kind::Degraded,
            State::Starting if self.kind() == Kind::Down => Kind::Down,
            State::Interrupted | State::Starting | State::Draining => Kind::Interrupted,
            State::Stopping | State::Stopped | State::Waiting => Kind::Down,
            State::Unknown => Kind::Unknown,
        };
        self.stopped = matches!(state, State::Stopping | State::Stopped);
        let text = match state {
            State::Stopping | State::Stopped if why.is_empty() => "stopped",
            State::Draining if why.is_empty() => "draining",
            _ => why,
        };
        self.span(at, kind, text);
    }

    fn span(&mut self, at: Timestamp, kind: Kind, text: &str) {
        let Some(last) = self.spans.last_mut() else { return };
        if last.kind == kind {
            if last.text.is_empty() {
                text.clone_into(&mut last.text);
            }
        } else if at <= last.at {
            // It lasted for no time.
            *last = Span { at: last.at, kind, text: text.to_owned() };
        } else {
            self.spans.push(Span { at, kind, text: text.to_owned() });
        }
    }

    fn mark(&mut self, event: &Event, lasted_ms: u64, sort: Sort, text: String) {
        let at = event.at.before(Duration::from_millis(lasted_ms));
        self.marks.push(Mark { at, lasted_ms, sort, text });
    }

    /// Draws what an event tells.
    pub fn take(&mut self, event: &Event) {
        let word = |name: &str| event.fields.get(name).and_then(|value| value.as_str());
        let duration = event.duration_ms.unwrap_or_default();
        let reason = event.reason.as_deref().unwrap_or_default();
        match event.event.as_str() {
            history::STATE => {
                // What was before the first of them.
                if self.kind() == Kind::Unknown
                    && self.spans.len() == 1
                    && let Some(was) = word("was").map(state)
                {
                    self.state(event.at.before(Duration::from_millis(duration)), was, "");
                }
                let now = word("state").map_or(State::Unknown, state);
                self.state(event.at, now, reason);
            }
            history::BEGUN => {
                let version = word("version").unwrap_or_default();
                let text = if self.stopped || self.kind() == Kind::Unknown {
                    format!("The daemon was started, version {version}")
                } else {
                    format!(
                        "The daemon was started again, version {version}; the one before had not said that it ends"
                    )
                };
                let sort = if self.stopped { Sort::Changed } else { Sort::Lost };
                self.mark(event, 0, sort, text);
                self.state(event.at, State::Starting, "");
            }
            "interrupted" => {
                if let Some(session) = &event.session {
                    self.closed.insert(session.clone(), reason.to_owned());
                }
            }
            "resumed" => {
                let why = event.session.as_ref().and_then(|session| self.closed.remove(session));
                let why =
                    why.filter(|why| !why.is_empty()).map(|why| format!(" ({why})")).unwrap_or_default();
                if event.fields.get("attempts").is_some_and(|attempts| *attempts == 0) {
                    let text = format!("Interrupted{why}, over after {}", span(duration));
                    self.mark(event, duration, Sort::Changed, text);
                } else {
                    let text = format!("Data channel closed{why}, open again after {}", span(duration));
                    self.mark(event, duration, Sort::Resumed, text);
                }
            }
            "replacing" | "reloaded" | "changed" | "serves_again" => {
                self.mark(event, 0, Sort::Changed, event.message.clone());
            }
            "lost" | "held_timed_out" | "stuck" => self.mark(event, 0, Sort::Lost, event.message.clone()),
            _ => {}
        }
        self.shrink();
    }

    fn end_with(&mut self, present: &Present, from: Timestamp) {
        match present.state {
            None => self.span(present.since, Kind::Down, "the daemon does not answer"),
            Some(state) if self.spans.last().is_none_or(|last| last.at <= present.since.max(from)) => {
                self.state(present.since, state, "");
            }
            // Already told by an event.
            Some(_) => {}
        }
    }
}

/// A word of the record as a state.
fn state(word: &str) -> State {
    serde_json::from_value(word.into()).unwrap_or_default()
}

fn span(millis: u64) -> String {
    match millis {
        0..1_000 => format!("{millis} ms"),
        1_000..60_000 => format!("{}.{} s", millis / 1000, millis % 1000 / 100),
        _ => format!("{} min {} s", millis / 60_000, millis / 1000 % 60),
    }
}

/// Without what was over before `from`.
fn since(mut spans: Vec<Span>, from: Timestamp) -> Vec<Span> {
    let over = spans.iter().skip(1).take_while(|next| next.at <= from).count();
    spans.drain(..over);
    spans
}

/// If there are more than [`MOST`]: of those that begin within the same [`GRAIN`] only the worst, and the last one, because
/// it may go on for hours.
fn fewer(spans: Vec<Span>) -> Vec<Span> {
    if spans.len() <= MOST {
        return spans;
    }
    let grain = u64::try_from(GRAIN.as_millis()).unwrap_or(1);
    let mut few: Vec<Span> = Vec::new();
    let mut push = |span: Span| {
        if few.last().is_none_or(|last| last.kind != span.kind) {
            few.push(span);
        }
    };
    for group in spans.chunk_by(|one, next| one.at.millis() / grain == next.at.millis() / grain) {
        let [first, .., last] = group else {
            group.iter().cloned().for_each(&mut push);
            continue;
        };
        if let Some(worst) = group.iter().max_by_key(|span| span.kind) {
            push(Span { at: first.at, ..worst.clone() });
        }
        push(last.clone());
    }
    few
}

fn latest(mut marks: Vec<Mark>) -> Vec<Mark> {
    marks.sort_by_key(|mark| mark.at);
    let many = marks.len().saturating_sub(MOST);
    marks.drain(..many);
    marks
}

#[cfg(test)]
mod tests;
