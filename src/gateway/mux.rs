//! PURE. Follows the frames of smux version 1 in the plugin's stream data, however it is cut into messages.
//!
//! A frame is 8 bytes of header, little-endian: version 1, command, length of the data (`u16`), stream (`u32`); then
//! the data. Agents before 3.0.196.0 do not multiplex: their data is no frames at all, and following it ends at once.

/// A stretch of the plugin's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// The stream begins.
    Open(u32),
    /// The stream ends.
    Close(u32),
    /// So many bytes of a stream's data.
    Data(u32, usize),
}

/// The bytes are not the frames that they should be; nothing can be said of what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostTrack;

/// Bytes before a frame's data.
pub const HEADER: usize = 8;

/// A frame that does nothing.
pub const NOP: [u8; HEADER] = [1, 3, 0, 0, 0, 0, 0, 0];

/// Whether these bytes can be the header of a frame of an agent, which opens no stream itself and names only such as its
/// client `knows`.
pub fn looks_like_header(bytes: &[u8; HEADER], knows: impl Fn(u32) -> bool) -> bool {
    let [version, command, l0, l1, s0, s1, s2, s3] = *bytes;
    let (length, stream) = (u16::from_le_bytes([l0, l1]), u32::from_le_bytes([s0, s1, s2, s3]));
    version == 1
        && match command {
            1 => length == 0 && knows(stream),
            2 => knows(stream),
            3 => length == 0,
            _ => false,
        }
}

/// Where in its frame one direction of a session is.
#[derive(Debug, Default)]
pub struct Follower {
    header: [u8; HEADER],
    /// Bytes of the header seen.
    filled: usize,
    /// Bytes of the frame's data still to come.
    data: usize,
    stream: u32,
}

impl Follower {
    /// Takes the next bytes and tells `each` what they are, in order. After an error it is of no more use.
    pub fn follow(&mut self, mut bytes: &[u8], mut each: impl FnMut(Piece)) -> Result<(), LostTrack> {
        while !bytes.is_empty() {
            if self.data > 0 {
                let taken = self.data.min(bytes.len());
                self.data -= taken;
                bytes = &bytes[taken..];
                each(Piece::Data(self.stream, taken));
                continue;
            }
            let taken = (HEADER - self.filled).min(bytes.len());
            self.header[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            bytes = &bytes[taken..];
            if self.filled == HEADER {
                self.filled = 0;
                if let Some(piece) = self.begin()? {
                    each(piece);
                }
            }
        }
        Ok(())
    }

    /// Whether the next byte begins a frame.
    pub fn is_between_frames(&self) -> bool {
        self.filled == 0 && self.data == 0
    }

    fn begin(&mut self) -> Result<Option<Piece>, LostTrack> {
        let [version, command, l0, l1, s0, s1, s2, s3] = self.header;
        let length = u16::from_le_bytes([l0, l1]);
        self.stream = u32::from_le_bytes([s0, s1, s2, s3]);
        match (version, command, length) {
            (1, 0, 0) => Ok(Some(Piece::Open(self.stream))),
            (1, 1, 0) => Ok(Some(Piece::Close(self.stream))),
            (1, 2, _) => {
                self.data = usize::from(length);
                Ok(None)
            }
            // Keep-alives of sessions with agents up to 3.1.1511.0.
            (1, 3, 0) => Ok(None),
            _ => Err(LostTrack),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn frame(command: u8, stream: u32, data: &[u8]) -> Vec<u8> {
        let mut frame = vec![1, command];
        frame.extend_from_slice(&(data.len() as u16).to_le_bytes());
        frame.extend_from_slice(&stream.to_le_bytes());
        frame.extend_from_slice(data);
        frame
    }

    fn follow(chunks: &[&[u8]]) -> Result<Vec<Piece>, LostTrack> {
        let (mut follower, mut pieces) = (Follower::default(), Vec::new());
        for chunk in chunks {
            follower.follow(chunk, |piece| match (pieces.last_mut(), piece) {
                (Some(Piece::Data(last, sum)), Piece::Data(stream, n)) if *last == stream => *sum += n,
                _ => pieces.push(piece),
            })?;
        }
        Ok(pieces)
    }

    #[test]
    fn a_life_of_a_stream() {
        let bytes = [frame(0, 3, b""), frame(3, 0, b""), frame(2, 3, b"abc"), frame(1, 3, b"")].concat();
        assert_eq!(follow(&[&bytes]), Ok(vec![Piece::Open(3), Piece::Data(3, 3), Piece::Close(3)]));
    }

    #[test]
    fn what_is_no_frame_is_noticed() {
        for garbage in [
            &b"GET / HTTP/1.1"[..],
            &[2, 0, 0, 0, 3, 0, 0, 0],
            &[1, 0, 1, 0, 3, 0, 0, 0],
            &[1, 4, 0, 0, 0, 0, 0, 0],
        ] {
            assert_eq!(follow(&[garbage]), Err(LostTrack));
        }
    }

    proptest! {
        /// However the bytes are cut, the same pieces come out.
        #[test]
        fn cuts_do_not_matter(
            frames in proptest::collection::vec((0u8..4, 0u32..9, proptest::collection::vec(any::<u8>(), 0..3000)), 0..12),
            sizes in proptest::collection::vec(1usize..1100, 1..200),
        ) {
            let bytes: Vec<u8> = frames
                .iter()
                .flat_map(|(command, stream, data)| frame(*command, *stream, if *command == 2 { data } else { b"" }))
                .collect();
            let (mut chunks, mut rest) = (Vec::new(), &bytes[..]);
            for size in sizes.iter().cycle() {
                let (chunk, tail) = rest.split_at((*size).min(rest.len()));
                chunks.push(chunk);
                rest = tail;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(follow(&chunks), follow(&[&bytes]));
        }

        #[test]
        fn survives_anything(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut follower = Follower::default();
            let _ = follower.follow(&bytes, |_| ());
        }
    }
}
