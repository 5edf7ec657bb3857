//! Clients that do not take what comes for them.
//!
//! The plugin has one receive buffer for all connections of its session, and none for each: one client that does not read
//! makes it stand still for all of them. So the proxy goes on reading for such a client, as long as there is room; when there
//! is none, the session counts as stalled, while the sockets' buffers and the plugin's own still have some MB to go. A
//! client that has taken nothing for `stalled_client_timeout` is closed.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep_until};

use super::Settings;
use super::client::Client;
use super::route::Route;
use super::stats::Stats;
use crate::telemetry::thin::Thin;

/// How long there has to be no room before the session counts as stalled. Where the tunnel's memory is used up by others,
/// any client that is slow for an instant would do otherwise.
const MOMENT: Duration = Duration::from_millis(250);

/// While something waits the clock is looked at this often at least: a reload may have changed the timeout.
const LOOK: Duration = Duration::from_secs(5);

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
    /// Since when there has been no room, and how much waited then.
    full: Option<(Instant, usize)>,
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
        let (taken, full, counted, timer) = (Instant::now(), None, None, None);
        Self { client, route, teller, settings, stats, taken, full, counted, timer }
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

    /// To be asked while something waits: ready when the client has taken nothing for too long.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let now = Instant::now();
            let close_at = self.settings.borrow().stalled_client_timeout.map(|timeout| self.taken + timeout);
            if close_at.is_some_and(|at| at <= now) {
                return Poll::Ready(());
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
            let next = [close_at, stalled_at].into_iter().flatten().fold(now + LOOK, Instant::min);
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
