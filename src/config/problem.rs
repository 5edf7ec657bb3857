//! What is wrong with a configuration file: all of it, each with its place and what would be right.
//!
//! A problem names its line but never shows it: somebody may have written a secret there, and problems are printed in
//! logs as well as on terminals.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

/// Beyond this many problems a file is not a configuration at all, and the rest is only counted.
const SHOWN: usize = 100;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it is; `None` is the file as a whole, which could not be read.
    pub position: Option<Position>,
    /// What is wrong.
    pub what: String,
    /// What would be right.
    pub help: String,
}

/// A place in a text file, counted from 1, the column in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Counted from 1.
    pub line: usize,
    /// Counted from 1, in characters.
    pub column: usize,
}

/// Everything that is wrong with one file, in the file's order; never empty.
///
/// Its `Display` has two lines for each problem, without a line feed at the end:
/// ```text
/// config.toml:12:8: hold: `30` has no unit
///   help: write `hold = "30s"`
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problems {
    /// The file's name, as the user gave it.
    pub file: String,
    /// At least one.
    pub list: Vec<Problem>,
}

impl Problems {
    /// The file as a whole cannot be used.
    pub(super) fn of_file(file: &str, what: impl Into<String>, help: impl Into<String>) -> Self {
        let problem = Problem { position: None, what: what.into(), help: help.into() };
        Self { file: file.to_owned(), list: vec![problem] }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.list.iter().take(SHOWN).enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            match problem.position {
                Some(Position { line, column }) => write!(f, "{}:{line}:{column}: ", self.file)?,
                None => write!(f, "{}: ", self.file)?,
            }
            write!(f, "{}\n  help: {}", problem.what, problem.help)?;
        }
        match self.list.len().checked_sub(SHOWN) {
            Some(more @ 1..) => write!(f, "\n{}: {more} more problems like these", self.file),
            _ => Ok(()),
        }
    }
}

/// Collects the problems of one text while it is read, in any order.
pub(super) struct Report<'t> {
    lines: Lines<'t>,
    found: Vec<Found>,
    /// What the text says from this byte on cannot be believed: a syntax error confuses it.
    horizon: usize,
    /// A syntax error has hidden something: what seems to be missing may only be hidden.
    hidden: bool,
}

#[derive(PartialEq)]
struct Found {
    at: usize,
    what: String,
    help: String,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Syntax,
    Wrong,
    Missing,
}

impl<'t> Report<'t> {
    pub fn new(text: &'t str) -> Self {
        Self { lines: Lines::of(text), found: Vec::new(), horizon: usize::MAX, hidden: false }
    }

    /// Something that stands in the file is wrong.
    pub fn wrong(&mut self, span: Range<usize>, what: impl Into<String>, help: impl Into<String>) {
        self.add(span, what.into(), help.into(), Kind::Wrong);
    }

    /// Something is missing; `span` is where it ought to stand.
    pub fn missing(&mut self, span: Range<usize>, what: impl Into<String>, help: impl Into<String>) {
        self.add(span, what.into(), help.into(), Kind::Missing);
    }

    /// The text is no TOML at this place.
    pub fn syntax(&mut self, span: Range<usize>, what: impl Into<String>, help: impl Into<String>) {
        self.hidden = true;
        self.add(span, what.into(), help.into(), Kind::Syntax);
    }

    /// Nothing after `offset` is to be believed.
    pub fn doubt_from(&mut self, offset: usize) {
        self.horizon = self.horizon.min(offset);
    }

    /// The line on which `span` begins.
    pub fn line(&self, span: &Range<usize>) -> usize {
        self.lines.position(span.start).line
    }

    /// The problems in the file's order; `None` if there are none.
    pub fn finish(mut self, file: &str) -> Option<Problems> {
        self.found.sort_by_key(|problem| problem.at);
        let mut found: Vec<(Position, Found)> = Vec::new();
        for problem in std::mem::take(&mut self.found) {
            // A problem in `[defaults]` may be found once for each tunnel that uses it.
            let mut beside = found.iter().rev().take_while(|(_, other)| other.at == problem.at);
            if self.believes(&problem) && !beside.any(|(_, other)| *other == problem) {
                found.push((self.lines.position(problem.at), problem));
            }
        }
        // A syntax error leads to others on its line, and to values that only seem wrong.
        let mut broken = BTreeMap::new();
        for (index, (position, problem)) in found.iter().enumerate() {
            if problem.kind == Kind::Syntax {
                broken.entry(position.line).or_insert(index);
            }
        }
        let found = found
            .into_iter()
            .enumerate()
            .filter(|(index, (position, _))| broken.get(&position.line).is_none_or(|first| first == index));
        let list: Vec<Problem> = found
            .map(|(_, (position, Found { what, help, .. }))| Problem { position: Some(position), what, help })
            .collect();
        (!list.is_empty()).then(|| Problems { file: file.to_owned(), list })
    }

    fn add(&mut self, span: Range<usize>, what: String, help: String, kind: Kind) {
        self.found.push(Found { at: span.start, what, help, kind });
    }

    fn believes(&self, problem: &Found) -> bool {
        match problem.kind {
            Kind::Syntax => problem.at <= self.horizon,
            Kind::Wrong => problem.at < self.horizon,
            Kind::Missing => !self.hidden,
        }
    }
}

/// Where the lines of a text begin.
struct Lines<'t> {
    text: &'t str,
    /// The end of the file counts as the end of its last line: an editor shows no line after it.
    end: usize,
    starts: Vec<usize>,
}

impl<'t> Lines<'t> {
    fn of(text: &'t str) -> Self {
        let end = text.strip_suffix('\n').map_or(text, |text| text.strip_suffix('\r').unwrap_or(text)).len();
        let feeds = text.match_indices('\n').map(|(feed, _)| feed + 1);
        Self { text, end, starts: std::iter::once(0).chain(feeds).collect() }
    }

    fn position(&self, offset: usize) -> Position {
        let offset = offset.min(self.end);
        let line = self.starts.partition_point(|start| *start <= offset);
        let start = self.starts.get(line - 1).copied().unwrap_or_default();
        let before = self.text.get(start..offset).unwrap_or_default();
        Position { line, column: before.chars().count() + 1 }
    }
}

/// A value from the file for an error's text: one line, not too long.
pub(crate) fn quoted(value: &str) -> String {
    let mut short: String = value.chars().take(60).flat_map(char::escape_debug).collect();
    if value.chars().nth(60).is_some() {
        short.push('…');
    }
    format!("`{short}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_lines_and_characters_from_1() {
        let text = "ab\nçé = 1\r\nx\n";
        let lines = Lines::of(text);
        for (at, line, column) in [("ab", 1, 1), ("b\n", 1, 2), ("= 1", 2, 4), ("x", 3, 1)] {
            assert_eq!(lines.position(text.find(at).unwrap()), Position { line, column }, "{at}");
        }
        assert_eq!(lines.position(text.len()), Position { line: 3, column: 2 });
        assert_eq!(lines.position(usize::MAX), Position { line: 3, column: 2 });
        assert_eq!(Lines::of("").position(0), Position { line: 1, column: 1 });
    }

    #[test]
    fn problems_come_in_the_order_of_the_file_and_once_each() {
        let mut report = Report::new("one\ntwo\n");
        report.wrong(4..7, "second", "b");
        report.wrong(0..3, "first", "a");
        report.wrong(4..7, "second", "b");
        let shown = report.finish("config.toml").unwrap().to_string();
        assert_eq!(shown, "config.toml:1:1: first\n  help: a\nconfig.toml:2:1: second\n  help: b");
    }

    #[test]
    fn a_flood_is_counted_instead_of_shown() {
        let text = "x\n".repeat(SHOWN + 7);
        let mut report = Report::new(&text);
        for line in 0..SHOWN + 7 {
            report.wrong(2 * line..2 * line, "no", "yes");
        }
        let shown = report.finish("f").unwrap().to_string();
        assert!(shown.ends_with("f:100:1: no\n  help: yes\nf: 7 more problems like these"), "{shown}");
    }

    #[test]
    fn quoted_values_stay_on_one_line_and_short() {
        assert_eq!(quoted("a\nb"), r"`a\nb`");
        assert_eq!(quoted(&"x".repeat(70)), format!("`{}…`", "x".repeat(60)));
    }
}
