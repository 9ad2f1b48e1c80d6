//! SEMANTICS.md, "The buffer is full".

use std::{assert, assert_eq, vec};

use super::rig::{GUEST, NAME, PRIMARY, Rig, SIZE, STALL_MAX};
use crate::block::Capabilities;
use crate::driver::Machine;
use crate::secondary::{Command, Input, WhenFull};
use crate::{Errno, Event, Extent, Micros, Op, Outcome, Refused, Request, RequestId, Stage, View};

const DONE: super::rig::Result = Ok(Outcome::Done);
const CHECKPOINT: Command = Command::Checkpoint { force: false };
const FAILOVER: Command = Command::Stop { failover: true, force: false };

/// All slots but `free` are taken.
fn filled(when_full: WhenFull, free: usize) -> Rig {
    let mut rig = Rig::with(when_full, Capabilities::empty());
    rig.start();
    rig.written(PRIMARY, 0, &vec![b'p'; 2048 - free * 512]).unwrap();
    rig
}

#[test]
fn a_primary_write_that_finds_no_slot_is_held_and_has_touched_nothing() {
    let mut rig = filled(WhenFull::Stall, 0);
    let held = rig.write(PRIMARY, 2048, b"held");
    assert_eq!((rig.machine.held(), rig.reply(held)), (1, None));
    assert!(rig.queue.is_empty());
    assert_eq!(&rig.disk[2048..2052], b"dddd");
    let warnings = [Event::BufferThreeQuarters, Event::BufferFull];
    assert!(warnings.iter().all(|event| rig.events.contains(event)));
}

#[test]
fn an_index_that_fills_first_is_warned_of_at_three_quarters() {
    // Every other granule, so that each takes a run of its own; the slots are far from full.
    for origin in [PRIMARY, GUEST] {
        let mut rig = Rig::with_disk(40 * 512, 40);
        rig.start();
        let capacity = rig.machine.buffer().index_runs_max() as u64;
        let early = (capacity * 3).div_ceil(4);
        for run in 0..early {
            assert!(!rig.events.contains(&Event::BufferThreeQuarters), "{run} of {capacity} runs");
            match origin {
                PRIMARY => assert_eq!(rig.written(PRIMARY, run * 1024, b"p"), DONE),
                _ => {
                    let id = rig.zero(GUEST, run * 1024, 512);
                    rig.run();
                    assert_eq!(rig.reply(id), Some(DONE));
                }
            }
        }
        let warnings =
            |rig: &Rig| rig.events.iter().filter(|event| **event == Event::BufferThreeQuarters).count();
        assert_eq!((warnings(&rig), early), (1, 18));
        rig.written(GUEST, 38 * 512, b"g").unwrap();
        assert_eq!(warnings(&rig), 1, "once in an epoch");
        rig.command(CHECKPOINT).unwrap();
        rig.run();
        for run in 0..early {
            rig.written(PRIMARY, run * 1024, b"q").unwrap();
        }
        assert_eq!(warnings(&rig), 2, "and again in the next");
    }
}

#[test]
fn a_checkpoint_does_not_wait_for_held_writes_and_lets_them_go_in_the_next_epoch() {
    let mut rig = filled(WhenFull::Stall, 0);
    let held = rig.write(PRIMARY, 2048, b"held");
    let behind = rig.write(PRIMARY, 2049, b"next");
    rig.command(CHECKPOINT).unwrap();
    assert_eq!(rig.answers, [Ok(())]);
    rig.run();
    assert_eq!((rig.reply(held), rig.reply(behind)), (Some(DONE), Some(DONE)));
    assert_eq!(&rig.disk[2048..2053], b"hnext");
    assert_eq!(rig.read(GUEST, 2048, 5).unwrap(), b"ddddd", "kept in the new epoch");
    assert_eq!(rig.read(GUEST, 0, 1).unwrap(), b"p");
}

#[test]
fn a_guest_does_not_wait_for_held_writes() {
    let mut rig = filled(WhenFull::Stall, 1);
    rig.write(PRIMARY, 2048, &[b'h'; 1024]);
    rig.run();
    assert_eq!(rig.machine.held(), 1);
    assert_eq!(rig.read(GUEST, 2048, 4).unwrap(), b"dddd");
    assert_eq!(rig.written(GUEST, 2050, b"g"), DONE, "the first granule has been kept");
    assert_eq!(rig.written(GUEST, 2560, b"g"), Err(Errno::NoSpace), "the second one not");
    assert_eq!(rig.outcome(CHECKPOINT), Ok(()));
    assert_eq!(rig.read(GUEST, 2048, 4).unwrap(), b"dddd");
}

#[test]
fn a_write_held_too_long_is_refused_so_that_the_primary_knows_what_is_missing() {
    let mut rig = filled(WhenFull::Stall, 0);
    let held = rig.write(PRIMARY, 2048, b"held");
    assert_eq!(rig.machine.poll_timeout(), Some(STALL_MAX));
    rig.wait(Micros(STALL_MAX.0 - 1));
    assert_eq!(rig.reply(held), None);
    rig.wait(Micros(1));
    assert_eq!(rig.reply(held), Some(Err(Errno::NoSpace)));
    assert!(rig.machine.is_behind());
    assert_eq!(
        rig.written(PRIMARY, 2048, b"again"),
        Err(Errno::NoSpace),
        "at once, as nobody makes room now"
    );
    assert_eq!(rig.view(), vec![b'd'; SIZE as usize]);
    assert_eq!(rig.command(CHECKPOINT), Err(Refused::Missing));
}

#[test]
fn an_error_that_was_answered_ends_all_holding() {
    let mut rig = filled(WhenFull::Stall, 0);
    let failing = rig.write(PRIMARY, 0, b"p");
    let held = rig.write(PRIMARY, 2048, b"held");
    rig.complete(0, Err(Errno::Io));
    assert_eq!(rig.reply(failing), Some(Err(Errno::Io)));
    assert_eq!(rig.reply(held), Some(Err(Errno::NoSpace)));
}

#[test]
fn a_prepare_counts_held_writes_and_the_commit_lets_them_go() {
    let mut rig = filled(WhenFull::Stall, 0);
    let held = rig.write(PRIMARY, 2048, b"held");
    assert_eq!(rig.outcome(Command::Prepare { epoch: 1, claim: NAME, modifications: 2 }), Ok(()));
    rig.wait(Micros(STALL_MAX.0 - 1));
    assert_eq!(rig.reply(held), None);
    assert_eq!(rig.outcome(Command::Commit { epoch: 1, claim: NAME }), Ok(()));
    assert_eq!(rig.reply(held), Some(DONE));
}

#[test]
fn a_commit_that_never_comes_does_not_hold_writes_for_ever() {
    let mut rig = filled(WhenFull::Stall, 0);
    let held = rig.write(PRIMARY, 2048, b"held");
    rig.wait(Micros(STALL_MAX.0 / 2));
    assert_eq!(rig.outcome(Command::Prepare { epoch: 1, claim: NAME, modifications: 2 }), Ok(()));
    rig.wait(Micros(STALL_MAX.0 - 1));
    assert_eq!(rig.reply(held), None);
    rig.wait(Micros(1));
    assert_eq!(rig.reply(held), Some(Err(Errno::NoSpace)));
}

#[test]
fn a_failover_and_a_stop_answer_held_writes_eshutdown() {
    for failover in [true, false] {
        let mut rig = filled(WhenFull::Stall, 0);
        let held = rig.write(PRIMARY, 2048, b"held");
        assert_eq!(rig.outcome(Command::Stop { failover, force: false }), Ok(()));
        assert_eq!(rig.reply(held), Some(Err(Errno::Shutdown)));
        assert_eq!(&rig.disk[2048..2052], b"dddd");
    }
}

#[test]
fn with_the_other_policy_the_write_goes_through_and_the_view_breaks() {
    let mut rig = filled(WhenFull::Break, 0);
    assert_eq!(rig.written(PRIMARY, 2048, b"through"), DONE);
    assert_eq!(&rig.disk[2048..2055], b"through");
    assert_eq!(rig.machine.view(), View::Broken);
    assert_eq!(rig.read(GUEST, 0, 1), Err(Errno::Io));
    assert_eq!(rig.written(GUEST, 0, b"g"), Err(Errno::Io));
    assert_eq!(rig.command(FAILOVER), Err(Refused::ViewBroken));
    assert!(!rig.machine.is_behind(), "the disk misses nothing");
    assert_eq!(rig.written(PRIMARY, 3072, b"more"), DONE);
    let broken = rig.events.iter().filter(|event| **event == Event::View(View::Broken)).count();
    assert_eq!(broken, 1);
    assert_eq!(rig.outcome(CHECKPOINT), Ok(()));
    assert_eq!(rig.machine.view(), View::Whole);
    assert_eq!(rig.view(), rig.disk);
    assert_eq!(rig.outcome(FAILOVER), Ok(()));
}

#[test]
fn with_a_broken_view_a_stop_without_failover_is_possible() {
    let mut rig = filled(WhenFull::Break, 0);
    rig.written(PRIMARY, 2048, b"through").unwrap();
    assert_eq!(rig.outcome(Command::Stop { failover: false, force: false }), Ok(()));
    assert_eq!(rig.machine.stage(), Stage::Done);
    assert_eq!(rig.read(GUEST, 2048, 7).unwrap(), b"through");
}

#[test]
fn a_keep_that_fails_does_not_break_the_view_whatever_the_policy() {
    let mut rig = filled(WhenFull::Break, 1);
    let id = rig.write(PRIMARY, 2048, b"lost");
    rig.complete(0, Ok(()));
    rig.complete(0, Err(Errno::NoSpace));
    assert_eq!(rig.reply(id), Some(Err(Errno::NoSpace)));
    assert_eq!(rig.machine.view(), View::Whole);
    assert_eq!(rig.view(), vec![b'd'; SIZE as usize]);
}

#[test]
fn while_a_commit_is_carried_out_nothing_is_refused_and_nothing_goes_past_a_held_write() {
    let mut rig = filled(WhenFull::Stall, 0);
    let held = rig.write(PRIMARY, 2048, b"held");
    let behind = rig.write(PRIMARY, 2049, b"behind");
    assert_eq!(rig.outcome(Command::Prepare { epoch: 1, claim: NAME, modifications: 3 }), Ok(()));
    let data = rig.place(4);
    let active = rig.request(GUEST, crate::Op::Read(data), 4000, 4);
    rig.command(Command::Commit { epoch: 1, claim: NAME }).unwrap();
    assert_eq!(Machine::poll_timeout(&rig.machine), None);
    rig.wait(Micros(STALL_MAX.0 * 10));
    assert_eq!((rig.reply(held), rig.reply(behind), rig.reply(active)), (None, None, None));
    rig.run();
    assert_eq!((rig.reply(held), rig.reply(behind)), (Some(DONE), Some(DONE)));
    assert_eq!(rig.read(GUEST, 2048, 7).unwrap(), b"ddddddd");
    assert_eq!(&rig.disk[2048..2055], b"hbehind");
}

#[test]
fn a_commit_is_refused_once_a_write_that_was_held_at_the_prepare_has_been_refused() {
    let mut rig = filled(WhenFull::Stall, 0);
    rig.write(PRIMARY, 2048, b"held");
    assert_eq!(rig.outcome(Command::Prepare { epoch: 1, claim: NAME, modifications: 2 }), Ok(()));
    rig.wait(STALL_MAX);
    assert_eq!(rig.machine.held(), 0);
    assert_eq!(rig.command(Command::Commit { epoch: 1, claim: NAME }), Err(Refused::Missing));
    assert_eq!(rig.machine.epoch(), 1);
}

#[test]
fn the_rest_of_a_request_that_is_held_does_not_undo_the_prepare_that_has_counted_it() {
    let mut rig = filled(WhenFull::Stall, 0);
    let piece = |rig: &mut Rig, id, offset, is_first| {
        let op = Op::WriteZeroes { may_unmap: false, fast: false, fua: false };
        let extent = Extent { offset, length: 512 };
        let request = Request { id: RequestId(id), op, extent, is_first, is_last: !is_first };
        rig.offer(Input::Request(PRIMARY, request)).unwrap();
    };
    rig.write(PRIMARY, 3584, b"held");
    piece(&mut rig, 90, 2048, true);
    assert_eq!(rig.outcome(Command::Prepare { epoch: 1, claim: NAME, modifications: 3 }), Ok(()));
    piece(&mut rig, 91, 2560, false);
    rig.run();
    assert_eq!(rig.outcome(Command::Commit { epoch: 1, claim: NAME }), Ok(()));
}

#[test]
fn a_piece_that_fails_after_the_commit_was_taken_leaves_the_view_at_the_last_checkpoint() {
    let mut rig = filled(WhenFull::Stall, 0);
    let piece = |rig: &mut Rig, id, offset, is_first| {
        let op = Op::WriteZeroes { may_unmap: false, fast: false, fua: false };
        let extent = Extent { offset, length: 512 };
        let request = Request { id: RequestId(id), op, extent, is_first, is_last: !is_first };
        rig.offer(Input::Request(PRIMARY, request)).unwrap();
    };
    rig.write(PRIMARY, 3584, b"held");
    piece(&mut rig, 90, 0, true);
    rig.run();
    assert_eq!(rig.outcome(Command::Prepare { epoch: 1, claim: NAME, modifications: 3 }), Ok(()));
    piece(&mut rig, 91, 512, false);
    rig.command(Command::Commit { epoch: 1, claim: NAME }).unwrap();
    rig.complete(0, Err(Errno::Io));
    assert_eq!((rig.reply(91), rig.answers.last()), (Some(Err(Errno::Io)), Some(&Err(Refused::Missing))));
    assert_eq!(rig.machine.epoch(), 1);
}
