//! The handshake: options and their answers.

use super::{
    Agreed, Contexts, EXPORT_TEXT_MAX, Export, Exports, OUTPUT_BYTES_MIN, ServerEvent, Session, State, Step,
};
use crate::nbd::gather::Gather;
use crate::nbd::wire::{
    self, ALLOCATION_CONTEXT, Fields, HandshakeFlags, OptionHeader, OptionReply, TransmissionFlags, info,
    option, option_reply,
};
use crate::nbd::{identity, server::Chosen};
use crate::{Identity, Pool};

/// Number of `base:allocation` on this server.
pub(super) const ALLOCATION_ID: u32 = 1;
/// Number of the context that carries an identity, if the run has none.
const IDENTITY_ID: u32 = 2;
/// A longer option is not even dropped: the connection ends.
const OPTION_LENGTH_MAX: u32 = 1 << 20;

bitflags::bitflags! {
    /// Replies of INFO and GO that are still to come.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Infos: u8 {
        const EXPORT = 1;
        const BLOCK_SIZE = 1 << 1;
        const NAME = 1 << 2;
        const DESCRIPTION = 1 << 3;
    }
}

/// An answer to an option that is being given, one reply at a time as room allows.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answer {
    /// One reply without data, or with a text for people.
    One { kind: u32, text: &'static str },
    /// The end of the handshake: the reply, then nothing more is taken.
    Abort,
    /// The exports from this one on.
    List { next: usize },
    /// Information about an export; `is_go` opens it after the last.
    Infos { export: usize, left: Infos, is_go: bool },
    /// Metadata contexts and their numbers.
    Contexts { allocation: Option<u32>, identity: Option<Identity> },
    /// The answer to EXPORT_NAME.
    ExportName { export: usize },
}

impl Answer {
    const ACK: Self = Self::One { kind: option_reply::ACK, text: "" };
    const INVALID: Self = Self::One { kind: option_reply::ERR_INVALID, text: "malformed option" };
    const UNKNOWN: Self = Self::One { kind: option_reply::ERR_UNKNOWN, text: "no such export" };
}

impl Session<'_> {
    pub(super) fn receive_flags<P: Pool + ?Sized>(
        &mut self,
        mut gather: Gather<4>,
        bytes: &[u8],
        pool: &mut P,
    ) -> Step {
        let taken = gather.take(bytes);
        let Some(flags) = gather.whole() else {
            self.enter(State::Flags(gather));
            return if taken == 0 { Step::Wait } else { Step::Took(taken) };
        };
        match HandshakeFlags::from_bits(u32::from_be_bytes(*flags)) {
            // A client that says nothing is held to the same rules as one that says "fixed".
            Some(flags) => {
                self.agreed =
                    Agreed { no_zeroes: flags.contains(HandshakeFlags::NO_ZEROES), ..Agreed::default() };
                self.enter(State::OptionHeader(Gather::new()));
            }
            None => self.close(false, pool),
        }
        Step::Took(taken)
    }

    pub(super) fn receive_option<P: Pool + ?Sized>(
        &mut self,
        mut gather: Gather<{ wire::OPTION_BYTES }>,
        bytes: &[u8],
        pool: &mut P,
    ) -> Step {
        let taken = gather.take(bytes);
        let Some(header) = gather.whole() else {
            self.enter(State::OptionHeader(gather));
            return if taken == 0 { Step::Wait } else { Step::Took(taken) };
        };
        match OptionHeader::decode(header) {
            None => self.close(false, pool),
            Some(OptionHeader { option, length }) => match usize::try_from(length) {
                Ok(length) if length <= self.option_data.len() => {
                    self.enter(State::OptionData { option, length, filled: 0 });
                }
                _ if length <= OPTION_LENGTH_MAX => self.enter(State::OptionDrain { option, left: length }),
                // Nobody means that; to drop so much would only keep the connection busy.
                _ => self.close(false, pool),
            },
        }
        Step::Took(taken)
    }

    /// Drops the data of an option that is too long to be looked at.
    pub(super) fn drain_option<P: Pool + ?Sized>(
        &mut self,
        option: u32,
        left: u32,
        bytes: &[u8],
        pool: &mut P,
    ) -> Step {
        let taken = bytes.len().min(left as usize);
        let left = left - u32::try_from(taken).unwrap_or(left);
        if left != 0 {
            self.enter(State::OptionDrain { option, left });
            return if taken == 0 { Step::Wait } else { Step::Took(taken) };
        }
        let (kind, text) = match option {
            // It has no error path.
            option::EXPORT_NAME => {
                self.close(false, pool);
                return Step::Took(taken);
            }
            option::LIST
            | option::INFO
            | option::GO
            | option::STRUCTURED_REPLY
            | option::LIST_META_CONTEXT
            | option::SET_META_CONTEXT => (option_reply::ERR_TOO_BIG, "too much data for this option"),
            _ => (option_reply::ERR_UNSUP, "unknown option"),
        };
        if option == option::SET_META_CONTEXT {
            self.agreed.contexts = Contexts::default();
        }
        self.enter(State::Answer { option, answer: Answer::One { kind, text } });
        Step::Took(taken)
    }

    pub(super) fn receive_option_data<E: Exports + ?Sized, P: Pool + ?Sized>(
        &mut self,
        option: u32,
        length: usize,
        filled: usize,
        bytes: &[u8],
        exports: &E,
        pool: &mut P,
    ) -> Step {
        let taken = bytes.len().min(length.saturating_sub(filled));
        let place = self.option_data.get_mut(filled..filled + taken);
        if let (Some(place), Some(bytes)) = (place, bytes.get(..taken)) {
            place.copy_from_slice(bytes);
        }
        if filled + taken < length {
            self.enter(State::OptionData { option, length, filled: filled + taken });
            return if taken == 0 { Step::Wait } else { Step::Took(taken) };
        }
        match self.understand(option, length, exports) {
            Some(answer) => self.enter(State::Answer { option, answer }),
            None => self.close(false, pool),
        }
        Step::Took(taken)
    }

    /// The answer to an option whose data is there; `None` if it can only be answered by hanging up.
    fn understand<E: Exports + ?Sized>(&mut self, option: u32, length: usize, exports: &E) -> Option<Answer> {
        let data = self.option_data.get(..length).unwrap_or_default();
        Some(match option {
            option::EXPORT_NAME => Answer::ExportName { export: find(exports, data)? },
            option::ABORT => Answer::Abort,
            option::LIST | option::STRUCTURED_REPLY if !data.is_empty() => Answer::INVALID,
            option::LIST => Answer::List { next: 0 },
            option::STRUCTURED_REPLY => {
                self.agreed.is_structured = true;
                Answer::ACK
            }
            option::INFO | option::GO => infos(option == option::GO, data, exports),
            option::LIST_META_CONTEXT => contexts(false, data, exports).1,
            option::SET_META_CONTEXT => {
                let is_structured = self.agreed.is_structured;
                let (chosen, answer) = contexts(true, data, exports);
                self.agreed.contexts = if is_structured { chosen } else { Contexts::default() };
                if is_structured { answer } else { NOT_STRUCTURED }
            }
            _ => Answer::One { kind: option_reply::ERR_UNSUP, text: "unknown option" },
        })
    }

    /// Gives the next reply of an answer, if there is room for it.
    pub(super) fn answer<E: Exports + ?Sized, P: Pool + ?Sized>(
        &mut self,
        option: u32,
        answer: Answer,
        exports: &E,
        pool: &mut P,
    ) -> Step {
        if !self.output.has_room(OUTPUT_BYTES_MIN, 2) {
            return Step::Wait;
        }
        match answer {
            Answer::One { kind, text } => self.end_option(option, kind, text),
            Answer::Abort => {
                self.reply_option(option, option_reply::ACK, &[]);
                self.close(true, pool);
            }
            Answer::List { next } => self.answer_list(option, next, exports),
            Answer::Infos { export, left, is_go } => match exports.export(export) {
                None => self.end_option(option, option_reply::ERR_UNKNOWN, "the export is gone"),
                Some(of) if left.is_empty() => {
                    self.reply_option(option, option_reply::ACK, &[]);
                    if is_go {
                        self.open(export, &of);
                    } else {
                        self.enter(State::OptionHeader(Gather::new()));
                    }
                }
                Some(of) => {
                    let now = left.iter().next().unwrap_or(left);
                    self.answer_info(option, now, &of);
                    let answer = Answer::Infos { export, left: left.difference(now), is_go };
                    self.enter(State::Answer { option, answer });
                }
            },
            Answer::Contexts { allocation: Some(id), identity } => {
                let parts: [&[u8]; 2] = [&id.to_be_bytes(), ALLOCATION_CONTEXT];
                self.reply_option(option, option_reply::META_CONTEXT, &parts);
                let answer = Answer::Contexts { allocation: None, identity };
                self.enter(State::Answer { option, answer });
            }
            Answer::Contexts { allocation: None, identity: Some(presented) } => {
                let run = if self.config.run < identity::RUN_MIN { IDENTITY_ID } else { self.config.run };
                let id = if option == option::SET_META_CONTEXT { run } else { 0 };
                let parts: [&[u8]; 2] = [&id.to_be_bytes(), &identity::encode(presented)];
                self.reply_option(option, option_reply::META_CONTEXT, &parts);
                self.enter(State::Answer { option, answer: Answer::ACK });
            }
            Answer::Contexts { allocation: None, identity: None } => {
                self.end_option(option, option_reply::ACK, "");
            }
            Answer::ExportName { export } => match exports.export(export) {
                None => self.close(false, pool),
                Some(of) => self.answer_export_name(export, &of),
            },
        }
        Step::Took(0)
    }

    fn answer_list<E: Exports + ?Sized>(&mut self, option: u32, next: usize, exports: &E) {
        let Some(export) = exports.export(next).filter(|_| next < exports.count()) else {
            return self.end_option(option, option_reply::ACK, "");
        };
        if let Ok(length) = u32::try_from(export.name.len())
            && export.name.len() <= EXPORT_TEXT_MAX
        {
            let parts: [&[u8]; 2] = [&length.to_be_bytes(), export.name.as_bytes()];
            self.reply_option(option, option_reply::SERVER, &parts);
        }
        self.enter(State::Answer { option, answer: Answer::List { next: next + 1 } });
    }

    fn answer_info(&mut self, option: u32, now: Infos, export: &Export<'_>) {
        let text = match now {
            Infos::EXPORT => {
                let flags = self.flags_of(export).bits();
                let parts: [&[u8]; 3] =
                    [&info::EXPORT.to_be_bytes(), &export.size_bytes.to_be_bytes(), &flags.to_be_bytes()];
                return self.reply_option(option, option_reply::INFO, &parts);
            }
            Infos::BLOCK_SIZE => {
                let parts: [&[u8]; 4] = [
                    &info::BLOCK_SIZE.to_be_bytes(),
                    &export.block_min.to_be_bytes(),
                    &export.block_preferred.to_be_bytes(),
                    &export.payload_max.to_be_bytes(),
                ];
                return self.reply_option(option, option_reply::INFO, &parts);
            }
            Infos::NAME => (info::NAME, export.name),
            _ => (info::DESCRIPTION, export.description),
        };
        if text.1.len() <= EXPORT_TEXT_MAX && (text.0 == info::NAME || !text.1.is_empty()) {
            self.reply_option(option, option_reply::INFO, &[&text.0.to_be_bytes(), text.1.as_bytes()]);
        }
    }

    fn answer_export_name(&mut self, index: usize, export: &Export<'_>) {
        self.output.push_bytes(&export.size_bytes.to_be_bytes());
        self.output.push_bytes(&self.flags_of(export).bits().to_be_bytes());
        if !self.agreed.no_zeroes {
            self.output.push_zeroes(wire::EXPORT_NAME_PADDING);
        }
        self.open(index, export);
    }

    fn flags_of(&self, export: &Export<'_>) -> TransmissionFlags {
        let mut flags = export.flags | TransmissionFlags::HAS_FLAGS;
        flags.set(TransmissionFlags::SEND_DF, self.agreed.is_structured);
        flags
    }

    /// The last reply to an option.
    fn end_option(&mut self, option: u32, kind: u32, text: &'static str) {
        self.reply_option(option, kind, &[text.as_bytes()]);
        self.enter(State::OptionHeader(Gather::new()));
    }

    fn reply_option(&mut self, option: u32, kind: u32, parts: &[&[u8]]) {
        let length = parts.iter().map(|part| part.len()).sum::<usize>();
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        self.output.push_bytes(&OptionReply { option, kind, length }.encode());
        for part in parts {
            self.output.push_bytes(part);
        }
    }

    /// The handshake is over.
    fn open(&mut self, index: usize, export: &Export<'_>) {
        let contexts = self.agreed.contexts;
        let is_same = contexts.export == Some(index);
        self.chosen = Chosen {
            size_bytes: export.size_bytes,
            block_min: export.block_min.max(1),
            payload_max: export.payload_max,
            flags: self.flags_of(export),
            has_allocation: is_same && contexts.allocation,
        };
        let identity = contexts.identity.filter(|_| is_same);
        self.event = Some(ServerEvent::Opened { export: index, identity });
        self.enter(State::Header(Gather::new()));
    }
}

const NOT_STRUCTURED: Answer =
    Answer::One { kind: option_reply::ERR_INVALID, text: "structured replies come first" };

/// The export of that name; the empty name stands for the only export there is, if it is the only one.
fn find<E: Exports + ?Sized>(exports: &E, name: &[u8]) -> Option<usize> {
    if name.is_empty() && exports.count() == 1 {
        return Some(0);
    }
    let mut indices = 0..exports.count();
    indices.find(|index| exports.export(*index).is_some_and(|export| export.name.as_bytes() == name))
}

/// INFO and GO.
fn infos<E: Exports + ?Sized>(is_go: bool, data: &[u8], exports: &E) -> Answer {
    let mut fields = Fields(data);
    let (Some(name), Some(count)) = (fields.string(), fields.u16()) else { return Answer::INVALID };
    if fields.0.len() != usize::from(count) * 2 {
        return Answer::INVALID;
    }
    let mut left = Infos::EXPORT;
    while let Some(wanted) = fields.u16() {
        left |= match wanted {
            info::NAME => Infos::NAME,
            info::DESCRIPTION => Infos::DESCRIPTION,
            info::BLOCK_SIZE => Infos::BLOCK_SIZE,
            _ => Infos::empty(),
        };
    }
    let Some(export) = find(exports, name) else { return Answer::UNKNOWN };
    // A client that does not ask has to be told if the default, any byte, does not hold.
    if exports.export(export).is_some_and(|export| export.block_min > 1) {
        left |= Infos::BLOCK_SIZE;
    }
    Answer::Infos { export, left, is_go }
}

/// LIST_META_CONTEXT and SET_META_CONTEXT.
fn contexts<E: Exports + ?Sized>(is_set: bool, data: &[u8], exports: &E) -> (Contexts, Answer) {
    let mut fields = Fields(data);
    let none = Contexts::default();
    let (Some(name), Some(count)) = (fields.string(), fields.u32()) else { return (none, Answer::INVALID) };
    let (mut allocation, mut identity) = (!is_set && count == 0, None);
    for _ in 0..count {
        let Some(query) = fields.string() else { return (none, Answer::INVALID) };
        allocation |= query == ALLOCATION_CONTEXT || (!is_set && query == b"base:");
        identity = identity.or(identity::decode(query));
    }
    if !fields.0.is_empty() {
        return (none, Answer::INVALID);
    }
    let Some(export) = find(exports, name) else { return (none, Answer::UNKNOWN) };
    let id = if is_set { ALLOCATION_ID } else { 0 };
    let answer = Answer::Contexts { allocation: allocation.then_some(id), identity };
    (Contexts { export: Some(export), allocation, identity }, answer)
}
