//! Hand-made histories, each with what may be seen and what may not.

use super::*;
use crate::demo::layout::Layout;

const PRIMARY: u16 = 0;
const GUEST: u16 = 8;

const fn at(moment: u64) -> Moment {
    Moment(moment)
}

fn write(first: u64, count: u32, submitted: u64, answered: u64) -> Write {
    Write { first, count, is_zeroes: false, submitted: at(submitted), end: End::Done(at(answered)) }
}

fn zeroes(first: u64, count: u32, submitted: u64, answered: u64) -> Write {
    Write { is_zeroes: true, ..write(first, count, submitted, answered) }
}

fn open(first: u64, count: u32, submitted: u64) -> Write {
    Write { end: End::Open, ..write(first, count, submitted, 0) }
}

const fn version(connection: u16, index: u32) -> Seen {
    Seen::Version(Version { connection, index })
}

/// Writes by connection; connections from `GUEST` on are the guest's.
struct Case {
    primary: Log,
    guest: Log,
    writes_wait: bool,
}

impl Case {
    fn new(connections: &[(u16, &[Write])]) -> Self {
        let mut case = Self { primary: Log::default(), guest: Log::default(), writes_wait: false };
        for (connection, writes) in connections {
            let log = if *connection < GUEST { &mut case.primary } else { &mut case.guest };
            log.add(*connection, writes.to_vec());
        }
        case
    }

    const fn layout() -> Layout {
        Layout::new(4096 * BLOCK_BYTES as u64)
    }

    /// Findings of one read of these blocks, sent at 1000 and answered at 1010.
    fn view(&self, bounds: Bounds, blocks: &[(u64, Seen)]) -> Vec<Finding> {
        let primary = Index::new(&self.primary, Self::layout());
        let guest = Index::new(&self.guest, Self::layout());
        let sides = Sides { primary: &primary, guest: &guest, writes_wait: self.writes_wait };
        let mut check = ViewCheck::new(sides, bounds);
        for (number, seen) in blocks {
            check.add(*number, *seen, at(1000), at(1010));
        }
        check.finish().0
    }

    fn shows(&self, blocks: &[(u64, Seen)]) -> bool {
        self.view(Bounds::ANY, blocks).is_empty()
    }

    fn present(&self, number: u64, seen: Seen, submitted: u64, answered: u64) -> bool {
        let index = Index::new(&self.primary, Self::layout());
        check_present(&index, number, seen, at(submitted), at(answered)).is_none()
    }

    fn picture(&self, blocks: &[(u64, Seen)]) -> Vec<Finding> {
        let mut picture = Picture::new(&self.primary, &self.guest, Self::layout());
        for (number, seen) in blocks {
            picture.set(*number, *seen);
        }
        picture.check()
    }
}

fn checkpoint(begin: (u64, u64), commit: (u64, u64)) -> Bounds {
    Bounds {
        begin_after: at(begin.0),
        begin_until: at(begin.1),
        commit_from: at(commit.0),
        commit_before: at(commit.1),
    }
}

#[test]
fn a_block_shows_one_checkpoint_of_the_primarys_writes() {
    let case = Case::new(&[(PRIMARY, &[write(5, 1, 10, 20), write(5, 1, 30, 40)])]);
    for seen in [Seen::Initial, version(PRIMARY, 0), version(PRIMARY, 1)] {
        assert!(case.shows(&[(5, seen)]), "{seen:?}");
    }
    for seen in
        [Seen::Zero, Seen::Misplaced, Seen::Damaged, Seen::Foreign, version(PRIMARY, 2), version(1, 0)]
    {
        assert!(!case.shows(&[(5, seen)]), "{seen:?}");
    }
    assert!(!case.shows(&[(6, version(PRIMARY, 0))]), "it did not write there");
}

#[test]
fn two_blocks_of_two_checkpoints_are_found() {
    // Block 5 was written and acknowledged before block 6 was.
    let case = Case::new(&[(PRIMARY, &[write(5, 1, 10, 20)]), (1, &[write(6, 1, 30, 40)])]);
    assert!(case.shows(&[(5, version(PRIMARY, 0)), (6, version(1, 0))]));
    assert!(case.shows(&[(5, version(PRIMARY, 0)), (6, Seen::Initial)]));
    assert!(case.shows(&[(5, Seen::Initial), (6, Seen::Initial)]));
    let findings = case.view(Bounds::ANY, &[(5, Seen::Initial), (6, version(1, 0))]);
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert!(findings[0].text.contains("no single checkpoint"));
}

#[test]
fn writes_in_flight_at_the_checkpoint_are_in_or_out() {
    let case = Case::new(&[(PRIMARY, &[write(5, 1, 10, 40)]), (1, &[write(6, 1, 20, 50), open(7, 1, 20)])]);
    for first in [Seen::Initial, version(PRIMARY, 0)] {
        for second in [Seen::Initial, version(1, 0)] {
            for third in [Seen::Initial, version(1, 1)] {
                assert!(case.shows(&[(5, first), (6, second), (7, third)]));
            }
        }
    }
}

#[test]
fn what_is_known_about_the_checkpoint_narrows_what_may_be_seen() {
    let case = Case::new(&[(PRIMARY, &[write(5, 1, 10, 20), write(5, 1, 30, 40), write(5, 1, 50, 60)])]);
    let sees = |bounds, seen| case.view(bounds, &[(5, seen)]).is_empty();
    let between = checkpoint((41, 49), (42, 50));
    assert!(sees(between, version(PRIMARY, 1)));
    assert!(!sees(between, version(PRIMARY, 0)), "a write acknowledged before the checkpoint is missing");
    assert!(!sees(between, version(PRIMARY, 2)), "a write sent after the checkpoint is in it");
    assert!(!sees(between, Seen::Initial));
    let within = checkpoint((35, 39), (42, 50));
    assert!(sees(within, version(PRIMARY, 0)) && sees(within, version(PRIMARY, 1)));
}

#[test]
fn the_order_on_one_connection_holds_while_both_are_in_flight() {
    let case = Case::new(&[(PRIMARY, &[write(5, 1, 10, 50), write(5, 1, 11, 51)])]);
    assert!(!case.view(checkpoint((60, 70), (60, 70)), &[(5, version(PRIMARY, 0))]).len().eq(&0));
    let case = Case::new(&[(PRIMARY, &[write(5, 1, 10, 50)]), (1, &[write(5, 1, 11, 51)])]);
    for seen in [version(PRIMARY, 0), version(1, 0)] {
        assert!(
            case.view(checkpoint((60, 70), (60, 70)), &[(5, seen)]).is_empty(),
            "two connections: any order"
        );
    }
}

#[test]
fn the_guests_own_writes_since_the_checkpoint_are_seen_and_earlier_ones_are_not() {
    let case = Case::new(&[(GUEST, &[write(5, 1, 10, 20), write(6, 1, 100, 110)])]);
    let bounds = checkpoint((40, 50), (40, 50));
    let sees = |blocks: &[(u64, Seen)]| case.view(bounds, blocks).is_empty();
    assert!(sees(&[(5, Seen::Initial), (6, version(GUEST, 1))]));
    assert!(!sees(&[(5, version(GUEST, 0))]), "it was written before the checkpoint");
    assert!(!sees(&[(6, Seen::Initial)]), "it was acknowledged after the checkpoint");
}

#[test]
fn guest_writes_in_flight_at_the_commit_are_in_or_out_but_of_one_commit() {
    let case =
        Case::new(&[(GUEST, &[write(5, 1, 10, 40)]), (9, &[write(6, 1, 20, 50), write(7, 1, 60, 70)])]);
    assert!(case.shows(&[(5, version(GUEST, 0)), (6, Seen::Initial)]));
    assert!(case.shows(&[(5, Seen::Initial), (6, version(9, 0))]));
    // Block 5 says that the commit came before 40, block 7 that it came after 60.
    assert!(!case.shows(&[(5, version(GUEST, 0)), (7, Seen::Initial)]));
}

#[test]
fn a_guest_write_hides_the_primarys_and_the_last_one_counts() {
    let writes = [write(5, 1, 10, 20), write(5, 1, 30, 40)];
    let case = Case::new(&[(PRIMARY, &[write(5, 1, 1, 2)]), (GUEST, &writes)]);
    let bounds = checkpoint((3, 4), (5, 6));
    assert!(case.view(bounds, &[(5, version(GUEST, 1))]).is_empty());
    for seen in [version(GUEST, 0), version(PRIMARY, 0), Seen::Initial] {
        assert!(!case.view(bounds, &[(5, seen)]).is_empty(), "{seen:?}");
    }
}

#[test]
fn the_barrier_comes_before_the_commit() {
    // The primary's write was sent at 100; so the commit was later than 100, and the guest's write from 10 is gone.
    let case = Case::new(&[(PRIMARY, &[write(5, 1, 100, 110)]), (GUEST, &[write(6, 1, 10, 20)])]);
    assert!(case.shows(&[(5, version(PRIMARY, 0)), (6, Seen::Initial)]));
    assert!(!case.shows(&[(5, version(PRIMARY, 0)), (6, version(GUEST, 0))]));
}

#[test]
fn a_write_that_waited_for_the_commit_is_answered_after_it() {
    // Block 6 says that the commit came after 300. Block 5 says that its write was not in the checkpoint.
    let guest = [write(6, 1, 300, 310)];
    let mut case = Case::new(&[(PRIMARY, &[write(5, 1, 10, 20)]), (GUEST, &guest)]);
    assert!(case.shows(&[(5, Seen::Initial), (6, Seen::Initial)]), "a replica that is behind gets it later");
    case.writes_wait = true;
    assert!(!case.shows(&[(5, Seen::Initial), (6, Seen::Initial)]));
    assert!(case.shows(&[(5, Seen::Initial), (6, version(GUEST, 0))]));
}

#[test]
fn answers_that_are_forgotten_ask_for_nothing() {
    let mut case = Case::new(&[(PRIMARY, &[write(5, 1, 10, 20), write(6, 1, 10, 30)])]);
    case.primary.forget_answers_after(at(25));
    assert!(!case.present(5, Seen::Initial, 60, 70));
    assert!(case.present(6, Seen::Initial, 60, 70));
}

#[test]
fn zeroes_are_explained_by_any_write_of_zeroes_that_fits() {
    let case = Case::new(&[
        (PRIMARY, &[write(5, 1, 10, 20), zeroes(5, 1, 30, 40), write(5, 1, 50, 60)]),
        (1, &[write(6, 1, 100, 110)]),
    ]);
    assert!(case.shows(&[(5, Seen::Zero)]));
    assert!(case.shows(&[(5, Seen::ZeroOrInitial)]));
    assert!(case.shows(&[(5, Seen::ZeroOrInitial), (6, Seen::Initial)]));
    // Block 6 puts the checkpoint after 100, when block 5 held data again.
    assert!(!case.shows(&[(5, Seen::ZeroOrInitial), (6, version(1, 0))]));
    assert!(!case.shows(&[(6, Seen::Zero)]), "nobody wrote zeroes there");
}

#[test]
fn a_write_that_was_sent_after_the_read_cannot_be_seen() {
    let case = Case::new(&[(PRIMARY, &[write(5, 1, 2000, 2010)]), (GUEST, &[write(6, 1, 2000, 2010)])]);
    assert!(!case.shows(&[(5, version(PRIMARY, 0))]));
    assert!(!case.shows(&[(6, version(GUEST, 0))]));
}

#[test]
fn a_refused_write_may_be_there_or_not() {
    let refused = Write { end: End::Failed(at(20)), ..write(5, 1, 10, 0) };
    let case = Case::new(&[(GUEST, &[refused])]);
    let bounds = checkpoint((1, 2), (3, 4));
    assert!(case.view(bounds, &[(5, version(GUEST, 0))]).is_empty());
    assert!(case.view(bounds, &[(5, Seen::Initial)]).is_empty());
}

#[test]
fn a_disk_holds_the_last_write_and_every_acknowledged_one() {
    let case = Case::new(&[(PRIMARY, &[write(5, 1, 10, 20), write(5, 1, 30, 40), open(5, 1, 50)])]);
    assert!(case.present(5, version(PRIMARY, 1), 60, 70));
    assert!(case.present(5, version(PRIMARY, 2), 60, 70), "sent and never answered");
    assert!(!case.present(5, version(PRIMARY, 0), 60, 70), "an acknowledged write is lost");
    assert!(!case.present(5, Seen::Initial, 60, 70));
    assert!(case.present(5, version(PRIMARY, 0), 35, 38), "the second may come after the read");
    assert!(!case.present(5, version(PRIMARY, 2), 42, 45), "read before it was sent");
}

#[test]
fn twins_differ_only_where_a_write_was_never_answered() {
    let case = Case::new(&[(PRIMARY, &[write(5, 1, 10, 40)]), (1, &[write(5, 2, 20, 50), open(6, 1, 60)])]);
    let index = Index::new(&case.primary, Case::layout());
    assert_eq!(check_twins(&index, 5, version(1, 0), version(1, 0)), None);
    assert!(
        check_twins(&index, 5, version(1, 0), version(PRIMARY, 0)).is_some(),
        "another order on the other leg"
    );
    assert_eq!(check_twins(&index, 6, version(1, 0), version(1, 1)), None);
}

#[test]
fn a_torn_piece_is_found() {
    let case = Case::new(&[(PRIMARY, &[write(4, 4, 10, 20)])]);
    let whole: Vec<(u64, Seen)> = (4..8).map(|number| (number, version(PRIMARY, 0))).collect();
    assert!(case.picture(&whole).is_empty());
    let mut torn = whole;
    torn[2].1 = Seen::Initial;
    assert_eq!(case.picture(&torn).len(), 1);
}

#[test]
fn pieces_of_one_request_may_part() {
    let case = Case::new(&[(PRIMARY, &[write(510, 4, 10, 20)])]);
    let blocks =
        [(510, version(PRIMARY, 0)), (511, version(PRIMARY, 0)), (512, Seen::Initial), (513, Seen::Initial)];
    assert!(case.picture(&blocks).is_empty());
}

#[test]
fn overlapping_writes_have_one_order_over_all_their_blocks() {
    let case = Case::new(&[(PRIMARY, &[write(4, 4, 10, 40)]), (1, &[write(5, 4, 20, 50)])]);
    let picture = |order: [u16; 5]| {
        let blocks: Vec<_> =
            (4..9).zip(order).map(|(number, connection)| (number, version(connection, 0))).collect();
        case.picture(&blocks).len()
    };
    assert_eq!(picture([0, 0, 0, 0, 1]), 0);
    assert_eq!(picture([0, 1, 1, 1, 1]), 0);
    assert_ne!(picture([0, 0, 1, 1, 1]), 0);
    assert_ne!(picture([0, 1, 0, 0, 1]), 0);
}

#[test]
fn the_guests_writes_hide_the_primarys_and_not_the_other_way_round() {
    let case = Case::new(&[(PRIMARY, &[write(4, 2, 10, 20)]), (GUEST, &[write(5, 2, 30, 40)])]);
    assert!(
        case.picture(&[(4, version(PRIMARY, 0)), (5, version(GUEST, 0)), (6, version(GUEST, 0))]).is_empty()
    );
    assert!(!case.picture(&[(5, version(PRIMARY, 0)), (6, version(GUEST, 0))]).is_empty());
}

#[test]
fn epochs_are_bounded_by_when_they_were_seen() {
    let mut epochs = Epochs::default();
    for (sent, received, epoch) in [(1, 2, 7), (10, 12, 7), (20, 22, 8), (30, 32, 10)] {
        epochs.add(Poll { sent: at(sent), received: at(received), epoch }).unwrap();
    }
    assert!(epochs.add(Poll { sent: at(40), received: at(41), epoch: 9 }).is_err());
    assert_eq!(epochs.passed(), 3);
    assert_eq!(epochs.bounds(7), checkpoint((0, 2), (0, 2)));
    assert_eq!(epochs.bounds(8), checkpoint((0, 22), (10, 22)));
    assert_eq!(epochs.bounds(9), checkpoint((10, 32), (20, 32)));
    assert_eq!(epochs.bounds(10), checkpoint((20, 32), (20, 32)));
    assert_eq!(epochs.candidates(at(3), at(9)), 7..=7);
    assert_eq!(epochs.candidates(at(13), at(15)), 7..=8);
    assert_eq!(epochs.candidates(at(23), at(25)), 8..=10);
    assert_eq!(epochs.candidates(at(40), at(50)), 10..=10);
}

/// A pair that does everything right, with moments only it knows.
struct Ideal {
    case: Case,
    begin: u64,
    commit: u64,
    /// Block, moment at which a write took its place, and whose write it was.
    took_place: Vec<(u64, u64, Version)>,
}

const BLOCKS: u64 = 12;
const READ_AT: u64 = 1000;

impl Ideal {
    fn new(random: &mut crate::demo::random::Random) -> Self {
        let begin = 100 + random.below(600);
        let commit = begin + random.below(100);
        let mut took_place = Vec::new();
        let mut connections = Vec::new();
        for connection in [0, 1, 2, GUEST, GUEST + 1] {
            let mut writes = Vec::new();
            let mut submitted = random.below(30);
            let mut last = 0;
            while submitted < 950 {
                let first = random.below(BLOCKS);
                let count = 1 + random.below(4.min(BLOCKS - first)) as u32;
                let mut place = (submitted + random.below(40)).max(last + 1);
                if connection < GUEST && (begin..=commit).contains(&place) {
                    place = commit + 1;
                }
                let answered = place + random.below(40);
                last = place;
                let version = Version { connection, index: writes.len() as u32 };
                took_place.extend((first..first + u64::from(count)).map(|number| (number, place, version)));
                let is_zeroes = random.percent(10);
                let end = if answered < READ_AT { End::Done(at(answered)) } else { End::Open };
                writes.push(Write { first, count, is_zeroes, submitted: at(submitted), end });
                submitted += random.below(60);
            }
            connections.push((connection, writes));
        }
        let borrowed: Vec<_> =
            connections.iter().map(|(number, writes)| (*number, writes.as_slice())).collect();
        let case = Case { writes_wait: true, ..Case::new(&borrowed) };
        Self { case, begin, commit, took_place }
    }

    fn seen(&self, number: u64) -> Seen {
        let last = |is_guest: bool, from: u64, until: u64| {
            self.took_place
                .iter()
                .filter(|(block, place, version)| {
                    *block == number
                        && (version.connection >= GUEST) == is_guest
                        && (from..until).contains(place)
                })
                .max_by_key(|(_, place, version)| (*place, version.connection))
        };
        let Some((_, _, version)) =
            last(true, self.commit + 1, READ_AT).or_else(|| last(false, 0, self.begin))
        else {
            return Seen::Initial;
        };
        let write = self.case.primary.find(*version).or_else(|| self.case.guest.find(*version)).unwrap();
        if write.is_zeroes { Seen::Zero } else { Seen::Version(*version) }
    }

    fn bounds(&self, slack: u64) -> Bounds {
        checkpoint(
            (self.begin.saturating_sub(slack + 1), self.begin + slack),
            (self.commit.saturating_sub(slack), self.commit + 1 + slack),
        )
    }
}

#[test]
fn a_pair_that_does_everything_right_is_never_accused() {
    for seed in 0..3000 {
        let ideal = Ideal::new(&mut crate::demo::random::Random::new(seed));
        let blocks: Vec<_> = (0..BLOCKS).map(|number| (number, ideal.seen(number))).collect();
        for bounds in [Bounds::ANY, ideal.bounds(50), ideal.bounds(0)] {
            let findings = ideal.case.view(bounds, &blocks);
            assert!(findings.is_empty(), "seed {seed}: {findings:?}");
        }
    }
}

#[test]
fn a_block_of_an_older_checkpoint_is_found_wherever_it_is_planted() {
    let mut planted = 0;
    for seed in 0..3000 {
        let mut random = crate::demo::random::Random::new(seed);
        let ideal = Ideal::new(&mut random);
        let older = Ideal {
            begin: ideal.begin / 2,
            commit: READ_AT,
            ..Ideal::new(&mut crate::demo::random::Random::new(seed))
        };
        let number = random.below(BLOCKS);
        let (right, wrong) = (ideal.seen(number), older.seen(number));
        let bounds = ideal.bounds(0);
        // Certainly wrong is what another write had replaced and been acknowledged before the checkpoint.
        let Seen::Version(version) = wrong else { continue };
        let index = Index::new(&ideal.case.primary, Case::layout());
        let writers = index.writers(number);
        let Some(old) = writers.iter().find(|named| named.version == version) else { continue };
        let is_gone = |later: &Named<'_>| old.is_before(later) && later.write.certain() <= bounds.begin_after;
        if right == wrong || !writers.iter().any(is_gone) {
            continue;
        }
        planted += 1;
        let blocks: Vec<_> = (0..BLOCKS)
            .map(|block| (block, if block == number { wrong } else { ideal.seen(block) }))
            .collect();
        let findings = ideal.case.view(bounds, &blocks);
        assert!(findings.iter().any(|finding| finding.block == number), "seed {seed}, block {number}");
    }
    assert!(planted > 1000, "only {planted} were planted");
}
