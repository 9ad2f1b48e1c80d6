//! Microseconds since the reset, and sleep.

use crate::hardware::{self, Device, read32, write32, write64};

/// Ticks of the timer in a microsecond: 10 MHz.
const TICKS_PER_MICRO: u64 = 10;
/// When the timer wakes the processor (core-local interruptor of the SiFive E31 manual, "mtimecmp").
const TIMER_COMPARE: usize = 0x4000;
/// Sources of interrupts: 1 to 8 are the virtio devices.
const SOURCES: usize = 8;
#[cfg(feature = "virtio")]
const PRIORITY: usize = 0;
#[cfg(feature = "virtio")]
const ENABLE: usize = 0x2000;
#[cfg(feature = "virtio")]
const THRESHOLD: usize = 0x20_0000;
const CLAIM: usize = 0x20_0004;

/// Microseconds since the reset; never runs backwards.
#[must_use]
pub fn now() -> u64 {
    riscv::register::time::read64() / TICKS_PER_MICRO
}

/// Lets the virtio devices wake the processor.
#[cfg(feature = "virtio")]
pub(crate) fn enable_devices() {
    for source in 1..=SOURCES {
        write32(Device::Interrupts, PRIORITY + 4 * source, 1);
    }
    write32(Device::Interrupts, ENABLE, ((1 << SOURCES) - 1) << 1);
    write32(Device::Interrupts, THRESHOLD, 0);
}

/// Sleeps until `until`, in microseconds since the reset, or until a virtio device has something. `acknowledge` is called
/// afterwards and tells every device that its interrupt was seen.
///
/// Nothing is slept over: what a device had to say since it was acknowledged last ends the sleep before it begins.
pub fn sleep_until(until: u64, acknowledge: impl FnOnce()) {
    write64(Device::Timer, TIMER_COMPARE, until.saturating_mul(TICKS_PER_MICRO));
    hardware::wait_for_interrupt();
    acknowledge();
    // Each source once more than there are is asked for: none comes twice unless its device has something new.
    for _ in 0..=SOURCES {
        match read32(Device::Interrupts, CLAIM) {
            0 => break,
            source => write32(Device::Interrupts, CLAIM, source),
        }
    }
}
