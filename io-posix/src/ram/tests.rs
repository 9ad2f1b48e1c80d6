use twinblock_core::block::{Action, BlockDevice, Tag, Transfer};
use twinblock_core::{BufferIndex, Data, Errno, Extent, Memory, Outcome};

use super::{AHEAD_BYTES, PART_BYTES, Ram};
use crate::memory::{HostPool, PoolSizes};
use crate::poller::Poller;
use crate::workers::Workers;

const SIZE: u64 = (1 << 20) + 100;

struct Bench {
    ram: Ram,
    pool: HostPool,
}

impl Bench {
    fn new() -> Self {
        let sizes = PoolSizes { small_count: 0, large_count: 1, large_bytes: 2 << 20 };
        Self { ram: Ram::new(SIZE).unwrap(), pool: HostPool::new(sizes).unwrap() }
    }

    fn run(&mut self, action: Action, offset: u64, length: u64) -> Result<Outcome, Errno> {
        let tag = Tag { entry: 3, generation: 9 };
        let transfer = Transfer { tag, action, extent: Extent { offset, length } };
        self.ram.submit(transfer, &mut self.pool).unwrap();
        let completion = self.ram.poll(&mut self.pool).unwrap();
        assert_eq!(completion.tag, tag);
        completion.result
    }

    fn write(&mut self, offset: u64, length: u64, byte: u8) -> Result<Outcome, Errno> {
        self.pool.bytes(data(length)).unwrap().fill(byte);
        self.run(Action::Write { data: data(length), fua: false }, offset, length)
    }

    fn read(&mut self, offset: u64, length: u64) -> Vec<u8> {
        self.pool.bytes(data(length)).unwrap().fill(0xee);
        assert_eq!(self.run(Action::Read(data(length)), offset, length), Ok(Outcome::Done));
        self.pool.bytes(data(length)).unwrap().to_vec()
    }
}

fn data(length: u64) -> Data {
    Data { buffer: BufferIndex(0), offset: 0, length: u32::try_from(length).unwrap() }
}

const ZERO: Action = Action::WriteZeroes { may_unmap: true, fast: true, fua: false };

#[test]
fn what_was_written_is_read_and_the_rest_is_zero() {
    let mut bench = Bench::new();
    assert_eq!(bench.read(0, SIZE), vec![0; SIZE as usize]);
    bench.write(SIZE - 7, 7, 5).unwrap();
    let bytes = bench.read(SIZE - 8, 8);
    assert_eq!(bytes, [0, 5, 5, 5, 5, 5, 5, 5]);
    assert_eq!(bench.run(Action::Flush, 0, 0), Ok(Outcome::Done));
}

#[test]
fn zeroes_cover_the_range_and_nothing_else() {
    for (offset, length) in
        [(0, SIZE), (1, 100), (4095, 20_000), (4096, 4 * 4096), (100, 60_000), (SIZE - 1, 1)]
    {
        let mut bench = Bench::new();
        bench.write(0, SIZE, 7).unwrap();
        assert_eq!(bench.run(ZERO, offset, length), Ok(Outcome::Done));
        let bytes = bench.read(0, SIZE);
        for (place, byte) in (0..).zip(bytes) {
            let expected = if (offset..offset + length).contains(&place) { 0 } else { 7 };
            assert_eq!(byte, expected, "at {place} after zeroing {length} from {offset}");
        }
    }
}

#[test]
fn what_is_out_of_range_or_of_another_length_is_refused() {
    let mut bench = Bench::new();
    assert_eq!(bench.write(SIZE - 1, 2, 1), Err(Errno::Invalid));
    assert_eq!(bench.run(Action::Read(data(2)), u64::MAX, 2), Err(Errno::Invalid));
    assert_eq!(bench.run(Action::Read(data(2)), 0, 3), Err(Errno::Invalid));
    assert_eq!(bench.run(ZERO, 0, u64::MAX), Err(Errno::Invalid));
}

#[test]
fn a_full_queue_refuses_until_it_is_polled() {
    let mut bench = Bench::new();
    let transfer = Transfer { tag: Tag::default(), action: Action::Flush, extent: Extent::default() };
    let taken = (0..1000).take_while(|_| bench.ram.submit(transfer, &mut bench.pool).is_ok()).count();
    assert_eq!(taken, super::QUEUE_MAX);
    assert!(bench.ram.poll(&mut bench.pool).is_some());
    assert!(bench.ram.submit(transfer, &mut bench.pool).is_ok());
}

#[test]
fn the_memory_of_the_next_part_is_asked_for_once_and_before_the_present_one_is_full() {
    let waker = Poller::new(1).unwrap().waker();
    let workers = Workers::start(1, &waker).unwrap();
    let size = 9 << 20;
    let mut ram = Ram::new(size as u64).unwrap().beside(&workers);
    // The first may be short: parts begin where large pages do.
    assert!((1..=PART_BYTES).contains(&ram.unasked));
    ram.look_ahead(ram.unasked);
    let second = ram.unasked;
    ram.look_ahead(second - AHEAD_BYTES);
    assert_eq!(ram.unasked, second, "there is room enough");
    for _ in 0..2 {
        ram.look_ahead(second - AHEAD_BYTES + 1);
        assert_eq!(ram.unasked, second + PART_BYTES);
    }
    for _ in 0..10 {
        ram.look_ahead(size);
    }
    assert!((size..size + PART_BYTES).contains(&ram.unasked), "not beyond the end");
    // The helpers finish what they were given.
    drop(workers);
    assert!(ram.mapping.bytes_mut().iter().all(|byte| *byte == 0));
}
