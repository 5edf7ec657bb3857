//! What has happened to one tunnel: the latest events in memory, and as many as fit into two files of the state
//! directory, so that a restart does not forget them.

mod day;
mod file;

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, watch};

use crate::control::protocol::Event;
use crate::control::time::Timestamp;
use day::Day;
pub use file::Files;

/// Events kept in memory. They are what a follower can be behind, and what `status` shows without reading a file.
const KEPT: usize = 32;
/// The most that can be asked for with `last`.
pub const MOST: usize = 10_000;
/// Events on their way from the files to a client.
const READ_AHEAD: usize = 64;
/// The event that is counted over the last 24 hours.
const RESUMED: &str = "resumed";

/// One tunnel's events.
#[derive(Debug)]
pub struct History {
    tunnel: String,
    recent: Mutex<Recent>,
    latest: watch::Sender<u64>,
    files: Option<Files>,
    /// The disk did not take the last event, which was said.
    failing: AtomicBool,
}

#[derive(Debug, Default)]
struct Recent {
    /// Of the latest event; 0 before the first.
    seq: u64,
    events: VecDeque<Arc<Event>>,
    resumed: Day,
}

impl Recent {
    fn keep(&mut self, event: Arc<Event>) {
        self.seq = event.seq;
        // Not where only the agent was silent.
        if event.event == RESUMED && event.fields.get("attempts").is_none_or(|attempts| *attempts != 0) {
            self.resumed.count(event.at);
        }
        if self.events.len() == KEPT {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// The number of the oldest event in memory, or the next one's.
    fn first(&self) -> u64 {
        self.events.front().map_or(self.seq + 1, |event| event.seq)
    }
}

/// Which events are wanted; each condition narrows the others.
#[derive(Clone, Copy, Debug, Default)]
pub struct Selection {
    /// From this moment on.
    pub since: Option<Timestamp>,
    /// With a higher number.
    pub after: Option<u64>,
    /// So many of the latest, at most [`MOST`].
    pub last: Option<usize>,
}

impl Selection {
    fn takes(&self, event: &Event) -> bool {
        self.since.is_none_or(|since| event.at >= since) && self.after.is_none_or(|after| event.seq > after)
    }
}

/// Past events: first those that had to be read from the files, then those in memory.
#[derive(Debug)]
pub struct Past {
    /// None where memory has all of them.
    pub read: Option<mpsc::Receiver<Event>>,
    /// The latest.
    pub recent: Vec<Arc<Event>>,
    /// The number of the last of them, for whoever wants to [follow](History::after).
    pub seen: u64,
}

/// All that the folder of a tunnel has, oldest first; for those who look at it where no daemon runs.
///
/// # Errors
/// A file cannot be read.
pub fn read(folder: &Path) -> io::Result<Vec<Event>> {
    let mut events = Vec::new();
    Files::at(folder).read(|event| {
        events.push(event);
        true
    })?;
    Ok(events)
}

/// The last event that the folder of a tunnel has.
///
/// # Errors
/// A file cannot be read.
pub fn last(folder: &Path) -> io::Result<Option<Event>> {
    let mut last = None;
    Files::at(folder).latest(|event| last = Some(event))?;
    Ok(last)
}

impl History {
    /// A tunnel's history that goes on where `folder` has it.
    ///
    /// # Errors
    /// The folder cannot be made, or a file in it not be read.
    pub fn open(tunnel: &str, folder: &Path) -> io::Result<Arc<Self>> {
        let mut recent = Recent::default();
        let files = Files::open(folder)?;
        files.latest(|event| recent.keep(Arc::new(event)))?;
        Ok(Self::new(tunnel, recent, Some(files)))
    }

    /// One that ends with the process.
    pub fn in_memory(tunnel: &str) -> Arc<Self> {
        Self::new(tunnel, Recent::default(), None)
    }

    fn new(tunnel: &str, recent: Recent, files: Option<Files>) -> Arc<Self> {
        let latest = watch::Sender::new(recent.seq);
        Arc::new(Self {
            tunnel: tunnel.to_owned(),
            recent: Mutex::new(recent),
            latest,
            files,
            failing: AtomicBool::new(false),
        })
    }

    /// The tunnel's name.
    pub fn tunnel(&self) -> &str {
        &self.tunnel
    }

    /// Whether it outlives the process.
    pub(super) fn has_files(&self) -> bool {
        self.files.is_some()
    }

    /// Gives the event its number and keeps it in memory. [`Self::write`] is the other half.
    pub(super) fn add(&self, mut event: Event) -> Arc<Event> {
        let event = {
            let mut recent = self.recent();
            event.seq = recent.seq + 1;
            event.tunnel.clone_from(&self.tunnel);
            let event = Arc::new(event);
            recent.keep(event.clone());
            event
        };
        self.latest.send_replace(event.seq);
        event
    }

    /// Appends it to the file. Blocks for as long as the disk does.
    pub(super) fn write(&self, event: &Event) -> io::Result<()> {
        self.files.as_ref().map_or(Ok(()), |files| files.append(event))
    }

    /// Whether the last event could not be written; what it was before.
    pub(super) fn set_failing(&self, failing: bool) -> bool {
        self.failing.swap(failing, Relaxed)
    }

    /// The past, as far as `selection` wants it.
    pub fn past(self: &Arc<Self>, selection: Selection) -> Past {
        let (first, seen, mut recent) = {
            let recent = self.recent();
            (recent.first(), recent.seq, recent.events.iter().cloned().collect::<Vec<_>>())
        };
        // Memory has all that is asked for if the oldest event in it is left out, or is the very first one.
        let enough = first <= 1
            || recent.first().is_some_and(|event| !selection.takes(event))
            || selection.last.is_some_and(|last| last <= recent.len());
        recent.retain(|event| selection.takes(event));
        if let Some(last) = selection.last {
            recent.drain(..recent.len().saturating_sub(last));
        }
        let mut read = None;
        if !enough && self.files.is_some() {
            let (sender, receiver) = mpsc::channel(READ_AHEAD);
            read = Some(receiver);
            let (history, missing) = (self.clone(), selection.last.map(|l| l.min(MOST) - recent.len()));
            // Ends early when nobody listens any more.
            tokio::task::spawn_blocking(move || {
                let Some(files) = &history.files else { return };
                let wanted = |event: &Event| event.seq < first && selection.takes(event);
                let read = match missing {
                    None => files.read(|event| !wanted(&event) || sender.blocking_send(event).is_ok()),
                    Some(missing) => {
                        let mut kept = VecDeque::new();
                        let read = files.read(|event| {
                            if wanted(&event) {
                                kept.push_back(event);
                            }
                            if kept.len() > missing {
                                kept.pop_front();
                            }
                            !sender.is_closed()
                        });
                        let _ = kept.into_iter().all(|event| sender.blocking_send(event).is_ok());
                        read
                    }
                };
                if let Err(error) = read {
                    tracing::debug!(tunnel = history.tunnel, %error, "the record of events cannot be read");
                }
            });
        }
        Past { read, recent, seen }
    }

    /// What has happened after the event of number `seen`, and how many of that are no longer in memory.
    pub fn after(&self, seen: u64) -> (u64, Vec<Arc<Event>>) {
        let recent = self.recent();
        let missed = recent.first().saturating_sub(seen + 1);
        (missed, recent.events.iter().filter(|event| event.seq > seen).cloned().collect())
    }

    /// Changes with each event to its number.
    pub fn latest(&self) -> watch::Receiver<u64> {
        self.latest.subscribe()
    }

    /// How often a data channel was opened again in the last 24 hours.
    pub fn resumed_last_day(&self) -> u64 {
        self.recent().resumed.last_day(Timestamp::now())
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(word: &str, at: u64) -> Event {
        Event { event: word.to_owned(), at: Timestamp::from_millis(at), ..Event::default() }
    }

    fn happens(history: &History, count: u64) {
        for _ in 0..count {
            let seq = history.recent().seq + 1;
            let event = history.add(event("x", seq * 1000));
            history.write(&event).unwrap();
        }
    }

    async fn numbers(history: &Arc<History>, selection: Selection) -> Vec<u64> {
        let Past { read, recent, .. } = history.past(selection);
        let mut numbers = Vec::new();
        if let Some(mut read) = read {
            while let Some(event) = read.recv().await {
                numbers.push(event.seq);
            }
        }
        numbers.extend(recent.iter().map(|event| event.seq));
        numbers
    }

    #[tokio::test]
    async fn what_memory_has_forgotten_comes_from_the_files() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::open("db", folder.path()).unwrap();
        happens(&history, 100);
        let all = Selection::default();
        assert_eq!(numbers(&history, all).await, (1..=100).collect::<Vec<_>>());
        assert_eq!(
            numbers(&history, Selection { last: Some(50), ..all }).await,
            (51..=100).collect::<Vec<_>>()
        );
        assert_eq!(numbers(&history, Selection { last: Some(2), ..all }).await, [99, 100]);
        assert_eq!(numbers(&history, Selection { after: Some(98), ..all }).await, [99, 100]);
        let since = Some(Timestamp::from_millis(40_000));
        assert_eq!(numbers(&history, Selection { since, ..all }).await, (40..=100).collect::<Vec<_>>());
        let since = Some(Timestamp::from_millis(99_500));
        let narrow = Selection { since, after: Some(3), last: Some(40) };
        assert_eq!(numbers(&history, narrow).await, [100]);
        assert!(history.past(narrow).read.is_none(), "no file is read for what memory has");
    }

    #[tokio::test]
    async fn a_restart_goes_on_with_the_next_number_and_knows_the_last_day() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::open("db", folder.path()).unwrap();
        happens(&history, 3);
        let resumed = history.add(event("resumed", Timestamp::now().millis()));
        history.write(&resumed).unwrap();
        drop(history);
        let history = History::open("db", folder.path()).unwrap();
        assert_eq!(history.resumed_last_day(), 1);
        assert_eq!(history.add(event("x", 0)).seq, 5);
        assert_eq!(numbers(&history, Selection::default()).await, [1, 2, 3, 4, 5]);
    }

    #[tokio::test]
    async fn without_a_folder_it_is_kept_in_memory() {
        let history = History::in_memory("db");
        happens(&history, 40);
        assert_eq!(numbers(&history, Selection::default()).await, (9..=40).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_follower_hears_of_each_event_and_of_those_that_it_missed() {
        let history = History::in_memory("db");
        let mut latest = history.latest();
        happens(&history, 2);
        assert_eq!(*latest.borrow_and_update(), 2);
        let (missed, events) = history.after(1);
        assert_eq!((missed, events.len(), events[0].seq), (0, 1, 2));
        happens(&history, 40);
        let (missed, events) = history.after(2);
        assert_eq!((missed, events.len()), (8, KEPT));
    }
}
