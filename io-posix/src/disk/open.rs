//! Opening a disk: what kind of file it is, how long, in which units.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, SeekFrom, StatxFlags, fstat, fstatfs, ftruncate, ioctl_blksszget, open,
    seek, statx,
};
use rustix::io::Errno as Os;

use super::Options;
use super::file::File;
use crate::errno::io_error;
use crate::lock::{self, Access, InUse};

/// `f_type` of the file systems that are nothing but memory (statfs(2)): what is done there never waits for a disk.
const TMPFS: u64 = 0x0102_1994;
const RAMFS: u64 = 0x8584_58f6;

/// Alignment that `O_DIRECT` is content with wherever the system does not tell.
const DIRECT_BYTES: u32 = 4096;
/// What statfs and stat count blocks in.
const STAT_BLOCK_BYTES: u64 = 512;

/// Why a disk could not be opened.
#[derive(Debug)]
pub struct OpenError {
    /// Which disk.
    pub path: PathBuf,
    /// Why not.
    pub reason: OpenReason,
}

/// Why a disk could not be opened, by who must act.
#[derive(Debug)]
#[non_exhaustive]
pub enum OpenReason {
    /// What was tried and what the system says to it.
    System(&'static str, io::Error),
    /// Another process, or another disk of this one, uses the image.
    InUse(InUse),
    /// It is neither a regular file nor a block device.
    NotADisk,
    /// With `O_DIRECT` the size must be a multiple of this many bytes.
    Unaligned {
        /// Size of the disk.
        size_bytes: u64,
        /// Unit of transfers.
        block_bytes: u32,
    },
    /// A block device that shall hold this many bytes is too short.
    TooShort {
        /// Size of the device.
        size_bytes: u64,
        /// Size that was asked for.
        wanted_bytes: u64,
    },
}

impl fmt::Display for OpenError {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.reason {
            OpenReason::System(what, error) => write!(to, "cannot {what} {path}: {error}{}", remedy(error)),
            OpenReason::InUse(in_use) => write!(to, "{path} {in_use}"),
            OpenReason::NotADisk => {
                write!(to, "{path} is neither a file nor a block device; give the path of one")
            }
            OpenReason::Unaligned { size_bytes, block_bytes } => write!(
                to,
                "cannot open {path} with direct I/O: its size, {size_bytes}, is not a multiple of {block_bytes} bytes; \
                 resize it or open it without"
            ),
            OpenReason::TooShort { size_bytes, wanted_bytes } => {
                write!(
                    to,
                    "{path} has {size_bytes} bytes, but {wanted_bytes} are needed; give a larger one or ask for less"
                )
            }
        }
    }
}

/// What to do, where the system's text leaves that open.
fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error().map(Os::from_raw_os_error) {
        Some(Os::NOENT | Os::NOTDIR | Os::LOOP | Os::NAMETOOLONG) => {
            "; correct the path, or make the file first"
        }
        Some(Os::ISDIR | Os::NXIO) => "; give the path of a file or block device",
        Some(Os::ROFS | Os::ACCESS | Os::PERM) => "; it must be writable for this user",
        Some(Os::NOSPC | Os::FBIG | Os::DQUOT) => "; make room, ask for less or choose another place",
        Some(Os::INVAL) => "; the file system may not know direct I/O",
        _ => "",
    }
}

impl Error for OpenError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.reason {
            OpenReason::System(_, error) => Some(error),
            _ => None,
        }
    }
}

/// What opening has found out.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) block_bytes: u32,
    /// Lies in memory: nothing waits.
    pub(super) is_memory: bool,
    /// All of it has space on the disk beneath, so that there are no holes to look for.
    pub(super) is_dense: bool,
}

/// Opens, and for a `new_size` makes it a file of that size that is all hole.
pub(super) fn open_disk(path: &Path, options: Options, new_size: Option<u64>) -> Result<Opened, OpenError> {
    find_out(path, options, new_size).map_err(|reason| OpenError { path: path.to_owned(), reason })
}

fn system(what: &'static str) -> impl FnOnce(Os) -> OpenReason {
    move |error| OpenReason::System(what, io_error(error))
}

fn find_out(path: &Path, options: Options, new_size: Option<u64>) -> Result<Opened, OpenReason> {
    let is_reader = options.read_only && new_size.is_none();
    let mut flags = OFlags::CLOEXEC | if is_reader { OFlags::RDONLY } else { OFlags::RDWR };
    flags.set(OFlags::DIRECT, options.direct);
    flags.set(OFlags::CREATE, new_size.is_some());
    let what = match (new_size, options.direct) {
        (Some(_), _) => "create",
        (None, true) => "open with direct I/O",
        (None, false) => "open",
    };
    let fd = open(path, flags, Mode::RUSR | Mode::WUSR).map_err(system(what))?;
    let stat = fstat(&fd).map_err(system("examine"))?;
    let is_device = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => false,
        FileType::BlockDevice => true,
        _ => return Err(OpenReason::NotADisk),
    };
    // Before anything is changed: it may be in use.
    if options.lock {
        let access = match (options.read_only, new_size) {
            (_, Some(_)) => Access::Create,
            (true, None) => Access::Read,
            (false, None) => Access::Write,
        };
        lock::lock(&fd, access).map_err(|error| match error {
            lock::LockError::InUse(in_use) => OpenReason::InUse(in_use),
            lock::LockError::System(error) => OpenReason::System("lock", error),
        })?;
    }
    if let (Some(size), false) = (new_size, is_device) {
        ftruncate(&fd, 0).and_then(|()| ftruncate(&fd, size)).map_err(system("resize"))?;
    }
    let mut size_bytes = seek(&fd, SeekFrom::End(0)).map_err(system("measure"))?;
    if let Some(wanted_bytes) = new_size {
        if size_bytes < wanted_bytes {
            return Err(OpenReason::TooShort { size_bytes, wanted_bytes });
        }
        size_bytes = wanted_bytes;
    }
    let sector_bytes = if is_device { ioctl_blksszget(&fd).unwrap_or(DIRECT_BYTES).max(1) } else { 1 };
    let block_bytes = if options.direct { direct_bytes(&fd).max(sector_bytes) } else { 1 };
    if size_bytes % u64::from(block_bytes) != 0 {
        return Err(OpenReason::Unaligned { size_bytes, block_bytes });
    }
    let file_system = fstatfs(&fd).map_err(system("examine"))?.f_type as u64;
    let is_memory = !is_device && !options.direct && [TMPFS, RAMFS].contains(&file_system);
    let allocated_bytes = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(STAT_BLOCK_BYTES);
    let is_dense = new_size.is_none() && (is_device || allocated_bytes >= size_bytes);
    let file = File { fd, is_device, sector_bytes: u64::from(sector_bytes), size_bytes };
    Ok(Opened { file, block_bytes, is_memory, is_dense })
}

/// Unit of offsets, lengths and addresses with `O_DIRECT` (statx(2), STATX_DIOALIGN).
fn direct_bytes(fd: &rustix::fd::OwnedFd) -> u32 {
    let told = statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
        .ok()
        .filter(|found| found.stx_mask & StatxFlags::DIOALIGN.bits() != 0)
        .map(|found| found.stx_dio_offset_align.max(found.stx_dio_mem_align));
    told.filter(|bytes| bytes.is_power_of_two()).unwrap_or(DIRECT_BYTES)
}
