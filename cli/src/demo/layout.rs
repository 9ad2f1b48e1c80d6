//! Where on the disk the workload writes: everywhere on a small disk, in areas spread over a large one, so that the
//! memory of the history does not grow with the disk.

use super::block::BLOCK_BYTES;

/// Most blocks that the workload writes to: 512 MiB.
const PLACES_MAX: u64 = (512 << 20) / BLOCK_BYTES as u64;
/// Number of areas on a larger disk.
const AREAS: u64 = 64;

/// The areas that are written to, all alike and equally far apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    size_bytes: u64,
    area_blocks: u64,
    stride_blocks: u64,
    areas: u64,
}

impl Layout {
    /// For a disk of this size.
    pub(crate) const fn new(size_bytes: u64) -> Self {
        let blocks = size_bytes / BLOCK_BYTES as u64;
        if blocks <= PLACES_MAX {
            return Self { size_bytes, area_blocks: blocks, stride_blocks: blocks, areas: 1 };
        }
        Self { size_bytes, area_blocks: PLACES_MAX / AREAS, stride_blocks: blocks / AREAS, areas: AREAS }
    }

    /// Size of the disk.
    pub(crate) const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Number of areas.
    pub(crate) const fn areas(&self) -> u64 {
        self.areas
    }

    /// Blocks of one area.
    pub(crate) const fn area_blocks(&self) -> u64 {
        self.area_blocks
    }

    /// First block of an area.
    pub(crate) const fn area_first(&self, area: u64) -> u64 {
        area * self.stride_blocks
    }

    /// How many blocks are in the areas.
    pub(crate) const fn places(&self) -> u64 {
        self.area_blocks * self.areas
    }

    /// Where a block is among the blocks of the areas; `None` if it is in none.
    pub(crate) const fn place(&self, number: u64) -> Option<u64> {
        if self.stride_blocks == 0 {
            return None;
        }
        let (area, within) = (number / self.stride_blocks, number % self.stride_blocks);
        if area < self.areas && within < self.area_blocks {
            Some(area * self.area_blocks + within)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_disk_is_written_everywhere() {
        let layout = Layout::new((64 << 20) + 100);
        assert_eq!((layout.areas(), layout.places()), (1, (64 << 20) / 512));
        assert_eq!(layout.place(layout.places() - 1), Some(layout.places() - 1));
        assert_eq!(layout.place(layout.places()), None);
    }

    #[test]
    fn the_areas_of_a_large_disk_do_not_meet() {
        let layout = Layout::new(100 << 30);
        let mut expected = 0;
        for area in 0..layout.areas() {
            let first = layout.area_first(area);
            assert_eq!(layout.place(first), Some(expected));
            expected += layout.area_blocks();
            assert_eq!(layout.place(first + layout.area_blocks() - 1), Some(expected - 1));
            assert_eq!(layout.place(first + layout.area_blocks()), None);
        }
        assert_eq!(expected, layout.places());
    }

    #[test]
    fn a_disk_smaller_than_a_block_has_no_places() {
        let layout = Layout::new(511);
        assert_eq!((layout.places(), layout.place(0)), (0, None));
    }
}
