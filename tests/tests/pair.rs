//! Seeded runs of a primary with its secondaries.
//!
//! `TWINBLOCK_SEED=n` runs one seed, `TWINBLOCK_SEEDS=n` the first n; `--nocapture` shows what was met.

use twinblock_tests::pair::random;
use twinblock_tests::simulator::run_seeds;

#[test]
fn a_pair_loses_nothing_that_was_answered_and_never_takes_a_checkpoint_with_a_hole() {
    let coverage = run_seeds("pair", "a_pair", 2_000, random::run);
    println!("{coverage}");
}
