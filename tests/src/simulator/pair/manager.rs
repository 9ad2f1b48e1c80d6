//! Managers: any operation at any time, twice, on either side, on one volume or on all of a node, right or wrong.

use twinblock_core::node::{Operation, check_all};
use twinblock_core::primary::Command;
use twinblock_core::secondary;
use twinblock_core::{Identity, Refused, Stage, View};

use super::settings::REPLICAS;
use super::world::{Barrier, Place, World};

type Taken = Result<(), Refused>;

impl World<'_> {
    pub(super) fn manager_acts(&mut self) {
        match self.rng.u8(..10) {
            0..=3 => {
                let (place, wanted) = (self.any_place(), self.any_secondary_command());
                self.ask_secondary_to(place, wanted);
                if self.rng.u8(..3) == 0 {
                    self.ask_secondary_to(place, wanted);
                }
            }
            4..=6 => {
                let (volume, wanted) = (self.rng.usize(..self.volumes.len()), self.any_primary_command());
                self.ask_primary_to(volume, wanted);
                if self.rng.u8(..3) == 0 {
                    self.ask_primary_to(volume, wanted);
                }
            }
            7 => self.ask_all_primaries(),
            8 => self.ask_all_secondaries(),
            _ => self.guests_change(),
        }
    }

    /// What is refused before the start.
    pub(super) fn manager_asks_too_early(&mut self) {
        let (force, failover) = (self.rng.bool(), self.rng.bool());
        let place = self.any_place();
        let wanted = match self.rng.u8(..3) {
            0 => secondary::Command::Checkpoint { force },
            1 => secondary::Command::Start { primary: true },
            _ => secondary::Command::Stop { failover, force },
        };
        if self.standby(place).machine().stage() == Stage::None {
            self.ask_secondary_to(place, wanted);
        }
        self.manager_acts();
    }

    fn any_secondary_command(&mut self) -> secondary::Command {
        use secondary::Command;
        let (force, failover) = (self.rng.bool(), self.rng.bool());
        let takes_over = self.rng.u32(..100) < self.settings.takeovers_percent;
        let epoch = self.rng.u64(..4);
        let claim = Identity([8; 16]);
        match self.rng.u8(..8) {
            _ if takes_over => Command::Stop { failover, force },
            0..=1 => Command::Start { primary: self.rng.u8(..3) == 0 },
            2..=5 => Command::Checkpoint { force },
            6 => Command::Prepare { epoch, claim, modifications: self.rng.u64(..4) },
            _ => Command::Commit { epoch, claim },
        }
    }

    fn any_primary_command(&mut self) -> Command {
        let replica = self.rng.usize(..self.settings.replicas) as u8;
        match self.rng.u8(..8) {
            0..=1 => Command::Start { primary: self.rng.u8(..4) != 0 },
            2 => Command::Stop,
            3..=4 => Command::Detach { replica },
            5..=6 => {
                let is_new = self.rng.bool();
                Command::Attach { replica, is_empty: self.rng.u8(..4) == 0, is_new }
            }
            _ => Command::Hurry,
        }
    }

    /// Offers an operation to a secondary and checks whether it was right to take it.
    pub(super) fn ask_secondary_to(&mut self, place: Place, wanted: secondary::Command) {
        let allowed = self.expected_of_secondary(place, &wanted);
        let result = self.manage(place, wanted).map(|_| ());
        assert!(allowed.contains(&result), "{wanted:?}: {result:?}, not one of {allowed:?}");
    }

    /// The table of SEMANTICS.md, "Operations".
    fn expected_of_secondary(&self, place: Place, wanted: &secondary::Command) -> Vec<Taken> {
        use secondary::Command;
        let standby = self.standby(place);
        let machine = standby.machine();
        let maybe_busy = vec![Ok(()), Err(Refused::InProgress)];
        let unless_busy = if standby.is_asked() { maybe_busy } else { vec![Ok(())] };
        let is_behind = machine.is_behind();
        match (*wanted, machine.stage()) {
            (Command::Start { .. } | Command::Checkpoint { .. }, Stage::Done | Stage::Failover)
            | (Command::Stop { .. }, Stage::Done | Stage::Failover)
            | (Command::Stop { failover: true, .. }, Stage::FailoverFailed)
            | (Command::Stop { failover: false, force: true }, Stage::Running) => vec![Ok(())],
            (Command::Start { .. }, Stage::Running | Stage::FailoverFailed) => vec![Err(Refused::Running)],
            (Command::Start { primary: true }, Stage::None) => {
                vec![Err(Refused::WrongMode { primary_wanted: true })]
            }
            (Command::Checkpoint { force: false }, Stage::Running) if is_behind => {
                vec![Err(Refused::Missing)]
            }
            (Command::Start { .. }, Stage::None) | (Command::Checkpoint { .. }, Stage::Running) => {
                unless_busy
            }
            (Command::Stop { failover: false, .. }, Stage::FailoverFailed) => {
                vec![Err(Refused::CommitPending)]
            }
            (Command::Stop { failover: true, .. }, Stage::Running) => match machine.view() {
                View::Broken => vec![Err(Refused::ViewBroken)],
                View::Whole => vec![Ok(())],
            },
            // A miss is one reason to be behind; a claim that ended unclean is none to refuse a stop.
            (Command::Stop { .. }, Stage::Running) if is_behind => vec![Ok(()), Err(Refused::Missing)],
            (Command::Stop { .. }, Stage::Running) => vec![Ok(())],
            (Command::Prepare { .. } | Command::Commit { .. }, Stage::Running) => {
                vec![
                    Err(Refused::StaleEpoch { epoch: machine.epoch() }),
                    Err(Refused::OtherClaim),
                    Err(Refused::Missing),
                ]
            }
            (Command::Prepare { .. } | Command::Commit { .. }, stage) if stage != Stage::None => {
                vec![Err(Refused::TakenOver)]
            }
            _ => vec![Err(Refused::NotRunning)],
        }
    }

    fn ask_primary_to(&mut self, volume: usize, wanted: Command) {
        let expected = self.expected_of_primary(volume, &wanted);
        let is_stop = wanted == Command::Stop && expected.is_ok();
        self.volumes[volume].was_stopped |= is_stop;
        let result = self.try_order(volume, wanted).map(|_| ());
        assert_eq!(expected, result, "{wanted:?}");
        self.check_trouble(volume);
        match wanted {
            Command::Stop if result.is_ok() => {
                let barrier = &mut self.volumes[volume].barrier;
                if matches!(barrier, Barrier::Raised(_)) {
                    *barrier = Barrier::Down;
                }
            }
            Command::Detach { replica } if result.is_ok() => {
                self.cut(Place { volume, replica: replica.into() });
            }
            _ => {}
        }
    }

    fn expected_of_primary(&self, volume: usize, wanted: &Command) -> Taken {
        let machine = self.volumes[volume].active.machine();
        let is_attached = |replica| machine.replica(replica).is_some_and(|status| status.is_attached);
        match (*wanted, machine.stage()) {
            (Command::Start { .. }, Stage::Running) => Err(Refused::Running),
            (Command::Start { primary: false }, _) => Err(Refused::WrongMode { primary_wanted: false }),
            (Command::Stop, Stage::None) => Err(Refused::NotRunning),
            (Command::Attach { replica, .. }, _) if is_attached(replica) => Err(Refused::InProgress),
            (Command::Detach { replica }, _) if !is_attached(replica) => Err(Refused::Unknown),
            _ => Ok(()),
        }
    }

    /// An operation on all volumes of the primary's node: all take it, or none has acted.
    fn ask_all_primaries(&mut self) {
        let operation = match self.rng.u8(..4) {
            0 => Operation::Start { primary: self.rng.u8(..4) != 0 },
            1 => Operation::Stop { failover: false, force: false },
            _ => Operation::Checkpoint { force: false },
        };
        let machines = self.volumes.iter().map(|volume| volume.active.machine());
        let checked = check_all(machines, operation);
        self.trace(|_| format!("all primaries: {operation:?} {checked:?}"));
        let wanted = match operation {
            Operation::Start { primary } => Command::Start { primary },
            Operation::Stop { .. } => Command::Stop,
            Operation::Checkpoint { .. } => {
                if checked.is_ok() {
                    self.begin_checkpoint(false);
                }
                return;
            }
        };
        let count = self.volumes.len();
        let expected: Vec<_> = (0..count).map(|volume| self.expected_of_primary(volume, &wanted)).collect();
        check_walk(&expected, checked);
        if checked.is_ok() {
            (0..count).for_each(|volume| self.ask_primary_to(volume, wanted));
        }
    }

    /// The same on a node of secondaries.
    fn ask_all_secondaries(&mut self) {
        let replica = self.rng.usize(..self.settings.replicas.min(REPLICAS));
        let (force, failover) = (self.rng.bool(), self.rng.bool());
        let takes_over = self.rng.u32(..100) < self.settings.takeovers_percent;
        let operation = match self.rng.u8(..3) {
            _ if takes_over => Operation::Stop { failover, force },
            0 => Operation::Start { primary: self.rng.bool() },
            _ => Operation::Checkpoint { force },
        };
        let wanted = secondary::Command::from(operation);
        let places: Vec<_> = (0..self.volumes.len()).map(|volume| Place { volume, replica }).collect();
        let checked = check_all(places.iter().map(|place| self.standby(*place).machine()), operation);
        self.trace(|_| format!("all secondaries {replica}: {operation:?} {checked:?}"));
        let expected = places.iter().map(|place| self.expected_of_secondary(*place, &wanted));
        // Where another operation is under way more than one answer is right.
        let certain = expected.map(|allowed| if allowed.len() == 1 { Some(allowed[0]) } else { None });
        if let Some(certain) = certain.collect::<Option<Vec<_>>>() {
            check_walk(&certain, checked);
        }
        if checked.is_ok() {
            for place in places {
                let result = self.manage(place, wanted);
                assert!(result.is_ok(), "all would take {wanted:?}, and then {place:?} did not: {result:?}");
            }
        }
    }

    /// A guest goes and another one comes, on either side.
    fn guests_change(&mut self) {
        if self.rng.bool() {
            let volume = self.rng.usize(..self.volumes.len());
            let client = self.rng.usize(..self.volumes[volume].active.clients.open.len());
            self.meet_primary(volume, "guest leaves");
            let now = self.primary_now();
            self.volumes[volume].active.close(now, client);
            self.settle();
            return self.open_guest(volume);
        }
        self.secondary_guests_change();
    }

    pub(super) fn secondary_guests_change(&mut self) {
        let place = self.any_place();
        let guest = self.standby(place).clients.open.iter().position(|client| !client.is_replication);
        if let Some(guest) = guest {
            let connection = self.standby(place).clients.open[guest].connection;
            let is_clean = self.standby(place).clients.is_idle_of(connection);
            self.meet_secondary(place, if is_clean { "clean close" } else { "unclean close" });
            let now = self.secondary_now(place.replica);
            self.standby_mut(place).close(now, guest, is_clean);
            self.settle();
        }
        self.open_secondary_guest(place);
    }
}

/// A walk over all volumes names the first that refuses.
fn check_walk(expected: &[Taken], checked: Result<(), (usize, Refused)>) {
    let first = expected.iter().position(Result::is_err);
    match (first, checked) {
        (None, Ok(())) => {}
        (Some(place), Err((named, refused))) => {
            assert!(place == named && expected[place] == Err(refused), "{checked:?}, not {expected:?}");
        }
        _ => panic!("{checked:?}, not {expected:?}"),
    }
}
