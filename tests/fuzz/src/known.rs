//! What is known of a disk's bytes.

use twinblock_core::Extent;

use crate::disk::range;

/// Bytes that are compared at once.
const CHUNK: usize = 64;

/// Bytes, and which of them are known.
#[derive(Debug)]
pub(crate) struct Known {
    bytes: Vec<u8>,
    is_known: Vec<bool>,
}

impl Known {
    pub(crate) fn all(bytes: Vec<u8>) -> Self {
        let is_known = vec![true; bytes.len()];
        Self { bytes, is_known }
    }

    pub(crate) fn set(&mut self, extent: Extent, new: &[u8]) {
        self.bytes[range(extent)].copy_from_slice(new);
        self.is_known[range(extent)].fill(true);
    }

    pub(crate) fn forget(&mut self, extent: Extent) {
        self.is_known[range(extent)].fill(false);
    }

    /// The first byte from `start` on that is another than is known, but for those left out.
    pub(crate) fn differing(&self, is: &[u8], start: u64, is_left_out: impl Fn(u64) -> bool) -> Option<u64> {
        let own = range(Extent { offset: start, length: is.len() as u64 });
        let (bytes, is_known) = (&self.bytes[own.clone()], &self.is_known[own]);
        // Most of it is the same, and slices are compared quickly.
        let differing = (0..is.len()).step_by(CHUNK).filter(|at| {
            let chunk = *at..is.len().min(at + CHUNK);
            bytes[chunk.clone()] != is[chunk]
        });
        differing
            .flat_map(|at| at..is.len().min(at + CHUNK))
            .filter(|at| bytes[*at] != is[*at] && is_known[*at])
            .map(|at| start + at as u64)
            .find(|byte| !is_left_out(*byte))
    }
}
