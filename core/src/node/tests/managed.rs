//! What all volumes of a node are asked before one of them acts, and what is wrong with one.

use std::vec::Vec;

use crate::node::{Managed, Operation, Trouble, check_all};
use crate::{ErrorCounters, ErrorKind, Refused, Stage};

/// A volume that takes an operation, or not.
struct Fake {
    check: Result<(), Refused>,
    stage: Stage,
    errors: ErrorCounters,
    is_behind: bool,
}

impl Fake {
    fn healthy() -> Self {
        Self { check: Ok(()), stage: Stage::Running, errors: ErrorCounters::default(), is_behind: false }
    }
}

impl Managed for Fake {
    fn check(&self, operation: Operation) -> Result<(), Refused> {
        assert_eq!(operation, STOP);
        self.check
    }

    fn stage(&self) -> Stage {
        self.stage
    }

    fn errors(&self) -> &ErrorCounters {
        &self.errors
    }

    fn is_behind(&self) -> bool {
        self.is_behind
    }
}

const STOP: Operation = Operation::Stop { failover: false, force: false };

#[test]
fn every_volume_is_asked_and_the_first_that_refuses_is_named() {
    for refusing in 0..4 {
        let mut volumes: Vec<_> = (0..4).map(|_| Fake::healthy()).collect();
        volumes[refusing].check = Err(Refused::Missing);
        assert_eq!(check_all(&volumes, STOP), Err((refusing, Refused::Missing)));
        volumes[3].check = Err(Refused::Running);
        let expected = if refusing == 3 { Refused::Running } else { Refused::Missing };
        assert_eq!(check_all(&volumes, STOP), Err((refusing, expected)));
    }
    assert_eq!(check_all(&[Fake::healthy(), Fake::healthy()], STOP), Ok(()));
    assert_eq!(check_all::<Fake>(&[], STOP), Ok(()));
}

#[test]
fn trouble_is_an_error_or_a_miss_and_nothing_else() {
    let mut volume = Fake::healthy();
    assert_eq!(volume.trouble(), Ok(None));
    volume.is_behind = true;
    assert_eq!(volume.trouble(), Ok(Some(Trouble::Behind)));
    volume.errors.record(ErrorKind::Commit);
    volume.errors.record(ErrorKind::Forward);
    assert_eq!(volume.trouble(), Ok(Some(Trouble::Error(ErrorKind::Forward))));
    assert_eq!(volume.trouble(), volume.trouble(), "asking clears nothing");
    for stage in [Stage::Failover, Stage::Done] {
        assert_eq!(Fake { stage, ..Fake::healthy() }.trouble(), Ok(None));
    }
    volume.stage = Stage::None;
    assert_eq!(volume.trouble(), Err(Refused::NotRunning));
}
