//! What pages are told: everything once, then what has changed, the same bytes for all of them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::broadcast;
use tokio::time::Instant;

use super::{Absence, Board, Inner, Tunnel};
use crate::control::protocol::{Metrics, Status};
use crate::control::time::Timestamp;
use crate::web::timeline::Timeline;

/// How often a sample is taken of connections and throughput.
pub const SAMPLE_EVERY: Duration = Duration::from_secs(10);
/// Samples kept: a quarter of an hour.
const SAMPLES: usize = 90;
/// Changes that come within so long of each other are told in one.
const GATHER: Duration = Duration::from_millis(100);
/// Messages that a reader may be behind before it is told everything anew.
pub(super) const BEHIND: usize = 64;

/// What a page is told beside the tunnels.
#[derive(Clone, Debug, Serialize)]
pub struct About {
    /// The host's name.
    pub host: String,
    /// Of this program.
    pub version: &'static str,
    /// Where control sockets are looked for.
    pub runtime_dir: String,
}

#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Samples {
    /// Connections open.
    open: VecDeque<u64>,
    /// Bytes a second, both ways.
    rate: VecDeque<u64>,
}

/// What a page is told of a tunnel; what is absent has not changed.
#[derive(Serialize)]
struct Told<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lost: Option<Option<Timestamp>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    absence: Option<Absence>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeline: Option<Timeline>,
    #[serde(skip_serializing_if = "Option::is_none")]
    samples: Option<&'a Samples>,
}

impl Board {
    /// Whether somebody looks on.
    pub fn is_watched(&self) -> bool {
        self.viewers.load(Ordering::Relaxed) > 0
    }

    /// Tells pages what has changed, and takes samples, for ever.
    pub async fn publish(&self) {
        let mut sample = tokio::time::interval(SAMPLE_EVERY);
        sample.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                () = self.dirty.notified() => {
                    tokio::time::sleep(GATHER).await;
                    self.tell();
                }
                _ = sample.tick() => self.sample(),
            }
        }
    }

    fn tell(&self) {
        let now = Timestamp::now();
        let mut inner = self.inner();
        if self.is_watched() {
            let changed = inner.tunnels.iter().filter(|(_, one)| one.status_changed || one.timeline_changed);
            let told: Vec<_> = changed
                .filter(|(_, one)| one.status.is_some())
                .map(|(name, one)| one.told(name, false, now))
                .collect();
            if !told.is_empty() {
                let told = message("tunnels", &told);
                self.publish_one(&mut inner, || told);
            }
        } else {
            inner.told.clear();
        }
        for tunnel in inner.tunnels.values_mut() {
            (tunnel.status_changed, tunnel.timeline_changed) = (false, false);
        }
    }

    fn sample(&self) {
        let now = Instant::now();
        let mut inner = self.inner();
        let mut samples = BTreeMap::new();
        for (name, tunnel) in &mut inner.tunnels {
            let status = tunnel.status.as_deref().filter(|_| tunnel.lost.is_none());
            let (open, carried) = status
                .map_or((0, 0), |status| (status.connections.open, status.up_bytes + status.down_bytes));
            // The daemon's counters begin anew with it.
            let rate = tunnel.carried.map_or(0, |(then, before)| {
                let millis = u64::try_from((now - then).as_millis()).unwrap_or(u64::MAX).max(1);
                carried.saturating_sub(before).saturating_mul(1000) / millis
            });
            tunnel.carried = status.map(|_| (now, carried));
            for (values, value) in [(&mut tunnel.samples.open, open), (&mut tunnel.samples.rate, rate)] {
                if values.len() == SAMPLES {
                    values.pop_front();
                }
                values.push_back(value);
            }
            samples.insert(name, (open, rate));
        }
        let told = message("samples", &samples);
        self.publish_one(&mut inner, || told);
    }

    /// Tells all pages, and those that come later.
    pub(super) fn publish_one(&self, inner: &mut Inner, message: impl FnOnce() -> Bytes) {
        if self.is_watched() {
            let message = message();
            if !inner.told.is_empty() {
                inner.told.push_back(message.clone());
            }
            let _ = self.live.send(message);
        } else {
            inner.told.clear();
        }
    }

    /// Everything, and changes from now on, for a page; as long as the value lives, tunnels are asked often.
    pub fn view(self: &Arc<Self>, about: &About) -> View {
        self.viewers.fetch_add(1, Ordering::Relaxed);
        let mut inner = self.inner();
        inner.tunnels.values().for_each(|tunnel| tunnel.ask.notify_one());
        let since: usize = inner.told.iter().skip(1).map(Bytes::len).sum();
        let is_long = inner.told.len() > BEHIND || inner.told.front().is_none_or(|whole| since > whole.len());
        if is_long {
            let whole = inner.whole(about);
            inner.told = [whole].into();
        }
        View { board: self.clone(), first: inner.told.clone(), changes: self.live.subscribe() }
    }
}

impl Inner {
    fn whole(&self, about: &About) -> Bytes {
        #[derive(Serialize)]
        struct Whole<'a> {
            #[serde(flatten)]
            about: &'a About,
            samples: usize,
            tunnels: Vec<Told<'a>>,
        }
        let now = Timestamp::now();
        let known = self.tunnels.iter().filter(|(_, one)| one.status.is_some());
        let tunnels = known.map(|(name, one)| one.told(name, true, now)).collect();
        message("board", &Whole { about, samples: SAMPLES, tunnels })
    }
}

impl Tunnel {
    fn told<'a>(&'a self, name: &'a str, whole: bool, now: Timestamp) -> Told<'a> {
        let status = self.status.as_deref().filter(|_| whole || self.status_changed);
        Told {
            name,
            status: status.map(|status| Status { metrics: Metrics::default(), ..status.clone() }),
            lost: status.map(|_| self.lost.as_ref().map(|lost| lost.since)),
            absence: self.lost.as_ref().map(|lost| lost.how),
            why: self.lost.as_ref().map(|lost| lost.why.as_str()),
            timeline: (whole || self.timeline_changed).then(|| self.timeline(now)),
            samples: whole.then_some(&self.samples),
        }
    }
}

/// A page that looks on.
#[derive(Debug)]
pub struct View {
    board: Arc<Board>,
    first: VecDeque<Bytes>,
    changes: broadcast::Receiver<Bytes>,
}

impl View {
    /// What it is to be told next.
    ///
    /// # Errors
    /// It has not asked for so long that some of it is gone.
    pub async fn next(&mut self) -> Result<Bytes, broadcast::error::RecvError> {
        match self.first.pop_front() {
            Some(first) => Ok(first),
            None => self.changes.recv().await,
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.board.viewers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One message of a stream of server-sent events. JSON has no line end of its own in it.
pub fn message(kind: &str, data: &impl Serialize) -> Bytes {
    match serde_json::to_string(data) {
        Ok(data) => format!("event: {kind}\ndata: {data}\n\n").into(),
        Err(error) => {
            tracing::debug!(%error, kind, "a message could not be written");
            Bytes::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a page makes of its messages: connections of each tunnel, and how many samples there are of one.
    fn shown(messages: &[Bytes]) -> (BTreeMap<String, u64>, usize) {
        let (mut open, mut samples) = (BTreeMap::new(), 0);
        for message in messages {
            let text = std::str::from_utf8(message).unwrap();
            let (kind, data) = text.trim().split_once("\ndata: ").unwrap();
            let data: serde_json::Value = serde_json::from_str(data).unwrap();
            let mut take = |tunnels: &serde_json::Value| {
                for one in tunnels.as_array().unwrap() {
                    let count = one["status"]["connections"]["open"].as_u64().unwrap();
                    open.insert(one["name"].as_str().unwrap().to_owned(), count);
                }
            };
            match kind {
                "event: board" => {
                    take(&data["tunnels"]);
                    samples = data["tunnels"][0]["samples"]["open"].as_array().unwrap().len();
                }
                "event: tunnels" => take(&data),
                "event: samples" => samples += 1,
                "event: removed" => drop(open.remove(data["name"].as_str().unwrap())),
                other => panic!("{other}"),
            }
        }
        (open, samples)
    }

    #[test]
    fn pages_that_come_at_different_times_share_what_they_are_told() {
        let board = Arc::new(Board::default());
        let about = About { host: String::new(), version: "", runtime_dir: String::new() };
        let is = |name: &str, open: u64| {
            let connections = crate::control::protocol::Connections { open, ..Default::default() };
            board.status(name, Status { connections, ..Status::default() }, Instant::now());
            board.tell();
        };
        let first = |view: &View| view.first.iter().cloned().collect::<Vec<_>>();
        for n in 0..20 {
            is(&format!("t-{n:02}"), 1);
        }
        let one = board.view(&about);
        is("t-01", 7);
        board.sample();
        board.forget("t-02");
        let two = board.view(&about);
        assert_eq!(first(&one)[0].as_ptr(), first(&two)[0].as_ptr(), "the same bytes");
        let (open, samples) = shown(&first(&two));
        assert_eq!((open.len(), open["t-01"], samples), (19, 7, 1));
        // What changes while nobody looks is in what the next one is told, and so is all that there was too much of.
        drop((one, two));
        is("t-03", 9);
        let three = board.view(&about);
        assert_eq!(shown(&first(&three)).0["t-03"], 9);
        for n in 0..500 {
            is("t-04", n);
        }
        let four = board.view(&about);
        assert!(first(&four).len() <= BEHIND + 1);
        assert_eq!(shown(&first(&four)).0["t-04"], 499);
    }

    #[test]
    fn a_counter_that_begins_anew_is_no_throughput() {
        let board = Board::default();
        let rates = |board: &Board| board.inner().tunnels["db"].samples.rate.clone();
        for bytes in [5000, 9000, 100] {
            board.status("db", Status { down_bytes: bytes, ..Status::default() }, Instant::now());
            board.sample();
        }
        assert_eq!(rates(&board).len(), 3);
        assert_eq!((rates(&board)[0], rates(&board)[2]), (0, 0));
        for _ in 0..2 * SAMPLES {
            board.sample();
        }
        assert_eq!(rates(&board).len(), SAMPLES);
    }
}
