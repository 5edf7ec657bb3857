//! What waits for one client, and a bound for what waits for all clients of a tunnel.
//!
//! A chunk lies on the heap, as it does for any client that is slower than its plugin for an instant. What comes beyond it
//! lies in segments of memory of their own, mapped when they are needed and unmapped when the client has taken what was in
//! them: so it goes back to the system, whatever else has been put on the heap meanwhile.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use memmap2::MmapMut;

/// Bytes taken from a socket at once.
pub(super) const CHUNK: usize = 16 * 1024;
/// Memory is mapped in pieces of this size.
const SEGMENT: usize = 64 * 1024;
/// For all clients of a tunnel together, beyond a chunk for each.
const TUNNEL: usize = 64 << 20;
/// Of all that a tunnel has, the part that is kept for clients that are slow for an instant: when less is free, those that
/// take nothing are in the way of others.
const RESERVE: usize = 8;

/// Memory that many buffers share.
#[derive(Debug)]
pub(super) struct Budget {
    used: AtomicUsize,
    limit: usize,
}

impl Default for Budget {
    /// A tunnel's.
    fn default() -> Self {
        Self { used: AtomicUsize::new(0), limit: TUNNEL }
    }
}

impl Budget {
    /// Bytes in use.
    pub(super) fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    /// Whether hardly any is left.
    pub(super) fn is_short(&self) -> bool {
        self.limit.saturating_sub(self.used()) < self.limit / RESERVE
    }

    fn take(&self, bytes: usize) -> bool {
        let more = |used: usize| used.checked_add(bytes).filter(|used| *used <= self.limit);
        self.used.try_update(Relaxed, Relaxed, more).is_ok()
    }
}

/// A piece of memory, given back when it is dropped.
struct Segment {
    memory: MmapMut,
    budget: Arc<Budget>,
}

impl Segment {
    /// `None` if the budget is used up.
    fn new(budget: &Arc<Budget>) -> Option<io::Result<Self>> {
        budget.take(SEGMENT).then(|| {
            let memory = MmapMut::map_anon(SEGMENT).inspect_err(|_| {
                budget.used.fetch_sub(SEGMENT, Relaxed);
            })?;
            Ok(Self { memory, budget: Arc::clone(budget) })
        })
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(SEGMENT, Relaxed);
    }
}

/// Bytes that wait for a client, in their order. An empty one has no memory.
pub(super) struct Buffer {
    budget: Arc<Budget>,
    /// The oldest bytes, and how many of them have been taken.
    first: Vec<u8>,
    first_taken: usize,
    /// Those after them. All segments but the last are full.
    segments: VecDeque<Segment>,
    /// Bytes of the first segment that have been taken, and of the last one that have been written.
    taken: usize,
    written: usize,
    /// A segment that was emptied: as long as something waits, more is likely to come.
    spare: Option<Segment>,
    len: usize,
}

impl Buffer {
    pub(super) fn new(budget: &Arc<Budget>) -> Self {
        Self {
            budget: Arc::clone(budget),
            first: Vec::new(),
            first_taken: 0,
            segments: VecDeque::new(),
            taken: 0,
            written: 0,
            spare: None,
            len: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The oldest bytes, as many as lie together.
    pub(super) fn rest(&self) -> Option<&[u8]> {
        if self.is_empty() {
            return None;
        }
        if !self.first.is_empty() {
            return self.first.get(self.first_taken..);
        }
        self.segments.front()?.memory.get(self.taken..self.first_end())
    }

    /// How many bytes may be added now, at most a chunk, where `limit` may wait in all. There is always room for a chunk
    /// where nothing waits.
    pub(super) fn room(&mut self, limit: usize) -> usize {
        if self.is_empty() {
            return CHUNK;
        }
        if self.len + CHUNK > limit {
            return 0;
        }
        if self.segments.is_empty() || self.written == SEGMENT {
            let segment = self.spare.take().map(Ok).or_else(|| Segment::new(&self.budget));
            let segment = match segment {
                Some(Ok(segment)) => segment,
                Some(Err(error)) => {
                    tracing::debug!(%error, "no memory for a client that does not read");
                    return 0;
                }
                None => return 0,
            };
            self.segments.push_back(segment);
            self.written = 0;
        }
        CHUNK.min(SEGMENT - self.written)
    }

    /// Adds bytes, no more than there is [room](Self::room) for.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if self.is_empty() {
            self.first.extend_from_slice(bytes);
        } else if let Some(last) = self.segments.back_mut()
            && let Some(place) = last.memory.get_mut(self.written..self.written + bytes.len())
        {
            place.copy_from_slice(bytes);
            self.written += bytes.len();
        } else {
            debug_assert!(bytes.is_empty(), "more was added than there was room for");
            return;
        }
        self.len += bytes.len();
    }

    /// The client has taken the oldest `bytes`, no more than [`Self::rest`] had.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.len = self.len.saturating_sub(bytes);
        if self.is_empty() {
            *self = Self::new(&self.budget);
        } else if !self.first.is_empty() {
            self.first_taken += bytes;
            if self.first_taken >= self.first.len() {
                self.first = Vec::new();
                self.first_taken = 0;
            }
        } else {
            self.taken += bytes;
            if self.taken >= self.first_end() {
                self.spare = self.segments.pop_front();
                self.taken = 0;
            }
        }
    }

    /// Where the bytes of the first segment end.
    fn first_end(&self) -> usize {
        if self.segments.len() == 1 { self.written } else { SEGMENT }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn budget(limit: usize) -> Arc<Budget> {
        Arc::new(Budget { limit, ..Budget::default() })
    }

    proptest! {
        /// Whatever comes and goes in whatever pieces, the bytes are the same, and the bounds hold.
        #[test]
        fn a_buffer_is_a_queue(
            steps in proptest::collection::vec((0usize..=CHUNK, 0usize..40_000), 1..200),
            limit in 2 * CHUNK..20 * SEGMENT,
            segments in 0usize..20,
        ) {
            let budget = budget(segments * SEGMENT);
            let mut buffer = Buffer::new(&budget);
            let (mut model, mut next) = (VecDeque::new(), 0_u32);
            for (push, take) in steps {
                let room = buffer.room(limit);
                prop_assert!(room <= CHUNK && (room == CHUNK || !model.is_empty()));
                let bytes: Vec<u8> = (0..push.min(room)).map(|_| { next = next.wrapping_mul(31).wrapping_add(7); (next >> 9) as u8 }).collect();
                buffer.push(&bytes);
                model.extend(bytes);
                prop_assert_eq!(buffer.len(), model.len());
                prop_assert!(buffer.len() <= limit && budget.used() <= budget.limit);
                let mut take = take;
                while let Some(rest) = buffer.rest().filter(|_| take > 0) {
                    let taken: Vec<u8> = rest.iter().copied().take(take).collect();
                    prop_assert!(!taken.is_empty());
                    prop_assert!(taken.iter().eq(model.drain(..taken.len()).collect::<Vec<_>>().iter()));
                    buffer.advance(taken.len());
                    take -= taken.len();
                }
                prop_assert_eq!(buffer.is_empty(), model.is_empty());
                prop_assert!(!model.is_empty() || budget.used() == 0, "an empty buffer has memory");
            }
            drop(buffer);
            prop_assert_eq!(budget.used(), 0);
        }
    }

    #[test]
    fn one_takes_its_limit_and_all_take_the_budget() {
        let budget = budget(4 * SEGMENT);
        let fill = |buffer: &mut Buffer| {
            while let room @ 1.. = buffer.room(3 * SEGMENT) {
                buffer.push(&vec![1; room]);
            }
            buffer.len()
        };
        let (mut one, mut another) = (Buffer::new(&budget), Buffer::new(&budget));
        assert_eq!(fill(&mut one), 3 * SEGMENT);
        assert_eq!(fill(&mut another), CHUNK + SEGMENT, "a chunk of its own, and what is left");
        assert_eq!(budget.used(), 4 * SEGMENT);
        drop(one);
        assert_eq!(fill(&mut another), 3 * SEGMENT);
    }
}
