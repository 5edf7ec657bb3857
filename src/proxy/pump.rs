//! One connection's bytes, both ways, in one task and without a channel in between.
//!
//! ```text
//!            ┌── session over ── anything carried? ─ no ──► Moved (waits for another session)
//!            │                                     └ yes ─► what was received is delivered ──► Cut
//! pumping ───┼── plugin closed ─ anything carried, or session not over within 250 ms ──► Finished, else Moved
//!            ├── client's FIN ── pumping goes on; silent for half_close_timeout ──► Finished
//!            ├── client's reset ──► ClientGone
//!            └── daemon's deadline ──► Stopped
//! ```

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use std::os::fd::AsRawFd as _;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::Settings;
use super::client::Client;
use super::route::Link;
use super::stats::Stats;
use crate::gateway::ledger::Ledger;

/// Bytes taken from a socket at once, and all that is kept of a direction whose receiver is slower than its sender.
const CHUNK: usize = 16 * 1024;

/// The plugin's connections break before the driver knows that the plugin has died: how long to wait for the news.
const NEWS: Duration = Duration::from_millis(250);

/// How long a client may take for what was received before its session ended.
const DELIVERY: Duration = Duration::from_secs(2);

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The destination closed it, or said no more to a client that had shut down its sending side.
    Finished,
    /// The client reset it.
    ClientGone,
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
    deadline: &CancellationToken,
) -> End {
    let route = link.route();
    let mut flow = Flow::new(client, link, carried, stats);
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
            Turn::ClientFin => silence = Silence::begin(link, settings),
            Turn::ClientReset => return End::ClientGone,
            Turn::PluginClosed if flow.touched => return End::Finished,
            Turn::PluginClosed => break,
        }
    }
    // The plugin has closed a connection that carried nothing: either the destination refused it, or the plugin died.
    *carried = flow.up.take();
    tokio::select! {
        biased;
        () = deadline.cancelled() => End::Stopped,
        () = route.ended.cancelled() => End::Moved,
        () = client.gone(flow.client_fin || !carried.is_empty()) => End::ClientGone,
        () = tokio::time::sleep(NEWS) => End::Finished,
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
    ledger: &'a Ledger,
    stream: u32,
    stats: &'a Stats,
    up: Backlog,
    down: Backlog,
    /// A byte has gone to the plugin or come from it.
    touched: bool,
    client_fin: bool,
    /// The plugin takes no more bytes; those that it has sent may still be read.
    plugin_deaf: bool,
    plugin_closed: bool,
    /// When a byte came from the plugin last.
    heard: Instant,
}

impl<'a> Flow<'a> {
    fn new(client: &'a Client, link: &'a Link, carried: &mut Vec<u8>, stats: &'a Stats) -> Self {
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
            ledger,
            stream: link.stream,
            stats,
            up,
            down: Backlog::default(),
            touched: false,
            client_fin: false,
            plugin_deaf: false,
            plugin_closed: false,
            heard: Instant::now(),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        match self.poll_down(cx) {
            Poll::Pending => self.poll_up(cx),
            turn => turn,
        }
    }

    /// From the plugin to the client. Ends when the plugin has closed and the client has got everything.
    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        loop {
            if ready!(self.poll_flush_down(cx)).is_err() {
                return Poll::Ready(Turn::ClientReset);
            }
            if self.plugin_closed {
                return Poll::Ready(Turn::PluginClosed);
            }
            let ready = ready!(self.plugin.poll_read_ready(cx));
            let mut chunk = [0; CHUNK];
            let read = ready.and_then(|()| self.plugin.try_read(&mut chunk));
            if self.received(&chunk, read).is_err() {
                return Poll::Ready(Turn::ClientReset);
            }
        }
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
            Ok([]) => self.plugin_closed = true,
            Ok(bytes) => {
                self.touched = true;
                self.heard = Instant::now();
                self.stats.moved_down(bytes.len());
                let written = written(self.client.try_write(bytes))?;
                self.down.keep(bytes.get(written..).unwrap_or_default());
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            // A reset comes after all data that was received before it: the kernel hands that out first.
            Err(_) => self.plugin_closed = true,
        }
        Ok(())
    }

    fn poll_flush_down(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(bytes) = self.down.rest() {
            ready!(self.client.poll_write_ready(cx))?;
            let written = written(self.client.try_write(bytes))?;
            self.down.advance(written);
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
                let sent = ready.and_then(|()| written(self.plugin.try_write(bytes)));
                let sent = self.sent(sent);
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
                    let sent = self.sent(written(self.plugin.try_write(bytes)));
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
        }
        sent
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
            || flow.down.rest().is_some()
            || route.interrupted.load(Relaxed);
        self.held = held;
        self.since = if busy { now } else { self.since.max(flow.heard) };
        self.until = self.since + settings.borrow().half_close_timeout;
        self.until <= now
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use socket2::SockRef;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::proxy::rig::{PATIENCE, Rig, accept, eof, plugin, settings};

    /// Bytes that tell their place, with line feeds and carriage returns among them.
    fn pattern(len: usize) -> Vec<u8> {
        (0..len as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
    }

    fn short(half_close_timeout: Duration) -> Settings {
        Settings { half_close_timeout, ..settings() }
    }

    async fn exact(socket: &mut TcpStream, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        timeout(PATIENCE, socket.read_exact(&mut bytes)).await.expect("bytes are missing").unwrap();
        bytes
    }

    #[tokio::test]
    async fn the_ledger_gets_exactly_the_bytes() {
        let rig = Rig::new(settings());
        let (plugin, route) = plugin(1).await;
        rig.publish(vec![route.clone()]);
        let mut client = rig.client().await;
        let mut socket = accept(&plugin).await;
        let sent = pattern(100_000);
        let mut got = Vec::new();
        for piece in sent.chunks(997) {
            client.write_all(piece).await.unwrap();
            got.extend(exact(&mut socket, piece.len()).await);
        }
        assert_eq!(got, sent);
        assert_eq!(route.ledger.outstanding(), sent.len());
        for byte in sent {
            assert_eq!(route.ledger.pass(3, 1), byte == b'\n');
        }
        assert_eq!(route.ledger.outstanding(), 0);
    }

    #[tokio::test]
    async fn a_slow_reader_slows_the_sender_and_loses_nothing() {
        const LEN: usize = 16 << 20;
        let rig = Rig::new(settings());
        let (plugin, route) = plugin(1).await;
        rig.publish(vec![route.clone()]);
        let client = rig.client().await;
        let mut socket = accept(&plugin).await;
        let sent = Arc::new(pattern(LEN));
        let (mut reader, mut writer) = client.into_split();

        // Nobody reads at the plugin: what the ledger must remember stops growing, far below what is sent.
        let upload = tokio::spawn({
            let sent = Arc::clone(&sent);
            async move { writer.write_all(&sent).await.map(|()| writer) }
        });
        let mut before = 0;
        let stuck = async {
            loop {
                tokio::time::sleep(Duration::from_millis(200)).await;
                let now = route.ledger.outstanding();
                if now > 0 && now == before {
                    return now;
                }
                before = now;
            }
        };
        let held = timeout(PATIENCE, stuck).await.expect("never stuck");
        assert!(held < LEN / 2, "{held}");
        assert_eq!(exact(&mut socket, LEN).await, *sent);
        let _writer = upload.await.unwrap().unwrap();

        // The same downward, where the plugin closes with all of it on its way.
        let download = tokio::spawn(async move { socket.write_all(&sent).await });
        let mut got = Vec::new();
        timeout(PATIENCE, reader.read_to_end(&mut got)).await.unwrap().unwrap();
        download.await.unwrap().unwrap();
        assert!(got == pattern(LEN));
    }

    #[tokio::test]
    async fn connections_have_the_numbers_that_the_plugin_will_give() {
        let rig = Rig::new(settings());
        let (plugin, route) = plugin(1).await;
        rig.publish(vec![route.clone()]);
        let name =
            |n: u16| (0..16).map(move |bit| if n >> bit & 1 == 1 { b'\n' } else { b'.' }).collect::<Vec<_>>();
        let clients: Vec<_> = (0..200)
            .map(|n| {
                let address = rig.address;
                tokio::spawn(async move {
                    let mut client = TcpStream::connect(address).await.unwrap();
                    client.write_all(&name(n)).await.unwrap();
                    client
                })
            })
            .collect();
        let mut sockets = Vec::new();
        for _ in 0..200 {
            // A plugin that takes its time.
            if sockets.len() % 20 == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            sockets.push(accept(&plugin).await);
        }
        let mut seen = std::collections::HashSet::new();
        for (place, socket) in sockets.iter_mut().enumerate() {
            let got = exact(socket, 16).await;
            let stream = 3 + 2 * place as u32;
            for byte in &got {
                assert_eq!(route.ledger.pass(stream, 1), *byte == b'\n', "stream {stream}");
            }
            assert!(seen.insert(got));
        }
        for client in clients {
            client.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_connection_that_carried_nothing_moves_when_its_session_ends() {
        let rig = Rig::new(settings());
        let (first, route) = plugin(1).await;
        let mut client = rig.client().await;
        rig.wait(|counts| counts.held == 1).await;
        rig.publish(vec![route.clone()]);
        rig.wait(|counts| counts.released == 1).await;
        let mut socket = accept(&first).await;
        rig.publish(vec![]);
        route.ended.cancel();
        rig.wait(|counts| counts.moved == 1 && counts.held == 1).await;
        assert_eq!(eof(&mut socket).await, b"");
        assert_eq!(*route.open.borrow(), 0);

        let (second, route) = plugin(2).await;
        rig.publish(vec![route.clone()]);
        let mut socket = accept(&second).await;
        socket.write_all(b"greeting").await.unwrap();
        assert_eq!(exact(&mut client, 8).await, b"greeting");
        assert_eq!(rig.proxy.stats().snapshot().cut, 0);
    }

    #[tokio::test]
    async fn it_moves_too_when_the_plugin_dies_before_its_session_is_known_to_be_over() {
        let rig = Rig::new(settings());
        let (first, route) = plugin(1).await;
        rig.publish(vec![route.clone()]);
        let mut client = rig.client().await;
        let socket = accept(&first).await;
        SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
        drop(socket);
        // The driver hears of the plugin's death a moment later.
        tokio::time::sleep(Duration::from_millis(30)).await;
        assert_eq!(rig.proxy.stats().snapshot().open, 1);
        rig.publish(vec![]);
        route.ended.cancel();
        rig.wait(|counts| counts.moved == 1).await;

        let (second, route) = plugin(2).await;
        rig.publish(vec![route]);
        let mut socket = accept(&second).await;
        client.write_all(b"request").await.unwrap();
        assert_eq!(exact(&mut socket, 7).await, b"request");
    }

    #[tokio::test]
    async fn a_destination_that_closes_at_once_closes_the_client() {
        let rig = Rig::new(settings());
        let (plugin, route) = plugin(1).await;
        rig.publish(vec![route]);
        let mut client = rig.client().await;
        drop(accept(&plugin).await);
        assert_eq!(eof(&mut client).await, b"");
        drop(client);
        let counts = rig.wait(|counts| counts.open == 0).await;
        assert_eq!((counts.moved, counts.cut), (0, 0));
    }

    #[tokio::test]
    async fn after_the_first_byte_a_connection_is_cut_and_gets_what_was_received() {
        let rig = Rig::new(settings());
        let (first, route) = plugin(1).await;
        let (second, other) = plugin(2).await;
        rig.publish(vec![route.clone()]);
        let mut client = rig.client().await;
        let mut socket = accept(&first).await;
        client.write_all(b"x").await.unwrap();
        exact(&mut socket, 1).await;
        rig.publish(vec![other]);
        // Without a step of the runtime in between: the proxy has not heard of these bytes when the session ends.
        assert_eq!(socket.try_write(b"the answer").unwrap(), 10);
        route.ended.cancel();
        assert_eq!(eof(&mut client).await, b"the answer");
        drop(client);
        let counts = rig.wait(|counts| counts.open == 0).await;
        assert_eq!((counts.moved, counts.cut), (0, 1));
        assert!(timeout(Duration::from_millis(50), second.accept()).await.is_err());
    }

    #[tokio::test]
    async fn a_reset_of_the_plugin_comes_after_its_data() {
        let rig = Rig::new(settings());
        let (plugin, route) = plugin(1).await;
        rig.publish(vec![route]);
        let mut client = rig.client().await;
        let socket = accept(&plugin).await;
        assert_eq!(socket.try_write(b"the answer").unwrap(), 10);
        SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
        drop(socket);
        assert_eq!(eof(&mut client).await, b"the answer");
    }

    #[tokio::test]
    async fn a_client_that_shuts_down_its_side_gets_its_whole_answer() {
        let rig = Rig::new(short(Duration::from_millis(400)));
        let (plugin, route) = plugin(1).await;
        rig.publish(vec![route]);
        let mut client = rig.client().await;
        client.write_all(b"request").await.unwrap();
        client.shutdown().await.unwrap();
        let mut socket = accept(&plugin).await;
        exact(&mut socket, 7).await;
        let answer = pattern(20_001);
        let expected = answer.clone();
        let (mut reader, mut writer) = socket.into_split();
        // Slower in all than the timeout, but never silent for as long.
        let destination = tokio::spawn(async move {
            for piece in answer.chunks(2001) {
                writer.write_all(piece).await.unwrap();
                tokio::time::sleep(Duration::from_millis(100)).await;
                let mut byte = [0];
                assert!(reader.try_read(&mut byte).is_err(), "the FIN was passed on");
            }
            drop(writer);
            let _ = reader.read(&mut [0]).await;
        });
        assert_eq!(eof(&mut client).await, expected);
        destination.await.unwrap();
    }

    #[tokio::test]
    async fn a_destination_silent_after_the_fin_is_closed() {
        let rig = Rig::new(short(Duration::from_millis(200)));
        let (plugin, route) = plugin(1).await;
        rig.publish(vec![route.clone()]);
        let mut client = rig.client().await;
        client.write_all(b"request").await.unwrap();
        let began = Instant::now();
        client.shutdown().await.unwrap();
        let mut socket = accept(&plugin).await;
        assert_eq!(eof(&mut socket).await, b"request");
        assert!(began.elapsed() >= Duration::from_millis(200));
        assert_eq!(eof(&mut client).await, b"");
        rig.wait(|counts| counts.open == 0).await;
        assert_eq!(*route.open.borrow(), 0);
    }

    #[tokio::test]
    async fn a_destination_that_cannot_be_heard_is_not_silent() {
        let rig = Rig::new(short(Duration::from_millis(100)));
        let (plugin, route) = plugin(1).await;
        rig.publish(vec![route.clone()]);
        route.interrupted.store(true, Relaxed);
        let mut client = rig.client().await;
        client.write_all(b"request").await.unwrap();
        client.shutdown().await.unwrap();
        let mut socket = accept(&plugin).await;
        exact(&mut socket, 7).await;
        let closed = timeout(Duration::from_millis(500), socket.read_u8()).await;
        assert!(closed.is_err(), "closed while the data channel was down");
        route.interrupted.store(false, Relaxed);
        assert_eq!(eof(&mut socket).await, b"");
    }

    #[tokio::test]
    async fn a_request_still_on_its_way_is_not_silence() {
        let rig = Rig::new(short(Duration::from_millis(200)));
        let (plugin, route) = plugin(1).await;
        rig.publish(vec![route.clone()]);
        let mut client = rig.client().await;
        client.write_all(&[0; 20]).await.unwrap();
        client.shutdown().await.unwrap();
        let mut socket = accept(&plugin).await;
        exact(&mut socket, 20).await;
        // The gateway sees a byte leave the plugin every 50 ms, for five times the timeout.
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            route.ledger.pass(3, 1);
            assert!(socket.try_read(&mut [0]).is_err(), "closed in the middle of the request");
        }
        assert_eq!(eof(&mut socket).await, b"");
    }

    #[tokio::test]
    async fn a_reset_of_the_client_closes_at_once_even_when_nothing_is_read() {
        let rig = Rig::new(settings());
        let (plugin, route) = plugin(1).await;
        rig.publish(vec![route]);
        // After its FIN.
        let mut client = rig.client().await;
        client.write_all(b"request").await.unwrap();
        client.shutdown().await.unwrap();
        let mut socket = accept(&plugin).await;
        exact(&mut socket, 7).await;
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        // A closed socket answers data with a reset.
        socket.write_all(b"answer").await.unwrap();
        assert_eq!(eof(&mut socket).await, b"");

        // With the way to the plugin full.
        let client = rig.client().await;
        let mut socket = accept(&plugin).await;
        let full = async {
            loop {
                match timeout(Duration::from_millis(300), client.writable()).await {
                    Ok(_) => _ = client.try_write(&[0; 65536]),
                    Err(_) => return,
                }
            }
        };
        timeout(PATIENCE, full).await.expect("never full");
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        rig.wait(|counts| counts.open == 0).await;
        assert!(!eof(&mut socket).await.is_empty());
    }
}
