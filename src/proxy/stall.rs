//! Clients that do not take what comes for them.
//!
//! The plugin has one receive buffer for all connections of its session, and none for each: one client that does not read
//! makes it stand still for all of them. So the proxy goes on reading for such a client, as long as there is room; when there
//! is none, the session counts as stalled, while the sockets' buffers and the plugin's own still have some MB to go. A
//! client that is in others' way like this and has taken nothing for `stalled_client_timeout` is closed. One for which there
//! is room is left alone, however long it takes nothing: most often a person has stopped to read what came.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep_until};

use super::Settings;
use super::buffer::CHUNK;
use super::client::Client;
use super::route::Route;
use super::stats::Stats;
use crate::telemetry::thin::Thin;

/// How long there has to be no room before the session counts as stalled. Where the tunnel's memory is used up by others,
/// any client that is slow for an instant would do otherwise.
const MOMENT: Duration = Duration::from_millis(250);

/// While something waits the client is looked at this often at least: it may have taken something without the kernel's
/// telling, others may need the memory, a reload may have changed the timeout.
const LOOK: Duration = Duration::from_secs(5);

/// A shorter timeout is divided into so many looks.
const LOOKS: u32 = 8;

/// What is to be done about a client for which something waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Try whether it takes something.
    Look,
    /// Close it, unless it takes something.
    Close,
}

/// Tells of one tunnel's clients.
pub(super) struct Teller {
    tunnel: String,
    lines: Thin,
}

impl Teller {
    pub(super) fn new(tunnel: String) -> Self {
        Self { tunnel, lines: Thin::new(1) }
    }

    fn stalled(&self, client: &Client, route: &Route, waiting: usize) {
        if let Some(left_out) = self.lines.pass(std::time::Instant::now()) {
            let client = client.peer();
            tracing::warn!(
                tunnel = self.tunnel,
                session = route.session_id,
                event = "client_stalled",
                client,
                waiting,
                left_out,
                "{client} does not read: {waiting} bytes wait for it"
            );
        }
    }

    /// A client was closed because it took nothing.
    pub(super) fn closed(&self, client: &str, waited: Duration, waiting: usize) {
        tracing::warn!(
            tunnel = self.tunnel,
            event = "client_stalled_closed",
            client,
            waiting,
            duration_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
            "{client} has taken nothing for {} s while {waiting} bytes waited for it: closed",
            waited.as_secs()
        );
    }
}

/// What a client does with what waits for it.
pub(super) struct Stall<'a> {
    client: &'a Client,
    route: &'a Route,
    teller: &'a Teller,
    settings: &'a watch::Receiver<Settings>,
    stats: &'a Stats,
    /// When it took something last, or something began to wait for it.
    taken: Instant,
    /// When it was looked at last.
    looked: Instant,
    /// Since when there has been no room, and how much waited then.
    full: Option<(Instant, usize)>,
    /// Since when it has been in the way of others: there is no room for it, or it takes part in leaving hardly any in the
    /// whole tunnel.
    in_the_way: Option<Instant>,
    counted: Option<Counted<'a>>,
    /// Made for the first wait and from then on left as it is, unless it would be too late: a client that takes what comes
    /// for it costs nothing more.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<'a> Stall<'a> {
    pub(super) fn new(
        client: &'a Client,
        route: &'a Route,
        teller: &'a Teller,
        settings: &'a watch::Receiver<Settings>,
        stats: &'a Stats,
    ) -> Self {
        let now = Instant::now();
        let (full, in_the_way, counted, timer) = (None, None, None, None);
        Self {
            client,
            route,
            teller,
            settings,
            stats,
            taken: now,
            looked: now,
            full,
            in_the_way,
            counted,
            timer,
        }
    }

    /// Bytes that may wait for one client.
    pub(super) fn limit(&self) -> usize {
        self.settings.borrow().client_buffer
    }

    /// Something begins to wait, or was taken and `waiting` bytes still wait.
    pub(super) fn moved(&mut self, waiting: usize) {
        self.taken = Instant::now();
        if self.full.is_some_and(|(_, full)| waiting <= full / 2) {
            self.flows();
        }
    }

    /// There was room for more; `waiting` bytes wait now. Where much more waits than when there was none, it was the
    /// tunnel's memory that was used up, and is so no longer.
    pub(super) fn grew(&mut self, waiting: usize) {
        if self.full.is_some_and(|(_, full)| waiting >= full + CHUNK) {
            self.flows();
        }
    }

    /// There is no room for more than what waits.
    pub(super) fn is_full(&mut self, waiting: usize) {
        self.full.get_or_insert_with(|| (Instant::now(), waiting));
    }

    /// Nothing is held up by this client.
    pub(super) fn flows(&mut self) {
        self.full = None;
        self.counted = None;
    }

    /// For how long the client has taken nothing.
    pub(super) fn lasts(&self) -> Duration {
        self.taken.elapsed()
    }

    /// To be asked while something waits, `waiting` bytes.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, waiting: usize) -> Poll<Due> {
        loop {
            let now = Instant::now();
            self.in_the_way = match self.full {
                Some((since, _)) => Some(self.in_the_way.unwrap_or(since)),
                None if waiting > CHUNK && self.stats.budget.is_short() => self.in_the_way.or(Some(now)),
                None => None,
            };
            let timeout = self.settings.borrow().stalled_client_timeout;
            let close_at =
                timeout.zip(self.in_the_way).map(|(timeout, since)| self.taken.max(since) + timeout);
            if close_at.is_some_and(|at| at <= now) {
                return Poll::Ready(Due::Close);
            }
            let look_at = self.looked + timeout.map_or(LOOK, |timeout| LOOK.min(timeout / LOOKS));
            if look_at <= now {
                self.looked = now;
                return Poll::Ready(Due::Look);
            }
            let stalled_at = match self.full {
                Some((since, waiting)) if self.counted.is_none() => {
                    if since + MOMENT <= now {
                        self.counted = Some(Counted::new(self.route, self.stats));
                        self.teller.stalled(self.client, self.route, waiting);
                        continue;
                    }
                    Some(since + MOMENT)
                }
                _ => None,
            };
            let next = [close_at, stalled_at].into_iter().flatten().fold(look_at, Instant::min);
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(next)));
            if timer.is_elapsed() || timer.deadline() > next {
                timer.as_mut().reset(next);
            }
            ready!(timer.as_mut().poll(cx));
        }
    }
}

/// Counts as stalled on its route until it is dropped.
struct Counted<'a> {
    route: &'a Route,
    stats: &'a Stats,
}

impl<'a> Counted<'a> {
    fn new(route: &'a Route, stats: &'a Stats) -> Self {
        stats.count(|counts| counts.stalled += 1);
        route.stalled.send_modify(|stalled| *stalled += 1);
        Self { route, stats }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.stats.count(|counts| counts.stalled -= 1);
        self.route.stalled.send_modify(|stalled| *stalled -= 1);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;

    use tokio::net::UnixStream;

    use super::super::buffer::Buffer;
    use super::super::rig::{route, settings};
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const TIMEOUT: Duration = Duration::from_secs(300);
    const FULL: usize = 4 << 20;

    /// All that a stall looks at.
    struct World {
        client: Client,
        route: Arc<Route>,
        teller: Teller,
        settings: watch::Receiver<Settings>,
        stats: Arc<Stats>,
    }

    impl World {
        fn new() -> Self {
            let settings = Settings { stalled_client_timeout: Some(TIMEOUT), ..settings() };
            Self {
                client: UnixStream::pair().unwrap().0.into(),
                route: route(1, ([127, 0, 0, 1], 1).into()),
                teller: Teller::new("test".to_owned()),
                settings: watch::channel(settings).1,
                stats: Arc::default(),
            }
        }

        fn stall(&self) -> Stall<'_> {
            Stall::new(&self.client, &self.route, &self.teller, &self.settings, &self.stats)
        }
    }

    /// How long until the client is to be closed, if within `patience`, and how often it was looked at before.
    async fn closed(stall: &mut Stall<'_>, waiting: usize, patience: Duration) -> (Option<Duration>, usize) {
        let (began, mut looks) = (Instant::now(), 0);
        let until_closed = async {
            while poll_fn(|cx| stall.poll(cx, waiting)).await == Due::Look {
                looks += 1;
            }
        };
        let closed = tokio::time::timeout(patience, until_closed).await;
        (closed.ok().map(|()| began.elapsed()), looks)
    }

    #[tokio::test(start_paused = true)]
    async fn the_clock_runs_only_while_there_is_no_room() {
        let world = World::new();
        let mut stall = world.stall();
        stall.moved(200_000);
        assert_eq!(closed(&mut stall, 200_000, 60 * MINUTE).await.0, None, "in nobody's way");
        // An hour without reading counts from here: only now somebody has to wait.
        stall.is_full(FULL);
        assert_eq!(closed(&mut stall, FULL, TIMEOUT - LOOK).await.0, None);
        assert_eq!(*world.route.stalled.borrow(), 1);
        let (after, looks) = closed(&mut stall, FULL, MINUTE).await;
        assert_eq!((after, looks), (Some(LOOK), 0), "it is tried once more before it is closed");
        assert!(stall.lasts() >= 60 * MINUTE + TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_it_takes_begins_the_clock_anew() {
        let world = World::new();
        let mut stall = world.stall();
        stall.is_full(FULL);
        for _ in 0..20 {
            let (after, looks) = closed(&mut stall, FULL, TIMEOUT - LOOK).await;
            assert!(after.is_none() && looks >= 58, "{after:?}, {looks} looks: every 5 s");
            stall.moved(FULL - 1);
        }
        stall.moved(FULL / 2);
        assert_eq!(*world.route.stalled.borrow(), 0);
        assert_eq!(closed(&mut stall, FULL / 2, 60 * MINUTE).await.0, None);
    }

    #[tokio::test(start_paused = true)]
    async fn where_the_tunnel_has_no_memory_left_those_that_hold_it_are_in_the_way() {
        let world = World::new();
        let (mut small, mut large) = (world.stall(), world.stall());
        let mut others = Vec::new();
        while !world.stats.budget.is_short() {
            let mut buffer = Buffer::new(&world.stats.budget);
            while let room @ 1.. = buffer.room(FULL) {
                buffer.push(&vec![0; room]);
            }
            others.push(buffer);
        }
        assert_eq!(
            closed(&mut small, CHUNK, 60 * MINUTE).await.0,
            None,
            "what waits for it is not the tunnel's"
        );
        assert_eq!(closed(&mut large, CHUNK + 1, 60 * MINUTE).await.0, Some(TIMEOUT));
        drop(others);
        assert_eq!(closed(&mut large, CHUNK + 1, 60 * MINUTE).await.0, None);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_was_full_for_want_of_the_tunnels_memory_is_not_when_there_is_some() {
        let world = World::new();
        let mut stall = world.stall();
        stall.is_full(CHUNK);
        assert_eq!(closed(&mut stall, CHUNK, MINUTE).await.0, None);
        stall.grew(2 * CHUNK - 1);
        assert_eq!(*world.route.stalled.borrow(), 1);
        stall.grew(2 * CHUNK);
        assert_eq!(*world.route.stalled.borrow(), 0);
        assert_eq!(closed(&mut stall, 2 * CHUNK, 60 * MINUTE).await.0, None);
    }
}
