//! How much of a stack was used. The only module here with `unsafe`.
//!
//! What is free of a stack is filled with a number at the start, and what holds it still was not used.

use core::ptr::read_volatile;

/// How far the stack has grown.
#[derive(Clone, Copy, Debug)]
pub struct StackUse {
    /// The most that was in use since the stack was painted, in bytes.
    pub used_bytes: usize,
    /// The most that may be in use, in bytes.
    pub total_bytes: usize,
}

impl StackUse {
    /// That of a stack that grows down from `start` to `end`, multiples of 4, and was filled with words of `paint`.
    ///
    /// # Safety
    /// All words from `end` up to `start` can be read.
    #[must_use]
    pub unsafe fn of_painted(start: usize, end: usize, paint: u32) -> Self {
        let mut at = end;
        // SAFETY: the caller promises that it can be read.
        while at < start && unsafe { read_volatile(at as *const u32) } == paint {
            at += 4;
        }
        Self { used_bytes: start - at, total_bytes: start - end }
    }
}
