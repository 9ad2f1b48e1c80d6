//! The error numbers that cross the wire.

#[cfg(test)]
mod tests;

/// Why a request or a transfer failed: the error values of the NBD protocol ("Error values" in the NBD protocol
/// document). Everything that a device reports is mapped to one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u32)]
pub enum Errno {
    /// EPERM: the export is read-only, or another primary holds the claim.
    NotPermitted = 1,
    /// EIO: a device failed.
    Io = 5,
    /// ENOMEM: the peer has no memory for this request now.
    NoMemory = 12,
    /// EINVAL: the request is malformed, misaligned or out of range.
    Invalid = 22,
    /// ENOSPC: out of space, or a write beyond the end.
    NoSpace = 28,
    /// EOVERFLOW: the length is too large.
    Overflow = 75,
    /// ENOTSUP: the device cannot do this, or not fast.
    Unsupported = 95,
    /// ESHUTDOWN: the export no longer takes this request; the client should disconnect.
    Shutdown = 108,
}

impl Errno {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// From a number on the wire; what the protocol does not define is `EINVAL`, as the protocol demands.
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::NotPermitted,
            5 => Self::Io,
            12 => Self::NoMemory,
            28 => Self::NoSpace,
            75 => Self::Overflow,
            95 => Self::Unsupported,
            108 => Self::Shutdown,
            _ => Self::Invalid,
        }
    }

    /// The name in capitals, as manuals have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotPermitted => "EPERM",
            Self::Io => "EIO",
            Self::NoMemory => "ENOMEM",
            Self::Invalid => "EINVAL",
            Self::NoSpace => "ENOSPC",
            Self::Overflow => "EOVERFLOW",
            Self::Unsupported => "ENOTSUP",
            Self::Shutdown => "ESHUTDOWN",
        }
    }
}
