//! What a server sends, read by a client of another node: a primary reads the answers of its secondaries, and hears of
//! their buffers.

use super::error::ParseError;
use super::parse::object;
use super::scan::Members;
use super::value::{self, Scratch};
use super::{ID_BYTES_MAX, Id};
use crate::control::BufferLevel;
use crate::control::report::{BUFFER_FULL, REASON_MISSING};

/// One message of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// The session begins; `qmp_capabilities` is expected.
    Greeting,
    /// A command has succeeded.
    Return {
        /// The command's.
        id: Option<Id<'a>>,
        /// The member `epoch` of what was returned.
        epoch: Option<u64>,
    },
    /// A command has failed, or the message that should have been one was not understood.
    Error {
        /// The command's.
        id: Option<Id<'a>>,
        /// What the server says; with its escapes if there is no room to resolve them.
        desc: &'a str,
        /// The volume misses something that its primary wrote.
        is_missing: bool,
    },
    /// An event.
    Event(IncomingEvent<'a>),
}

/// An event of another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IncomingEvent<'a> {
    /// A buffer fills up: a checkpoint is due.
    BufferFull {
        /// Name of the volume.
        volume: &'a str,
        /// Name of its replication export, if that is another one.
        export: Option<&'a str>,
        /// How full it is.
        level: BufferLevel,
    },
    /// Another one, or one that was not understood.
    Other,
}

/// Reads one message of a server. Texts are borrowed from it, or from `scratch` where they have escapes; as much
/// scratch as the message is long is always enough. Members that are not known are passed over.
///
/// # Errors
/// The message is not JSON, or no object that a server sends ([`ParseError::NoCommand`]).
pub fn parse_incoming<'a>(message: &'a [u8], scratch: &'a mut [u8]) -> Result<Incoming<'a>, ParseError<'a>> {
    let members = object(message)?;
    let mut scratch = Scratch::new(scratch);
    let id = members.value_of("id").filter(|id| id.len() <= ID_BYTES_MAX).map(Id);
    if let Some(returned) = members.value_of("return") {
        let epoch =
            Members::of(returned).and_then(|members| members.value_of("epoch")).and_then(value::number);
        return Ok(Incoming::Return { id, epoch });
    }
    if let Some(error) = members.value_of("error") {
        let error = Members::of(error);
        let is_missing = error
            .as_ref()
            .and_then(|members| value::escaped(members.value_of("reason")?))
            .is_some_and(|reason| value::is_text(reason, REASON_MISSING));
        let desc = error.and_then(|members| members.value_of("desc"));
        let desc = desc.and_then(|desc| scratch.text(desc).ok().or_else(|| value::escaped(desc)));
        let desc = desc.unwrap_or_default();
        return Ok(Incoming::Error { id, desc, is_missing });
    }
    if let Some(event) = members.value_of("event") {
        let is_known = value::escaped(event).is_some_and(|name| value::is_text(name, BUFFER_FULL));
        let known =
            members.value_of("data").filter(|_| is_known).and_then(|data| buffer_full(data, &mut scratch));
        return Ok(Incoming::Event(known.unwrap_or(IncomingEvent::Other)));
    }
    members.value_of("QMP").map(|_| Incoming::Greeting).ok_or(ParseError::NoCommand)
}

fn buffer_full<'a>(data: &'a str, scratch: &mut Scratch<'a>) -> Option<IncomingEvent<'a>> {
    let data = Members::of(data)?;
    let level = value::escaped(data.value_of("level")?)?;
    let level = [BufferLevel::ThreeQuarters, BufferLevel::Full]
        .into_iter()
        .find(|known| value::is_text(level, known.name()))?;
    let volume = scratch.text(data.value_of("volume")?).ok()?;
    let export = data.value_of("export").map(|export| scratch.text(export)).transpose().ok()?;
    let export = export.filter(|export| !export.is_empty());
    Some(IncomingEvent::BufferFull { volume, export, level })
}
