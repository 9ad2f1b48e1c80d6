//! What the secondary's guest may see: one checkpoint, and its own writes since.
//!
//! A checkpoint has two moments: *begin*, when the primary put its barrier between its writes, and *commit*, when the
//! secondary emptied its buffer; begin comes first. A write of the primary is in the checkpoint if it took its place
//! before begin, a write of the guest is seen if it took its place after commit. Neither moment can be observed, but
//! every block that is seen narrows them ([`Bounds`]); if all blocks together leave no moments that explain them, they
//! are not one checkpoint.
//!
//! Later writes of the primary wait until the commit (SEMANTICS.md, "The checkpoint of a pair"), so one that is not in
//! the checkpoint is answered after it. That holds while the replica is not behind.

use super::{Finding, Index, Maker, Named, Seen, described, makers};
use crate::demo::clock::Moment;

/// When a checkpoint's two moments may have been: `begin_after < begin <= begin_until`,
/// `commit_from <= commit < commit_before`, and `begin <= commit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Before begin.
    pub(crate) begin_after: Moment,
    /// Not before begin.
    pub(crate) begin_until: Moment,
    /// Not after commit.
    pub(crate) commit_from: Moment,
    /// After commit.
    pub(crate) commit_before: Moment,
}

impl Bounds {
    /// Nothing is known.
    pub(crate) const ANY: Self = Self {
        begin_after: Moment::START,
        begin_until: Moment::NEVER,
        commit_from: Moment::START,
        commit_before: Moment::NEVER,
    };

    /// What both allow.
    fn meet(self, other: Self) -> Self {
        Self {
            begin_after: self.begin_after.max(other.begin_after),
            begin_until: self.begin_until.min(other.begin_until),
            commit_from: self.commit_from.max(other.commit_from),
            commit_before: self.commit_before.min(other.commit_before),
        }
    }

    /// Whether there are such moments.
    pub(crate) fn is_possible(self) -> bool {
        self.begin_after < self.begin_until
            && self.commit_from < self.commit_before
            && self.begin_after < self.commit_before
    }
}

/// A block as it was seen.
#[derive(Clone, Copy, Debug)]
struct Sight {
    number: u64,
    seen: Seen,
    submitted: Moment,
    answered: Moment,
}

/// Who wrote.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sides<'i, 'a> {
    /// The primary's guest.
    pub(crate) primary: &'i Index<'a>,
    /// The secondary's guest.
    pub(crate) guest: &'i Index<'a>,
    /// The replica was never behind, so writes after the barrier are answered after the commit.
    pub(crate) writes_wait: bool,
}

/// Checks blocks that were seen in the same epoch.
#[derive(Debug)]
pub(crate) struct ViewCheck<'i, 'a> {
    sides: Sides<'i, 'a>,
    bounds: Bounds,
    ambiguous: Vec<Sight>,
    findings: Vec<Finding>,
}

impl<'i, 'a> ViewCheck<'i, 'a> {
    /// `bounds`: what is known about the checkpoint from elsewhere.
    pub(crate) const fn new(sides: Sides<'i, 'a>, bounds: Bounds) -> Self {
        Self { sides, bounds, ambiguous: Vec::new(), findings: Vec::new() }
    }

    /// Takes in one block that was read between two moments.
    pub(crate) fn add(&mut self, number: u64, seen: Seen, submitted: Moment, answered: Moment) {
        let sight = Sight { number, seen, submitted, answered };
        let explanations = self.explain(sight);
        match explanations.as_slice() {
            [] => {
                let text = format!("shows {}, which it may not at any checkpoint", described(seen));
                self.findings.push(Finding { block: number, text });
            }
            [only] => self.narrow(sight, *only),
            _ => self.ambiguous.push(sight),
        }
    }

    /// What was found, and the bounds that all blocks together leave.
    pub(crate) fn finish(mut self) -> (Vec<Finding>, Bounds) {
        for sight in std::mem::take(&mut self.ambiguous) {
            let explanations = self.explain(sight);
            let fits = |bounds: &&Bounds| self.bounds.meet(**bounds).is_possible();
            let mut fitting = explanations.iter().filter(fits);
            match (fitting.next(), fitting.next()) {
                (None, _) => self.accuse(sight),
                (Some(only), None) => self.bounds = self.bounds.meet(*only),
                _ => {}
            }
        }
        (self.findings, self.bounds)
    }

    fn narrow(&mut self, sight: Sight, explanation: Bounds) {
        let bounds = self.bounds.meet(explanation);
        if bounds.is_possible() {
            self.bounds = bounds;
        } else {
            self.accuse(sight);
        }
    }

    fn accuse(&mut self, sight: Sight) {
        let text = format!(
            "shows {}, which no single checkpoint with the other blocks explains",
            described(sight.seen)
        );
        self.findings.push(Finding { block: sight.number, text });
    }

    /// When the checkpoint was, for every way in which the block may have come to show this.
    fn explain(&self, sight: Sight) -> Vec<Bounds> {
        let guests = self.sides.guest.writers(sight.number);
        let primaries = self.sides.primary.writers(sight.number);
        let mut explanations = Vec::new();
        for maker in makers(&guests, sight.seen) {
            if let Maker::Write(named) = maker {
                explanations.extend(explain_guest(&guests, named, sight));
            }
        }
        // Every write of the guest that was done before the read has been dropped by the checkpoint.
        let commit_from = guests
            .iter()
            .filter(|named| named.write.certain() < sight.submitted)
            .map(|named| named.write.submitted)
            .max()
            .unwrap_or(Moment::START);
        for maker in makers(&primaries, sight.seen) {
            let bounds = bounds_of_primary(&primaries, maker);
            let waited = if self.sides.writes_wait { bounds.begin_until } else { Moment::NEVER };
            let bounds = Bounds { commit_from, commit_before: sight.answered.min(waited), ..bounds };
            if bounds.is_possible() {
                explanations.push(bounds);
            }
        }
        explanations
    }
}

/// A guest's write is seen if it took its place after commit and before the read, and nothing replaced it.
fn explain_guest(guests: &[Named<'_>], named: Named<'_>, sight: Sight) -> Option<Bounds> {
    let is_replaced =
        guests.iter().any(|later| later.write.certain() < sight.submitted && named.is_before(later));
    if is_replaced || named.write.submitted >= sight.answered {
        return None;
    }
    let commit_before = named.write.answered().min(sight.answered);
    Some(Bounds { commit_before, ..Bounds::ANY })
}

/// A write of the primary is the last one in the checkpoint if it took its place before begin, and those that
/// replaced it did not.
fn bounds_of_primary(primaries: &[Named<'_>], maker: Maker<'_>) -> Bounds {
    let begin_after = match maker {
        Maker::Nobody => Moment::START,
        Maker::Write(named) => named.write.submitted,
    };
    let begin_until = primaries
        .iter()
        .filter(|later| maker.is_before(later))
        .map(|later| later.write.certain())
        .min()
        .unwrap_or(Moment::NEVER);
    Bounds { begin_after, begin_until, ..Bounds::ANY }
}
