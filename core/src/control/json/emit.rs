//! JSON text, piece by piece into a sink.

use core::fmt::{self, Display, Write};

/// Bytes of a string that are escaped at a time.
const CHUNK_BYTES: usize = 16;
/// Each byte becomes six at most (`\u001F`); the two quotes.
const CHUNK_ROOM: usize = CHUNK_BYTES * 6 + 2;
/// Digits of a u64, and `false`.
const SCALAR_ROOM: usize = 20;

/// A sink of fixed size: text that does not fit is an error, and what did fit is kept.
#[derive(Debug)]
pub struct TextBuffer<'a> {
    room: &'a mut [u8],
    length: usize,
}

impl<'a> TextBuffer<'a> {
    /// An empty one.
    #[must_use]
    pub const fn new(room: &'a mut [u8]) -> Self {
        Self { room, length: 0 }
    }

    /// What was written.
    #[must_use]
    pub fn text(&self) -> &str {
        core::str::from_utf8(self.bytes()).unwrap_or_default()
    }

    /// What was written, as bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.room.get(..self.length).unwrap_or_default()
    }

    /// Makes room again for all.
    pub const fn clear(&mut self) {
        self.length = 0;
    }
}

impl Write for TextBuffer<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.length + text.len();
        self.room.get_mut(self.length..end).ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}

/// Writes one JSON text; sees to the commas.
pub(super) struct Emitter<'w, W> {
    out: &'w mut W,
    needs_comma: bool,
}

impl<'w, W: Write> Emitter<'w, W> {
    pub(super) const fn new(out: &'w mut W) -> Self {
        Self { out, needs_comma: false }
    }

    pub(super) fn open(&mut self, bracket: char) -> fmt::Result {
        self.separate()?;
        self.needs_comma = false;
        self.out.write_char(bracket)
    }

    pub(super) fn close(&mut self, bracket: char) -> fmt::Result {
        self.needs_comma = true;
        self.out.write_char(bracket)
    }

    /// The name of the member whose value comes next; a name of ours, without anything to escape.
    pub(super) fn key(&mut self, name: &str) -> fmt::Result {
        self.separate()?;
        self.needs_comma = false;
        write!(self.out, "\"{name}\": ")
    }

    pub(super) fn text(&mut self, text: impl Display) -> fmt::Result {
        self.separate()?;
        self.out.write_char('"')?;
        write!(Escaper { out: &mut *self.out }, "{text}")?;
        self.out.write_char('"')
    }

    pub(super) fn number(&mut self, number: u64) -> fmt::Result {
        self.scalar(&number)
    }

    pub(super) fn boolean(&mut self, boolean: bool) -> fmt::Result {
        self.scalar(&boolean)
    }

    /// JSON text as it is, but for line ends, which can only stand between its values: a message is one line.
    pub(super) fn raw(&mut self, json: &str) -> fmt::Result {
        self.separate()?;
        json.split(['\r', '\n']).try_for_each(|part| self.out.write_str(part))
    }

    pub(super) fn text_member(&mut self, name: &str, text: impl Display) -> fmt::Result {
        self.key(name)?;
        self.text(text)
    }

    pub(super) fn number_member(&mut self, name: &str, number: u64) -> fmt::Result {
        self.key(name)?;
        self.number(number)
    }

    pub(super) fn boolean_member(&mut self, name: &str, boolean: bool) -> fmt::Result {
        self.key(name)?;
        self.boolean(boolean)
    }

    /// The end of the message.
    pub(super) fn end_line(self) -> fmt::Result {
        self.out.write_str("\r\n")
    }

    fn scalar(&mut self, value: &impl serde::Serialize) -> fmt::Result {
        self.separate()?;
        let mut room = [0; SCALAR_ROOM];
        self.out.write_str(encoded(value, &mut room)?)
    }

    fn separate(&mut self) -> fmt::Result {
        if core::mem::replace(&mut self.needs_comma, true) { self.out.write_str(", ") } else { Ok(()) }
    }
}

/// Escapes what is written through it, as the inside of a JSON string.
struct Escaper<'w, W> {
    out: &'w mut W,
}

impl<W: Write> Write for Escaper<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while !rest.is_empty() {
            let boundary = (0..=CHUNK_BYTES.min(rest.len())).rev().find(|end| rest.is_char_boundary(*end));
            let (chunk, after) = rest.split_at_checked(boundary.unwrap_or(rest.len())).ok_or(fmt::Error)?;
            let mut room = [0; CHUNK_ROOM];
            let quoted = encoded(&chunk, &mut room)?;
            self.out.write_str(quoted.get(1..quoted.len() - 1).ok_or(fmt::Error)?)?;
            rest = after;
        }
        Ok(())
    }
}

fn encoded<'r>(value: &impl serde::Serialize, room: &'r mut [u8]) -> Result<&'r str, fmt::Error> {
    let length = serde_json_core::to_slice(value, room).map_err(|_| fmt::Error)?;
    room.get(..length).and_then(|text| core::str::from_utf8(text).ok()).ok_or(fmt::Error)
}
