//! A node's volumes together: operations that are checked everywhere before they act anywhere, and the checkpoint of a
//! pair ([`Coordinator`]).

mod checkpoint;
#[cfg(test)]
mod tests;

pub use checkpoint::{
    Coordinator, Failure, HURRY_SHARE, Input, Member, MemberIndex, NodeIndex, Output, Volume, VolumeIndex,
};

use crate::{ErrorCounters, ErrorKind, Refused, Stage};

/// An operation that a manager asks of one volume or of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Operation {
    /// Start replication.
    Start {
        /// The mode that the manager named.
        primary: bool,
    },
    /// Take a checkpoint.
    Checkpoint {
        /// Also while something is known to be missing.
        force: bool,
    },
    /// Stop replication.
    Stop {
        /// A secondary goes on from the last checkpoint and its guest's own writes.
        failover: bool,
        /// Without failover also while something is known to be missing.
        force: bool,
    },
}

/// A volume as its manager sees it.
pub trait Managed {
    /// Whether an operation would be taken now; changes nothing.
    ///
    /// # Errors
    /// Why it would be refused.
    fn check(&self, operation: Operation) -> Result<(), Refused>;

    /// Where it stands.
    fn stage(&self) -> Stage;

    /// Failures since the last start.
    fn errors(&self) -> &ErrorCounters;

    /// Whether something is missing on a replica, or here.
    fn is_behind(&self) -> bool;

    /// What a manager that asks for an error hears: `None` is health.
    ///
    /// # Errors
    /// [`Refused::NotRunning`] in stage None.
    fn trouble(&self) -> Result<Option<Trouble>, Refused> {
        if self.stage() == Stage::None {
            return Err(Refused::NotRunning);
        }
        let recorded = self.errors().first().map(Trouble::Error);
        Ok(recorded.or(self.is_behind().then_some(Trouble::Behind)))
    }
}

/// What is wrong with a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Trouble {
    /// A failure was recorded since the last start.
    Error(ErrorKind),
    /// Something is missing on a replica, or here.
    Behind,
}

/// Asks every volume whether it would take an operation. Only when all would, does the caller let them act.
///
/// # Errors
/// The first that refuses, by its place, and why. None has acted.
pub fn check_all<'a, V: Managed + ?Sized + 'a>(
    volumes: impl IntoIterator<Item = &'a V>,
    operation: Operation,
) -> Result<(), (usize, Refused)> {
    for (place, volume) in volumes.into_iter().enumerate() {
        volume.check(operation).map_err(|refused| (place, refused))?;
    }
    Ok(())
}

/// Asks each of several secondaries of a node whether it would take its commit. Only when all would, does the caller let them
/// act: the views of a node are of one moment.
///
/// # Errors
/// The first that refuses, by its place, and why. None has acted.
#[cfg(feature = "secondary")]
pub fn check_commits<'a, 'm: 'a>(
    commits: impl IntoIterator<Item = (&'a crate::secondary::Secondary<'m>, crate::secondary::Command)>,
) -> Result<(), (usize, Refused)> {
    for (place, (volume, commit)) in commits.into_iter().enumerate() {
        volume.check_command(&commit).map_err(|refused| (place, refused))?;
    }
    Ok(())
}

#[cfg(feature = "primary")]
impl Managed for crate::primary::Primary<'_> {
    fn check(&self, operation: Operation) -> Result<(), Refused> {
        use crate::primary::Command;
        match operation {
            Operation::Start { primary } => self.check_command(&Command::Start { primary }),
            Operation::Stop { .. } => self.check_command(&Command::Stop),
            Operation::Checkpoint { .. } if self.stage() == Stage::Done => Ok(()),
            // Never a checkpoint while something is missing everywhere, with or without control addresses.
            Operation::Checkpoint { .. } if self.stage() == Stage::Running && self.is_alone() => {
                Err(Refused::NoReplica)
            }
            // One that finds another under way waits for it.
            Operation::Checkpoint { .. } if self.stage() == Stage::Running => Ok(()),
            Operation::Checkpoint { .. } => self.check_command(&Command::Barrier { is_urgent: false }),
        }
    }

    fn stage(&self) -> Stage {
        self.stage()
    }

    fn errors(&self) -> &ErrorCounters {
        self.errors()
    }

    fn is_behind(&self) -> bool {
        self.is_behind()
    }
}

#[cfg(feature = "secondary")]
impl Managed for crate::secondary::Secondary<'_> {
    fn check(&self, operation: Operation) -> Result<(), Refused> {
        self.check_command(&operation.into())
    }

    fn stage(&self) -> Stage {
        self.stage()
    }

    fn errors(&self) -> &ErrorCounters {
        self.errors()
    }

    fn is_behind(&self) -> bool {
        self.is_behind()
    }
}

#[cfg(feature = "secondary")]
impl From<Operation> for crate::secondary::Command {
    fn from(operation: Operation) -> Self {
        match operation {
            Operation::Start { primary } => Self::Start { primary },
            Operation::Checkpoint { force } => Self::Checkpoint { force },
            Operation::Stop { failover, force } => Self::Stop { failover, force },
        }
    }
}
