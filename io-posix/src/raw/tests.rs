use std::os::fd::AsFd;

use rustix::io::Errno;
use twinblock_core::buffer::index::{Index, Place};
use twinblock_core::{BufferIndex, Data};

use super::{Arena, Lend, Mapping, ofd_is_locked, ofd_lock_shared, ofd_unlock, unused_nodes};

#[test]
fn discarded_pages_read_as_zeroes() {
    let mut mapping = Mapping::new(3 * 4096).unwrap();
    mapping.bytes_mut().fill(7);
    mapping.discard(4096, 4096).unwrap();
    let bytes = mapping.bytes_mut();
    assert!(bytes[..4096].iter().all(|byte| *byte == 7));
    assert!(bytes[4096..8192].iter().all(|byte| *byte == 0));
    assert!(bytes[8192..].iter().all(|byte| *byte == 7));
    assert_eq!(mapping.discard(8192, 8192), Err(Errno::INVAL));
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
