//! Registers. The only module here with `unsafe`.
//!
//! No device of this board that is used here writes to memory by itself, so that nothing that is written to one of
//! their registers can hurt the program's memory: [`read`] and [`write`] are safe to call.

use core::ptr::{addr_of, read_volatile, write_volatile};

use twinblock_boards::stack::StackUse;

/// Where a device's registers begin (DS-LM3S6965, "Memory Map").
#[derive(Clone, Copy, Debug)]
pub(crate) enum Device {
    Watchdog = 0x4000_0000,
    #[cfg(feature = "card")]
    PortD = 0x4000_7000,
    #[cfg(feature = "card")]
    Spi = 0x4000_8000,
    #[cfg(feature = "uart")]
    Uart = 0x4000_c000,
    #[cfg(feature = "ethernet")]
    Ethernet = 0x4004_8000,
    SystemControl = 0x400f_e000,
}

/// Bytes of a device's registers.
const DEVICE_BYTES: usize = 0x1000;

/// Reads the register at `offset`, a multiple of 4.
#[inline]
pub(crate) fn read(device: Device, offset: usize) -> u32 {
    let address = device as usize + offset % DEVICE_BYTES;
    // SAFETY: an aligned address within the registers of a device of this board.
    unsafe { read_volatile(address as *const u32) }
}

/// Writes the register at `offset`, a multiple of 4.
#[inline]
pub(crate) fn write(device: Device, offset: usize, value: u32) {
    let address = device as usize + offset % DEVICE_BYTES;
    // SAFETY: as in `read`; no device here writes to memory by itself.
    unsafe { write_volatile(address as *mut u32, value) }
}

/// Switches on the clocks of the devices (run mode clock gating control 0 to 2).
pub(crate) fn enable_clocks() {
    const RCGC0_WATCHDOG: u32 = 1 << 3;
    const RCGC1_UART0_AND_SPI: u32 = 1 | 1 << 4;
    const RCGC2_PORTS_A_D_AND_ETHERNET: u32 = 1 | 1 << 3 | 1 << 28 | 1 << 30;
    for (offset, bits) in
        [(0x100, RCGC0_WATCHDOG), (0x104, RCGC1_UART0_AND_SPI), (0x108, RCGC2_PORTS_A_D_AND_ETHERNET)]
    {
        write(Device::SystemControl, offset, read(Device::SystemControl, offset) | bits);
    }
}

/// Sleeps until the clock ticks or the Ethernet controller asks for attention. Interrupts are off, and stay off.
pub(crate) fn wait_for_interrupt() {
    #[cfg(feature = "ethernet")]
    let mut line = Line::ETHERNET;
    #[cfg(feature = "ethernet")]
    line.enable();
    cortex_m::asm::dsb();
    cortex_m::asm::wfi();
    #[cfg(feature = "ethernet")]
    line.disable();
}

/// Lets the clock interrupt again.
pub(crate) fn enable_interrupts() {
    // SAFETY: the only handler is the clock's, which changes nothing but an atomic.
    unsafe { cortex_m::interrupt::enable() }
}

/// A line of the interrupt controller (ARMv7-M Architecture Reference Manual, B3.4). It wakes the processor and is never
/// taken: it is enabled only while interrupts are off.
#[cfg(feature = "ethernet")]
struct Line {
    word: usize,
    bit: u32,
}

#[cfg(feature = "ethernet")]
impl Line {
    /// Line 42.
    const ETHERNET: Self = Self { word: 1, bit: 1 << (42 - 32) };

    fn enable(&mut self) {
        // SAFETY: nobody else uses the controller; the line cannot be taken while interrupts are off.
        unsafe { (*cortex_m::peripheral::NVIC::PTR).iser[self.word].write(self.bit) }
    }

    fn disable(&mut self) {
        // SAFETY: as above; after this it cannot be taken at all.
        unsafe {
            (*cortex_m::peripheral::NVIC::PTR).icer[self.word].write(self.bit);
            (*cortex_m::peripheral::NVIC::PTR).icpr[self.word].write(self.bit);
        }
    }
}

unsafe extern "C" {
    static _stack_start: u32;
    static _stack_end: u32;
}

/// The first address above the stack and the lowest of it, as the program's `memory.x` says.
pub(crate) fn stack_bounds() -> (usize, usize) {
    (addr_of!(_stack_start) as usize, addr_of!(_stack_end) as usize)
}

/// How much of what lies from `end` up to `start` is not as the start-up code has painted it. Both are bounds of the stack.
pub(crate) fn painted_stack(start: usize, end: usize) -> StackUse {
    // SAFETY: the caller names words of the stack, which are RAM and aligned.
    unsafe { StackUse::of_painted(start, end, cortex_m_rt::STACK_PAINT_VALUE) }
}

/// Forbids all access to `1 << size_log2` bytes from `base`, a multiple of that (ARMv7-M Architecture Reference Manual,
/// B3.5).
pub(crate) fn forbid(base: usize, size_log2: u32) {
    const REGION_ENABLE: u32 = 1;
    const EXECUTE_NEVER: u32 = 1 << 28;
    const CONTROL_ENABLE: u32 = 1;
    const CONTROL_DEFAULT_MAP: u32 = 1 << 2;
    // SAFETY: the unit is used by nobody else; a region without access can only turn an access that would be a bug into
    // a fault, since the caller names memory that belongs to nothing.
    unsafe {
        let unit = &*cortex_m::peripheral::MPU::PTR;
        unit.rnr.write(0);
        unit.rbar.write(base as u32);
        unit.rasr.write(EXECUTE_NEVER | (size_log2 - 1) << 1 | REGION_ENABLE);
        unit.ctrl.write(CONTROL_DEFAULT_MAP | CONTROL_ENABLE);
    }
    cortex_m::asm::dsb();
    cortex_m::asm::isb();
}
