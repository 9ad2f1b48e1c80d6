//! What a manager sees of a primary, as of any volume.

use crate::node::{Managed, Operation, Trouble};

use super::*;

const CHECKPOINT: Operation = Operation::Checkpoint { force: false };
const STOP: Operation = Operation::Stop { failover: false, force: false };

/// Through the interface that volumes of both roles have.
fn asked<V: Managed>(volume: &V, operation: Operation) -> Result<(), Refused> {
    volume.check(operation)
}

#[test]
fn a_node_is_told_what_a_primary_would_take_in_each_stage() {
    let mut bench = Bench::new();
    let start = |primary| Operation::Start { primary };
    assert_eq!(Managed::stage(&bench.machine), Stage::None);
    assert_eq!(asked(&bench.machine, CHECKPOINT), Err(Refused::NotRunning));
    assert_eq!(asked(&bench.machine, STOP), Err(Refused::NotRunning));
    assert_eq!(asked(&bench.machine, start(false)), Err(Refused::WrongMode { primary_wanted: false }));
    assert_eq!(asked(&bench.machine, start(true)), Ok(()));
    bench.command(Command::Start { primary: true }).unwrap();
    assert_eq!(Managed::stage(&bench.machine), Stage::Running);
    assert_eq!(asked(&bench.machine, CHECKPOINT), Ok(()), "without replicas it is a barrier");
    assert_eq!(asked(&bench.machine, start(true)), Err(Refused::Running));
    bench.command(Command::Stop).unwrap();
    assert_eq!(Managed::stage(&bench.machine), Stage::Done);
    assert_eq!(asked(&bench.machine, CHECKPOINT), Ok(()), "ignored");
}

#[test]
fn a_checkpoint_is_refused_once_every_replica_misses_something() {
    let mut bench = Bench::running();
    assert!(!Managed::is_behind(&bench.machine));
    assert_eq!(bench.machine.trouble(), Ok(None));
    bench.write(0, 512);
    bench.ok(Device::Disk);
    bench.end(FIRST, IO);
    bench.ok(SECOND);
    assert!(Managed::is_behind(&bench.machine));
    assert_eq!(bench.machine.trouble(), Ok(Some(Trouble::Error(ErrorKind::Forward))));
    assert_eq!(asked(&bench.machine, CHECKPOINT), Ok(()), "one of two is left");
    bench.write(0, 512);
    bench.ok(Device::Disk);
    bench.end(SECOND, IO);
    assert_eq!(asked(&bench.machine, CHECKPOINT), Err(Refused::NoReplica));
}
