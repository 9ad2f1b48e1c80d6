//! The JSON text of commands, answers and events, without allocation and without recursion.
//!
//! A server keeps one [`Framer`] and one [`Negotiation`] for each connection: it writes the greeting, collects bytes
//! until the framer says that a message is complete, parses it, and writes what came of it:
//!
//! ```
//! use twinblock_core::control::{Answer, Command, json};
//! let mut scratch = [0; 256];
//! let mut text = [0; 256];
//! let message = br#"{"execute": "xen-colo-do-checkpoint", "arguments": {"volume": "vda"}, "id": 7}"#;
//!
//! let parsed = json::parse(message, &mut scratch);
//! assert_eq!(parsed.command, Ok(Command::Checkpoint { force: false, volume: Some("vda") }));
//!
//! let mut out = json::TextBuffer::new(&mut text);
//! json::write_answer(&mut out, &Answer::Done, parsed.id).unwrap();
//! assert_eq!(out.text(), "{\"return\": {}, \"id\": 7}\r\n");
//! ```
//!
//! Writers stream into any [`core::fmt::Write`]; a microcontroller's can be its UART. Each message that they write is
//! one line, ended by CR LF as QMP demands.

mod answer;
mod emit;
mod error;
mod incoming;
mod parse;
mod scan;
mod value;

#[cfg(test)]
mod tests;

pub use answer::{
    ReportWriter, write_answer, write_command, write_commands, write_error, write_event, write_greeting,
    write_refusal,
};
pub use emit::TextBuffer;
pub use error::{ErrorClass, Expected, ParseError};
pub use incoming::{Incoming, IncomingEvent, parse_incoming};
pub use parse::{Negotiation, Parsed, parse};
pub use scan::{DEPTH_MAX, Framer};

/// Longest `id` of a command, in bytes of its JSON text; a command with a longer one is refused.
pub const ID_BYTES_MAX: usize = 128;

/// The `id` of a command, any JSON value, as the text that it came as; it is given back unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id<'a>(&'a str);

impl<'a> Id<'a> {
    /// The JSON text.
    #[must_use]
    pub const fn text(&self) -> &'a str {
        self.0
    }

    /// Its value, if it is a whole number from 0 to 2^64 - 1.
    #[must_use]
    pub fn number(&self) -> Option<u64> {
        value::number(self.0)
    }

    /// A copy, for answers that are given later.
    #[must_use]
    pub fn held(&self) -> HeldId {
        // It fits: no longer one is let in.
        HeldId(heapless::String::try_from(self.0).unwrap_or_default())
    }
}

/// A copy of an [`Id`], kept while the command is executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldId(heapless::String<ID_BYTES_MAX>);

impl HeldId {
    /// The `id` again.
    #[must_use]
    pub fn id(&self) -> Id<'_> {
        Id(&self.0)
    }
}
