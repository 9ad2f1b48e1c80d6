//! A small run by hand: 32 blocks, four writes of the primary, two of the guest, a checkpoint between 300 and 320.

use super::super::block::Version;
use super::super::history::{End, Poll, Write};
use super::*;

const BLOCKS: u32 = 32;
const GUEST: u16 = 4;

fn write(first: u64, count: u32, submitted: u64, answered: Option<u64>) -> Write {
    let end = answered.map_or(End::Open, |answered| End::Done(Moment(answered)));
    Write { first, count, is_zeroes: false, submitted: Moment(submitted), end }
}

const fn by(connection: u16, index: u32) -> Seen {
    Seen::Version(Version { connection, index })
}

/// A scan of the whole disk on which only these blocks are not as in the beginning.
fn scan(at: u64, changed: &[(u64, Seen)]) -> Scan {
    let mut note = ReadNote::new(0, BLOCKS, Moment(at));
    note.answered = Moment(at + 5);
    note.seen = vec![Seen::Initial; BLOCKS as usize];
    for (number, seen) in changed {
        note.seen[*number as usize] = *seen;
    }
    Scan { notes: vec![note], findings: Vec::new(), bytes: u64::from(BLOCKS) * BLOCK_BYTES as u64 }
}

fn read(at: u64, first: u64, seen: &[Seen]) -> ReadNote {
    let mut note = ReadNote::new(first, seen.len() as u32, Moment(at));
    note.answered = Moment(at + 5);
    note.seen = seen.to_vec();
    note
}

fn right() -> Evidence {
    let mut evidence = Evidence { killed: Moment(500), ..Evidence::default() };
    // In the checkpoint are the first and the second, not the third; the fourth was in flight at the kill.
    let writes = vec![
        write(0, 4, 100, Some(110)),
        write(8, 2, 200, Some(210)),
        write(0, 2, 400, Some(410)),
        write(12, 1, 450, None),
    ];
    evidence.primary.add(0, writes);
    // The first was dropped by the checkpoint.
    evidence.guest.add(GUEST, vec![write(16, 2, 100, Some(110)), write(9, 1, 420, Some(430))]);
    for (at, epoch) in [(10, 1), (290, 1), (330, 2), (600, 2), (900, 2)] {
        evidence.epochs.add(Poll { sent: Moment(at), received: Moment(at + 5), epoch }).unwrap();
    }
    let on_primary =
        [(0, by(0, 2)), (1, by(0, 2)), (2, by(0, 0)), (3, by(0, 0)), (8, by(0, 1)), (9, by(0, 1))];
    evidence.primary_disk = scan(510, &on_primary);
    evidence.primary_disk.notes[0].seen[12] = by(0, 3);
    evidence.secondary_disk = Some(scan(520, &on_primary));
    let checkpoint =
        [(0, by(0, 0)), (1, by(0, 0)), (2, by(0, 0)), (3, by(0, 0)), (8, by(0, 1)), (9, by(GUEST, 1))];
    evidence.views = vec![("during", scan(700, &checkpoint)), ("after", scan(800, &checkpoint))];
    evidence.primary_reads = vec![read(420, 0, &[by(0, 2), by(0, 2), by(0, 0)])];
    evidence.guest_reads = vec![
        read(150, 16, &[by(GUEST, 0), by(GUEST, 0)]),
        read(310, 0, &[by(0, 0)]),
        read(310, 16, &[Seen::Initial]),
        read(440, 9, &[by(GUEST, 1)]),
    ];
    evidence
}

fn findings(change: impl FnOnce(&mut Evidence)) -> Vec<String> {
    let mut evidence = right();
    change(&mut evidence);
    verify(&evidence, Layout::new(u64::from(BLOCKS) * BLOCK_BYTES as u64)).findings
}

#[test]
fn a_run_that_was_right_is_not_accused_and_every_byte_is_counted() {
    let verdict = verify(&right(), Layout::new(u64::from(BLOCKS) * BLOCK_BYTES as u64));
    assert_eq!(verdict.findings, Vec::<String>::new());
    assert_eq!(verdict.checked_bytes, (4 * 32 + 8) * 512);
}

#[test]
fn a_wrong_block_is_found_in_every_place() {
    type Change = fn(&mut Evidence);
    let changes: [(&str, Change); 11] = [
        ("primary disk", |evidence| evidence.primary_disk.notes[0].seen[8] = Seen::Initial),
        ("secondary disk", |evidence| {
            evidence.secondary_disk.as_mut().unwrap().notes[0].seen[30] = Seen::Damaged;
        }),
        ("read of the primary's", |evidence| evidence.primary_reads[0].seen[0] = by(0, 0)),
        ("guest view", |evidence| evidence.views[0].1.notes[0].seen[0] = by(0, 2)),
        ("guest view", |evidence| evidence.views[1].1.notes[0].seen[8] = Seen::Initial),
        ("guest view", |evidence| evidence.views[1].1.notes[0].seen[9] = by(0, 1)),
        ("guest view", |evidence| evidence.views[1].1.notes[0].seen[16] = by(GUEST, 0)),
        ("guest view", |evidence| evidence.views[1].1.notes[0].seen[31] = Seen::Foreign),
        ("read of the secondary's", |evidence| evidence.guest_reads[0].seen[1] = Seen::Initial),
        ("read of the secondary's", |evidence| evidence.guest_reads[1].seen[0] = Seen::Damaged),
        ("read of the secondary's", |evidence| evidence.guest_reads[3].seen[0] = by(0, 1)),
    ];
    for (place, change) in changes {
        let found = findings(change);
        assert!(found.iter().any(|finding| finding.contains(place)), "{place}: {found:?}");
    }
}

#[test]
fn what_a_scan_found_elsewhere_counts() {
    let finding = Finding { block: 7, text: "changed".into() };
    let found = findings(|evidence| evidence.views[1].1.findings.push(finding));
    assert_eq!(found, ["after, byte 3584: changed"]);
}

#[test]
fn a_whole_view_of_an_older_checkpoint_is_found() {
    // Internally consistent, but the epoch says that the second checkpoint was committed.
    let found = findings(|evidence| {
        for (_, scan) in &mut evidence.views {
            scan.notes[0].seen = vec![Seen::Initial; BLOCKS as usize];
        }
    });
    assert!(!found.is_empty());
}
