//! Everything that was seen against everything that may be seen.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use super::block::BLOCK_BYTES;
use super::clock::Moment;
use super::history::{
    Bounds, Epochs, Finding, Index, Log, PIECE_BLOCKS, Picture, Seen, Sides, ViewCheck, check_present,
    check_twins,
};
use super::layout::Layout;
use super::scan::Scan;
use super::workload::ReadNote;

/// What the demo has gathered.
#[derive(Debug, Default)]
pub(crate) struct Evidence {
    /// Writes of the primary's guest.
    pub(crate) primary: Log,
    /// Writes of the secondary's guest.
    pub(crate) guest: Log,
    /// Reads of the primary's guest.
    pub(crate) primary_reads: Vec<ReadNote>,
    /// Reads of the secondary's guest, before and after the failover.
    pub(crate) guest_reads: Vec<ReadNote>,
    /// The primary disk after the kill.
    pub(crate) primary_disk: Scan,
    /// The secondary disk after the kill and before the failover; absent if the replica was behind.
    pub(crate) secondary_disk: Option<Scan>,
    /// The guest view after the failover: while the commit goes on and after it, and the disk at the end.
    pub(crate) views: Vec<(&'static str, Scan)>,
    /// When which epoch was seen.
    pub(crate) epochs: Epochs,
    /// When the primary was gone for certain.
    pub(crate) killed: Moment,
}

/// What came out.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// Bytes that were looked at.
    pub(crate) checked_bytes: u64,
    /// What is wrong.
    pub(crate) findings: Vec<String>,
}

impl Verdict {
    fn add(&mut self, place: &str, findings: impl IntoIterator<Item = Finding>) {
        self.findings.extend(findings.into_iter().map(|finding| {
            format!("{place}, byte {}: {}", finding.block * BLOCK_BYTES as u64, finding.text)
        }));
    }
}

/// Checks all of it.
pub(crate) fn verify(evidence: &Evidence, layout: Layout) -> Verdict {
    let primary = Index::new(&evidence.primary, layout);
    let guest = Index::new(&evidence.guest, layout);
    let mut verdict = Verdict::default();
    check_reads(&mut verdict, "a read of the primary's guest", &primary, &evidence.primary_reads);
    check_primary_side(&mut verdict, evidence, &primary, layout);
    let sides = Sides { primary: &primary, guest: &guest, writes_wait: evidence.secondary_disk.is_some() };
    check_guest_side(&mut verdict, evidence, sides, layout);
    verdict
}

fn blocks(note: &ReadNote) -> impl Iterator<Item = (u64, Seen)> + '_ {
    (note.first..).zip(note.seen.iter().copied())
}

fn check_reads(verdict: &mut Verdict, place: &str, index: &Index<'_>, notes: &[ReadNote]) {
    for note in notes {
        verdict.checked_bytes += (note.seen.len() * BLOCK_BYTES) as u64;
        let findings = blocks(note)
            .filter_map(|(number, seen)| check_present(index, number, seen, note.submitted, note.answered));
        verdict.add(place, findings);
    }
}

/// After the kill both disks hold every acknowledged write, in one order.
fn check_primary_side(verdict: &mut Verdict, evidence: &Evidence, index: &Index<'_>, layout: Layout) {
    let nobody = Log::default();
    let picture = |scan: &Scan| {
        let mut picture = Picture::new(&evidence.primary, &nobody, layout);
        scan.notes.iter().flat_map(blocks).for_each(|(number, seen)| picture.set(number, seen));
        picture.check()
    };
    let scan = &evidence.primary_disk;
    verdict.add("the primary disk after the kill", scan.findings.iter().cloned().chain(picture(scan)));
    check_reads(verdict, "the primary disk after the kill", index, &scan.notes);
    let Some(twin) = &evidence.secondary_disk else { return };
    verdict.add("the secondary disk before the failover", twin.findings.iter().cloned().chain(picture(twin)));
    check_reads(verdict, "the secondary disk before the failover", index, &twin.notes);
    let first: BTreeMap<u64, &ReadNote> = scan.notes.iter().map(|note| (note.first, note)).collect();
    for note in &twin.notes {
        let Some(other) = first.get(&note.first) else { continue };
        let pairs = blocks(note).zip(blocks(other));
        let findings =
            pairs.filter_map(|((number, second), (_, first))| check_twins(index, number, first, second));
        verdict.add("after the kill", findings);
    }
}

/// The guest view is one checkpoint, overlaid by the guest's own writes since.
fn check_guest_side(verdict: &mut Verdict, evidence: &Evidence, sides: Sides<'_, '_>, layout: Layout) {
    let scanned = evidence.views.iter().flat_map(|(_, scan)| &scan.notes);
    let (from, until) = scanned.clone().fold((Moment::NEVER, Moment::START), |(from, until), note| {
        (from.min(note.submitted), until.max(note.answered))
    });
    // The epoch that the view stands at since the failover, and what the view says about its checkpoint.
    let mut last: Option<(u64, Bounds, Vec<Finding>)> = None;
    for epoch in evidence.epochs.candidates(from, until) {
        let bounds = evidence.epochs.bounds(epoch);
        let begin_until = bounds.begin_until.min(evidence.killed);
        let mut check = ViewCheck::new(sides, Bounds { begin_until, ..bounds });
        for note in scanned.clone() {
            blocks(note).for_each(|(number, seen)| check.add(number, seen, note.submitted, note.answered));
        }
        let (findings, bounds) = check.finish();
        let is_right = findings.is_empty();
        last = Some((epoch, bounds, findings));
        if is_right {
            break;
        }
    }
    let mut known = BTreeMap::new();
    if let Some((epoch, bounds, findings)) = last {
        verdict.add("the guest view after the failover", findings);
        known.insert(epoch, bounds);
    }
    for (place, scan) in &evidence.views {
        verdict.checked_bytes += scan.bytes;
        verdict.add(place, scan.findings.iter().cloned());
    }
    if let Some((place, scan)) = evidence.views.last() {
        let mut picture = Picture::new(&evidence.primary, &evidence.guest, layout);
        scan.notes.iter().flat_map(blocks).for_each(|(number, seen)| picture.set(number, seen));
        verdict.add(place, picture.check());
    }
    check_guest_reads(verdict, evidence, sides, &known);
}

/// Each piece of a read shows one epoch; reads of the same epoch show the same checkpoint.
fn check_guest_reads(
    verdict: &mut Verdict,
    evidence: &Evidence,
    sides: Sides<'_, '_>,
    known: &BTreeMap<u64, Bounds>,
) {
    let place = "a read of the secondary's guest";
    let bounds = |epoch: u64| known.get(&epoch).copied().unwrap_or_else(|| evidence.epochs.bounds(epoch));
    let mut checks: BTreeMap<u64, ViewCheck<'_, '_>> = BTreeMap::new();
    for note in &evidence.guest_reads {
        verdict.checked_bytes += (note.seen.len() * BLOCK_BYTES) as u64;
        let (submitted, answered) = (note.submitted, note.answered);
        let candidates = evidence.epochs.candidates(submitted, answered);
        let all: Vec<(u64, Seen)> = blocks(note).collect();
        for piece in all.chunk_by(|(first, _), (second, _)| first / PIECE_BLOCKS == second / PIECE_BLOCKS) {
            if candidates.start() == candidates.end() {
                let epoch = *candidates.start();
                let check = checks.entry(epoch).or_insert_with(|| ViewCheck::new(sides, bounds(epoch)));
                piece.iter().for_each(|(number, seen)| check.add(*number, *seen, submitted, answered));
                continue;
            }
            let mut findings = Vec::new();
            for epoch in candidates.clone() {
                let mut check = ViewCheck::new(sides, bounds(epoch));
                piece.iter().for_each(|(number, seen)| check.add(*number, *seen, submitted, answered));
                findings = check.finish().0;
                if findings.is_empty() {
                    break;
                }
            }
            verdict.add(place, findings);
        }
    }
    for (_, check) in checks {
        verdict.add(place, check.finish().0);
    }
}
