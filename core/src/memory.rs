//! Buffers that the embedder owns and the core only names.

#[cfg(test)]
mod tests;

/// Which of the embedder's buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct BufferIndex(pub u16);

/// Some bytes of one of the embedder's buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Data {
    /// Which buffer.
    pub buffer: BufferIndex,
    /// First byte within the buffer.
    pub offset: u32,
    /// How many bytes.
    pub length: u32,
}

impl Data {
    /// A part of it: `length` bytes from `from`, both within this.
    #[must_use]
    pub const fn part(self, from: u32, length: u32) -> Self {
        debug_assert!(from as u64 + length as u64 <= self.length as u64);
        Self { buffer: self.buffer, offset: self.offset + from, length }
    }
}

/// Finds the bytes behind a name. Devices that take borrowed slices are generic over it; a back end that needs
/// addresses which stay put (helper threads, a ring) implements its devices for its own memory type alone.
pub trait Memory {
    /// The bytes, or `None` if there is no such buffer or it is too short.
    fn bytes(&mut self, data: Data) -> Option<&mut [u8]>;
}

/// Memory from which a connection takes a buffer for each piece of a request.
pub trait Pool: Memory {
    /// A buffer of at least `length` bytes, or `None` if none is free now: the caller then stops reading requests
    /// until one was released.
    fn acquire(&mut self, length: u32) -> Option<BufferIndex>;
    /// Gives a buffer back. Giving back what is not taken does nothing.
    fn release(&mut self, buffer: BufferIndex);
}

/// The simplest pool: one borrowed slice cut into up to 64 buffers of equal size.
///
/// ```
/// use twinblock_core::{Pool, Windows};
/// let mut bytes = [0; 4 * 4096];
/// let mut pool = Windows::new(&mut bytes, 4096);
/// let buffer = pool.acquire(512).unwrap();
/// pool.release(buffer);
/// ```
#[derive(Debug)]
pub struct Windows<'a> {
    bytes: &'a mut [u8],
    window: u32,
    taken: u64,
}

impl<'a> Windows<'a> {
    /// Cuts `bytes` into buffers of `window` bytes; a remainder is left unused, and so is what is past 64 buffers.
    #[must_use]
    pub fn new(bytes: &'a mut [u8], window: u32) -> Self {
        Self { bytes, window: window.max(1), taken: 0 }
    }

    /// How many buffers there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.bytes.len().checked_div(self.window as usize).unwrap_or_default().min(64)
    }

    /// Takes the buffers `0..count` out of what [`Pool::acquire`] gives, for a machine's own use.
    pub fn reserve(&mut self, count: usize) {
        for index in 0..count.min(64) {
            self.taken |= 1 << index;
        }
    }
}

impl Memory for Windows<'_> {
    fn bytes(&mut self, data: Data) -> Option<&mut [u8]> {
        let within = data.offset.checked_add(data.length)?;
        if within > self.window {
            return None;
        }
        let start = usize::from(data.buffer.0) * self.window as usize + data.offset as usize;
        self.bytes.get_mut(start..start + data.length as usize)
    }
}

impl Pool for Windows<'_> {
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
