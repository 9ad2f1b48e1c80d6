//! A whole client session against a server that lies, in any fragments.
//!
//! Each transfer ends once. A read ends with success only if each of its bytes was put into its place, once; a write only
//! if all of its payload has left. No byte is put anywhere else, and when the session is given up nothing is left.

mod world;

use arbitrary::{Arbitrary, Result, Unstructured};
use twinblock_core::Identity;
use twinblock_core::nbd::OutputEntry;
use twinblock_core::nbd::client::{ClientConfig, ClientMemory, Session, TransferSlot};
use twinblock_core::nbd::wire::option_reply;

use crate::script::{below, one_of, rarely, steps, text};
use world::World;

/// What the session wants, and what the server claims.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    transfers: usize,
    output_bytes: usize,
    output_entries: usize,
    has_identity: bool,
    want_allocation: bool,
    /// The server behaves until the handshake is over.
    is_opened: bool,
    is_structured: bool,
    flags: u16,
    size: u64,
    block_min: u32,
    payload_max: u32,
}

impl<'a> Arbitrary<'a> for Settings {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self> {
        let bits = u8::arbitrary(bytes)?;
        Ok(Self {
            transfers: one_of(bytes, &[1, 2, 4, 8])?,
            output_bytes: one_of(bytes, &[264, 300, 2000])?,
            output_entries: one_of(bytes, &[4, 5, 32])?,
            has_identity: bits & 1 != 0,
            want_allocation: bits & 2 != 0,
            is_opened: bits & 12 != 0,
            is_structured: bits & 16 != 0,
            flags: if bits & 32 != 0 { u16::arbitrary(bytes)? } else { 0xfffd },
            size: one_of(bytes, &[1 << 20, 1 << 20, 5000, i64::MAX as u64, u64::MAX])?,
            block_min: one_of(bytes, &[1, 1, 512, 4096, 3])?,
            payload_max: one_of(bytes, &[1 << 25, 1 << 12, 1000, 512, 1, 0])?,
        })
    }
}

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    /// The server sends these bytes.
    Raw(Vec<u8>),
    /// The server greets.
    Greet(u16),
    /// The server answers an option; `None` names the one that was asked.
    OptionReply { option: Option<u32>, kind: u32, data: Vec<u8>, lie: u32 },
    /// The server says what the export is.
    Info,
    /// The server answers one of the requests that it has.
    Simple { which: u8, error: u32, has_data: bool },
    /// The server sends a chunk of the answer to one of its requests, about a part of it.
    Chunk { which: u8, kind: u16, is_done: bool, from: u32, length: u32, lie: u32, extra: u32 },
    /// A transfer is submitted.
    Submit { kind: u8, offset: u64, length: u32 },
    /// So many bytes arrive.
    Deliver(usize),
    /// So many bytes are received where they belong.
    DeliverInto(u32),
    /// So many bytes leave.
    Send(usize),
    /// Completions are taken.
    Poll,
    /// The client says goodbye.
    Disconnect,
    /// The connection is gone.
    FailAll,
    /// Another connection.
    Reset,
}

impl<'a> Arbitrary<'a> for Step {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self> {
        Ok(match below(bytes, 40)? {
            0 => Self::Raw(text(bytes, 64)?),
            1 => Self::Greet(u16::arbitrary(bytes)? % 8),
            2..5 => {
                let option = if rarely(bytes, 16)? { Some(below(bytes, 12)?) } else { None };
                let kind = match below(bytes, 16)? {
                    0 => u32::arbitrary(bytes)?,
                    1..4 => option_reply::ERROR_BIT | below(bytes, 12)?,
                    4..8 => below(bytes, 6)?,
                    _ => option_reply::ACK,
                };
                let lie = if rarely(bytes, 16)? { u32::arbitrary(bytes)? } else { 0 };
                let data = match below(bytes, 4)? {
                    0 => text(bytes, 40)?,
                    1 => b"\0\0\0\x09base:allocation".to_vec(),
                    _ => Vec::new(),
                };
                Self::OptionReply { option, kind, data, lie }
            }
            5 => Self::Info,
            6..10 => {
                let error = if rarely(bytes, 4)? { u32::from(u8::arbitrary(bytes)?) } else { 0 };
                Self::Simple { which: u8::arbitrary(bytes)?, error, has_data: !rarely(bytes, 8)? }
            }
            10..19 => {
                let kind = one_of(bytes, &[0, 1, 1, 1, 2, 2, 5, 0x8001, 0x8002, 0x8003, 6])?;
                let place = |bytes: &mut Unstructured<'a>| -> Result<u32> {
                    let unit = one_of(bytes, &[512, 512, 1, 4096])?;
                    Ok(unit * below(bytes, 20)?)
                };
                Self::Chunk {
                    which: u8::arbitrary(bytes)?,
                    kind,
                    is_done: rarely(bytes, 3)?,
                    from: place(bytes)?,
                    length: place(bytes)?,
                    lie: if rarely(bytes, 32)? { u32::arbitrary(bytes)? } else { 0 },
                    extra: if rarely(bytes, 16)? { below(bytes, 16)? } else { 0 },
                }
            }
            19..26 => {
                let unit = one_of(bytes, &[512, 512, 100, 1])?;
                let offset = if rarely(bytes, 16)? { u64::arbitrary(bytes)? } else { 512 };
                let offset = offset.wrapping_mul(u64::from(below(bytes, 16)?));
                Self::Submit { kind: u8::arbitrary(bytes)?, offset, length: unit * below(bytes, 20)? }
            }
            26..31 => Self::Deliver(one_of(bytes, &[1, 16, 20, 27, 500, 1 << 20, 1 << 20])?),
            31..33 => Self::DeliverInto(one_of(bytes, &[0, 1, 511, 4096, u32::MAX])?),
            33..36 => Self::Send(one_of(bytes, &[1, 27, 28, 600, 1 << 20, 1 << 20])?),
            36 | 37 => Self::Poll,
            38 => one_of(bytes, &[0, 1])
                .map(|choice| if choice == 0 { Self::Disconnect } else { Self::FailAll })?,
            _ => Self::Reset,
        })
    }
}

/// A session's life.
#[derive(Debug)]
pub struct Script {
    settings: Settings,
    steps: Vec<Step>,
}

impl<'a> Arbitrary<'a> for Script {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self { settings: bytes.arbitrary()?, steps: steps(bytes)? })
    }
}

/// Plays a script.
///
/// # Panics
/// On a finding.
pub fn run(script: &Script) {
    let Settings { transfers, output_bytes, output_entries, .. } = script.settings;
    let mut slots: Vec<TransferSlot> = vec![TransferSlot::EMPTY; transfers];
    let (mut ring, mut entries) = (vec![0; output_bytes], vec![OutputEntry::EMPTY; output_entries]);
    let memory =
        ClientMemory { transfers: &mut slots, output_bytes: &mut ring, output_entries: &mut entries };
    let config = ClientConfig {
        export: "disk",
        identity: script.settings.has_identity.then_some(Identity([0xa5; 16])),
        want_allocation: script.settings.want_allocation,
    };
    let session = Session::new(config, memory).expect("it fits");
    let mut world = World::new(script.settings, session);
    world.connect();
    for step in &script.steps {
        world.play(step);
    }
    world.finish();
}
