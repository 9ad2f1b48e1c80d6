//! Who gets a place for a connection when there are fewer places than clients.
//!
//! # Invariants
//! * P1: a client that has finished its handshake is never dropped for another one.
//! * P2: whatever clients of one address do, a few places stay for those of every other: guests cannot keep a primary out.
//! * P3: a client that owes its handshake is dropped for a new one, those first that have not said a word, and of these
//!   the one that came first; but not before it had [`GRACE`]. So half-open connections, however many, keep nobody out.

use twinblock_core::Micros;

/// How long a client is left alone at least: several round trips of a network.
const GRACE: Micros = Micros::from_ms(20);
/// Places that are left to each address at most.
const LEFT_MAX: usize = 4;

/// What a place is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing.
    Free,
    /// A client of this address that owes its handshake.
    Owing {
        /// Its address.
        address: usize,
        /// When it was accepted.
        since: Micros,
        /// It has not even answered the greeting.
        is_silent: bool,
    },
    /// A client of this address that is to be left alone, or what remains of it.
    Settled {
        /// Its address.
        address: usize,
    },
}

impl Standing {
    const fn address(self) -> Option<usize> {
        match self {
            Self::Free => None,
            Self::Owing { address, .. } | Self::Settled { address } => Some(address),
        }
    }
}

/// What becomes of a new client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It gets a free place.
    Welcome,
    /// It gets the place of another one, which is dropped.
    Replace(usize),
    /// It waits until another one leaves, or at the latest until then.
    Wait(Option<Micros>),
}

/// Decides on a new client of `address`, where there are `addresses` and `places_max` places, the used ones of which are
/// given. Visits each place a few times for each address.
pub(super) fn admit(
    address: usize,
    addresses: usize,
    places_max: usize,
    places: &(impl Iterator<Item = Standing> + Clone),
    now: Micros,
) -> Verdict {
    let left = (places_max / (2 * addresses.max(1))).min(LEFT_MAX);
    let used_by = |which| places.clone().filter(|place| place.address() == Some(which)).count();
    let used = places.clone().filter(|place| *place != Standing::Free).count();
    let others = (0..addresses).filter(|other| *other != address);
    let left_to_others: usize = others.map(|other| left.saturating_sub(used_by(other))).sum();
    if used + left_to_others < places_max {
        return Verdict::Welcome;
    }
    let mut first = None;
    let mut due_first: Option<Micros> = None;
    for of in (0..addresses).filter(|of| *of == address || used_by(*of) > left) {
        for (place, standing) in places.clone().enumerate() {
            let Standing::Owing { address: its, since, is_silent } = standing else { continue };
            let due = since.after(GRACE);
            if its != of {
                continue;
            }
            if due > now {
                due_first = Some(due_first.map_or(due, |first| first.min(due)));
                continue;
            }
            let rank = (of != address, !is_silent, since, place);
            first = Some(first.map_or(rank, |first: (bool, bool, Micros, usize)| first.min(rank)));
        }
    }
    first.map_or(Verdict::Wait(due_first), |(_, _, _, place)| Verdict::Replace(place))
}

#[cfg(test)]
mod tests;
