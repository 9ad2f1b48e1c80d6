//! The way from the primary to the secondary: a queue in each direction, and a cut through both.

use std::collections::VecDeque;
use twinblock_core::block::{Action, BlockDevice, Completion, Geometry, QueueFull, Transfer};
use twinblock_core::{Errno, Outcome};

use super::super::arena::Arena;

/// A link to a replica, as the primary's driver sees it.
#[derive(Debug)]
pub(super) struct Link {
    geometry: Geometry,
    is_up: bool,
    /// On the way to the replica.
    sent: VecDeque<Transfer>,
    /// Taken by the replica and not answered.
    there: Vec<Transfer>,
    /// Answered, and on the way back.
    answers: Vec<Completion>,
    done: VecDeque<Completion>,
    /// Modifications sent on the present connection.
    pub(super) modifications: u64,
}

impl Link {
    /// A link that is down.
    #[must_use]
    pub(super) fn new(geometry: Geometry) -> Self {
        Self {
            geometry,
            is_up: false,
            sent: VecDeque::new(),
            there: Vec::new(),
            answers: Vec::new(),
            done: VecDeque::new(),
            modifications: 0,
        }
    }

    /// A new connection.
    pub(super) fn connect(&mut self) {
        self.is_up = true;
        self.modifications = 0;
    }

    /// Whether it is up.
    #[must_use]
    pub(super) fn is_up(&self) -> bool {
        self.is_up
    }

    /// Everything on it is lost, in both directions.
    pub(super) fn cut(&mut self) {
        self.is_up = false;
        let answers = self.answers.drain(..).map(|answer| answer.tag);
        let lost =
            self.sent.drain(..).chain(self.there.drain(..)).map(|transfer| transfer.tag).chain(answers);
        self.done.extend(lost.map(|tag| Completion { tag, result: Err(Errno::Io) }));
    }

    /// The next that arrives at the replica; it stays here until it was [`Link::taken`].
    #[must_use]
    pub(super) fn arriving(&self) -> Option<Transfer> {
        self.sent.front().copied()
    }

    /// The replica took it.
    pub(super) fn taken(&mut self) {
        self.there.extend(self.sent.pop_front());
    }

    /// The replica has answered.
    pub(super) fn answer(&mut self, tag: twinblock_core::block::Tag, result: Result<Outcome, Errno>) {
        if let Some(place) = self.there.iter().position(|transfer| transfer.tag == tag) {
            self.there.swap_remove(place);
            self.answers.push(Completion { tag, result });
        }
    }

    /// How many answers are on the way back.
    #[must_use]
    pub(super) fn answers(&self) -> usize {
        self.answers.len()
    }

    /// One of the answers arrives at the primary.
    pub(super) fn arrive(&mut self, answer: usize) {
        let completion = self.answers.swap_remove(answer);
        self.done.push_back(completion);
    }

    /// Whether nothing is on it.
    #[must_use]
    pub(super) fn is_idle(&self) -> bool {
        self.sent.is_empty() && self.there.is_empty() && self.answers.is_empty() && self.done.is_empty()
    }
}

impl BlockDevice<Arena> for Link {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn submit(&mut self, transfer: Transfer, _memory: &mut Arena) -> Result<(), QueueFull> {
        if self.is_up {
            let changes = matches!(transfer.action, Action::Write { .. } | Action::WriteZeroes { .. });
            self.modifications += u64::from(changes);
            self.sent.push_back(transfer);
        } else {
            self.done.push_back(Completion { tag: transfer.tag, result: Err(Errno::Io) });
        }
        Ok(())
    }

    fn poll(&mut self, _memory: &mut Arena) -> Option<Completion> {
        self.done.pop_front()
    }
}
