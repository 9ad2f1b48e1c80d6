//! Disk and guest view as they should be: two arrays of bytes and what is known about the stage.

use twinblock_core::{ConnectionId, Identity, Stage};

/// What a secondary should hold and show.
#[derive(Debug)]
pub struct Model {
    /// The secondary disk: every modification of the primary that was answered, in order.
    pub disk: Vec<u8>,
    /// The guest view: the disk at the last checkpoint and every modification of the guest that was answered.
    pub view: Vec<u8>,
    /// Which bytes the guest has written since the last checkpoint.
    pub is_guests: Vec<bool>,
    /// From the events.
    pub stage: Stage,
    /// From the events: the view is not to be looked at.
    pub is_broken: bool,
    /// How many checkpoints were answered, the start included.
    pub epoch: u64,
    /// An error was answered to the primary since the last checkpoint.
    pub has_missed: bool,
    /// The holder of the claim went without a disconnect.
    pub is_in_doubt: bool,
    /// Somebody who may have been the holder of the claim did.
    pub may_be_in_doubt: bool,
    /// Whose modification was carried out last in stage Running.
    pub owner: Option<ConnectionId>,
    /// Errors of the commit that were counted when the failover began, or began again.
    pub commit_errors: u64,
    /// A prepare was answered and nothing has happened since that ends it.
    pub prepared: Option<Identity>,
}

impl Model {
    /// A disk with this content, before the start.
    #[must_use]
    pub fn new(disk: Vec<u8>) -> Self {
        Self {
            view: disk.clone(),
            is_guests: vec![false; disk.len()],
            disk,
            stage: Stage::None,
            is_broken: false,
            epoch: 0,
            has_missed: false,
            is_in_doubt: false,
            may_be_in_doubt: false,
            owner: None,
            commit_errors: 0,
            prepared: None,
        }
    }

    /// The guest view is the disk.
    pub fn begin_epoch(&mut self) {
        self.view.copy_from_slice(&self.disk);
        self.is_guests.fill(false);
        self.is_broken = false;
        self.prepared = None;
        self.epoch += 1;
    }

    /// Nothing is missing any more, or nobody cares.
    pub fn forgive(&mut self) {
        self.has_missed = false;
        self.is_in_doubt = false;
        self.may_be_in_doubt = false;
    }

    /// Whether the guest can see something, as far as the events tell.
    #[must_use]
    pub fn serves_guest(&self) -> bool {
        self.stage != Stage::None && !(self.stage == Stage::Running && self.is_broken)
    }
}
