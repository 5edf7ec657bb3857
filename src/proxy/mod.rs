//! The clients' side: owns the local ports, holds connections while there is no session, and carries their bytes.
//!
//! A [`Proxy`] stands for one tunnel. Its listeners come and go with the configuration; the sessions that take new
//! connections are published to it by the driver as [`Route`]s. A client is accepted at once, waits for a route if
//! there is none, and is carried by one task until it ends:
//!
//! ```text
//! accepted ──► held ──► connecting ──► carried ──► closed
//!    │          │  ▲                      │
//!    │          │  └── nothing carried ───┤ session over
//!    ▼          ▼                         ▼
//! too many   timed out, gone, stopping   cut
//! ```
//!
//! For a client that reads slower than its destination sends, or not at all, [`buffer`] keeps what comes, and [`stall`] has
//! rules.

mod buffer;
mod client;
mod hold;
pub mod holder;
pub mod listener;
mod pump;
#[cfg(test)]
mod rig;
mod route;
mod stall;
mod stats;
mod tap;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::client::Client;
pub use self::holder::Holder;
pub use self::listener::{BindError, Listener};
pub use self::route::Route;
pub use self::stats::{Counts, Stats};
pub use self::tap::Tap;

use self::hold::{Outage, Refusal};
use self::pump::End;
use self::route::Link;
use self::stall::Teller;
use self::stats::Place;
use crate::config;
use crate::telemetry::thin::Thin;

/// What a reload can change without touching a connection. Each client goes by what is in force when it needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long a client waits for a session before it is closed.
    pub hold: Duration,
    /// Clients waiting at once; a further one is closed at once.
    pub max_held: usize,
    /// Connections open at once, the waiting ones included; a further one is closed at once.
    pub max_connections: usize,
    /// After a client has shut down its sending side: how long the destination may be silent before both are closed.
    pub half_close_timeout: Duration,
    /// Bytes that are kept for one client that takes less than comes for it.
    pub client_buffer: usize,
    /// A client that takes nothing for so long, while there is no room for more of what comes for it, is closed; `None` for
    /// never.
    pub stalled_client_timeout: Option<Duration>,
}

impl From<&config::Tunnel> for Settings {
    fn from(tunnel: &config::Tunnel) -> Self {
        Self {
            hold: tunnel.hold,
            max_held: tunnel.max_held,
            max_connections: tunnel.max_connections,
            half_close_timeout: tunnel.half_close_timeout,
            client_buffer: tunnel.client_buffer,
            stalled_client_timeout: tunnel.stalled_client_timeout,
        }
    }
}

/// One tunnel's clients.
pub struct Proxy {
    tunnel: String,
    routes: watch::Receiver<Vec<Arc<Route>>>,
    settings: watch::Receiver<Settings>,
    stats: Arc<Stats>,
    /// What became of held clients, while some are held.
    outage: Mutex<Option<Outage>>,
    /// No client is accepted or held any more.
    stopping: CancellationToken,
    /// No connection goes on.
    deadline: CancellationToken,
    tasks: TaskTracker,
    refusals: Thin,
    teller: Teller,
}

impl Proxy {
    /// The clients of `tunnel`, which go to the `routes` that are published at the time. Nothing is accepted before
    /// [`Self::serve`]. What becomes of them is counted in `stats`.
    pub fn new(
        tunnel: impl Into<String>,
        routes: watch::Receiver<Vec<Arc<Route>>>,
        settings: watch::Receiver<Settings>,
        stats: Arc<Stats>,
    ) -> Arc<Self> {
        let tunnel = tunnel.into();
        Arc::new(Self {
            teller: Teller::new(tunnel.clone()),
            tunnel,
            routes,
            settings,
            stats,
            outage: Mutex::default(),
            stopping: CancellationToken::new(),
            deadline: CancellationToken::new(),
            tasks: TaskTracker::new(),
            refusals: Thin::new(1),
        })
    }

    /// The tunnel's numbers.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// Accepts clients from `listener`, in a task of its own, until the [`Door`] is closed or the proxy stops.
    pub fn serve(self: &Arc<Self>, listener: Listener) -> Door {
        let stop = self.stopping.child_token();
        let (for_good, handed_over) = (CancellationToken::new(), CancellationToken::new());
        let proxy = Arc::clone(self);
        let (until, close, hand_over) = (stop.clone(), for_good.clone(), handed_over.clone());
        let closed = self.tasks.spawn(async move {
            let admit = |client| proxy.admit(client);
            let address = listener.address().to_owned();
            let errors = Thin::new(1);
            let failed = |error: &std::io::Error| {
                proxy.stats.count(|counts| counts.accept_errors += 1);
                if let Some(left_out) = errors.pass(std::time::Instant::now()) {
                    tracing::warn!(
                        tunnel = proxy.tunnel,
                        event = "accept_failed",
                        listen = address,
                        reason = %error,
                        left_out,
                        "a client could not be accepted on {address}: {error}; trying again"
                    );
                }
            };
            listener.accept_until(until, admit, failed).await;
            if hand_over.is_cancelled() {
                return Some(listener);
            }
            if close.is_cancelled() {
                listener.close();
            }
            None
        });
        Door { stop, for_good, handed_over, closed }
    }

    /// Stops: the addresses are left (closed, unless somebody keeps them for the next process) and held clients dropped
    /// at once, open connections may go on until `deadline` and are cut then. Returns how many were cut.
    pub async fn stop(&self, deadline: Instant) -> u64 {
        self.stopping.cancel();
        self.tasks.close();
        if timeout_at(deadline, self.tasks.wait()).await.is_ok() {
            return 0;
        }
        let before = self.stats.snapshot().cut;
        self.deadline.cancel();
        self.tasks.wait().await;
        self.stats.snapshot().cut - before
    }

    fn admit(self: &Arc<Self>, client: Client) {
        let max = self.settings.borrow().max_connections;
        match self.stats.open(max) {
            Some(place) => {
                self.stats.count(|counts| counts.accepted += 1);
                self.tasks.spawn(Arc::clone(self).carry(client, place));
            }
            None => self.tell_refusal("max_connections", max),
        }
    }

    /// One client, from its acceptance to its end.
    async fn carry(self: Arc<Self>, client: Client, _place: Place) {
        let mut carried = Vec::new();
        let mut first = true;
        let (end, link) = loop {
            let link = match hold::connect(&self, &client, !carried.is_empty()).await {
                Ok(link) => link,
                Err(Refusal::TooMany) => {
                    return self.tell_refusal("max_held", self.settings.borrow().max_held);
                }
                Err(Refusal::Gone | Refusal::TimedOut | Refusal::Stopping) => return,
            };
            if std::mem::take(&mut first) {
                self.stats.count(|counts| counts.connected += 1);
            }
            let (settings, stats, teller) = (&self.settings, &self.stats, &self.teller);
            match pump::run(&client, &link, &mut carried, settings, stats, teller, &self.deadline).await {
                End::Moved => self.stats.count(|counts| counts.moved += 1),
                end => break (end, link),
            }
        };
        self.stats.count(|counts| match end {
            End::ClientGone | End::Moved | End::Finished => counts.completed += 1,
            End::Stalled(..) => counts.stalled_closed += 1,
            End::Broken | End::Cut | End::Stopped => counts.cut += 1,
        });
        // Whatever else ends is reset: by being dropped.
        match end {
            End::ClientGone | End::Moved | End::Stopped => {}
            End::Finished => {
                drop(link);
                self.finish(&client).await;
            }
            End::Stalled(waited, waiting) => self.teller.closed(&client.peer(), waited, waiting),
            End::Cut => {
                drop(link);
                self.abort(client).await;
            }
            // It counts as open until it is known whether it was cut with its session.
            End::Broken => {
                tokio::join!(self.abort(client), self.await_news(link));
            }
        }
    }

    async fn finish(&self, client: &Client) {
        tokio::select! {
            () = self.deadline.cancelled() => {}
            () = client.finish() => {}
        }
    }

    async fn abort(&self, client: Client) {
        tokio::select! {
            () = self.deadline.cancelled() => {}
            () = client.abort() => {}
        }
    }

    /// Keeps the connection's place on its route until its session is over, if it is within a moment.
    async fn await_news(&self, link: Link) {
        tokio::select! {
            () = link.route().ended.cancelled() => {}
            () = self.deadline.cancelled() => {}
            () = tokio::time::sleep(pump::NEWS) => {}
        }
    }

    fn tell_refusal(&self, limit: &'static str, max: usize) {
        if let Some(left_out) = self.refusals.pass(std::time::Instant::now()) {
            tracing::warn!(
                tunnel = self.tunnel,
                event = "client_refused",
                reason = limit,
                left_out,
                "a client was closed at once: {limit} = {max} is reached ({left_out} more since the last such line)"
            );
        }
    }
}

/// An address that is being served. Dropping it changes nothing.
pub struct Door {
    stop: CancellationToken,
    /// The address is given up, not only left to the next process.
    for_good: CancellationToken,
    /// The address goes to another proxy.
    handed_over: CancellationToken,
    closed: JoinHandle<Option<Listener>>,
}

impl Door {
    /// Gives the address up; connections that came through it go on. When this returns it can be bound again.
    pub async fn close(self) {
        self.for_good.cancel();
        self.stop.cancel();
        // An error would be the task's panic or the runtime's end; the address is closed either way.
        let _ = self.closed.await;
    }

    /// Takes the address out, so that another proxy can serve it: clients that connect in between wait in the kernel.
    /// `None` if it has been closed.
    pub async fn hand_over(self) -> Option<Listener> {
        self.handed_over.cancel();
        self.stop.cancel();
        self.closed.await.ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpStream, UnixStream};

    use super::rig::{Rig, echo, end, settings};
    use super::*;

    #[tokio::test]
    async fn bytes_go_both_ways_through_tcp_and_unix() {
        let rig = Rig::new(settings());
        rig.publish(vec![echo(1).await]);
        let mut tcp = rig.client().await;
        tcp.write_all(b"hello").await.unwrap();
        let mut buffer = [0; 5];
        tcp.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"hello");

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db.sock");
        let door = rig.proxy.serve(Listener::bind(&config::Listen::Unix(path.clone())).unwrap());
        let mut unix = UnixStream::connect(&path).await.unwrap();
        unix.write_all(b"again").await.unwrap();
        unix.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"again");

        door.close().await;
        assert!(!path.exists());
        unix.write_all(b"still").await.unwrap();
        unix.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"still", "a closed door cuts nobody");
        let counts = rig.proxy.stats().snapshot();
        assert_eq!((counts.accepted, counts.open, counts.bytes_up, counts.bytes_down), (2, 2, 15, 15));
    }

    #[tokio::test]
    async fn beyond_max_connections_a_client_is_closed_and_a_reload_raises_it() {
        let rig = Rig::new(Settings { max_connections: 1, ..settings() });
        rig.publish(vec![echo(1).await]);
        let _first = rig.client().await;
        rig.wait(|counts| counts.open == 1).await;
        let mut second = rig.client().await;
        assert_eq!(end(&mut second).await, (Vec::new(), false));
        rig.wait(|counts| counts.over_limit == 1).await;

        rig.settings.send_modify(|settings| settings.max_connections = 2);
        let mut third = rig.client().await;
        third.write_all(b"x").await.unwrap();
        assert_eq!(third.read_u8().await.unwrap(), b'x');
    }

    #[tokio::test]
    async fn stopping_closes_the_address_and_the_held_and_cuts_the_open_at_the_deadline() {
        let rig = Rig::new(settings());
        rig.publish(vec![echo(1).await]);
        let mut open = rig.client().await;
        open.write_all(b"x").await.unwrap();
        open.read_u8().await.unwrap();
        rig.publish(vec![]);
        let mut held = rig.client().await;
        rig.wait(|counts| counts.held == 1).await;

        let stop = tokio::spawn({
            let proxy = Arc::clone(&rig.proxy);
            async move { proxy.stop(Instant::now() + Duration::from_millis(500)).await }
        });
        assert_eq!(end(&mut held).await, (Vec::new(), false));
        assert!(TcpStream::connect(rig.address).await.is_err());
        open.write_all(b"y").await.unwrap();
        assert_eq!(open.read_u8().await.unwrap(), b'y', "an open connection goes on");
        assert_eq!(stop.await.unwrap(), 1);
        assert_eq!(end(&mut open).await, (Vec::new(), false));
        assert_eq!(rig.proxy.stats().snapshot().open, 0);
    }

    #[tokio::test]
    async fn stopping_without_connections_waits_for_nothing() {
        let rig = Rig::new(settings());
        let began = Instant::now();
        assert_eq!(rig.proxy.stop(began + Duration::from_secs(60)).await, 0);
        assert!(began.elapsed() < Duration::from_secs(30));
    }
}
