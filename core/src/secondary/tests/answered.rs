//! What is answered, counted and told of the replication port and of operations, where it is easily got wrong.

use std::{assert, assert_eq, vec};

use super::rig::{GUEST, NAME, PRIMARY, Rig, SIZE};
use crate::block::Capabilities;
use crate::secondary::{Command, Input, Port, WhenFull};
use crate::{
    ConnectionId, Device, Errno, ErrorKind, Event, Extent, Identity, Op, Outcome, Refused, Request,
    RequestId, Stage, View,
};

const CHECKPOINT: Command = Command::Checkpoint { force: false };
const FAILOVER: Command = Command::Stop { failover: true, force: false };
const OTHER: ConnectionId = ConnectionId(3);

#[test]
fn a_disk_that_knows_no_holes_is_not_asked_for_them() {
    for (more, asked) in [(Capabilities::empty(), 0), (Capabilities::STATUS, 1)] {
        let mut rig = Rig::with(WhenFull::Stall, more);
        let id = rig.request(PRIMARY, Op::Status, 0, 1024);
        assert_eq!(rig.queue.len(), asked);
        rig.run();
        assert_eq!(rig.reply(id), Some(Ok(Outcome::Status { is_hole: false, length: 1024 })));
    }
}

#[test]
fn only_the_refusal_to_be_fast_is_no_error() {
    let zeroes = |fast| Op::WriteZeroes { may_unmap: false, fast, fua: false };
    for (op, errno, counted) in [
        (zeroes(true), Errno::Unsupported, 0),
        (zeroes(true), Errno::Io, 1),
        (zeroes(false), Errno::Unsupported, 1),
    ] {
        let mut rig = Rig::new();
        let id = rig.request(PRIMARY, op, 0, 512);
        rig.complete(0, Err(errno));
        assert_eq!(rig.reply(id), Some(Err(errno)));
        assert_eq!(rig.machine.errors().count(ErrorKind::SecondaryDisk), counted);
    }
}

#[test]
fn a_read_that_fails_leaves_nothing_missing() {
    let mut rig = Rig::running();
    let data = rig.place(512);
    rig.request(PRIMARY, Op::Read(data), 0, 512);
    rig.complete(0, Err(Errno::Io));
    assert!(!rig.machine.is_behind());
    assert_eq!(rig.outcome(CHECKPOINT), Ok(()));
}

#[test]
fn the_view_is_told_to_be_whole_when_it_was_broken_and_not_otherwise() {
    let mut rig = Rig::with(WhenFull::Break, Capabilities::empty());
    rig.start();
    let mended = |rig: &Rig| rig.events.iter().filter(|event| **event == Event::View(View::Whole)).count();
    rig.written(PRIMARY, 0, &vec![b'p'; 2048]).unwrap();
    assert_eq!((rig.outcome(CHECKPOINT), mended(&rig)), (Ok(()), 0));
    rig.written(PRIMARY, 0, &vec![b'p'; 2048]).unwrap();
    rig.written(PRIMARY, 2048, b"through").unwrap();
    assert_eq!((rig.outcome(CHECKPOINT), mended(&rig)), (Ok(()), 1));
}

#[test]
fn held_writes_are_counted_as_failed_when_they_are_refused_for_want_of_room_alone() {
    for (wanted, counted) in [(None, 1), (Some(FAILOVER), 0)] {
        let mut rig = Rig::running();
        rig.written(PRIMARY, 0, &vec![b'p'; 2048]).unwrap();
        rig.write(PRIMARY, 2048, b"held");
        match wanted {
            Some(command) => rig.command(command).unwrap(),
            None => rig.wait(super::rig::STALL_MAX),
        }
        assert_eq!(rig.machine.errors().count(ErrorKind::CopyBeforeWrite), counted);
        assert_eq!(rig.machine.held(), 0);
    }
}

#[test]
fn a_held_write_is_not_refused_under_a_commit_that_waits_for_one_that_fails() {
    let mut rig = Rig::running();
    rig.written(PRIMARY, 0, &vec![b'p'; 2048]).unwrap();
    let held = rig.write(PRIMARY, 3584, b"held");
    let piece = |rig: &mut Rig, id, offset, is_first| {
        let op = Op::WriteZeroes { may_unmap: false, fast: false, fua: false };
        let extent = Extent { offset, length: 512 };
        let request = Request { id: RequestId(id), op, extent, is_first, is_last: !is_first };
        rig.offer(Input::Request(PRIMARY, request)).unwrap();
    };
    piece(&mut rig, 90, 0, true);
    rig.run();
    assert_eq!(rig.outcome(Command::Prepare { epoch: 1, claim: NAME, modifications: 3 }), Ok(()));
    piece(&mut rig, 91, 512, false);
    rig.write(GUEST, 1024, b"g");
    rig.command(Command::Commit { epoch: 1, claim: NAME }).unwrap();
    rig.complete(0, Err(Errno::Io));
    assert_eq!((rig.reply(91), rig.reply(held)), (Some(Err(Errno::Io)), None));
}

#[test]
fn a_checkpoint_after_a_failover_is_ignored_and_ends_no_epoch() {
    for stage in [Stage::Failover, Stage::Done] {
        let mut rig = Rig::in_stage(stage);
        let epoch = rig.machine.epoch();
        rig.command(CHECKPOINT).unwrap();
        assert_eq!(rig.answers, [Ok(())], "at once");
        rig.run();
        assert_eq!(rig.machine.epoch(), epoch);
    }
}

#[test]
fn a_prepare_is_for_a_connection_of_that_primary_to_the_replication_export() {
    let prepare = |claim| Command::Prepare { epoch: 1, claim, modifications: 0 };
    let mut rig = Rig::running();
    let other = Identity([8; 16]);
    assert_eq!(rig.command(prepare(other)), Err(Refused::OtherClaim), "it is not its connection");
    rig.open(OTHER, Port::Guest, Some(other));
    assert_eq!(rig.command(prepare(other)), Err(Refused::OtherClaim), "it is a guest's");
    assert_eq!(rig.outcome(prepare(NAME)), Ok(()));
}

#[test]
fn a_modification_over_a_new_connection_of_the_same_primary_undoes_a_prepare() {
    let mut rig = Rig::running();
    rig.written(PRIMARY, 0, b"one").unwrap();
    assert_eq!(rig.outcome(Command::Prepare { epoch: 1, claim: NAME, modifications: 1 }), Ok(()));
    rig.open(OTHER, Port::Replication, Some(NAME));
    rig.write(OTHER, 512, b"two");
    let commit = Command::Commit { epoch: 1, claim: NAME };
    assert_eq!(rig.command(commit), Err(Refused::OtherClaim));
}

#[test]
fn what_waited_for_one_operation_comes_before_the_next() {
    let mut rig = Rig::running();
    rig.write(PRIMARY, 0, b"first");
    rig.command(CHECKPOINT).unwrap();
    rig.write(PRIMARY, 1024, b"second");
    rig.write(GUEST, 2048, b"guest");
    while rig.answers.is_empty() {
        rig.complete(0, Ok(()));
    }
    assert!(rig.machine.in_flight() >= 2, "they go on in the next epoch");
    rig.command(CHECKPOINT).unwrap();
    assert_eq!(rig.answers.len(), 1, "which waits for them");
    rig.run();
    assert_eq!(rig.answers, [Ok(()), Ok(())]);
    assert_eq!(rig.read(GUEST, 1024, 6).unwrap(), b"second");
}

#[test]
fn a_keep_under_way_when_a_failover_begins_stores_nothing_and_touches_no_zeroes() {
    let mut rig = Rig::running();
    rig.zero(GUEST, 512, 512);
    let id = rig.write(PRIMARY, 0, &[b'p'; 1024]);
    assert_eq!(rig.under_way(), [(Device::Disk, "read", 0, 512)]);
    rig.command(FAILOVER).unwrap();
    let mut seen = vec![];
    while !rig.queue.is_empty() {
        seen.extend(rig.under_way().into_iter().map(|(device, name, offset, _)| (device, name, offset)));
        rig.complete(0, Ok(()));
    }
    assert_eq!(rig.reply(id), Some(Err(Errno::Shutdown)));
    seen.dedup();
    assert!(!seen.iter().any(|(device, ..)| *device == Device::Buffer), "{seen:?}");
    let mut expected = vec![b'd'; SIZE as usize];
    expected[512..1024].fill(0);
    assert_eq!((rig.machine.stage(), rig.disk), (Stage::Done, expected));
}
