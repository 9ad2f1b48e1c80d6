//! An SD card, or anything else that reads and writes blocks of 512 bytes, as block devices of Twinblock.
//!
//! The card itself is `embedded-sdmmc`'s (`SdCard` over any SPI bus of embedded-hal); here is what makes disks of it:
//!
//! * [`Partition::table`] reads the partition table, so that a card is laid out with the usual tools of any computer and
//!   the twin on it can be mounted there;
//! * [`Region`] is a range of the card as a [`BlockingDisk`], which `twinblock_core::block::Blocking` makes a queue pair of.
//!   Several of them share one card: the card is asked by reference, one call at a time.
//!
//! A driver for another kind of memory looks the same: the four methods of [`BlockingDisk`].
//!
//! ```
//! use embedded_sdmmc::{Block, BlockCount, BlockDevice, BlockIdx};
//! use std::cell::RefCell;
//! use twinblock_core::block::BlockingDisk;
//! use twinblock_sd::{Partition, Region};
//!
//! struct Card(RefCell<Vec<Block>>);
//! impl BlockDevice for Card {
//!     type Error = std::fmt::Error;
//!     fn read(&self, blocks: &mut [Block], start: BlockIdx) -> Result<(), Self::Error> {
//!         let card = self.0.borrow();
//!         blocks.clone_from_slice(card.get(start.0 as usize..).and_then(|rest| rest.get(..blocks.len())).ok_or(std::fmt::Error)?);
//!         Ok(())
//!     }
//!     fn write(&self, blocks: &[Block], start: BlockIdx) -> Result<(), Self::Error> {
//!         let mut card = self.0.borrow_mut();
//!         card.get_mut(start.0 as usize..).and_then(|rest| rest.get_mut(..blocks.len())).ok_or(std::fmt::Error)?.clone_from_slice(blocks);
//!         Ok(())
//!     }
//!     fn num_blocks(&self) -> Result<BlockCount, Self::Error> {
//!         Ok(BlockCount(self.0.borrow().len() as u32))
//!     }
//! }
//!
//! let card = Card(RefCell::new(vec![Block::new(); 64]));
//! let whole = Partition { kind: 0, first_block: 8, block_count: 16 };
//! let mut disk = Region::new(&card, whole);
//! assert_eq!(disk.size_bytes(), 16 * 512);
//! disk.write(510, b"across a boundary").unwrap();
//! let mut bytes = [0; 17];
//! disk.read(510, &mut bytes).unwrap();
//! assert_eq!(&bytes, b"across a boundary");
//! ```
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod partition;
mod region;
#[cfg(test)]
mod tests;

pub use partition::{LayoutError, Partition};
pub use region::Region;
