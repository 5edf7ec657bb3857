//! What the commands write for people: colours where they are wanted, columns, ages.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use crate::control::protocol::{Level, Phase, State};
use crate::telemetry::colours_unwanted;

/// How something is coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// As the terminal has it.
    Plain,
    /// All is well.
    Green,
    /// Somebody may want to look.
    Yellow,
    /// Somebody should look.
    Red,
    /// Not what one looks for first.
    Dim,
    /// A heading.
    Bold,
}

impl Colour {
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "0",
            Self::Green => "32",
            Self::Yellow => "33",
            Self::Red => "31",
            Self::Dim => "2",
            Self::Bold => "1",
        }
    }

    /// Of a tunnel's state.
    pub fn of_state(state: State) -> Self {
        match state {
            State::Up => Self::Green,
            State::Degraded | State::Interrupted | State::Starting | State::Draining => Self::Yellow,
            State::Waiting | State::Stopped | State::Unknown => Self::Red,
            State::Stopping => Self::Dim,
        }
    }

    /// Of what is wrong with a tunnel of this state: some of it is wrong with one that serves.
    pub fn of_trouble(state: State) -> Self {
        if state == State::Up { Self::Yellow } else { Self::of_state(state) }
    }

    /// Of a session's phase.
    pub fn of_phase(phase: Phase) -> Self {
        match phase {
            Phase::Ready => Self::Green,
            Phase::Starting | Phase::Opening | Phase::Interrupted | Phase::Stalled => Self::Yellow,
            Phase::Retired | Phase::Ending | Phase::Unknown => Self::Dim,
        }
    }

    /// Of an event's level.
    pub fn of_level(level: Level) -> Self {
        match level {
            Level::Error => Self::Red,
            Level::Warn => Self::Yellow,
            Level::Info => Self::Plain,
            Level::Debug => Self::Dim,
        }
    }
}

/// Paints, or does not.
#[derive(Clone, Copy, Debug)]
pub struct Painter {
    colours: bool,
}

impl Painter {
    /// For standard output: colours only on a terminal, and not where somebody has said no (`NO_COLOR`).
    pub fn stdout() -> Self {
        Self { colours: io::stdout().is_terminal() && !colours_unwanted() }
    }

    /// Without colours.
    pub fn plain() -> Self {
        Self { colours: false }
    }

    /// The text in its colour, filled with spaces to `width`.
    pub fn padded(self, text: &str, colour: Colour, width: usize) -> String {
        let fill = " ".repeat(width.saturating_sub(text.chars().count()));
        format!("{}{fill}", self.paint(text, colour))
    }

    /// The text in its colour. What somebody else has written may hold anything: control characters are shown, not
    /// done.
    pub fn paint(self, text: &str, colour: Colour) -> String {
        let text = harmless(text);
        if self.colours && colour != Colour::Plain {
            format!("\x1b[{}m{text}\x1b[0m", colour.code())
        } else {
            text
        }
    }
}

/// Without control characters: a reason comes from a service, and must not move the cursor.
pub fn harmless(text: &str) -> String {
    text.chars()
        .map(|char| match char {
            '\n' | '\r' | '\t' => ' ',
            char if char.is_control() => '\u{fffd}',
            char => char,
        })
        .collect()
}

/// `42s`, `5m`, `3h12m`, `2d4h`: as much as a person wants to read in a column.
pub fn age(lasts: Duration) -> String {
    match lasts.as_secs() {
        seconds @ ..60 => format!("{seconds}s"),
        seconds @ 60..3600 => format!("{}m", seconds / 60),
        seconds @ 3600..86_400 => format!("{}h{}m", seconds / 3600, seconds / 60 % 60),
        seconds => format!("{}d{}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// A wait: whole seconds, rounded up, because what is still waited for is never zero.
pub fn wait(lasts: Duration) -> String {
    age(Duration::from_secs(lasts.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX)))
}

/// `0.4 s`, `12 s`, or as [`age`].
pub fn took(millis: u64) -> String {
    let lasts = Duration::from_millis(millis);
    match millis {
        ..1000 => format!("{millis} ms"),
        1000..60_000 => format!("{:.1} s", lasts.as_secs_f64()),
        _ => age(lasts),
    }
}

/// `512 B`, `3.4 kB`, `1.2 GB`.
pub fn bytes(count: u64) -> String {
    let mut size = count as f64;
    let mut units = ["B", "kB", "MB", "GB", "TB", "PB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    for next in units {
        if size < 999.5 {
            break;
        }
        size /= 1000.0;
        unit = next;
    }
    if unit == "B" || size >= 99.5 { format!("{size:.0} {unit}") } else { format!("{size:.1} {unit}") }
}

/// Writes to standard output. Whoever reads and has read enough is no error.
///
/// # Errors
/// Standard output cannot be written to.
pub fn print(text: &str) -> io::Result<Read> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(Read::On),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Read::Enough),
        Err(error) => Err(error),
    }
}

/// Whether anybody reads on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// Somebody does.
    On,
    /// Nobody does.
    Enough,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        let ages = [0, 59, 60, 3599, 3600, 11_520, 86_400, 190_000].map(|s| age(Duration::from_secs(s)));
        assert_eq!(ages, ["0s", "59s", "1m", "59m", "1h0m", "3h12m", "1d0h", "2d4h"]);
        assert_eq!([0, 1, 1000, 1001].map(|ms| wait(Duration::from_millis(ms))), ["0s", "1s", "1s", "2s"]);
        assert_eq!([4, 999, 1250, 61_000].map(took), ["4 ms", "999 ms", "1.2 s", "1m"]);
        let sizes = [0, 512, 999, 1000, 1_234_000, 999_900_000, 123_456_000_000, u64::MAX].map(bytes);
        assert_eq!(sizes, ["0 B", "512 B", "999 B", "1.0 kB", "1.2 MB", "1.0 GB", "123 GB", "18447 PB"]);
    }

    #[test]
    fn colours_do_not_count_and_control_characters_do_nothing() {
        let painter = Painter { colours: true };
        assert_eq!(painter.padded("up", Colour::Green, 4), "\x1b[32mup\x1b[0m  ");
        assert_eq!(painter.paint("a\x1b[2Jb\nc", Colour::Plain), "a\u{fffd}[2Jb c");
        assert_eq!(Painter::plain().paint("up", Colour::Green), "up");
    }
}
