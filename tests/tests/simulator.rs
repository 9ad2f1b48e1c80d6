//! Seeded scripts against a model of byte arrays.
//!
//! `TWINBLOCK_SEED=n` runs one seed, `TWINBLOCK_SEEDS=n` the first n; `--nocapture` shows what was met.

use twinblock_core::Stage;
use twinblock_tests::simulator::pair::{self, Ending, Plan};
use twinblock_tests::simulator::{coverage::Coverage, run_seeds, secondary};

#[test]
fn a_secondary_shows_and_keeps_what_the_model_says() {
    let coverage = run_seeds("simulator", "a_secondary", 2_000, secondary::run);
    println!("{coverage}");
}

#[test]
fn a_pair_whose_links_and_devices_fail_never_shows_anything_but_a_checkpoint() {
    let run = |seed, is_traced| {
        let plan =
            Plan { seed, steps_max: u64::MAX, ending: Ending::Any, has_faults: seed % 2 == 0, is_traced };
        pair::run(plan).1
    };
    let coverage = run_seeds("simulator", "a_pair", 2_000, run);
    println!("{coverage}");
}

/// Runs of fixed scripts, each until the primary has died once after every step.
fn cut_at_every_step(script: u64, is_traced: bool) -> Coverage {
    let mut coverage = Coverage::default();
    for ending in [Ending::Failover, Ending::Stop] {
        let plan =
            |steps_max| Plan { seed: script + 1_000_000, steps_max, ending, has_faults: false, is_traced };
        let (steps, _) = pair::run(plan(u64::MAX));
        for steps_max in 0..=steps {
            coverage.merge(&pair::run(plan(steps_max)).1);
        }
    }
    coverage
}

#[test]
fn cut_at_every_step_a_failover_gives_the_last_checkpoint_and_a_stop_what_was_acknowledged() {
    let coverage = run_seeds("simulator", "cut_at_every_step", 12, cut_at_every_step);
    println!("{coverage}");
    assert!(coverage.met("take over", Stage::Running, "failover") > 1_000);
    assert!(coverage.met("take over", Stage::Running, "stop") > 1_000);
}
