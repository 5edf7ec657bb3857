//! The bytes of one connection, in both directions, and how much of its answer has come.

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::backlog::Backlog;
use super::{End, NEWS};
use crate::gateway::ledger::{Answer, Ledger};
use crate::proxy::buffer::{Buffer, CHUNK};
use crate::proxy::client::Client;
use crate::proxy::route::{Link, Route};
use crate::proxy::stall::{Due, Stall};
use crate::proxy::stats::Stats;

/// What the byte flow has come to.
pub enum Turn {
    ClientFin,
    ClientReset,
    ClientStalled,
    PluginClosed,
}

/// How much of a destination's answer there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// More may come.
    Running,
    /// All of it has come.
    Whole,
    /// The plugin has closed the connection before all of it had come.
    Cut,
    /// The plugin has closed the connection, and whether that is the destination's doing or its own death will be known soon.
    Unproven,
}

/// The plugin's end of a connection.
struct Closed {
    at: Instant,
    /// With a reset.
    reset: bool,
    /// Something was wrong with the session.
    doubtful: bool,
}

/// The two directions of one connection.
pub struct Flow<'a> {
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
    closed: Option<Closed>,
    /// Bytes of the answer that have come.
    received: u64,
    /// When a byte came from the plugin last.
    heard: Instant,
    /// One has come at all.
    answered: bool,
}

impl<'a> Flow<'a> {
    pub(super) fn new(
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
            closed: None,
            received: 0,
            heard: Instant::now(),
            answered: false,
        }
    }

    /// How much of the answer there is.
    pub(super) fn standing(&self) -> Standing {
        match (self.ledger.answer(self.stream), &self.closed) {
            (Answer::Ended(all), _) if all == self.received => Standing::Whole,
            (_, None) => Standing::Running,
            // What lay unread before a plugin that resets has thrown away what it had written last.
            (Answer::Unknown, Some(closed)) if !closed.reset && !closed.doubtful => {
                if closed.at.elapsed() >= NEWS { Standing::Whole } else { Standing::Unproven }
            }
            _ => Standing::Cut,
        }
    }

    /// When it would be known that the plugin has died, if that is why it has closed the connection.
    pub(super) fn news_at(&self) -> Instant {
        self.closed.as_ref().map_or_else(Instant::now, |closed| closed.at) + NEWS
    }

    /// Whether the agent has sent more than has come, or nobody can say.
    pub(super) fn lacks_something(&self) -> bool {
        let missed = match self.ledger.answer(self.stream) {
            Answer::Open(sent) | Answer::Ended(sent) => sent > self.received,
            Answer::Unknown => false,
        };
        missed || self.ledger.is_behind() || self.is_doubtful()
    }

    /// Whether the plugin's data channel is closed, or something on the way to the agent is wrong: where the plugin closes a
    /// connection then, that may be for itself.
    pub(super) fn is_doubtful(&self) -> bool {
        self.route.interrupted.load(Relaxed) || self.ledger.is_shut()
    }

    /// Whether a byte has gone to the plugin or come from it.
    pub(super) fn has_carried(&self) -> bool {
        self.touched
    }

    /// Whether the client has shut down its sending side.
    pub(super) fn client_fin(&self) -> bool {
        self.client_fin
    }

    /// When a byte came from the plugin last.
    pub(super) fn heard(&self) -> Instant {
        self.heard
    }

    /// Whether something is under way to either side.
    pub(super) fn is_busy(&self) -> bool {
        self.up.rest().is_some() || !self.down.is_empty()
    }

    /// What was read from the client and has reached no plugin.
    pub(super) fn give_back(&mut self) -> Vec<u8> {
        self.up.take()
    }

    /// The client's end because it has taken nothing.
    pub(super) fn stalled(&self) -> End {
        End::Stalled(self.stall.lasts(), self.down.len())
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
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
            if self.closed.is_some() && self.down.is_empty() {
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
        if self.closed.is_some() {
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

    /// Takes what there is to be had of a session that is over.
    pub(super) async fn deliver(&mut self) {
        poll_fn(|cx| self.poll_delivery(cx)).await;
        // The plugin has got all of it, and may not yet have written all.
        if matches!(self.ledger.answer(self.stream), Answer::Ended(_)) {
            poll_fn(|cx| self.poll_down(cx)).await;
        }
    }

    /// Ends when the client has taken what waits for it.
    pub(super) fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        loop {
            match self.poll_flush_down(cx) {
                Poll::Ready(Ok(())) => return Poll::Ready(Turn::PluginClosed),
                Poll::Ready(Err(_)) => return Poll::Ready(Turn::ClientReset),
                Poll::Pending => {}
            }
            if let Some(turn) = ready!(self.poll_stall(cx)) {
                return Poll::Ready(turn);
            }
        }
    }

    /// Like [`Self::poll_down`], but takes only what has arrived already. The socket is asked directly: that the
    /// runtime has not yet heard of bytes does not mean that there are none.
    fn poll_delivery(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut chunk = [0; CHUNK];
        loop {
            if ready!(self.poll_flush_down(cx)).is_err() || self.closed.is_some() {
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
                self.close(false);
                // It answers a write after its close with a reset, which is seen as an error beside the end.
                self.ledger.leave(self.stream, !matches!(self.plugin.take_error(), Ok(None)));
            }
            Ok(bytes) => {
                self.touched = true;
                self.received += bytes.len() as u64;
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
                self.close(true);
                self.ledger.leave(self.stream, true);
            }
        }
        Ok(())
    }

    fn close(&mut self, reset: bool) {
        self.closed = Some(Closed { at: Instant::now(), reset, doubtful: self.is_doubtful() });
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
