//! SEMANTICS.md, "Operations": every command in every stage.

use std::vec::Vec;
use std::{assert, assert_eq};

use super::rig::{GUEST, NAME, PRIMARY, Rig};
use crate::block::{Completion, Tag};
use crate::secondary::{Command, Input, Port};
use crate::{
    ConnectionId, Device, Errno, ErrorKind, Extent, Identity, Op, Outcome, Refused, Request, RequestId, Stage,
};

const STAGES: [Stage; 5] = [Stage::None, Stage::Running, Stage::Failover, Stage::FailoverFailed, Stage::Done];

const FAILOVER: Command = Command::Stop { failover: true, force: false };
const STOP: Command = Command::Stop { failover: false, force: false };
const CHECKPOINT: Command = Command::Checkpoint { force: false };

/// What a command comes to in each stage, and the stage after it.
fn table(wanted: Command) -> Vec<(Result<(), Refused>, Stage)> {
    let outcome = |stage| {
        let mut rig = Rig::in_stage(stage);
        (rig.outcome(wanted), rig.machine.stage())
    };
    STAGES.into_iter().map(outcome).collect()
}

#[test]
fn start_as_secondary_in_every_stage() {
    let expected = [
        (Ok(()), Stage::Running),
        (Err(Refused::Running), Stage::Running),
        (Ok(()), Stage::Done),
        (Err(Refused::Running), Stage::FailoverFailed),
        (Ok(()), Stage::Done),
    ];
    assert_eq!(table(Command::Start { primary: false }), expected);
}

#[test]
fn start_as_primary_is_refused_after_the_stage_was_looked_at() {
    let expected = [
        (Err(Refused::WrongMode { primary_wanted: true }), Stage::None),
        (Err(Refused::Running), Stage::Running),
        (Ok(()), Stage::Done),
        (Err(Refused::Running), Stage::FailoverFailed),
        (Ok(()), Stage::Done),
    ];
    assert_eq!(table(Command::Start { primary: true }), expected);
}

#[test]
fn checkpoint_in_every_stage_forced_or_not() {
    let expected = [
        (Err(Refused::NotRunning), Stage::None),
        (Ok(()), Stage::Running),
        (Ok(()), Stage::Done),
        (Err(Refused::NotRunning), Stage::FailoverFailed),
        (Ok(()), Stage::Done),
    ];
    assert_eq!(table(CHECKPOINT), expected);
    assert_eq!(table(Command::Checkpoint { force: true }), expected);
}

#[test]
fn stop_with_failover_in_every_stage() {
    let expected = [
        (Err(Refused::NotRunning), Stage::None),
        (Ok(()), Stage::Done),
        (Ok(()), Stage::Done),
        (Ok(()), Stage::Done),
        (Ok(()), Stage::Done),
    ];
    assert_eq!(table(FAILOVER), expected);
}

#[test]
fn stop_without_failover_in_every_stage() {
    let expected = [
        (Err(Refused::NotRunning), Stage::None),
        (Ok(()), Stage::Done),
        (Ok(()), Stage::Done),
        (Err(Refused::CommitPending), Stage::FailoverFailed),
        (Ok(()), Stage::Done),
    ];
    assert_eq!(table(STOP), expected);
    assert_eq!(table(Command::Stop { failover: false, force: true }), expected);
}

#[test]
fn prepare_and_commit_are_for_running_alone() {
    for wanted in [
        Command::Prepare { epoch: 1, claim: NAME, modifications: 1 },
        Command::Commit { epoch: 1, claim: NAME },
    ] {
        for stage in STAGES.into_iter().filter(|stage| *stage != Stage::Running) {
            let refused = if stage == Stage::None { Refused::NotRunning } else { Refused::TakenOver };
            assert_eq!(Rig::in_stage(stage).command(wanted), Err(refused), "{wanted:?} {stage:?}");
        }
    }
}

#[test]
fn a_checkpoint_ends_the_epoch_and_empties_the_buffer() {
    let mut rig = Rig::running();
    assert_eq!(rig.machine.epoch(), 1);
    rig.written(PRIMARY, 0, b"primary").unwrap();
    rig.written(GUEST, 1024, b"guest").unwrap();
    assert!(rig.machine.buffer().used_bytes() != 0);
    assert_eq!(rig.outcome(CHECKPOINT), Ok(()));
    assert_eq!((rig.machine.epoch(), rig.machine.buffer().used_bytes()), (2, 0));
    assert_eq!(rig.view(), rig.disk);
    assert_eq!(rig.read(GUEST, 0, 7).unwrap(), b"primary");
    assert_eq!(rig.read(GUEST, 1024, 5).unwrap(), b"ddddd");
}

#[test]
fn a_checkpoint_waits_for_what_came_before_and_what_comes_later_waits_for_it() {
    let mut rig = Rig::running();
    let before = rig.write(PRIMARY, 0, b"before");
    rig.command(CHECKPOINT).unwrap();
    let after = rig.write(PRIMARY, 1024, b"after");
    assert!(rig.answers.is_empty());
    assert_eq!(rig.queue.len(), 1, "only the first keeps");
    rig.run();
    assert_eq!(rig.answers, [Ok(())]);
    let (first, second) = (rig.reply(before), rig.reply(after));
    assert_eq!((first, second), (Some(Ok(Outcome::Done)), Some(Ok(Outcome::Done))));
    assert_eq!(rig.read(GUEST, 0, 6).unwrap(), b"before");
    assert_eq!(rig.read(GUEST, 1024, 5).unwrap(), b"ddddd", "kept in the new epoch");
}

#[test]
fn a_checkpoint_waits_for_the_last_piece_even_if_later_requests_have_taken_all_places() {
    let mut rig = Rig::running();
    let zeroes = Op::WriteZeroes { may_unmap: false, fast: false, fua: false };
    let piece = |id, offset, is_first, is_last| {
        let extent = Extent { offset, length: 2048 };
        Input::Request(PRIMARY, Request { id: RequestId(id), op: zeroes, extent, is_first, is_last })
    };
    rig.offer(piece(1, 0, true, false)).unwrap();
    rig.run();
    rig.command(CHECKPOINT).unwrap();
    rig.open(ConnectionId(3), Port::Replication, None);
    // They come later, and the first is in the way of the piece that is waited for.
    let later: Vec<_> = (0..4).map(|index| rig.zero(ConnectionId(3), 2048 + index, 8)).collect();
    assert!(rig.answers.is_empty() && rig.replies.len() == 1);
    rig.offer(piece(2, 2048, false, true)).unwrap();
    rig.run();
    assert_eq!(rig.answers, [Ok(())]);
    assert_eq!(rig.reply(2), Some(Ok(Outcome::Done)));
    assert!(later.iter().all(|id| rig.reply(*id).is_some()));
}

#[test]
fn a_request_that_begins_after_the_barrier_comes_after_it_whole() {
    let mut rig = Rig::running();
    let blocker = rig.write(PRIMARY, 4000, b"active");
    rig.command(CHECKPOINT).unwrap();
    let zeroes = Op::WriteZeroes { may_unmap: false, fast: false, fua: false };
    for (id, offset, is_first) in [(1, 0, true), (2, 2048, false)] {
        let extent = Extent { offset, length: 1024 };
        let request = Request { id: RequestId(id), op: zeroes, extent, is_first, is_last: !is_first };
        rig.offer(Input::Request(PRIMARY, request)).unwrap();
    }
    assert_eq!(rig.queue.len(), 1, "neither piece has begun");
    rig.run();
    assert!(rig.reply(blocker).is_some() && rig.reply(1).is_some() && rig.reply(2).is_some());
    assert_eq!(rig.read(GUEST, 0, 4).unwrap(), b"dddd");
    assert_eq!(rig.read(GUEST, 2048, 4).unwrap(), b"dddd");
}

#[test]
fn an_operation_that_waits_holds_up_others_but_a_failover_goes_before_it() {
    let mut rig = Rig::running();
    rig.write(PRIMARY, 0, b"active");
    rig.command(CHECKPOINT).unwrap();
    assert_eq!(rig.command(CHECKPOINT), Err(Refused::InProgress));
    rig.command(FAILOVER).unwrap();
    assert_eq!(rig.answers, [Err(Refused::NotRunning), Ok(())]);
}

#[test]
fn after_an_error_only_a_forced_checkpoint_and_a_forced_stop_are_taken() {
    let mut rig = Rig::running();
    let failed = rig.write(PRIMARY, 0, b"lost");
    rig.complete(0, Err(Errno::Io));
    assert_eq!(rig.reply(failed), Some(Err(Errno::Io)));
    assert_eq!(rig.machine.errors().count(ErrorKind::CopyBeforeWrite), 1);
    assert_eq!(rig.disk, [b'd'; super::rig::SIZE as usize], "never written through");
    assert!(rig.machine.is_behind());
    assert_eq!(rig.command(CHECKPOINT), Err(Refused::Missing));
    assert_eq!(rig.command(STOP), Err(Refused::Missing));
    assert_eq!(
        rig.command(Command::Prepare { epoch: 1, claim: NAME, modifications: 1 }),
        Err(Refused::Missing)
    );
    assert_eq!(rig.outcome(Command::Checkpoint { force: true }), Ok(()));
    assert!(!rig.machine.is_behind());
    assert_eq!(rig.outcome(CHECKPOINT), Ok(()));
}

#[test]
fn prepare_refuses_a_stale_epoch_another_claim_and_a_wrong_count() {
    let mut rig = Rig::running();
    rig.written(PRIMARY, 0, b"one").unwrap();
    let prepare = |epoch, claim, modifications| Command::Prepare { epoch, claim, modifications };
    assert_eq!(rig.command(prepare(0, NAME, 1)), Err(Refused::StaleEpoch { epoch: 1 }));
    assert_eq!(rig.command(prepare(1, Identity([8; 16]), 1)), Err(Refused::OtherClaim));
    assert_eq!(rig.command(prepare(1, NAME, 0)), Err(Refused::WrongCount));
    assert_eq!(rig.command(Command::Commit { epoch: 1, claim: NAME }), Err(Refused::OtherClaim));
    assert_eq!(rig.outcome(prepare(1, NAME, 1)), Ok(()));
    assert_eq!(rig.command(Command::Commit { epoch: 0, claim: NAME }), Err(Refused::StaleEpoch { epoch: 1 }));
    let other = Command::Commit { epoch: 1, claim: Identity([8; 16]) };
    assert_eq!(rig.command(other), Err(Refused::OtherClaim), "another one has prepared");
    assert_eq!(rig.machine.epoch(), 1, "nothing has ended yet");
    assert_eq!(rig.outcome(Command::Commit { epoch: 1, claim: NAME }), Ok(()));
    assert_eq!(rig.machine.epoch(), 2);
    assert_eq!(rig.read(GUEST, 0, 3).unwrap(), b"one");
}

#[test]
fn prepare_waits_for_modifications_that_are_still_to_come_and_for_their_end() {
    let mut rig = Rig::running();
    rig.written(PRIMARY, 0, b"one").unwrap();
    rig.command(Command::Prepare { epoch: 1, claim: NAME, modifications: 2 }).unwrap();
    let second = rig.write(PRIMARY, 1024, b"two");
    assert!(rig.answers.is_empty());
    assert_eq!(rig.queue.len(), 1, "it does not wait for the prepare");
    rig.run();
    assert_eq!(rig.reply(second), Some(Ok(Outcome::Done)));
    assert_eq!(rig.answers, [Ok(())]);
    assert_eq!(rig.outcome(Command::Commit { epoch: 1, claim: NAME }), Ok(()));
    assert_eq!(rig.read(GUEST, 1024, 3).unwrap(), b"two");
}

#[test]
fn a_modification_after_the_prepare_undoes_it() {
    let mut rig = Rig::running();
    assert_eq!(rig.outcome(Command::Prepare { epoch: 1, claim: NAME, modifications: 0 }), Ok(()));
    rig.written(PRIMARY, 0, b"late").unwrap();
    assert_eq!(rig.command(Command::Commit { epoch: 1, claim: NAME }), Err(Refused::OtherClaim));
}

#[test]
fn a_prepare_ends_with_its_connection() {
    let mut rig = Rig::running();
    rig.written(PRIMARY, 0, b"one").unwrap();
    rig.command(Command::Prepare { epoch: 1, claim: NAME, modifications: 2 }).unwrap();
    rig.close(PRIMARY, true);
    assert_eq!(rig.answers, [Err(Refused::OtherClaim)]);
}

#[test]
fn what_names_nothing_in_flight_is_refused_in_every_stage() {
    for stage in STAGES {
        let mut rig = Rig::in_stage(stage);
        let result = Ok(Outcome::Done);
        for tag in [Tag { entry: 0, generation: 77 }, Tag { entry: 60_000, generation: 1 }] {
            let stale = Input::Completed(Device::Disk, Completion { tag, result });
            assert_eq!(rig.offer(stale), Err(Refused::Stale), "{stage:?}");
        }
        let nobody = ConnectionId(99);
        let flush = Request::whole(RequestId(1), Op::Flush, Extent::default());
        assert_eq!(rig.offer(Input::Request(nobody, flush)), Err(Refused::Stale));
        assert_eq!(rig.offer(Input::Closed { connection: nobody, is_clean: true }), Err(Refused::Stale));
        let again = Input::Opened { connection: GUEST, port: Port::Guest, identity: None };
        assert_eq!(rig.offer(again), Err(Refused::Stale));
        assert_eq!(rig.machine.stage(), stage);
    }
}

#[test]
fn a_completion_is_taken_once() {
    let mut rig = Rig::running();
    rig.write(PRIMARY, 0, b"once");
    let (device, transfer) = rig.queue[0];
    rig.run();
    let again = Input::Completed(device, Completion { tag: transfer.tag, result: Ok(Outcome::Done) });
    assert_eq!(rig.offer(again), Err(Refused::Stale));
}

#[test]
fn a_modification_that_waits_for_its_turn_undoes_a_prepare_too() {
    let mut rig = Rig::running();
    rig.written(PRIMARY, 0, b"one").unwrap();
    rig.write(GUEST, 1024, b"guest");
    rig.command(Command::Prepare { epoch: 1, claim: NAME, modifications: 1 }).unwrap();
    rig.run();
    assert_eq!(rig.answers, [Ok(())]);
    rig.write(GUEST, 1024, b"again");
    rig.write(PRIMARY, 1024, b"late");
    assert_eq!(rig.command(Command::Commit { epoch: 1, claim: NAME }), Err(Refused::OtherClaim));
}

#[test]
fn what_another_primary_tries_undoes_no_prepare_and_holds_up_no_checkpoint() {
    let mut rig = Rig::running();
    let stranger = ConnectionId(3);
    rig.open(stranger, Port::Replication, None);
    rig.written(PRIMARY, 0, b"one").unwrap();
    assert_eq!(rig.outcome(Command::Prepare { epoch: 1, claim: NAME, modifications: 1 }), Ok(()));
    let zeroes = Op::WriteZeroes { may_unmap: false, fast: false, fua: false };
    for (connection, id) in [(stranger, 1), (GUEST, 2)] {
        let extent = Extent { offset: 0, length: 2048 };
        let half = Request { id: RequestId(id), op: zeroes, extent, is_first: true, is_last: false };
        rig.offer(Input::Request(connection, half)).unwrap();
    }
    rig.run();
    assert_eq!(rig.reply(1), Some(Err(Errno::NotPermitted)));
    assert_eq!(rig.outcome(Command::Commit { epoch: 1, claim: NAME }), Ok(()));
    assert_eq!(rig.outcome(CHECKPOINT), Ok(()));
}

#[test]
fn a_claim_that_ends_unclean_after_the_commit_was_taken_leaves_the_next_epoch_in_doubt() {
    let mut rig = Rig::running();
    rig.written(PRIMARY, 0, b"primary").unwrap();
    assert_eq!(rig.outcome(Command::Prepare { epoch: 1, claim: NAME, modifications: 1 }), Ok(()));
    let guests = rig.write(GUEST, 1024, b"guest");
    rig.command(Command::Commit { epoch: 1, claim: NAME }).unwrap();
    rig.offer(Input::Closed { connection: PRIMARY, is_clean: false }).unwrap();
    rig.run();
    assert_eq!((rig.reply(guests), rig.answers.last()), (Some(Ok(Outcome::Done)), Some(&Ok(()))));
    assert_eq!(rig.machine.epoch(), 2, "all that it counts on had come");
    assert_eq!(&rig.view()[..7], b"primary");
    assert_eq!(rig.command(CHECKPOINT), Err(Refused::Missing));
}

#[test]
fn commits_of_several_volumes_are_checked_before_one_of_them_acts() {
    let prepared = |is_prepared: bool| {
        let mut rig = Rig::running();
        rig.written(PRIMARY, 0, b"primary").unwrap();
        if is_prepared {
            rig.outcome(Command::Prepare { epoch: 1, claim: NAME, modifications: 1 }).unwrap();
        }
        rig
    };
    let commit = Command::Commit { epoch: 1, claim: NAME };
    for (refusing, stale) in [(0, false), (1, false), (2, true), (3, false)] {
        let rigs = [0, 1, 2].map(|place| prepared(place != refusing || stale));
        let late = Command::Commit { epoch: 7, claim: NAME };
        let wanted = |place| if stale && place == refusing { late } else { commit };
        let commits = rigs.iter().enumerate().map(|(place, rig)| (&rig.machine, wanted(place)));
        let refused = if stale { Refused::StaleEpoch { epoch: 1 } } else { Refused::OtherClaim };
        let expected = if refusing == 3 { Ok(()) } else { Err((refusing, refused)) };
        assert_eq!(crate::node::check_commits(commits), expected);
    }
}

#[test]
fn another_primary_that_takes_a_free_claim_undoes_a_prepare_that_it_has_waited_for() {
    let mut rig = Rig::running();
    let stranger = ConnectionId(3);
    rig.open(stranger, Port::Replication, None);
    rig.write(GUEST, 1024, b"guest");
    rig.command(Command::Prepare { epoch: 1, claim: NAME, modifications: 0 }).unwrap();
    rig.write(stranger, 2048, b"late");
    rig.run();
    assert_eq!(rig.answers, [Ok(())]);
    assert_eq!(rig.command(Command::Commit { epoch: 1, claim: NAME }), Err(Refused::OtherClaim));
}
