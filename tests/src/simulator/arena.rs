//! The embedder's buffers, poisoned while nobody owns them.

use twinblock_core::{BufferIndex, Data, Memory, Pool};

/// What is found in a buffer that nobody owns: a machine that uses one too long, or too early, shows this byte.
const POISON: u8 = 0xDB;

/// Equal buffers of one window each. The first ones belong to the machine and are never given out.
#[derive(Debug)]
pub struct Arena {
    buffers: Vec<Vec<u8>>,
    free: Vec<u16>,
}

impl Arena {
    /// `scratch` buffers for the machine and `count` for requests.
    #[must_use]
    pub fn new(scratch: u16, count: u16, window: usize) -> Self {
        let buffers = vec![vec![POISON; window]; usize::from(scratch + count)];
        Self { buffers, free: (scratch..scratch + count).rev().collect() }
    }

    /// A copy of some bytes.
    ///
    /// # Panics
    /// If a machine has named bytes that do not exist.
    #[must_use]
    pub fn copy(&self, data: Data) -> Vec<u8> {
        let from = data.offset as usize;
        self.buffers[usize::from(data.buffer.0)][from..from + data.length as usize].to_vec()
    }
}

impl Memory for Arena {
    fn bytes(&mut self, data: Data) -> Option<&mut [u8]> {
        let from = data.offset as usize;
        self.buffers.get_mut(usize::from(data.buffer.0))?.get_mut(from..from + data.length as usize)
    }
}

impl Pool for Arena {
    fn acquire(&mut self, _length: u32) -> Option<BufferIndex> {
        self.free.pop().map(BufferIndex)
    }

    fn release(&mut self, buffer: BufferIndex) {
        assert!(!self.free.contains(&buffer.0), "a buffer is released twice");
        self.buffers[usize::from(buffer.0)].fill(POISON);
        self.free.push(buffer.0);
    }
}
