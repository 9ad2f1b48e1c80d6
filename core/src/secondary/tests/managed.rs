//! What a manager sees of a secondary, as of any volume.

use super::rig::{GUEST, PRIMARY, Rig, SIZE};
use crate::block::Capabilities;
use crate::control::{BufferReport, CommitReport, FullPolicy};
use crate::driver::Machine;
use crate::node::{Managed, Operation, Trouble};
use crate::secondary::{Command, WhenFull};
use crate::{Refused, Stage, View};

#[test]
fn a_node_is_told_what_a_secondary_would_take_and_what_is_wrong_with_it() {
    let rig = Rig::in_stage(Stage::None);
    assert_eq!(Managed::stage(&rig.machine), Stage::None);
    let checkpoint = Operation::Checkpoint { force: false };
    assert_eq!(Managed::check(&rig.machine, checkpoint), Err(Refused::NotRunning));
    assert_eq!(rig.machine.trouble(), Err(Refused::NotRunning));
    let mut rig = Rig::running();
    assert_eq!(Managed::stage(&rig.machine), Stage::Running);
    assert_eq!(Managed::check(&rig.machine, checkpoint), Ok(()));
    assert!(!Managed::is_behind(&rig.machine));
    assert_eq!(rig.machine.trouble(), Ok(None));
    assert_eq!(Machine::poll_timeout(&rig.machine), None, "nothing is held");
    rig.written(PRIMARY, 0, &[1; 512]).unwrap();
    rig.close(PRIMARY, false);
    assert!(Managed::is_behind(&rig.machine));
    assert_eq!(rig.machine.trouble(), Ok(Some(Trouble::Behind)));
    assert_eq!(Managed::check(&rig.machine, checkpoint), Err(Refused::Missing));
    let forced = Operation::Checkpoint { force: true };
    assert_eq!(Managed::check(&rig.machine, forced), Ok(()));
}

#[test]
fn a_manager_is_told_how_full_the_buffer_is_and_how_far_a_commit() {
    for (when_full, policy, view, held_count) in [
        (WhenFull::Stall, FullPolicy::Stall, View::Whole, 1),
        (WhenFull::Break, FullPolicy::Break, View::Broken, 0),
    ] {
        let mut rig = Rig::with(when_full, Capabilities::empty());
        rig.start();
        let used = |rig: &Rig| BufferReport::from(&rig.machine).used_bytes;
        assert_eq!((used(&rig), CommitReport::of(&rig.machine)), (0, None));
        rig.written(PRIMARY, 0, &[1; 600]).unwrap();
        assert_eq!(used(&rig), 1024);
        rig.written(PRIMARY, 1024, &[1; 1024]).unwrap();
        rig.write(PRIMARY, 2048, &[1; 512]);
        rig.run();
        let full = BufferReport { size_bytes: 2048, used_bytes: 2048, policy, view, held_count };
        assert_eq!(BufferReport::from(&rig.machine), full);
        assert_eq!(CommitReport::of(&rig.machine), None);
    }
    let failover = Command::Stop { failover: true, force: false };
    let mut rig = Rig::running();
    rig.written(PRIMARY, 0, &[1; 512]).unwrap();
    rig.written(GUEST, SIZE - 1, &[2]).unwrap();
    rig.command(failover).unwrap();
    assert_eq!(CommitReport::of(&rig.machine), Some(CommitReport { total_bytes: 1024, done_bytes: 0 }));
    rig.run();
    assert_eq!(rig.machine.stage(), Stage::Done);
    assert_eq!(CommitReport::of(&rig.machine), Some(CommitReport { total_bytes: 1024, done_bytes: 1024 }));
    // With nothing to commit there is something to tell only until it has ended.
    let mut rig = Rig::running();
    rig.command(failover).unwrap();
    assert_eq!(CommitReport::of(&rig.machine), Some(CommitReport { total_bytes: 0, done_bytes: 0 }));
    rig.run();
    assert_eq!(CommitReport::of(&rig.machine), None);
}
