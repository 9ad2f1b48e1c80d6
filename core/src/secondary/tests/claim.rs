//! SEMANTICS.md, "Stages": who may modify.

use std::{assert, assert_eq};

use super::rig::{GUEST, NAME, PRIMARY, Rig, STALL_MAX};
use crate::secondary::{Command, Input, Port};
use crate::{ConnectionId, Device, Errno, Outcome, Refused};

const OTHER: ConnectionId = ConnectionId(3);
const DONE: super::rig::Result = Ok(Outcome::Done);
const CHECKPOINT: Command = Command::Checkpoint { force: false };

#[test]
fn before_the_start_everybody_modifies() {
    let mut rig = Rig::new();
    rig.open(OTHER, Port::Replication, None);
    assert_eq!(rig.written(PRIMARY, 0, b"a"), DONE);
    assert_eq!(rig.written(OTHER, 0, b"b"), DONE);
}

#[test]
fn the_first_that_modifies_holds_the_claim_until_it_closes() {
    let mut rig = Rig::running();
    rig.open(OTHER, Port::Replication, None);
    assert_eq!(rig.machine.claim_holder(), None);
    assert_eq!(rig.written(PRIMARY, 0, b"a"), DONE);
    assert_eq!(rig.machine.claim_holder(), Some(PRIMARY));
    assert_eq!(rig.written(OTHER, 0, b"b"), Err(Errno::NotPermitted));
    assert!(rig.read(OTHER, 0, 1).is_ok(), "reading needs no claim");
    assert!(!rig.machine.is_behind(), "a stranger's error is nobody's loss");
    rig.close(PRIMARY, true);
    assert_eq!(rig.machine.claim_holder(), None);
    assert_eq!(rig.written(OTHER, 0, b"b"), DONE);
    assert_eq!(rig.machine.claim_holder(), Some(OTHER));
}

#[test]
fn a_new_claim_is_granted_when_the_old_ones_transfers_have_ended() {
    let mut rig = Rig::running();
    rig.open(OTHER, Port::Replication, None);
    let old = rig.write(PRIMARY, 0, b"old");
    rig.close(PRIMARY, false);
    let new = rig.write(OTHER, 1024, b"new");
    assert_eq!(rig.queue.len(), 1);
    assert_eq!((rig.reply(old), rig.reply(new)), (None, None));
    rig.run();
    assert_eq!((rig.reply(old), rig.reply(new)), (Some(DONE), Some(DONE)));
}

#[test]
fn what_a_closed_connection_asked_and_has_not_begun_is_dropped() {
    let mut rig = Rig::running();
    rig.write(PRIMARY, 0, b"begun");
    let waiting = rig.write(PRIMARY, 0, b"never");
    rig.close(PRIMARY, false);
    assert_eq!(rig.reply(waiting), Some(Err(Errno::Shutdown)));
    rig.run();
    assert_eq!(&rig.disk[..5], b"begun");
}

#[test]
fn a_connection_of_the_same_primary_takes_the_claim_over_once_the_old_one_has_closed() {
    let mut rig = Rig::running();
    rig.written(PRIMARY, 0, b"old").unwrap();
    rig.open(OTHER, Port::Replication, Some(NAME));
    let new = rig.write(OTHER, 0, b"new");
    assert_eq!(rig.closed, [PRIMARY]);
    assert_eq!(rig.reply(new), None);
    assert_eq!(rig.written(PRIMARY, 1024, b"late"), Err(Errno::NotPermitted));
    rig.close(PRIMARY, false);
    rig.run();
    assert_eq!(rig.reply(new), Some(DONE));
    assert_eq!(&rig.disk[..3], b"new");
}

#[test]
fn a_claim_that_ends_without_a_disconnect_leaves_a_doubt() {
    for is_clean in [true, false] {
        let mut rig = Rig::running();
        rig.written(PRIMARY, 0, b"a").unwrap();
        rig.close(PRIMARY, is_clean);
        let expected = if is_clean { Ok(()) } else { Err(Refused::Missing) };
        assert_eq!(rig.outcome(CHECKPOINT), expected);
        assert_eq!(rig.machine.is_behind(), !is_clean);
    }
}

#[test]
fn a_doubt_alone_is_no_reason_to_refuse_a_stop() {
    let mut rig = Rig::running();
    rig.written(PRIMARY, 0, b"a").unwrap();
    rig.close(PRIMARY, false);
    assert_eq!(rig.outcome(Command::Stop { failover: false, force: false }), Ok(()));
    assert_eq!(&rig.disk[..1], b"a");
}

#[test]
fn whoever_holds_no_claim_leaves_no_doubt() {
    let mut rig = Rig::running();
    rig.written(PRIMARY, 0, b"a").unwrap();
    rig.open(OTHER, Port::Replication, None);
    rig.close(OTHER, false);
    rig.close(GUEST, false);
    assert!(!rig.machine.is_behind());
}

#[test]
fn a_takeover_ends_a_prepare_that_waits() {
    let mut rig = Rig::running();
    rig.written(PRIMARY, 0, b"one").unwrap();
    rig.command(Command::Prepare { epoch: 1, claim: NAME, modifications: 2 }).unwrap();
    rig.open(OTHER, Port::Replication, Some(NAME));
    rig.write(OTHER, 0, b"new");
    rig.write(PRIMARY, 0, b"two");
    rig.run();
    assert_eq!(rig.answers, [Err(Refused::OtherClaim)]);
}

#[test]
fn a_write_that_finds_no_slot_after_its_connection_closed_lets_the_claim_go() {
    let mut rig = Rig::running();
    rig.written(GUEST, 0, &[b'g'; 2048]).unwrap();
    let lost = rig.write(PRIMARY, 2048, b"lost");
    assert_eq!(rig.machine.held(), 1);
    rig.close(PRIMARY, false);
    assert_eq!(rig.reply(lost), Some(Err(Errno::Shutdown)), "one that is held is dropped");

    let mut rig = Rig::running();
    rig.written(GUEST, 0, &[b'g'; 1536]).unwrap();
    let lost = rig.write(PRIMARY, 2048, &[b'p'; 1024]);
    rig.close(PRIMARY, false);
    rig.run();
    assert_eq!(rig.reply(lost), Some(Err(Errno::Shutdown)), "and one that would be held");
    assert_eq!(rig.outcome(Command::Checkpoint { force: true }), Ok(()));
    rig.open(OTHER, Port::Replication, None);
    assert_eq!(rig.written(OTHER, 0, b"new"), DONE);
}

#[test]
fn more_connections_than_places_are_refused() {
    let mut rig = Rig::new();
    rig.open(OTHER, Port::Guest, None);
    rig.open(ConnectionId(4), Port::Guest, None);
    let fifth = Input::Opened { connection: ConnectionId(5), port: Port::Guest, identity: None };
    assert_eq!(rig.offer(fifth), Err(Refused::NoRoom));
    rig.wait(STALL_MAX);
}

#[test]
fn a_connection_that_was_taken_over_leaves_a_doubt_only_if_it_ends_unclean() {
    for is_clean in [true, false] {
        let mut rig = Rig::running();
        rig.written(PRIMARY, 0, b"old").unwrap();
        rig.open(OTHER, Port::Replication, Some(NAME));
        rig.open(ConnectionId(4), Port::Replication, Some(NAME));
        rig.write(OTHER, 0, b"new");
        rig.close(ConnectionId(4), false);
        assert!(!rig.machine.is_behind(), "it has not modified anything");
        rig.close(PRIMARY, is_clean);
        assert_eq!(rig.machine.is_behind(), !is_clean);
    }
}

#[test]
fn what_waits_for_a_prepare_goes_on_when_the_claims_connection_closes() {
    let mut rig = Rig::running();
    rig.write(PRIMARY, 0, b"p");
    rig.command(Command::Prepare { epoch: 1, claim: NAME, modifications: 1 }).unwrap();
    rig.write(GUEST, 2048, &[b'g'; 512]);
    let keeping = [(Device::Disk, "read", 0, 512)];
    assert_eq!(rig.under_way(), keeping, "the guest waits for the prepare");
    rig.close(PRIMARY, false);
    assert_eq!(rig.answers, [Err(Refused::OtherClaim)]);
    assert_eq!(rig.under_way()[1..], [(Device::Buffer, "write", 0, 512)]);
}
