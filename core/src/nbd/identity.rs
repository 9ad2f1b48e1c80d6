//! The identity of a primary as the name of a metadata context: `twinblock:primary=` and 32 lower-case hexadecimal
//! digits. Servers that do not know the name ignore it. The number that a server gives the context is the number of its
//! run, so that a primary learns whether it is back at a server that was never gone.

use crate::Identity;

/// What the name starts with.
const PREFIX: &[u8] = b"twinblock:primary=";
/// Least number of a run: lower ones say nothing of it.
pub const RUN_MIN: u32 = 3;
/// Bytes of the whole name.
pub(super) const NAME_BYTES: usize = 50;
const _: () = assert!(NAME_BYTES == PREFIX.len() + 32, "two digits for each of 16 bytes");

/// The name of an identity.
pub(super) fn encode(identity: Identity) -> [u8; NAME_BYTES] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut name = [0; NAME_BYTES];
    let digits = identity.0.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    let digits = digits.filter_map(|digit| DIGITS.get(usize::from(digit)).copied());
    for (place, byte) in name.iter_mut().zip(PREFIX.iter().copied().chain(digits)) {
        *place = byte;
    }
    name
}

/// The identity that a name carries, if it is such a name.
#[cfg(feature = "nbd-server")]
pub(super) fn decode(name: &[u8]) -> Option<Identity> {
    let (digits, rest) = name.strip_prefix(PREFIX)?.as_chunks::<2>();
    if !rest.is_empty() || digits.len() != 16 {
        return None;
    }
    let mut identity = [0; 16];
    for (place, [high, low]) in identity.iter_mut().zip(digits) {
        *place = value(*high)? << 4 | value(*low)?;
    }
    Some(Identity(identity))
}

#[cfg(feature = "nbd-server")]
const fn value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}
