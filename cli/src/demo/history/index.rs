//! From a block to the writes that covered it.

use super::{Log, Named};
use crate::demo::block::Version;
use crate::demo::layout::Layout;

/// For each block the writes that covered it. Memory: 4 bytes for each block of the layout, and 8 for each block of
/// each write.
#[derive(Debug)]
pub(crate) struct Index<'a> {
    log: &'a Log,
    layout: Layout,
    /// Where the writes of each block start in `versions`; one more than there are blocks.
    starts: Vec<u32>,
    versions: Vec<Version>,
}

impl<'a> Index<'a> {
    /// Sorts all writes by block.
    pub(crate) fn new(log: &'a Log, layout: Layout) -> Self {
        let places = layout.places();
        let mut starts = vec![0_u32; places as usize + 1];
        for (_, write) in log.iter() {
            for number in write.first..write.first + u64::from(write.count) {
                if let Some(count) = layout.place(number).and_then(|place| starts.get_mut(place as usize + 1))
                {
                    *count += 1;
                }
            }
        }
        let mut total = 0;
        for start in &mut starts {
            total += *start;
            *start = total;
        }
        let mut versions = vec![Version::INITIAL; total as usize];
        let mut next = starts.clone();
        for (version, write) in log.iter() {
            for number in write.first..write.first + u64::from(write.count) {
                if let Some(at) = layout.place(number).and_then(|place| next.get_mut(place as usize))
                    && let Some(slot) = versions.get_mut(*at as usize)
                {
                    *slot = version;
                    *at += 1;
                }
            }
        }
        Self { log, layout, starts, versions }
    }

    /// The writes that covered a block.
    pub(crate) fn writers(&self, number: u64) -> Vec<Named<'a>> {
        let range = self.layout.place(number).and_then(|place| {
            let place = place as usize;
            Some(*self.starts.get(place)? as usize..*self.starts.get(place + 1)? as usize)
        });
        let versions = range.and_then(|range| self.versions.get(range)).unwrap_or_default();
        versions
            .iter()
            .filter_map(|version| Some(Named { version: *version, write: self.log.find(*version)? }))
            .collect()
    }
}
