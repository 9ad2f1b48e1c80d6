//! What is bounded: places of the table, scratch buffers, steps of the commit, what a prepare counts.

use std::vec::Vec;
use std::{assert, assert_eq};

use super::rig::{GUEST, NAME, PRIMARY, Rig, SCRATCH_FIRST, SIZE};
use crate::block::{Action, Capabilities};
use crate::secondary::{Command, Input, WhenFull};
use crate::{BufferIndex, Device, Errno, ErrorKind, Event, Extent, Op, Refused, Request, RequestId};

const CHECKPOINT: Command = Command::Checkpoint { force: false };
const FAILOVER: Command = Command::Stop { failover: true, force: false };

/// The buffers into which transfers under way read, or from which they write.
fn buffers(rig: &Rig) -> Vec<BufferIndex> {
    let data = |(_, transfer): &(Device, crate::block::Transfer)| match transfer.action {
        Action::Read(data) | Action::Write { data, .. } => Some(data.buffer),
        _ => None,
    };
    rig.queue.iter().filter_map(data).collect()
}

#[test]
fn its_size_and_its_requests_in_flight_are_told() {
    let mut rig = Rig::running();
    assert_eq!((rig.machine.size_bytes(), rig.machine.in_flight()), (SIZE, 0));
    for granule in 0..3 {
        rig.write(PRIMARY, granule * 512, b"x");
    }
    assert_eq!(rig.machine.in_flight(), 3);
    rig.run();
    assert_eq!(rig.machine.in_flight(), 0);
}

#[test]
fn each_keep_has_a_scratch_buffer_of_its_own_and_another_one_waits_for_it() {
    let mut rig = Rig::running();
    let second = BufferIndex(SCRATCH_FIRST.0 + 1);
    for granule in 0..3_u8 {
        rig.disk[usize::from(granule) * 512..][..512].fill(granule);
    }
    for granule in 0..3 {
        rig.write(PRIMARY, granule * 512, &[b'p'; 512]);
    }
    assert_eq!(buffers(&rig), [SCRATCH_FIRST, second]);
    rig.complete(1, Ok(()));
    rig.complete(0, Ok(()));
    assert_eq!(buffers(&rig), [second, SCRATCH_FIRST], "each is stored from where it was read to");
    rig.complete(0, Ok(()));
    assert!(rig.under_way().contains(&(Device::Disk, "read", 1024, 512)), "the third has the one given back");
    assert_eq!(buffers(&rig).into_iter().filter(|buffer| *buffer == second).count(), 1);
    rig.run();
    let view = rig.view();
    for granule in 0..3_u8 {
        assert_eq!(view[usize::from(granule) * 512..][..512], [granule; 512]);
    }
    assert_eq!(rig.outcome(CHECKPOINT), Ok(()));
    rig.write(PRIMARY, 0, b"p");
    rig.write(PRIMARY, 512, b"p");
    assert_eq!(buffers(&rig), [SCRATCH_FIRST, second], "both have been given back");
}

#[test]
fn each_port_has_the_places_that_it_was_promised_and_no_more() {
    for connection in [PRIMARY, GUEST] {
        let mut rig = Rig::with_places(WhenFull::Stall, Capabilities::empty(), 16);
        rig.start();
        let zeroes = Op::WriteZeroes { may_unmap: true, fast: false, fua: false };
        for id in 0..6 {
            let request = Request::whole(RequestId(id), zeroes, Extent { offset: 0, length: 100 });
            let expected = if id < 4 { Ok(()) } else { Err(Refused::Busy) };
            assert_eq!(rig.offer(Input::Request(connection, request)), expected, "{id}");
        }
    }
}

#[test]
fn a_later_piece_of_a_request_is_lent_a_place_only_for_an_operation_that_waits_for_it() {
    let mut rig = Rig::with_places(WhenFull::Stall, Capabilities::empty(), 16);
    rig.start();
    let zeroes = Op::WriteZeroes { may_unmap: true, fast: false, fua: false };
    let offer = |rig: &mut Rig, id, is_first, is_last| {
        let request = Request::whole(RequestId(id), zeroes, Extent { offset: 0, length: 100 });
        rig.offer(Input::Request(PRIMARY, Request { is_first, is_last, ..request }))
    };
    for id in 0..3 {
        assert_eq!(offer(&mut rig, id, true, true), Ok(()));
    }
    assert_eq!(offer(&mut rig, 3, true, false), Ok(()));
    assert_eq!(offer(&mut rig, 4, false, true), Err(Refused::Busy));
    rig.command(CHECKPOINT).unwrap();
    assert_eq!(offer(&mut rig, 4, false, true), Ok(()));
}

#[test]
fn a_commit_has_as_many_steps_in_flight_as_places_are_to_spare() {
    for (places, expected) in [(9, 1), (10, 2), (11, 3)] {
        let mut rig = Rig::with_places(WhenFull::Stall, Capabilities::empty(), places);
        rig.start();
        for (offset, length) in [(0, 512), (2048, 512), (4096, 200)] {
            rig.zero(GUEST, offset, length);
        }
        rig.command(FAILOVER).unwrap();
        assert_eq!(rig.queue.len(), expected, "{places} places");
    }
}

#[test]
fn the_first_error_of_a_kind_is_told_and_all_are_counted_until_the_next_start() {
    let mut rig = Rig::running();
    for _ in 0..3 {
        rig.write(PRIMARY, 0, b"kept?");
        rig.complete(0, Err(Errno::Io));
    }
    let told: Vec<_> = rig.events.iter().filter(|event| matches!(event, Event::Error(_))).collect();
    assert_eq!(told, [&Event::Error(ErrorKind::CopyBeforeWrite)]);
    assert_eq!(rig.machine.errors().count(ErrorKind::CopyBeforeWrite), 3);
    assert_eq!(rig.outcome(Command::Checkpoint { force: true }), Ok(()));
    let first = rig.machine.errors().first();
    assert_eq!(first, Some(ErrorKind::CopyBeforeWrite), "a checkpoint forgets no error");
}

#[test]
fn what_the_guest_writes_and_what_the_primary_reads_is_not_counted_by_a_prepare() {
    let mut rig = Rig::running();
    assert_eq!(rig.outcome(Command::Prepare { epoch: 1, claim: NAME, modifications: 0 }), Ok(()));
    rig.written(GUEST, 0, b"guest").unwrap();
    rig.read(PRIMARY, 0, 5).unwrap();
    assert_eq!(rig.outcome(Command::Commit { epoch: 1, claim: NAME }), Ok(()));
    rig.written(PRIMARY, 0, b"one").unwrap();
    rig.read(PRIMARY, 0, 5).unwrap();
    assert_eq!(rig.outcome(Command::Prepare { epoch: 2, claim: NAME, modifications: 1 }), Ok(()));
}

#[test]
fn an_epoch_that_differs_in_its_upper_half_alone_is_stale() {
    let mut rig = Rig::running();
    let epoch = 1 + (1 << 32);
    let stale = Err(Refused::StaleEpoch { epoch: 1 });
    assert_eq!(rig.command(Command::Prepare { epoch, claim: NAME, modifications: 0 }), stale);
    assert_eq!(rig.outcome(Command::Prepare { epoch: 1, claim: NAME, modifications: 0 }), Ok(()));
    assert_eq!(rig.command(Command::Commit { epoch, claim: NAME }), stale);
    assert_eq!(rig.machine.epoch(), 1);
}

#[test]
fn force_unit_access_reaches_the_device_that_takes_the_bytes() {
    let is_forced = |rig: &Rig| match rig.queue.back().expect("a transfer is under way").1.action {
        Action::Write { fua, .. } | Action::WriteZeroes { fua, .. } => fua,
        _ => false,
    };
    for fua in [false, true] {
        let mut rig = Rig::running();
        let data = rig.place(512);
        rig.request(PRIMARY, Op::Write { data, fua }, 0, 512);
        rig.complete(0, Ok(()));
        assert!(!is_forced(&rig), "the keep is not the primary's write");
        rig.complete(0, Ok(()));
        assert_eq!(is_forced(&rig), fua);
        rig.run();
        rig.request(PRIMARY, Op::WriteZeroes { may_unmap: false, fast: false, fua }, 0, 100);
        assert_eq!((rig.under_way()[0].0, is_forced(&rig)), (Device::Disk, fua));
        rig.run();
        let data = rig.place(512);
        rig.request(GUEST, Op::Write { data, fua }, 1024, 512);
        assert_eq!((rig.under_way()[0].0, is_forced(&rig)), (Device::Buffer, fua));
        rig.run();
        rig.request(GUEST, Op::WriteZeroes { may_unmap: false, fast: false, fua }, 1024, 512);
        assert_eq!((rig.under_way()[0].0, is_forced(&rig)), (Device::Buffer, fua));
    }
}
