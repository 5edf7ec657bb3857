//! One connection's bytes, both ways, in one task and without a channel in between.
//!
//! ```text
//!            ┌── session over ── anything carried? ─ no ──► Moved (waits for another session)
//!            │                                     └ yes ─► what was received is delivered ──► Cut
//! pumping ───┼── plugin closed ─ anything carried, or session not over within 250 ms ──► Finished, else Moved
//!            ├── client's FIN ── pumping goes on; silent for half_close_timeout ──► Finished
//!            ├── client's reset ──► ClientGone
//!            ├── client takes nothing for stalled_client_timeout, in others' way ──► Stalled
//!            └── daemon's deadline ──► Stopped
//! ```

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::Settings;
use super::buffer::{Buffer, CHUNK};
use super::client::Client;
use super::route::{Link, Route};
use super::stall::{Due, Stall, Teller};
use super::stats::Stats;
use crate::gateway::ledger::Ledger;

/// The plugin's connections break before the driver knows that the plugin has died: how long to wait for the news.
pub(super) const NEWS: Duration = Duration::from_millis(250);

/// How long a client may take for what was received before its session ended.
const DELIVERY: Duration = Duration::from_secs(2);

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The destination closed it, or said no more to a client that had shut down its sending side.
    Finished,
    /// The plugin has closed it, and nobody can say yet whether that is the destination's doing or the plugin's death.
    PluginClosed,
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

/// What the byte flow has come to.
enum Turn {
    ClientFin,
    ClientReset,
    ClientStalled,
    PluginClosed,
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
            () = route.ended.cancelled() => return after_session(&mut flow, carried, deadline).await,
            () = client.reset() => Turn::ClientReset,
            turn = poll_fn(|cx| flow.poll(cx)) => turn,
            () = sleep_until(silence.until), if flow.client_fin => {
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
            Turn::ClientReset => return End::ClientGone,
            Turn::ClientStalled => return End::Stalled(flow.stall.lasts(), flow.down.len()),
            Turn::PluginClosed => break,
        }
    }
    await_reset(link).await;
    // Either the destination has closed the connection, or the plugin has died. If it lives, it ends the stream on the
    // data channel too, a moment after the connection.
    if flow.touched && !route.ledger.is_kept() {
        return End::PluginClosed;
    }
    if flow.touched {
        return tokio::select! {
            biased;
            () = deadline.cancelled() => End::Stopped,
            () = route.ended.cancelled() => End::Cut,
            () = route.ledger.until_closed(link.stream) => End::Finished,
            () = tokio::time::sleep(NEWS) => End::Finished,
        };
    }
    *carried = flow.up.take();
    tokio::select! {
        biased;
        () = deadline.cancelled() => End::Stopped,
        () = route.ended.cancelled() => End::Moved,
        () = client.gone(flow.client_fin || !carried.is_empty()) => End::ClientGone,
        () = tokio::time::sleep(NEWS) => End::Finished,
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
        tokio::time::sleep(NEWS / 50).await;
    }
}

/// The session is over. What the plugin has handed to the kernel before is the client's all the same.
async fn after_session(flow: &mut Flow<'_>, carried: &mut Vec<u8>, deadline: &CancellationToken) -> End {
    tokio::select! {
        biased;
        () = deadline.cancelled() => return End::Stopped,
        _ = timeout(DELIVERY, poll_fn(|cx| flow.poll_delivery(cx))) => {}
    }
    if flow.touched {
        return End::Cut;
    }
    *carried = flow.up.take();
    End::Moved
}

/// The two directions of one connection.
struct Flow<'a> {
    client: &'a Client,
    plugin: &'a TcpStream,
    route: &'a Route,
    ledger: &'a Ledger,
    stream: u32,
    stats: &'a Stats,
    up: Backlog,
    down: Buffer,
    stall: Stall<'a>,
    /// A byte has gone to the plugin or come from it.
    touched: bool,
    client_fin: bool,
    /// The plugin takes no more bytes; those that it has sent may still be read.
    plugin_deaf: bool,
    plugin_closed: bool,
    /// When a byte came from the plugin last.
    heard: Instant,
    /// One has come at all.
    answered: bool,
}

impl<'a> Flow<'a> {
    fn new(
        client: &'a Client,
        link: &'a Link,
        carried: &mut Vec<u8>,
        stats: &'a Stats,
        stall: Stall<'a>,
    ) -> Self {
        let ledger = &*link.route().ledger;
        let mut up = Backlog::default();
        if !carried.is_empty() {
            ledger.write(link.stream, carried);
            up.keep(carried);
            carried.clear();
        }
        Self {
            client,
            plugin: &link.plugin,
            route: link.route(),
            ledger,
            stream: link.stream,
            stats,
            up,
            down: Buffer::new(&stats.budget),
            stall,
            touched: false,
            client_fin: false,
            plugin_deaf: false,
            plugin_closed: false,
            heard: Instant::now(),
            answered: false,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        match self.poll_down(cx) {
            Poll::Pending => self.poll_up(cx),
            turn => turn,
        }
    }

    /// From the plugin to the client, ahead of it as far as there is room. Ends when the plugin has closed and the client
    /// has got everything.
    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        loop {
            if let Poll::Ready(Err(_)) = self.poll_flush_down(cx) {
                return Poll::Ready(Turn::ClientReset);
            }
            if self.plugin_closed && self.down.is_empty() {
                return Poll::Ready(Turn::PluginClosed);
            }
            let Poll::Ready((ready, room)) = self.poll_readable(cx) else {
                match ready!(self.poll_stall(cx)) {
                    Some(turn) => return Poll::Ready(turn),
                    None => continue,
                }
            };
            let mut chunk = [0; CHUNK];
            let read = ready.and_then(|()| self.plugin.try_read(chunk.get_mut(..room).unwrap_or_default()));
            if self.received(&chunk, read).is_err() {
                return Poll::Ready(Turn::ClientReset);
            }
        }
    }

    /// The plugin has something, and there is room for so much of it.
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<(io::Result<()>, usize)> {
        if self.plugin_closed {
            self.stall.flows();
            return Poll::Pending;
        }
        let ready = ready!(self.plugin.poll_read_ready(cx));
        match self.down.room(self.stall.limit()) {
            // When the client takes something there is more room.
            0 => {
                self.stall.is_full(self.down.len());
                Poll::Pending
            }
            room => Poll::Ready((ready, room)),
        }
    }

    /// How long the client may leave waiting what waits for it. Ready with `None` when it has taken something after all.
    fn poll_stall(&mut self, cx: &mut Context<'_>) -> Poll<Option<Turn>> {
        while let Some(bytes) = self.down.rest() {
            let due = ready!(self.stall.poll(cx, self.down.len()));
            match (written(self.client.press(bytes)), due) {
                (Ok(0), Due::Close) => return Poll::Ready(Some(Turn::ClientStalled)),
                (Ok(0), Due::Look) => {}
                (Ok(taken), _) => {
                    self.down.advance(taken);
                    self.stall.moved(self.down.len());
                    return Poll::Ready(None);
                }
                (Err(_), _) => return Poll::Ready(Some(Turn::ClientReset)),
            }
        }
        Poll::Pending
    }

    /// Like [`Self::poll_down`], but takes only what has arrived already. The socket is asked directly: that the
    /// runtime has not yet heard of bytes does not mean that there are none.
    fn poll_delivery(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut chunk = [0; CHUNK];
        loop {
            if ready!(self.poll_flush_down(cx)).is_err() || self.plugin_closed {
                return Poll::Ready(());
            }
            match recv(self.plugin.as_raw_fd(), &mut chunk, MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EAGAIN) => return Poll::Ready(()),
                read => {
                    if self.received(&chunk, read.map_err(io::Error::from)).is_err() {
                        return Poll::Ready(());
                    }
                }
            }
        }
    }

    /// Passes on what was read from the plugin. An error is the client's.
    fn received(&mut self, chunk: &[u8], read: io::Result<usize>) -> io::Result<()> {
        match read.map(|n| chunk.get(..n).unwrap_or_default()) {
            Ok([]) => {
                self.plugin_closed = true;
                // It answers a write after its close with a reset, which is seen as an error beside the end.
                self.ledger.leave(self.stream, !matches!(self.plugin.take_error(), Ok(None)));
            }
            Ok(bytes) => {
                self.touched = true;
                self.heard = Instant::now();
                if !std::mem::replace(&mut self.answered, true) {
                    self.ledger.serves(self.stream);
                    self.route.has_answered();
                }
                self.stats.moved_down(bytes.len());
                self.route.down_bytes.fetch_add(bytes.len() as u64, Relaxed);
                if self.down.is_empty() {
                    let written = written(self.client.try_write(bytes))?;
                    self.keep_down(bytes.get(written..).unwrap_or_default());
                } else {
                    self.down.push(bytes);
                    self.stall.grew(self.down.len());
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            // A reset comes after all data that was received before it: the kernel hands that out first.
            Err(_) => {
                self.plugin_closed = true;
                self.ledger.leave(self.stream, true);
            }
        }
        Ok(())
    }

    /// What the client would not take at once.
    fn keep_down(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.down.push(bytes);
            self.stall.moved(bytes.len());
        }
    }

    fn poll_flush_down(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(bytes) = self.down.rest() {
            ready!(self.client.poll_write_ready(cx))?;
            let written = written(self.client.try_write(bytes))?;
            if written > 0 {
                self.down.advance(written);
                self.stall.moved(self.down.len());
            }
        }
        Poll::Ready(Ok(()))
    }

    /// From the client to the plugin. The client's FIN is told, not passed on: the plugin would take it for the end of
    /// both directions.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        loop {
            while let Some(bytes) = self.up.rest()
                && !self.plugin_deaf
            {
                let ready = ready!(self.plugin.poll_write_ready(cx));
                let turn = ready!(self.ledger.poll_turn(cx, self.stream, bytes.len()));
                let bytes = bytes.get(..turn).unwrap_or(bytes);
                let sent = ready.and_then(|()| written(self.plugin.try_write(bytes)));
                let sent = self.sent(sent);
                if sent == 0 {
                    self.ledger.pass_turn(self.stream);
                }
                self.up.advance(sent);
            }
            // The plugin's end is seen where its bytes are read.
            if self.plugin_deaf || self.client_fin {
                return Poll::Pending;
            }
            let ready = ready!(self.client.poll_read_ready(cx));
            let mut chunk = [0; CHUNK];
            let read = ready.and_then(|()| self.client.try_read(&mut chunk));
            match read.map(|n| chunk.get(..n).unwrap_or_default()) {
                Ok([]) => {
                    self.client_fin = true;
                    return Poll::Ready(Turn::ClientFin);
                }
                Ok(bytes) => {
                    self.ledger.write(self.stream, bytes);
                    let sent = match self.ledger.asks_turns() {
                        true => 0,
                        false => self.sent(written(self.plugin.try_write(bytes))),
                    };
                    self.up.keep(bytes.get(sent..).unwrap_or_default());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return Poll::Ready(Turn::ClientReset),
            }
        }
    }

    /// Notes what the plugin's socket has taken.
    fn sent(&mut self, sent: io::Result<usize>) -> usize {
        let Ok(sent) = sent else {
            self.plugin_deaf = true;
            return 0;
        };
        if sent > 0 {
            self.touched = true;
            self.stats.moved_up(sent);
            self.route.up_bytes.fetch_add(sent as u64, Relaxed);
        }
        sent
    }
}

/// Nobody waits for a connection that is over.
impl Drop for Flow<'_> {
    fn drop(&mut self) {
        self.ledger.leave(self.stream, false);
    }
}

/// A full socket has taken nothing; that is no error.
fn written(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        other => other,
    }
}

/// Bytes whose receiver was not ready for them, at most [`CHUNK`]. An idle connection has no memory here.
#[derive(Default)]
struct Backlog {
    bytes: Vec<u8>,
    from: usize,
}

impl Backlog {
    fn rest(&self) -> Option<&[u8]> {
        self.bytes.get(self.from..).filter(|rest| !rest.is_empty())
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn advance(&mut self, bytes: usize) {
        self.from += bytes;
        if self.rest().is_none() {
            *self = Self::default();
        }
    }

    fn take(&mut self) -> Vec<u8> {
        let mut bytes = std::mem::take(self);
        bytes.bytes.drain(..bytes.from);
        bytes.bytes
    }
}

/// The clock that runs after a client's FIN, and begins anew with everything that shows that the destination is not
/// just silent: a byte of the answer, a client slow to take it, a request still on its way, a data channel that is down.
struct Silence {
    until: Instant,
    since: Instant,
    /// Bytes of the request that the plugin still held when it was looked at last.
    held: usize,
}

impl Silence {
    fn begin(link: &Link, settings: &watch::Receiver<Settings>) -> Self {
        let since = Instant::now();
        let until = since + settings.borrow().half_close_timeout;
        Self { until, since, held: link.route().ledger.held(link.stream) }
    }

    /// To be asked at `until`; if it is not over, `until` is later afterwards.
    fn is_over(&mut self, flow: &Flow<'_>, link: &Link, settings: &watch::Receiver<Settings>) -> bool {
        let route = link.route();
        let now = Instant::now();
        let held = route.ledger.held(link.stream);
        let busy = held != self.held
            || flow.up.rest().is_some()
            || !flow.down.is_empty()
            || route.interrupted.load(Relaxed);
        self.held = held;
        self.since = if busy { now } else { self.since.max(flow.heard) };
        self.until = self.since + settings.borrow().half_close_timeout;
        self.until <= now
    }
}

#[cfg(test)]
mod tests;
