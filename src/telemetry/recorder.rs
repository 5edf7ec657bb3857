//! Takes the log lines that say what has happened to a tunnel into the tunnel's [`History`], so that record and log say
//! the same and nothing has to be told twice.
//!
//! A line is an event if it has the field `event`. One with the field `tunnel` belongs to that tunnel; one without it is
//! about the whole process and belongs to all of them. Lines below the level info are left out, whatever the log's own
//! filter says, but for those with the target [`HISTORY`], which are made for the record.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};
use std::{io, thread};

use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Subscriber, warn};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::history::History;
use crate::control::protocol::{Event, Level};
use crate::control::time::Timestamp;

/// The target of lines that the record has although their level is debug.
pub const HISTORY: &str = "autossm::history";

/// Events that wait for the disk: a few of each of some hundred tunnels, which all begin at once. Beyond that they are lost
/// to the files, not to memory.
const WAITING: usize = 2048;
/// Between two lines that say so: such a line is an event of every tunnel itself.
const QUIET: Duration = Duration::from_secs(60);
/// Events of tunnels whose history is not open yet: sockets are taken over before anything else is there.
const EARLY: usize = 64;
/// A longer text loses its end.
const LONGEST: usize = 4096;

/// Which lines come here.
pub fn filter() -> Targets {
    Targets::new().with_default(LevelFilter::INFO).with_target(HISTORY, LevelFilter::DEBUG)
}

/// All histories of the process.
#[derive(Clone, Default)]
pub struct Recorder(Arc<Inner>);

#[derive(Default)]
struct Inner {
    open: Mutex<Open>,
    /// The thread that writes, from the first history with files on.
    writer: Mutex<Option<mpsc::Sender<Job>>>,
    /// Events that the disk was too slow for.
    lost: AtomicU64,
    /// Who hears of every event.
    listener: OnceLock<Listener>,
}

type Listener = Box<dyn Fn(&Arc<Event>) + Send + Sync>;

#[derive(Default)]
struct Open {
    histories: HashMap<String, Weak<History>>,
    early: VecDeque<(String, Event)>,
}

enum Job {
    Write(Arc<History>, Arc<Event>),
    Flush(oneshot::Sender<()>),
}

impl Recorder {
    /// The history of a tunnel, kept in `folder`. It is the same for all who ask while anybody holds it. Where the
    /// folder cannot be used the log says so, and the history is kept in memory only.
    pub fn open(&self, tunnel: &str, folder: &Path) -> Arc<History> {
        let history = self.find(tunnel).map_or_else(|| History::open(tunnel, folder), Ok);
        let history = history.unwrap_or_else(|error| {
            tell_failure(tunnel, &error);
            History::in_memory(tunnel)
        });
        let early = {
            let mut open = self.0.open();
            open.histories.retain(|_, history| history.strong_count() > 0);
            open.histories.insert(tunnel.to_owned(), Arc::downgrade(&history));
            let (ours, others): (VecDeque<_>, _) = open.early.drain(..).partition(|(name, _)| name == tunnel);
            open.early = others;
            ours
        };
        for (_, event) in early {
            self.record(&history, event);
        }
        history
    }

    /// Has every event told to `listener` from now on, once in a process. It is called while the line is being written: it
    /// must return at once and write no line itself. Events of the whole process have no tunnel, unless there is only one.
    pub fn listen(&self, listener: impl Fn(&Arc<Event>) + Send + Sync + 'static) {
        let _ = self.0.listener.set(Box::new(listener));
    }

    /// Every history that is open.
    pub fn all(&self) -> Vec<Arc<History>> {
        self.0.open().histories.values().filter_map(Weak::upgrade).collect()
    }

    /// Waits until everything so far is written, but no longer than `patience`.
    pub async fn flush(&self, patience: Duration) {
        let Some(writer) = self.0.writer().clone() else { return };
        let (done, flushed) = oneshot::channel();
        let _ = timeout(patience, async {
            if writer.send(Job::Flush(done)).await.is_ok() {
                let _ = flushed.await;
            }
        })
        .await;
    }

    fn find(&self, tunnel: &str) -> Option<Arc<History>> {
        self.0.open().histories.get(tunnel)?.upgrade()
    }

    fn take(&self, tunnel: Option<String>, event: Event) {
        let Some(tunnel) = tunnel else {
            let histories = self.all();
            if let [only] = histories.as_slice() {
                return self.record(only, event);
            }
            for history in histories {
                self.keep(&history, event.clone());
            }
            self.tell(&Arc::new(event));
            return;
        };
        if let Some(history) = self.find(&tunnel) {
            self.record(&history, event);
            return;
        }
        let mut open = self.0.open();
        if open.early.len() == EARLY {
            open.early.pop_front();
        }
        open.early.push_back((tunnel, event));
    }

    fn record(&self, history: &Arc<History>, event: Event) {
        let event = self.keep(history, event);
        self.tell(&event);
    }

    fn tell(&self, event: &Arc<Event>) {
        if let Some(listener) = self.0.listener.get() {
            listener(event);
        }
    }

    fn keep(&self, history: &Arc<History>, event: Event) -> Arc<Event> {
        let event = history.add(event);
        if !history.has_files() {
            return event;
        }
        let mut writer = self.0.writer();
        let sender = writer.get_or_insert_with(|| {
            let (sender, jobs) = mpsc::channel(WAITING);
            let recorder = Self(self.0.clone());
            let spawned = thread::Builder::new()
                .name("record".into())
                .stack_size(128 << 10)
                .spawn(move || recorder.work(jobs));
            if let Err(error) = spawned {
                // The sender's jobs will be refused, and counted.
                eprintln!("autossm: no thread for the record of events: {error}");
            }
            sender
        });
        if sender.try_send(Job::Write(history.clone(), event.clone())).is_err() {
            self.0.lost.fetch_add(1, Relaxed);
        }
        event
    }

    fn work(&self, mut jobs: mpsc::Receiver<Job>) {
        let mut told: Option<Instant> = None;
        while let Some(job) = jobs.blocking_recv() {
            let (history, event) = match job {
                Job::Write(history, event) => (history, event),
                Job::Flush(done) => {
                    let _ = done.send(());
                    continue;
                }
            };
            match history.write(&event) {
                Ok(()) => {
                    history.set_failing(false);
                    if told.is_some_and(|told| told.elapsed() < QUIET) {
                        continue;
                    }
                    let lost = self.0.lost.swap(0, Relaxed);
                    if lost > 0 {
                        told = Some(Instant::now());
                        warn!(
                            event = "record_behind",
                            lost, "{lost} events are not on record: the disk was too slow for them"
                        );
                    }
                }
                // Once for each tunnel, until it works again.
                Err(error) if !history.set_failing(true) => tell_failure(history.tunnel(), &error),
                Err(_) => {}
            }
        }
    }
}

fn tell_failure(tunnel: &str, error: &io::Error) {
    warn!(tunnel, event = "record_failed", reason = %error, "events cannot be recorded: {error}");
}

impl Inner {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writer(&self) -> MutexGuard<'_, Option<mpsc::Sender<Job>>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recorder {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        span.extensions_mut().insert(fields);
    }

    fn on_event(&self, line: &tracing::Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        line.record(&mut fields);
        if !fields.0.contains_key("event") {
            return;
        }
        for span in context.event_scope(line).into_iter().flatten() {
            if let Some(Fields(more)) = span.extensions().get() {
                for (name, value) in more {
                    fields.0.entry(name).or_insert_with(|| value.clone());
                }
            }
        }
        let level = match *line.metadata().level() {
            tracing::Level::ERROR => Level::Error,
            tracing::Level::WARN => Level::Warn,
            tracing::Level::INFO => Level::Info,
            tracing::Level::DEBUG | tracing::Level::TRACE => Level::Debug,
        };
        let (tunnel, event) = fields.event(level);
        self.take(tunnel, event);
    }
}

/// The fields of a line, as they are.
#[derive(Default)]
struct Fields(BTreeMap<&'static str, Value>);

impl Fields {
    fn event(mut self, level: Level) -> (Option<String>, Event) {
        let mut text = |name| match self.0.remove(name) {
            Some(Value::String(text)) => Some(text),
            Some(other) => Some(other.to_string()),
            None => None,
        };
        let tunnel = text("tunnel");
        let event = Event {
            at: Timestamp::now(),
            level,
            event: text("event").unwrap_or_default(),
            // There are lines about sessions that have no id yet.
            session: text("session").filter(|id| !id.is_empty()),
            message: text("message").unwrap_or_default(),
            reason: text("reason"),
            duration_ms: self.0.remove("duration_ms").and_then(|value| value.as_u64()),
            fields: self.0.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            ..Event::default()
        };
        (tunnel, event)
    }

    fn put(&mut self, field: &Field, value: Value) {
        self.0.insert(field.name(), value);
    }

    fn put_text(&mut self, field: &Field, text: &str) {
        let kept = text.floor_char_boundary(LONGEST);
        let mut kept = text.get(..kept).unwrap_or_default().to_owned();
        if kept.len() < text.len() {
            kept.push('…');
        }
        self.put(field, Value::String(kept));
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put_text(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put_text(field, &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::Registry;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::telemetry::history::Selection;

    fn during(recorder: &Recorder, lines: impl FnOnce()) {
        // With one dispatcher in the process, `tracing` would ask only the thread that passes a line first.
        let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new());
        let layer = recorder.clone().with_filter(filter());
        tracing::dispatcher::with_default(&tracing::Dispatch::new(Registry::default().with(layer)), lines);
    }

    fn events(history: &Arc<History>) -> Vec<Arc<Event>> {
        history.past(Selection::default()).recent
    }

    #[test]
    fn a_line_of_a_tunnel_is_recorded_with_its_fields() {
        let folder = tempfile::tempdir().unwrap();
        let recorder = Recorder::default();
        let history = recorder.open("db", folder.path());
        let other = recorder.open("other", &folder.path().join("other"));
        during(&recorder, || {
            tracing::warn!(
                tunnel = "db",
                session = "s-1",
                event = "lost",
                reason = "gone",
                duration_ms = 12,
                cut = 3,
                "session lost"
            );
            tracing::info!(tunnel = "db", "no event");
            tracing::debug!(tunnel = "db", event = "round_trip", "too much");
            tracing::debug!(target: HISTORY, tunnel = "db", event = "adopted", state = "up", "made for the record");
            let span = tracing::info_span!("gateway", tunnel = "db", session = "s-2");
            span.in_scope(|| tracing::info!(event = "ready", session = "", "in a span"));
        });
        let events = events(&history);
        let words: Vec<_> = events.iter().map(|event| event.event.as_str()).collect();
        assert_eq!(words, ["lost", "adopted", "ready"]);
        let lost = &events[0];
        assert_eq!((lost.seq, lost.level, lost.tunnel.as_str()), (1, Level::Warn, "db"));
        assert_eq!((lost.session.as_deref(), lost.reason.as_deref()), (Some("s-1"), Some("gone")));
        assert_eq!((lost.duration_ms, lost.message.as_str()), (Some(12), "session lost"));
        assert_eq!(lost.fields, BTreeMap::from([("cut".to_owned(), 3.into())]));
        assert!(Timestamp::now().since(lost.at) < Duration::from_secs(60));
        assert_eq!(super::tests::events(&other).len(), 0);
    }

    #[test]
    fn what_concerns_the_process_concerns_every_tunnel_and_nobody_is_too_early() {
        let folder = tempfile::tempdir().unwrap();
        let recorder = Recorder::default();
        let first = recorder.open("first", &folder.path().join("first"));
        during(&recorder, || {
            tracing::info!(event = "reloaded", "for all");
            tracing::info!(tunnel = "late", event = "adopted", "before there is a history");
        });
        let late = recorder.open("late", &folder.path().join("late"));
        assert_eq!(events(&first)[0].event, "reloaded");
        assert_eq!(events(&late)[0].event, "adopted");
    }

    #[tokio::test]
    async fn the_record_is_written_and_can_be_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let recorder = Recorder::default();
        let history = recorder.open("db", folder.path());
        during(&recorder, || tracing::info!(tunnel = "db", event = "stopped", "{}", "ä".repeat(10_000)));
        recorder.flush(Duration::from_secs(20)).await;
        let text = std::fs::read_to_string(folder.path().join("events.jsonl")).unwrap();
        let line: crate::control::protocol::Line<Event> = serde_json::from_str(&text).unwrap();
        assert_eq!((line.v, line.body.event.as_str()), (1, "stopped"));
        assert!(line.body.message.ends_with("ä…") && line.body.message.len() < LONGEST + 10);
        assert_eq!(line.body, *events(&history)[0]);
    }

    /// A line about the whole process is an event of each tunnel, all at once.
    #[tokio::test]
    async fn what_concerns_hundreds_of_tunnels_is_on_record_for_all() {
        let folder = tempfile::tempdir().unwrap();
        let recorder = Recorder::default();
        let path = |n| folder.path().join(format!("{n}"));
        let histories: Vec<_> = (0..500).map(|n| recorder.open(&format!("number-{n}"), &path(n))).collect();
        during(&recorder, || tracing::info!(event = "stopping", "for all"));
        recorder.flush(Duration::from_secs(20)).await;
        assert_eq!(recorder.0.lost.load(Relaxed), 0);
        for n in 0..histories.len() {
            assert!(
                std::fs::read_to_string(path(n).join("events.jsonl")).unwrap().contains("for all"),
                "{n}"
            );
        }
    }

    #[test]
    fn a_folder_that_cannot_be_used_is_said_of_each_tunnel_and_memory_has_the_events() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), "").unwrap();
        let recorder = Recorder::default();
        let mut histories = Vec::new();
        during(&recorder, || {
            histories.push(recorder.open("a", &folder.path().join("file/a")));
            histories.push(recorder.open("b", &folder.path().join("file/b")));
            tracing::info!(tunnel = "b", event = "ready", "still");
        });
        assert_eq!(events(&histories[0])[0].event, "record_failed");
        let words: Vec<_> = events(&histories[1]).iter().map(|event| event.event.clone()).collect();
        assert_eq!(words, ["record_failed", "ready"]);
    }

    /// One tunnel's folder says nothing of another one's, and what works again may fail again.
    #[tokio::test]
    async fn a_file_that_cannot_be_written_is_said_once_of_its_own_tunnel() {
        let folder = tempfile::tempdir().unwrap();
        let recorder = Recorder::default();
        let (a, b) =
            (recorder.open("a", &folder.path().join("a")), recorder.open("b", &folder.path().join("b")));
        // Nothing can be appended to a folder.
        for name in ["a", "b"] {
            std::fs::create_dir(folder.path().join(name).join("events.jsonl")).unwrap();
        }
        for name in ["a", "a", "b"] {
            during(&recorder, || tracing::info!(tunnel = name, event = "ready", ""));
        }
        recorder.flush(Duration::from_secs(20)).await;
        assert!(a.set_failing(true) && b.set_failing(true));
        std::fs::remove_dir(folder.path().join("a/events.jsonl")).unwrap();
        during(&recorder, || tracing::info!(tunnel = "a", event = "ready", ""));
        recorder.flush(Duration::from_secs(20)).await;
        assert!(!a.set_failing(false) && b.set_failing(true));
    }
}
