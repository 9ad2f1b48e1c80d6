//! Pieces are whole, and overlapping pieces have one order: where one write shows through in a part of what another
//! covered, it shows through in all of it.

use std::collections::HashSet;

use super::{End, Finding, Log, Named, PIECE_BLOCKS, Seen, Side};
use crate::demo::block::Version;
use crate::demo::layout::Layout;

/// What each block of a disk at rest shows, for the blocks of the layout.
#[derive(Debug)]
pub(crate) struct Picture<'a> {
    primary: &'a Log,
    guest: &'a Log,
    layout: Layout,
    shown: Vec<Option<Seen>>,
}

impl<'a> Picture<'a> {
    /// Nothing has been looked at.
    pub(crate) fn new(primary: &'a Log, guest: &'a Log, layout: Layout) -> Self {
        Self { primary, guest, layout, shown: vec![None; layout.places() as usize] }
    }

    /// Notes what a block shows.
    pub(crate) fn set(&mut self, number: u64, seen: Seen) {
        if let Some(slot) = self.layout.place(number).and_then(|place| self.shown.get_mut(place as usize)) {
            *slot = Some(seen);
        }
    }

    fn find(&self, version: Version) -> Option<(Side, Named<'a>)> {
        let named = |write| Named { version, write };
        match (self.primary.find(version), self.guest.find(version)) {
            (Some(write), _) => Some((Side::Primary, named(write))),
            (None, Some(write)) => Some((Side::Guest, named(write))),
            (None, None) => None,
        }
    }

    fn shown(&self, number: u64) -> Option<Seen> {
        self.layout.place(number).and_then(|place| self.shown.get(place as usize).copied().flatten())
    }

    /// Looks at every piece that shows anywhere.
    pub(crate) fn check(&self) -> Vec<Finding> {
        let mut pieces = HashSet::new();
        let mut orders = HashSet::new();
        let mut findings = Vec::new();
        for area in 0..self.layout.areas() {
            let first = self.layout.area_first(area);
            for number in first..first + self.layout.area_blocks() {
                let Some(Seen::Version(version)) = self.shown(number) else { continue };
                let Some((side, named)) = self.find(version) else { continue };
                if matches!(named.write.end, End::Done(_)) && pieces.insert((version, number / PIECE_BLOCKS))
                {
                    self.check_piece(side, named, number / PIECE_BLOCKS, &mut orders, &mut findings);
                }
            }
        }
        findings
    }

    fn check_piece(
        &self,
        side: Side,
        named: Named<'_>,
        piece: u64,
        orders: &mut HashSet<(Version, Version, u64)>,
        findings: &mut Vec<Finding>,
    ) {
        let write = named.write;
        let first = write.first.max(piece * PIECE_BLOCKS);
        let end = (write.first + u64::from(write.count)).min((piece + 1) * PIECE_BLOCKS);
        for number in first..end {
            let is_torn = match self.shown(number) {
                Some(Seen::Version(other)) if other == named.version => false,
                Some(Seen::Version(other)) => match self.find(other) {
                    Some((other_side, over)) if other_side == side => {
                        orders.insert((named.version, other, piece));
                        over.is_before(&named) || orders.contains(&(other, named.version, piece))
                    }
                    // The guest's writes hide the primary's, never the other way round.
                    Some((other_side, _)) => other_side == Side::Primary,
                    None => false,
                },
                Some(Seen::Initial) => true,
                _ => false,
            };
            if is_torn {
                let Version { connection, index } = named.version;
                let text =
                    format!("write {connection}.{index} shows in a part of what it covered, and not here");
                findings.push(Finding { block: number, text });
                return;
            }
        }
    }
}
