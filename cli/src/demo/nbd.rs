//! The demo's own NBD client: simple replies, many requests in flight on one connection. It shares no code with the
//! server that it checks.
//!
//! Source: "The NBD protocol" (`doc/proto.md` of the NBD protocol's repository), "Fixed newstyle negotiation" and
//! "Transmission".

#[cfg(test)]
mod tests;

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;
const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 1 << 1;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const INFO_EXPORT: u16 = 0;
/// Longest option reply that is taken.
const OPTION_BYTES_MAX: u32 = 64 << 10;

/// Bytes of a request's head.
const REQUEST_BYTES: usize = 28;
/// Bytes of a simple reply's head.
const REPLY_BYTES: usize = 16;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// NBD_CMD_READ
    Read,
    /// NBD_CMD_WRITE
    Write,
    /// NBD_CMD_DISC
    Disconnect,
    /// NBD_CMD_FLUSH
    Flush,
    /// NBD_CMD_TRIM
    Trim,
    /// NBD_CMD_WRITE_ZEROES
    WriteZeroes,
}

/// NBD_CMD_FLAG_FUA
pub(crate) const FUA: u16 = 1;
/// NBD_CMD_FLAG_NO_HOLE
pub(crate) const NO_HOLE: u16 = 1 << 1;

/// The head of one request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    /// What is asked.
    pub(crate) command: Command,
    /// Command flags.
    pub(crate) flags: u16,
    /// Comes back in the reply.
    pub(crate) cookie: u64,
    /// First byte.
    pub(crate) offset: u64,
    /// How many bytes.
    pub(crate) length: u32,
}

impl Head {
    /// As it crosses the wire.
    pub(crate) fn encode(&self) -> [u8; REQUEST_BYTES] {
        let command: u16 = match self.command {
            Command::Read => 0,
            Command::Write => 1,
            Command::Disconnect => 2,
            Command::Flush => 3,
            Command::Trim => 4,
            Command::WriteZeroes => 6,
        };
        let mut bytes = [0; REQUEST_BYTES];
        bytes[0..4].copy_from_slice(&REQUEST.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..28].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }
}

/// The head of one reply. The data of a read that succeeded follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The request's.
    pub(crate) cookie: u64,
    /// 0, or an error value of the protocol.
    pub(crate) error: u32,
}

impl Answer {
    /// Reads the next one.
    pub(crate) fn read(stream: &mut impl Read) -> io::Result<Self> {
        let mut bytes = [0; REPLY_BYTES];
        stream.read_exact(&mut bytes)?;
        let [m0, m1, m2, m3, e0, e1, e2, e3, cookie @ ..] = bytes;
        if u32::from_be_bytes([m0, m1, m2, m3]) != SIMPLE_REPLY {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a simple reply"));
        }
        Ok(Self { cookie: u64::from_be_bytes(cookie), error: u32::from_be_bytes([e0, e1, e2, e3]) })
    }
}

/// A connection in transmission phase.
#[derive(Debug)]
pub(crate) struct Export {
    /// Requests go in, replies come out.
    pub(crate) stream: UnixStream,
    /// Size of the export.
    pub(crate) size_bytes: u64,
}

impl Export {
    /// Connects and negotiates one export; the peer has `timeout` for each step, now and later.
    pub(crate) fn connect(path: &Path, name: &str, timeout: Duration) -> anyhow::Result<Self> {
        let stream =
            UnixStream::connect(path).with_context(|| format!("connecting to {}", path.display()))?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        let size_bytes = negotiate(&mut (&stream), name)
            .with_context(|| format!("negotiating export '{name}' at {}", path.display()))?;
        Ok(Self { stream, size_bytes })
    }

    /// Sends one request and waits for its answer; nothing else may be in flight.
    pub(crate) fn call(&mut self, head: Head, data: &[u8]) -> anyhow::Result<Answer> {
        let mut bytes = head.encode().to_vec();
        bytes.extend_from_slice(data);
        self.stream.write_all(&bytes)?;
        let answer = Answer::read(&mut self.stream)?;
        ensure!(answer.cookie == head.cookie, "the answer to another request");
        Ok(answer)
    }

    /// Ends the session as the protocol asks.
    pub(crate) fn disconnect(mut self) {
        let head = Head { command: Command::Disconnect, flags: 0, cookie: 0, offset: 0, length: 0 };
        // Whoever has hung up before is gone all the same.
        let _ = self.stream.write_all(&head.encode());
    }
}

fn negotiate(stream: &mut (impl Read + Write), name: &str) -> anyhow::Result<u64> {
    ensure!(read_u64(stream)? == NBDMAGIC && read_u64(stream)? == IHAVEOPT, "not an NBD server");
    let flags = read_u16(stream)?;
    ensure!(flags & FIXED_NEWSTYLE != 0, "the server does not speak the fixed newstyle");
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&u32::from(flags & (FIXED_NEWSTYLE | NO_ZEROES)).to_be_bytes());
    bytes.extend_from_slice(&IHAVEOPT.to_be_bytes());
    bytes.extend_from_slice(&OPT_GO.to_be_bytes());
    let length = u32::try_from(name.len())?;
    bytes.extend_from_slice(&(length + 6).to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend_from_slice(&0_u16.to_be_bytes());
    stream.write_all(&bytes)?;
    let mut size_bytes = None;
    loop {
        ensure!(
            read_u64(stream)? == OPTION_REPLY && read_u32(stream)? == OPT_GO,
            "not an answer to the option"
        );
        let kind = read_u32(stream)?;
        let length = read_u32(stream)?;
        ensure!(length <= OPTION_BYTES_MAX, "an option reply of {length} bytes");
        let mut data = vec![0; length as usize];
        stream.read_exact(&mut data)?;
        match (kind, data.as_slice()) {
            (REP_ACK, _) => return size_bytes.context("the server did not tell the size"),
            (REP_INFO, [i0, i1, size @ .., _, _])
                if u16::from_be_bytes([*i0, *i1]) == INFO_EXPORT && size.len() == 8 =>
            {
                size_bytes = size.try_into().ok().map(u64::from_be_bytes);
            }
            (REP_INFO, _) => {}
            _ => bail!("refused ({kind:#x}): {}", String::from_utf8_lossy(&data)),
        }
    }
}

fn read_u16(stream: &mut impl Read) -> io::Result<u16> {
    let mut bytes = [0; 2];
    stream.read_exact(&mut bytes)?;
    Ok(u16::from_be_bytes(bytes))
}

fn read_u32(stream: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

fn read_u64(stream: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}
