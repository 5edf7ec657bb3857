//! PURE. Which of the bytes that the plugin holds are line feeds: one bit for each.

use std::collections::VecDeque;

/// The bytes of one stream that the plugin still holds: one bit each, set for a line feed.
#[derive(Debug, Default)]
pub struct Held {
    /// Bits of `words[0]` that have passed already.
    passed: usize,
    /// Bytes held.
    pub len: usize,
    words: VecDeque<u64>,
}

impl Held {
    /// They are handed to the plugin.
    pub fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let bit = self.passed + self.len;
            if bit / 64 == self.words.len() {
                self.words.push_back(0);
            }
            if *byte == b'\n'
                && let Some(word) = self.words.get_mut(bit / 64)
            {
                *word |= 1 << (bit % 64);
            }
            self.len += 1;
        }
    }

    /// So many of them have left it. Returns whether the last one was a line feed.
    pub fn pass(&mut self, bytes: usize) -> bool {
        let bytes = bytes.min(self.len);
        if bytes == 0 {
            return false;
        }
        let last = self.passed + bytes - 1;
        let line_feed = self.words.get(last / 64).is_some_and(|word| word >> (last % 64) & 1 == 1);
        self.len -= bytes;
        self.passed += bytes;
        self.words.drain(..(self.passed / 64).min(self.words.len()));
        self.passed %= 64;
        line_feed
    }
}
