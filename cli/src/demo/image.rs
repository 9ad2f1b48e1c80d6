//! What is on the disks in the beginning.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::Context;

use super::block::{BLOCK_BYTES, Block, Content, Stamp, Version};
use super::history::Seen;

/// Blocks of one stripe of the disk that the demo makes itself.
const STRIPE_BLOCKS: u64 = (64 << 10) / BLOCK_BYTES as u64;
/// Bytes that are copied at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// What is on the disks in the beginning.
#[derive(Debug)]
pub(crate) enum Image {
    /// Stripes of stamped blocks, and holes between them.
    Striped {
        /// Makes the blocks.
        stamp: Stamp,
        /// Size of the disk.
        size_bytes: u64,
    },
    /// A copy of this file.
    File {
        /// Opened for reading.
        file: File,
        /// Its size.
        size_bytes: u64,
    },
}

impl Image {
    /// Opens the image that shall be copied.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        use std::io::{Seek, SeekFrom};
        let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        anyhow::ensure!(!file.metadata()?.is_dir(), "{} is a directory: name an image", path.display());
        let size_bytes =
            file.seek(SeekFrom::End(0)).with_context(|| format!("size of {}", path.display()))?;
        Ok(Self::File { file, size_bytes })
    }

    /// Size of the disk.
    pub(crate) const fn size_bytes(&self) -> u64 {
        match self {
            Self::Striped { size_bytes, .. } | Self::File { size_bytes, .. } => *size_bytes,
        }
    }

    /// Fills `bytes` with what was at `offset`, a multiple of a block.
    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let stamp = match self {
            Self::File { file, .. } => return file.read_exact_at(bytes, offset),
            Self::Striped { stamp, .. } => *stamp,
        };
        let first = offset / BLOCK_BYTES as u64;
        for (number, place) in (first..).zip(bytes.chunks_mut(BLOCK_BYTES)) {
            let mut block: Block = [0; BLOCK_BYTES];
            if (number / STRIPE_BLOCKS).is_multiple_of(2) {
                stamp.write(&mut block, number, Version::INITIAL);
            }
            place.copy_from_slice(&block[..place.len()]);
        }
        Ok(())
    }

    /// Makes a disk with this content; what is zero is left a hole.
    /// `check` is asked again and again whether to go on.
    pub(crate) fn write_to(&self, path: &Path, check: impl Fn() -> anyhow::Result<()>) -> anyhow::Result<()> {
        let context = || format!("cannot write {}", path.display());
        let file = File::create_new(path).with_context(context)?;
        file.set_len(self.size_bytes()).with_context(context)?;
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut offset = 0;
        while offset < self.size_bytes() {
            check()?;
            let length = (self.size_bytes() - offset).min(CHUNK_BYTES as u64);
            let bytes = &mut chunk[..length as usize];
            self.read(offset, bytes).context("cannot read the image")?;
            for (index, part) in bytes.chunks(64 << 10).enumerate() {
                if part.iter().any(|byte| *byte != 0) {
                    file.write_all_at(part, offset + (index as u64 * (64 << 10))).with_context(context)?;
                }
            }
            offset += length;
        }
        Ok(())
    }
}

/// What a block shows that held `initial` in the beginning.
pub(crate) fn recognise(stamp: Stamp, number: u64, block: &Block, initial: &[u8]) -> Seen {
    let is_initial = block.as_slice() == initial;
    match stamp.read(block, number) {
        Content::Zero if is_initial => Seen::ZeroOrInitial,
        Content::Zero => Seen::Zero,
        _ if is_initial => Seen::Initial,
        Content::Version(version) => Seen::Version(version),
        Content::Misplaced => Seen::Misplaced,
        Content::Damaged => Seen::Damaged,
        Content::Foreign => Seen::Foreign,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_disk_holds_what_was_said_and_has_holes() {
        let directory = tempfile::tempdir().unwrap();
        let stamp = Stamp::new(1);
        let image = Image::Striped { stamp, size_bytes: (3 << 20) + 100 };
        let path = directory.path().join("a");
        image.write_to(&path, || Ok(())).unwrap();
        assert!(image.write_to(&path, || Ok(())).is_err(), "nothing is overwritten");
        let copy = Image::open(&path).unwrap();
        assert_eq!(copy.size_bytes(), image.size_bytes());
        let read = |image: &Image, offset: u64| {
            let mut bytes = vec![1; 1 << 18];
            let length = bytes.len().min((image.size_bytes() - offset) as usize);
            image.read(offset, &mut bytes[..length]).unwrap();
            bytes
        };
        for offset in (0..3 << 20).step_by(1 << 18).chain([3 << 20]) {
            assert_eq!(read(&image, offset), read(&copy, offset), "{offset}");
        }
        let bytes = read(&copy, 0);
        let block: &Block = bytes[..512].try_into().unwrap();
        assert_eq!(stamp.read(block, 0), Content::Version(Version::INITIAL));
        assert_eq!(bytes[64 << 10..65 << 10], [0; 1024]);
    }

    #[test]
    fn first_content_is_recognised_before_everything_else() {
        let stamp = Stamp::new(1);
        let mut block = [0; BLOCK_BYTES];
        assert_eq!(recognise(stamp, 5, &block, &[0; BLOCK_BYTES]), Seen::ZeroOrInitial);
        assert_eq!(recognise(stamp, 5, &block, &[1; BLOCK_BYTES]), Seen::Zero);
        let version = Version { connection: 1, index: 2 };
        stamp.write(&mut block, 5, version);
        assert_eq!(recognise(stamp, 5, &block, &[1; BLOCK_BYTES]), Seen::Version(version));
        assert_eq!(recognise(stamp, 5, &block, &block.clone()), Seen::Initial);
        assert_eq!(recognise(stamp, 6, &block, &[1; BLOCK_BYTES]), Seen::Misplaced);
        assert_eq!(recognise(stamp, 6, &[7; BLOCK_BYTES], &[1; BLOCK_BYTES]), Seen::Foreign);
    }
}
