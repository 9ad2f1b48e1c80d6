//! QEMU's RISC-V machine `virt`, without firmware (`-bios none`): what a Twinblock node needs of it.
//!
//! | module | what is there |
//! |---|---|
//! | [`clock`] | microseconds since the reset; sleep until then or until a device has something |
//! | [`console`] | the UART |
//! | [`settings`] | text that whoever starts the machine hands in |
//! | [`stack`] | a guard below the stack, and how much of it was used |
//! | [`power`] | switches the machine off; what is said of a panic and of an exception |
//! | `devices` | the virtio devices by kind, and the memory that they share with the program |
//! | `network` | the network device as a device of smoltcp |
//!
//! Sources: QEMU's documentation of the machine ("`virt` Generic Virtual Platform"); "The RISC-V Instruction Set Manual,
//! Volume II: Privileged Architecture"; "RISC-V Platform-Level Interrupt Controller Specification". Nothing here interrupts the program: a device that has something wakes a processor that
//! sleeps ([`clock::sleep_until`]), and is asked by the program when it has time.
#![no_std]

pub mod clock;
pub mod console;
#[cfg(feature = "virtio")]
pub mod devices;
mod hardware;
#[cfg(feature = "network")]
pub mod network;
pub mod power;
pub mod settings;
pub mod stack;

pub use hardware::instructions_retired;
