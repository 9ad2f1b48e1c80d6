//! Registers, and memory that is shared with devices. The only module here with `unsafe`.
//!
//! No device that is reached by [`read8`] and [`write8`] and their sisters writes to memory by itself, so that nothing
//! that is written to one of their registers can hurt the program's memory: they are safe to call. The virtio devices do,
//! and are left to `virtio-drivers`.

use core::ptr::{addr_of, read_volatile, write_volatile};

use riscv::register::{Permission, Range, mie, pmpaddr0, pmpcfg0};
use twinblock_boards::stack::StackUse;

/// Where a device's registers begin ("Memory map" of the machine).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Device {
    Power = 0x0010_0000,
    Timer = 0x0200_0000,
    Interrupts = 0x0c00_0000,
    Uart = 0x1000_0000,
}

impl Device {
    /// Bytes of its registers.
    const fn bytes(self) -> usize {
        match self {
            Self::Power => 0x1000,
            Self::Timer => 0x1_0000,
            Self::Interrupts => 0x60_0000,
            Self::Uart => 0x100,
        }
    }
}

const fn at(device: Device, offset: usize) -> usize {
    device as usize + offset % device.bytes()
}

/// Reads a register of one byte.
#[inline]
pub(crate) fn read8(device: Device, offset: usize) -> u8 {
    // SAFETY: no device of this list has effects on memory; an address that has no register reads as anything.
    unsafe { read_volatile(at(device, offset) as *const u8) }
}

/// Writes a register of one byte.
#[inline]
pub(crate) fn write8(device: Device, offset: usize, value: u8) {
    // SAFETY: as in `read8`.
    unsafe { write_volatile(at(device, offset) as *mut u8, value) }
}

/// Reads a register of four bytes at a multiple of four.
#[inline]
pub(crate) fn read32(device: Device, offset: usize) -> u32 {
    // SAFETY: as in `read8`.
    unsafe { read_volatile(at(device, offset & !3) as *const u32) }
}

/// Writes a register of four bytes at a multiple of four.
#[inline]
pub(crate) fn write32(device: Device, offset: usize, value: u32) {
    // SAFETY: as in `read8`.
    unsafe { write_volatile(at(device, offset & !3) as *mut u32, value) }
}

/// Writes a register of eight bytes at a multiple of eight.
#[inline]
pub(crate) fn write64(device: Device, offset: usize, value: u64) {
    // SAFETY: as in `read8`.
    unsafe { write_volatile(at(device, offset & !7) as *mut u64, value) }
}

/// Instructions that this processor has executed since the reset. Exact under `-icount shift=0`.
#[inline]
#[must_use]
pub fn instructions_retired() -> usize {
    riscv::register::minstret::read()
}

/// Sleeps until the timer or a device of the interrupt controller wants attention. No handler is called: interrupts stay
/// off altogether, and a pending one ends the sleep nevertheless (Privileged Architecture, "Wait for Interrupt").
pub(crate) fn wait_for_interrupt() {
    // SAFETY: with interrupts off (mstatus.MIE, which the start-up code leaves clear) these have no handler to call.
    unsafe {
        mie::set_mtimer();
        mie::set_mext();
    }
    riscv::asm::wfi();
}

/// Where the settings are loaded, behind the memory that `memory.x` knows.
const SETTINGS: usize = 0x8040_0000;

/// Copies the settings up to the first byte that is zero: how many bytes. `None` if there are more than fit.
pub(crate) fn copy_settings(bytes: &mut [u8]) -> Option<usize> {
    for (at, place) in bytes.iter_mut().enumerate() {
        // SAFETY: RAM that belongs to nobody, and is zero or what was loaded there.
        *place = unsafe { read_volatile((SETTINGS + at) as *const u8) };
        if *place == 0 {
            return Some(at);
        }
    }
    None
}

unsafe extern "C" {
    static _stack_start: u64;
    static _stack_end: u64;
}

/// The first address above the stack and the lowest of it, as `memory.x` says.
pub(crate) fn stack_bounds() -> (usize, usize) {
    (addr_of!(_stack_start) as usize, addr_of!(_stack_end) as usize)
}

/// Fills what of the stack is below the caller's frame, from `from` on, with `paint`.
pub(crate) fn paint_stack(from: usize, paint: u32) {
    let here = 0u64;
    // Far enough below this frame and those of what it calls.
    let to = (addr_of!(here) as usize).saturating_sub(512) & !7;
    let mut at = from;
    while at < to {
        // SAFETY: words of the stack that nobody uses: it grows down to here.
        unsafe { write_volatile(at as *mut u32, paint) };
        at += 4;
    }
}

/// How much of what lies from `end` up to `start` is not as [`paint_stack`] has left it. Both are bounds of the stack.
pub(crate) fn painted_stack(start: usize, end: usize, paint: u32) -> StackUse {
    // SAFETY: the caller names words of the stack, which are RAM and aligned.
    unsafe { StackUse::of_painted(start, end, paint) }
}

/// Forbids all access to a page from `base` on, a multiple of 4 KiB, until the reset (Privileged Architecture, "Physical
/// Memory Protection").
pub(crate) fn forbid_page(base: usize) {
    const PAGE: usize = 4096;
    // A naturally aligned power of two: the bits below the size's are ones, the highest of them zero.
    let region = (base | (PAGE / 2 - 1)) >> 2;
    // SAFETY: the unit is used by nobody else; a page without access can only turn an access that would be a bug into an
    // exception, since the caller names memory that belongs to nothing.
    unsafe {
        pmpaddr0::write(region);
        pmpcfg0::set_pmp(0, Range::NAPOT, Permission::NONE, true);
    }
}

#[cfg(feature = "virtio")]
pub(crate) mod virtio {
    //! The virtio devices' registers, and pages for their queues.

    use core::cell::UnsafeCell;
    use core::ptr::NonNull;
    use core::sync::atomic::{AtomicUsize, Ordering};

    use virtio_drivers::transport::mmio::{MmioTransport, VirtIOHeader};
    use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

    /// Places for devices, and where their registers are.
    pub(crate) const PLACES: usize = 8;
    const FIRST: usize = 0x1000_1000;
    const BYTES: usize = 0x1000;
    /// Pages for queues: two for each queue, of which a disk has one, a network device two, and others one.
    const PAGES: usize = 16;

    /// The device in one of the places. Each place may be asked once in a program's life: the caller sees to it.
    pub(crate) fn transport(place: usize) -> Option<MmioTransport<'static>> {
        let registers = NonNull::new((FIRST + place % PLACES * BYTES) as *mut VirtIOHeader)?;
        // SAFETY: the registers of a place, or of none: then they read as zero, which is said to be no device. Nobody else
        // uses them, as the caller says.
        unsafe { MmioTransport::new(registers, BYTES) }.ok()
    }

    #[repr(C, align(4096))]
    struct Pages(UnsafeCell<[[u8; PAGE_SIZE]; PAGES]>);

    // SAFETY: each page is given out once.
    unsafe impl Sync for Pages {}

    static POOL: Pages = Pages(UnsafeCell::new([[0; PAGE_SIZE]; PAGES]));
    static TAKEN: AtomicUsize = AtomicUsize::new(0);

    /// Memory as this machine has it: devices see it as the program does, and the same addresses.
    #[derive(Debug)]
    pub struct Dma;

    // SAFETY: pages are aligned, zero at first, and given out once; physical addresses are addresses.
    unsafe impl Hal for Dma {
        fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
            let first = TAKEN.fetch_add(pages, Ordering::Relaxed);
            if first.saturating_add(pages) > PAGES {
                return (0, NonNull::dangling());
            }
            // SAFETY: within the pool, as was just checked.
            let start = unsafe { POOL.0.get().cast::<u8>().add(first * PAGE_SIZE) };
            NonNull::new(start).map_or((0, NonNull::dangling()), |start| (start.as_ptr() as PhysAddr, start))
        }

        /// What a device had that is let go is not given out again.
        unsafe fn dma_dealloc(_address: PhysAddr, _start: NonNull<u8>, _pages: usize) -> i32 {
            0
        }

        unsafe fn mmio_phys_to_virt(address: PhysAddr, _size: usize) -> NonNull<u8> {
            NonNull::new(address as *mut u8).unwrap_or(NonNull::dangling())
        }

        unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
            buffer.cast::<u8>().as_ptr() as PhysAddr
        }

        unsafe fn unshare(_address: PhysAddr, _buffer: NonNull<[u8]>, _direction: BufferDirection) {}
    }
}

#[cfg(feature = "network")]
pub(crate) mod frames {
    //! Ethernet frames that a device reads and writes by itself.

    use core::cell::UnsafeCell;

    use virtio_drivers::device::net::VirtIONetRaw;
    use virtio_drivers::transport::mmio::MmioTransport;

    use super::virtio::Dma;

    /// Frames in each direction.
    pub(crate) const COUNT: usize = 16;
    /// Bytes of a frame with the device's own header, rounded up.
    const BYTES: usize = 1536;

    /// Room for one frame.
    #[derive(Debug)]
    pub(crate) struct Frame(UnsafeCell<[u8; BYTES]>);

    impl Frame {
        #[expect(clippy::declare_interior_mutable_const, reason = "what each frame begins with, not a frame")]
        pub(crate) const EMPTY: Self = Self(UnsafeCell::new([0; BYTES]));
    }

    type Raw = VirtIONetRaw<Dma, MmioTransport<'static>, COUNT>;

    /// The device and its frames. A frame whose token is known is the device's; no reference to it is made meanwhile.
    pub(crate) struct Queues {
        raw: Raw,
        received: &'static [Frame; COUNT],
        sent: &'static [Frame; COUNT],
        receiving: [Option<u16>; COUNT],
        sending: [Option<u16>; COUNT],
    }

    impl Queues {
        pub(crate) fn new(
            transport: MmioTransport<'static>,
            received: &'static mut [Frame; COUNT],
            sent: &'static mut [Frame; COUNT],
        ) -> Option<Self> {
            let raw = Raw::new(transport).ok()?;
            let mut queues = Self { raw, received, sent, receiving: [None; COUNT], sending: [None; COUNT] };
            (0..COUNT).for_each(|place| queues.receive_into(place));
            Some(queues)
        }

        pub(crate) fn acknowledge_interrupt(&mut self) {
            self.raw.ack_interrupt();
        }

        fn receive_into(&mut self, place: usize) {
            // SAFETY: the frame is not the device's now, it stays where it is, and nobody looks at it before `fetch` has
            // taken it back.
            let token = unsafe { self.raw.receive_begin(&mut *self.received[place].0.get()) };
            self.receiving[place] = token.ok();
        }

        /// Copies the next frame that has come into `into` and tells how long it is.
        pub(crate) fn fetch(&mut self, into: &mut [u8]) -> Option<usize> {
            let token = self.raw.poll_receive()?;
            let place = self.receiving.iter().position(|known| *known == Some(token))?;
            // SAFETY: the token is that of this frame, and the device has completed it.
            let (header, length, bytes) = unsafe {
                let bytes = &mut *self.received[place].0.get();
                let (header, length) = self.raw.receive_complete(token, bytes).ok()?;
                (header, length, &*bytes)
            };
            let frame = bytes.get(header..header + length);
            let copied = frame.zip(into.get_mut(..length)).map(|(frame, into)| into.copy_from_slice(frame));
            self.receive_into(place);
            copied.map(|()| length)
        }

        /// A frame that nobody uses, if there is one.
        pub(crate) fn free(&mut self) -> Option<usize> {
            while let Some(token) = self.raw.poll_transmit() {
                let place = self.sending.iter().position(|known| *known == Some(token))?;
                let length = self.sent[place].0.get();
                // SAFETY: the token is that of this frame. The device only reads frames that are sent, so that looking at
                // it is no harm; its length plays no part here.
                unsafe { self.raw.transmit_complete(token, &*length) }.ok()?;
                self.sending[place] = None;
            }
            self.sending.iter().position(Option::is_none)
        }

        /// Sends a frame of `length` bytes that `fill` makes. `place` is one that [`Self::free`] has named.
        pub(crate) fn send<R>(
            &mut self,
            place: usize,
            length: usize,
            fill: impl FnOnce(&mut [u8]) -> R,
        ) -> R {
            // SAFETY: nobody uses the frame, as the caller says.
            let bytes = unsafe { &mut *self.sent[place].0.get() };
            let header = self.raw.fill_buffer_header(bytes).unwrap_or_default();
            let end = (header + length).min(BYTES);
            let result = fill(&mut bytes[header..end]);
            // SAFETY: the frame stays where it is, and is not written before `free` has taken it back.
            self.sending[place] = unsafe { self.raw.transmit_begin(&bytes[..end]) }.ok();
            result
        }
    }
}
