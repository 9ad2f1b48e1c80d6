//! The stages: one struct each for what is true in that stage alone.

use crate::{ConnectionId, Identity, Micros, Stage, View};

/// The stage, and what belongs to it.
#[derive(Clone, Copy, Debug, Hash)]
pub(super) enum State {
    None,
    Running(Running),
    Failover(Failover),
    FailoverFailed,
    Done,
}

/// Replicating.
#[derive(Clone, Copy, Debug, Default, Hash)]
pub(super) struct Running {
    pub(super) view: View,
    /// An error was answered to the primary: something is missing here.
    pub(super) has_missed: bool,
    /// The claim ended without a clean disconnect: something may be missing here.
    pub(super) is_in_doubt: bool,
    pub(super) claim: Claim,
    /// The claim of a prepare that was answered, and when; gone with the next modification.
    pub(super) prepared: Option<(Identity, Micros)>,
    pub(super) has_warned_three_quarters: bool,
    pub(super) has_warned_full: bool,
}

/// Which connection may modify.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
pub(super) enum Claim {
    /// The next that modifies.
    #[default]
    Free,
    /// This one.
    Held { connection: ConnectionId, identity: Option<Identity> },
    /// None yet: this one was told to close, or has closed, and has transfers in flight.
    Ending { connection: ConnectionId, identity: Option<Identity> },
}

/// Committing the buffer into the disk.
#[derive(Clone, Copy, Debug, Default, Hash)]
pub(super) struct Failover {
    /// The commit has looked at everything before this byte.
    pub(super) cursor: u64,
    /// A transfer failed: no further step begins.
    pub(super) has_failed: bool,
    /// Progress, in sixteenths, that was last told.
    pub(super) told: u8,
}

impl State {
    pub(super) const fn stage(&self) -> Stage {
        match self {
            Self::None => Stage::None,
            Self::Running(_) => Stage::Running,
            Self::Failover(_) => Stage::Failover,
            Self::FailoverFailed => Stage::FailoverFailed,
            Self::Done => Stage::Done,
        }
    }

    pub(super) const fn view(&self) -> View {
        match self {
            Self::Running(running) => running.view,
            _ => View::Whole,
        }
    }

    pub(super) const fn is_behind(&self) -> bool {
        match self {
            Self::Running(running) => running.has_missed || running.is_in_doubt,
            _ => false,
        }
    }

    pub(super) const fn running_mut(&mut self) -> Option<&mut Running> {
        match self {
            Self::Running(running) => Some(running),
            _ => None,
        }
    }

    pub(super) const fn running(&self) -> Option<&Running> {
        match self {
            Self::Running(running) => Some(running),
            _ => None,
        }
    }
}
