//! Memory that a device reads and writes by itself. The only module here with `unsafe`.
//!
//! # Invariants
//! * D1: what a device may still access stays where it is: it is borrowed for ever.
//! * D2: no reference to bytes exists while a device may write them: a place's bytes are in cells, and of the windows the
//!   parts that are being filled are given to nobody.
//! * D3: a request is taken out of the queue with the very buffers that it was put in with.

use core::cell::{Cell, UnsafeCell};
use core::ptr::NonNull;

use twinblock_core::{BufferIndex, Data, Memory, Pool};
use virtio_drivers::Hal;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, Transport};

use crate::wire::{HEADER_BYTES, RANGE_BYTES};

/// Reads of all devices over one [`DmaWindows`] that can be in flight together.
pub const LENT_MAX: usize = 64;
/// How often a device is asked whether it has stopped.
const STOP_TRIES: u32 = 1 << 20;
/// What a status is before the device has written it: none that the specification knows.
const NO_STATUS: u8 = 0xff;
/// Where zeroes are written from, to a device that cannot write them by itself.
pub(crate) static ZEROES: [u8; 4096] = [0; 4096];

/// Some bytes that were given to a device.
#[derive(Clone, Copy, Debug)]
enum Lent {
    /// There are none.
    Nothing,
    /// The device reads them.
    Read(NonNull<u8>, usize),
    /// The device writes them, and this is what they are called.
    Written(NonNull<u8>, usize, Data),
}

/// Room for one request in flight: its header, its status, and where its data is.
///
/// Capacity: unit requests; one place each, some 80 bytes with its share of the queue; a queue of 64 descriptors has room
/// for [`places_max`](crate::places_max)`(64)` = 21; when all are taken, further transfers are refused as for any full
/// queue; more keep a device busier that does several things at a time.
#[derive(Debug)]
pub struct Place {
    header: UnsafeCell<[u8; HEADER_BYTES]>,
    range: UnsafeCell<[u8; RANGE_BYTES]>,
    status: UnsafeCell<[u8; 1]>,
    lent: Cell<Lent>,
}

// SAFETY: what it points to lives for ever, whichever thread has the place.
unsafe impl Send for Place {}

impl Place {
    /// A free place.
    #[expect(clippy::declare_interior_mutable_const, reason = "what each place begins with, not a place")]
    pub const FREE: Self = Self {
        header: UnsafeCell::new([0; HEADER_BYTES]),
        range: UnsafeCell::new([0; RANGE_BYTES]),
        status: UnsafeCell::new([NO_STATUS]),
        lent: Cell::new(Lent::Nothing),
    };

    /// Prepares it for the next request. Only while no device knows of it.
    fn prepare(&self, header: [u8; HEADER_BYTES], payload: &Payload) {
        // SAFETY: no device accesses the cells, as the caller says, and no reference to their inside outlives a call of
        // this module, none of which is under way: a place is no `Sync`.
        unsafe {
            *self.header.get() = header;
            *self.status.get() = [NO_STATUS];
            if let Payload::Range(range) = payload {
                *self.range.get() = *range;
            }
        }
    }

    /// What the device has written. Only when it has completed the request.
    fn status(&self) -> u8 {
        // SAFETY: as for `prepare`.
        unsafe { (*self.status.get())[0] }
    }
}

/// What a request carries beside its header.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Payload {
    None,
    /// Which sectors to write zeroes to.
    Range([u8; RANGE_BYTES]),
    /// So many zeroes; at most as many as there are.
    Zeroes(usize),
    /// To be written.
    Out(Data),
    /// To be filled.
    In(Data),
}

/// The queue was not able to take a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Untaken {
    /// The memory has no such bytes, or a device is writing them.
    NoBytes,
    /// The queue is full, or too much is lent.
    Full,
}

/// A device's queue, and the requests that are in it.
pub(crate) struct Ring<H: Hal, T: Transport, const N: usize> {
    transport: T,
    queue: VirtQueue<H, N>,
    places: &'static [Place],
}

impl<H: Hal, T: Transport, const N: usize> Ring<H, T, N> {
    /// The first queue of a device, and room for its requests.
    pub(crate) fn open(mut transport: T, places: &'static [Place]) -> Result<Self, virtio_drivers::Error> {
        let queue = VirtQueue::new(&mut transport, 0, false, false)?;
        transport.finish_init();
        Ok(Self { transport, queue, places })
    }

    pub(crate) fn transport(&mut self) -> &mut T {
        &mut self.transport
    }

    pub(crate) fn place_count(&self) -> usize {
        self.places.len()
    }

    /// Puts a request into the queue; its token.
    pub(crate) fn put(
        &mut self,
        place: usize,
        header: [u8; HEADER_BYTES],
        payload: Payload,
        memory: &mut DmaWindows,
    ) -> Result<u16, Untaken> {
        let entry = self.places.get(place).ok_or(Untaken::Full)?;
        entry.prepare(header, &payload);
        let lent = match payload {
            Payload::None => Lent::Nothing,
            Payload::Range(_) => Lent::Read(NonNull::from(&entry.range).cast(), RANGE_BYTES),
            Payload::Zeroes(count) => Lent::Read(NonNull::from(&ZEROES).cast(), count.min(ZEROES.len())),
            Payload::Out(data) => {
                Lent::Read(memory.find(data).ok_or(Untaken::NoBytes)?, data.length as usize)
            }
            Payload::In(data) => {
                let start = memory.lend(data)?;
                Lent::Written(start, data.length as usize, data)
            }
        };
        // SAFETY: the bytes stay where they are (D1). No reference to those that the device writes is made before the token
        // was popped: the place's are in cells, and the windows give them to nobody (D2).
        let added = unsafe { with_buffers(entry, lent, |inputs, outputs| self.queue.add(inputs, outputs)) };
        let Ok(token) = added else {
            memory.take_back(lent);
            return Err(Untaken::Full);
        };
        entry.lent.set(lent);
        // The device must see the request before it is asked whether it wants to hear of it.
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        if self.queue.should_notify() {
            self.transport.notify(0);
        }
        Ok(token)
    }

    /// The token of the next completion, as the device says it.
    pub(crate) fn next_token(&self) -> Option<u16> {
        self.queue.peek_used()
    }

    /// Takes the request of that place and token out of the queue; the status that the device has written. `None` if it is
    /// not the next.
    pub(crate) fn take(&mut self, place: usize, token: u16, memory: &mut DmaWindows) -> Option<u8> {
        let entry = self.places.get(place)?;
        let lent = entry.lent.get();
        // SAFETY: these are the buffers that this token was given for (D3): `put` has noted them in the place, and a place
        // is not used again before this.
        unsafe { with_buffers(entry, lent, |inputs, outputs| self.queue.pop_used(token, inputs, outputs)) }
            .ok()?;
        memory.take_back(lent);
        entry.lent.set(Lent::Nothing);
        Some(entry.status())
    }

    /// Resets the device, so that it leaves the memory alone. Nothing can be put into the queue afterwards.
    pub(crate) fn stop(&mut self, memory: &mut DmaWindows) {
        self.transport.set_status(DeviceStatus::empty());
        let has_stopped = (0..STOP_TRIES).any(|_| self.transport.get_status().is_empty());
        for place in self.places {
            let lent = place.lent.replace(Lent::Nothing);
            // What a device may still write is never given out again.
            if has_stopped {
                memory.take_back(lent);
            }
        }
    }
}

impl<H: Hal, T: Transport, const N: usize> Drop for Ring<H, T, N> {
    fn drop(&mut self) {
        // Before the queue's own memory goes.
        self.transport.set_status(DeviceStatus::empty());
        self.transport.queue_unset(0);
    }
}

/// Calls `work` with the buffers of a request: what the device reads, and what it writes.
///
/// # Safety
/// The device does not access the bytes now, or `work` does not either.
unsafe fn with_buffers<R>(
    place: &Place,
    lent: Lent,
    work: impl for<'a> FnOnce(&'a [&'a [u8]], &'a mut [&'a mut [u8]]) -> R,
) -> R {
    // SAFETY: the cells belong to this place, of which nobody else has a reference to the inside; the lent bytes are of
    // windows or statics, which live for ever, and were checked to be that many.
    unsafe {
        let header: &[u8] = &*place.header.get();
        let status: &mut [u8] = &mut *place.status.get();
        match lent {
            Lent::Nothing => work(&[header], &mut [status]),
            Lent::Read(start, length) => {
                work(&[header, core::slice::from_raw_parts(start.as_ptr(), length)], &mut [status])
            }
            Lent::Written(start, length, _) => {
                work(&[header], &mut [core::slice::from_raw_parts_mut(start.as_ptr(), length), status])
            }
        }
    }
}

/// Windows that devices read and write by themselves: one slice that is borrowed for ever, cut into up to 64 buffers of
/// equal size. Several devices may share them.
///
/// While a device fills bytes for a read, [`Memory::bytes`] has no such bytes. A machine never names them meanwhile.
///
/// ```
/// use twinblock_core::{Data, Memory, Pool};
/// use twinblock_virtio_blk::DmaWindows;
///
/// let mut windows = DmaWindows::new(Box::leak(Box::new([0; 4 * 4096])), 4096);
/// let buffer = windows.acquire(512).unwrap();
/// windows.bytes(Data { buffer, offset: 0, length: 512 }).unwrap().fill(1);
/// ```
#[derive(Debug)]
pub struct DmaWindows {
    start: NonNull<u8>,
    length: usize,
    window: u32,
    taken: u64,
    /// What devices are just writing.
    filling: heapless::Vec<Data, LENT_MAX>,
}

impl DmaWindows {
    /// Cuts `bytes` into buffers of `window` bytes; a remainder is left unused, and so is what is past 64 buffers.
    #[must_use]
    pub fn new(bytes: &'static mut [u8], window: u32) -> Self {
        let length = bytes.len();
        Self {
            start: NonNull::from(bytes).cast(),
            length,
            window: window.max(1),
            taken: 0,
            filling: heapless::Vec::new(),
        }
    }

    /// How many buffers there are.
    #[must_use]
    pub fn count(&self) -> usize {
        (self.length / self.window as usize).min(64)
    }

    /// Where these bytes are.
    fn find(&self, data: Data) -> Option<NonNull<u8>> {
        let end = data.offset.checked_add(data.length)?;
        if end > self.window || usize::from(data.buffer.0) >= self.count() {
            return None;
        }
        let overlaps = |other: &Data| {
            other.buffer == data.buffer && other.offset < end && data.offset < other.offset + other.length
        };
        if self.filling.iter().any(overlaps) {
            return None;
        }
        let offset = usize::from(data.buffer.0) * self.window as usize + data.offset as usize;
        // SAFETY: at most at the end of the slice that this was made of.
        Some(unsafe { self.start.add(offset) })
    }

    fn lend(&mut self, data: Data) -> Result<NonNull<u8>, Untaken> {
        let start = self.find(data).ok_or(Untaken::NoBytes)?;
        self.filling.push(data).map_err(|_| Untaken::Full)?;
        Ok(start)
    }

    fn take_back(&mut self, lent: Lent) {
        if let Lent::Written(_, _, data) = lent
            && let Some(at) = self.filling.iter().position(|other| *other == data)
        {
            self.filling.swap_remove(at);
        }
    }
}

impl Memory for DmaWindows {
    fn bytes(&mut self, data: Data) -> Option<&mut [u8]> {
        let start = self.find(data)?;
        // SAFETY: `find` has checked the bounds, and that no device writes there (D2); `self` is borrowed meanwhile.
        Some(unsafe { core::slice::from_raw_parts_mut(start.as_ptr(), data.length as usize) })
    }
}

impl Pool for DmaWindows {
    fn acquire(&mut self, length: u32) -> Option<BufferIndex> {
        let free = (!self.taken).trailing_zeros() as usize;
        if length > self.window || free >= self.count() {
            return None;
        }
        self.taken |= 1 << free;
        u16::try_from(free).ok().map(BufferIndex)
    }

    fn release(&mut self, buffer: BufferIndex) {
        if buffer.0 < 64 {
            self.taken &= !(1 << buffer.0);
        }
    }
}
