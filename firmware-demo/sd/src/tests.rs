//! Regions and tables of a card in memory.

use std::cell::RefCell;
use std::fmt;
use std::vec;
use std::vec::Vec;

use embedded_sdmmc::{Block, BlockCount, BlockDevice, BlockIdx};
use twinblock_core::block::BlockingDisk;
use twinblock_core::{Errno, Extent};

use crate::{LayoutError, Partition, Region};

/// A card that counts what is asked of it and can refuse to write.
struct Card {
    blocks: RefCell<Vec<Block>>,
    /// Blocks that were read and written.
    counts: RefCell<(usize, usize)>,
    /// The block that cannot be written.
    bad: Option<u32>,
}

impl Card {
    fn new(blocks: usize) -> Self {
        let mut all = vec![Block::new(); blocks];
        for (index, block) in all.iter_mut().enumerate() {
            block.contents.fill(index as u8);
        }
        Self { blocks: RefCell::new(all), counts: RefCell::default(), bad: None }
    }

    fn with_table(blocks: usize, entries: &[(u8, u32, u32)]) -> Self {
        let card = Self::new(blocks);
        {
            let first = &mut card.blocks.borrow_mut()[0].contents;
            first.fill(0);
            for (at, (kind, start, count)) in entries.iter().enumerate() {
                let entry = &mut first[446 + 16 * at..][..16];
                entry[4] = *kind;
                entry[8..12].copy_from_slice(&start.to_le_bytes());
                entry[12..].copy_from_slice(&count.to_le_bytes());
            }
            first[510..].copy_from_slice(&[0x55, 0xaa]);
        }
        card
    }

    fn byte(&self, block: usize, at: usize) -> u8 {
        self.blocks.borrow()[block].contents[at]
    }
}

impl BlockDevice for Card {
    type Error = fmt::Error;

    fn read(&self, blocks: &mut [Block], start: BlockIdx) -> Result<(), fmt::Error> {
        self.counts.borrow_mut().0 += blocks.len();
        blocks.clone_from_slice(&self.blocks.borrow()[start.0 as usize..][..blocks.len()]);
        Ok(())
    }

    fn write(&self, blocks: &[Block], start: BlockIdx) -> Result<(), fmt::Error> {
        self.counts.borrow_mut().1 += blocks.len();
        if self.bad == Some(start.0) {
            return Err(fmt::Error);
        }
        self.blocks.borrow_mut()[start.0 as usize..][..blocks.len()].clone_from_slice(blocks);
        Ok(())
    }

    fn num_blocks(&self) -> Result<BlockCount, fmt::Error> {
        Ok(BlockCount(self.blocks.borrow().len() as u32))
    }
}

const FROM_8: Partition = Partition { kind: 1, first_block: 8, block_count: 4 };

#[test]
fn a_write_within_a_block_leaves_its_other_bytes() {
    let card = Card::new(16);
    Region::new(&card, FROM_8).write(512 + 3, &[77; 5]).unwrap();
    assert_eq!([2, 3, 7, 8].map(|at| card.byte(9, at)), [9, 77, 77, 9]);
    assert_eq!(*card.counts.borrow(), (1, 1));
}

#[test]
fn a_write_of_whole_blocks_reads_nothing() {
    let card = Card::new(16);
    Region::new(&card, FROM_8).write(512, &[77; 1024]).unwrap();
    assert_eq!((card.byte(8, 511), card.byte(9, 0), card.byte(10, 511), card.byte(11, 0)), (8, 77, 77, 11));
    assert_eq!(*card.counts.borrow(), (0, 2));
}

#[test]
fn a_read_that_begins_and_ends_within_blocks_gets_just_these_bytes() {
    let card = Card::new(16);
    let mut bytes = [0; 514];
    Region::new(&card, FROM_8).read(511, &mut bytes).unwrap();
    assert_eq!((bytes[0], bytes[1], bytes[512], bytes[513]), (8, 9, 9, 10));
}

#[test]
fn zeroes_reach_exactly_as_far_as_they_should() {
    let card = Card::new(16);
    Region::new(&card, FROM_8).write_zeroes(Extent { offset: 500, length: 1030 }).unwrap();
    assert_eq!((card.byte(8, 499), card.byte(8, 500), card.byte(9, 7)), (8, 0, 0));
    assert_eq!((card.byte(10, 505), card.byte(10, 506)), (0, 10));
    // The block that is zeroed whole is not read before.
    assert_eq!(*card.counts.borrow(), (2, 3));
}

#[test]
fn nothing_beyond_the_end_of_a_region_is_touched() {
    let card = Card::new(16);
    let mut region = Region::new(&card, FROM_8);
    assert_eq!(region.write(4 * 512, &[1]), Err(Errno::Invalid));
    assert_eq!(region.write(u64::MAX - 511, &[1]), Err(Errno::Invalid));
    assert_eq!(region.read(4 * 512, &mut [0]), Err(Errno::Invalid));
    assert_eq!(card.byte(12, 0), 12);
}

#[test]
fn what_the_card_refuses_is_an_input_output_error() {
    let card = Card { bad: Some(9), ..Card::new(16) };
    let mut region = Region::new(&card, FROM_8);
    assert_eq!(region.write(0, &[1; 1024]), Err(Errno::Io));
    assert_eq!(region.write(1024, &[1; 512]), Ok(()));
}

#[test]
fn the_table_names_the_partitions_in_its_order() {
    let card = Card::with_table(64, &[(0x83, 40, 8), (0, 1, 1), (0xda, 8, 32)]);
    let first = Partition { kind: 0x83, first_block: 40, block_count: 8 };
    let third = Partition { kind: 0xda, first_block: 8, block_count: 32 };
    assert_eq!(Partition::table(&card), Ok([Some(first), None, Some(third), None]));
}

#[test]
fn a_card_without_a_table_is_refused() {
    assert_eq!(Partition::table(&Card::new(4)), Err(LayoutError::NoTable));
}

#[test]
fn partitions_that_overlap_or_leave_the_card_are_refused() {
    for entries in [[(1, 8, 8), (1, 15, 8)], [(1, 8, 8), (1, 60, 5)], [(1, 8, 8), (1, u32::MAX, u32::MAX)]] {
        let card = Card::with_table(64, &entries);
        assert_eq!(Partition::table(&card), Err(LayoutError::BadTable), "{entries:?}");
    }
    assert!(Partition::table(&Card::with_table(64, &[(1, 8, 8), (1, 16, 48)])).is_ok());
}
