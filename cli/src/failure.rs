//! Why a command ends without success, and the exit code that says so.

use std::fmt;

/// One line for the user: what was tried, on what, and what to do. Sorted by exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Exit code 1: refused, or tried and failed.
    Refused(String),
    /// Exit code 2: the command line or the configuration is wrong.
    Usage(String),
    /// Exit code 3: no daemon answers there.
    Unreachable(String),
}

impl Failure {
    /// What the process exits with.
    pub(crate) const fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(_) => 1,
            Self::Usage(_) => 2,
            Self::Unreachable(_) => 3,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Refused(text) | Self::Usage(text) | Self::Unreachable(text)) = self;
        formatter.write_str(text)
    }
}

impl std::error::Error for Failure {}
