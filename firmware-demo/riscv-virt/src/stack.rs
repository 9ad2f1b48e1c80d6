//! The stack: a guard below it and how much of it was used.

pub use twinblock_boards::stack::StackUse;

use crate::hardware;

const GUARD_BYTES: usize = 4096;
/// What is not used is filled with this.
const PAINT: u32 = 0xcafe_d00d;

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
    hardware::painted_stack(start, end, PAINT)
}
