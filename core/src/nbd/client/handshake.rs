//! The handshake: what is asked, and what is made of the answers.

use super::{ClientError, ClientEvent, ServerInfo, Session, State, TEXT_MAX, fill, skip};
use crate::nbd::gather::Gather;
use crate::nbd::identity;
use crate::nbd::wire::{
    self, ALLOCATION_CONTEXT, BLOCK_MIN_MAX, DEFAULT_PAYLOAD_MAX, EXPORT_NAME_PADDING, Fields, Greeting,
    HandshakeFlags, OptionHeader, OptionReply, TransmissionFlags, info, option, option_reply,
};

/// Second eight bytes of an oldstyle greeting.
const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
/// Most replies to one option that are looked at; a server has no use for more.
const REPLIES_MAX: u16 = 64;
/// Longest data of one reply to an option: a string of 4096 bytes and what goes with it.
const REPLY_DATA_MAX: u32 = 8192;
/// How much of it is kept.
const DATA_KEPT: usize = TEXT_MAX;

/// What is known before the handshake is over.
#[derive(Debug, Default)]
pub(super) struct Handshake {
    no_zeroes: bool,
    is_structured: bool,
    /// The option that was asked last.
    option: u32,
    /// How many replies it has had.
    replies: u16,
    /// Start of the data of the reply that is coming in.
    data: heapless::Vec<u8, DATA_KEPT>,
    /// Size and flags.
    export: Option<(u64, TransmissionFlags)>,
    /// Minimum, preferred, longest payload.
    blocks: Option<(u32, u32, u32)>,
    /// The run of the server, if it tells.
    run: Option<u32>,
    /// The server's words of the last refusal.
    pub(super) text: heapless::String<TEXT_MAX>,
}

impl Session<'_> {
    pub(super) fn receive_greeting(
        &mut self,
        mut gather: Gather<{ wire::GREETING_BYTES }>,
        bytes: &mut &[u8],
    ) -> Result<(), ClientError> {
        fill(&mut gather, bytes, wire::GREETING_BYTES);
        self.enter(State::Greeting(gather));
        let Some(greeting) = gather.whole() else { return Ok(()) };
        let Some(Greeting { flags }) = Greeting::decode(greeting) else {
            let mut fields = Fields(greeting);
            let magics = (fields.u64(), fields.u64());
            let is_old = magics == (Some(wire::GREETING_MAGIC), Some(OLDSTYLE_MAGIC));
            return Err(if is_old { ClientError::OldServer } else { ClientError::NotNbd });
        };
        self.handshake.no_zeroes = flags.contains(HandshakeFlags::NO_ZEROES);
        self.output.push_bytes(&flags.bits().to_be_bytes());
        if flags.contains(HandshakeFlags::FIXED_NEWSTYLE) {
            self.ask(option::STRUCTURED_REPLY, &[])
        } else {
            self.ask_by_name()
        }
    }

    /// Asks an option.
    fn ask(&mut self, option: u32, parts: &[&[u8]]) -> Result<(), ClientError> {
        let length = parts.iter().map(|part| part.len()).sum::<usize>();
        if !self.output.has_room(wire::OPTION_BYTES + length, 1) {
            // There is room for each option once the one before has been sent.
            return Err(ClientError::EndlessReplies);
        }
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        self.output.push_bytes(&OptionHeader { option, length }.encode());
        for part in parts {
            self.output.push_bytes(part);
        }
        self.handshake.option = option;
        self.handshake.replies = 0;
        self.enter(State::OptionReply(Gather::new()));
        Ok(())
    }

    fn name(&self) -> (&'_ [u8], [u8; 4]) {
        let name = self.config.export.as_bytes();
        (name, u32::try_from(name.len()).unwrap_or_default().to_be_bytes())
    }

    fn ask_contexts(&mut self) -> Result<(), ClientError> {
        let config = self.config;
        let (_, name_length) = self.name();
        let count = u32::from(config.want_allocation) + u32::from(config.identity.is_some());
        let allocation: [u8; 4] = 15u32.to_be_bytes();
        const _: () = assert!(ALLOCATION_CONTEXT.len() == 15, "its length goes before it");
        let identity_name = config.identity.map(identity::encode);
        let identity_length = u32::try_from(identity::NAME_BYTES).unwrap_or_default().to_be_bytes();
        let (allocation_length, allocation): (&[u8], &[u8]) =
            if config.want_allocation { (&allocation, ALLOCATION_CONTEXT) } else { (&[], &[]) };
        let (identity_length, identity): (&[u8], &[u8]) = match &identity_name {
            Some(name) => (&identity_length, name),
            None => (&[], &[]),
        };
        self.ask(
            option::SET_META_CONTEXT,
            &[
                &name_length,
                config.export.as_bytes(),
                &count.to_be_bytes(),
                allocation_length,
                allocation,
                identity_length,
                identity,
            ],
        )
    }

    fn ask_go(&mut self) -> Result<(), ClientError> {
        let config = self.config;
        let (_, name_length) = self.name();
        let infos: [&[u8]; 2] = [&1u16.to_be_bytes(), &info::BLOCK_SIZE.to_be_bytes()];
        let [count, block_size] = infos;
        self.ask(option::GO, &[&name_length, config.export.as_bytes(), count, block_size])
    }

    fn ask_by_name(&mut self) -> Result<(), ClientError> {
        let config = self.config;
        self.ask(option::EXPORT_NAME, &[config.export.as_bytes()])?;
        self.enter(State::ExportName(Gather::new()));
        Ok(())
    }

    pub(super) fn receive_option_reply(
        &mut self,
        mut gather: Gather<{ wire::OPTION_REPLY_BYTES }>,
        bytes: &mut &[u8],
    ) -> Result<(), ClientError> {
        fill(&mut gather, bytes, wire::OPTION_REPLY_BYTES);
        self.enter(State::OptionReply(gather));
        let Some(reply) = gather.whole() else { return Ok(()) };
        let reply = OptionReply::decode(reply).ok_or(ClientError::BadOptionReply)?;
        if reply.option != self.handshake.option || reply.length > REPLY_DATA_MAX {
            return Err(ClientError::BadOptionReply);
        }
        self.handshake.replies += 1;
        if self.handshake.replies > REPLIES_MAX {
            return Err(ClientError::EndlessReplies);
        }
        self.handshake.data.clear();
        self.enter(State::OptionData { kind: reply.kind, left: reply.length });
        if reply.length == 0 { self.understand(reply.kind) } else { Ok(()) }
    }

    pub(super) fn receive_option_data(
        &mut self,
        kind: u32,
        left: u32,
        bytes: &mut &[u8],
    ) -> Result<(), ClientError> {
        let kept = &mut self.handshake.data;
        let from = bytes.get(..bytes.len().min(left as usize)).unwrap_or_default();
        let room = kept.capacity() - kept.len();
        // As much as there is room for: what is beyond is never needed.
        let _ = kept.extend_from_slice(from.get(..from.len().min(room)).unwrap_or_default());
        let left = left - skip(bytes, left);
        self.enter(State::OptionData { kind, left });
        if left == 0 { self.understand(kind) } else { Ok(()) }
    }

    /// A reply to the option that was asked is there.
    fn understand(&mut self, kind: u32) -> Result<(), ClientError> {
        self.enter(State::OptionReply(Gather::new()));
        let is_error = kind & option_reply::ERROR_BIT != 0;
        if is_error {
            self.keep_text();
        }
        match (self.handshake.option, kind) {
            (option::STRUCTURED_REPLY, option_reply::ACK) => {
                self.handshake.is_structured = true;
                if self.config.want_allocation || self.config.identity.is_some() {
                    self.ask_contexts()
                } else {
                    self.ask_go()
                }
            }
            (option::SET_META_CONTEXT, option_reply::META_CONTEXT) => {
                let mut fields = Fields(&self.handshake.data);
                let id = fields.u32().ok_or(ClientError::BadOptionReply)?;
                if self.config.want_allocation && fields.0 == ALLOCATION_CONTEXT {
                    self.allocation_id = Some(id);
                }
                let own = self.config.identity.map(identity::encode);
                if own.is_some_and(|name| fields.0 == name) {
                    self.handshake.run = Some(id).filter(|run| *run >= identity::RUN_MIN);
                }
                Ok(())
            }
            (option::SET_META_CONTEXT, option_reply::ACK) => self.ask_go(),
            (option::STRUCTURED_REPLY | option::SET_META_CONTEXT, _) if is_error => self.ask_go(),
            (option::GO, option_reply::INFO) => self.understand_info(),
            (option::GO, option_reply::ACK) => self.open(),
            (option::GO, option_reply::ERR_UNSUP) => self.ask_by_name(),
            (option::GO, option_reply::ERR_UNKNOWN) => Err(ClientError::UnknownExport),
            (option::GO, option_reply::ERR_POLICY) => Err(ClientError::Forbidden),
            (option::GO, option_reply::ERR_TLS_REQD) => Err(ClientError::TlsRequired),
            (option::GO, option_reply::ERR_SHUTDOWN) => Err(ClientError::ShuttingDown),
            (option::GO, kind) if is_error => Err(ClientError::Refused(kind)),
            _ => Err(ClientError::BadOptionReply),
        }
    }

    fn understand_info(&mut self) -> Result<(), ClientError> {
        let mut fields = Fields(&self.handshake.data);
        let kind = fields.u16().ok_or(ClientError::BadOptionReply)?;
        match kind {
            info::EXPORT => match (fields.u64(), fields.u16()) {
                (Some(size), Some(flags)) => {
                    self.handshake.export = Some((size, TransmissionFlags::from_bits_truncate(flags)));
                    Ok(())
                }
                _ => Err(ClientError::BadOptionReply),
            },
            info::BLOCK_SIZE => match (fields.u32(), fields.u32(), fields.u32()) {
                (Some(min), Some(preferred), Some(payload_max)) => {
                    self.handshake.blocks = Some((min, preferred, payload_max));
                    Ok(())
                }
                _ => Err(ClientError::BadOptionReply),
            },
            _ => Ok(()),
        }
    }

    pub(super) fn receive_export_name(
        &mut self,
        mut gather: Gather<10>,
        bytes: &mut &[u8],
    ) -> Result<(), ClientError> {
        fill(&mut gather, bytes, 10);
        self.enter(State::ExportName(gather));
        let Some(answer) = gather.whole() else { return Ok(()) };
        let mut fields = Fields(answer);
        if let (Some(size), Some(flags)) = (fields.u64(), fields.u16()) {
            self.handshake.export = Some((size, TransmissionFlags::from_bits_truncate(flags)));
        }
        if self.handshake.no_zeroes {
            return self.open();
        }
        self.enter(State::Padding { left: EXPORT_NAME_PADDING });
        Ok(())
    }

    /// The handshake is over.
    pub(super) fn open(&mut self) -> Result<(), ClientError> {
        let (size_bytes, flags) = self.handshake.export.ok_or(ClientError::BadOptionReply)?;
        let (block_min, block_preferred, payload_max) =
            self.handshake.blocks.unwrap_or((1, 4096, DEFAULT_PAYLOAD_MAX));
        if !block_min.is_power_of_two() || block_min > BLOCK_MIN_MAX {
            return Err(ClientError::BadGeometry);
        }
        let payload_max = payload_max - payload_max % block_min;
        // The protocol has sizes of at most 2^63 - 1, so that they fit a signed file offset.
        if payload_max == 0 || i64::try_from(size_bytes).is_err() {
            return Err(ClientError::BadGeometry);
        }
        let flags =
            if flags.contains(TransmissionFlags::HAS_FLAGS) { flags } else { TransmissionFlags::empty() };
        let is_structured = self.handshake.is_structured;
        let info = ServerInfo {
            size_bytes,
            flags,
            block_min,
            block_preferred: block_preferred.max(block_min),
            payload_max,
            has_allocation: is_structured && self.allocation_id.is_some(),
            is_structured,
            run: self.handshake.run,
        };
        self.info = Some(info);
        self.handshake.text.clear();
        self.event = Some(ClientEvent::Ready(info));
        self.enter(State::Reply(Gather::new()));
        Ok(())
    }

    /// Keeps the server's words of a refusal, without what could disturb a terminal.
    fn keep_text(&mut self) {
        let Handshake { text, data, .. } = &mut self.handshake;
        text.clear();
        for byte in data.iter() {
            let character = if (b' '..=b'~').contains(byte) { char::from(*byte) } else { '?' };
            if text.push(character).is_err() {
                return;
            }
        }
    }
}
