//! The link to a replica as its primary sees it: a device that is sometimes not there.
//!
//! Like one NBD connection: what is sent arrives in order, answers come in any order, and when the link is cut everything
//! in flight has failed here, while a first part of what was sent may still arrive there.

use std::collections::VecDeque;
use twinblock_core::block::{Action, BlockDevice, Completion, Geometry, QueueFull, Transfer};
use twinblock_core::{Errno, Extent, Memory, Outcome};

use crate::simulator::arena::Arena;

/// A transfer on the wire.
#[derive(Clone, Debug)]
pub(super) struct Message {
    /// Never used again.
    pub(super) name: u64,
    pub(super) transfer: Transfer,
    /// What a write or zeroes put there.
    pub(super) new: Vec<u8>,
}

/// The primary's end.
#[derive(Debug)]
pub(super) struct Link {
    geometry: Geometry,
    is_up: bool,
    /// Sent and not received.
    pub(super) wire: VecDeque<Message>,
    unanswered: Vec<Message>,
    done: VecDeque<Completion>,
    /// Modifications sent on this connection.
    pub(super) modifications: u64,
    names_used: u64,
}

impl Link {
    pub(super) fn new(geometry: Geometry) -> Self {
        Self {
            geometry,
            is_up: false,
            wire: VecDeque::new(),
            unanswered: Vec::new(),
            done: VecDeque::new(),
            modifications: 0,
            names_used: 0,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.is_up
    }

    /// Nothing is left of the last connection.
    pub(super) fn may_connect(&self) -> bool {
        !self.is_up && self.done.is_empty()
    }

    pub(super) fn connect(&mut self) {
        assert!(self.may_connect() && self.unanswered.is_empty());
        self.is_up = true;
        self.modifications = 0;
    }

    /// The connection is gone. What was sent and not received is given back: some of it may arrive yet.
    pub(super) fn cut(&mut self) -> VecDeque<Message> {
        self.is_up = false;
        for message in self.unanswered.drain(..) {
            self.done.push_back(Completion { tag: message.transfer.tag, result: Err(Errno::Io) });
        }
        std::mem::take(&mut self.wire)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.unanswered.is_empty() && self.done.is_empty()
    }

    /// An answer has arrived.
    pub(super) fn answered(
        &mut self,
        name: u64,
        result: Result<Outcome, Errno>,
        read: &[u8],
        memory: &mut Arena,
    ) {
        let Some(place) = self.unanswered.iter().position(|message| message.name == name) else { return };
        let message = self.unanswered.swap_remove(place);
        if let (Action::Read(data), Ok(_)) = (message.transfer.action, result) {
            memory.bytes(data).expect("a read into a buffer that exists").copy_from_slice(read);
        }
        self.done.push_back(Completion { tag: message.transfer.tag, result });
    }

    fn check(&self, transfer: &Transfer) {
        assert!(transfer.extent.end() <= self.geometry.size_bytes, "beyond the end: {transfer:?}");
        for other in &self.unanswered {
            let is_harmless = !is_modification(&other.transfer) && !is_modification(transfer);
            assert!(
                is_harmless || !other.transfer.extent.overlaps(&transfer.extent),
                "link: {transfer:?} while {:?} is in flight",
                other.transfer
            );
        }
    }
}

pub(super) fn is_modification(transfer: &Transfer) -> bool {
    matches!(transfer.action, Action::Write { .. } | Action::WriteZeroes { .. })
}

impl BlockDevice<Arena> for Link {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn submit(&mut self, transfer: Transfer, memory: &mut Arena) -> Result<(), QueueFull> {
        self.check(&transfer);
        if !self.is_up {
            self.done.push_back(Completion { tag: transfer.tag, result: Err(Errno::Io) });
            return Ok(());
        }
        let Extent { length, .. } = transfer.extent;
        let new = match transfer.action {
            Action::Write { data, .. } => memory.copy(data),
            Action::WriteZeroes { .. } => vec![0; length as usize],
            _ => Vec::new(),
        };
        self.modifications += u64::from(is_modification(&transfer));
        self.names_used += 1;
        let message = Message { name: self.names_used, transfer, new };
        self.unanswered.push(message.clone());
        self.wire.push_back(message);
        Ok(())
    }

    fn poll(&mut self, _memory: &mut Arena) -> Option<Completion> {
        self.done.pop_front()
    }
}
