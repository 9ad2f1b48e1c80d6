//! An image has one writer: locks that QEMU's tools respect and that respect theirs.
//!
//! QEMU locks single bytes of an image with open file description locks. Byte 100 + n says "somebody does n", byte
//! 200 + n says "somebody minds others doing n", where n is 0 for reading consistent data, 1 for writing and 3 for
//! resizing. All locks are shared ones; before it goes on, a process looks whether others have locked the opposite
//! bytes. Here every disk reads and minds others writing and resizing; one that takes modifications writes too, and
//! one that is made anew also resizes. Seen with QEMU 7.2: a reader that minds nothing (`qemu-io -r`) goes with a
//! writer; `qemu-img convert` minds.
//!
//! A lock belongs to the open file, so that two disks of one process are told apart, and goes away with it, however
//! the process ends.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::Duration;

use rustix::fs::fstat;
use rustix::io::Errno;

use crate::errno::io_error;
use crate::raw::{ofd_is_locked, ofd_lock_shared, ofd_unlock};

/// First of the bytes that say what somebody does.
const DOES: u64 = 100;
/// First of the bytes that say what somebody minds.
const MINDS: u64 = 200;
/// Reads and relies on what it reads.
const READ: u64 = 0;
const WRITE: u64 = 1;
const RESIZE: u64 = 3;

/// How often a lock is tried for, and the pause between.
const ATTEMPTS: u32 = 11;
const PAUSE: Duration = Duration::from_millis(10);

/// What a disk is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading; others may read too.
    Read,
    /// Reading and writing; others may read if they do not mind changes.
    Write,
    /// As [`Self::Write`], and setting the size.
    Create,
}

impl Access {
    const fn does(self) -> &'static [u64] {
        match self {
            Self::Read => &[READ],
            Self::Write => &[READ, WRITE],
            Self::Create => &[READ, WRITE, RESIZE],
        }
    }
}

/// What no disk wants others to do, whatever it does itself.
const MINDED: [u64; 2] = [WRITE, RESIZE];

/// The image is used by somebody else in a way that does not go with ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InUse {
    /// The other writes it (or may); else the other only reads it, but minds it being written.
    pub other_writes: bool,
    /// Name and number of processes that hold such a lock, as far as they can be found out.
    pub holders: Vec<(String, u32)>,
}

impl fmt::Display for InUse {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.holders.as_slice() {
            [] => write!(to, "is in use by another process")?,
            holders => {
                write!(to, "is in use by ")?;
                for (index, (name, pid)) in holders.iter().enumerate() {
                    write!(to, "{}{name} (process {pid})", if index == 0 { "" } else { ", " })?;
                }
            }
        }
        let lock = if self.other_writes { "write lock" } else { "it reads and must not see changes" };
        if self.holders.iter().any(|(_, pid)| *pid == std::process::id()) {
            return write!(
                to,
                " ({lock}): this process itself, as another disk or buffer; give each its own"
            );
        }
        write!(to, " ({lock}); stop that first, or use another image")
    }
}

/// Why an image could not be locked.
#[derive(Debug)]
pub enum LockError {
    /// Somebody else uses it.
    InUse(InUse),
    /// The system refuses: a file system without locks, for example.
    System(io::Error),
}

/// Locks an image for as long as it is open. A lock in the way is given a tenth of a second to go: the last user may be
/// ending, or have a child that has not yet let go of the file.
///
/// # Errors
/// Somebody else uses it, or it cannot be locked. It is not locked then.
pub fn lock(file: impl AsFd, access: Access) -> Result<(), LockError> {
    let file = file.as_fd();
    for _ in 1..ATTEMPTS {
        match try_lock(file, access) {
            Ok(None) => return Ok(()),
            Ok(Some(_)) => thread::sleep(PAUSE),
            Err(error) => return Err(LockError::System(io_error(error))),
        }
    }
    match try_lock(file, access) {
        Ok(None) => Ok(()),
        Ok(Some(byte)) => {
            Err(LockError::InUse(InUse { other_writes: byte < MINDS, holders: holders(file, byte) }))
        }
        Err(error) => Err(LockError::System(io_error(error))),
    }
}

/// Locks, or tells which of another's locks is in the way.
fn try_lock(file: BorrowedFd<'_>, access: Access) -> Result<Option<u64>, Errno> {
    let does = access.does().iter().map(|act| DOES + act);
    let wanted = does.chain(MINDED.iter().map(|act| MINDS + act));
    // First our own, then a look at the others': two that start together both see each other, and never neither.
    let taken = wanted.clone().try_for_each(|byte| ofd_lock_shared(file, byte));
    let conflict = match taken.and_then(|()| find_conflict(file, access)) {
        // Somebody holds one of the bytes exclusively.
        Err(Errno::AGAIN | Errno::ACCESS) => Ok(Some(DOES)),
        conflict => conflict,
    };
    if conflict != Ok(None) {
        for byte in wanted {
            // Closing the file takes off what stays.
            let _ = ofd_unlock(file, byte);
        }
    }
    conflict
}

/// A byte that somebody else has locked and that does not go with our access.
fn find_conflict(file: BorrowedFd<'_>, access: Access) -> Result<Option<u64>, Errno> {
    let others_mind = access.does().iter().map(|act| MINDS + act);
    // What others do comes first: "somebody writes" says more than "somebody minds".
    for byte in MINDED.iter().map(|act| DOES + act).chain(others_mind) {
        if ofd_is_locked(file, byte)? {
            return Ok(Some(byte));
        }
    }
    Ok(None)
}

/// Who has this file open with a lock on that byte, from /proc. A lock of this kind names no process, so the open files
/// of all processes that we may look into are searched; only on the way to an error.
fn holders(file: impl AsFd, byte: u64) -> Vec<(String, u32)> {
    let Ok(stat) = fstat(file.as_fd()) else { return Vec::new() };
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let path = process.path();
        let is_holder = fs::read_dir(path.join("fd")).into_iter().flatten().flatten().any(|open| {
            let is_same = fs::metadata(open.path())
                .is_ok_and(|other| (other.dev(), other.ino()) == (stat.st_dev, stat.st_ino));
            is_same
                && fs::read_to_string(path.join("fdinfo").join(open.file_name()))
                    .is_ok_and(|info| info.lines().any(|line| is_lock_on(line, byte)))
        });
        if is_holder {
            let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
            found.push((name.trim_end().to_owned(), pid));
        }
    }
    found
}

/// Whether a line of /proc/PID/fdinfo/FD is an open file description lock on the byte. Such a line ends with the first
/// and the last byte of the lock (proc(5)).
fn is_lock_on(line: &str, byte: u64) -> bool {
    if !line.starts_with("lock:") || !line.contains("OFDLCK") {
        return false;
    }
    let mut ends = line.split_whitespace().rev();
    let last = ends.next().and_then(|word| if word == "EOF" { Some(u64::MAX) } else { word.parse().ok() });
    let first = ends.next().and_then(|word| word.parse().ok());
    matches!((first, last), (Some(first), Some(last)) if (first..=last).contains(&byte))
}

#[cfg(test)]
mod tests;
