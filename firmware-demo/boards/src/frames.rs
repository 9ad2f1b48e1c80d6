//! What the network devices tell smoltcp.

use smoltcp::phy::{self, DeviceCapabilities, Medium};

/// A frame that has come and lies in memory of the driver's.
#[derive(Debug)]
pub struct Received<'a>(pub &'a [u8]);

impl phy::RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, work: F) -> R {
        work(self.0)
    }
}

/// What an Ethernet device can do whose frames have so many bytes at most, header included.
#[must_use]
pub fn ethernet(frame_bytes_max: usize) -> DeviceCapabilities {
    let mut capabilities = DeviceCapabilities::default();
    capabilities.medium = Medium::Ethernet;
    capabilities.max_transmission_unit = frame_bytes_max;
    capabilities
}
