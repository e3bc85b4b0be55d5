//! The memory the kernel may touch: buffers to receive into, and an arena to send from.
//!
//! Owns: every byte a receive writes and a non-waiting send reads.
//! Invariants: a receive buffer is lent to the kernel or readable by the user, never both. Bytes of the arena
//! stay where they are from [`SendArena::commit`] until the [`SendArena::release`] after the enter that
//! submitted them.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::VecDeque;
use std::ptr::NonNull;

/// Names a receive buffer that holds received bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferId(pub(crate) u16);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    /// Lent to the kernel.
    InFlight,
    /// Holds this many received bytes.
    Filled(u32),
}

/// A pool of equal buffers that receives may use.
///
/// Sized for the connections active in one turn of the loop, not for all: running out is a state, in
/// which receives wait for a buffer ([`Group`](crate::Group) keeps them in order).
#[derive(Debug)]
pub struct RecvBuffers {
    memory: NonNull<u8>,
    layout: Layout,
    /// Distance between buffers. Not a multiple of the page, or all their first lines, the ones small messages
    /// use, would compete for the same cache sets.
    stride: usize,
    size: usize,
    states: Vec<State>,
    /// Last in, first out, so that the buffers in use are those still in cache.
    free: Vec<u16>,
}

impl RecvBuffers {
    const STAGGER: usize = 256;

    /// `count` buffers of `size_bytes` each. Memory is touched only as buffers are used.
    pub fn new(count: u16, size_bytes: usize) -> RecvBuffers {
        let stride = size_bytes + Self::STAGGER;
        let bytes = (stride * usize::from(count)).max(1);
        // With a larger alignment than the allocator's own, it would zero the memory by hand, and so touch all of it.
        let layout =
            Layout::from_size_align(bytes, 16).unwrap_or_else(|_| Layout::new::<[u8; 16]>());
        assert!(
            layout.size() >= bytes,
            "receive buffers larger than the address space"
        );
        // SAFETY: the layout's size is not zero.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout) })
            .unwrap_or_else(|| handle_alloc_error(layout));
        RecvBuffers {
            memory,
            layout,
            stride,
            size: size_bytes,
            states: vec![State::Free; usize::from(count)],
            free: (0..count).rev().collect(),
        }
    }

    /// Size of one buffer in bytes. A receive that fills it may have left more in the socket.
    pub fn size_bytes(&self) -> usize {
        self.size
    }

    /// The bytes received into `id`.
    ///
    /// # Panics
    /// When `id` holds none: it was recycled.
    pub fn bytes(&self, id: BufferId) -> &[u8] {
        let State::Filled(len) = self.states[usize::from(id.0)] else {
            panic!("receive buffer {} is not filled", id.0)
        };
        // SAFETY: a filled buffer is not lent to the kernel, lies within `memory`, was zeroed at allocation, and
        // becomes lendable only through `recycle(&mut self)`, which this borrow excludes.
        unsafe { std::slice::from_raw_parts(self.address(id.0), len as usize) }
    }

    /// Gives a filled buffer back.
    pub fn recycle(&mut self, id: BufferId) {
        let state = &mut self.states[usize::from(id.0)];
        assert!(
            matches!(state, State::Filled(_)),
            "receive buffer {} recycled twice",
            id.0
        );
        *state = State::Free;
        self.free.push(id.0);
    }

    /// Receives the first of `bytes` (at least one) that fit, as a kernel would: for a scripted ring. None when no buffer
    /// is free.
    pub fn fill(&mut self, bytes: &[u8]) -> Option<BufferId> {
        let (index, address, size) = self.lend()?;
        let len = bytes.len().min(size);
        // SAFETY: the buffer is lent, so that nobody else touches its `size` bytes, and `bytes` cannot lie within it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address, len) };
        self.returned(index, len as i32)
    }

    pub(crate) fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    /// Lends a buffer to the kernel: its index, address and size.
    pub(crate) fn lend(&mut self) -> Option<(u16, *mut u8, usize)> {
        let index = self.free.pop()?;
        self.states[usize::from(index)] = State::InFlight;
        Some((index, self.address(index), self.size))
    }

    /// The kernel is done with buffer `index`. None where nothing was received: the buffer is free again.
    pub(crate) fn returned(&mut self, index: u16, result: i32) -> Option<BufferId> {
        let state = &mut self.states[usize::from(index)];
        assert_eq!(
            *state,
            State::InFlight,
            "receive buffer {index} was not lent"
        );
        if result > 0 {
            *state = State::Filled((result as u32).min(self.size as u32));
            return Some(BufferId(index));
        }
        *state = State::Free;
        self.free.push(index);
        None
    }

    /// True while the kernel may write into some buffer.
    pub(crate) fn any_in_flight(&self) -> bool {
        self.states.contains(&State::InFlight)
    }

    fn address(&self, index: u16) -> *mut u8 {
        // SAFETY: `index` is below the count of buffers, so the result lies within the allocation.
        unsafe { self.memory.as_ptr().add(usize::from(index) * self.stride) }
    }
}

impl Drop for RecvBuffers {
    fn drop(&mut self) {
        // A buffer still lent belongs to the kernel: it is left behind rather than freed under a write.
        if !self.any_in_flight() {
            // SAFETY: allocated with this layout in `new`, and nobody holds an address into it.
            unsafe { dealloc(self.memory.as_ptr(), self.layout) }
        }
    }
}

/// Names bytes committed to a [`SendArena`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(u32);

#[derive(Clone, Copy, Debug)]
struct Place {
    chunk: u32,
    offset: u32,
    len: u32,
}

/// Where output is written and sent from without a copy between.
///
/// Sends that never wait are finished when the enter that submitted them returns, so their bytes live in
/// a few chunks that are used again turn after turn and stay in cache. A turn is: commit spans, submit,
/// `retire`; consume every completion, reading the spans of sends that were cut short; `release`.
#[derive(Debug, Default)]
pub struct SendArena {
    /// Never shrinks, and a chunk never moves or grows: only this table of them does.
    chunks: Vec<Box<[u8]>>,
    /// Chunks with nothing in them.
    free: Vec<u32>,
    /// Chunks written since the last `retire`, the last of them being filled.
    filling: Vec<u32>,
    /// Bytes used of the last of `filling`.
    filled: usize,
    /// Chunks of spans submitted and not yet released.
    submitted: Vec<u32>,
    /// Live spans; the first has number `first`.
    spans: VecDeque<Place>,
    first: u32,
    /// Spans before this number are submitted.
    boundary: u32,
}

impl SendArena {
    /// The most one span can hold, and what [`SendArena::reserve`] always gives.
    pub const SPAN_BYTES: usize = 64 * 1024;
    const CHUNK_BYTES: usize = 4 * Self::SPAN_BYTES;

    /// An empty arena.
    pub fn new() -> SendArena {
        SendArena::default()
    }

    /// [`Self::SPAN_BYTES`] bytes to write the next span into.
    pub fn reserve(&mut self) -> &mut [u8] {
        if self.filling.is_empty() || Self::CHUNK_BYTES - self.filled < Self::SPAN_BYTES {
            let chunk = self.free.pop().unwrap_or_else(|| {
                self.chunks
                    .push(vec![0; Self::CHUNK_BYTES].into_boxed_slice());
                self.chunks.len() as u32 - 1
            });
            self.filling.push(chunk);
            self.filled = 0;
        }
        let chunk = self.filling[self.filling.len() - 1];
        &mut self.chunks[chunk as usize][self.filled..self.filled + Self::SPAN_BYTES]
    }

    /// The first `len` bytes of what `reserve` last gave are a span now.
    pub fn commit(&mut self, len: usize) -> Span {
        assert!(
            len <= Self::SPAN_BYTES && !self.filling.is_empty(),
            "commit without reserve"
        );
        let number = self.first.wrapping_add(self.spans.len() as u32);
        self.spans.push_back(Place {
            chunk: self.filling[self.filling.len() - 1],
            offset: self.filled as u32,
            len: len as u32,
        });
        self.filled += len;
        Span(number)
    }

    /// The bytes of a live span.
    ///
    /// # Panics
    /// When the span was released.
    pub fn bytes(&self, span: Span) -> &[u8] {
        let place = self.spans[span.0.wrapping_sub(self.first) as usize];
        let start = place.offset as usize;
        &self.chunks[place.chunk as usize][start..start + place.len as usize]
    }

    /// All spans committed so far have been submitted. Said by the [`Group`](crate::Group), or by a scripted ring.
    pub fn retire(&mut self) {
        self.boundary = self.first.wrapping_add(self.spans.len() as u32);
        self.submitted.append(&mut self.filling);
    }

    /// All completions of what was submitted have been consumed: those spans are gone. Said by the
    /// [`Group`](crate::Group), or by a scripted ring.
    pub fn release(&mut self) {
        let gone = self.boundary.wrapping_sub(self.first) as usize;
        self.spans.drain(..gone);
        self.first = self.boundary;
        self.free.append(&mut self.submitted);
    }

    /// The span's number within a token's aux bits.
    pub(crate) fn aux(span: Span) -> u32 {
        span.0 & crate::token::Token::AUX_MASK
    }

    /// The live span whose aux bits are `aux`.
    pub(crate) fn by_aux(&self, aux: u32) -> Option<Span> {
        let distance = aux.wrapping_sub(self.first) & crate::token::Token::AUX_MASK;
        ((distance as usize) < self.spans.len()).then(|| Span(self.first.wrapping_add(distance)))
    }
}

impl Drop for SendArena {
    fn drop(&mut self) {
        // Spans that live may be queued or with the kernel: their memory is left behind rather than freed under a read.
        if !self.spans.is_empty() {
            std::mem::forget(std::mem::take(&mut self.chunks));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_buffer_is_lent_filled_and_free_in_turn() {
        let mut buffers = RecvBuffers::new(2, 64);
        let id = buffers.fill(b"hello").expect("a free buffer");
        let (_, _, size) = buffers.lend().expect("a free buffer");
        assert_eq!(size, 64);
        assert!(buffers.lend().is_none() && buffers.any_in_flight());
        assert_eq!(buffers.bytes(id), b"hello");
        assert!(!buffers.has_free());
        buffers.recycle(id);
        assert!(buffers.has_free());
    }

    proptest! {
        /// Spans keep their bytes while unsubmitted or unreleased, whatever the turns look like.
        #[test]
        fn spans_stay_until_released(turns in proptest::collection::vec((proptest::collection::vec((any::<u8>(), 0usize..3000), 0..200), any::<bool>()), 0..30)) {
            let mut arena = SendArena::new();
            (arena.first, arena.boundary) = (u32::MAX - 100, u32::MAX - 100);
            let mut live: Vec<(Span, u8, usize)> = Vec::new();
            for (spans, settle) in turns {
                let submitted = live.len();
                arena.retire();
                for (byte, len) in spans {
                    arena.reserve()[..len].fill(byte);
                    live.push((arena.commit(len), byte, len));
                }
                if settle {
                    arena.release();
                    live.drain(..submitted);
                }
                for (span, byte, len) in &live {
                    prop_assert_eq!(arena.bytes(*span), vec![*byte; *len]);
                    prop_assert_eq!(arena.by_aux(SendArena::aux(*span)), Some(*span));
                }
            }
        }
    }
}
