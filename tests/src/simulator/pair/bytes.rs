//! What a range of bytes should hold, and what it may hold after requests that failed.

use std::collections::BTreeMap;
use std::ops::Range;

/// Bytes that are compared at a time.
const CHUNK: usize = 256;

/// An array of bytes; where a request has failed, a byte is its old or its new value.
#[derive(Clone, Debug)]
pub(super) struct Bytes {
    value: Vec<u8>,
    maybe: BTreeMap<usize, Vec<u8>>,
}

impl Bytes {
    pub(super) fn new(value: Vec<u8>) -> Self {
        Self { value, maybe: BTreeMap::new() }
    }

    pub(super) fn value(&self) -> &[u8] {
        &self.value
    }

    /// A request has succeeded.
    pub(super) fn wrote(&mut self, range: Range<usize>, new: &[u8]) {
        if !self.maybe.is_empty() {
            let mut rest = self.maybe.split_off(&range.start);
            let mut after = rest.split_off(&range.end);
            self.maybe.append(&mut after);
        }
        self.value[range].copy_from_slice(new);
    }

    /// A request has failed, and may have been carried out in part.
    pub(super) fn may_have_written(&mut self, range: Range<usize>, new: &[u8]) {
        for (at, byte) in range.zip(new) {
            if self.value[at] != *byte {
                self.maybe.entry(at).or_default().push(*byte);
            }
        }
    }

    pub(super) fn accepts(&self, at: usize, byte: u8) -> bool {
        self.value[at] == byte || self.maybe.get(&at).is_some_and(|others| others.contains(&byte))
    }

    /// The first byte of `is`, which begins at `from`, that neither this nor `excuse` explains.
    pub(super) fn first_wrong(
        &self,
        from: usize,
        is: &[u8],
        excuse: impl Fn(usize, u8) -> bool,
    ) -> Option<usize> {
        for (place, bytes) in is.chunks(CHUNK).enumerate() {
            let start = from + place * CHUNK;
            let should = &self.value[start..start + bytes.len()];
            if bytes == should {
                continue;
            }
            let mut differing =
                (start..).zip(bytes.iter().zip(should)).filter(|(_, (is, should))| is != should);
            let wrong = differing.find(|(at, (is, _))| !self.accepts(*at, **is) && !excuse(*at, **is));
            if let Some((at, _)) = wrong {
                return Some(at);
            }
        }
        None
    }
}
