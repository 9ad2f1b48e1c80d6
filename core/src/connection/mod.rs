//! The connections of a machine's clients: who is there, and whose modifications have come whole.

#[cfg(test)]
mod tests;

use crate::{ConnectionId, Refused, Request};

/// One connection of a client, with what a machine remembers of it; an array of these is borrowed by the machine.
///
/// Capacity: unit connections of all of a machine's exports together; one place each; a primary, its successor and two
/// guests take 4; when all are taken another one is refused with [`Refused::NoRoom`]; more places admit more clients.
#[derive(Clone, Copy, Debug, Default, Hash)]
pub struct Connection<T>(Option<Open<T>>);

impl<T> Connection<T> {
    /// A free place.
    pub const FREE: Self = Self(None);
}

/// What is known of an open connection.
#[derive(Clone, Copy, Debug, Hash)]
pub(crate) struct Open<T> {
    pub(crate) connection: ConnectionId,
    pub(crate) about: T,
    /// Modifications received, whole requests.
    pub(crate) modifications: u64,
    /// The last piece of a modification has not been received. Pieces of a connection's modifications do not mix.
    is_unfinished: bool,
    /// That modification began after the barrier that is up.
    is_after_barrier: bool,
    /// A barrier has fallen between the pieces of that modification, and further ones may: none waits for its rest.
    is_cut: bool,
}

impl<T> Open<T> {
    /// Whether a barrier waits for the rest of its modification.
    const fn is_waited_for(&self) -> bool {
        self.is_unfinished && !self.is_after_barrier && !self.is_cut
    }
}

#[derive(Debug, Hash)]
pub(crate) struct Connections<'m, T>(&'m mut [Connection<T>]);

impl<'m, T: Copy> Connections<'m, T> {
    pub(crate) fn new(places: &'m mut [Connection<T>]) -> Self {
        places.fill(Connection::FREE);
        Self(places)
    }

    /// The same in other memory; `None` if that has another number of places.
    #[cfg(feature = "inspect")]
    pub(crate) fn copied_into<'n>(&self, places: &'n mut [Connection<T>]) -> Option<Connections<'n, T>> {
        if places.len() != self.0.len() {
            return None;
        }
        places.copy_from_slice(self.0);
        Some(Connections(places))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Open<T>> {
        self.0.iter().filter_map(|place| place.0.as_ref())
    }

    pub(crate) fn find(&self, connection: ConnectionId) -> Option<&Open<T>> {
        self.iter().find(|open| open.connection == connection)
    }

    pub(crate) fn open(&mut self, connection: ConnectionId, about: T) -> Result<(), Refused> {
        if self.find(connection).is_some() {
            return Err(Refused::Stale);
        }
        let place = self.0.iter_mut().find(|place| place.0.is_none()).ok_or(Refused::NoRoom)?;
        place.0 = Some(Open {
            connection,
            about,
            modifications: 0,
            is_unfinished: false,
            is_after_barrier: false,
            is_cut: false,
        });
        Ok(())
    }

    pub(crate) fn remove(&mut self, connection: ConnectionId) -> Option<Open<T>> {
        let is_it =
            |place: &&mut Connection<T>| place.0.as_ref().is_some_and(|open| open.connection == connection);
        self.0.iter_mut().find(is_it)?.0.take()
    }

    /// Whether a barrier that is up waits for this piece: its request began before.
    pub(crate) fn is_awaited(&self, connection: ConnectionId, request: &Request) -> bool {
        !request.is_first && self.find(connection).is_some_and(Open::is_waited_for)
    }

    /// Counts a piece of a modification. With a barrier up, a request that begins now comes after it, whole.
    pub(crate) fn count(&mut self, connection: ConnectionId, request: &Request, is_barrier_up: bool) {
        let mut open = self.0.iter_mut().filter_map(|place| place.0.as_mut());
        if let Some(open) = open.find(|open| open.connection == connection) {
            if request.is_first {
                open.modifications += 1;
                open.is_after_barrier = is_barrier_up;
                open.is_cut = false;
            }
            open.is_unfinished = !request.is_last;
        }
    }

    /// Connections of which the last piece of a modification that began before the barrier is still to come.
    pub(crate) fn unfinished(&self) -> impl Iterator<Item = ConnectionId> {
        self.iter().filter(|open| open.is_waited_for()).map(|open| open.connection)
    }

    /// The barrier that is up falls between the pieces of what is unfinished.
    #[cfg_attr(not(feature = "primary"), expect(dead_code, reason = "only the primary hurries barriers"))]
    pub(crate) fn cut_unfinished(&mut self) {
        for open in self.0.iter_mut().filter_map(|place| place.0.as_mut()) {
            open.is_cut |= open.is_waited_for();
        }
    }

    /// What came after the barrier no longer does.
    pub(crate) fn lower_barrier(&mut self) {
        for open in self.0.iter_mut().filter_map(|place| place.0.as_mut()) {
            open.is_after_barrier = false;
        }
    }
}
