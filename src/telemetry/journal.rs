//! The journal's native protocol: a datagram for each line, with its fields as they are.
//!
//! `tracing-journald` prefixes every field alike and cannot set `MESSAGE_ID`, without which there is no catalog.

use std::fmt;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::catalog;

/// Where the journal listens.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";

/// The longest value, in bytes. A dozen of them fit into a datagram of the size that Linux lets through by default.
const LONGEST: usize = 8 * 1024;

/// How long a line may wait for a journal that is busy. One that does not read at all must not hold up the tunnels.
const PATIENCE: Duration = Duration::from_millis(50);

/// Whose lines these are, where nothing else is said.
const IDENTIFIER: &str = "autossm";
/// The event that stands for a line of the plugin, and whose line that is.
const PLUGIN: (&str, &str) = ("plugin_says", "session-manager-plugin");

/// Writes to the journal.
pub(super) struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
    /// Lines that were not taken since the last one that was.
    lost: AtomicU64,
}

impl Journal {
    /// A layer for the journal that listens on `path`.
    ///
    /// # Errors
    /// Nobody can be reached there.
    pub(super) fn at(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        // Not connected for good: the journal makes its socket anew when it is restarted by hand.
        UnixDatagram::unbound()?.connect(path)?;
        Ok(Self { socket, path: path.to_owned(), lost: AtomicU64::new(0) })
    }

    fn write(&self, line: &Line) {
        let lost = self.lost.load(Relaxed);
        // A journal that did not take the last line is not waited for again.
        let _ = self.socket.set_nonblocking(lost > 0);
        if lost > 0 {
            let mut told = Line::default();
            let event = "journal_behind";
            told.put("event", event);
            told.put("lines", &lost.to_string());
            told.put("message", &format!("{lost} log lines were lost: the journal did not take them"));
            told.finish(Level::WARN);
            if self.socket.send_to(&told.bytes, &self.path).is_ok() {
                self.lost.fetch_sub(lost, Relaxed);
            }
        }
        if self.socket.send_to(&line.bytes, &self.path).is_err() {
            self.lost.fetch_add(1, Relaxed);
        }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Journal {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Line::default();
        attributes.record(&mut fields);
        span.extensions_mut().insert(fields);
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let metadata = event.metadata();
        let mut line = Line::default();
        event.record(&mut line);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(fields) = span.extensions().get::<Line>() {
                line.bytes.extend_from_slice(&fields.bytes);
            }
        }
        line.field("AUTOSSM_MODULE", metadata.target());
        if let (Some(file), Some(number)) = (metadata.file(), metadata.line()) {
            line.field("CODE_FILE", file);
            line.field("CODE_LINE", &number.to_string());
        }
        line.finish(*metadata.level());
        self.write(&line);
    }
}

/// One line, as it is being put together.
#[derive(Default)]
struct Line {
    bytes: Vec<u8>,
    event: String,
}

impl Line {
    /// Adds what every line has.
    fn finish(&mut self, level: Level) {
        // As syslog numbers them. `info` is `notice` to nobody: journalctl shows that in bold.
        let priority = match level {
            Level::ERROR => "3",
            Level::WARN => "4",
            Level::INFO => "6",
            Level::DEBUG | Level::TRACE => "7",
        };
        self.field("PRIORITY", priority);
        self.field("SYSLOG_IDENTIFIER", if self.event == PLUGIN.0 { PLUGIN.1 } else { IDENTIFIER });
        if let Some(entry) = catalog::find(&self.event) {
            self.field("MESSAGE_ID", entry.id);
        }
    }

    fn put(&mut self, name: &str, value: &str) {
        match name {
            "message" => return self.field("MESSAGE", value),
            "event" => value.clone_into(&mut self.event),
            _ => {}
        }
        let mut field = String::from("AUTOSSM_");
        for char in name.trim_start_matches("r#").chars() {
            field.push(if char.is_ascii_alphanumeric() { char.to_ascii_uppercase() } else { '_' });
        }
        self.field(&field, value);
    }

    /// `NAME=value`, or for a value of several lines the name, its length and then the value.
    fn field(&mut self, name: &str, value: &str) {
        let value = cut(value);
        self.bytes.extend_from_slice(name.as_bytes());
        if value.contains('\n') {
            self.bytes.push(b'\n');
            self.bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            self.bytes.push(b'=');
        }
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(b'\n');
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field.name(), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field.name(), &format!("{value:?}"));
    }
}

/// A value that would burst the datagram loses its end, and says so.
fn cut(value: &str) -> std::borrow::Cow<'_, str> {
    if value.len() <= LONGEST {
        return value.into();
    }
    let kept = value.floor_char_boundary(LONGEST);
    let rest = value.len() - kept;
    format!("{}… ({rest} bytes cut)", value.get(..kept).unwrap_or_default()).into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tracing_subscriber::Registry;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    /// A journal of our own.
    struct Reader {
        socket: UnixDatagram,
        folder: tempfile::TempDir,
    }

    impl Reader {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let socket = UnixDatagram::bind(folder.path().join("socket")).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            Self { socket, folder }
        }

        fn during(&self, events: impl FnOnce()) {
            let layer = Journal::at(&self.folder.path().join("socket")).unwrap();
            // With one dispatcher in the process, `tracing` would ask only the thread that passes a line first.
            let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new());
            let dispatch = tracing::Dispatch::new(Registry::default().with(layer));
            tracing::dispatcher::with_default(&dispatch, events);
        }

        /// The fields of the next line, read as the journal reads them.
        fn next(&self) -> BTreeMap<String, String> {
            let mut buffer = vec![0; 1 << 20];
            let length = self.socket.recv(&mut buffer).unwrap();
            let (mut rest, mut fields) = (&buffer[..length], BTreeMap::new());
            while !rest.is_empty() {
                let end = rest.iter().position(|byte| *byte == b'\n').unwrap();
                let (line, after) = (String::from_utf8(rest[..end].to_vec()).unwrap(), &rest[end + 1..]);
                let (name, value) = if let Some((name, value)) = line.split_once('=') {
                    rest = after;
                    (name.to_owned(), value.to_owned())
                } else {
                    let size = u64::from_le_bytes(after[..8].try_into().unwrap()) as usize;
                    assert_eq!(after[8 + size], b'\n');
                    rest = &after[8 + size + 1..];
                    (line, String::from_utf8(after[8..8 + size].to_vec()).unwrap())
                };
                fields.insert(name, value);
            }
            fields
        }
    }

    #[test]
    fn a_line_has_its_fields_its_id_and_its_level() {
        let reader = Reader::new();
        reader.during(|| {
            tracing::warn!(
                tunnel = "db",
                session = "s-1",
                event = "lost",
                reason = "gone",
                duration_ms = 12,
                "session lost"
            );
        });
        let fields = reader.next();
        for (name, value) in [
            ("MESSAGE", "session lost"),
            ("PRIORITY", "4"),
            ("SYSLOG_IDENTIFIER", "autossm"),
            ("MESSAGE_ID", catalog::find("lost").unwrap().id),
            ("AUTOSSM_TUNNEL", "db"),
            ("AUTOSSM_SESSION", "s-1"),
            ("AUTOSSM_EVENT", "lost"),
            ("AUTOSSM_REASON", "gone"),
            ("AUTOSSM_DURATION_MS", "12"),
            ("AUTOSSM_MODULE", module_path!()),
        ] {
            assert_eq!(fields.get(name).map(String::as_str), Some(value), "{name}: {fields:?}");
        }
        assert!(fields["CODE_FILE"].ends_with("journal.rs"));
    }

    #[test]
    fn lines_of_the_plugin_and_of_a_span_say_whose_they_are() {
        let reader = Reader::new();
        reader.during(|| {
            let span = tracing::info_span!("gateway", tunnel = "db", session = "s-2");
            span.in_scope(|| tracing::debug!(event = "plugin_says", "Port 1 opened"));
        });
        let fields = reader.next();
        assert_eq!(fields["SYSLOG_IDENTIFIER"], "session-manager-plugin");
        assert_eq!((fields["AUTOSSM_TUNNEL"].as_str(), fields["AUTOSSM_SESSION"].as_str()), ("db", "s-2"));
        assert_eq!(fields["PRIORITY"], "7");
    }

    #[test]
    fn a_line_feed_makes_no_field_of_its_own() {
        let reader = Reader::new();
        reader.during(|| tracing::info!(reason = "one\nPRIORITY=0\ntwo", "a\nb"));
        let fields = reader.next();
        assert_eq!((fields["MESSAGE"].as_str(), fields["PRIORITY"].as_str()), ("a\nb", "6"));
        assert_eq!(fields["AUTOSSM_REASON"], "one\nPRIORITY=0\ntwo");
        assert!(!fields.contains_key("MESSAGE_ID"));
    }

    #[test]
    fn a_long_value_is_cut_and_says_so() {
        let reader = Reader::new();
        reader.during(|| tracing::info!(reason = "ä".repeat(1 << 20), "{}", "x".repeat(1 << 20)));
        let fields = reader.next();
        assert!(fields["MESSAGE"].ends_with(&format!("x… ({} bytes cut)", (1 << 20) - LONGEST)));
        assert!(fields["AUTOSSM_REASON"].starts_with('ä') && fields["AUTOSSM_REASON"].len() < LONGEST + 40);
    }

    #[test]
    fn a_journal_that_does_not_read_holds_nobody_up_and_hears_how_much_it_missed() {
        let reader = Reader::new();
        reader.during(|| {
            let began = std::time::Instant::now();
            for _ in 0..20_000 {
                tracing::info!("line");
            }
            assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
            let mut taken = 0_u64;
            reader.socket.set_nonblocking(true).unwrap();
            while reader.socket.recv(&mut [0; 4096]).is_ok() {
                taken += 1;
            }
            reader.socket.set_nonblocking(false).unwrap();
            tracing::info!("again");
            let behind = reader.next();
            assert_eq!(behind["AUTOSSM_EVENT"], "journal_behind");
            assert_eq!(behind["AUTOSSM_LINES"].parse::<u64>().unwrap(), 20_000 - taken);
            assert_eq!(reader.next()["MESSAGE"], "again");
        });
    }

    #[test]
    fn without_a_journal_there_is_no_layer() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Journal::at(&folder.path().join("socket")).is_err());
    }
}
