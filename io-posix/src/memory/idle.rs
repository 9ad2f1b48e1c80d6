//! Which buffers of the pool occupy memory without being used, and how that is given back.
//!
//! Free buffers are a stack, so that those at its bottom are the ones that a load has no need of: as many as were free at
//! the busiest moment of a period were not touched in all of it.

use std::ops::Range;

use super::{Class, HostPool, State};

/// How much is given back by one call: 8 MiB take the system less than a millisecond.
const BYTES_MAX: u64 = 8 << 20;

/// The use of the buffers of one size since the end of the last period.
#[derive(Debug)]
pub(super) struct Use {
    first: u16,
    /// By buffer: it was used since its memory was given back the last time.
    occupied: Box<[bool]>,
    occupied_count: usize,
    /// How many were free at the busiest moment.
    fewest_free: usize,
}

impl Use {
    pub(super) fn new(indexes: &Range<u16>) -> Self {
        let occupied = vec![false; indexes.len()].into_boxed_slice();
        Self { first: indexes.start, occupied, occupied_count: 0, fewest_free: indexes.len() }
    }

    /// A buffer is being used; so many are left.
    pub(super) fn note(&mut self, index: u16, free: usize) {
        self.fewest_free = self.fewest_free.min(free);
        if let Some(occupied @ false) = self.occupied.get_mut(usize::from(index - self.first)) {
            *occupied = true;
            self.occupied_count += 1;
        }
    }

    /// Whether the buffer occupied memory until now.
    fn forget(&mut self, index: u16) -> bool {
        match self.occupied.get_mut(usize::from(index - self.first)) {
            Some(occupied @ true) => {
                *occupied = false;
                self.occupied_count -= 1;
                true
            }
            _ => false,
        }
    }
}

impl Class {
    /// Ends a period: calls `discard` for each buffer that occupies memory and was free in all of it, up to so many bytes.
    fn rest(&mut self, bytes_max: u64, mut discard: impl FnMut(u16)) {
        let mut left = bytes_max / u64::from(self.length);
        // Reserved buffers have left the stack at start.
        for index in self.free.iter().take(self.used.fewest_free) {
            if left == 0 {
                break;
            }
            if self.used.forget(*index) {
                discard(*index);
                left -= 1;
            }
        }
        self.used.fewest_free = self.free.len();
    }
}

impl HostPool {
    /// Whether there are buffers that were used and not given back: then [`Self::rest`] has something to do, now or later.
    #[must_use]
    pub const fn is_occupied(&self) -> bool {
        self.small.used.occupied_count != 0 || self.large.used.occupied_count != 0
    }

    /// Gives memory back to the system: of buffers that nobody has used since the last call, 16 MiB at most. Call it once a
    /// second or so; then what a load needs stays, and what it does not need any more goes.
    pub fn rest(&mut self) {
        let Self { arena, small, large, .. } = self;
        for class in [small, large] {
            class.rest(BYTES_MAX, |index| arena.discard(index));
        }
    }

    /// Gives the memory of reserved buffers back to the system. Their machine must have nothing in them: no request in
    /// flight.
    pub fn rest_reserved(&mut self, buffers: Range<u16>) {
        for index in buffers {
            if self.states.get(usize::from(index)) == Some(&State::Reserved) {
                self.arena.discard(index);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use twinblock_core::{BufferIndex, Data, Memory, Pool};

    use crate::memory::{HostPool, PoolSizes, SMALL_BYTES};
    use crate::raw::Lend;

    fn pool() -> HostPool {
        HostPool::new(PoolSizes { small_count: 8, large_count: 4, large_bytes: 256 << 10 }).unwrap()
    }

    const fn whole(buffer: BufferIndex) -> Data {
        Data { buffer, offset: 0, length: SMALL_BYTES }
    }

    fn is_gone(pool: &HostPool, buffer: BufferIndex) -> bool {
        pool.shared(whole(buffer)).unwrap().iter().all(|byte| *byte == 0)
    }

    fn used(pool: &mut HostPool, count: usize) -> Vec<BufferIndex> {
        let buffers: Vec<_> = (0..count).map(|_| pool.acquire(SMALL_BYTES).unwrap()).collect();
        buffers.iter().for_each(|buffer| pool.bytes(whole(*buffer)).unwrap().fill(7));
        buffers.iter().rev().for_each(|buffer| pool.release(*buffer));
        buffers
    }

    #[test]
    fn what_was_not_used_in_a_period_is_given_back_at_its_end_and_nothing_else() {
        let mut pool = pool();
        assert!(!pool.is_occupied());
        let buffers = used(&mut pool, 6);
        pool.rest();
        assert!(buffers.iter().all(|buffer| !is_gone(&pool, *buffer)), "used in the period that has ended");
        // From now on two are enough.
        assert_eq!(used(&mut pool, 2), buffers[..2]);
        pool.rest();
        let gone: Vec<bool> = buffers.iter().map(|buffer| is_gone(&pool, *buffer)).collect();
        assert_eq!(gone, [false, false, true, true, true, true]);
        assert!(pool.is_occupied());
        pool.rest();
        assert!(buffers.iter().all(|buffer| is_gone(&pool, *buffer)));
        assert!(!pool.is_occupied());
    }

    #[test]
    fn a_buffer_in_use_or_with_a_helper_thread_keeps_its_content() {
        let mut pool = pool();
        let taken = pool.acquire(SMALL_BYTES).unwrap();
        let lent = pool.reserve(1).unwrap();
        pool.bytes(whole(taken)).unwrap().fill(7);
        pool.bytes(whole(BufferIndex(lent.start))).unwrap().fill(7);
        let lease = pool.lend(whole(BufferIndex(lent.start)), Lend::Reading).unwrap();
        for _ in 0..3 {
            pool.rest();
            pool.rest_reserved(lent.clone());
        }
        assert!(!is_gone(&pool, taken) && !is_gone(&pool, BufferIndex(lent.start)));
        pool.take_back(lease);
        pool.rest_reserved(lent.clone());
        assert!(
            is_gone(&pool, BufferIndex(lent.start)),
            "the machine's own buffers are given back when told so"
        );
    }

    #[test]
    fn no_call_gives_back_more_than_takes_a_moment() {
        let sizes = PoolSizes { small_count: 1024, large_count: 1, large_bytes: 256 << 10 };
        let mut pool = HostPool::new(sizes).unwrap();
        let buffers = used(&mut pool, 1024);
        pool.rest();
        pool.rest();
        assert_eq!(buffers.iter().filter(|buffer| is_gone(&pool, **buffer)).count(), 512);
    }
}
