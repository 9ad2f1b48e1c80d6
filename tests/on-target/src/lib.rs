//! What the test programs share: disks in RAM, a secondary and a primary over such disks, and what differs between the
//! machines: the runtime, what becomes of a fault, and the stack.
#![no_std]

#[cfg_attr(target_arch = "arm", path = "machine/arm.rs")]
#[cfg_attr(target_arch = "riscv64", path = "machine/riscv64.rs")]
mod machine;

mod disk;
mod mirror;
mod node;
mod random;

pub use disk::{Block, FarDisk, RamDisk};
pub use machine::{guard_stack, is_stack_half_free, print_stack_use};
pub use mirror::{MIRROR_BYTES, MIRROR_GRANULE, MIRROR_WINDOW, Mirror};
pub use node::{DISK_BYTES, GUEST, Node, PRIMARY, WINDOW};
pub use random::Random;

/// Prints where and why on the host's terminal and ends the emulator with an error.
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    semihosting::println!("{info}");
    semihosting::process::exit(1)
}
