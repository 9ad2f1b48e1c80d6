//! What JSON scalars mean.

use crate::Identity;
use serde_json_core::str::{EscapedStr, EscapedStringFragment};

/// A whole number from 0 to 2^64 - 1.
pub(super) fn number(value: &str) -> Option<u64> {
    serde_json_core::from_str(value).ok().map(|(number, _)| number)
}

/// `true` or `false`.
pub(super) fn boolean(value: &str) -> Option<bool> {
    serde_json_core::from_str(value).ok().map(|(boolean, _)| boolean)
}

/// What is between the quotes of a string, escapes as they are.
pub(super) fn escaped(value: &str) -> Option<&str> {
    serde_json_core::from_str::<EscapedStr<'_>>(value).ok().map(|(text, _)| text.0)
}

/// An identity: a string of 32 hexadecimal digits.
pub(super) fn identity(value: &str) -> Option<Identity> {
    let (digits, []) = escaped(value)?.as_bytes().as_chunks::<2>() else { return None };
    let mut identity = [0; 16];
    if digits.len() != identity.len() {
        return None;
    }
    for (byte, [high, low]) in identity.iter_mut().zip(digits) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        *byte = u8::try_from(digit(*high)? << 4 | digit(*low)?).ok()?;
    }
    Some(Identity(identity))
}

/// Whether what is between the quotes of a string, its escapes resolved, is this text.
pub(super) fn is_text(escaped: &str, text: &str) -> bool {
    if !escaped.contains('\\') {
        return escaped == text;
    }
    let mut expected = text.chars();
    Characters(escaped).all(|character| character.is_ok() && character.ok() == expected.next())
        && expected.next().is_none()
}

/// Room for strings whose escapes had to be resolved.
pub(super) struct Scratch<'a>(&'a mut [u8]);

/// Why a string has no text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoText {
    /// It is no string, or half of a surrogate pair is missing.
    Wrong,
    /// There is not enough room to resolve its escapes.
    TooLong,
}

impl<'a> Scratch<'a> {
    pub(super) const fn new(room: &'a mut [u8]) -> Self {
        Self(room)
    }

    /// The text of a string. It stays in the message if nothing is escaped, otherwise it takes scratch room.
    pub(super) fn text(&mut self, value: &'a str) -> Result<&'a str, NoText> {
        let escaped = escaped(value).ok_or(NoText::Wrong)?;
        if !escaped.contains('\\') {
            return Ok(escaped);
        }
        let room = core::mem::take(&mut self.0);
        let mut length = 0;
        for character in Characters(escaped) {
            let character = character?;
            let end = length + character.len_utf8();
            character.encode_utf8(room.get_mut(length..end).ok_or(NoText::TooLong)?);
            length = end;
        }
        let (text, rest) = room.split_at_mut_checked(length).ok_or(NoText::TooLong)?;
        self.0 = rest;
        core::str::from_utf8(text).map_err(|_| NoText::Wrong)
    }
}

/// The characters of what is between the quotes of a string.
struct Characters<'a>(&'a str);

impl Iterator for Characters<'_> {
    type Item = Result<char, NoText>;

    fn next(&mut self) -> Option<Self::Item> {
        let first = self.0.chars().next()?;
        if first != '\\' {
            self.0 = self.0.get(first.len_utf8()..).unwrap_or_default();
            return Some(Ok(first));
        }
        let mut fragments = EscapedStr(self.0).fragments();
        let character = match fragments.next() {
            Some(Ok(EscapedStringFragment::Escaped(character))) => {
                self.0 = fragments.as_str().0;
                Ok(character)
            }
            // Characters beyond 16 bits come as two escapes, which the fragments do not join.
            _ => surrogates(self.0).ok_or(NoText::Wrong).inspect(|_| {
                self.0 = self.0.get(SURROGATES_BYTES..).unwrap_or_default();
            }),
        };
        if character.is_err() {
            self.0 = "";
        }
        Some(character)
    }
}

/// Bytes of two escapes.
const SURROGATES_BYTES: usize = 12;

/// The character that the two escapes at the start of `text` make together.
fn surrogates(text: &str) -> Option<char> {
    let unit = |from: usize| {
        let digits = text.get(from..from + 6)?.strip_prefix("\\u")?;
        u16::from_str_radix(digits, 16).ok()
    };
    char::decode_utf16([unit(0)?, unit(6)?]).next()?.ok()
}
