//! A disk that does nothing, at once.

use heapless::Deque;
use twinblock_core::block::{BlockDevice, Capabilities, Completion, Geometry, QueueFull, Transfer};
use twinblock_core::{Memory, Outcome};

/// Completions that wait.
const QUEUE: usize = 16;

/// The disk.
#[derive(Debug)]
pub(crate) struct Null {
    size_bytes: u64,
    done: Deque<Completion, QUEUE>,
}

impl Null {
    pub(crate) const fn new(size_bytes: u64) -> Self {
        Self { size_bytes, done: Deque::new() }
    }

    pub(crate) const fn shape(&self) -> Geometry {
        let capabilities = Capabilities::FLUSH.union(Capabilities::WRITE_ZEROES);
        Geometry { size_bytes: self.size_bytes, block_bytes: 1, capabilities }
    }
}

impl<M: Memory + ?Sized> BlockDevice<M> for Null {
    fn geometry(&self) -> Geometry {
        self.shape()
    }

    fn submit(&mut self, transfer: Transfer, _memory: &mut M) -> Result<(), QueueFull> {
        self.done
            .push_back(Completion { tag: transfer.tag, result: Ok(Outcome::Done) })
            .map_err(|_| QueueFull)
    }

    fn poll(&mut self, _memory: &mut M) -> Option<Completion> {
        self.done.pop_front()
    }
}
