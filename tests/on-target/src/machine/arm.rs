//! The board lm3s6965evb, a Cortex-M3.

use cortex_m as _;
use cortex_m_rt as _;

pub use twinblock_lm3s6965::stack::guard_stack;

/// Prints how far the stack has grown, for the documentation.
pub fn print_stack_use() {
    let stack = twinblock_lm3s6965::stack::stack_use();
    semihosting::println!("stack: {} of {} bytes", stack.used_bytes, stack.total_bytes);
}

/// Whether half of the stack was never used.
#[must_use]
pub fn is_stack_half_free() -> bool {
    let stack = twinblock_lm3s6965::stack::stack_use();
    stack.used_bytes < stack.total_bytes / 2
}

/// A fault that no handler took: most likely the stack has run into its guard.
#[cortex_m_rt::exception]
unsafe fn HardFault(frame: &cortex_m_rt::ExceptionFrame) -> ! {
    semihosting::println!("hard fault at {:#010x}; the stack may have overflowed", frame.pc());
    semihosting::process::exit(1)
}
