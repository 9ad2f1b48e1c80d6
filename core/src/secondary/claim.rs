//! Connections, and which of them may modify.
//!
//! In stage Running the first connection that modifies holds the *claim* until it closes. Before another gets it, the
//! old connection has closed and its transfers in flight have ended: an old request can never land after a newer one.

use super::entry::{Origin, Phase, Work};
use super::state::Claim;
use super::{Port, Secondary};
use crate::{ConnectionId, Errno, Identity, Refused};

/// A connection to one of a secondary's exports.
pub type Connection = crate::connection::Connection<Client>;

/// What a secondary remembers of a client.
#[derive(Clone, Copy, Debug, Hash)]
pub struct Client {
    pub(super) port: Port,
    pub(super) identity: Option<Identity>,
}

/// Whether a modification may go on.
pub(super) enum Permission {
    Granted,
    Later,
    Refused,
}

impl Secondary<'_> {
    /// The connection that holds the claim, while it is open.
    #[must_use]
    pub fn claim_holder(&self) -> Option<ConnectionId> {
        match self.state.running()?.claim {
            Claim::Held { connection, .. } => Some(connection),
            Claim::Free | Claim::Ending { .. } => None,
        }
    }

    /// A connection has ended: what it asked and has not begun is dropped, and answered so that its buffers are free.
    pub(super) fn close(&mut self, connection: ConnectionId, is_clean: bool) -> Result<(), Refused> {
        let closed = self.connections.remove(connection).ok_or(Refused::Stale)?;
        self.end_untouched_where(Errno::Shutdown, |work| work.connection == connection);
        let identity = closed.about.identity;
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
        let identity = self.connections.find(connection).and_then(|open| open.about.identity);
        let Some(running) = self.state.running_mut() else { return Permission::Refused };
        match running.claim {
            Claim::Free => {
                running.claim = Claim::Held { connection, identity };
                // It came while somebody else's prepare was waited for, and would be part of what that one commits.
                running.prepared = running.prepared.filter(|(prepared, _)| identity == Some(*prepared));
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
