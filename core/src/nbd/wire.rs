//! The headers, flags and numbers of the protocol. All fields are big-endian on the wire.
//!
//! Each header is a plain struct with `encode` and `decode`; `decode` gives `None` if the magic is another one.
//! Source: NBD protocol document, section "Values".

/// First eight bytes of a server's greeting.
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second eight bytes of a newstyle greeting, and first of each option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Starts each reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Starts each request of the transmission phase.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Starts a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Starts a chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Bytes of a server's greeting.
pub const GREETING_BYTES: usize = 18;
/// Bytes of an option's header.
pub const OPTION_BYTES: usize = 16;
/// Bytes of the header of a reply to an option.
pub const OPTION_REPLY_BYTES: usize = 20;
/// Bytes of a request's header.
pub const REQUEST_BYTES: usize = 28;
/// Bytes of a simple reply.
pub const SIMPLE_REPLY_BYTES: usize = 16;
/// Bytes of the header of a chunk.
pub const CHUNK_BYTES: usize = 20;
/// Zeroes that follow the answer to EXPORT_NAME unless both sides said otherwise.
pub const EXPORT_NAME_PADDING: u32 = 124;

/// Longest string that the protocol allows.
pub const STRING_MAX: usize = 4096;
/// Largest payload that a peer may rely on if nothing else was agreed.
pub const DEFAULT_PAYLOAD_MAX: u32 = 32 << 20;
/// Largest minimum block size that a server may ask for.
pub const BLOCK_MIN_MAX: u32 = 1 << 16;

/// Name of the metadata context that tells holes from data.
pub const ALLOCATION_CONTEXT: &[u8] = b"base:allocation";

/// Options of the handshake.
pub mod option {
    /// Choose an export; has no error path.
    pub const EXPORT_NAME: u32 = 1;
    /// End the handshake.
    pub const ABORT: u32 = 2;
    /// List the exports.
    pub const LIST: u32 = 3;
    /// Ask about an export.
    pub const INFO: u32 = 6;
    /// Choose an export.
    pub const GO: u32 = 7;
    /// Ask for structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// List metadata contexts.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Choose metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Types of replies to options.
pub mod option_reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// One export.
    pub const SERVER: u32 = 2;
    /// One piece of information about an export.
    pub const INFO: u32 = 3;
    /// One metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// This bit is set in each error.
    pub const ERROR_BIT: u32 = 1 << 31;
    /// The option is not known.
    pub const ERR_UNSUP: u32 = ERROR_BIT | 1;
    /// Forbidden by policy.
    pub const ERR_POLICY: u32 = ERROR_BIT | 2;
    /// Malformed.
    pub const ERR_INVALID: u32 = ERROR_BIT | 3;
    /// TLS comes first.
    pub const ERR_TLS_REQD: u32 = ERROR_BIT | 5;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = ERROR_BIT | 6;
    /// The server is going down.
    pub const ERR_SHUTDOWN: u32 = ERROR_BIT | 7;
    /// The client must ask for the block size.
    pub const ERR_BLOCK_SIZE_REQD: u32 = ERROR_BIT | 8;
    /// More data than the server takes.
    pub const ERR_TOO_BIG: u32 = ERROR_BIT | 9;
}

/// Information types of INFO and GO.
pub mod info {
    /// Size and flags.
    pub const EXPORT: u16 = 0;
    /// The canonical name.
    pub const NAME: u16 = 1;
    /// A description for people.
    pub const DESCRIPTION: u16 = 2;
    /// Block sizes.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Commands of the transmission phase.
pub mod command {
    /// Read.
    pub const READ: u16 = 0;
    /// Write; the payload follows.
    pub const WRITE: u16 = 1;
    /// Disconnect; has no reply.
    pub const DISC: u16 = 2;
    /// Flush.
    pub const FLUSH: u16 = 3;
    /// The content is no longer needed.
    pub const TRIM: u16 = 4;
    /// Prefetch.
    pub const CACHE: u16 = 5;
    /// Write zeroes.
    pub const WRITE_ZEROES: u16 = 6;
    /// Tell metadata.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Types of the chunks of a structured reply.
pub mod chunk {
    /// No content.
    pub const NONE: u16 = 0;
    /// Some of the data.
    pub const OFFSET_DATA: u16 = 1;
    /// Zeroes in place of data.
    pub const OFFSET_HOLE: u16 = 2;
    /// Extents of one metadata context.
    pub const BLOCK_STATUS: u16 = 5;
    /// This bit is set in each error.
    pub const ERROR_BIT: u16 = 1 << 15;
    /// An error.
    pub const ERROR: u16 = ERROR_BIT | 1;
    /// An error at a place.
    pub const ERROR_OFFSET: u16 = ERROR_BIT | 2;
}

bitflags::bitflags! {
    /// Handshake flags, of either side.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct HandshakeFlags: u32 {
        /// Options may be answered with errors.
        const FIXED_NEWSTYLE = 1;
        /// No padding after EXPORT_NAME.
        const NO_ZEROES = 1 << 1;
    }

    /// Transmission flags: what an export can do.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct TransmissionFlags: u16 {
        /// Always set.
        const HAS_FLAGS = 1;
        /// Takes no modifications.
        const READ_ONLY = 1 << 1;
        /// Takes FLUSH.
        const SEND_FLUSH = 1 << 2;
        /// Takes FUA.
        const SEND_FUA = 1 << 3;
        /// Is a rotating disk.
        const ROTATIONAL = 1 << 4;
        /// Takes TRIM.
        const SEND_TRIM = 1 << 5;
        /// Takes WRITE_ZEROES.
        const SEND_WRITE_ZEROES = 1 << 6;
        /// Takes DF.
        const SEND_DF = 1 << 7;
        /// A flush on one connection covers all connections.
        const CAN_MULTI_CONN = 1 << 8;
        /// Takes CACHE.
        const SEND_CACHE = 1 << 10;
        /// Takes FAST_ZERO.
        const SEND_FAST_ZERO = 1 << 11;
    }

    /// Command flags.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct CommandFlags: u16 {
        /// Durable before it is answered.
        const FUA = 1;
        /// WRITE_ZEROES must not punch a hole.
        const NO_HOLE = 1 << 1;
        /// READ is answered in one chunk.
        const DF = 1 << 2;
        /// BLOCK_STATUS is answered with one extent.
        const REQ_ONE = 1 << 3;
        /// WRITE_ZEROES fails rather than being slow.
        const FAST_ZERO = 1 << 4;
    }

    /// Flags of an extent of `base:allocation`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct AllocationFlags: u32 {
        /// Takes no space.
        const HOLE = 1;
        /// Reads as zeroes.
        const ZERO = 1 << 1;
    }
}

/// Flag of a chunk: the last of its reply.
pub const CHUNK_DONE: u16 = 1;

/// Takes big-endian fields off the front of some bytes; `None` once they have run out.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// As many bytes as it says.
    pub fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (first, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(first)
    }

    /// A length of four bytes and that many bytes after it.
    pub fn string(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()?;
        self.bytes(usize::try_from(length).ok()?)
    }
}

/// Puts fields one after the other into an array that is exactly as long as all of them. Inlined, where their lengths are
/// known, it is a few stores.
#[inline(always)]
fn join<const N: usize>(fields: &[&[u8]]) -> [u8; N] {
    debug_assert_eq!(fields.iter().map(|field| field.len()).sum::<usize>(), N);
    let mut bytes = [0; N];
    let mut rest = bytes.as_mut_slice();
    for field in fields {
        let Some((place, after)) = rest.split_at_mut_checked(field.len()) else { break };
        place.copy_from_slice(field);
        rest = after;
    }
    bytes
}

/// A server's greeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// What the server offers; unknown bits are dropped.
    pub flags: HandshakeFlags,
}

impl Greeting {
    /// To bytes.
    #[must_use]
    pub fn encode(self) -> [u8; GREETING_BYTES] {
        let flags = u16::try_from(self.flags.bits()).unwrap_or_default();
        join(&[&GREETING_MAGIC.to_be_bytes(), &OPTION_MAGIC.to_be_bytes(), &flags.to_be_bytes()])
    }

    /// From bytes; `None` if it is not newstyle NBD.
    #[must_use]
    pub fn decode(bytes: &[u8; GREETING_BYTES]) -> Option<Self> {
        let mut fields = Fields(bytes);
        if (fields.u64()?, fields.u64()?) != (GREETING_MAGIC, OPTION_MAGIC) {
            return None;
        }
        Some(Self { flags: HandshakeFlags::from_bits_truncate(u32::from(fields.u16()?)) })
    }
}

/// Header of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// Which, see [`option`].
    pub option: u32,
    /// How many bytes of data follow.
    pub length: u32,
}

impl OptionHeader {
    /// To bytes.
    #[must_use]
    pub fn encode(self) -> [u8; OPTION_BYTES] {
        join(&[&OPTION_MAGIC.to_be_bytes(), &self.option.to_be_bytes(), &self.length.to_be_bytes()])
    }

    /// From bytes.
    #[must_use]
    pub fn decode(bytes: &[u8; OPTION_BYTES]) -> Option<Self> {
        let mut fields = Fields(bytes);
        if fields.u64()? != OPTION_MAGIC {
            return None;
        }
        Some(Self { option: fields.u32()?, length: fields.u32()? })
    }
}

/// Header of a reply to an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReply {
    /// The option it answers.
    pub option: u32,
    /// Its type, see [`option_reply`].
    pub kind: u32,
    /// How many bytes of data follow.
    pub length: u32,
}

impl OptionReply {
    /// To bytes.
    #[must_use]
    pub fn encode(self) -> [u8; OPTION_REPLY_BYTES] {
        join(&[
            &OPTION_REPLY_MAGIC.to_be_bytes(),
            &self.option.to_be_bytes(),
            &self.kind.to_be_bytes(),
            &self.length.to_be_bytes(),
        ])
    }

    /// From bytes.
    #[must_use]
    pub fn decode(bytes: &[u8; OPTION_REPLY_BYTES]) -> Option<Self> {
        let mut fields = Fields(bytes);
        if fields.u64()? != OPTION_REPLY_MAGIC {
            return None;
        }
        Some(Self { option: fields.u32()?, kind: fields.u32()?, length: fields.u32()? })
    }
}

/// Header of a request of the transmission phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// Command flags; unknown bits are kept.
    pub flags: CommandFlags,
    /// Which, see [`command`].
    pub command: u16,
    /// Comes back in the reply.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// How many bytes.
    pub length: u32,
}

impl RequestHeader {
    /// To bytes.
    #[must_use]
    pub fn encode(self) -> [u8; REQUEST_BYTES] {
        join(&[
            &REQUEST_MAGIC.to_be_bytes(),
            &self.flags.bits().to_be_bytes(),
            &self.command.to_be_bytes(),
            &self.cookie.to_be_bytes(),
            &self.offset.to_be_bytes(),
            &self.length.to_be_bytes(),
        ])
    }

    /// From bytes.
    #[must_use]
    pub fn decode(bytes: &[u8; REQUEST_BYTES]) -> Option<Self> {
        let mut fields = Fields(bytes);
        if fields.u32()? != REQUEST_MAGIC {
            return None;
        }
        Some(Self {
            flags: CommandFlags::from_bits_retain(fields.u16()?),
            command: fields.u16()?,
            cookie: fields.u64()?,
            offset: fields.u64()?,
            length: fields.u32()?,
        })
    }
}

/// A simple reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimpleReply {
    /// 0 or an error number.
    pub error: u32,
    /// The request's.
    pub cookie: u64,
}

impl SimpleReply {
    /// To bytes.
    #[must_use]
    pub fn encode(self) -> [u8; SIMPLE_REPLY_BYTES] {
        join(&[&SIMPLE_REPLY_MAGIC.to_be_bytes(), &self.error.to_be_bytes(), &self.cookie.to_be_bytes()])
    }

    /// From bytes.
    #[must_use]
    pub fn decode(bytes: &[u8; SIMPLE_REPLY_BYTES]) -> Option<Self> {
        let mut fields = Fields(bytes);
        if fields.u32()? != SIMPLE_REPLY_MAGIC {
            return None;
        }
        Some(Self { error: fields.u32()?, cookie: fields.u64()? })
    }
}

/// Header of a chunk of a structured reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHeader {
    /// Whether it is the last of its reply.
    pub is_done: bool,
    /// Its type, see [`chunk`].
    pub kind: u16,
    /// The request's.
    pub cookie: u64,
    /// How many bytes follow.
    pub length: u32,
}

impl ChunkHeader {
    /// To bytes.
    #[must_use]
    pub fn encode(self) -> [u8; CHUNK_BYTES] {
        let flags = if self.is_done { CHUNK_DONE } else { 0 };
        join(&[
            &CHUNK_MAGIC.to_be_bytes(),
            &flags.to_be_bytes(),
            &self.kind.to_be_bytes(),
            &self.cookie.to_be_bytes(),
            &self.length.to_be_bytes(),
        ])
    }

    /// From bytes; unknown flags are ignored, as the protocol demands.
    #[must_use]
    pub fn decode(bytes: &[u8; CHUNK_BYTES]) -> Option<Self> {
        let mut fields = Fields(bytes);
        if fields.u32()? != CHUNK_MAGIC {
            return None;
        }
        Some(Self {
            is_done: fields.u16()? & CHUNK_DONE != 0,
            kind: fields.u16()?,
            cookie: fields.u64()?,
            length: fields.u32()?,
        })
    }
}

#[cfg(test)]
mod tests;
