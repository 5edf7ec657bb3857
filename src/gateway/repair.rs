//! PURE. Undoes the plugin's change of a lone line feed.
//!
//! The plugin changes a payload that is exactly one line feed into a carriage return, in port sessions too, where it
//! corrupts the data: any read of its mux stream can leave a last single byte. On the wire a true carriage return
//! looks the same; the ledger knows what the proxy handed over.
//!
//! Only the plugin's own frames are followed. It ends every stream with a frame of its own, also those that the agent
//! has ended, after the last of the stream's data: so nothing is gained from the agent's frames, which would have to be
//! put in order first.

use std::sync::Arc;

use super::ledger::Ledger;
use super::mux::{Follower, LostTrack, Piece};

/// An encrypted payload is longer than the data by its nonce and its tag (AES-GCM).
const ENCRYPTION: usize = 12 + 16;

/// Follows the plugin's data as long as every byte of it can be accounted for.
#[derive(Debug)]
pub struct Repair {
    ledger: Arc<Ledger>,
    /// `None` once the frames or the streams cannot be followed any more, for good.
    follower: Option<Follower>,
    /// The frames are encrypted, and their lengths are all that is told.
    encrypted: bool,
}

/// What a payload turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// As it was sent by the client, or nothing can be known.
    Unchanged,
    /// A lone line feed that the plugin has changed.
    ChangedLineFeed,
    /// A stream that the proxy has not announced: somebody else has connected to the plugin. Repair has ended.
    Foreign,
    /// The data is not mux frames. Repair has ended.
    LostTrack,
    /// A single encrypted byte: if the plugin was given a line feed, it is one no more.
    LoneByte,
}

impl Repair {
    /// A session's, from its first byte on.
    pub fn new(ledger: Arc<Ledger>) -> Self {
        Self { ledger, follower: Some(Follower::default()), encrypted: false }
    }

    /// The payloads are not readable, or not in frames.
    pub fn end(&mut self) {
        self.follower = None;
        self.ledger.stop();
    }

    /// The payloads are frames, and encrypted: the change cannot be undone, but prevented.
    pub fn prevent(&mut self) {
        self.follower = None;
        self.encrypted = true;
        self.ledger.take_turns();
    }

    /// Whether the ledger's account of what the plugin holds is kept up.
    pub fn is_active(&self) -> bool {
        self.follower.is_some()
    }

    /// Whether a frame can be put in here: what came so far is whole frames, and can be told from no frames at all.
    pub fn is_between_frames(&self) -> bool {
        self.follower.as_ref().is_some_and(Follower::is_between_frames)
    }

    /// Takes the next payload of the plugin's data, each exactly once and in order.
    pub fn inspect(&mut self, payload: &[u8]) -> Finding {
        if self.encrypted {
            let bytes = payload.len().saturating_sub(ENCRYPTION);
            self.ledger.left(bytes);
            return if bytes == 1 { Finding::LoneByte } else { Finding::Unchanged };
        }
        let Some(follower) = &mut self.follower else { return Finding::Unchanged };
        let mut finding = Finding::Unchanged;
        let followed = follower.follow(payload, |piece| match piece {
            Piece::Open(stream) if !self.ledger.knows(stream) => finding = Finding::Foreign,
            Piece::Open(_) => (),
            Piece::Close(stream) => self.ledger.close(stream),
            Piece::Data(stream, bytes) => {
                if self.ledger.pass(stream, bytes) && payload == b"\r" {
                    finding = Finding::ChangedLineFeed;
                }
            }
        });
        if let Err(LostTrack) = followed {
            finding = Finding::LostTrack;
        }
        if matches!(finding, Finding::Foreign | Finding::LostTrack) {
            self.end();
        }
        finding
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::mux::tests::frame;
    use proptest::prelude::*;

    fn announced() -> (Arc<Ledger>, Repair) {
        let ledger = Arc::new(Ledger::new());
        assert_eq!(ledger.open(), 3);
        (ledger.clone(), Repair::new(ledger))
    }

    proptest! {
        /// Whatever clients write and however the plugin cuts it: what leaves is what was sent.
        #[test]
        fn every_byte_leaves_as_it_was_sent(
            writes in proptest::collection::vec((0usize..3, proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(b'x')], 1..40)), 1..30),
            cuts in proptest::collection::vec(prop_oneof![3 => Just(1usize), 1 => 2usize..20], 1..40),
        ) {
            let ledger = Arc::new(Ledger::new());
            let mut repair = Repair::new(ledger.clone());
            let streams: Vec<u32> = (0..3).map(|_| ledger.open()).collect();
            let mut sent: Vec<u8> = streams.iter().flat_map(|stream| frame(0, *stream, b"")).collect();
            // Within a header the stock plugin never leaves a single byte, as frames are written whole; here it happens,
            // so that no header may hold a line feed.
            for (index, data) in writes.iter().filter(|(_, data)| data.len() != 10) {
                ledger.write(streams[*index], data);
                sent.extend(frame(2, streams[*index], data));
            }
            let mut received = Vec::new();
            let mut rest = &sent[..];
            for cut in cuts.iter().cycle() {
                let (payload, tail) = rest.split_at((*cut).min(rest.len()));
                rest = tail;
                match payload {
                    b"\n" => match repair.inspect(b"\r") {
                        Finding::ChangedLineFeed => received.push(b'\n'),
                        finding => prop_assert!(false, "{finding:?} for a changed line feed"),
                    },
                    _ => {
                        prop_assert_eq!(repair.inspect(payload), Finding::Unchanged);
                        received.extend_from_slice(payload);
                    }
                }
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(received, sent);
            prop_assert_eq!(ledger.outstanding(), 0);
        }
    }

    #[test]
    fn a_true_carriage_return_is_left_alone() {
        let (ledger, mut repair) = announced();
        ledger.write(3, b"\r\n");
        let mut head = frame(0, 3, b"");
        head.extend_from_slice(&frame(2, 3, b"\r\n")[..8]);
        assert_eq!(repair.inspect(&head), Finding::Unchanged);
        assert_eq!(repair.inspect(b"\r"), Finding::Unchanged);
        assert_eq!(repair.inspect(b"\r"), Finding::ChangedLineFeed);
    }

    #[test]
    fn an_unannounced_stream_ends_the_repair() {
        let (ledger, mut repair) = announced();
        assert_eq!(repair.inspect(&frame(0, 3, b"")), Finding::Unchanged);
        assert_eq!(repair.inspect(&frame(0, 5, b"")), Finding::Foreign);
        ledger.write(3, b"\n");
        assert_eq!(repair.inspect(&frame(2, 3, b"\n")[..8]), Finding::Unchanged);
        assert_eq!(repair.inspect(b"\r"), Finding::Unchanged);
        assert!(!repair.is_active());
    }

    #[test]
    fn data_without_frames_ends_the_repair() {
        let (_, mut repair) = announced();
        assert_eq!(repair.inspect(b"SSH-2.0-OpenSSH_9.6\r\n"), Finding::LostTrack);
        assert_eq!(repair.inspect(b"\r"), Finding::Unchanged);
    }

    #[test]
    fn encrypted_frames_are_handed_over_in_turns() {
        let (ledger, mut repair) = announced();
        repair.prevent();
        let cx = std::task::Context::from_waker(std::task::Waker::noop());
        let turn = |stream| ledger.poll_turn(&cx, stream, 900).is_ready();
        assert!(turn(3) && !turn(5));
        assert_eq!((ledger.held(3), ledger.held(5), ledger.outstanding()), (900, 0, 0));
        assert_eq!(repair.inspect(&[0; ENCRYPTION + 8]), Finding::Unchanged);
        assert!(!turn(5), "a stream has begun or ended, and the frame is still there");
        assert_eq!(repair.inspect(&[0; ENCRYPTION + 908]), Finding::Unchanged);
        assert!(turn(5));
        assert_eq!(repair.inspect(&[0; ENCRYPTION + 1]), Finding::LoneByte);
        assert!(!repair.is_active() && !repair.is_between_frames());
    }

    #[test]
    fn a_closed_stream_leaves_the_account() {
        let (ledger, mut repair) = announced();
        ledger.write(3, b"never read by the plugin");
        repair.inspect(&[frame(0, 3, b""), frame(1, 3, b"")].concat());
        assert_eq!(ledger.outstanding(), 0);
    }
}
