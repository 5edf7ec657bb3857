//! What is known of every tunnel of the host, and who is to be told of a change.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{Notify, broadcast};
use tokio::time::{Instant, timeout_at};

use super::timeline::{Past, Present, Timeline};
use crate::control::protocol::{Event, Metrics, State, Status, history};
use crate::control::time::Timestamp;

/// Events kept of each tunnel, at most: a quiet day has a hundred.
const EVENTS: usize = 2000;
/// Events kept in all, as far as each tunnel has a [`DAY`]: some 70 MB.
const ALL_EVENTS: usize = 100_000;
/// Events kept of each tunnel at least.
const DAY: usize = 200;
/// Events that a client of `/api/events` gets that comes back, at most.
const BACKLOG: usize = 10_000;
/// How often a sample is taken of connections and throughput.
pub const SAMPLE_EVERY: Duration = Duration::from_secs(10);
/// Samples kept: a quarter of an hour.
const SAMPLES: usize = 90;
/// Changes that come within so long of each other are told in one.
const GATHER: Duration = Duration::from_millis(100);
/// Messages that a reader may be behind before it is told everything anew.
const BEHIND: usize = 64;

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

/// A daemon that does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Since when.
    pub since: Timestamp,
    /// What that looks like.
    pub how: Absence,
    /// What came instead.
    pub why: String,
}

/// How a daemon does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Absence {
    /// For a moment, which need not mean anything: so does one that is restarted.
    Silent,
    /// Nobody listens.
    Gone,
    /// Somebody listens and says nothing, or nothing to us.
    Deaf,
}

#[derive(Clone, Debug, Default, Serialize)]
struct Samples {
    /// Connections open.
    open: VecDeque<u64>,
    /// Bytes a second, both ways.
    rate: VecDeque<u64>,
}

/// An event, in the order in which they came here.
#[derive(Clone, Debug)]
pub struct Arrived {
    /// Its number.
    pub number: u64,
    /// The event.
    pub event: Arc<Event>,
}

/// Events for a client that goes on where it was.
#[derive(Debug)]
pub struct Followed {
    /// What has happened, in its order.
    pub here: VecDeque<Arrived>,
    /// Before that there were others.
    pub missed: bool,
    /// What happens, of any tunnel.
    pub coming: broadcast::Receiver<Arrived>,
}

/// A tunnel as `/api/tunnels` and the answers about one have it.
#[derive(Clone, Debug)]
pub struct Known {
    /// What it said last.
    pub status: Arc<Status>,
    /// Whether it says anything now.
    pub lost: Option<Lost>,
}

impl Known {
    /// Whether its daemon answers; one that is being restarted counts as if it did.
    pub fn answers(&self) -> bool {
        !self.lost.as_ref().is_some_and(Lost::is_news)
    }
}

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

    fn timeline(&self, now: Timestamp) -> Timeline {
        let present = match (&self.lost, &self.status) {
            (Some(lost), _) if lost.is_news() => Some(Present { state: None, since: lost.since }),
            (_, Some(status)) => Some(Present { state: Some(status.state), since: status.since }),
            (_, None) => None,
        };
        self.past.draw(present.as_ref(), now)
    }
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

    // For the watchers.

    /// The directory was read, or could not be.
    pub fn searched(&self, trouble: Option<String>) {
        let mut inner = self.inner();
        inner.searched |= trouble.is_none();
        inner.trouble = trouble;
    }

    /// A tunnel has answered what was `asked` then.
    pub fn status(&self, name: &str, mut status: Status, asked: Instant) {
        let mut inner = self.inner();
        let tunnel = inner.tunnels.entry(name.to_owned()).or_default();
        tunnel.asked = Some(asked);
        let state = |status: &Status| (status.state, status.since);
        let turned = tunnel.lost.is_some() || tunnel.status.as_deref().map(state) != Some(state(&status));
        tunnel.timeline_changed |= turned;
        if let Some(last) = tunnel.status.as_deref().filter(|_| !turned) {
            // That time has passed is no change.
            let now = std::mem::replace(&mut status.now, last.now);
            tunnel.status_changed |= status != *last;
            status.now = now;
        } else {
            tunnel.status_changed = true;
        }
        tunnel.lost = None;
        tunnel.status = Some(Arc::new(status));
        drop(inner);
        self.answered.notify_waiters();
        self.dirty.notify_one();
    }

    /// A tunnel does not answer. One that nobody has ever heard of has no row until that is news.
    pub fn lost(&self, name: &str, lost: Lost) {
        let mut inner = self.inner();
        let tunnel = inner.tunnels.entry(name.to_owned()).or_default();
        let since = tunnel.lost.as_ref().map_or(lost.since, |before| before.since);
        let lost = Lost { since, ..lost };
        if tunnel.status.is_none() && lost.is_news() {
            let status = Status { name: name.to_owned(), state: State::Stopped, since, ..Status::default() };
            tunnel.status = Some(Arc::new(status));
        }
        let lost = Some(lost);
        if tunnel.lost != lost {
            tunnel.lost = lost;
            tunnel.status_changed = true;
            tunnel.timeline_changed = true;
        }
        drop(inner);
        self.answered.notify_waiters();
        self.dirty.notify_one();
    }

    /// These tunnels are to run.
    pub fn expect(&self, names: BTreeSet<String>) {
        let mut inner = self.inner();
        let before = std::mem::replace(&mut inner.expected, names);
        let Inner { tunnels, expected, .. } = &mut *inner;
        for (name, tunnel) in tunnels {
            tunnel.dropped = !expected.contains(name) && (tunnel.dropped || before.contains(name));
        }
    }

    /// The tunnels that are to run.
    pub fn expected(&self) -> BTreeSet<String> {
        self.inner().expected.clone()
    }

    /// A tunnel was stopped by somebody, and is none of this host's any more.
    pub fn forget(&self, name: &str) {
        let mut inner = self.inner();
        if inner.tunnels.remove(name).is_some() {
            self.answered.notify_waiters();
            self.publish_one(&mut inner, || message("removed", &serde_json::json!({ "name": name })));
        }
    }

    /// An event has come; one that is here already is not taken twice.
    pub fn event(&self, name: &str, event: Event) {
        let event = Arc::new(event);
        let mut inner = self.inner();
        let most = (ALL_EVENTS / inner.tunnels.len().max(1)).clamp(DAY, EVENTS);
        let Inner { tunnels, next, .. } = &mut *inner;
        let tunnel = tunnels.entry(name.to_owned()).or_default();
        let mut latest =
            tunnel.events.iter().rev().map(|known| &known.event).take_while(|one| one.at >= event.at);
        if latest.any(|known| *known == event) {
            return;
        }
        tunnel.past.take(&event);
        let arrived = Arrived { number: *next, event };
        *next += 1;
        tunnel.events.push_back(arrived.clone());
        let many = tunnel.events.len().saturating_sub(most);
        tunnel.evicted = tunnel.events.drain(..many).next_back().or(tunnel.evicted.take());
        tunnel.timeline_changed = true;
        // While nobody can begin to follow, who would get it twice.
        let _ = self.happened.send(arrived);
        drop(inner);
        self.dirty.notify_one();
    }

    /// When the last event of this tunnel was that is here.
    pub fn last_event(&self, name: &str) -> Option<Timestamp> {
        self.inner().tunnels.get(name).and_then(|tunnel| tunnel.events.back()).map(|last| last.event.at)
    }

    /// Whether a tunnel that has no socket any more has done what somebody wanted: it is not to run, and was told to stop,
    /// or has never said anything.
    pub fn may_go(&self, name: &str) -> bool {
        let inner = self.inner();
        let over = inner.tunnels.get(name).is_none_or(|tunnel| tunnel.dropped || tunnel.was_stopped());
        over && !inner.expected.contains(name)
    }

    /// Notified when this tunnel is to be asked.
    pub fn ask(&self, name: &str) -> Arc<Notify> {
        self.inner().tunnels.entry(name.to_owned()).or_default().ask.clone()
    }

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
    fn publish_one(&self, inner: &mut Inner, message: impl FnOnce() -> Bytes) {
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

    // For the server.

    /// Asks every tunnel how it is, and waits until all that answer at all have, at most until `deadline`.
    pub async fn refresh(&self, deadline: Instant) {
        self.answers(None, Instant::now(), deadline).await;
    }

    /// One tunnel, as it was at `since` or later; if it has not answered by the `deadline` it counts as lost.
    pub async fn refreshed(&self, name: &str, since: Instant, deadline: Instant) -> Option<Known> {
        let answered = self.answers(Some(name), since, deadline).await;
        let known = self.one(name)?;
        if answered || known.lost.is_some() {
            return Some(known);
        }
        let why = "it has not answered in time".to_owned();
        let lost = Lost { since: Timestamp::now(), how: Absence::Silent, why };
        Some(Known { lost: Some(lost), ..known })
    }

    /// Asks this tunnel, or all, and waits for an answer to a question of `since` or later. Nobody waits for what is lost.
    async fn answers(&self, name: Option<&str>, since: Instant, deadline: Instant) -> bool {
        let mut first = true;
        loop {
            let answered = self.answered.notified();
            tokio::pin!(answered);
            // Before it is looked, so that no answer falls in between.
            answered.as_mut().enable();
            let is_old =
                |tunnel: &Tunnel| tunnel.lost.is_none() && tunnel.asked.is_none_or(|asked| asked < since);
            let waiting = {
                let inner = self.inner();
                let asked = inner.tunnels.iter().filter(|(one, _)| name.is_none_or(|name| name == *one));
                let old = asked.map(|(_, tunnel)| tunnel).filter(|tunnel| is_old(tunnel));
                if first {
                    old.inspect(|tunnel| tunnel.ask.notify_one()).count() > 0
                } else {
                    old.count() > 0
                }
            };
            first = false;
            if !waiting {
                return true;
            }
            if timeout_at(deadline, answered).await.is_err() {
                return false;
            }
        }
    }

    /// Every tunnel, by name.
    pub fn all(&self) -> Vec<Known> {
        let inner = self.inner();
        inner.tunnels.values().filter_map(Tunnel::known).collect()
    }

    /// One tunnel.
    pub fn one(&self, name: &str) -> Option<Known> {
        self.inner().tunnels.get(name).and_then(Tunnel::known)
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

    /// The last events of one tunnel or of all, oldest first.
    pub fn events(&self, name: Option<&str>, last: usize) -> Vec<Arc<Event>> {
        let inner = self.inner();
        let tunnels = inner.tunnels.iter().filter(|(one, _)| name.is_none_or(|name| name == *one));
        let events = tunnels.flat_map(|(_, tunnel)| tunnel.events.iter().rev().take(last));
        let mut events: Vec<_> = events.map(|arrived| arrived.event.clone()).collect();
        events.sort_by_key(|event| (event.at, event.seq));
        events.drain(..events.len().saturating_sub(last));
        events
    }

    /// Events of this tunnel, or of all, from now on; and those before that `admits` lets in.
    pub fn follow(&self, name: Option<&str>, admits: impl Fn(&Arrived) -> bool) -> Followed {
        let inner = self.inner();
        let (mut here, mut missed) = (Vec::new(), false);
        for (_, tunnel) in inner.tunnels.iter().filter(|(one, _)| name.is_none_or(|name| name == *one)) {
            here.extend(tunnel.events.iter().filter(|arrived| admits(arrived)).cloned());
            missed |= tunnel.evicted.as_ref().is_some_and(&admits);
        }
        here.sort_by_key(|arrived| arrived.number);
        let many = here.len().saturating_sub(BACKLOG);
        here.drain(..many);
        Followed { here: here.into(), missed: missed || many > 0, coming: self.happened.subscribe() }
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

impl Lost {
    /// It lasts longer than a restart.
    pub fn is_news(&self) -> bool {
        self.how != Absence::Silent
    }
}

impl Tunnel {
    /// Whether its last word was that it stops.
    fn was_stopped(&self) -> bool {
        let told = self.events.iter().rfind(|known| known.event.event == history::STATE);
        let told = told.and_then(|known| known.event.fields.get("state")?.as_str());
        told.is_some_and(|word| [State::Stopping, State::Stopped].iter().any(|state| state.word() == word))
            || self.status.as_deref().is_none_or(|one| matches!(one.state, State::Stopping | State::Stopped))
    }

    fn known(&self) -> Option<Known> {
        self.status.clone().map(|status| Known { status, lost: self.lost.clone() })
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
    use crate::web::timeline::Kind;

    fn event(seq: u64, at: u64) -> Event {
        Event { seq, at: Timestamp::from_millis(at), ..Event::default() }
    }

    #[test]
    fn events_come_once_and_do_not_fill_the_memory() {
        let board = Board::default();
        for name in 0..1000 {
            for seq in 0..300 {
                board.event(&name.to_string(), event(seq, seq));
            }
        }
        assert_eq!(board.events(Some("999"), usize::MAX).len(), DAY);
        assert_eq!(board.events(None, 5).len(), 5);
        let all = |_: &Arrived| true;
        let followed = board.follow(None, all);
        assert!(followed.here.len() == BACKLOG && followed.missed);
        // Asked for again from the last moment on.
        board.event("999", event(299, 299));
        let number = |followed: &Followed| followed.here.back().map(|last| last.number);
        assert_eq!(number(&board.follow(None, all)), number(&followed));
        // Who was there lately has missed nothing; who comes back too late is told so.
        let of = |least: u64| board.follow(Some("999"), move |arrived| arrived.event.at.millis() >= least);
        assert!((of(100).here.len(), of(100).missed) == (200, false));
        assert!((of(99).here.len(), of(99).missed) == (200, true));
        assert!(of(300).here.is_empty() && !of(300).missed);
        // A daemon that counts anew.
        board.event("999", event(1, 300));
        assert_eq!(board.last_event("999"), Some(Timestamp::from_millis(300)));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_tunnel_that_is_lost() {
        let board = Arc::new(Board::default());
        let began = Instant::now();
        board.status("up", Status::default(), began);
        board.status("hangs", Status::default(), began);
        let up = board.ask("up");
        let answering = tokio::spawn({
            let board = board.clone();
            async move {
                loop {
                    up.notified().await;
                    board.status("up", Status::default(), Instant::now());
                }
            }
        });
        let patience = Duration::from_secs(2);
        tokio::time::advance(Duration::from_secs(1)).await;
        let began = Instant::now();
        board.refresh(began + patience).await;
        assert_eq!(began.elapsed(), patience, "one has not answered");
        // Who asks for one waits for that one, and not for an answer that there is.
        let began = Instant::now();
        let known = board.refreshed("up", began - Duration::from_secs(5), began + patience).await.unwrap();
        assert!(
            known.lost.is_none()
                && board.refreshed("up", began, began + patience).await.unwrap().lost.is_none()
        );
        assert!(board.refreshed("nobody", began, began + patience).await.is_none());
        assert!(began.elapsed() < patience);
        let known = board.refreshed("hangs", began, began + patience).await.unwrap();
        assert_eq!((known.lost.map(|lost| lost.how), began.elapsed()), (Some(Absence::Silent), patience));

        let why = "no answer".to_owned();
        board.lost("hangs", Lost { since: Timestamp::now(), how: Absence::Silent, why });
        let began = Instant::now();
        board.refresh(began + patience).await;
        assert!(began.elapsed() < patience);
        assert!(board.one("hangs").is_some_and(|known| known.lost.is_some()));
        answering.abort();
    }

    /// The timeline is drawn from more than the events that there is room for.
    #[test]
    fn a_long_day_of_many_tunnels_is_shown_from_its_beginning() {
        let board = Board::default();
        let now = Timestamp::now();
        let ago = |seconds: u64| now.before(Duration::from_secs(seconds));
        let turned = |at, was: &str, state: &str| {
            let fields = [("state".to_owned(), state.into()), ("was".to_owned(), was.into())].into();
            Event { at, event: history::STATE.into(), fields, duration_ms: Some(1000), ..Event::default() }
        };
        for name in 0..500 {
            board.event(&format!("other-{name}"), event(1, now.millis()));
        }
        board.event("db", turned(ago(80_000), "up", "waiting"));
        board.event("db", turned(ago(76_000), "waiting", "up"));
        // Five sessions, each closed every hour; and attempts that failed.
        for n in 0..3000 {
            let word = ["interrupted", "resumed", "failed"][n as usize % 3];
            board.event("db", Event { event: word.into(), ..event(n, ago(70_000 - 20 * n).millis()) });
        }
        board.status(
            "db",
            Status { state: State::Up, since: ago(76_000), ..Status::default() },
            Instant::now(),
        );
        assert_eq!(board.events(Some("db"), usize::MAX).len(), DAY);
        let drawn = board.inner().tunnels["db"].timeline(now);
        let told: Vec<_> = drawn.spans.iter().map(|span| (span.kind, now.since(span.at).as_secs())).collect();
        assert_eq!(
            told,
            [(Kind::Unknown, 86_400), (Kind::Up, 80_001), (Kind::Down, 80_000), (Kind::Up, 76_000)]
        );
        assert!(drawn.marks.len() > 300, "{}", drawn.marks.len());
    }

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
