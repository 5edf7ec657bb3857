//! Log lines: what an operator wants to know, once, at the right level.
//!
//! Fields that mean the same have the same name everywhere: `tunnel` (its name), `session` (the service's id),
//! `event` (a stable word for machines), `reason` (in the words of whoever gave it), `duration_ms`. The message is a
//! sentence that can be read without the fields, because `journalctl` shows nothing else.

pub mod catalog;
pub mod histogram;
pub mod history;
mod journal;
pub mod recorder;
mod text;
pub mod thin;

use std::io::{self, IsTerminal as _};
use std::path::Path;

use tracing::Dispatch;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{Layer, Registry};

use recorder::Recorder;

/// How log lines are written. They go to standard error; standard output belongs to the commands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// The journal's native fields if standard error is the journal, else readable lines
    #[default]
    Auto,
    /// Readable lines
    Text,
    /// A JSON object on each line
    Json,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The filter is not a valid one.
    #[error("the log filter '{filter}' is not valid: {source}; write for example 'info' or 'autossm=debug'")]
    Filter {
        /// As it was given.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// There is a subscriber already.
    #[error("logging is set up twice: {0}")]
    Twice(#[from] tracing::dispatcher::SetGlobalDefaultError),
}

/// Sets up logging for the process, once. `filter` is a level or a list of directives (`info`, `autossm=debug,warn`).
/// The recorder gets the events whatever the filter says.
///
/// # Errors
/// The filter cannot be read, or logging has been set up before.
pub fn init(format: Format, filter: &str, recorder: &Recorder) -> Result<(), InitError> {
    let journal = if format == Format::Auto && stderr_is_journal() { journal() } else { None };
    let dispatch = dispatch(journal, format, filter, io::stderr, colours(), recorder)?;
    tracing::dispatcher::set_global_default(dispatch)?;
    Ok(())
}

type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

fn dispatch<W>(
    journal: Option<BoxedLayer>,
    format: Format,
    filter: &str,
    writer: W,
    ansi: bool,
    recorder: &Recorder,
) -> Result<Dispatch, InitError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let directives: Targets =
        filter.parse().map_err(|source| InitError::Filter { filter: filter.to_owned(), source })?;
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(ansi);
    let layer: BoxedLayer = match (journal, format) {
        (Some(journal), _) => journal,
        // Without tracing's own target, the module, which would hide the field of that name: the session's.
        (None, Format::Json) => lines.json().flatten_event(true).with_target(false).with_ansi(false).boxed(),
        (None, Format::Auto | Format::Text) => lines.event_format(text::Text).boxed(),
    };
    let layers: Vec<BoxedLayer> =
        vec![layer.with_filter(directives).boxed(), recorder.clone().with_filter(recorder::filter()).boxed()];
    Ok(Dispatch::new(Registry::default().with(layers)))
}

/// A journal whose socket cannot be reached (a sandbox may hide it) gets readable lines through standard error instead.
fn journal() -> Option<BoxedLayer> {
    Some(journal::Journal::at(Path::new(journal::SOCKET)).ok()?.boxed())
}

/// Whether log lines go to the journal.
///
/// systemd names in `JOURNAL_STREAM` the device and inode of the stream that it connected. The variable is inherited
/// by processes whose standard error goes elsewhere, so that it means something only if they match.
pub fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(stat) = nix::sys::stat::fstat(io::stderr()) else { return false };
    names_file(&stream, stat.st_dev, stat.st_ino)
}

fn names_file(stream: &str, device: u64, inode: u64) -> bool {
    stream.split_once(':').is_some_and(|(d, i)| d.parse() == Ok(device) && i.parse() == Ok(inode))
}

fn colours() -> bool {
    io::stderr().is_terminal() && !colours_unwanted()
}

/// See <https://no-color.org>: set and not empty means no colours.
pub fn colours_unwanted() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    set("NO_COLOR") || std::env::var_os("TERM").is_some_and(|term| term == "dumb")
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: Format, filter: &str, ansi: bool, events: impl FnOnce()) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let recorder = Recorder::default();
        let dispatch = dispatch(None, format, filter, move || writer.clone(), ansi, &recorder).unwrap();
        tracing::dispatcher::with_default(&dispatch, events);
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_readable_line_has_time_level_and_tunnel_first() {
        let text = logged(Format::Text, "info", false, || {
            tracing::info!(reason = "Bye now", duration_ms = 12, session = "s-1", tunnel = "db", "closed");
            tracing::debug!("not at this level");
        });
        let (time, rest) = text.split_once(' ').unwrap();
        assert!(time.starts_with("20") && time.ends_with('Z'), "{text}");
        assert_eq!(rest, " INFO tunnel=db session=s-1 closed reason=\"Bye now\" duration_ms=12\n");
    }

    #[test]
    fn the_fields_of_a_span_come_first_too() {
        let text = logged(Format::Text, "info", false, || {
            tracing::info_span!("tunnel", tunnel = "db").in_scope(|| tracing::warn!("message"));
        });
        assert!(text.contains(" WARN tunnel=\"db\" message\n"), "{text}");
    }

    #[test]
    fn colours_only_where_they_are_wanted() {
        let event = || tracing::error!("broken\nline\x1b[2J");
        assert!(!logged(Format::Text, "info", false, event).contains('\x1b'));
        let painted = logged(Format::Text, "info", true, event);
        assert!(painted.contains("\x1b[31mERROR\x1b[0m broken\\nline\\u{1b}[2J"), "{painted:?}");
    }

    #[test]
    fn json_has_one_flat_object_on_each_line() {
        let text = logged(Format::Json, "info", true, || {
            tracing::info!(tunnel = "db", duration_ms = 12, "ready");
            tracing::info!(tunnel = "db", "again");
        });
        let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!((&first["tunnel"], &first["message"]), (&"db".into(), &"ready".into()));
        assert_eq!((&first["duration_ms"], &first["level"]), (&12.into(), &"INFO".into()));
        assert_eq!(text.lines().count(), 2);
    }

    #[test]
    fn a_bad_filter_is_named() {
        let error =
            dispatch(None, Format::Text, "autossm=loud", io::sink, false, &Recorder::default()).unwrap_err();
        assert!(error.to_string().contains("'autossm=loud'"), "{error}");
    }

    #[test]
    fn the_journal_is_told_by_device_and_inode() {
        assert!(names_file("8:1234", 8, 1234));
        assert!(!names_file("8:1234", 8, 1235) && !names_file("9:1234", 8, 1234));
        assert!(!names_file("", 0, 0) && !names_file("8", 8, 0) && !names_file("x:y", 0, 0));
    }
}
