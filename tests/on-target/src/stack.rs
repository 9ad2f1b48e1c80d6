//! The stack: a guard below it and how much of it was used. The only module here with `unsafe`.

use core::ptr::{addr_of, read_volatile};

/// A region of the memory protection unit can be no smaller than this here, and the guard is one region.
const GUARD_BYTES: u32 = 1024;

unsafe extern "C" {
    static _stack_start: u32;
    static _stack_end: u32;
}

/// How far the stack has grown.
#[derive(Clone, Copy, Debug)]
pub struct StackUse {
    /// The most that was in use since the reset, in bytes.
    pub used_bytes: usize,
    /// The most that may be in use, in bytes.
    pub total_bytes: usize,
}

/// Forbids all access to the lowest 1 KiB of the stack, so that an overflow becomes a fault; the board by itself
/// notices nothing.
pub fn guard_stack() {
    // Registers of the ARMv7-M memory protection unit (ARMv7-M Architecture Reference Manual, B3.5).
    const REGION_ENABLE: u32 = 1;
    const SIZE_FIELD: u32 = (GUARD_BYTES.trailing_zeros() - 1) << 1;
    const EXECUTE_NEVER: u32 = 1 << 28;
    const CONTROL_ENABLE: u32 = 1;
    const CONTROL_DEFAULT_MAP: u32 = 1 << 2;
    let base = addr_of!(_stack_end) as u32;
    // SAFETY: the unit is used by nobody else; a region without access at the end of the stack can only turn an access
    // that would be a bug into a fault. `base` is a multiple of the region's size (memory.x).
    unsafe {
        let unit = &*cortex_m::peripheral::MPU::PTR;
        unit.rnr.write(0);
        unit.rbar.write(base);
        unit.rasr.write(EXECUTE_NEVER | SIZE_FIELD | REGION_ENABLE);
        unit.ctrl.write(CONTROL_DEFAULT_MAP | CONTROL_ENABLE);
    }
    cortex_m::asm::dsb();
    cortex_m::asm::isb();
}

/// How far the stack has grown since the reset: the start-up code paints it, and what is still painted was not used.
#[must_use]
pub fn stack_use() -> StackUse {
    let start = addr_of!(_stack_start);
    let mut end = addr_of!(_stack_end).wrapping_byte_add(GUARD_BYTES as usize);
    let total_bytes = start as usize - end as usize;
    // SAFETY: all words from the guard up to the start of the stack are RAM (memory.x) and aligned.
    while end < start && unsafe { read_volatile(end) } == cortex_m_rt::STACK_PAINT_VALUE {
        end = end.wrapping_add(1);
    }
    StackUse { used_bytes: start as usize - end as usize, total_bytes }
}
