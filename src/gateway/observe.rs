//! For sites that allow no TLS termination: the plugin's connections are passed on as they are, and only watched.
//!
//! Of the data channel the lengths of TLS's records are seen, and their order, which is enough:
//!
//! ```text
//! plugin                         service
//!   │── ClientHello … Finished ────►│
//!   │── the upgrade's request ─────►│   the first long record of data
//!   │◄──────────── its answer ──────│
//!   │── the token ─────────────────►│   another one after that: the data channel is open
//! ```
//! A connection alone is none: an upgrade that is refused or never answered looks like it, and a client that is sent to
//! the plugin then has its first byte end the plugin. For the same reason the proxy is told before anybody else when the
//! channel is closed, and a plugin that was caught by that with something to send is given up.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Event;
use super::ledger::Ledger;
use super::link::Connection;
use crate::network;

const BUFFER: usize = 16 << 10;
/// TLS's content type of data.
const DATA: u8 = 23;
/// Every record of TLS has a type, a version and a length before it.
const RECORD_HEADER: usize = 5;
/// The end of a handshake and the goodbye are records of data too in TLS 1.3, but have less than this; the upgrade's
/// request and the message with the token have more.
const LONG: usize = 150;
/// A message of the plugin's that is as full as it can be has a record of at least this length: what its pipe still holds follows.
const FULL: usize = 1144;
/// Why a plugin has ended, or the service its session, is known this long after the data channel's end.
const NEWS: Duration = Duration::from_millis(250);
/// A plugin that for so long sends nothing of what clients have given it, on an open data channel, sends nothing more. The
/// pause that it makes itself after each message is 1 ms.
const DEAF: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_secs(1);
/// An agent sends its oldest message again, every second at the least, until that is acknowledged; a plugin that has it already
/// does not acknowledge it a second time. So many long records of the service …
const REPEATED: usize = 10;
/// … apart, because acknowledgements of what the plugin has sent come all at once …
const APART: Duration = Duration::from_millis(500);
/// … in so long a time in which the plugin has sent nothing are that message: a plugin that is well answers what is new.
const HEEDLESS: Duration = Duration::from_secs(15);

/// What is told of one session's data channels.
pub struct Channels {
    events: mpsc::Sender<Event>,
    /// Counts the connections made for data channels. The plugin may leave an old one to itself: its end says nothing
    /// about a newer one.
    latest: AtomicU64,
    /// What the proxy gives to the plugin.
    ledger: Arc<Ledger>,
}

impl Channels {
    /// Tells `events`, and the proxy by way of the ledger.
    pub fn new(events: mpsc::Sender<Event>, ledger: Arc<Ledger>) -> Arc<Self> {
        Arc::new(Self { events, latest: AtomicU64::new(0), ledger })
    }
}

/// Carries bytes both ways until both sides have ended.
pub async fn pass(plugin: impl Connection, service: impl Connection) {
    let (mut plugin_reader, mut plugin_writer) = split(plugin);
    let (mut service_reader, mut service_writer) = split(service);
    // Both ends are gone then; how they went is nobody's concern.
    let _ = tokio::join!(
        copy(&mut plugin_reader, &mut service_writer, None),
        copy(&mut service_reader, &mut plugin_writer, None)
    );
}

/// The same for a data channel, whose opening and closing are told. It is closed as soon as one side has ended: a
/// plugin that has given up leaves its own open for ever.
pub async fn channel(plugin: impl Connection, service: impl Connection, channels: &Channels) {
    let number = channels.latest.fetch_add(1, Relaxed) + 1;
    let watch = Watch { channels, number, seen: Mutex::default() };
    // The plugin may open another one before the end of the last was seen.
    watch.shut();
    let (mut plugin_reader, mut plugin_writer) = split(plugin);
    let (mut service_reader, mut service_writer) = split(service);
    let up = async {
        let result = copy(&mut plugin_reader, &mut service_writer, Some((&watch, From::Plugin))).await;
        watch.ended(result).await;
    };
    let down = async {
        let result = copy(&mut service_reader, &mut plugin_writer, Some((&watch, From::Service))).await;
        watch.ended(result).await;
    };
    tokio::select! {
        _ = async { tokio::join!(up, down) } => {}
        () = watch.look() => {}
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Plugin,
    Service,
}

/// One connection made for a data channel.
struct Watch<'a> {
    channels: &'a Channels,
    number: u64,
    seen: Mutex<Seen>,
}

impl Watch<'_> {
    /// Bytes have been read.
    fn came(&self, from: From, bytes: &[u8]) {
        let found = self.seen().came(from, bytes, Instant::now());
        if from == From::Plugin && found.long > 0 {
            self.channels.ledger.plugin_sent(found.full);
        }
    }

    /// They have been passed on.
    async fn passed(&self, from: From) {
        if self.seen().passed(from) {
            if self.is_latest() {
                self.channels.ledger.reopen();
            }
            self.tell(Event::ChannelOpened).await;
        }
    }

    /// The plugin must be given nothing more.
    fn shut(&self) {
        if self.is_latest() && self.channels.ledger.shut() {
            self.seen().caught = true;
        }
    }

    async fn ended(&self, result: io::Result<()>) {
        if !std::mem::replace(&mut self.seen().ended, true) {
            let reason = result.map_or_else(|error| network::words(&error), |()| "closed".to_owned());
            self.tell(Event::ChannelClosed { code: None, reason: reason.clone() }).await;
            self.give_up(&reason).await;
        }
    }

    /// Gives the plugin up if it was caught, unless something else is told of it meanwhile.
    async fn give_up(&self, reason: &str) {
        if std::mem::take(&mut self.seen().caught) {
            tokio::time::sleep(NEWS).await;
            let reason = format!("it was sending when its data channel was closed ({reason})");
            // Also where it has opened another one already. Without a receiver the session is about to be closed.
            let _ = self.channels.events.send(Event::PluginHung { reason }).await;
        }
    }

    /// Looks now and then whether the plugin still does its part. Never returns.
    async fn look(&self) {
        self.give_up("and opened again").await;
        let mut heeds = true;
        loop {
            tokio::time::sleep(LOOK).await;
            let (sends, heedless) = {
                let seen = self.seen();
                (seen.is_open() && !seen.is_held_up(From::Plugin), seen.is_heedless(Instant::now()))
            };
            if sends && self.is_latest() && self.channels.ledger.owed_for() >= DEAF {
                let reason = format!("for {} s it has sent nothing of what clients send", DEAF.as_secs());
                self.tell(Event::PluginHung { reason }).await;
                return std::future::pending().await;
            }
            if heedless && std::mem::take(&mut heeds) {
                self.tell(Event::Unheeded).await;
            }
        }
    }

    fn is_latest(&self) -> bool {
        self.channels.latest.load(Relaxed) == self.number
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn tell(&self, event: Event) {
        if self.is_latest() {
            // Without a receiver the session is about to be closed.
            let _ = self.channels.events.send(event).await;
        }
    }
}

/// Carries bytes one way and then ends that way.
async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    watch: Option<(&Watch<'_>, From)>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let result = loop {
        let read = match from.read(&mut buffer).await {
            Ok(0) => break Ok(()),
            Ok(read) => read,
            Err(error) => break Err(error),
        };
        let bytes = buffer.get(..read).unwrap_or_default();
        if let Some((watch, from)) = watch {
            watch.came(from, bytes);
        }
        if let Err(error) = to.write_all(bytes).await {
            break Err(error);
        }
        if let Some((watch, from)) = watch {
            watch.passed(from).await;
        }
    };
    // Before the other side hears of it.
    if let Some((watch, _)) = watch {
        watch.shut();
    }
    // The other side may be gone already.
    let _ = to.shutdown().await;
    result
}

/// PURE. What was seen of one data channel.
#[derive(Debug, Default)]
struct Seen {
    stage: Stage,
    plugins: Records,
    services: Records,
    /// Bytes were read from there and are not passed on yet: nothing more is read. With what was found in them.
    held_up: Vec<(From, Found)>,
    /// When the plugin sent a message last.
    sent: Option<Instant>,
    /// Long records of the service since then, apart from each other, and when the last of them came.
    unheeded: usize,
    counted: Option<Instant>,
    ended: bool,
    /// The plugin was caught by the end with something to send, and that is not told yet.
    caught: bool,
}

impl Seen {
    fn is_open(&self) -> bool {
        self.stage == Stage::Open && !self.ended
    }

    fn is_held_up(&self, from: From) -> bool {
        self.held_up.iter().any(|(other, _)| *other == from)
    }

    /// Whether the agent sends something again and again that the plugin does not acknowledge.
    fn is_heedless(&self, now: Instant) -> bool {
        let silent = self.sent.is_some_and(|sent| now.saturating_duration_since(sent) >= HEEDLESS);
        self.is_open() && self.held_up.is_empty() && silent && self.unheeded >= REPEATED
    }

    fn came(&mut self, from: From, bytes: &[u8], now: Instant) -> Found {
        let found = match from {
            From::Plugin => self.plugins.read(bytes),
            From::Service => self.services.read(bytes),
        };
        let apart = self.counted.is_none_or(|at| now.saturating_duration_since(at) >= APART);
        match from {
            From::Plugin if found.long > 0 => (self.sent, self.unheeded) = (Some(now), 0),
            From::Service if found.long > 0 && apart => {
                (self.counted, self.unheeded) = (Some(now), self.unheeded + 1);
            }
            _ => {}
        }
        self.held_up.push((from, found));
        found
    }

    /// Returns whether the data channel is open with these bytes.
    fn passed(&mut self, from: From) -> bool {
        let at = self.held_up.iter().position(|(other, _)| *other == from);
        let long = at.is_some_and(|at| self.held_up.swap_remove(at).1.long > 0);
        self.stage = match (self.stage, from) {
            (Stage::Connected, From::Plugin) if long => Stage::Asked,
            (Stage::Asked, From::Service) => Stage::Answered,
            (Stage::Answered, From::Plugin) if long => {
                self.stage = Stage::Open;
                return !self.ended;
            }
            (stage, _) => stage,
        };
        false
    }
}

/// How far a data channel is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Connected,
    /// The upgrade's request has gone out, in one record or several.
    Asked,
    /// Something came back.
    Answered,
    Open,
}

/// What begins in some bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Found {
    /// So many long records.
    long: usize,
    /// One of a full message is among them.
    full: bool,
}

/// PURE. Finds the records in a stream of TLS, however it is cut into pieces.
#[derive(Debug, Default)]
struct Records {
    header: Vec<u8>,
    /// Bytes of the current record that are still to come.
    rest: usize,
}

impl Records {
    /// Which records of data begin in these bytes.
    fn read(&mut self, mut bytes: &[u8]) -> Found {
        let mut found = Found::default();
        while !bytes.is_empty() {
            if self.rest > 0 {
                let passed = self.rest.min(bytes.len());
                self.rest -= passed;
                bytes = bytes.get(passed..).unwrap_or_default();
                continue;
            }
            let (head, tail) = bytes.split_at((RECORD_HEADER - self.header.len()).min(bytes.len()));
            self.header.extend_from_slice(head);
            bytes = tail;
            if let [kind, _, _, high, low] = self.header[..] {
                self.rest = usize::from(u16::from_be_bytes([high, low]));
                found.long += usize::from(kind == DATA && self.rest >= LONG);
                found.full |= kind == DATA && self.rest >= FULL;
                self.header.clear();
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(kind: u8, length: u16) -> Vec<u8> {
        let [high, low] = length.to_be_bytes();
        let mut record = vec![kind, 3, 3, high, low];
        record.extend(std::iter::repeat_n(DATA, usize::from(length)));
        record
    }

    proptest! {
        #[test]
        fn long_records_are_found_however_they_are_cut(
            lengths in proptest::collection::vec((20..25u8, 0..2000u16), 0..20),
            cuts in proptest::collection::vec(1..700usize, 1..50),
        ) {
            let stream: Vec<u8> = lengths.iter().flat_map(|(kind, length)| record(*kind, *length)).collect();
            let of = |least| lengths.iter().filter(|(kind, length)| *kind == DATA && usize::from(*length) >= least).count();
            let expected = Found { long: of(LONG), full: of(FULL) > 0 };
            let (mut records, mut rest, mut found) = (Records::default(), &stream[..], Found::default());
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, tail) = rest.split_at((*cut).min(rest.len()));
                let here = records.read(piece);
                found = Found { long: found.long + here.long, full: found.full || here.full };
                rest = tail;
            }
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn only_what_the_plugin_says_after_an_answer_opens_the_channel() {
        let mut seen = Seen::default();
        let mut passed = |from, bytes: &[u8]| {
            seen.came(from, bytes, Instant::now());
            seen.passed(from)
        };
        let (handshake, request, token) = (record(22, 300), record(DATA, 900), record(DATA, 700));
        assert!(!passed(From::Plugin, &handshake) && !passed(From::Service, &record(DATA, 2000)));
        // The end of the handshake, and a request in two records.
        assert!(!passed(From::Plugin, &[record(DATA, 53), request.clone()].concat()));
        assert!(!passed(From::Plugin, &request) && !passed(From::Service, &record(DATA, 160)));
        // A goodbye after a refusal would be as short as this.
        assert!(!passed(From::Plugin, &record(DATA, 19)));
        assert!(passed(From::Plugin, &token));
        assert!(!passed(From::Plugin, &token), "what follows opens nothing more");
    }
}
