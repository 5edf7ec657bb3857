//! The data channel of one session: the plugin's WebSocket, the service's, and the relay between them, in one task.
//!
//! ```text
//!            plugin attaches              its opening message
//!   (idle) ──────────────────► (attached) ───────────────────► opening ◄──┐ lost: ChannelClosed
//!                                                               │  ▲      │
//!                                               no such session │  │      │
//!                             ended ◄───────────────────────────┘  └─ open┘
//!                               ▲          channel_closed               │
//!                               └───────────────────────────────────────┘
//! ```
//!
//! The plugin's WebSocket stays open through all of it, and if the plugin itself reconnects, the service does not see
//! it.
//!
//! **A service that answers no ping** may be behind a link that stands still: kernels and service hold what is under way,
//! and all of it comes when the link moves again. So its WebSocket stays open and is read and written while another one
//! is being opened. If it answers before the other one's opening message is sent, it goes on as if nothing had happened;
//! else the other one takes over, and what still arrives on the first is taken until it says no more. Assumed of the
//! service: that ResumeSession changes nothing of an open data channel, and that a data channel which is opened takes
//! over from the one before, which brings what was sent into it and nothing more.
//!
//! **Where only the agent is gone**, the service's WebSocket stays open too. Opening another one would bring the agent no
//! nearer. ResumeSession is answered by the service, with or without an agent: where it succeeds the session would look
//! resumed each time, and where it gives no token the session would be over, with all its streams. What was sent is sent
//! again once a second, and the first acknowledgement is the agent's return. If the service closes the WebSocket
//! meanwhile, it is resumed as always, but told only when the agent has acknowledged something.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, mpsc};
use tokio::time::sleep_until;
use tracing::{debug, info};

use super::agent_clock;
use super::breach::Breach;
use super::ledger::Ledger;
use super::link::{Connection, Link, Lost, Received};
use super::liveness::{End, Lasting, Lives, PingClock, Verdict};
use super::message::{Kind, View};
use super::relay::Relay;
use super::upstream::{Backoff, Commitment, Dialler, OpeningMessage, Outcome, Ticket};
use super::{Event, Interruption};

const TICK: Duration = Duration::from_secs(1);
const SERVICE_PING: Duration = Duration::from_secs(15);
const PLUGIN_PING: Duration = Duration::from_secs(5);
/// For an answer to a ping, of either.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// A data channel that another one has taken over from is read until it brings nothing for this time.
const DRAINED: Duration = Duration::from_secs(30);
/// For the plugin: to frame a byte that it holds, or to come back after its WebSocket was closed.
const PLUGIN_IDLE: Duration = Duration::from_secs(15);

/// The channel's task.
pub struct Channel {
    dialler: Arc<Dialler>,
    events: mpsc::Sender<Event>,
    ledger: Arc<Ledger>,
    relay: Relay,
    /// What StartSession gave, until it has been used.
    ticket: Option<Ticket>,
    opening_message: Option<OpeningMessage>,
    plugin: Option<Plugin>,
    service: Option<Service>,
    /// The one that `service` has taken over from, as long as something may still come of it.
    superseded: Option<Superseded>,
    opening: Option<Opening>,
    backoff: Backoff,
    /// Of the connections to the service.
    lives: Lives,
    /// Since when the data channel is closed or otherwise interrupted.
    down: Option<Instant>,
    /// Why, as it was told last, where it is not closed; and when.
    told: Option<(Instant, Interruption)>,
    /// Made to open the data channel while it was down.
    attempts: u32,
    ended: bool,
    hung: bool,
    start: Start,
    /// The plugin has sent something since the last look at the clocks.
    plugin_heard: bool,
    silent: Lasting,
    detached: Lasting,
    service_first: bool,
}

/// How far the plugin has come with the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// It shakes hands.
    Handshake,
    /// It has all of the handshake, and opens its port: nothing must come in between.
    Opening,
    /// Its port is open.
    Listening,
}

impl Start {
    /// The next message for the plugin, where it may have one.
    fn pass(&mut self, next: impl FnOnce() -> Option<Bytes>) -> Option<Bytes> {
        if *self == Self::Opening {
            return None;
        }
        let message = next()?;
        if *self == Self::Handshake && View::new(&message).is_ok_and(|view| view.completes_handshake()) {
            *self = Self::Opening;
        }
        Some(message)
    }
}

struct Plugin {
    link: Link,
    clock: PingClock,
}

struct Service {
    link: Box<Link>,
    clock: PingClock,
    opened: Instant,
    brought_anything: bool,
    /// It has left a ping unanswered, and brought nothing since.
    unanswered: bool,
}

struct Superseded {
    link: Box<Link>,
    heard: Instant,
}

/// Another data channel being opened.
struct Opening {
    outcome: BoxFuture<'static, Outcome>,
    /// Whether the service may have got its opening message.
    commitment: Commitment,
}

/// What happened next.
enum Turn {
    Attached(Box<dyn Connection>),
    Opened(Outcome),
    FromPlugin(Result<Received, Lost>),
    FromService(Result<Received, Lost>),
    FromSuperseded(Result<Received, Lost>),
}

impl Channel {
    /// The channel of a session that was just started.
    pub fn new(
        dialler: Arc<Dialler>,
        ticket: Ticket,
        relay: Relay,
        ledger: Arc<Ledger>,
        events: mpsc::Sender<Event>,
    ) -> Self {
        Self {
            dialler,
            events,
            relay,
            ledger,
            ticket: Some(ticket),
            opening_message: None,
            plugin: None,
            service: None,
            superseded: None,
            opening: None,
            backoff: Backoff::default(),
            lives: Lives::default(),
            down: None,
            told: None,
            attempts: 0,
            ended: false,
            hung: false,
            start: Start::Handshake,
            plugin_heard: false,
            silent: Lasting::default(),
            detached: Lasting::default(),
            service_first: false,
        }
    }

    /// Serves the plugin's WebSockets, one after the other, until `attach` is closed.
    pub async fn run(mut self, mut attach: mpsc::Receiver<Box<dyn Connection>>, listens: Arc<Notify>) {
        let mut tick = clock() + TICK;
        loop {
            let deadline =
                self.deadline().into_iter().chain(self.relay.next_change(clock())).fold(tick, Instant::min);
            let turn = tokio::select! {
                biased;
                attached = attach.recv() => match attached {
                    Some(connection) => Some(Turn::Attached(connection)),
                    None => return,
                },
                () = listens.notified(), if self.start != Start::Listening => {
                    self.start = Start::Listening;
                    None
                }
                turn = poll_fn(|cx| self.poll(cx)) => Some(turn),
                // The look at the clocks is due, or a message to be sent again: the next poll asks the relay for it.
                () = sleep_until(deadline.into()) => None,
            };
            let now = clock();
            match turn {
                Some(Turn::Attached(connection)) => self.attached(now, connection).await,
                Some(Turn::Opened(outcome)) => self.opened(now, outcome).await,
                Some(Turn::FromPlugin(Ok(received))) => self.plugin_sent(received).await,
                Some(Turn::FromPlugin(Err(lost))) => self.plugin_lost(&lost).await,
                Some(Turn::FromService(Ok(received))) => self.service_sent(now, received).await,
                Some(Turn::FromService(Err(lost))) => self.service_lost(now, lost).await,
                Some(Turn::FromSuperseded(received)) => self.superseded_sent(now, received).await,
                None => (),
            }
            self.relay.look(now);
            self.tell_of_interruption(now).await;
            if now >= tick {
                tick = now + TICK;
                self.look(now).await;
            }
        }
    }

    /// When a message has to be sent again. One that cannot be written yet goes out as soon as it can, and needs no time.
    fn deadline(&self) -> Option<Instant> {
        let service = self.service.as_ref()?;
        if service.link.is_blocked() { None } else { self.relay.deadline() }
    }

    /// Writes what there is to write and reads what may be read, in both directions.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        if let Some(opening) = &mut self.opening
            && let Poll::Ready(outcome) = opening.outcome.as_mut().poll(cx)
        {
            return Poll::Ready(Turn::Opened(outcome));
        }
        let now = clock();
        let Self { plugin, service, relay, start, .. } = self;
        if let Some(service) = service
            && let Err(lost) = service.link.poll_write(cx, || relay.next_for_service(now))
        {
            return Poll::Ready(last_words(&mut service.link, cx, lost));
        }
        if let Some(plugin) = plugin
            && let Err(lost) = plugin.link.poll_write(cx, || start.pass(|| relay.next_for_plugin()))
        {
            return Poll::Ready(Turn::FromPlugin(Err(lost)));
        }
        // Neither side's flood keeps the other's messages waiting.
        self.service_first = !self.service_first;
        let read = if self.service_first {
            self.poll_service(cx).or_else(|| self.poll_plugin(cx))
        } else {
            self.poll_plugin(cx).or_else(|| self.poll_service(cx))
        };
        if let Some(turn) = read {
            return Poll::Ready(turn);
        }
        if let Some(service) = &mut self.service
            && let Err(lost) = service.link.poll_flush(cx)
        {
            return Poll::Ready(last_words(&mut service.link, cx, lost));
        }
        if let Some(plugin) = &mut self.plugin
            && let Err(lost) = plugin.link.poll_flush(cx)
        {
            return Poll::Ready(Turn::FromPlugin(Err(lost)));
        }
        Poll::Pending
    }

    /// What was sent first comes first.
    fn poll_service(&mut self, cx: &mut Context<'_>) -> Option<Turn> {
        if let Some(superseded) = self.superseded.as_mut().filter(|_| self.relay.reads_service())
            && let Poll::Ready(received) = superseded.link.poll_read(cx)
        {
            return Some(Turn::FromSuperseded(received));
        }
        let service = self.service.as_mut().filter(|_| self.relay.reads_service())?;
        match service.link.poll_read(cx) {
            Poll::Ready(received) => Some(Turn::FromService(received)),
            Poll::Pending => None,
        }
    }

    fn poll_plugin(&mut self, cx: &mut Context<'_>) -> Option<Turn> {
        let plugin = self.plugin.as_mut().filter(|_| self.relay.reads_plugin())?;
        match plugin.link.poll_read(cx) {
            Poll::Ready(received) => Some(Turn::FromPlugin(received)),
            Poll::Pending => None,
        }
    }

    async fn attached(&mut self, now: Instant, connection: Box<dyn Connection>) {
        self.detach().await;
        debug!("the plugin has opened its data channel");
        let link = Link::serve(connection).await;
        self.plugin = Some(Plugin { link, clock: PingClock::new(now, PLUGIN_PING, PATIENCE) });
    }

    async fn plugin_lost(&mut self, lost: &Lost) {
        debug!(reason = lost.reason, "the plugin has closed its data channel");
        self.detach().await;
    }

    /// Gives up the plugin's WebSocket, but takes what it still holds: the plugin closes an old one before it opens a
    /// new one, so all that it wrote is there, and an acknowledgement among it would never come again.
    async fn detach(&mut self) {
        while let Some(Plugin { link, .. }) = &mut self.plugin {
            match poll_fn(|cx| Poll::Ready(link.poll_read(cx))).await {
                Poll::Ready(Ok(received)) => self.plugin_sent(received).await,
                Poll::Ready(Err(_)) | Poll::Pending => self.plugin = None,
            }
        }
    }

    async fn plugin_sent(&mut self, received: Received) {
        if let Some(plugin) = &mut self.plugin {
            plugin.clock.alive();
            self.plugin_heard = true;
        }
        match received {
            Received::Alive => (),
            Received::Binary(bytes) => {
                let (new_data, event) = self.relay.plugin_sent(&bytes);
                if new_data {
                    self.silent.restart();
                }
                self.tell(event).await;
            }
            // When the plugin reconnects, the service's side is open or about to be.
            Received::Text(_) if self.opening_message.is_some() => (),
            Received::Text(text) => match OpeningMessage::parse(&text) {
                Some(message) => {
                    self.opening_message = Some(message);
                    self.open();
                }
                None => self.relay.drop_unreadable("plugin", &"an opening message that cannot be read"),
            },
        }
    }

    async fn service_sent(&mut self, now: Instant, received: Received) {
        if let Some(service) = &mut self.service {
            service.clock.alive();
            service.brought_anything |= matches!(received, Received::Binary(_));
            let answers_again = std::mem::take(&mut service.unanswered);
            if answers_again && self.opening.as_ref().is_some_and(|opening| !opening.commitment.is_made()) {
                debug!("the data channel answers again: no other one is needed");
                self.opening = None;
            }
        }
        match received {
            Received::Alive => (),
            Received::Binary(bytes) => self.take(now, bytes).await,
            Received::Text(_) => {
                let event = self.relay.breached(&Breach::Text);
                self.ended = true;
                self.tell(event).await;
            }
        }
    }

    async fn take(&mut self, now: Instant, bytes: Bytes) {
        let event = self.relay.service_sent(now, bytes);
        self.ended |= self.relay.has_ended();
        self.tell(event).await;
    }

    /// What comes of a data channel that another one has taken over from. Only its stream messages are good: whatever it
    /// says of its own end, or does wrong, is no matter of the session's.
    async fn superseded_sent(&mut self, now: Instant, received: Result<Received, Lost>) {
        match received {
            Ok(Received::Binary(bytes)) if is_of_stream(&bytes) => {
                if let Some(superseded) = &mut self.superseded {
                    superseded.heard = now;
                }
                self.take(now, bytes).await;
            }
            Ok(_) => (),
            Err(_) => self.superseded = None,
        }
    }

    /// Begins to open the data channel to the service.
    fn open(&mut self) {
        if let Some(message) = self.opening_message.clone() {
            let (dialler, commitment) = (self.dialler.clone(), Commitment::default());
            let events = self.events.clone();
            let outcome = dialler.open(self.ticket.take(), message, self.backoff, commitment.clone(), events);
            self.opening = Some(Opening { outcome: Box::pin(outcome), commitment });
        }
    }

    async fn opened(&mut self, now: Instant, outcome: Outcome) {
        self.opening = None;
        match outcome {
            Outcome::Gone => {
                self.ended = true;
                let reason = "ResumeSession gave no token: the session is gone".to_owned();
                self.tell(Some(Event::SessionEnded { reason, declared: false })).await;
            }
            Outcome::Opened { link, attempts, backoff } => {
                self.backoff = backoff;
                let clock = PingClock::new(now, SERVICE_PING, PATIENCE);
                let first = self.service.is_none() && self.down.is_none();
                let (brought_anything, unanswered) = (false, false);
                let service = Service { link, clock, opened: now, brought_anything, unanswered };
                if let Some(Service { link, .. }) = self.service.replace(service) {
                    self.relay.service_closed();
                    self.superseded = Some(Superseded { link, heard: now });
                }
                self.relay.service_opened();
                self.silent.restart();
                self.attempts += attempts;
                if first {
                    self.tell(Some(Event::ChannelOpened)).await;
                }
            }
        }
    }

    async fn service_lost(&mut self, now: Instant, lost: Lost) {
        let Some(service) = self.service.take() else { return };
        self.relay.service_closed();
        if let Some(breach) = &lost.breach {
            self.ended = true;
            let event = self.relay.breached(breach);
            self.tell(event).await;
        }
        if self.ended {
            return;
        }
        self.down.get_or_insert(now);
        self.told = None;
        if self.opening.is_none() {
            self.pause_by(now, &service, End::of_code(lost.code));
            self.open();
        }
        self.tell(Some(Event::ChannelClosed { code: lost.code, reason: lost.reason })).await;
    }

    /// One that is closed as soon as it is open must not be opened again and again without a pause.
    fn pause_by(&mut self, now: Instant, service: &Service, end: End) {
        let lasted = now.saturating_duration_since(service.opened);
        if self.lives.ended(now, lasted, end, service.brought_anything) {
            self.backoff = Backoff::default();
        } else {
            self.backoff.failed();
        }
    }

    /// Tells what keeps the data channel from serving, where it is not closed, and whether all is well again.
    async fn tell_of_interruption(&mut self, now: Instant) {
        let Self { lives, service, relay, .. } = self;
        let trusted = service.as_ref().is_some_and(|service| lives.trusts(now, service.opened));
        let interruption = service.as_ref().and_then(|service| interruption(now, service, relay, self.down));
        if let Some(interruption) = interruption {
            let old = self.told.is_some_and(|(at, told)| is_old(now, at, told, interruption));
            if !old {
                self.down.get_or_insert(now.checked_sub(interruption.lasted()).unwrap_or(now));
                self.told = Some((now, interruption));
                self.tell(Some(Event::Interrupted(interruption))).await;
            }
        } else if trusted && self.relay.agent_is_proven(now) {
            self.told = None;
            if let Some(down) = self.down.take() {
                let (after, attempts) = (now.saturating_duration_since(down), self.attempts);
                self.tell(Some(Event::ChannelResumed { after, attempts })).await;
            }
        }
        if self.down.is_none() {
            self.attempts = 0;
        }
        if self.relay.agent_is_gone(now) && !self.ended {
            self.ended = true;
            let reason = format!(
                "the agent has been without a connection to the service for {} s: it does not come back",
                agent_clock::GONE_AFTER.as_secs()
            );
            self.tell(Some(Event::SessionEnded { reason, declared: false })).await;
        }
    }

    async fn look(&mut self, now: Instant) {
        if std::mem::take(&mut self.plugin_heard) && self.relay.reads_plugin() {
            self.ledger.tick();
        }
        if let Some(service) = &mut self.service {
            match service.clock.look(now, !self.relay.reads_service()) {
                Verdict::Well => (),
                Verdict::Ping => service.link.ping(),
                Verdict::Dead => self.unanswered(now),
            }
        }
        self.superseded.take_if(|old| now.saturating_duration_since(old.heard) >= DRAINED);
        if let Some(reason) = self.plugin_hangs(now)
            && !self.hung
            && !self.ended
        {
            self.hung = true;
            info!(reason, "the plugin hangs");
            self.tell(Some(Event::PluginHung { reason })).await;
        }
    }

    /// The service answers no ping: another data channel is opened beside this one.
    fn unanswered(&mut self, now: Instant) {
        let Some(mut service) = self.service.take() else { return };
        if !std::mem::replace(&mut service.unanswered, true) && self.opening.is_none() && !self.ended {
            self.pause_by(now, &service, End::Cut);
            self.open();
        }
        self.service = Some(service);
    }

    /// Why the plugin is believed to do nothing any more.
    ///
    /// A plugin whose client does not read is not hung, though it answers no ping then: it still owes an
    /// acknowledgement, or does not take what is written to it. Nor is one that is still opening its session, which
    /// may take a call to KMS.
    fn plugin_hangs(&mut self, now: Instant) -> Option<String> {
        let read = self.relay.reads_plugin();
        if let Some(Plugin { link, clock }) = &mut self.plugin {
            let excused = !read
                || link.is_blocked()
                || !self.relay.is_established()
                || !self.relay.plugin_owes_nothing();
            match clock.look(now, excused) {
                Verdict::Well => (),
                Verdict::Ping => link.ping(),
                Verdict::Dead => {
                    return Some(format!("it answers no ping for {} s", PATIENCE.as_secs()));
                }
            }
        }
        let attached = self.plugin.is_some();
        let held = self.ledger.outstanding();
        // Where the frames cannot be followed, the ledger is not kept up and says nothing.
        let expected = attached && read && held > 0 && self.service.is_some() && self.relay.follows_streams();
        if self.silent.observe(now, expected) >= PLUGIN_IDLE {
            return Some(format!(
                "it has held {held} bytes of clients' data for {} s",
                PLUGIN_IDLE.as_secs()
            ));
        }
        let lost = !attached && self.opening_message.is_some();
        if self.detached.observe(now, lost) >= PLUGIN_IDLE {
            return Some(format!("its data channel is closed for {} s", PLUGIN_IDLE.as_secs()));
        }
        None
    }

    async fn tell(&mut self, event: Option<Event>) {
        if let Some(event) = event {
            // Without a receiver the session is about to be closed.
            let _ = self.events.send(event).await;
        }
    }
}

/// What keeps an open data channel from serving. While it is `down`, any gap does.
fn interruption(
    now: Instant,
    service: &Service,
    relay: &Relay,
    down: Option<Instant>,
) -> Option<Interruption> {
    let (missing, lasted) = relay.gap(now);
    if service.unanswered {
        Some(Interruption::Unanswered)
    } else if relay.agent_is_away() {
        Some(Interruption::AgentAway)
    } else if relay.agent_is_silent() {
        Some(Interruption::AgentSilent)
    } else if relay.gap_interrupts(now) || (down.is_some() && !missing.is_empty()) {
        Some(Interruption::Gap { missing, lasted })
    } else {
        None
    }
}

/// Whether there is nothing new to be told: of a gap, which changes all the time, something is every second.
fn is_old(now: Instant, at: Instant, told: Interruption, interruption: Interruption) -> bool {
    match (told, interruption) {
        (Interruption::Gap { .. }, Interruption::Gap { .. }) => now.saturating_duration_since(at) < TICK,
        (told, interruption) => told == interruption,
    }
}

/// Whether a message belongs to the session's streams, and not to the data channel that brings it.
fn is_of_stream(bytes: &[u8]) -> bool {
    View::new(bytes).is_ok_and(|view| matches!(view.kind(), Kind::Output | Kind::Acknowledge))
}

/// Where a write has failed, what the service said before is still to be read: at the least, why it closed.
fn last_words(link: &mut Link, cx: &mut Context<'_>, lost: Lost) -> Turn {
    match link.poll_read(cx) {
        Poll::Ready(received) => Turn::FromService(received),
        Poll::Pending => Turn::FromService(Err(lost)),
    }
}

/// Tokio's clock, which a test can turn.
fn clock() -> Instant {
    tokio::time::Instant::now().into_std()
}
