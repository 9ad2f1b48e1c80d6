//! The JSON text of commands, answers and events.
//!
//! Another parser, serde_json, judges the same text; what was understood is written and read again.

use std::fmt;

use arbitrary::{Arbitrary, Result, Unstructured};
use serde_json::Value;
use twinblock_core::control::json::{
    ErrorClass, Framer, Id, Incoming, IncomingEvent, ParseError, Parsed, parse, parse_incoming, write_answer,
    write_command, write_error, write_event,
};
use twinblock_core::control::{Answer, BufferLevel, Command, EventReport, StatusText, Trouble};
use twinblock_core::{Event, Identity, Micros};

use crate::script::{below, one_of, text};

/// What is read.
#[derive(Debug)]
pub enum Script {
    /// A text as it came, read in fragments of at most so many bytes.
    Text {
        /// Most bytes of a fragment.
        fragment: usize,
        /// Room for strings with escapes, if less than is needed.
        scratch: Option<usize>,
        /// The text.
        bytes: Vec<u8>,
    },
    /// A command that is written first.
    Command {
        /// Which, by its place among the names.
        kind: u32,
        /// Its strings.
        texts: [String; 4],
        /// Which strings are there, and its truth values.
        flags: u8,
        /// Its numbers.
        numbers: [u64; 2],
        /// Who asks.
        claim: [u8; 16],
    },
}

impl<'a> Arbitrary<'a> for Script {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self> {
        let mode = u8::arbitrary(bytes)?;
        if mode < 0xc0 {
            let scratch = if mode & 1 == 0 { None } else { Some(usize::from(u8::arbitrary(bytes)?)) };
            let fragment = usize::from(mode >> 1) + 1;
            return Ok(Self::Text { fragment, scratch, bytes: bytes.bytes(bytes.len())?.to_vec() });
        }
        let mut string = || -> Result<String> { Ok(String::from_utf8_lossy(&text(bytes, 40)?).into_owned()) };
        let texts = [string()?, string()?, string()?, string()?];
        let number = |bytes: &mut Unstructured<'a>| -> Result<u64> {
            one_of(bytes, &[0, 1, 7, u64::MAX, u64::MAX / 2, 1 << 53])
        };
        Ok(Self::Command {
            kind: below(bytes, Command::NAMES.len() as u32)?,
            flags: u8::arbitrary(bytes)?,
            numbers: [number(bytes)?, u64::arbitrary(bytes)?],
            claim: <[u8; 16]>::arbitrary(bytes)?,
            texts,
        })
    }
}

/// Reads a script.
///
/// # Panics
/// On a finding.
pub fn run(script: &Script) {
    match script {
        Script::Text { fragment, scratch, bytes } => {
            check_framing(bytes, *fragment);
            check_verdict(bytes);
            check_meaning(bytes, *scratch);
            check_incoming(bytes, *scratch);
        }
        Script::Command { kind, texts, flags, numbers, claim } => {
            let command = command(*kind, texts, *flags, *numbers, Identity(*claim));
            check_command(&command, numbers[1]);
            check_outgoing(texts, *flags, *numbers);
        }
    }
}

/// A message ends at the same place however its bytes come.
fn check_framing(bytes: &[u8], fragment: usize) {
    let (mut whole, mut ends) = (Framer::new(), Vec::new());
    let mut at = 0;
    while let Some(count) = whole.find_end(&bytes[at..]) {
        assert!(count != 0, "a message without bytes");
        at += count;
        ends.push(at);
    }
    let (mut framer, mut found, mut at) = (Framer::new(), Vec::new(), 0);
    while at < bytes.len() {
        let part = &bytes[at..bytes.len().min(at + fragment)];
        match framer.find_end(part) {
            Some(count) => {
                at += count;
                found.push(at);
            }
            None => at += part.len(),
        }
    }
    assert_eq!(ends, found, "fragments of {fragment} bytes end messages elsewhere");
}

/// Whether it is JSON at all is no matter of opinion.
fn check_verdict(bytes: &[u8]) {
    let mut scratch = vec![0; bytes.len()];
    let verdict = parse(bytes, &mut scratch).command;
    match std::str::from_utf8(bytes) {
        Err(error) => assert_eq!(verdict, Err(ParseError::Malformed { offset: error.valid_up_to() })),
        Ok(text) => {
            let is_json = serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
            match verdict {
                Err(ParseError::TooDeep { .. }) => {}
                Err(ParseError::Malformed { offset }) => {
                    assert!(!is_json && offset <= bytes.len(), "refused: {text}");
                }
                _ => assert!(is_json, "taken: {text}"),
            }
        }
    }
}

/// A command means what another parser reads, and can be written and read again.
fn check_meaning(bytes: &[u8], scratch: Option<usize>) {
    let mut room = vec![0; bytes.len()];
    let Parsed { id, command } = parse(bytes, &mut room);
    let mut small = vec![0; scratch.unwrap_or_default()];
    let cramped = parse(bytes, &mut small);
    assert!(cramped.command == Err(ParseError::TooLong) || cramped == Parsed { id, command });
    if let Err(error) = command {
        // An id with a surrogate that stands alone is given back as it came, and this parser takes no such text.
        let id = id.filter(|id| serde_json::from_str::<Value>(id.text()).is_ok());
        let line = written(|out| error.write(out, id));
        let refusal: Value = serde_json::from_str(&line).expect("an error is JSON");
        assert!(refusal["error"]["desc"].is_string());
    }
    let Ok(command) = command else { return };
    let line = written(|out| write_command(out, &command, 5));
    let again: Value = serde_json::from_str(&line).expect("a command is JSON");
    // Surrogates that stand alone are no text for either of us, but are let through where nobody reads them.
    let Ok(first) = serde_json::from_slice::<Value>(bytes) else { return };
    assert_eq!(first["execute"], again["execute"]);
    if let Some(id) = id {
        assert_eq!(serde_json::from_str::<Value>(id.text()).ok().as_ref(), first.get("id"));
    }
    let Some(given) = first.get("arguments").and_then(Value::as_object) else { return };
    for (name, value) in given {
        let read = &again["arguments"][name.as_str()];
        let is_same = match name.as_str() {
            "enable" if value.is_array() => true,
            "claim" => value.as_str().map(str::to_ascii_lowercase).as_deref() == read.as_str(),
            _ => value == read,
        };
        assert!(is_same, "{name}: {value} was read as {read}");
    }
    check_command(&command, 7);
}

/// A message of a server can be written and read again.
fn check_incoming(bytes: &[u8], scratch: Option<usize>) {
    let mut room = vec![0; scratch.unwrap_or(bytes.len())];
    let Ok(incoming) = parse_incoming(bytes, &mut room) else { return };
    let line = written(|out| match incoming {
        Incoming::Greeting => twinblock_core::control::json::write_greeting(out),
        Incoming::Return { id, epoch } => write_answer(out, &epoch.map_or(Answer::Done, Answer::Epoch), id),
        Incoming::Error { id, desc, .. } => write_error(out, ErrorClass::GenericError, desc, id),
        Incoming::Event(IncomingEvent::BufferFull { volume, export, level }) => {
            write_event(out, &full(volume, export.unwrap_or_default(), level))
        }
        Incoming::Event(IncomingEvent::Other) => {
            let event = Event::View(twinblock_core::View::Broken);
            write_event(out, &EventReport { volume: "v", event, replica: "", export: "", at: Micros(0) })
        }
    });
    let mut room = vec![0; line.len()];
    let again = parse_incoming(line.trim_end().as_bytes(), &mut room);
    assert_eq!(again.map(meaning), Ok(meaning(incoming)));
}

/// A message, and its `id` apart: an answer gives it back on one line, so that white space within it may differ.
fn meaning(incoming: Incoming<'_>) -> (Incoming<'_>, Option<Option<Value>>) {
    let value = |id: Option<Id<'_>>| id.map(|id| serde_json::from_str(id.text()).ok());
    match incoming {
        Incoming::Return { id, epoch } => (Incoming::Return { id: None, epoch }, value(id)),
        Incoming::Error { id, desc, .. } => {
            (Incoming::Error { id: None, desc, is_missing: false }, value(id))
        }
        other => (other, None),
    }
}

const fn full<'a>(volume: &'a str, export: &'a str, level: BufferLevel) -> EventReport<'a> {
    let event = match level {
        BufferLevel::ThreeQuarters => Event::BufferThreeQuarters,
        BufferLevel::Full => Event::BufferFull,
    };
    EventReport { volume, event, replica: "", export, at: Micros(1) }
}

fn check_command(command: &Command<'_>, id: u64) {
    let line = written(|out| write_command(out, command, id));
    assert_eq!(Framer::new().find_end(line.as_bytes()), Some(line.len() - 2), "one message: {line}");
    let mut scratch = vec![0; line.len()];
    let parsed = parse(line.trim_end().as_bytes(), &mut scratch);
    assert_eq!(parsed.command.as_ref(), Ok(command), "{line}");
    assert_eq!(parsed.id.and_then(|id| id.number()), Some(id));
}

fn command<'a>(
    kind: u32,
    [first, second, third, fourth]: &'a [String; 4],
    flags: u8,
    [epoch, modifications]: [u64; 2],
    claim: Identity,
) -> Command<'a> {
    let is = |bit: u8| flags & (1 << bit) != 0;
    let volume = is(0).then_some(first.as_str());
    match kind {
        0 => Command::Capabilities,
        1 => Command::Commands,
        2 => {
            let failover = (is(2) && !is(1)).then_some(is(3));
            Command::SetReplication { enable: is(1), primary: is(4), failover, force: is(5), volume }
        }
        3 => Command::Checkpoint { force: is(1), volume },
        4 => Command::QueryReplicationStatus { volume },
        5 => Command::QueryReplication,
        6 => Command::Attach {
            volume,
            uri: second,
            name: is(1).then_some(third),
            control: is(2).then_some(fourth),
            sync_full: is(3),
        },
        7 => Command::Detach { volume, name: second },
        8 => Command::Quit,
        9 => Command::CheckpointPrepare { volume: first, epoch, claim, modifications },
        10 => {
            let together = (modifications as u16).max(1);
            Command::CheckpointCommit { volume: first, epoch, claim, together }
        }
        _ => Command::CheckpointOutcome { volume: first },
    }
}

/// What a server says with these strings is what a client hears.
fn check_outgoing(texts: &[String; 4], flags: u8, numbers: [u64; 2]) {
    let [volume, desc, replica, _] = texts;
    let number = numbers[1].to_string();
    let with_id = format!("{{\"execute\": \"quit\", \"id\": {number}}}");
    let mut room = [];
    let id: Option<Id<'_>> = parse(with_id.as_bytes(), &mut room).id;
    let heard = |line: &str, expected: &Incoming<'_>| {
        let mut scratch = vec![0; line.len()];
        let message = line.trim_end();
        serde_json::from_str::<Value>(message).expect("it is JSON");
        assert_eq!(parse_incoming(message.as_bytes(), &mut scratch).as_ref(), Ok(expected), "{line}");
    };
    let line = written(|out| write_answer(out, &Answer::Epoch(numbers[0]), id));
    heard(&line, &Incoming::Return { id, epoch: Some(numbers[0]) });
    let line = written(|out| write_error(out, ErrorClass::CommandNotFound, desc, id));
    heard(&line, &Incoming::Error { id, desc, is_missing: false });
    let level = if flags & 1 == 0 { BufferLevel::Full } else { BufferLevel::ThreeQuarters };
    let line = written(|out| write_event(out, &full(volume, replica, level)));
    let export = Some(replica.as_str()).filter(|export| !export.is_empty());
    heard(&line, &Incoming::Event(IncomingEvent::BufferFull { volume, export, level }));
    let status = StatusText { volume, trouble: Trouble::Behind(replica) };
    let line = written(|out| write_answer(out, &Answer::Status(Some(status)), None));
    let value: Value = serde_json::from_str(&line).expect("it is JSON");
    assert!(value["return"]["desc"].as_str().is_some_and(|desc| desc.contains(volume.as_str())));
    let left_out = [volume.as_str(), replica.as_str()];
    let line = written(|out| write_answer(out, &Answer::Checkpoint { left_out: &left_out }, id));
    let value: Value = serde_json::from_str(&line).expect("it is JSON");
    assert_eq!(value["return"]["left-out"], serde_json::json!(left_out));
}

fn written(write: impl FnOnce(&mut String) -> fmt::Result) -> String {
    let mut line = String::new();
    write(&mut line).expect("a string takes everything");
    assert!(line.ends_with("\r\n") && !line[..line.len() - 2].contains(['\r', '\n']), "one line: {line:?}");
    line
}
