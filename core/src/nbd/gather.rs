//! Puts a header together out of whatever pieces it arrives in.

/// Room for `N` bytes, filled from the front.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gather<const N: usize> {
    bytes: [u8; N],
    filled: usize,
}

impl<const N: usize> Gather<N> {
    /// Nothing yet.
    pub(super) const fn new() -> Self {
        Self { bytes: [0; N], filled: 0 }
    }

    /// Takes what is missing, or as much of it as there is; tells how much was taken.
    pub(super) fn take(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(N.saturating_sub(self.filled));
        if let (Some(to), Some(from)) =
            (self.bytes.get_mut(self.filled..self.filled + count), bytes.get(..count))
        {
            to.copy_from_slice(from);
            self.filled += count;
        }
        count
    }

    /// How many bytes there are.
    #[cfg(feature = "nbd-client")]
    pub(super) const fn filled(&self) -> usize {
        self.filled
    }

    /// What there is, and zeroes for the rest.
    #[cfg(feature = "nbd-client")]
    pub(super) const fn so_far(&self) -> &[u8; N] {
        &self.bytes
    }

    /// All of it, once there.
    pub(super) const fn whole(&self) -> Option<&[u8; N]> {
        if self.filled == N { Some(&self.bytes) } else { None }
    }
}
