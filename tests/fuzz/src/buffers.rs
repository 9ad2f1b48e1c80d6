//! Buffers that notice misuse.

use twinblock_core::{BufferIndex, Data, Memory, Pool};

/// Buffers of one size; one that is released twice, or used while it is free, is a finding.
pub(crate) struct Buffers {
    bytes: Vec<u8>,
    length: usize,
    taken: Vec<bool>,
}

impl Buffers {
    pub(crate) fn new(count: usize, length: usize) -> Self {
        Self { bytes: vec![0xee; count * length], length, taken: vec![false; count] }
    }

    pub(crate) fn taken(&self) -> usize {
        self.taken.iter().filter(|taken| **taken).count()
    }

    /// The first `count` are never given out.
    pub(crate) fn reserve(&mut self, count: usize) {
        self.taken[..count].fill(true);
    }
}

impl Memory for Buffers {
    fn bytes(&mut self, data: Data) -> Option<&mut [u8]> {
        let index = usize::from(data.buffer.0);
        assert!(self.taken[index], "buffer {index} is used while it is free");
        let start = data.offset as usize;
        let end = start + data.length as usize;
        assert!(end <= self.length, "{data:?} is longer than its buffer");
        self.bytes.get_mut(index * self.length + start..index * self.length + end)
    }
}

impl Pool for Buffers {
    fn acquire(&mut self, length: u32) -> Option<BufferIndex> {
        let free = self.taken.iter().position(|taken| !taken)?;
        assert!(length as usize <= self.length, "a piece is longer than the window");
        self.taken[free] = true;
        Some(BufferIndex(free as u16))
    }

    fn release(&mut self, buffer: BufferIndex) {
        let taken = &mut self.taken[usize::from(buffer.0)];
        assert!(*taken, "buffer {} is released twice", buffer.0);
        *taken = false;
    }
}
