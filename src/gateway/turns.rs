//! PURE. Keeps the plugin from ever having a single byte left over, where its change of a lone line feed cannot be
//! undone: in encrypted sessions.
//!
//! The plugin turns what it reads from a connection into a mux frame, 8 bytes of header and the data, and writes the
//! frame into a pipe as a whole. It empties the pipe in reads of up to 1024 bytes, and a read that brings one byte, a
//! line feed, is changed. So the proxy's connections write in rounds, one or a few of them, each once, and the next round
//! begins when all frames of the one before were seen to leave. Payloads cannot be read here, but their lengths can.
//!
//! Beside those frames there are others in the pipe that nobody here can count: a connection's begin and end, 8 bytes
//! each. The lengths of writes are chosen so that they change nothing:
//!
//! - *A multiple of 8 is made shorter*, so that by the number of bytes modulo 8 the leaving of a frame with data can be
//!   told from that of others. Frames that make a multiple of 8 together go into one round only if they are long.
//! - *Alone in a round*, one more than a multiple of 8 is made shorter too: reads of full 1024 bytes cannot leave exactly
//!   one byte of it then, with however many other frames. (For a single byte that cannot be had: it would need 127 other
//!   frames in the pipe before its own.) It is short where others wait.
//! - *Several in a round* have at most 896 bytes together: one read holds them and 16 other frames.
//!
//! What this leaves is a client's line feed among 16 connections and more that are begun or ended within a
//! millisecond, and a length that fits. A message of one byte can be seen when it comes all the same, and is told.

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

/// Mux frames without data have this length; that of a frame with data is as much more than the data's.
const HEADER: usize = 8;
/// The longest write, where nobody else waits: four messages, that each write's way through the plugin counts for less.
/// On loopback the plugin takes it up in one piece.
const LONGEST: usize = 4 * 1024 - HEADER - 1;
/// The longest write where somebody waits: one message.
const SHORT: usize = 1024 - HEADER - 1;
/// The frames of several connections in one round, all together.
const SHARED: usize = 1024 - OTHERS;
/// Other frames that a round of several connections is proof against, in bytes.
const OTHERS: usize = 16 * HEADER;
/// What nobody has seen leaving is forgotten after so many seconds in which the plugin was heard: the stream has ended,
/// and the plugin has thrown it away.
const FORGOTTEN: u32 = 3;

/// Whose turn it is to write to the plugin.
#[derive(Debug, Default)]
pub struct Turns {
    round: Round,
    /// In the order in which they came, each stream once.
    waiting: VecDeque<(u32, Waker)>,
}

/// What was written and has not all been seen to leave.
#[derive(Debug, Default)]
struct Round {
    /// Each stream with the bytes of its frame.
    frames: Vec<(u32, usize)>,
    /// Of all of these.
    bytes: usize,
    /// The least bytes of any of these together that are so many modulo 8.
    least: [Option<usize>; HEADER],
    /// Bytes that have left since the round began.
    left: usize,
    seconds: u32,
}

impl Turns {
    /// Asks for a turn to write the first of `bytes` bytes (at least one). Returns how many of them, all in one write;
    /// or the task is woken when it is worth asking again.
    pub fn poll(&mut self, cx: &Context<'_>, stream: u32, bytes: usize) -> Poll<usize> {
        let waited_for = self.waiting.iter().any(|(waiting, _)| *waiting != stream);
        let portion = portion(bytes, if waited_for { SHORT } else { LONGEST });
        let first = self.waiting.front().is_none_or(|(first, _)| *first == stream);
        if first && self.round.add(stream, HEADER + portion) {
            self.waiting.pop_front();
            self.wake();
            return Poll::Ready(portion);
        }
        match self.waiting.iter_mut().find(|(waiting, _)| *waiting == stream) {
            Some((_, waker)) => waker.clone_from(cx.waker()),
            None => self.waiting.push_back((stream, cx.waker().clone())),
        }
        Poll::Pending
    }

    /// The plugin has sent a message with so many bytes of its pipe.
    pub fn left(&mut self, bytes: usize) {
        self.round.left += bytes;
        if self.round.is_over() {
            self.begin();
        }
    }

    /// The stream wants to write no more. `lost`: what it has written last will never leave.
    pub fn leave(&mut self, stream: u32, lost: bool) {
        self.waiting.retain(|(waiting, _)| *waiting != stream);
        if lost && let Some(at) = self.round.frames.iter().position(|(writer, _)| *writer == stream) {
            self.round.bytes -= self.round.frames.swap_remove(at).1;
        }
        if self.round.is_over() {
            self.begin();
        }
        // It may have been the first of those that wait.
        self.wake();
    }

    /// Another second has passed in which the plugin was read and heard.
    pub fn tick(&mut self) {
        self.round.seconds += 1;
        if self.round.seconds >= FORGOTTEN {
            self.begin();
        }
    }

    /// The bytes of a stream that the plugin holds.
    pub fn held(&self, stream: u32) -> usize {
        let frame = self.round.frames.iter().find(|(writer, _)| *writer == stream);
        frame.map_or(0, |(_, bytes)| bytes - HEADER)
    }

    fn begin(&mut self) {
        self.round = Round::default();
        self.wake();
    }

    fn wake(&self) {
        if let Some((_, first)) = self.waiting.front() {
            first.wake_by_ref();
        }
    }
}

impl Round {
    /// Whether another frame may be written now; then it counts as written.
    fn add(&mut self, stream: u32, frame: usize) -> bool {
        if self.frames.iter().any(|(writer, _)| *writer == stream) {
            return false;
        }
        if self.frames.is_empty() {
            *self = Self::default();
        }
        let mut least = self.least;
        for together in self.least.iter().flatten().map(|bytes| bytes + frame).chain([frame]) {
            if let Some(least) = least.get_mut(together % HEADER) {
                *least = Some(least.map_or(together, |bytes| bytes.min(together)));
            }
        }
        let confused = least.first().copied().flatten().is_some_and(|bytes| bytes < OTHERS);
        if !self.frames.is_empty() && (confused || self.bytes + frame > SHARED) {
            return false;
        }
        self.frames.push((stream, frame));
        self.bytes += frame;
        self.least = least;
        true
    }

    fn is_over(&self) -> bool {
        self.left >= self.bytes && (self.left - self.bytes).is_multiple_of(HEADER)
    }
}

/// How many of so many bytes go in one write of at most `longest`, which is one less than a multiple of 8.
fn portion(bytes: usize, longest: usize) -> usize {
    let portion = match bytes.min(longest) {
        1 => 1,
        portion if portion % HEADER < 2 => portion - 2,
        portion => portion,
    };
    // No single byte for the next time.
    if bytes - portion == 1 { portion - 1 } else { portion }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn portions_are_of_the_right_lengths() {
        let lengths = [1, 2, 7, 8, 9, 10, 16, 17, 1014, 1015, 1016, 1017, 1018, 16_384];
        let portions = lengths.map(|bytes| portion(bytes, SHORT));
        assert_eq!(portions, [1, 2, 7, 6, 7, 10, 14, 15, 1014, 1015, 1014, 1015, 1015, 1015]);
        for bytes in 2..5000 {
            for longest in [SHORT, LONGEST] {
                let portion = portion(bytes, longest);
                assert!(portion <= bytes.min(longest) && bytes - portion != 1, "{bytes}: {portion}");
                assert!(portion % 8 > 1, "{bytes}: {portion}");
            }
        }
    }

    #[test]
    fn turns_are_taken_in_order() {
        let mut turns = Turns::default();
        let (first, second) = (Arc::new(Woken::default()), Arc::new(Woken::default()));
        let (one, two) = (Waker::from(first.clone()), Waker::from(second.clone()));
        let (one, two) = (Context::from_waker(&one), Context::from_waker(&two));
        assert_eq!(turns.poll(&one, 3, 5), Poll::Ready(5));
        assert_eq!(turns.held(3), 5);
        assert!(turns.poll(&two, 5, 1000).is_pending() && turns.poll(&one, 3, 5).is_pending());
        turns.left(16);
        assert!(turns.poll(&two, 5, 1000).is_pending(), "two connections were begun or ended, no more");
        let woken = second.0.load(Ordering::Relaxed);
        turns.left(8 + 5);
        assert_eq!((first.0.load(Ordering::Relaxed), second.0.load(Ordering::Relaxed)), (0, woken + 1));
        assert!(turns.poll(&one, 3, 5).is_pending(), "it came after the other one");
        assert_eq!(turns.poll(&two, 5, 1000), Poll::Ready(998));
        turns.left(8 + 998);
        assert_eq!(turns.poll(&one, 3, 5), Poll::Ready(5));
    }

    #[test]
    fn short_writes_share_a_round() {
        let mut turns = Turns::default();
        let cx = Context::from_waker(Waker::noop());
        let poll = |turns: &mut Turns, stream, bytes| turns.poll(&cx, stream, bytes).is_ready();
        assert!((0..8).all(|stream| poll(&mut turns, stream, 100)));
        assert!(!poll(&mut turns, 8, 100), "864 bytes are in the pipe");
        // A short one behind it waits its turn all the same.
        assert!(!poll(&mut turns, 9, 2));
        turns.left(4 * 108);
        assert!(!poll(&mut turns, 8, 100), "half of them are still there");
        turns.left(4 * 108);
        assert!(poll(&mut turns, 8, 100) && poll(&mut turns, 9, 2));

        // Three connections that are begun or ended look like two frames of 12 bytes.
        let mut turns = Turns::default();
        assert!(poll(&mut turns, 3, 4) && !poll(&mut turns, 5, 4));
        turns.left(12);
        assert!(poll(&mut turns, 5, 4));
    }

    #[test]
    fn a_stream_that_ends_stops_nobody() {
        let mut turns = Turns::default();
        let cx = Context::from_waker(Waker::noop());
        // The frame of one that has ended may still be on its way.
        assert!(turns.poll(&cx, 3, 900).is_ready() && turns.poll(&cx, 5, 900).is_pending());
        turns.leave(3, false);
        assert!(turns.poll(&cx, 5, 900).is_pending());
        turns.leave(3, true);
        assert!(turns.poll(&cx, 5, 900).is_ready());
        // One that waits at the head of the queue.
        assert!(turns.poll(&cx, 7, 900).is_pending() && turns.poll(&cx, 9, 900).is_pending());
        turns.left(908);
        turns.leave(7, false);
        assert!(turns.poll(&cx, 9, 900).is_ready());
        // And nobody knows what has become of it.
        assert!(turns.poll(&cx, 11, 900).is_pending());
        (0..FORGOTTEN).for_each(|_| turns.tick());
        assert!(turns.poll(&cx, 11, 900).is_ready());
    }

    proptest! {
        /// Whatever clients write, while up to 15 connections begin and end in a round, and 126 where only one client
        /// writes: every byte leaves, in order, and no read brings a single one. The plugin reads when it likes.
        #[test]
        fn no_read_brings_a_single_byte(
            writes in proptest::collection::vec((0usize..20, prop_oneof![1usize..20, 90usize..130, 1000usize..1040, 1usize..4000]), 1..60),
            clients in prop_oneof![Just(1), 2usize..20],
            others in proptest::collection::vec(0usize..20, 1..60),
            reads in proptest::collection::vec(0usize..4, 1..60),
        ) {
            let (mut turns, mut pipe) = (Turns::default(), VecDeque::new());
            let cx = Context::from_waker(Waker::noop());
            let mut queues: Vec<usize> = vec![0; clients];
            for (stream, bytes) in writes {
                queues[stream % clients] += bytes;
            }
            let total: usize = queues.iter().sum();
            let (mut others, mut reads) = (others.into_iter().cycle(), reads.into_iter().chain([1]).cycle());
            let most = if clients == 1 { 126 } else { 15 };
            let (mut sent, mut read, mut in_round) = (0, 0, 0);
            for turn in 0.. {
                prop_assert!(turn < 100_000, "it does not end");
                let others = others.next().unwrap().min(most - in_round);
                in_round += others;
                pipe.extend(std::iter::repeat_n(0, others * HEADER));
                for (stream, left) in queues.iter_mut().enumerate().filter(|(_, left)| **left > 0) {
                    if let Poll::Ready(bytes) = turns.poll(&cx, stream as u32, *left) {
                        *left -= bytes;
                        sent += bytes;
                        pipe.extend([0; HEADER]);
                        pipe.extend(std::iter::repeat_n(b'\n', bytes));
                    }
                }
                for _ in 0..reads.next().unwrap() {
                    let message: Vec<u8> = pipe.drain(..pipe.len().min(1024)).collect();
                    prop_assert!(message != b"\n", "a single line feed");
                    read += message.iter().filter(|byte| **byte == b'\n').count();
                    turns.left(message.len());
                }
                if pipe.is_empty() {
                    in_round = 0;
                    if sent == total {
                        break;
                    }
                }
            }
            prop_assert_eq!(read, total);
        }
    }
}
