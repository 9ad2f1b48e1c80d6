//! Seeded scripts against a model of byte arrays.
//!
//! `TWINBLOCK_SEED=n` runs one seed, `TWINBLOCK_SEEDS=n` the first n; `--nocapture` shows what was met.

use twinblock_tests::simulator::{run_seeds, secondary};

#[test]
fn a_secondary_shows_and_keeps_what_the_model_says() {
    let coverage = run_seeds("a_secondary", 2_000, secondary::run);
    println!("{coverage}");
}
