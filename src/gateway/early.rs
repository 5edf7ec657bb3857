//! PURE. The agent's messages that came before an earlier one: as much of them as it takes to follow its frames later.
//!
//! Where a frame begins in such a message is known only when the missing one is there. But a header has a form, and names a
//! stream that there is: so all that could be one is kept, and of the rest only how long it is. A message of a bulk transfer
//! takes a hundred bytes so instead of eleven hundred, and a gap may be as long as what the plugin itself keeps behind one.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::message::{self, View};
use super::mux::{HEADER, looks_like_header};

/// What all of them may take. The plugin keeps 10 000 messages behind a gap, so that twice as many find room, unless their
/// data looks like nothing but headers.
pub const MAX_EARLY_BYTES: usize = 2 << 20;
/// What a message takes beside what is kept of its payload: its place in the map included.
const ENTRY: usize = 96;
/// At either end of a payload, bytes that may be a part of a header.
const EDGE: usize = HEADER - 1;

/// A message, as far as it matters to one who follows frames.
#[derive(Debug)]
pub enum Said<'a> {
    /// Bytes of the agent's frames. Those that can be no part of a header may be others than were sent.
    Frames(Cow<'a, [u8]>),
    /// The agent could not connect.
    Refusal,
    /// Anything else.
    Nothing,
}

impl<'a> Said<'a> {
    /// What a message says.
    pub fn by(view: &View<'a>) -> Self {
        match view.payload_type() {
            message::DATA => Self::Frames(view.payload().into()),
            message::FLAG if view.payload() == message::CONNECT_TO_PORT_ERROR => Self::Refusal,
            _ => Self::Nothing,
        }
    }
}

/// Messages by their numbers.
#[derive(Debug, Default)]
pub struct Early {
    messages: BTreeMap<i64, Kept>,
    bytes: usize,
}

impl Early {
    /// Keeps a message. Where there is no room for it, it is forgotten: the plugin has none either then, and does not
    /// acknowledge it, so that it comes again.
    pub fn keep(&mut self, view: &View<'_>, knows: impl Fn(u32) -> bool) {
        let number = view.number();
        if self.bytes + ENTRY > MAX_EARLY_BYTES || self.messages.contains_key(&number) {
            return;
        }
        let kept = Kept::new(Said::by(view), knows);
        if self.bytes + kept.cost() <= MAX_EARLY_BYTES {
            self.bytes += kept.cost();
            self.messages.insert(number, kept);
        }
    }

    /// Takes a message out.
    pub fn take(&mut self, number: i64) -> Option<Said<'static>> {
        let kept = self.messages.remove(&number)?;
        self.bytes -= kept.cost();
        Some(kept.said())
    }

    /// Whether this one is kept.
    pub fn has(&self, number: i64) -> bool {
        self.messages.contains_key(&number)
    }

    /// The highest number that is kept.
    pub fn last(&self) -> Option<i64> {
        self.messages.last_key_value().map(|(number, _)| *number)
    }

    /// Forgets all of them.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// What all of them take.
    #[cfg(any(test, fuzzing))]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// What is kept of a message.
#[derive(Debug)]
enum Kept {
    Whole(Box<[u8]>),
    Outline(Outline),
    Refusal,
    Nothing,
}

impl Kept {
    fn new(said: Said<'_>, knows: impl Fn(u32) -> bool) -> Self {
        match said {
            Said::Frames(payload) => match Outline::of(&payload, knows) {
                Some(outline) => Self::Outline(outline),
                None => Self::Whole(payload.into_owned().into()),
            },
            Said::Refusal => Self::Refusal,
            Said::Nothing => Self::Nothing,
        }
    }

    fn cost(&self) -> usize {
        ENTRY
            + match self {
                Self::Whole(payload) => payload.len(),
                Self::Outline(outline) => outline.headers.len() * size_of::<(u16, [u8; HEADER])>(),
                Self::Refusal | Self::Nothing => 0,
            }
    }

    fn said(self) -> Said<'static> {
        match self {
            Self::Whole(payload) => Said::Frames(Vec::from(payload).into()),
            Self::Outline(outline) => Said::Frames(outline.fill().into()),
            Self::Refusal => Said::Refusal,
            Self::Nothing => Said::Nothing,
        }
    }
}

/// A payload of which only possible headers are kept.
#[derive(Debug)]
struct Outline {
    length: u16,
    first: [u8; EDGE],
    last: [u8; EDGE],
    /// Where in the payload each begins.
    headers: Box<[(u16, [u8; HEADER])]>,
}

impl Outline {
    /// `None` where it would be no shorter than the payload.
    fn of(payload: &[u8], knows: impl Fn(u32) -> bool) -> Option<Self> {
        let length = u16::try_from(payload.len()).ok()?;
        let (first, last) = (*payload.first_chunk()?, *payload.last_chunk()?);
        let mut headers = Vec::new();
        for (at, window) in (0u16..).zip(payload.array_windows::<HEADER>()) {
            if looks_like_header(window, &knows) {
                headers.push((at, *window));
                if headers.len() * size_of::<(u16, [u8; HEADER])>() >= payload.len() {
                    return None;
                }
            }
        }
        Some(Self { length, first, last, headers: headers.into() })
    }

    /// Zeros, which are no header, and between them what is kept.
    fn fill(&self) -> Vec<u8> {
        let mut payload = vec![0; self.length.into()];
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(place) = payload.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        };
        put(0, &self.first);
        put(usize::from(self.length).saturating_sub(EDGE), &self.last);
        self.headers.iter().for_each(|(at, header)| put(usize::from(*at), header));
        payload
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::gateway::message::Header;
    use crate::gateway::mux::tests::frame;
    use crate::gateway::mux::{Follower, Piece};

    fn message(number: i64, payload: &[u8]) -> bytes::Bytes {
        Header { kind: b"output_stream_data", created: 1, number, flags: 0, payload_type: message::DATA }
            .with_payload(payload)
    }

    fn keep(early: &mut Early, number: i64, payload: &[u8]) {
        early.keep(&View::new(&message(number, payload)).unwrap(), knows);
    }

    fn knows(stream: u32) -> bool {
        stream % 2 == 1 && (3..9).contains(&stream)
    }

    proptest! {
        /// Whatever the data is like, what is kept of a message is followed as the message itself would be.
        #[test]
        fn an_outline_is_followed_like_the_message(
            frames in proptest::collection::vec(
                (1u8..4, 1u32..4, prop_oneof![
                    proptest::collection::vec(any::<u8>(), 0..3000),
                    proptest::collection::vec(0u8..4, 0..300),
                    // Frames in the data, as where one tunnel goes through another.
                    (0u32..9, 0usize..40).prop_map(|(stream, length)| frame(2, stream, &vec![1; length])),
                ]),
                0..12,
            ),
            sizes in proptest::collection::vec(1usize..1100, 1..50),
        ) {
            let bytes: Vec<u8> = frames
                .iter()
                .flat_map(|(command, stream, data)| match command {
                    3 => frame(3, 0, b""),
                    1 => frame(1, stream * 2 + 1, b""),
                    _ => frame(2, stream * 2 + 1, data),
                })
                .collect();
            let (mut early, mut rest) = (Early::default(), &bytes[..]);
            let (mut whole, mut outlined) = (Follower::default(), Follower::default());
            let (mut expected, mut found): (Vec<Piece>, Vec<Piece>) = Default::default();
            for (number, size) in (0..).zip(sizes.iter().cycle()) {
                if rest.is_empty() {
                    break;
                }
                let (chunk, tail) = rest.split_at((*size).min(rest.len()));
                rest = tail;
                whole.follow(chunk, |piece| expected.push(piece)).unwrap();
                keep(&mut early, number, chunk);
                let Some(Said::Frames(payload)) = early.take(number) else { panic!("it was not kept") };
                prop_assert_eq!(payload.len(), chunk.len());
                outlined.follow(&payload, |piece| found.push(piece)).unwrap();
            }
            prop_assert_eq!(found, expected);
            prop_assert_eq!(early.bytes(), 0);
        }
    }

    /// A transfer's messages, behind a gap as long as the plugin's own buffer.
    #[test]
    fn there_is_room_for_what_the_plugin_keeps() {
        let mut early = Early::default();
        let payload: Vec<u8> = (0..1024u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        (0..15_000).for_each(|number| keep(&mut early, number, &payload));
        assert_eq!((early.messages.len(), early.last()), (15_000, Some(14_999)));
        assert!(early.bytes() <= MAX_EARLY_BYTES);
    }

    #[test]
    fn what_finds_no_room_is_forgotten() {
        let mut early = Early::default();
        // Nothing but headers.
        let payload = frame(1, 3, b"").repeat(128);
        (0..4_000).for_each(|number| keep(&mut early, number, &payload));
        let kept = early.messages.len();
        assert!((1_500..4_000).contains(&kept) && early.bytes() <= MAX_EARLY_BYTES, "{kept}");
        assert!(early.has(0) && !early.has(3_999));
        assert!(early.take(0).is_some() && early.take(0).is_none());
        keep(&mut early, 3_999, &payload);
        assert!(early.has(3_999));
        early.clear();
        assert_eq!((early.bytes(), early.last()), (0, None));
    }
}
