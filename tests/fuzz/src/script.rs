//! Scripts out of bytes.

use arbitrary::{Arbitrary, Result, Unstructured};

/// The longest script that is played; what follows is not looked at.
pub(crate) const STEPS_MAX: usize = 256;

/// A number from 0 up to, not including, `limit`; of one byte if it fits.
pub(crate) fn below(bytes: &mut Unstructured<'_>, limit: u32) -> Result<u32> {
    let limit = limit.max(1);
    if limit <= 256 {
        return Ok(u32::from(u8::arbitrary(bytes)?) % limit);
    }
    Ok(u32::from(u16::arbitrary(bytes)?) % limit)
}

/// One of these.
pub(crate) fn one_of<T: Copy>(bytes: &mut Unstructured<'_>, choices: &[T]) -> Result<T> {
    let choice = below(bytes, choices.len() as u32)?;
    Ok(choices[choice as usize])
}

/// Once in `of` times.
pub(crate) fn rarely(bytes: &mut Unstructured<'_>, of: u32) -> Result<bool> {
    Ok(below(bytes, of)? == of - 1)
}

/// Some bytes, at most `max`.
pub(crate) fn text(bytes: &mut Unstructured<'_>, max: u32) -> Result<Vec<u8>> {
    let length = (below(bytes, max + 1)? as usize).min(bytes.len());
    Ok(bytes.bytes(length)?.to_vec())
}

/// Steps until the bytes have run out.
pub(crate) fn steps<'a, T: Arbitrary<'a>>(bytes: &mut Unstructured<'a>) -> Result<Vec<T>> {
    let mut steps = Vec::new();
    while !bytes.is_empty() && steps.len() < STEPS_MAX {
        steps.push(T::arbitrary(bytes)?);
    }
    Ok(steps)
}
