//! A disk of bytes whose transfers end when a script says so.

use arbitrary::{Arbitrary, Result, Unstructured};
use twinblock_core::block::{Action, Capabilities, Completion, Geometry, Tag, Transfer};
use twinblock_core::{Data, Errno, Extent, Memory, Outcome};

use crate::buffers::Buffers;
use crate::script::{below, one_of};

/// The longest disk.
pub(crate) const SIZE_MAX: usize = 8192;

/// What a disk holds at first; made once, as each byte that an instrumented program makes costs as much as a decision.
static CONTENT: [u8; SIZE_MAX] = {
    let mut content = [0; SIZE_MAX];
    let mut at = 0;
    while at < SIZE_MAX {
        content[at] = (at / 3 + at) as u8 | 1;
        at += 1;
    }
    content
};

/// How a transfer ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ending {
    Done,
    /// Nothing of it has happened.
    Failed(Errno),
    /// The first half of it has happened.
    Torn(Errno),
    /// As `Done`, but what it says of holes has this length.
    Lie(u64),
}

impl<'a> Arbitrary<'a> for Ending {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self> {
        let errno = |bytes: &mut Unstructured<'a>| one_of(bytes, &[Errno::Io, Errno::Io, Errno::NoMemory]);
        Ok(match below(bytes, 16)? {
            0 => Self::Failed(errno(bytes)?),
            1 => Self::Torn(errno(bytes)?),
            2 => Self::Failed(Errno::Unsupported),
            3 => Self::Lie(one_of(bytes, &[0, 1, 700, u64::MAX])?),
            _ => Self::Done,
        })
    }
}

/// A transfer that has not ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Started {
    pub(crate) transfer: Transfer,
    /// The link went down: it can only fail.
    pub(crate) must_fail: bool,
    /// The disk is another one by now: it does nothing.
    pub(crate) is_gone: bool,
}

/// A disk.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) geometry: Geometry,
    pub(crate) bytes: Vec<u8>,
    pub(crate) queue: Vec<Started>,
}

/// The data of an action, and whether the action changes the disk.
pub(crate) const fn about(action: Action) -> (Option<Data>, bool) {
    match action {
        Action::Read(data) => (Some(data), false),
        Action::Write { data, .. } => (Some(data), true),
        Action::WriteZeroes { .. } => (None, true),
        Action::Flush | Action::Status => (None, false),
    }
}

pub(crate) const fn range(extent: Extent) -> std::ops::Range<usize> {
    extent.offset as usize..(extent.offset + extent.length) as usize
}

impl Disk {
    pub(crate) fn new(geometry: Geometry) -> Self {
        let bytes = CONTENT[..geometry.size_bytes as usize].to_vec();
        Self { geometry, bytes, queue: Vec::new() }
    }

    /// Starts a transfer: it must be one that a device of this shape can be asked for.
    pub(crate) fn start(&mut self, transfer: Transfer) {
        let Transfer { action, extent, .. } = transfer;
        let Geometry { size_bytes, block_bytes, capabilities } = self.geometry;
        let end = extent.offset.checked_add(extent.length).expect("an end");
        assert!(end <= size_bytes, "{transfer:?} is beyond the end");
        let block = u64::from(block_bytes);
        assert!(extent.offset % block == 0 && extent.length % block == 0, "{transfer:?} is not aligned");
        assert_eq!(extent.is_empty(), action == Action::Flush, "{transfer:?}");
        let (data, is_change) = about(action);
        assert!(data.is_none_or(|data| u64::from(data.length) == extent.length), "{transfer:?}");
        assert!(action != Action::Status || capabilities.contains(Capabilities::STATUS), "{transfer:?}");
        for other in &self.queue {
            let changes = is_change || about(other.transfer.action).1;
            let overlaps = changes && other.transfer.extent.overlaps(&extent);
            assert!(!overlaps, "{transfer:?} and {:?} at the same time", other.transfer);
        }
        self.queue.push(Started { transfer, must_fail: false, is_gone: false });
    }

    /// Ends one of the transfers.
    pub(crate) fn end(&mut self, which: usize, ending: Ending, memory: &mut Buffers) -> Completion {
        let Started { transfer, must_fail, is_gone } = self.queue.remove(which);
        let is_fast = matches!(transfer.action, Action::WriteZeroes { fast: true, .. });
        let ending = match ending {
            _ if is_gone => Ending::Failed(Errno::Io),
            Ending::Failed(Errno::Unsupported) if !is_fast => Ending::Failed(Errno::Io),
            Ending::Done | Ending::Lie(_) if must_fail => Ending::Failed(Errno::Io),
            ending => ending,
        };
        let Transfer { tag, action, extent } = transfer;
        let result = match ending {
            Ending::Failed(errno) => Err(errno),
            Ending::Torn(errno) => {
                let half = extent.length / 2;
                self.perform(action, Extent { length: half, ..extent }, memory);
                Err(errno)
            }
            Ending::Done | Ending::Lie(_) => {
                self.perform(action, extent, memory);
                Ok(match (action, ending) {
                    (Action::Status, Ending::Lie(length)) => Outcome::Status { is_hole: false, length },
                    (Action::Status, _) => self.status(extent),
                    _ => Outcome::Done,
                })
            }
        };
        Completion { tag, result }
    }

    fn perform(&mut self, action: Action, extent: Extent, memory: &mut Buffers) {
        let place = &mut self.bytes[range(extent)];
        match action {
            Action::Read(data) => {
                let data = data.part(0, extent.length as u32);
                memory.bytes(data).expect("it is a buffer").copy_from_slice(place);
            }
            Action::Write { data, .. } => {
                let data = data.part(0, extent.length as u32);
                place.copy_from_slice(memory.bytes(data).expect("it is a buffer"));
            }
            Action::WriteZeroes { .. } => place.fill(0),
            Action::Flush | Action::Status => {}
        }
    }

    fn status(&self, extent: Extent) -> Outcome {
        let bytes = &self.bytes[range(extent)];
        let is_hole = bytes.first() == Some(&0);
        let length = bytes.iter().take_while(|byte| (**byte == 0) == is_hole).count() as u64;
        Outcome::Status { is_hole, length }
    }

    /// Whether a tag names something in flight.
    pub(crate) fn has(&self, tag: Tag) -> bool {
        self.queue.iter().any(|started| started.transfer.tag == tag)
    }

    /// Whether a change is in flight.
    pub(crate) fn is_changing(&self) -> bool {
        self.queue.iter().any(|started| about(started.transfer.action).1)
    }
}
