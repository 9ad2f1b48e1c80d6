//! What the guest asks, part by part: holes, fresh slots, flushes; and what it leaves to a commit.

use std::vec::Vec;
use std::{assert, assert_eq, vec};

use super::rig::{GUEST, PRIMARY, Result, Rig, SIZE};
use crate::block::Capabilities;
use crate::secondary::{Command, WhenFull};
use crate::{Device, Errno, ErrorKind, Event, Op, Outcome, Stage};

const DONE: Option<Result> = Some(Ok(Outcome::Done));
const FAILOVER: Command = Command::Stop { failover: true, force: false };

fn told_of(rig: &mut Rig, offset: u64, length: u64) -> Option<Result> {
    let id = rig.request(GUEST, Op::Status, offset, length);
    rig.run();
    rig.reply(id)
}

const fn status(is_hole: bool, length: u64) -> Option<Result> {
    Some(Ok(Outcome::Status { is_hole, length }))
}

#[test]
fn holes_are_told_from_the_buffer_first_and_then_from_the_disk_if_that_knows() {
    for (more, of_disk) in [(Capabilities::empty(), false), (Capabilities::STATUS, true)] {
        let mut rig = Rig::with(WhenFull::Stall, more);
        rig.start();
        rig.disk[1024..1536].fill(0);
        rig.written(GUEST, 0, &[1; 512]).unwrap();
        rig.zero(GUEST, 512, 512);
        assert_eq!(told_of(&mut rig, 0, 2048), status(false, 512));
        assert_eq!(told_of(&mut rig, 512, 1536), status(true, 512));
        assert!(rig.queue.is_empty());
        let expected = if of_disk { status(true, 512) } else { status(false, 1024) };
        assert_eq!(told_of(&mut rig, 1024, 1024), expected);
        assert_eq!(told_of(&mut rig, 1536, 512), status(false, 512));
    }
}

#[test]
fn the_parts_of_a_read_are_under_way_side_by_side() {
    let mut rig = Rig::running();
    rig.written(GUEST, 512, &[b'g'; 512]).unwrap();
    let data = rig.place(1536);
    let id = rig.request(GUEST, Op::Read(data), 0, 1536);
    let parts = [(Device::Disk, 0), (Device::Buffer, 0), (Device::Disk, 1024)];
    assert_eq!(rig.under_way(), parts.map(|(device, offset)| (device, "read", offset, 512)));
    rig.run();
    assert_eq!((rig.reply(id), rig.bytes(data)[512]), (DONE, b'g'));
}

#[test]
fn what_is_fresh_around_a_slot_that_is_taken_gets_slots_of_its_own() {
    let mut rig = Rig::running();
    rig.written(GUEST, 512, &[b'm'; 512]).unwrap();
    let bytes: Vec<u8> = (0..1536).map(|place| (place / 512) as u8).collect();
    rig.written(GUEST, 0, &bytes).unwrap();
    assert_eq!(rig.machine.buffer().used_bytes(), 1536);
    assert_eq!(rig.view()[..1536], bytes);
    rig.written(GUEST, 0, &[b'a'; 512]).unwrap();
    rig.written(GUEST, 1024, &[b'z'; 512]).unwrap();
    assert_eq!((rig.view()[0], rig.view()[512], rig.view()[1024]), (b'a', 1, b'z'));
}

#[test]
fn a_write_that_ends_a_byte_before_a_granule_does_keeps_that_byte() {
    for (start, end) in [(0, 1023), (1, 1024), (511, 513), (1, 511), (100, 1024)] {
        let mut rig = Rig::running();
        rig.written(GUEST, start as u64, &vec![b'g'; end - start]).unwrap();
        let mut expected = vec![b'd'; SIZE as usize];
        expected[start..end].fill(b'g');
        assert_eq!(rig.view(), expected, "{start}..{end}");
    }
}

#[test]
fn zeroes_over_zeroes_take_no_slot_and_move_nothing() {
    let mut rig = Rig::running();
    rig.zero(GUEST, 0, 1024);
    for connection in [GUEST, PRIMARY] {
        rig.zero(connection, 100, 200);
        let on_buffer = rig.under_way().into_iter().filter(|(device, ..)| *device == Device::Buffer).count();
        assert_eq!((on_buffer, rig.machine.buffer().used_bytes()), (0, 0));
        rig.run();
    }
    rig.write(PRIMARY, 512, b"p");
    assert_eq!(rig.under_way(), [(Device::Disk, "write", 512, 1)], "they are kept as zeroes");
}

#[test]
fn after_a_failed_commit_zeroes_go_where_the_granule_is() {
    let mut rig = Rig::in_stage(Stage::FailoverFailed);
    rig.zero(GUEST, 1024, 512);
    assert_eq!(rig.under_way(), [(Device::Disk, "zero", 1024, 512)]);
    rig.run();
    rig.written(GUEST, 2048, &[1; 512]).unwrap();
    assert_eq!(rig.disk[2048], 1);
}

#[test]
fn a_write_over_zeroes_after_a_failed_commit_leaves_no_zeroes_in_its_way() {
    let mut rig = Rig::running();
    rig.zero(GUEST, 0, 1024);
    rig.command(FAILOVER).unwrap();
    rig.complete(0, Err(Errno::Io));
    assert_eq!(rig.machine.stage(), Stage::FailoverFailed);
    rig.written(GUEST, 256, &[b'g'; 512]).unwrap();
    let mut expected = vec![b'd'; SIZE as usize];
    expected[..1024].fill(0);
    expected[256..768].fill(b'g');
    assert_eq!(rig.view(), expected);
}

#[test]
fn a_flush_is_answered_when_every_device_has_flushed() {
    for order in [[0, 0], [1, 0]] {
        let mut rig = Rig::in_stage(Stage::FailoverFailed);
        let id = rig.request(GUEST, Op::Flush, 0, 0);
        rig.complete(order[0], Ok(()));
        assert_eq!(rig.reply(id), None);
        rig.complete(order[1], Ok(()));
        assert_eq!(rig.reply(id), DONE);
    }
}

#[test]
fn a_flush_that_fails_is_counted_where_it_failed_and_told_once_all_have_ended() {
    for (failing, told, kind) in
        [(0, Errno::Io, ErrorKind::Buffer), (1, Errno::NoSpace, ErrorKind::SecondaryDisk)]
    {
        let mut rig = Rig::in_stage(Stage::FailoverFailed);
        let counted =
            [ErrorKind::Buffer, ErrorKind::SecondaryDisk].map(|kind| rig.machine.errors().count(kind));
        let id = rig.request(GUEST, Op::Flush, 0, 0);
        rig.complete(failing, Err(Errno::NoSpace));
        assert_eq!(rig.reply(id), None);
        rig.run();
        assert_eq!(rig.reply(id), Some(Err(told)));
        let more = [ErrorKind::Buffer, ErrorKind::SecondaryDisk].map(|kind| rig.machine.errors().count(kind));
        let expected = if kind == ErrorKind::Buffer { [1, 0] } else { [0, 1] };
        assert_eq!([more[0] - counted[0], more[1] - counted[1]], expected);
    }
}

#[test]
fn a_buffer_that_fails_under_the_edge_of_a_write_is_counted_as_that() {
    let mut rig = Rig::running();
    let id = rig.write(GUEST, 1, b"g");
    rig.complete(0, Ok(()));
    rig.complete(0, Err(Errno::Io));
    assert_eq!(rig.reply(id), Some(Err(Errno::Io)));
    let counted = [ErrorKind::Buffer, ErrorKind::SecondaryDisk].map(|kind| rig.machine.errors().count(kind));
    assert_eq!(counted, [1, 0]);
}

#[test]
fn a_failover_ends_after_what_a_guest_keeps_and_does_not_wait_for_what_it_reads() {
    let mut rig = Rig::running();
    rig.write(GUEST, 1, b"g");
    rig.complete(0, Ok(()));
    rig.command(FAILOVER).unwrap();
    assert_eq!(rig.under_way(), [(Device::Buffer, "write", 0, 512)], "it is going into the buffer");
    rig.run();
    assert_eq!((rig.machine.stage(), &rig.disk[..3]), (Stage::Done, &b"dgd"[..]));

    let mut rig = Rig::running();
    let data = rig.place(4);
    rig.request(GUEST, Op::Read(data), 0, 4);
    rig.command(FAILOVER).unwrap();
    assert_eq!(rig.under_way(), [(Device::Disk, "read", 0, 4), (Device::Disk, "flush", 0, 0)]);
}

#[test]
fn a_step_that_takes_a_part_of_its_window_is_followed_by_the_rest_of_it() {
    let mut rig = Rig::running();
    rig.written(GUEST, 0, &[1; 512]).unwrap();
    rig.zero(GUEST, 512, 512);
    rig.written(GUEST, 1024, &[2; 512]).unwrap();
    rig.written(GUEST, 2048, &[3; 512]).unwrap();
    rig.events.clear();
    rig.command(FAILOVER).unwrap();
    let mut written = vec![];
    while !rig.queue.is_empty() {
        let (device, name, offset, _) = rig.under_way()[0];
        if device == Device::Disk {
            written.push((name, offset));
        }
        rig.complete(0, Ok(()));
    }
    assert_eq!(written, [("write", 0), ("zero", 512), ("write", 1024), ("write", 2048), ("flush", 0)]);
    let done = |event: &Event| match event {
        Event::CommitProgress { done_bytes, .. } => Some(*done_bytes),
        _ => None,
    };
    let told: Vec<u64> = rig.events.iter().filter_map(done).collect();
    assert_eq!(told, [512, 1024, 1536, 2048]);
}

#[test]
fn a_step_of_the_commit_waits_for_a_scratch_buffer_and_has_it_when_one_is_given_back() {
    let mut rig = Rig::with_places(WhenFull::Stall, Capabilities::empty(), 16);
    rig.start();
    for (offset, length) in [(0, 512), (2048, 512), (4096, 200)] {
        rig.written(GUEST, offset, &vec![b'g'; length]).unwrap();
    }
    rig.command(FAILOVER).unwrap();
    assert_eq!(rig.queue.len(), 2, "there are two scratch buffers");
    rig.run();
    assert_eq!(rig.machine.stage(), Stage::Done);
    assert_eq!((rig.disk[0], rig.disk[2048], rig.disk[4096]), (b'g', b'g', b'g'));
}

#[test]
fn a_write_into_a_hole_of_the_disk_leaves_zeroes_around_it() {
    for (start, end) in [(1030, 1031), (1024, 1100), (1500, 1536), (1000, 1030), (1500, 1700)] {
        let mut rig = Rig::with(WhenFull::Stall, Capabilities::STATUS);
        rig.disk[1024..1536].fill(0);
        rig.start();
        let mut expected = rig.disk.clone();
        rig.written(GUEST, start as u64, &vec![b'g'; end - start]).unwrap();
        expected[start..end].fill(b'g');
        assert_eq!(rig.view(), expected, "{start}..{end}");
    }
}
