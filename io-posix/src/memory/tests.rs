use std::os::fd::AsFd;

use rustix::io::ReadWriteFlags;
use twinblock_core::{BufferIndex, Data, Memory, Pool};

use super::{Counts, Holder, HostPool, PoolSizes, SMALL_BYTES};
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

fn holder(account: u16, is_guaranteed: bool) -> Option<Holder> {
    Some(Holder { account, is_guaranteed })
}

/// Takes large buffers for a holder until it gets no more.
fn fill(pool: &mut HostPool, holder: Option<Holder>) -> Vec<BufferIndex> {
    pool.act_for(holder);
    std::iter::from_fn(|| pool.acquire(64 << 10)).collect()
}

#[test]
fn whoever_keeps_its_buffers_leaves_some_to_every_other_one() {
    let mut pool = pool(0, 32 + 48);
    pool.keep(32, 0, Counts::default());
    let counts: Vec<usize> = (0..32).map(|account| fill(&mut pool, holder(account, false)).len()).collect();
    assert_eq!(counts[..4], [1 + 24, 1 + 12, 1 + 6, 1 + 3]);
    assert!(counts.iter().all(|count| *count >= 1), "{counts:?}");
    assert_eq!(counts.iter().sum::<usize>(), 80);
}

#[test]
fn a_holder_gets_further_buffers_as_its_own_come_back() {
    let mut pool = pool(0, 2 + 8);
    pool.keep(2, 0, Counts::default());
    let taken = fill(&mut pool, holder(0, false));
    assert_eq!(taken.len(), 1 + 4);
    let other = fill(&mut pool, holder(1, false));
    assert_eq!(other.len(), 1 + 2);
    pool.release(other[2]);
    assert_eq!(fill(&mut pool, holder(0, false)), [], "what the other gave back is not for who has most");
    pool.release(taken[0]);
    pool.release(taken[4]);
    assert_eq!(fill(&mut pool, holder(0, false)).len(), 1 + 1);
}

#[test]
fn a_buffer_that_is_still_lent_counts_as_held() {
    let mut pool = pool(0, 2);
    pool.keep(1, 0, Counts::default());
    let taken = fill(&mut pool, holder(0, false));
    assert_eq!(taken.len(), 2);
    let lease = pool.lend(data(taken[0], 0, 512), Lend::Writing).unwrap();
    pool.release(taken[0]);
    assert_eq!(pool.acquire(64 << 10), None);
    pool.take_back(lease);
    assert_eq!(pool.acquire(64 << 10), Some(taken[0]));
}

#[test]
fn kept_buffers_are_only_for_holders_with_a_guarantee_and_each_has_its_own() {
    let mut pool = pool(0, 3 + 12);
    pool.keep(3, 2, Counts { small: 0, large: 3 });
    assert_eq!(fill(&mut pool, holder(0, false)).len(), 1 + 3, "half of the six that are for everybody");
    let first = fill(&mut pool, holder(1, true));
    assert_eq!(first.len(), 1 + 3 + 2, "of three free ones while it has fewer than are left");
    assert_eq!(fill(&mut pool, holder(2, true)).len(), 1 + 3 + 1);
    assert_eq!(pool.free_counts().1, 0);
    first.into_iter().for_each(|buffer| pool.release(buffer));
    assert_eq!(fill(&mut pool, holder(0, false)), [], "what was kept is kept again");
    assert_eq!(fill(&mut pool, holder(1, true)).len(), 1 + 3 + 1);
}

#[test]
fn without_a_holder_everything_that_is_free_can_be_taken() {
    let mut pool = pool(0, 4);
    pool.keep(1, 1, Counts { small: 0, large: 2 });
    assert_eq!(fill(&mut pool, None).len(), 4);
}
