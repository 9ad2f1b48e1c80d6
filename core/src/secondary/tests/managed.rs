//! What a manager sees of a secondary, as of any volume.

use super::rig::{PRIMARY, Rig};
use crate::driver::Machine;
use crate::node::{Managed, Operation, Trouble};
use crate::{Refused, Stage};

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
