//! The Ethernet controller as a device of smoltcp (DS-LM3S6965, "Ethernet Controller").
//!
//! The controller keeps frames in FIFOs that are read and written word by word; the first word of a received frame holds
//! the length in its lower half, and so does that of one to be sent. The other half is the frame's first two bytes.

use smoltcp::phy::{self, DeviceCapabilities};
use smoltcp::time::Instant;
use smoltcp::wire::EthernetAddress;
use twinblock_boards::frames::{self, Received};

use crate::hardware::{Device, read, write};

const ACKNOWLEDGE: usize = 0x00;
const INTERRUPTS: usize = 0x04;
const RECEIVE_CONTROL: usize = 0x08;
const SEND_CONTROL: usize = 0x0c;
const DATA: usize = 0x10;
const ADDRESS_LOW: usize = 0x14;
const ADDRESS_HIGH: usize = 0x18;
const FRAMES: usize = 0x34;
const SEND: usize = 0x38;
const INTERRUPT_RECEIVED: u32 = 1;
const ALL_INTERRUPTS: u32 = 0x7f;
const RECEIVE_RESET: u32 = 1 << 4;
/// Also what is sent to several.
const RECEIVE_ENABLE: u32 = 1 | 1 << 1;
/// With padding and a checksum.
const SEND_ENABLE: u32 = 1 | 1 << 1 | 1 << 2;

/// Bytes of an Ethernet header, which the length of a frame that is sent does not count.
const HEADER_BYTES: usize = 14;
/// Bytes that the length of a received frame counts besides the frame: itself, and the checksum.
const LENGTH_BYTES: usize = 2;
const CHECKSUM_BYTES: usize = 4;
/// The longest frame: a header, and 40 bytes of TCP/IP headers with 1 KiB behind. A longer one is dropped; peers keep to
/// the segment size that smoltcp tells them.
pub const FRAME_BYTES_MAX: usize = HEADER_BYTES + 40 + 1024;
const BUFFER_BYTES: usize = (LENGTH_BYTES + FRAME_BYTES_MAX).next_multiple_of(4);

/// The controller, not yet opened.
#[derive(Debug)]
pub struct Controller(pub(crate) ());

/// Room for one frame in each direction.
#[derive(Debug)]
pub struct Frames {
    received: [u8; BUFFER_BYTES],
    sent: [u8; BUFFER_BYTES],
}

impl Frames {
    /// What the memory is filled with at first.
    pub const EMPTY: Self = Self { received: [0; BUFFER_BYTES], sent: [0; BUFFER_BYTES] };
}

/// The controller at work.
#[derive(Debug)]
pub struct Ethernet<'m> {
    frames: &'m mut Frames,
    counts: Counts,
}

/// Frames since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Taken from the controller.
    pub received: u32,
    /// Given to it.
    pub sent: u32,
    /// Too long to be kept.
    pub dropped: u32,
}

impl Controller {
    /// Opens the controller under an address of its own.
    #[must_use]
    pub fn open(self, address: EthernetAddress, frames: &mut Frames) -> Ethernet<'_> {
        let [a, b, c, d, e, f] = address.0;
        write(Device::Ethernet, ADDRESS_LOW, u32::from_le_bytes([a, b, c, d]));
        write(Device::Ethernet, ADDRESS_HIGH, u32::from_le_bytes([e, f, 0, 0]));
        write(Device::Ethernet, RECEIVE_CONTROL, RECEIVE_RESET);
        write(Device::Ethernet, RECEIVE_CONTROL, RECEIVE_ENABLE);
        write(Device::Ethernet, SEND_CONTROL, SEND_ENABLE);
        write(Device::Ethernet, INTERRUPTS, INTERRUPT_RECEIVED);
        Ethernet { frames, counts: Counts::default() }
    }
}

/// Whether a frame waits in the controller. What it asked for attention for is acknowledged.
#[must_use]
pub fn has_frame() -> bool {
    write(Device::Ethernet, ACKNOWLEDGE, ALL_INTERRUPTS);
    read(Device::Ethernet, FRAMES) & 0x3f != 0
}

impl Ethernet<'_> {
    /// Frames since the start.
    #[must_use]
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// Moves the next frame out of the controller and tells how long it is.
    fn fetch(&mut self) -> Option<usize> {
        while has_frame() {
            let first = read(Device::Ethernet, DATA).to_le_bytes();
            let total = usize::from(u16::from_le_bytes([first[0], first[1]]));
            let mut words = total.div_ceil(4).saturating_sub(1);
            let (head, rest) = self.frames.received.split_at_mut(4);
            head.copy_from_slice(&first);
            for place in rest.chunks_exact_mut(4).take(words) {
                place.copy_from_slice(&read(Device::Ethernet, DATA).to_le_bytes());
                words -= 1;
            }
            let length = total.saturating_sub(LENGTH_BYTES + CHECKSUM_BYTES);
            // What does not fit may be the checksum, which nobody looks at.
            for _ in 0..words {
                let _ = read(Device::Ethernet, DATA);
            }
            if (HEADER_BYTES..=FRAME_BYTES_MAX).contains(&length) {
                self.counts.received = self.counts.received.wrapping_add(1);
                return Some(length);
            }
            self.counts.dropped = self.counts.dropped.wrapping_add(1);
        }
        None
    }
}

impl phy::Device for Ethernet<'_> {
    type RxToken<'a>
        = Received<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Sending<'a>
    where
        Self: 'a;

    fn receive(&mut self, _now: Instant) -> Option<(Received<'_>, Sending<'_>)> {
        let length = self.fetch()?;
        let Frames { received, sent } = &mut *self.frames;
        let frame = received.get(LENGTH_BYTES..LENGTH_BYTES + length)?;
        Some((Received(frame), Sending { buffer: sent, counts: &mut self.counts }))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Sending<'_>> {
        Some(Sending { buffer: &mut self.frames.sent, counts: &mut self.counts })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        frames::ethernet(FRAME_BYTES_MAX)
    }
}

/// Room for a frame to be sent.
#[derive(Debug)]
pub struct Sending<'a> {
    buffer: &'a mut [u8; BUFFER_BYTES],
    counts: &'a mut Counts,
}

impl phy::TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, work: F) -> R {
        let length = length.min(FRAME_BYTES_MAX);
        let result = work(&mut self.buffer[LENGTH_BYTES..LENGTH_BYTES + length]);
        let counted = u16::try_from(length.saturating_sub(HEADER_BYTES)).unwrap_or_default();
        self.buffer[..LENGTH_BYTES].copy_from_slice(&counted.to_le_bytes());
        while read(Device::Ethernet, SEND) & 1 != 0 {}
        let words = (LENGTH_BYTES + length).div_ceil(4);
        for word in self.buffer.as_chunks::<4>().0.iter().take(words) {
            write(Device::Ethernet, DATA, u32::from_le_bytes(*word));
        }
        write(Device::Ethernet, SEND, 1);
        self.counts.sent = self.counts.sent.wrapping_add(1);
        result
    }
}
