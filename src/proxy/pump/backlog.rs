//! What could not be written at once.

/// Bytes whose receiver was not ready for them, at most [`CHUNK`](crate::proxy::buffer::CHUNK). An idle connection has no memory here.
#[derive(Default)]
pub struct Backlog {
    bytes: Vec<u8>,
    from: usize,
}

impl Backlog {
    pub(super) fn rest(&self) -> Option<&[u8]> {
        self.bytes.get(self.from..).filter(|rest| !rest.is_empty())
    }

    pub(super) fn keep(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn advance(&mut self, bytes: usize) {
        self.from += bytes;
        if self.rest().is_none() {
            *self = Self::default();
        }
    }

    pub(super) fn take(&mut self) -> Vec<u8> {
        let mut bytes = std::mem::take(self);
        bytes.bytes.drain(..bytes.from);
        bytes.bytes
    }
}
