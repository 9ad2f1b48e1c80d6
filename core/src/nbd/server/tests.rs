use std::{vec, vec::Vec};

use super::*;
use crate::nbd::testing::{Server, Sizes};
use crate::nbd::wire::{CHUNK_MAGIC, CommandFlags, Fields, SIMPLE_REPLY_MAGIC, option_reply};

mod answers;
mod crowded;
mod hostile;
mod options;
mod transmission;

/// What a client sends first.
const FIXED: [u8; 4] = [0, 0, 0, 3];

fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = wire::OptionHeader { option, length: data.len() as u32 }.encode().to_vec();
    bytes.extend_from_slice(data);
    bytes
}

fn string(text: &[u8]) -> Vec<u8> {
    let mut bytes = (text.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(text);
    bytes
}

/// Data of INFO or GO.
fn info_data(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut bytes = string(name.as_bytes());
    bytes.extend((infos.len() as u16).to_be_bytes());
    bytes.extend(infos.iter().flat_map(|info| info.to_be_bytes()));
    bytes
}

/// Data of LIST_META_CONTEXT or SET_META_CONTEXT.
fn context_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut bytes = string(name.as_bytes());
    bytes.extend((queries.len() as u32).to_be_bytes());
    bytes.extend(queries.iter().flat_map(|query| string(query.as_bytes())));
    bytes
}

/// Type and data of each reply to `option`.
fn option_replies(option: u32, bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut fields = Fields(bytes);
    let mut replies = Vec::new();
    while !fields.0.is_empty() {
        let header = fields.bytes(wire::OPTION_REPLY_BYTES).and_then(|header| header.first_chunk());
        let header = wire::OptionReply::decode(header.unwrap()).unwrap();
        assert_eq!(header.option, option);
        replies.push((header.kind, fields.bytes(header.length as usize).unwrap().to_vec()));
    }
    replies
}

/// A server whose greeting was taken and whose client has sent its flags.
fn greeted(sizes: Sizes, exports: Vec<Export<'static>>) -> Server {
    let mut server = Server::with(sizes, ServerConfig::new(sizes.window, 5), exports);
    assert_eq!(server.talk(&[]), b"NBDMAGICIHAVEOPT\0\x03");
    assert_eq!(server.talk(&FIXED), b"");
    server
}

fn open(server: &mut Server, is_structured: bool) {
    if is_structured {
        let replies = server.talk(&option(wire::option::STRUCTURED_REPLY, &[]));
        assert_eq!(option_replies(wire::option::STRUCTURED_REPLY, &replies), [(option_reply::ACK, vec![])]);
        server.talk(&option(wire::option::SET_META_CONTEXT, &context_data("disk", &["base:allocation"])));
    }
    let replies =
        option_replies(wire::option::GO, &server.talk(&option(wire::option::GO, &info_data("disk", &[]))));
    assert_eq!(replies.last(), Some(&(option_reply::ACK, vec![])));
    assert_eq!(server.events, [ServerEvent::Opened { export: 0, identity: None }]);
}

/// A server that is past the handshake.
fn opened(sizes: Sizes, export: Export<'static>, is_structured: bool) -> Server {
    let mut server = greeted(sizes, vec![export]);
    open(&mut server, is_structured);
    server
}

fn request(command: u16, flags: CommandFlags, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    wire::RequestHeader { flags, command, cookie, offset, length }.encode().to_vec()
}

/// What the client hears about one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Answer {
    error: u32,
    text: std::string::String,
    /// Data with its place; a simple reply has it at the place that was asked for.
    data: Vec<(u64, Vec<u8>)>,
    extents: Vec<(u32, u32)>,
    chunks: usize,
    is_done: bool,
}

impl Answer {
    /// The data in disk order.
    fn whole(&self) -> Vec<u8> {
        let mut parts = self.data.clone();
        parts.sort();
        parts.into_iter().flat_map(|(_, bytes)| bytes).collect()
    }
}

/// Reads replies. `reads` tells place and length of the reads that a simple reply can answer with data.
fn answers(bytes: &[u8], reads: &[(u64, u64, u32)]) -> Vec<(u64, Answer)> {
    let mut fields = Fields(bytes);
    let mut all: Vec<(u64, Answer)> = Vec::new();
    while !fields.0.is_empty() {
        match fields.u32() {
            Some(SIMPLE_REPLY_MAGIC) => {
                let (error, cookie) = (fields.u32().unwrap(), fields.u64().unwrap());
                let mut answer = Answer { error, is_done: true, ..Answer::default() };
                let read = reads.iter().find(|read| read.0 == cookie);
                if let Some((_, offset, length)) = read.filter(|read| error == 0 && read.2 != 0) {
                    answer.data.push((*offset, fields.bytes(*length as usize).unwrap().to_vec()));
                }
                all.push((cookie, answer));
            }
            Some(CHUNK_MAGIC) => {
                let (flags, kind) = (fields.u16().unwrap(), fields.u16().unwrap());
                let (cookie, length) = (fields.u64().unwrap(), fields.u32().unwrap());
                let mut data = Fields(fields.bytes(length as usize).unwrap());
                if !all.iter().any(|answer| answer.0 == cookie && !answer.1.is_done) {
                    all.push((cookie, Answer::default()));
                }
                let answer = &mut all.iter_mut().rfind(|answer| answer.0 == cookie).unwrap().1;
                answer.chunks += 1;
                answer.is_done = flags & wire::CHUNK_DONE != 0;
                match kind {
                    wire::chunk::NONE => assert_eq!(length, 0),
                    wire::chunk::OFFSET_DATA => answer.data.push((data.u64().unwrap(), data.0.to_vec())),
                    wire::chunk::ERROR => {
                        answer.error = data.u32().unwrap();
                        assert_eq!(usize::from(data.u16().unwrap()), data.0.len());
                        answer.text = std::string::String::from_utf8(data.0.to_vec()).unwrap();
                    }
                    wire::chunk::BLOCK_STATUS => {
                        assert_eq!(data.u32(), Some(1));
                        while let Some(length) = data.u32() {
                            answer.extents.push((length, data.u32().unwrap()));
                        }
                    }
                    other => panic!("chunk of type {other}"),
                }
            }
            other => panic!("no reply: {other:x?}"),
        }
    }
    all
}

/// The only answer there is.
fn answer(bytes: &[u8]) -> Answer {
    let mut all = answers(bytes, &[]);
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0).1
}
