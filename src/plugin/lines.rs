//! PURE. Bytes to lines, however they were cut into reads.

use std::borrow::Cow;

/// Longest line, in bytes; a longer one comes in pieces of this size.
pub(super) const LONGEST: usize = 8 * 1024;

/// A line that is not complete yet.
#[derive(Debug, Default)]
pub(super) struct Lines(Vec<u8>);

impl Lines {
    /// Calls `each` for every line that is complete now, without its end, in order.
    pub(super) fn push(&mut self, mut bytes: &[u8], mut each: impl FnMut(Cow<'_, str>)) {
        while !bytes.is_empty() {
            let room = LONGEST - self.0.len();
            let end = bytes.iter().take(room).position(|byte| *byte == b'\n');
            let taken = end.unwrap_or_else(|| room.min(bytes.len()));
            let (line, rest) = bytes.split_at(taken);
            self.0.extend_from_slice(line);
            bytes = if end.is_some() { rest.get(1..).unwrap_or_default() } else { rest };
            if end.is_some() || self.0.len() == LONGEST {
                each(String::from_utf8_lossy(&self.0));
                self.0.clear();
            }
        }
    }

    /// Calls `each` for what is left when nothing more comes.
    pub(super) fn finish(&mut self, each: impl FnOnce(Cow<'_, str>)) {
        let rest = std::mem::take(&mut self.0);
        if !rest.is_empty() {
            each(String::from_utf8_lossy(&rest));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(reads: &[&[u8]]) -> Vec<String> {
        let (mut lines, mut seen) = (Lines::default(), Vec::new());
        for read in reads {
            lines.push(read, |line| seen.push(line.into_owned()));
        }
        lines.finish(|line| seen.push(line.into_owned()));
        seen
    }

    #[test]
    fn joins_what_was_cut() {
        assert_eq!(lines(&[b"a", b"b\nc", b"\n", b"\nd"]), ["ab", "c", "", "d"]);
        assert_eq!(lines(&[b"\xff\xc3", b"\xa4\n"]), ["\u{fffd}ä"]);
        assert!(lines(&[]).is_empty());
    }

    #[test]
    fn an_overlong_line_comes_in_pieces() {
        let long = vec![b'x'; 2 * LONGEST + 1];
        let sizes: Vec<_> = lines(&[&long, b"\ny\n"]).iter().map(String::len).collect();
        assert_eq!(sizes, [LONGEST, LONGEST, 1, 1]);
    }
}
