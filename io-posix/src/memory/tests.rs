use std::os::fd::AsFd;

use rustix::io::ReadWriteFlags;
use twinblock_core::{BufferIndex, Data, Memory, Pool};

use super::{HostPool, PoolSizes, SMALL_BYTES};
use crate::raw::Lend;

fn pool(small_count: u16, large_count: u16) -> HostPool {
    HostPool::new(PoolSizes { small_count, large_count, large_bytes: 64 << 10 }).unwrap()
}

fn data(buffer: BufferIndex, offset: u32, length: u32) -> Data {
    Data { buffer, offset, length }
}

#[test]
fn a_request_gets_the_smallest_buffer_that_fits() {
    let mut pool = pool(2, 4);
    let small = pool.acquire(SMALL_BYTES).unwrap();
    let large = pool.acquire(SMALL_BYTES + 1).unwrap();
    assert!(pool.bytes(data(small, 0, SMALL_BYTES + 1)).is_none());
    assert_eq!(pool.bytes(data(large, 0, 64 << 10)).unwrap().len(), 64 << 10);
    assert!(pool.acquire((64 << 10) + 1).is_none());
    assert_eq!(pool.free_counts(), (1, 3));
}

#[test]
fn small_requests_leave_half_of_the_large_buffers_alone() {
    let mut pool = pool(1, 4);
    let taken: Vec<_> = std::iter::from_fn(|| pool.acquire(1)).collect();
    assert_eq!(taken.len(), 3);
    assert_eq!(pool.free_counts(), (0, 2));
    assert!(pool.acquire(SMALL_BYTES + 1).is_some());
}

#[test]
fn a_buffer_given_back_twice_is_free_once() {
    let mut pool = pool(2, 0);
    let buffer = pool.acquire(1).unwrap();
    pool.release(buffer);
    pool.release(buffer);
    pool.release(BufferIndex(900));
    assert_eq!(pool.free_counts(), (2, 0));
}

#[test]
fn reserved_buffers_are_large_and_never_acquired_nor_released() {
    let mut pool = pool(2, 4);
    let first = pool.reserve(1).unwrap();
    let second = pool.reserve(2).unwrap();
    assert_eq!((first.clone(), second), (2..3, 3..5));
    assert!(pool.reserve(2).is_none());
    pool.release(BufferIndex(first.start));
    assert_eq!(pool.acquire(64 << 10), Some(BufferIndex(5)));
    assert_eq!(pool.acquire(64 << 10), None);
    assert_eq!(pool.bytes(data(BufferIndex(2), 0, 64 << 10)).unwrap().len(), 64 << 10);
}

#[test]
fn buffers_do_not_share_bytes_and_begin_at_pages() {
    let mut pool = pool(3, 3);
    for index in 0..6u8 {
        let length = if index < 3 { SMALL_BYTES } else { 64 << 10 };
        let bytes = pool.bytes(data(BufferIndex(u16::from(index)), 0, length)).unwrap();
        assert_eq!(bytes.as_ptr().addr() % 4096, 0);
        bytes.fill(index + 1);
    }
    for index in 0..6u8 {
        let bytes = pool.bytes(data(BufferIndex(u16::from(index)), 0, SMALL_BYTES)).unwrap();
        assert!(bytes.iter().all(|byte| *byte == index + 1));
    }
}

#[test]
fn lent_bytes_cannot_be_reached_until_they_come_back() {
    let mut pool = pool(1, 1);
    let buffer = pool.acquire(1).unwrap();
    let changing = pool.lend(data(buffer, 0, 512), Lend::Writing).unwrap();
    assert!(pool.bytes(data(buffer, 511, 1)).is_none());
    assert!(pool.shared(data(buffer, 0, 1)).is_none());
    assert!(pool.bytes(data(buffer, 512, 512)).is_some());
    assert!(pool.lend(data(buffer, 100, 1), Lend::Reading).is_none());

    let reading = pool.lend(data(buffer, 512, 512), Lend::Reading).unwrap();
    let again = pool.lend(data(buffer, 512, 512), Lend::Reading).unwrap();
    assert!(pool.shared(data(buffer, 512, 512)).is_some());
    assert!(pool.bytes(data(buffer, 1023, 1)).is_none());

    pool.take_back(reading);
    assert!(pool.bytes(data(buffer, 1023, 1)).is_none());
    pool.take_back(again);
    assert!(pool.bytes(data(buffer, 1023, 1)).is_some());
    pool.take_back(changing);
    assert!(pool.bytes(data(buffer, 0, 1024)).is_some());
}

#[test]
fn a_buffer_released_while_lent_is_free_only_when_it_has_come_back() {
    let mut pool = pool(1, 0);
    let buffer = pool.acquire(1).unwrap();
    let lease = pool.lend(data(buffer, 0, 512), Lend::Writing).unwrap();
    pool.release(buffer);
    assert!(pool.acquire(1).is_none());
    pool.take_back(lease);
    assert_eq!(pool.acquire(1), Some(buffer));
}

#[test]
fn a_lease_outlives_its_pool() {
    let file = tempfile::tempfile().unwrap();
    let mut pool = pool(1, 0);
    let buffer = pool.acquire(1).unwrap();
    pool.bytes(data(buffer, 0, 4)).unwrap().copy_from_slice(b"twin");
    let lease = pool.lend(data(buffer, 0, 4), Lend::Reading).unwrap();
    drop(pool);
    assert_eq!(lease.store(1, file.as_fd(), 0, ReadWriteFlags::empty()), Ok(3));
}

#[test]
fn a_lease_of_one_pool_does_nothing_to_another() {
    let (mut one, mut other) = (pool(1, 0), pool(1, 0));
    let buffer = one.acquire(1).unwrap();
    assert_eq!(other.acquire(1), Some(buffer));
    let lease = one.lend(data(buffer, 0, 4), Lend::Writing).unwrap();
    let kept = other.lend(data(buffer, 0, 4), Lend::Writing).unwrap();
    other.take_back(lease);
    assert!(other.bytes(data(buffer, 0, 4)).is_none());
    other.take_back(kept);
    assert!(other.bytes(data(buffer, 0, 4)).is_some());
}

#[test]
fn kept_buffers_are_left_to_whoever_needs_not_keep_them() {
    let mut pool = pool(2, 2);
    pool.keep_free(1, 1);
    assert!(pool.acquire(1).is_some() && pool.acquire(SMALL_BYTES + 1).is_some());
    assert_eq!((pool.acquire(1), pool.acquire(SMALL_BYTES + 1)), (None, None));
    pool.keep_free(0, 0);
    assert!(pool.acquire(1).is_some() && pool.acquire(SMALL_BYTES + 1).is_some());
}
