//! Seeded scripts against a model of byte arrays.
//!
//! `TWINBLOCK_SEED=world:n` runs one seed; `TWINBLOCK_FIRST=n` begins with another one than 0, `TWINBLOCK_SEEDS=n` runs so
//! many, `TWINBLOCK_ALL=1` goes on after a failure; `--nocapture` shows what was met.

use twinblock_tests::simulator::{SEEDS_WHOLE, Seed, kept_seeds, run_seeds};

/// Seeds that are run if nothing else is said: the rest is for `tests/run sim`.
const SEEDS: u64 = 2_000;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}: '{text}' is no number")))
}

#[test]
fn nothing_that_was_answered_is_lost_and_nobody_sees_anything_but_a_checkpoint() {
    let goes_on = number("TWINBLOCK_ALL").is_some();
    if let Ok(text) = std::env::var("TWINBLOCK_SEED") {
        let seed: Seed = text.parse().expect("world:number");
        println!("{}", run_seeds(&|_| seed, 1, goes_on));
        return;
    }
    let first = number("TWINBLOCK_FIRST").unwrap_or(0);
    let count = number("TWINBLOCK_SEEDS").unwrap_or(SEEDS);
    let began = std::time::Instant::now();
    let coverage = run_seeds(&|place| Seed::of(first.wrapping_add(place)), count, goes_on);
    let seconds = began.elapsed().as_secs_f64();
    println!("{coverage}");
    let verdict = coverage.verdict();
    println!("{count} seeds from {first} in {seconds:.0} s, {:.0} a second", count as f64 / seconds);
    println!("{verdict}");
    if count >= SEEDS_WHOLE {
        assert!(verdict.wrong.is_empty(), "the coverage table:\n  {}", verdict.wrong.join("\n  "));
    }
}

#[test]
fn seeds_that_failed_once_pass() {
    let kept = kept_seeds();
    run_seeds(&|place| kept[place as usize], kept.len() as u64, false);
}
