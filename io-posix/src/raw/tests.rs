use std::os::fd::AsFd;

use rustix::io::Errno;
use twinblock_core::buffer::index::{Index, Place};
use twinblock_core::{BufferIndex, Data};

use super::{Arena, Growing, Lend, Mapping, ofd_is_locked, ofd_lock_shared, ofd_unlock, unused_nodes};

#[test]
fn discarded_pages_read_as_zeroes() {
    let mut mapping = Growing::new(Mapping::new(3 * 4096).unwrap());
    mapping.bytes_mut().fill(7);
    mapping.discard(4096, 4096).unwrap();
    let bytes = mapping.bytes_mut();
    assert!(bytes[..4096].iter().all(|byte| *byte == 7));
    assert!(bytes[4096..8192].iter().all(|byte| *byte == 0));
    assert!(bytes[8192..].iter().all(|byte| *byte == 7));
    assert_eq!(mapping.discard(8192, 8192), Err(Errno::INVAL));
}

/// How many of the pages from there on take memory.
fn resident(mapping: &mut Growing, start: usize, length: usize) -> usize {
    let bytes = &mut mapping.bytes_mut()[start..start + length];
    let mut pages = vec![0_u8; length / 4096];
    // SAFETY: the range is whole pages of a mapping that lives, and there is a byte for each of them.
    let told = unsafe { libc::mincore(bytes.as_mut_ptr().cast(), length, pages.as_mut_ptr()) };
    assert_eq!(told, 0);
    pages.iter().filter(|page| **page & 1 != 0).count()
}

#[test]
fn memory_that_is_taken_ahead_changes_nothing_and_a_part_ends_with_its_mapping() {
    let mut mapping = Growing::new(Mapping::new(4 * 4096).unwrap());
    mapping.bytes_mut()[4096..8192].fill(7);
    assert_eq!(resident(&mut mapping, 8192, 8192), 0);
    let part = mapping.part(4096, 2 * 4096);
    std::thread::spawn(move || part.occupy().unwrap()).join().unwrap();
    assert_eq!((resident(&mut mapping, 4096, 8192), resident(&mut mapping, 12288, 4096)), (2, 0));
    assert!(mapping.bytes_mut()[4096..8192].iter().all(|byte| *byte == 7));
    assert!(mapping.bytes_mut()[8192..].iter().all(|byte| *byte == 0));
    mapping.part(8192, 1 << 20).occupy().unwrap();
    assert_eq!(resident(&mut mapping, 8192, 8192), 2);
    assert_eq!(mapping.part(1 << 20, 4096).occupy(), Ok(()));
}

#[test]
fn an_arena_lends_no_more_than_its_table_holds() {
    let mut arena = Arena::new([4096].into_iter(), 2).unwrap();
    let part = |offset| Data { buffer: BufferIndex(0), offset, length: 8 };
    let first = arena.lend(part(0), Lend::Writing).unwrap();
    let second = arena.lend(part(8), Lend::Writing).unwrap();
    assert!(!arena.can_lend());
    assert!(arena.lend(part(16), Lend::Writing).is_none());
    arena.take_back(first);
    let third = arena.lend(part(16), Lend::Writing).unwrap();
    assert!(arena.bytes_mut(part(0)).is_some());
    assert!(arena.bytes_mut(part(8)).is_none());
    arena.take_back(second);
    arena.take_back(third);
    assert!(!arena.is_lent(0));
}

#[test]
fn names_of_no_bytes_are_refused() {
    let mut arena = Arena::new([4096].into_iter(), 2).unwrap();
    let data = |buffer, offset, length| Data { buffer: BufferIndex(buffer), offset, length };
    assert!(arena.bytes_mut(data(1, 0, 1)).is_none());
    assert!(arena.bytes_mut(data(0, 4096, 1)).is_none());
    assert!(arena.bytes(data(0, u32::MAX, 2)).is_none());
    assert!(arena.lend(data(0, 1, 4096), Lend::Reading).is_none());
}

#[test]
fn a_lock_is_seen_by_another_description_of_the_same_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let other = file.reopen().unwrap();
    ofd_lock_shared(file.as_file().as_fd(), 100).unwrap();
    assert_eq!(ofd_is_locked(other.as_fd(), 100), Ok(true));
    assert_eq!(ofd_is_locked(other.as_fd(), 101), Ok(false));
    assert_eq!(ofd_is_locked(file.as_file().as_fd(), 100), Ok(false));
    ofd_unlock(file.as_file().as_fd(), 100).unwrap();
    assert_eq!(ofd_is_locked(other.as_fd(), 100), Ok(false));
}

#[test]
fn nodes_that_were_never_written_make_an_index() {
    assert_eq!(unused_nodes(0).unwrap().len(), 0);
    let mut nodes = unused_nodes(Index::nodes_for(100)).unwrap();
    let mut index = Index::new(&mut nodes);
    for granule in 0..100 {
        index.set(granule * 2, 1, Place::Slot(granule as u32)).unwrap();
    }
    assert_eq!(index.lookup(198, 8).place, Place::Slot(99));
    assert!(unused_nodes(usize::MAX).is_none());
}
