//! Connections, and which of them may modify.
//!
//! In stage Running the first connection that modifies holds the *claim* until it closes. Before another gets it, the
//! old connection has closed and its transfers in flight have ended: an old request can never land after a newer one.

use super::entry::{Origin, Phase, Work};
use super::state::Claim;
use super::{Port, Secondary};
use crate::{ConnectionId, Errno, Identity, Refused, Request};

/// One connection of a client; an array of these is borrowed by the machine.
///
/// Capacity: unit connections of both ports together; one place each; a primary, its successor and two guests take 4;
/// when all are taken another one is refused with [`Refused::NoRoom`]; more places admit more clients.
#[derive(Clone, Copy, Debug, Default)]
pub struct Connection(Option<Open>);

impl Connection {
    /// A free place.
    pub const FREE: Self = Self(None);
}

#[derive(Clone, Copy, Debug)]
struct Open {
    connection: ConnectionId,
    port: Port,
    identity: Option<Identity>,
    /// Modifications received, whole requests.
    modifications: u64,
    /// Modifications whose last piece has not been received.
    unfinished: u16,
}

#[derive(Debug)]
pub(super) struct Connections<'m>(&'m mut [Connection]);

impl<'m> Connections<'m> {
    pub(super) fn new(places: &'m mut [Connection]) -> Self {
        places.fill(Connection::FREE);
        Self(places)
    }

    fn find(&self, connection: ConnectionId) -> Option<&Open> {
        self.0.iter().filter_map(|place| place.0.as_ref()).find(|open| open.connection == connection)
    }

    pub(super) fn open(
        &mut self,
        connection: ConnectionId,
        port: Port,
        identity: Option<Identity>,
    ) -> Result<(), Refused> {
        if self.find(connection).is_some() {
            return Err(Refused::Stale);
        }
        let place = self.0.iter_mut().find(|place| place.0.is_none()).ok_or(Refused::NoRoom)?;
        place.0 = Some(Open { connection, port, identity, modifications: 0, unfinished: 0 });
        Ok(())
    }

    fn remove(&mut self, connection: ConnectionId) -> Option<Open> {
        let is_it = |place: &&mut Connection| place.0.is_some_and(|open| open.connection == connection);
        self.0.iter_mut().find(is_it)?.0.take()
    }

    pub(super) fn port(&self, connection: ConnectionId) -> Option<Port> {
        self.find(connection).map(|open| open.port)
    }

    pub(super) fn identity(&self, connection: ConnectionId) -> Option<Identity> {
        self.find(connection)?.identity
    }

    pub(super) fn modifications(&self, connection: ConnectionId) -> u64 {
        self.find(connection).map_or(0, |open| open.modifications)
    }

    /// A connection to the replication export that carries this identity.
    pub(super) fn with_identity(&self, identity: Identity) -> Option<ConnectionId> {
        let is_it = |open: &&Open| open.port == Port::Replication && open.identity == Some(identity);
        self.0.iter().filter_map(|place| place.0.as_ref()).find(is_it).map(|open| open.connection)
    }

    /// Counts a piece of a modification.
    pub(super) fn count(&mut self, connection: ConnectionId, request: &Request) {
        let open = self.0.iter_mut().filter_map(|place| place.0.as_mut());
        if let Some(open) = { open }.find(|open| open.connection == connection) {
            open.modifications += u64::from(request.is_first);
            open.unfinished += u16::from(request.is_first);
            open.unfinished = open.unfinished.saturating_sub(u16::from(request.is_last));
        }
    }

    /// Whether the last piece of some modification is still to come.
    pub(super) fn has_unfinished(&self) -> bool {
        self.0.iter().filter_map(|place| place.0.as_ref()).any(|open| open.unfinished != 0)
    }
}

/// Whether a modification may go on.
pub(super) enum Permission {
    Granted,
    Later,
    Refused,
}

impl Secondary<'_> {
    /// A connection has ended: what it asked and has not begun is dropped, and answered so that its buffers are free.
    pub(super) fn close(&mut self, connection: ConnectionId, is_clean: bool) -> Result<(), Refused> {
        let closed = self.connections.remove(connection).ok_or(Refused::Stale)?;
        self.end_untouched_where(Errno::Shutdown, |work| work.connection == connection);
        let identity = closed.identity;
        if let Some(running) = self.state.running_mut() {
            match running.claim {
                Claim::Held { connection: holder, .. } if holder == connection => {
                    running.is_in_doubt |= !is_clean;
                    running.claim = Claim::Ending { connection, identity };
                }
                Claim::Ending { connection: holder, .. } if holder == connection => {
                    running.is_in_doubt |= !is_clean;
                }
                _ => {}
            }
        }
        self.cancel_prepare_of(connection);
        self.settle_claim();
        Ok(())
    }

    /// Called when an entry has gone.
    pub(super) fn connection_entry_ended(&mut self, work: &Work) {
        if work.origin == Origin::Replication {
            self.settle_claim();
        }
    }

    /// Frees a claim whose connection has closed and whose transfers have ended.
    fn settle_claim(&mut self) {
        let Some(running) = self.state.running() else { return };
        let Claim::Ending { connection, .. } = running.claim else { return };
        let has_entries = self.table.iter().any(|(_, work)| work.connection == connection);
        if self.connections.find(connection).is_some() || has_entries {
            return;
        }
        if let Some(running) = self.state.running_mut() {
            running.claim = Claim::Free;
        }
        self.wake_waiting_modifications();
    }

    pub(super) fn wake_waiting_modifications(&mut self) {
        self.wake_where(|work| {
            work.origin == Origin::Replication && matches!(work.phase, Phase::Waiting { .. })
        });
    }

    /// Whether a connection's modification may begin; takes the claim if it is free.
    pub(super) fn permission(&mut self, connection: ConnectionId) -> Permission {
        let identity = self.connections.identity(connection);
        let Some(running) = self.state.running_mut() else { return Permission::Refused };
        match running.claim {
            Claim::Free => {
                running.claim = Claim::Held { connection, identity };
                Permission::Granted
            }
            Claim::Held { connection: holder, .. } if holder == connection => Permission::Granted,
            Claim::Held { connection: holder, identity: held }
            | Claim::Ending { connection: holder, identity: held }
                if held.is_some() && held == identity && holder != connection =>
            {
                if matches!(running.claim, Claim::Held { .. }) {
                    running.claim = Claim::Ending { connection: holder, identity: held };
                    self.notices.close(holder);
                }
                Permission::Later
            }
            // It has closed already and only its transfers are waited for.
            Claim::Ending { connection: holder, .. } if self.connections.find(holder).is_none() => {
                Permission::Later
            }
            Claim::Held { .. } | Claim::Ending { .. } => Permission::Refused,
        }
    }
}
