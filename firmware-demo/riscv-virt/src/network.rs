//! The network device as a device of smoltcp.

use smoltcp::phy::{self, DeviceCapabilities};
use smoltcp::time::Instant;
use twinblock_boards::frames::{self, Received};

use crate::devices::Transport;
use crate::hardware::frames::{COUNT, Frame, Queues};

/// The longest frame: an Ethernet header and 1,500 bytes.
const FRAME_BYTES_MAX: usize = 1514;

/// Room for the frames of both directions.
#[derive(Debug)]
pub struct Frames {
    received: [Frame; COUNT],
    sent: [Frame; COUNT],
    current: [u8; FRAME_BYTES_MAX],
}

impl Frames {
    /// What the memory is filled with at first.
    #[expect(clippy::declare_interior_mutable_const, reason = "what the memory begins with, not the memory")]
    pub const EMPTY: Self = Self {
        received: [const { Frame::EMPTY }; COUNT],
        sent: [const { Frame::EMPTY }; COUNT],
        current: [0; FRAME_BYTES_MAX],
    };
}

/// The network device.
pub struct Network {
    queues: Queues,
    /// The frame that is being looked at.
    current: &'static mut [u8; FRAME_BYTES_MAX],
    counts: Counts,
}

impl core::fmt::Debug for Network {
    fn fmt(&self, to: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        to.debug_struct("Network").field("counts", &self.counts).finish_non_exhaustive()
    }
}

/// Frames since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Taken from the device.
    pub received: u32,
    /// Given to it.
    pub sent: u32,
}

impl Network {
    /// Makes the device ready for use; `None` if it does not work.
    #[must_use]
    pub fn open(transport: Transport, frames: &'static mut Frames) -> Option<Self> {
        let Frames { received, sent, current } = frames;
        let queues = Queues::new(transport, received, sent)?;
        Some(Self { queues, current, counts: Counts::default() })
    }

    /// Tells the device that its interrupt was seen; call it after a sleep.
    pub fn acknowledge_interrupt(&mut self) {
        self.queues.acknowledge_interrupt();
    }

    /// Frames since the start.
    #[must_use]
    pub const fn counts(&self) -> Counts {
        self.counts
    }
}

impl phy::Device for Network {
    type RxToken<'a>
        = Received<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Sending<'a>
    where
        Self: 'a;

    fn receive(&mut self, _now: Instant) -> Option<(Received<'_>, Sending<'_>)> {
        // What comes may have to be answered.
        let place = self.queues.free()?;
        let length = self.queues.fetch(self.current)?;
        self.counts.received = self.counts.received.wrapping_add(1);
        let frame = self.current.get(..length)?;
        Some((Received(frame), Sending { place, queues: &mut self.queues, sent: &mut self.counts.sent }))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Sending<'_>> {
        let place = self.queues.free()?;
        Some(Sending { place, queues: &mut self.queues, sent: &mut self.counts.sent })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        frames::ethernet(FRAME_BYTES_MAX)
    }
}

/// Room for a frame to be sent.
pub struct Sending<'a> {
    place: usize,
    queues: &'a mut Queues,
    sent: &'a mut u32,
}

impl core::fmt::Debug for Sending<'_> {
    fn fmt(&self, to: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        to.debug_struct("Sending").field("place", &self.place).finish_non_exhaustive()
    }
}

impl phy::TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, work: F) -> R {
        *self.sent = self.sent.wrapping_add(1);
        self.queues.send(self.place, length.min(FRAME_BYTES_MAX), work)
    }
}
