//! What a disk may hold that is read while, or after, it is written: the last write to each block, for every order of
//! the writes that is possible.

use super::{Finding, Index, Maker, Named, Seen, described, makers};
use crate::demo::block::Version;
use crate::demo::clock::Moment;

/// Checks one block that was read between two moments. A block may show a write that was sent before the read was
/// answered, and that no other write had replaced for certain before the read was sent.
pub(crate) fn check_present(
    index: &Index<'_>,
    number: u64,
    seen: Seen,
    submitted: Moment,
    answered: Moment,
) -> Option<Finding> {
    let writers = index.writers(number);
    let replaced_by = |maker: &Maker<'_>| {
        writers
            .iter()
            .find(|later| later.write.certain() < submitted && maker.is_before(later))
            .map(|later| later.version)
    };
    let mut reason = "nobody wrote that here".to_string();
    for maker in makers(&writers, seen) {
        if let Maker::Write(named) = maker
            && named.write.submitted >= answered
        {
            reason = "which was sent only after the read".into();
            continue;
        }
        match replaced_by(&maker) {
            None => return None,
            Some(Version { connection, index }) => {
                reason = format!("which write {connection}.{index} had replaced and was acknowledged");
            }
        }
    }
    Some(Finding { block: number, text: format!("shows {}: {reason}", described(seen)) })
}

/// Checks that two disks that took the same writes hold the same in one block. They may differ only where a write was
/// never answered: overlapping writes have the same order on every leg.
pub(crate) fn check_twins(index: &Index<'_>, number: u64, first: Seen, second: Seen) -> Option<Finding> {
    if first == second {
        return None;
    }
    let is_open = |named: &Named<'_>| named.write.certain() == Moment::NEVER;
    if index.writers(number).iter().any(is_open) {
        return None;
    }
    let text = format!("the twins differ: {} and {}", described(first), described(second));
    Some(Finding { block: number, text })
}
