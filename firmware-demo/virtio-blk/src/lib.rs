//! Virtio block devices as block devices of Twinblock.
//!
//! Virtio's queue and the core's [`BlockDevice`](twinblock_core::block::BlockDevice) have one shape: requests go in under
//! a token, completions come back in any order. So there is no adapter here and nothing waits: several requests are in
//! flight, a flush is one of them, and each completion is found by its token alone. Transports (MMIO, PCI) and queues are
//! those of `virtio-drivers`, without its `alloc`; its own block driver is not used, since that waits for each flush and
//! knows no zeroes.
//!
//! * [`VirtioBlk`] is the disk;
//! * [`Place`]s are lent to it, one for each request in flight;
//! * [`DmaWindows`] is the memory of requests: windows as `twinblock_core::Windows` has them, which stay where they are
//!   and know which of their bytes a device is just writing.
//!
//! A driver for another device with queues of its own looks the same: `submit` puts a request into its queue and `poll`
//! takes a completion out.
//!
//! ```no_run
//! use core::ptr::NonNull;
//! use twinblock_core::block::BlockDevice;
//! use twinblock_virtio_blk::{DmaWindows, Place, VirtioBlk};
//! use virtio_drivers::Hal;
//! use virtio_drivers::transport::mmio::{MmioTransport, VirtIOHeader};
//!
//! fn disk<H: Hal>(registers: NonNull<VirtIOHeader>) -> u64 {
//!     // In firmware these are statics.
//!     let places = Box::leak(Box::new([const { Place::FREE }; 8]));
//!     // SAFETY: whoever calls this names the registers of a device that nobody else uses.
//!     let transport = unsafe { MmioTransport::new(registers, 0x1000) }.unwrap();
//!     let disk = VirtioBlk::<H, _, 32>::new(transport, places).unwrap();
//!     disk.geometry().size_bytes
//! }
//! ```
#![no_std]

#[cfg(test)]
extern crate std;

mod device;
mod dma;
#[cfg(test)]
mod tests;
mod wire;

pub use device::{OpenError, VirtioBlk, places_max};
pub use dma::{DmaWindows, LENT_MAX, Place};
