//! One connection's bytes, both ways, in one task and without a channel in between.
//!
//! ```text
//!            ┌── session over ── answer is whole? ─── yes ─► the client takes the rest ──► Finished
//!            │                   anything carried? ── no ──► Moved (waits for another session)
//!            │                                      └ yes ─► what was received is delivered ──► Cut
//! pumping ───┼── plugin closed ─ answer is whole? ─── yes ─► Finished
//!            │                                      ├ no ──► Broken; if nothing was carried and the session ends: Moved
//!            │                                      └ unknown, session not over within 250 ms ──► Finished, else Cut
//!            ├── client's FIN ── pumping goes on; silent for half_close_timeout ──► Finished
//!            ├── client's reset ──► ClientGone
//!            ├── client takes nothing for stalled_client_timeout, in others' way ──► Stalled
//!            └── daemon's deadline ──► Stopped
//! ```
//! An answer is whole when the agent has ended it and every byte of it has come ([`Answer`](crate::gateway::ledger::Answer)).
//! The plugin's end alone says nothing: it ends a connection in the same way when it dies.

mod backlog;
mod flow;
mod silence;

use std::future::poll_fn;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use self::flow::{Flow, Standing, Turn};
use self::silence::Silence;
use super::Settings;
use super::client::Client;
use super::route::Link;
use super::stall::{Stall, Teller};
use super::stats::Stats;

/// The plugin's connections break before the driver knows that the plugin has died: how long to wait for the news.
pub(super) const NEWS: Duration = Duration::from_millis(250);

/// How long a client may take for what was received before its session ended.
const DELIVERY: Duration = Duration::from_secs(2);

/// How a connection ended. Only a client whose connection is finished is told of an end; all others are reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The destination closed it, or said no more to a client that had shut down its sending side.
    Finished,
    /// The plugin has closed it, but the destination has not, or not all of its answer has come. Whether the session is over is
    /// not known yet.
    Broken,
    /// The client reset it.
    ClientGone,
    /// The client has taken nothing for so long, while so many bytes waited for it.
    Stalled(Duration, usize),
    /// Its session is over, and it has carried nothing yet: it may go on with another session.
    Moved,
    /// Its session is over.
    Cut,
    /// The daemon's deadline has passed.
    Stopped,
}

/// Carries one connection's bytes until it ends. `carried` is what was read from the client and has reached no plugin:
/// at the end of [`End::Moved`] it belongs to the next one.
pub(super) async fn run(
    client: &Client,
    link: &Link,
    carried: &mut Vec<u8>,
    settings: &watch::Receiver<Settings>,
    stats: &Stats,
    teller: &Teller,
    deadline: &CancellationToken,
) -> End {
    let route = link.route();
    let stall = Stall::new(client, route, teller, settings, stats);
    let mut flow = Flow::new(client, link, carried, stats, stall);
    let mut silence = Silence::begin(link, settings);
    loop {
        let turn = tokio::select! {
            biased;
            () = deadline.cancelled() => return End::Stopped,
            () = route.ended.cancelled() => return after_session(client, &mut flow, carried, deadline).await,
            () = client.reset() => Turn::ClientReset,
            turn = poll_fn(|cx| flow.poll(cx)) => turn,
            () = sleep_until(silence.until()), if flow.client_fin() => {
                if silence.is_over(&flow, link, settings) {
                    return End::Finished;
                }
                continue;
            }
        };
        match turn {
            Turn::ClientFin => {
                link.half_close();
                silence = Silence::begin(link, settings);
            }
            Turn::PluginClosed => return after_plugin(client, link, &mut flow, carried, deadline).await,
            turn => return gone(turn, &flow),
        }
    }
}

/// The plugin has closed the connection, and the client has got everything that came.
async fn after_plugin(
    client: &Client,
    link: &Link,
    flow: &mut Flow<'_>,
    carried: &mut Vec<u8>,
    deadline: &CancellationToken,
) -> End {
    await_reset(link).await;
    let (ledger, ended) = (&link.route().ledger, &link.route().ended);
    let (standing, news) = (flow.standing(), flow.news_at());
    if standing == Standing::Whole {
        return End::Finished;
    }
    if !flow.has_carried() {
        *carried = flow.give_back();
        return tokio::select! {
            biased;
            () = deadline.cancelled() => End::Stopped,
            () = ended.cancelled() => End::Moved,
            () = client.gone(flow.client_fin() || !carried.is_empty()) => End::ClientGone,
            () = sleep_until(news) => if standing == Standing::Cut || flow.is_doubtful() { End::Cut } else { End::Finished },
        };
    }
    if standing == Standing::Cut {
        return End::Broken;
    }
    // Either the destination has ended the connection, or the plugin has died. If it lives, it ends the stream on the
    // data channel too, a moment after the connection, which can be seen where its frames are followed.
    tokio::select! {
        biased;
        () = deadline.cancelled() => End::Stopped,
        () = ended.cancelled() => End::Cut,
        () = ledger.until_closed(link.stream), if ledger.is_kept() => End::Finished,
        () = sleep_until(news) => if flow.is_doubtful() { End::Cut } else { End::Finished },
    }
}

/// What was written in a turn may have met the plugin's close on its way. A reset follows then, though not always at once,
/// and the turn is the next one's.
async fn await_reset(link: &Link) {
    let ledger = &link.route().ledger;
    let until = Instant::now() + NEWS;
    while ledger.takes_turns() && ledger.held(link.stream) > 0 && Instant::now() < until {
        if !matches!(link.plugin.take_error(), Ok(None)) {
            return ledger.leave(link.stream, true);
        }
        sleep(NEWS / 50).await;
    }
}

/// The session is over. What the plugin has handed to the kernel before is the client's all the same.
async fn after_session(
    client: &Client,
    flow: &mut Flow<'_>,
    carried: &mut Vec<u8>,
    deadline: &CancellationToken,
) -> End {
    tokio::select! {
        biased;
        () = deadline.cancelled() => return End::Stopped,
        _ = timeout(DELIVERY, flow.deliver()) => {}
    }
    if flow.standing() != Standing::Whole {
        if flow.has_carried() {
            return End::Cut;
        }
        *carried = flow.give_back();
        return End::Moved;
    }
    tokio::select! {
        biased;
        () = deadline.cancelled() => End::Stopped,
        () = client.reset() => End::ClientGone,
        turn = poll_fn(|cx| flow.poll_rest(cx)) => gone(turn, flow),
    }
}

/// What the byte flow has come to is the connection's end.
fn gone(turn: Turn, flow: &Flow<'_>) -> End {
    match turn {
        Turn::ClientReset => End::ClientGone,
        Turn::ClientStalled => flow.stalled(),
        Turn::ClientFin | Turn::PluginClosed => End::Finished,
    }
}

#[cfg(test)]
mod ends;
#[cfg(test)]
mod tests;
