//! What the test programs share: a disk in RAM, a secondary over such disks, and the panic handler. The guard below the
//! stack is the board's.
#![no_std]

mod disk;
mod node;

pub use disk::RamDisk;
pub use node::{DISK_BYTES, GUEST, Node, PRIMARY, WINDOW};
pub use twinblock_lm3s6965::stack::{StackUse, guard_stack, stack_use};

use cortex_m as _;
use cortex_m_rt as _;

/// Prints where and why on the host's terminal and ends the emulator with an error.
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    semihosting::println!("{info}");
    semihosting::process::exit(1)
}

/// A fault that no handler took: most likely the stack has run into its guard.
#[cortex_m_rt::exception]
unsafe fn HardFault(frame: &cortex_m_rt::ExceptionFrame) -> ! {
    semihosting::println!("hard fault at {:#010x}; the stack may have overflowed", frame.pc());
    semihosting::process::exit(1)
}
