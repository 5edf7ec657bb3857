//! smux version 1, the multiplexer inside port sessions: frames with a header of 8 bytes, little-endian:
//! version 1, command, length (u16), stream (u32). Frames ignore the borders of data channel messages.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes of a frame's header.
pub const HEADER: usize = 8;
/// The version that both ends speak.
pub const VERSION: u8 = 1;
/// The longest payload that both ends put into one frame.
pub const MAX_FRAME: usize = 32768;
/// One receive buffer for all streams of a session: smux's default, used by plugin and agent.
pub const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;

/// A frame's command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// A new stream.
    Syn,
    /// The stream's end.
    Fin,
    /// Data.
    Push,
    /// Nothing: a keep-alive.
    Nop,
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it does.
    pub command: Command,
    /// To which stream.
    pub stream: u32,
    /// Data of a `Push`.
    pub data: Bytes,
}

/// The bytes are no smux version 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no smux frame: version {version}, command {command}")]
pub struct FrameError {
    /// The version byte.
    pub version: u8,
    /// The command byte.
    pub command: u8,
}

impl Frame {
    /// A frame without data.
    pub fn control(command: Command, stream: u32) -> Self {
        Self { command, stream, data: Bytes::new() }
    }

    /// A frame with data, at most [`MAX_FRAME`] bytes.
    pub fn push(stream: u32, data: impl Into<Bytes>) -> Self {
        Self { command: Command::Push, stream, data: data.into() }
    }

    /// Appends the frame to `out`.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_slice(&header(self.command, self.data.len() as u16, self.stream));
        out.put_slice(&self.data);
    }
}

/// A frame's header for `length` bytes of data.
pub fn header(command: Command, length: u16, stream: u32) -> [u8; HEADER] {
    let mut out = [0; HEADER];
    out[0] = VERSION;
    out[1] = command as u8;
    out[2..4].copy_from_slice(&length.to_le_bytes());
    out[4..8].copy_from_slice(&stream.to_le_bytes());
    out
}

/// Puts frames together again from the pieces in which they arrive. Holds at most one incomplete frame beside what
/// was pushed since the last call of [`Decoder::next_frame`].
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
}

impl Decoder {
    /// Takes in more bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes taken in and not yet given out.
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// The next complete frame, `None` if more bytes are needed.
    ///
    /// # Errors
    /// The bytes are no smux version 1; nothing after them can be understood.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(header) = self.buffer.first_chunk::<HEADER>().copied() else {
            return Ok(None);
        };
        let [version, command, low, high, stream @ ..] = header;
        let command = match (version, command) {
            (VERSION, 0) => Command::Syn,
            (VERSION, 1) => Command::Fin,
            (VERSION, 2) => Command::Push,
            (VERSION, 3) => Command::Nop,
            _ => return Err(FrameError { version, command }),
        };
        let length = usize::from(u16::from_le_bytes([low, high]));
        if self.buffer.len() < HEADER + length {
            return Ok(None);
        }
        self.buffer.advance(HEADER);
        let data = self.buffer.split_to(length).freeze();
        Ok(Some(Frame { command, stream: u32::from_le_bytes(stream), data }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_frame() -> impl Strategy<Value = Frame> {
        let control = proptest::sample::select(vec![Command::Syn, Command::Fin, Command::Nop]);
        prop_oneof![
            (control, any::<u32>()).prop_map(|(command, stream)| Frame::control(command, stream)),
            (any::<u32>(), proptest::collection::vec(any::<u8>(), 0..3000))
                .prop_map(|(stream, data)| Frame::push(stream, data)),
        ]
    }

    proptest! {
        /// Frames survive any cutting of the bytes.
        #[test]
        fn frames_are_put_together_again(
            frames in proptest::collection::vec(any_frame(), 1..12),
            cuts in proptest::collection::vec(1usize..1500, 1..20),
        ) {
            let mut bytes = BytesMut::new();
            frames.iter().for_each(|frame| frame.encode(&mut bytes));
            let (mut decoder, mut seen, mut cuts) = (Decoder::default(), Vec::new(), cuts.into_iter().cycle());
            while bytes.has_remaining() {
                let cut = cuts.next().unwrap_or(1).min(bytes.len());
                decoder.push(&bytes.split_to(cut));
                while let Some(frame) = decoder.next_frame().unwrap() {
                    seen.push(frame);
                }
            }
            prop_assert_eq!(seen, frames);
            prop_assert_eq!(decoder.buffered(), 0);
        }
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let mut bytes = BytesMut::new();
        Frame::push(0x0102_0305, &b"hi"[..]).encode(&mut bytes);
        assert_eq!(bytes, [1, 2, 2, 0, 5, 3, 2, 1, b'h', b'i'][..]);
    }

    #[test]
    fn other_versions_and_commands_are_refused() {
        for (version, command) in [(2, 0), (1, 4), (0, 0)] {
            let mut decoder = Decoder::default();
            decoder.push(&[version, command, 0, 0, 3, 0, 0, 0]);
            assert_eq!(decoder.next_frame(), Err(FrameError { version, command }));
        }
    }
}
