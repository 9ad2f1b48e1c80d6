//! What a descriptor in the poll set belongs to.

/// Kinds of descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// An NBD listener.
    Listener,
    /// An NBD connection.
    Client,
    /// The control listener.
    ControlListener,
    /// A manager's connection.
    Manager,
    /// A control link to a secondary.
    Link,
    /// An NBD disk or a replica.
    NbdDisk,
    /// Signals.
    Signal,
}

const KINDS: [Kind; 7] = [
    Kind::Listener,
    Kind::Client,
    Kind::ControlListener,
    Kind::Manager,
    Kind::Link,
    Kind::NbdDisk,
    Kind::Signal,
];
const INDEX_BITS: u32 = 24;

/// A token out of a kind and an index below 2^24.
pub(super) const fn token(kind: Kind, index: usize) -> u32 {
    (kind as u32) << INDEX_BITS | (index as u32 & ((1 << INDEX_BITS) - 1))
}

/// The kind and the index of a token.
pub(super) fn split(token: u32) -> Option<(Kind, usize)> {
    let kind = KINDS.get((token >> INDEX_BITS) as usize)?;
    Some((*kind, (token & ((1 << INDEX_BITS) - 1)) as usize))
}
