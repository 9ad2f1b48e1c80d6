//! What clients ask of a machine, and what it answers.

#[cfg(test)]
mod tests;

#[cfg(any(feature = "primary", feature = "secondary"))]
use crate::Refused;
use crate::{Data, Errno, Extent};

/// Chosen by whoever offers a request and given back in its [`Reply`]; the machine does not look into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct RequestId(pub u32);

/// One connection of one client, never used again after it has closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct ConnectionId(pub u32);

/// Who a primary says it is: 128 bits chosen at random when the daemon starts, on the wire as 32 hexadecimal digits
/// in the NBD metadata context `twinblock:primary=ID`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Identity(pub [u8; 16]);

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Op {
    /// Fill the data from the extent.
    Read(Data),
    /// Write the data to the extent.
    Write {
        /// What to write; as long as the extent.
        data: Data,
        /// Force unit access: durable before it is answered.
        fua: bool,
    },
    /// Make the extent read as zeroes.
    WriteZeroes {
        /// The range may become a hole.
        may_unmap: bool,
        /// Fail with [`Errno::Unsupported`] rather than write zeroes out one by one.
        fast: bool,
        /// Durable before it is answered.
        fua: bool,
    },
    /// Make durable what was answered before.
    Flush,
    /// Say whether the start of the extent is a hole, and how far that goes.
    Status,
}

impl Op {
    /// Whether the content of the disk may change.
    #[must_use]
    pub const fn is_modification(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::WriteZeroes { .. })
    }
}

/// One request, or one piece of a longer one: at most *window* bytes, and not across a multiple of *window*. The piece
/// is the atomic unit; barriers cover whole requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Request {
    /// Comes back in the reply.
    pub id: RequestId,
    /// What to do.
    pub op: Op,
    /// Where. Empty for a flush.
    pub extent: Extent,
    /// This is the first (or only) piece of its request.
    pub is_first: bool,
    /// This is the last (or only) piece of its request.
    pub is_last: bool,
}

impl Request {
    /// A request that is one piece.
    #[must_use]
    pub const fn whole(id: RequestId, op: Op, extent: Extent) -> Self {
        Self { id, op, extent, is_first: true, is_last: true }
    }

    /// Whether a volume of `size_bytes` in blocks of `block_bytes` can take it as one piece of at most `window_bytes`
    /// (a power of two). A status request may be longer.
    #[cfg(any(feature = "primary", feature = "secondary"))]
    pub(crate) fn check(&self, size_bytes: u64, block_bytes: u32, window_bytes: u32) -> Result<(), Refused> {
        let Extent { offset, length } = self.extent;
        let end = offset.checked_add(length).ok_or(Refused::BadRequest)?;
        let block = u64::from(block_bytes.max(1));
        let window = u64::from(window_bytes);
        let is_one_piece = length != 0 && length <= window && offset / window == (end - 1) / window;
        let is_sound = match self.op {
            Op::Read(data) | Op::Write { data, .. } => is_one_piece && u64::from(data.length) == length,
            Op::WriteZeroes { .. } => is_one_piece,
            Op::Flush => length == 0,
            Op::Status => length != 0,
        };
        let is_aligned = offset.is_multiple_of(block) && length.is_multiple_of(block);
        if is_sound && is_aligned && end <= size_bytes { Ok(()) } else { Err(Refused::BadRequest) }
    }
}

/// What a request or a transfer brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Outcome {
    /// It is done; a read has filled its data.
    Done,
    /// Answer to a status request: the first `length` bytes of the extent (at least 1, at most all) are alike.
    Status {
        /// They read as zeroes and take no space.
        is_hole: bool,
        /// How many bytes.
        length: u64,
    },
}

#[cfg(any(feature = "primary", feature = "secondary"))]
impl Outcome {
    /// A device's word on holes, cut to what was asked: a server that it comes from may say anything.
    pub(crate) fn within(self, limit: u64) -> Self {
        match self {
            Self::Status { is_hole, length } => Self::Status { is_hole, length: length.min(limit).max(1) },
            Self::Done => self,
        }
    }
}

/// The answer to one [`Request`]. Every request that a machine has taken is answered exactly once; only then may its
/// data be used for something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Reply {
    /// The request's.
    pub id: RequestId,
    /// What came of it.
    pub result: Result<Outcome, Errno>,
}
