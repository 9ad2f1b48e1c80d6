use std::collections::BTreeMap;
use std::vec::Vec;
use std::{assert, assert_eq, vec};

use twinblock_core::block::{Action, BlockDevice, Capabilities, Completion, QueueFull, Tag, Transfer};
use twinblock_core::{BufferIndex, Data, Errno, Extent, Memory, Outcome};
use virtio_drivers::transport::DeviceType;

use crate::{DmaWindows, OpenError};
use model::{Disk, Model, Request};

mod model;

const DONE: Result<Outcome, Errno> = Ok(Outcome::Done);
const FLUSH: u64 = 1 << 9;
const ZEROES: u64 = 1 << 14;
const WINDOW: u32 = 4096;

/// A disk of 1 MiB, the device behind it, and memory.
struct Rig {
    disk: Disk,
    device: Model,
    memory: DmaWindows,
}

impl Rig {
    fn new(features: u64) -> Self {
        let device = Model::new(features);
        let disk = device.disk().unwrap();
        let bytes = vec![0; 8 * WINDOW as usize].leak();
        Self { disk, device, memory: DmaWindows::new(bytes, WINDOW) }
    }

    fn submit(&mut self, entry: u16, action: Action, offset: u64, length: u64) -> Result<(), QueueFull> {
        self.disk.submit(transfer(entry, action, offset, length), &mut self.memory)
    }

    fn fill(&mut self, data: Data, byte: u8) {
        self.memory.bytes(data).unwrap().fill(byte);
    }

    /// What has come, in its order.
    fn poll(&mut self) -> Vec<(u16, Result<Outcome, Errno>)> {
        core::iter::from_fn(|| self.disk.poll(&mut self.memory))
            .map(|Completion { tag, result }| {
                assert_eq!(tag.generation, 7);
                (tag.entry, result)
            })
            .collect()
    }

    /// Lets the device do all that it is asked, one request after the other; what it was asked.
    fn run(&mut self) -> Vec<Request> {
        let mut asked = vec![];
        while let Some(token) = self.device.waiting().first().copied() {
            asked.push(self.device.complete(token, 0));
            // What follows is asked when a completion is looked for.
            let ended = self.poll();
            self.device.notes(ended);
        }
        asked
    }
}

fn transfer(entry: u16, action: Action, offset: u64, length: u64) -> Transfer {
    Transfer { tag: Tag { entry, generation: 7 }, action, extent: Extent { offset, length } }
}

fn data(buffer: u16, length: u32) -> Data {
    Data { buffer: BufferIndex(buffer), offset: 0, length }
}

fn write(buffer: u16, length: u32) -> Action {
    Action::Write { data: data(buffer, length), fua: false }
}

const fn zeroes(fast: bool, fua: bool) -> Action {
    Action::WriteZeroes { may_unmap: true, fast, fua }
}

#[test]
fn completions_are_found_by_their_token_in_whatever_order_they_come() {
    let mut rig = Rig::new(0);
    for entry in 0..5 {
        rig.fill(data(entry, 1024), entry as u8 + 1);
        rig.submit(entry, write(entry, 1024), u64::from(entry) * 8192, 1024).unwrap();
    }
    let waiting = rig.device.waiting();
    assert_eq!(waiting.len(), 5, "all of them are with the device");
    for at in [3, 0, 4, 1, 2] {
        rig.device.complete(waiting[at], 0);
    }
    let mut ended = rig.poll();
    ended.sort_by_key(|(entry, _)| *entry);
    assert_eq!(ended, (0..5).map(|entry| (entry, DONE)).collect::<Vec<_>>());
    for entry in 0..5u16 {
        let at = usize::from(entry) * 8192;
        assert!(rig.device.bytes()[at..at + 1024].iter().all(|byte| u16::from(*byte) == entry + 1));
    }
    // And one by one, the last first.
    for entry in 0..3 {
        rig.submit(entry, Action::Read(data(entry, 512)), u64::from(entry) * 8192, 512).unwrap();
    }
    let waiting = rig.device.waiting();
    for at in [2u16, 0, 1] {
        rig.device.complete(waiting[usize::from(at)], 0);
        assert_eq!(rig.poll(), [(at, DONE)]);
        assert!(rig.memory.bytes(data(at, 512)).unwrap().iter().all(|byte| u16::from(*byte) == at + 1));
    }
}

#[test]
fn what_a_device_is_writing_is_given_to_nobody_until_it_is_there() {
    let mut rig = Rig::new(0);
    let part = Data { buffer: BufferIndex(2), offset: 1024, length: 512 };
    rig.submit(0, Action::Read(part), 0, 512).unwrap();
    let beside = [Data { offset: 0, length: 1024, ..part }, Data { offset: 1536, ..part }, data(1, 4096)];
    for data in beside {
        assert!(rig.memory.bytes(data).is_some(), "{data:?}");
    }
    let over = [part, Data { offset: 1535, length: 1, ..part }, Data { offset: 512, length: 513, ..part }];
    for data in over {
        assert!(rig.memory.bytes(data).is_none(), "{data:?}");
    }
    // Nor to another device.
    rig.submit(1, Action::Read(part), 512, 512).unwrap();
    assert_eq!(rig.poll(), [(1, Err(Errno::Invalid))]);
    rig.run();
    for data in over {
        assert!(rig.memory.bytes(data).is_some(), "{data:?}");
    }
    // What the device only reads may be read by others too.
    rig.submit(2, write(3, 512), 0, 512).unwrap();
    assert!(rig.memory.bytes(data(3, 512)).is_some());
}

#[test]
fn a_durable_write_is_flushed_once_it_is_written_and_a_failed_one_is_not() {
    for (features, flushes) in [(FLUSH, 1), (0, 0)] {
        let mut rig = Rig::new(features);
        rig.submit(0, Action::Write { data: data(0, 4096), fua: true }, 512, 4096).unwrap();
        let asked = rig.run();
        assert_eq!(asked[0], Request::Out { sector: 1, bytes: 4096 });
        assert_eq!(asked[1..], vec![Request::Flush; flushes]);
        assert_eq!(rig.device.ended(), [(0, DONE)]);
        rig.submit(1, Action::Write { data: data(0, 4096), fua: true }, 512, 4096).unwrap();
        let token = rig.device.waiting()[0];
        rig.device.complete(token, 1);
        assert_eq!(rig.poll(), [(1, Err(Errno::Io))]);
        assert!(rig.device.waiting().is_empty());
    }
}

#[test]
fn a_flush_is_one_of_several_requests_in_flight() {
    let mut rig = Rig::new(FLUSH);
    rig.submit(0, write(0, 512), 0, 512).unwrap();
    rig.submit(1, Action::Flush, 0, 0).unwrap();
    rig.submit(2, write(1, 512), 512, 512).unwrap();
    let waiting = rig.device.waiting();
    assert_eq!(rig.device.complete(waiting[2], 0), Request::Out { sector: 1, bytes: 512 });
    assert_eq!(rig.poll(), [(2, DONE)]);
    assert_eq!(rig.device.complete(waiting[1], 1), Request::Flush);
    assert_eq!(rig.poll(), [(1, Err(Errno::Io))]);
    // A device without a cache has nothing to flush.
    let mut rig = Rig::new(0);
    rig.submit(0, Action::Flush, 0, 0).unwrap();
    assert!(rig.device.waiting().is_empty());
    assert_eq!(rig.poll(), [(0, DONE)]);
}

#[test]
fn zeroes_are_asked_for_in_the_parts_that_the_device_takes_or_written_out() {
    let mut rig = Rig::new(ZEROES | FLUSH);
    rig.submit(0, zeroes(false, true), 512, 100 * 512).unwrap();
    let part = |sector, count| Request::WriteZeroes { sector, count, may_unmap: true };
    assert_eq!(rig.run(), [part(1, 64), part(65, 36), Request::Flush]);
    assert_eq!(rig.device.ended(), [(0, DONE)]);
    let range = 512..101 * 512;
    let outside = |bytes: &[u8]| bytes[..512].iter().chain(&bytes[101 * 512..]).all(|byte| *byte == 0xee);
    assert!(rig.device.bytes()[range.clone()].iter().all(|byte| *byte == 0) && outside(&rig.device.bytes()));

    let mut rig = Rig::new(0);
    rig.submit(0, zeroes(false, false), 512, 100 * 512).unwrap();
    let asked = rig.run();
    assert_eq!(asked.len(), 13, "4 KiB at a time");
    assert_eq!(asked[12], Request::Out { sector: 97, bytes: 2048 });
    assert!(rig.device.bytes()[range].iter().all(|byte| *byte == 0) && outside(&rig.device.bytes()));
    assert_eq!(rig.device.ended(), [(0, DONE)]);
}

#[test]
fn what_the_device_reports_is_told_and_nothing_follows_it() {
    for (status, errno) in [(1, Errno::Io), (2, Errno::Unsupported), (3, Errno::Io), (0xff, Errno::Io)] {
        let mut rig = Rig::new(ZEROES | FLUSH);
        let actions = [(Action::Read(data(0, 512)), 512), (write(1, 512), 512), (zeroes(false, true), 65536)];
        for (entry, (action, length)) in actions.into_iter().enumerate() {
            rig.submit(entry as u16, action, 0, length).unwrap();
            let token = rig.device.waiting()[0];
            rig.device.complete(token, status);
            assert_eq!(rig.poll(), [(entry as u16, Err(errno))]);
            assert!(rig.device.waiting().is_empty());
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_before_the_device_hears_of_it() {
    let mut rig = Rig::new(ZEROES);
    let size = rig.disk.geometry().size_bytes;
    let cases = [
        (zeroes(false, false), size, 512, Errno::Invalid),
        (zeroes(false, false), u64::MAX - 511, 512, Errno::Invalid),
        (zeroes(false, false), 1, 512, Errno::Invalid),
        (write(0, 100), 0, 100, Errno::Invalid),
        (write(0, 1024), 0, 512, Errno::Invalid),
        (write(8, 512), 0, 512, Errno::Invalid),
        (Action::Read(data(8, 512)), 0, 512, Errno::Invalid),
        (Action::Read(Data { offset: 4000, ..data(0, 512) }), 0, 512, Errno::Invalid),
        (zeroes(true, false), 0, 512, Errno::Unsupported),
        (Action::Status, 0, 512, Errno::Unsupported),
    ];
    for (action, offset, length, errno) in cases {
        rig.submit(1, action, offset, length).unwrap();
        assert_eq!(rig.poll(), [(1, Err(errno))], "{action:?} at {offset}");
    }
    rig.submit(1, zeroes(false, false), size, 0).unwrap();
    assert_eq!(rig.poll(), [(1, DONE)], "nothing to do");
    assert_eq!(rig.device.notified(), 0);
    let mut rig = Rig::new(1 << 5);
    rig.submit(1, write(0, 512), 0, 512).unwrap();
    assert_eq!(rig.poll(), [(1, Err(Errno::NotPermitted))], "it takes no modifications");
}

#[test]
fn a_full_queue_takes_no_more_until_a_completion_was_polled() {
    let mut rig = Rig::new(FLUSH);
    for entry in 0..5 {
        rig.submit(entry, write(0, 512), u64::from(entry) * 512, 512).unwrap();
    }
    assert_eq!(rig.submit(5, Action::Flush, 0, 0), Err(QueueFull));
    let token = rig.device.waiting()[1];
    rig.device.complete(token, 0);
    assert_eq!(rig.submit(5, Action::Flush, 0, 0), Err(QueueFull));
    assert_eq!(rig.poll(), [(1, DONE)]);
    rig.submit(5, Action::Flush, 0, 0).unwrap();
    rig.run();
    assert_eq!(rig.device.ended().len(), 5);
}

#[test]
fn a_device_that_completes_what_it_was_not_asked_is_reset_and_everything_fails_once() {
    for token in [1, 15, 16, 9999] {
        let mut rig = Rig::new(FLUSH);
        rig.submit(0, Action::Read(data(0, 512)), 0, 512).unwrap();
        rig.submit(1, Action::Flush, 0, 0).unwrap();
        rig.device.pretend(token);
        assert_eq!(rig.poll(), [(0, Err(Errno::Io)), (1, Err(Errno::Io))], "token {token}");
        assert!(rig.disk.is_broken() && rig.device.is_reset());
        assert!(rig.memory.bytes(data(0, 512)).is_some(), "it is left alone");
        rig.submit(2, Action::Flush, 0, 0).unwrap();
        assert_eq!(rig.poll(), [(2, Err(Errno::Io))]);
    }
}

#[test]
fn the_indices_of_the_rings_wrap() {
    let mut rig = Rig::new(0);
    let mut counts = BTreeMap::new();
    for round in 0..30_000u32 {
        for entry in 0..3 {
            rig.submit(entry, write(entry, 512), u64::from(entry) * 512, 512).unwrap();
        }
        let mut waiting = rig.device.waiting();
        assert_eq!(waiting.len(), 3, "round {round}");
        waiting.rotate_left(round as usize % 3);
        for token in waiting {
            rig.device.complete(token, 0);
        }
        for (entry, result) in rig.poll() {
            assert_eq!(result, DONE);
            *counts.entry(entry).or_insert(0) += 1;
        }
    }
    assert_eq!(counts, BTreeMap::from([(0, 30_000), (1, 30_000), (2, 30_000)]));
}

#[test]
fn the_shape_of_the_disk_is_that_of_the_device() {
    let rig = Rig::new(0);
    let geometry = rig.disk.geometry();
    assert_eq!((geometry.size_bytes, geometry.block_bytes), (1 << 20, 512));
    assert_eq!(geometry.capabilities, Capabilities::empty());
    // Whatever else it offers is not taken.
    let rig = Rig::new(u64::MAX);
    let all = Capabilities::FLUSH | Capabilities::WRITE_ZEROES | Capabilities::READ_ONLY;
    assert_eq!(rig.disk.geometry().capabilities, all);
    assert_eq!(rig.device.taken_features(), FLUSH | ZEROES | 1 << 5 | 1 << 32);
    let mut other = Model::new(0);
    other.set_kind(DeviceType::Network);
    assert_eq!(other.disk().err(), Some(OpenError::OtherDevice(DeviceType::Network)));
    assert_eq!(Model::new(0).disk_with(6).err(), Some(OpenError::Places));
    assert_eq!(Model::new(0).disk_with(0).err(), Some(OpenError::Places));
}
