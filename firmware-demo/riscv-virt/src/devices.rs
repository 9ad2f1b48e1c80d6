//! The virtio devices of the machine.
//!
//! They are found by their kind, in the order of their places; two of one kind are told apart by that.

use core::sync::atomic::{AtomicBool, Ordering};

use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::transport::mmio::MmioTransport;
use virtio_drivers::transport::{DeviceType, Transport as _};

use crate::clock;
use crate::hardware::virtio::{PLACES, transport};

pub use crate::hardware::virtio::Dma;

/// What a virtio device is reached by.
pub type Transport = MmioTransport<'static>;

static ARE_TAKEN: AtomicBool = AtomicBool::new(false);

/// The devices that are there.
#[derive(Debug)]
pub struct Devices([Option<Transport>; PLACES]);

impl Devices {
    /// All of them; `None` if they were taken before. From now on they can wake the processor.
    #[must_use]
    pub fn take() -> Option<Self> {
        if ARE_TAKEN.swap(true, Ordering::AcqRel) {
            return None;
        }
        clock::enable_devices();
        Some(Self(core::array::from_fn(transport)))
    }

    /// The first of a kind that is left. QEMU fills the places from the last one down, so that the last place is looked at
    /// first.
    pub fn next(&mut self, kind: DeviceType) -> Option<Transport> {
        let is_it = |device: &&mut Option<Transport>| {
            device.as_ref().is_some_and(|device| device.device_type() == kind)
        };
        self.0.iter_mut().rev().find(is_it)?.take()
    }

    /// Fills `bytes` with what nobody can guess, from the machine's source of entropy; `false` if it has none.
    pub fn random(&mut self, bytes: &mut [u8]) -> bool {
        let Some(transport) = self.next(DeviceType::EntropySource) else { return false };
        let Ok(mut source) = VirtIORng::<Dma, _>::new(transport) else { return false };
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match source.request_entropy(rest) {
                Ok(count @ 1..) => filled += count,
                _ => return false,
            }
        }
        true
    }
}
