//! What is known of every tunnel of the host, and who is to be told of a change.

mod absence;
mod events;
mod pages;
mod rows;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, broadcast};
use tokio::time::Instant;

pub use self::absence::{Absence, Lost};
use self::events::EVENTS;
pub use self::events::{Arrived, Followed};
pub use self::pages::{About, SAMPLE_EVERY, View, message};
use self::pages::{BEHIND, Samples};
pub use self::rows::Known;
use super::timeline::{Past, Present, Timeline};
use crate::control::protocol::Status;
use crate::control::time::Timestamp;

/// Shared by the watchers, which fill it, and the server, which shows it.
#[derive(Debug)]
pub struct Board {
    inner: Mutex<Inner>,
    /// Messages for pages, as they go over the wire.
    live: broadcast::Sender<Bytes>,
    /// Events as they arrive.
    happened: broadcast::Sender<Arrived>,
    /// A tunnel has answered, or has not.
    answered: Notify,
    /// Something is to be published.
    dirty: Notify,
    /// Pages that look on.
    viewers: AtomicUsize,
}

#[derive(Debug, Default)]
struct Inner {
    tunnels: BTreeMap<String, Tunnel>,
    /// Tunnels that are to run.
    expected: BTreeSet<String>,
    /// Everything as pages are told it, and what has changed since: the same bytes for all of them. Empty where nobody
    /// looks.
    told: VecDeque<Bytes>,
    /// The number of the next event.
    next: u64,
    /// The directory was read.
    searched: bool,
    /// Why it could not be, the last time.
    trouble: Option<String>,
}

#[derive(Debug, Default)]
struct Tunnel {
    status: Option<Arc<Status>>,
    lost: Option<Lost>,
    /// It was to run, and is not any more.
    dropped: bool,
    events: VecDeque<Arrived>,
    /// The last one for which there was no room any more.
    evicted: Option<Arrived>,
    /// What is drawn of them, and of those before.
    past: Past,
    samples: Samples,
    /// Bytes carried by the time of the last sample, and when that was.
    carried: Option<(Instant, u64)>,
    /// When the question was put that it has answered last.
    asked: Option<Instant>,
    /// It is to be asked now.
    ask: Arc<Notify>,
    status_changed: bool,
    timeline_changed: bool,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            inner: Mutex::default(),
            live: broadcast::channel(BEHIND).0,
            happened: broadcast::channel(4 * EVENTS).0,
            answered: Notify::new(),
            dirty: Notify::new(),
            viewers: AtomicUsize::new(0),
        }
    }
}

impl Board {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The directory was read, or could not be.
    pub fn searched(&self, trouble: Option<String>) {
        let mut inner = self.inner();
        inner.searched |= trouble.is_none();
        inner.trouble = trouble;
    }

    /// Whether tunnels can be found, and if not, why.
    pub fn is_ready(&self) -> Result<usize, String> {
        let inner = self.inner();
        match &inner.trouble {
            Some(trouble) => Err(trouble.clone()),
            None if !inner.searched => Err("the runtime directory has not been read yet".to_owned()),
            None => Ok(inner.tunnels.values().filter(|tunnel| tunnel.status.is_some()).count()),
        }
    }
}

impl Tunnel {
    fn timeline(&self, now: Timestamp) -> Timeline {
        let present = match (&self.lost, &self.status) {
            (Some(lost), _) if lost.is_news() => Some(Present { state: None, since: lost.since }),
            (_, Some(status)) => Some(Present { state: Some(status.state), since: status.since }),
            (_, None) => None,
        };
        self.past.draw(present.as_ref(), now)
    }
}
