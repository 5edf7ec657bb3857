//! Log lines for people: `TIME LEVEL tunnel=NAME session=ID message key=value …`, one event on one line.

use std::fmt::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

/// Where each tunnel's lines begin, so that the eye finds them: these fields come first, in this order.
const FIRST: [&str; 2] = ["tunnel", "session"];

/// Writes the lines.
pub(super) struct Text;

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = *event.metadata().level();
        let mut line = Line::default();
        event.record(&mut line);

        paint(&mut writer, "2", |writer| SystemTime.format_time(writer))?;
        writer.write_char(' ')?;
        paint(&mut writer, colour(level), |writer| write!(writer, "{level:>5}"))?;
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(fields) = span.extensions().get::<FormattedFields<N>>()
                && !fields.is_empty()
            {
                write!(writer, " {fields}")?;
            }
        }
        for (name, value) in FIRST.iter().zip(&line.first) {
            if !value.is_empty() {
                write!(writer, " {name}={value}")?;
            }
        }
        if !line.message.is_empty() {
            write!(writer, " {}", line.message)?;
        }
        paint(&mut writer, "2", |writer| writer.write_str(&line.rest))?;
        writeln!(writer)
    }
}

fn colour(level: Level) -> &'static str {
    match level {
        Level::ERROR => "31",
        Level::WARN => "33",
        Level::INFO => "32",
        Level::DEBUG | Level::TRACE => "2",
    }
}

fn paint<'w>(
    writer: &mut Writer<'w>,
    code: &str,
    text: impl FnOnce(&mut Writer<'w>) -> fmt::Result,
) -> fmt::Result {
    if !writer.has_ansi_escapes() {
        return text(writer);
    }
    write!(writer, "\x1b[{code}m")?;
    text(writer)?;
    writer.write_str("\x1b[0m")
}

/// An event's fields, sorted into the places they have on the line.
#[derive(Default)]
struct Line {
    first: [String; FIRST.len()],
    message: String,
    rest: String,
}

impl Line {
    fn put(&mut self, field: &Field, value: &str) {
        let name = field.name();
        if name == "message" {
            self.message = one_line(value);
        } else if let Some(place) = FIRST.iter().position(|first| *first == name)
            && let Some(slot) = self.first.get_mut(place)
        {
            *slot = quoted(value);
        } else {
            // Writing to a String cannot fail.
            let _ = write!(self.rest, " {name}={}", quoted(value));
        }
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, &format!("{value:?}"));
    }
}

/// What the service or the plugin says is printed as it came, but must not begin a line of its own or colour the
/// terminal.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for char in text.chars() {
        if char.is_control() {
            line.extend(char.escape_default());
        } else {
            line.push(char);
        }
    }
    line
}

/// A value is quoted where its end would not be seen otherwise.
fn quoted(value: &str) -> String {
    if value.is_empty() || value.contains(|char: char| char.is_whitespace() || char == '"') {
        format!("{value:?}")
    } else {
        one_line(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_breaks_out_of_its_line() {
        assert_eq!(one_line("a\nb\x1b[31m"), "a\\nb\\u{1b}[31m");
        assert_eq!(quoted("plain"), "plain");
        assert_eq!(quoted("two words\n"), "\"two words\\n\"");
        assert_eq!(quoted(""), "\"\"");
    }
}
