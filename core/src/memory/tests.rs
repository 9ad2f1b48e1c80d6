use std::vec;

use super::{BufferIndex, Data, Memory, Pool, Windows};

const fn data(buffer: u16, offset: u32, length: u32) -> Data {
    Data { buffer: BufferIndex(buffer), offset, length }
}

#[test]
fn a_name_stands_for_its_bytes_and_for_no_others() {
    let mut bytes: vec::Vec<u8> = (0..50).collect();
    let mut memory = Windows::new(&mut bytes, 16);
    assert_eq!(memory.count(), 3, "what is left over is none");
    assert_eq!(memory.bytes(data(0, 0, 2)).unwrap(), [0, 1]);
    assert_eq!(memory.bytes(data(2, 14, 2)).unwrap(), [46, 47]);
    assert_eq!(memory.bytes(data(1, 0, 16)).unwrap().len(), 16);
    for outside in
        [data(1, 15, 2), data(1, 0, 17), data(1, u32::MAX, 2), data(3, 0, 16), data(u16::MAX, 0, 1)]
    {
        assert!(memory.bytes(outside).is_none(), "{outside:?}");
    }
    assert_eq!(data(3, 5, 10).part(2, 4), data(3, 7, 4));
}

#[test]
fn each_buffer_is_given_once_until_it_comes_back() {
    let mut bytes = [0; 4 * 8];
    let mut pool = Windows::new(&mut bytes, 8);
    pool.reserve(1);
    assert_eq!(pool.acquire(9), None, "longer than a buffer");
    let given = [8, 1, 0].map(|length| pool.acquire(length));
    assert_eq!(given, [1, 2, 3].map(|index| Some(BufferIndex(index))));
    assert_eq!(pool.acquire(1), None);
    pool.release(BufferIndex(2));
    pool.release(BufferIndex(64));
    pool.release(BufferIndex(u16::MAX));
    assert_eq!(pool.acquire(8), Some(BufferIndex(2)));
    assert_eq!(pool.acquire(8), None);
}

#[test]
fn there_are_64_buffers_at_most() {
    let mut bytes = [0; 70];
    let mut pool = Windows::new(&mut bytes, 1);
    assert_eq!(pool.count(), 64);
    pool.reserve(100);
    assert_eq!(pool.acquire(1), None);
    pool.release(BufferIndex(63));
    assert_eq!(pool.acquire(1), Some(BufferIndex(63)));
    let mut bytes = [0; 3];
    assert_eq!(Windows::new(&mut bytes, 0).count(), 3, "a window of 0 is taken for 1");
}
