//! The stack: a guard below it and how much of it was used.
//!
//! The program's `memory.x` says where it lies, by `_stack_start` (the first address above it) and `_stack_end` (a multiple
//! of 1 KiB), and it must lie below everything else: by itself the board does not notice an overflow.

pub use twinblock_boards::stack::StackUse;

use crate::hardware;

/// A region of the memory protection unit can be no smaller than this here, and the guard is one region.
const GUARD_BYTES_LOG2: u32 = 10;

/// Forbids all access to the lowest 1 KiB of the stack, so that an overflow becomes a fault.
pub fn guard_stack() {
    let (_, end) = hardware::stack_bounds();
    hardware::forbid(end, GUARD_BYTES_LOG2);
}

/// How far the stack has grown since the reset: the start-up code paints it, and what is still painted was not used.
#[must_use]
pub fn stack_use() -> StackUse {
    let (start, end) = hardware::stack_bounds();
    let end = end + (1 << GUARD_BYTES_LOG2);
    hardware::painted_stack(start, end)
}
