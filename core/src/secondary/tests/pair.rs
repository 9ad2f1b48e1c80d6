//! What QEMU's unit test of block replication states about a secondary, as facts of this one.

use std::{assert, assert_eq};

use super::rig::{GUEST, PRIMARY, Rig, SIZE};
use crate::secondary::Command;
use crate::{Errno, Outcome, Stage};

const DONE: super::rig::Result = Ok(Outcome::Done);
const FAILOVER: Command = Command::Stop { failover: true, force: false };
const CHECKPOINT: Command = Command::Checkpoint { force: false };
const HALF: usize = SIZE as usize / 2;

/// Writes as many bytes as one likes, piece by piece.
fn fill(rig: &mut Rig, connection: crate::ConnectionId, from: usize, to: usize, byte: u8) {
    let mut at = from;
    while at < to {
        let end = (at / 512 * 512 + 512).min(to);
        let bytes = std::vec![byte; end - at];
        assert_eq!(rig.written(connection, at as u64, &bytes), DONE);
        at = end;
    }
}

#[test]
fn before_the_start_guest_reads_and_writes_fail() {
    let mut rig = Rig::new();
    assert_eq!(rig.read(GUEST, 0, 512), Err(Errno::Io));
    assert_eq!(rig.written(GUEST, 0, b"x"), Err(Errno::Io));
}

#[test]
fn after_the_start_the_guest_reads_the_secondary_disk() {
    let mut rig = Rig::new();
    rig.disk[HALF..].fill(b's');
    rig.start();
    assert_eq!(rig.view(), rig.disk);
}

#[test]
fn a_write_of_the_upper_half_by_the_primary_leaves_the_guests_view_as_it_was() {
    let mut rig = Rig::running();
    fill(&mut rig, PRIMARY, SIZE as usize - 1500, SIZE as usize, b'p');
    assert_eq!(rig.view(), [b'd'; SIZE as usize]);
    assert_eq!(rig.disk[SIZE as usize - 1500], b'p');
}

#[test]
fn a_guest_write_of_the_lower_half_is_read_back() {
    let mut rig = Rig::running();
    fill(&mut rig, GUEST, 0, 1800, b'g');
    let view = rig.view();
    assert!(view[..1800].iter().all(|byte| *byte == b'g') && view[1800..].iter().all(|byte| *byte == b'd'));
}

#[test]
fn a_checkpoint_shows_the_write_of_the_primary() {
    let mut rig = Rig::running();
    fill(&mut rig, PRIMARY, 3000, 4000, b'p');
    assert_eq!(rig.outcome(CHECKPOINT), Ok(()));
    assert_eq!(rig.view()[3000..4000], [b'p'; 1000]);
}

#[test]
fn after_a_failover_the_guest_reads_its_own_lower_half_and_the_old_upper_half() {
    let mut rig = Rig::running();
    fill(&mut rig, GUEST, 0, 700, b'g');
    fill(&mut rig, PRIMARY, 3584, 4296, b'p');
    assert_eq!(rig.outcome(FAILOVER), Ok(()));
    assert_eq!(rig.machine.stage(), Stage::Done);
    let view = rig.view();
    assert_eq!(view, rig.disk);
    assert!(view[..700].iter().all(|byte| *byte == b'g'));
    assert!(view[700..].iter().all(|byte| *byte == b'd'), "not the speculative write");
}

#[test]
fn after_a_failover_start_checkpoint_and_stop_are_ignored_and_the_view_stays() {
    let mut rig = Rig::running();
    fill(&mut rig, GUEST, 0, 700, b'g');
    fill(&mut rig, PRIMARY, 3584, 4296, b'p');
    assert_eq!(rig.outcome(FAILOVER), Ok(()));
    let view = rig.view();
    for wanted in [Command::Start { primary: true }, CHECKPOINT, FAILOVER] {
        assert_eq!(rig.outcome(wanted), Ok(()));
        assert_eq!((rig.machine.stage(), rig.view()), (Stage::Done, view.clone()));
    }
    assert_eq!(rig.written(GUEST, 0, b"alive"), DONE);
    assert_eq!(rig.machine.errors().first(), None, "a healthy failover shows no error");
}

#[test]
fn stopping_without_failover_leaves_every_write_of_the_primary() {
    let mut rig = Rig::running();
    fill(&mut rig, GUEST, 0, 700, b'g');
    fill(&mut rig, PRIMARY, 3584, 4296, b'p');
    assert_eq!(rig.outcome(Command::Stop { failover: false, force: false }), Ok(()));
    let view = rig.view();
    assert!(view[..3584].iter().all(|byte| *byte == b'd') && view[3584..].iter().all(|byte| *byte == b'p'));
}
