//! Which request comes next: follows from the seed.

use crate::demo::layout::Layout;
use crate::demo::random::Random;

/// Blocks of the part of each area where a quarter of all requests go, so that they overlap in flight.
const HOT_BLOCKS: u64 = 2048;
/// Longest request, in blocks: 1 MiB, several windows.
pub(crate) const REQUEST_BLOCKS_MAX: u64 = 2048;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Read, and look at what comes.
    Read,
    /// Write stamped blocks.
    Write {
        /// Durable before it is answered.
        fua: bool,
    },
    /// Write zeroes.
    Zeroes {
        /// They may not become a hole.
        no_hole: bool,
    },
    /// Trim.
    Trim,
    /// Flush.
    Flush,
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// What it does.
    pub(crate) action: Action,
    /// First block.
    pub(crate) first: u64,
    /// How many blocks; none for a flush.
    pub(crate) count: u64,
}

/// Chooses requests: most of a few KiB, some longer than a window, few of them aligned to a granule.
#[derive(Debug)]
pub(crate) struct Chooser {
    random: Random,
    layout: Layout,
    reads_percent: u64,
}

impl Chooser {
    /// The layout must not be empty.
    pub(crate) const fn new(seed: u64, layout: Layout, reads_percent: u64) -> Self {
        Self { random: Random::new(seed), layout, reads_percent }
    }

    /// The next request.
    pub(crate) fn next(&mut self) -> Choice {
        let random = &mut self.random;
        let longest = match random.below(100) {
            0..60 => 16,
            60..90 => 128,
            90..99 => 512,
            _ => REQUEST_BLOCKS_MAX,
        };
        let area = self.layout.area_first(random.below(self.layout.areas()));
        let mut room = self.layout.area_blocks();
        if random.percent(25) {
            room = room.min(HOT_BLOCKS);
        }
        let count = 1 + random.below(longest.min(room));
        let mut first = random.below(room - count + 1);
        if random.percent(30) {
            first &= !7;
        }
        let first = area + first;
        if random.percent(self.reads_percent) {
            return Choice { action: Action::Read, first, count };
        }
        let action = match random.below(100) {
            0..90 => Action::Write { fua: false },
            90..92 => Action::Write { fua: true },
            92..95 => Action::Zeroes { no_hole: random.percent(50) },
            95..98 => Action::Trim,
            _ => return Choice { action: Action::Flush, first: 0, count: 0 },
        };
        Choice { action, first, count }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_follow_from_the_seed_and_stay_in_the_areas() {
        for size in [512, 4096, 1 << 20, 10 << 30] {
            let layout = Layout::new(size);
            let mut chooser = Chooser::new(7, layout, 20);
            let mut again = Chooser::new(7, layout, 20);
            for _ in 0..5000 {
                let choice = chooser.next();
                assert_eq!(choice, again.next());
                assert!(choice.count <= REQUEST_BLOCKS_MAX);
                if choice.action != Action::Flush {
                    let (first, last) = (choice.first, choice.first + choice.count - 1);
                    let places = layout.place(first).zip(layout.place(last));
                    assert!(places.is_some_and(|(from, to)| to - from == last - first), "{choice:?}");
                }
            }
        }
    }

    #[test]
    fn every_action_occurs_and_most_are_writes() {
        let mut chooser = Chooser::new(1, Layout::new(1 << 30), 15);
        let choices: Vec<Choice> = (0..10_000).map(|_| chooser.next()).collect();
        let count =
            |wanted: fn(&Action) -> bool| choices.iter().filter(|choice| wanted(&choice.action)).count();
        assert!(count(|action| matches!(action, Action::Write { .. })) > 7000);
        for action in [
            Action::Read,
            Action::Write { fua: true },
            Action::Zeroes { no_hole: true },
            Action::Trim,
            Action::Flush,
        ] {
            assert!(choices.iter().any(|choice| choice.action == action), "{action:?}");
        }
        assert!(
            choices.iter().any(|choice| choice.count > 512)
                && choices.iter().any(|choice| choice.first % 8 != 0)
        );
    }
}
