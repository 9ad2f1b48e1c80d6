//! The stack: a guard below it and how much of it was used.

use crate::hardware;

const GUARD_BYTES: usize = 4096;
/// What is not used is filled with this.
const PAINT: u64 = 0xcafe_d00d_cafe_d00d;

/// How far the stack has grown.
#[derive(Clone, Copy, Debug)]
pub struct StackUse {
    /// The most that was in use since it was guarded, in bytes.
    pub used_bytes: usize,
    /// The most that may be in use, in bytes.
    pub total_bytes: usize,
}

/// Forbids all access to the lowest page of the stack, so that an overflow is an exception, and paints the rest of it. To be
/// called first.
pub fn guard_stack() {
    let (_, end) = hardware::stack_bounds();
    hardware::forbid_page(end);
    hardware::paint_stack(end + GUARD_BYTES, PAINT);
}

/// How far the stack has grown: what is still painted was not used.
#[must_use]
pub fn stack_use() -> StackUse {
    let (start, end) = hardware::stack_bounds();
    let end = end + GUARD_BYTES;
    StackUse { used_bytes: start - hardware::first_used_word(end, start, PAINT), total_bytes: start - end }
}
