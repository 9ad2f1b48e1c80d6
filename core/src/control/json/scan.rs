//! Where JSON values begin and end (RFC 8259): validation, framing and walking over members, each in one pass without
//! recursion. What a value means is left to [`value`](super::value).

use super::error::ParseError;

/// How deep arrays and objects may lie within each other.
pub const DEPTH_MAX: u32 = 64;

/// Finds where a message ends in a stream of bytes: with the bracket that closes its first value, or, outside of any
/// bracket or within a string, with the end of the line, or with a byte 0xFF, which can be sent to begin anew.
///
/// Messages need not end with a line end; several may come in one packet and one in several.
///
/// ```
/// use twinblock_core::control::json::Framer;
/// let mut framer = Framer::new();
/// assert_eq!(framer.find_end(b"{\"execute\": "), None);
/// assert_eq!(framer.find_end(b"\"quit\"}\r\n{"), Some(7));
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Framer {
    depth: u32,
    has_content: bool,
    in_string: bool,
    is_escaped: bool,
}

impl Framer {
    /// Before the first byte.
    #[must_use]
    pub const fn new() -> Self {
        Self { depth: 0, has_content: false, in_string: false, is_escaped: false }
    }

    /// Takes the next bytes of the stream, up to the end of the message: then tells how many of these bytes belong to it.
    /// The rest is to be offered again. `None`: all were taken and the message goes on. Looks at each byte once.
    pub fn find_end(&mut self, bytes: &[u8]) -> Option<usize> {
        for (index, byte) in bytes.iter().enumerate() {
            if self.ends_with(*byte) {
                *self = Self::new();
                return Some(index + 1);
            }
        }
        None
    }

    fn ends_with(&mut self, byte: u8) -> bool {
        let was_escaped = core::mem::take(&mut self.is_escaped);
        match byte {
            0xff => return true,
            b'\n' if self.in_string || self.depth == 0 => return self.has_content,
            b'"' if !was_escaped => {
                self.in_string = !self.in_string;
                self.has_content = true;
            }
            b'\\' if self.in_string => self.is_escaped = !was_escaped,
            _ if self.in_string => {}
            b'{' | b'[' => {
                self.depth = self.depth.saturating_add(1);
                self.has_content = true;
            }
            b'}' | b']' => {
                self.has_content = true;
                if self.depth > 0 {
                    self.depth -= 1;
                    return self.depth == 0;
                }
            }
            b' ' | b'\t' | b'\r' | b'\n' => {}
            _ => self.has_content = true,
        }
        false
    }
}

/// What may come next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Value,
    ValueOrEnd,
    Key,
    KeyOrEnd,
    Colon,
    CommaOrEnd,
}

/// Checks that `text` is one JSON value and nothing else. One pass; an error names the byte.
pub(super) fn validate(text: &str) -> Result<(), ParseError<'static>> {
    let mut cursor = Cursor { bytes: text.as_bytes(), at: 0 };
    let mut next = Next::Value;
    let mut depth = 0;
    // One bit for each open bracket, the innermost lowest: set for an object.
    let mut is_object: u64 = 0;
    loop {
        cursor.skip_space();
        if depth == 0 && next == Next::CommaOrEnd {
            return if cursor.at == cursor.bytes.len() { Ok(()) } else { Err(cursor.malformed()) };
        }
        let byte = cursor.peek().ok_or_else(|| cursor.malformed())?;
        match (next, byte) {
            (Next::Value | Next::ValueOrEnd, b'{' | b'[') => {
                if depth == DEPTH_MAX {
                    return Err(ParseError::TooDeep { offset: cursor.at });
                }
                depth += 1;
                is_object = is_object << 1 | u64::from(byte == b'{');
                next = if byte == b'{' { Next::KeyOrEnd } else { Next::ValueOrEnd };
                cursor.at += 1;
            }
            (Next::ValueOrEnd, b']') | (Next::KeyOrEnd, b'}') => {
                depth -= 1;
                is_object >>= 1;
                next = Next::CommaOrEnd;
                cursor.at += 1;
            }
            (Next::CommaOrEnd, b']' | b'}') if (byte == b'}') == (is_object & 1 == 1) => {
                depth -= 1;
                is_object >>= 1;
                cursor.at += 1;
            }
            (Next::CommaOrEnd, b',') => {
                next = if is_object & 1 == 1 { Next::Key } else { Next::Value };
                cursor.at += 1;
            }
            (Next::Colon, b':') => {
                next = Next::Value;
                cursor.at += 1;
            }
            (Next::Key | Next::KeyOrEnd, b'"') => {
                cursor.string()?;
                next = Next::Colon;
            }
            (Next::Value | Next::ValueOrEnd, _) => {
                cursor.scalar(byte)?;
                next = Next::CommaOrEnd;
            }
            _ => return Err(cursor.malformed()),
        }
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    const fn malformed(&self) -> ParseError<'static> {
        ParseError::Malformed { offset: self.at }
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.peek() {
            self.at += 1;
        }
    }

    fn scalar(&mut self, first: u8) -> Result<(), ParseError<'static>> {
        match first {
            b'"' => self.string(),
            b't' => self.literal(b"true"),
            b'f' => self.literal(b"false"),
            b'n' => self.literal(b"null"),
            _ => self.number(),
        }
    }

    fn literal(&mut self, literal: &[u8]) -> Result<(), ParseError<'static>> {
        for byte in literal {
            if self.peek() != Some(*byte) {
                return Err(self.malformed());
            }
            self.at += 1;
        }
        Ok(())
    }

    fn string(&mut self) -> Result<(), ParseError<'static>> {
        self.at += 1;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => self.escape()?,
                Some(0x20..) => self.at += 1,
                _ => return Err(self.malformed()),
            }
        }
    }

    fn escape(&mut self) -> Result<(), ParseError<'static>> {
        self.at += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
            Some(b'u') => {
                self.at += 1;
                for _ in 0..4 {
                    if !self.peek().is_some_and(|byte| byte.is_ascii_hexdigit()) {
                        return Err(self.malformed());
                    }
                    self.at += 1;
                }
            }
            _ => return Err(self.malformed()),
        }
        Ok(())
    }

    fn number(&mut self) -> Result<(), ParseError<'static>> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), ParseError<'static>> {
        let first = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at == first { Err(self.malformed()) } else { Ok(()) }
    }
}

/// The members of an object, in the order of the text, which has been [validated](validate).
#[derive(Clone, Copy, Debug)]
pub(super) struct Members<'a> {
    rest: &'a str,
}

/// One member: the text of the key without its quotes, escapes as they are, and the text of the value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member<'a> {
    pub(super) key: &'a str,
    pub(super) value: &'a str,
}

impl<'a> Members<'a> {
    /// The members of this value, or `None` if it is no object.
    pub(super) fn of(object: &'a str) -> Option<Self> {
        object.trim_ascii().strip_prefix('{').map(|rest| Self { rest })
    }

    /// Without any member.
    pub(super) const fn none() -> Self {
        Self { rest: "" }
    }

    /// The value of the first member of that name.
    pub(super) fn value_of(mut self, name: &str) -> Option<&'a str> {
        self.find(|member| member.is_named(name)).map(|member| member.value)
    }
}

impl Member<'_> {
    /// Whether the key, its escapes resolved, is this name.
    pub(super) fn is_named(&self, name: &str) -> bool {
        super::value::is_text(self.key, name)
    }
}

impl<'a> Iterator for Members<'a> {
    type Item = Member<'a>;

    fn next(&mut self) -> Option<Member<'a>> {
        let rest = self.rest.trim_ascii_start();
        let rest = rest.strip_prefix(',').unwrap_or(rest).trim_ascii_start();
        let inside = rest.strip_prefix('"')?;
        let key_end = string_end(inside)?;
        let key = inside.get(..key_end)?;
        let rest = inside.get(key_end + 1..)?.trim_ascii_start().strip_prefix(':')?.trim_ascii_start();
        let value_end = value_end(rest);
        let value = rest.get(..value_end)?.trim_ascii_end();
        self.rest = rest.get(value_end..)?;
        Some(Member { key, value })
    }
}

/// Where the quote is that ends a string, from the byte after the one that begins it.
fn string_end(text: &str) -> Option<usize> {
    let mut is_escaped = false;
    text.bytes().position(|byte| {
        let ends = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        ends
    })
}

/// Where the comma or bracket is that follows a value.
fn value_end(text: &str) -> usize {
    let (mut depth, mut in_string, mut is_escaped) = (0_usize, false, false);
    let end = text.bytes().position(|byte| {
        if in_string {
            in_string = byte != b'"' || is_escaped;
            is_escaped = byte == b'\\' && !is_escaped;
            return false;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => depth += 1,
            b',' => return depth == 0,
            b'}' | b']' if depth == 0 => return true,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        false
    });
    end.unwrap_or(text.len())
}
