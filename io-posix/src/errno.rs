//! What the system reports, as one of the errors that cross the wire.

use rustix::io::Errno as Os;
use twinblock_core::Errno;

/// The error of the NBD protocol that says the same, `EIO` where none does.
#[must_use]
pub fn errno_of(error: Os) -> Errno {
    match error {
        Os::PERM | Os::ACCESS | Os::ROFS => Errno::NotPermitted,
        Os::NOMEM => Errno::NoMemory,
        Os::INVAL => Errno::Invalid,
        Os::NOSPC | Os::DQUOT | Os::FBIG => Errno::NoSpace,
        Os::OVERFLOW => Errno::Overflow,
        Os::OPNOTSUPP | Os::NOSYS => Errno::Unsupported,
        Os::SHUTDOWN => Errno::Shutdown,
        _ => Errno::Io,
    }
}

/// The other way round, for errors that are shown with the system's words.
pub(crate) fn io_error(error: Os) -> std::io::Error {
    std::io::Error::from_raw_os_error(error.raw_os_error())
}
