//! What people read: one line that says what was refused, where, and what to do.

#[cfg(test)]
mod tests;

use super::report::{Role, StatusText, Trouble};
use crate::{ErrorKind, Refused};
use core::fmt;

/// A refusal in one line.
///
/// ```
/// use twinblock_core::{Refused, control::RefusalText};
/// let text = RefusalText { refused: Refused::NotRunning, volume: "vda" };
/// assert_eq!(text.to_string(), "replication of volume 'vda' is not running; start it first");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefusalText<'a> {
    /// What was refused.
    pub refused: Refused,
    /// By which volume; for [`Refused::Unknown`] the name that nothing has.
    pub volume: &'a str,
}

impl fmt::Display for RefusalText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let v = Shown(self.volume);
        match self.refused {
            Refused::Busy => write!(f, "volume '{v}' has too many requests in flight")?,
            Refused::BadRequest => write!(f, "the request to volume '{v}' is out of range or misaligned")?,
            Refused::Stale => write!(f, "volume '{v}' has nothing in flight that this could refer to")?,
            Refused::Running => write!(f, "replication of volume '{v}' is already running")?,
            Refused::NotRunning => write!(f, "replication of volume '{v}' is not running")?,
            Refused::WrongMode { primary_wanted: true } => {
                write!(f, "volume '{v}' is a {} and not a {}", Role::Secondary.name(), Role::Primary.name())?;
            }
            Refused::WrongMode { primary_wanted: false } => {
                write!(f, "volume '{v}' is a {} and not a {}", Role::Primary.name(), Role::Secondary.name())?;
            }
            Refused::InProgress => write!(f, "another operation on volume '{v}' has not finished")?,
            Refused::Missing => write!(f, "volume '{v}' misses writes of its primary")?,
            Refused::ViewBroken => write!(f, "the guest's view of volume '{v}' is broken")?,
            Refused::CommitPending => {
                write!(f, "guest data of volume '{v}' is still in its buffer after a failed commit")?;
            }
            Refused::NoReplica => write!(f, "volume '{v}' has no replica that is connected and complete")?,
            Refused::TakenOver => {
                write!(f, "volume '{v}' has taken over or was stopped, and follows no primary any more")?;
            }
            Refused::StaleEpoch { epoch } => {
                write!(f, "volume '{v}' is in epoch {epoch} and the request in another")?;
            }
            Refused::OtherClaim => write!(f, "volume '{v}' is claimed by another primary")?,
            Refused::WrongCount => {
                write!(f, "volume '{v}' has received other modifications than its primary has sent")?;
            }
            Refused::SizeDiffers { here_bytes, there_bytes } => {
                write!(f, "volume '{v}' has {here_bytes} bytes and the other disk {there_bytes}")?;
            }
            Refused::Unsuitable => {
                write!(f, "the replica of volume '{v}' is read-only or has larger blocks than its export")?;
            }
            Refused::NoRoom => write!(f, "volume '{v}' has no room for another replica")?,
            Refused::Unknown => write!(f, "there is no volume or replica '{v}'")?,
            Refused::NoControl => write!(f, "volume '{v}' has no control connection to it now")?,
            Refused::TimedOut => write!(f, "volume '{v}' got no answer in time; the outcome is not known")?,
            Refused::Failed => write!(f, "the buffer of volume '{v}' could not be emptied")?,
        }
        f.write_str("; ")?;
        f.write_str(remedy(self.refused))
    }
}

/// A name that somebody else chose, fit for a line: at most [`SHOWN_MAX`] characters, and none that moves a cursor.
struct Shown<'a>(&'a str);

/// Longer than any name that a volume or replica may have.
const SHOWN_MAX: usize = 64;

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (count, character) in self.0.chars().enumerate() {
            match character {
                _ if count == SHOWN_MAX => return f.write_str("..."),
                _ if character.is_control() => write!(f, "{}", character.escape_default())?,
                _ => fmt::Write::write_char(f, character)?,
            }
        }
        Ok(())
    }
}

/// What to do about it.
const fn remedy(refused: Refused) -> &'static str {
    match refused {
        Refused::Busy => "try again",
        Refused::BadRequest => "keep to its size and block size",
        Refused::Stale => "begin anew",
        Refused::Running => "stop it first",
        Refused::NotRunning => "start it first",
        Refused::WrongMode { primary_wanted: true } => "use primary=false for it",
        Refused::WrongMode { primary_wanted: false } => "use primary=true for it",
        Refused::InProgress => "try again when it has",
        Refused::Missing => "resynchronise it first, or accept that with force=true",
        Refused::ViewBroken => "take a checkpoint first, or stop with failover=false",
        Refused::CommitPending => "repeat the failover",
        Refused::TakenOver => "detach it from its old primary",
        Refused::NoReplica => "attach or resynchronise one",
        Refused::StaleEpoch { .. } => "ask for checkpoint-outcome",
        Refused::OtherClaim => "close that one's connection first",
        Refused::WrongCount => "resynchronise it",
        Refused::SizeDiffers { .. } => "give both the same size",
        Refused::Unsuitable => "serve it writable, with smaller blocks",
        Refused::NoRoom => "detach one first",
        Refused::Unknown => "see query-replication for what there is",
        Refused::NoControl => "check its control address if this lasts, then try again",
        Refused::TimedOut => "check the peer, then try again",
        Refused::Failed => "check its device, then try again",
    }
}

impl fmt::Display for StatusText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let volume = self.volume;
        match self.trouble {
            Trouble::NotRunning => RefusalText { refused: Refused::NotRunning, volume }.fmt(f),
            Trouble::Missing => RefusalText { refused: Refused::Missing, volume }.fmt(f),
            Trouble::Behind(replica) => {
                write!(f, "replica '{replica}' of volume '{volume}' is behind; resynchronise or detach it")
            }
            Trouble::Error(kind) => {
                let what = match kind {
                    ErrorKind::PrimaryDisk => "I/O error on the primary disk",
                    ErrorKind::Forward => "I/O error while forwarding to a replica",
                    ErrorKind::CopyBeforeWrite => "I/O error while keeping old content in the buffer",
                    ErrorKind::SecondaryDisk => "I/O error on the secondary disk",
                    ErrorKind::Buffer => "I/O error on the buffer under a request of the guest",
                    ErrorKind::Empty => "the buffer could not be emptied",
                    ErrorKind::Commit => "I/O error while committing the buffer",
                };
                write!(f, "{what} of volume '{volume}'; see query-replication and the log")
            }
        }
    }
}
