//! Seeded runs of a machine over disks that reorder, delay, tear and fail, compared after every step with a model of
//! plain byte arrays.
//!
//! A seed decides everything: geometry, capacities, script, faults and the order of completions. A run that fails
//! panics, prints its last steps and says how to see them again.
//!
//! | module | what is there |
//! |---|---|
//! | [`arena`] | the embedder's buffers, poisoned while nobody owns them |
//! | [`disk`] | disks that misbehave and enforce the rules of a queue pair |
//! | [`settings`] | what a seed chooses |
//! | [`model`] | disk and guest view as they should be |
//! | [`secondary`] | scripts for a secondary alone |
//! | [`pair`] | scripts for a primary and its secondary |
//! | [`coverage`] | what the runs have met |
//! | [`trace`] | the last steps of a run |

pub mod arena;
pub mod coverage;
pub mod disk;
pub mod model;
pub mod pair;
pub mod secondary;
pub mod settings;
pub mod trace;

use coverage::Coverage;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs one script. With `is_traced` every step is printed to stderr.
pub type Run = fn(seed: u64, is_traced: bool) -> Coverage;

/// Runs the seeds `0..count` of a script, or only the one in `TWINBLOCK_SEED`; `TWINBLOCK_SEEDS` overrides the count, and
/// `TWINBLOCK_ALL=1` goes on after a failure. A seed that fails is run again with its steps printed. `program` and `test`
/// are what has to be run to replay it.
///
/// # Panics
/// If a seed fails; the message says how to replay it.
pub fn run_seeds(program: &str, test: &str, count: u64, run: Run) -> Coverage {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("TWINBLOCK_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("TWINBLOCK_SEEDS").unwrap_or(count),
    };
    let goes_on = number("TWINBLOCK_ALL").is_some();
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let work = |thread: u64| {
        let mut coverage = Coverage::default();
        for seed in seeds.clone().filter(|seed| seed % threads == thread) {
            match catch_unwind(AssertUnwindSafe(|| run(seed, false))) {
                Ok(met) => coverage.merge(&met),
                Err(_) if goes_on => eprintln!("seed {seed} failed"),
                Err(_) => return Err(seed),
            }
        }
        Ok(coverage)
    };
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|thread| scope.spawn(move || work(thread))).collect();
        handles.into_iter().map(|handle| handle.join().expect("runs are caught")).collect()
    });
    let mut coverage = Coverage::default();
    for outcome in outcomes {
        match outcome {
            Ok(met) => coverage.merge(&met),
            Err(seed) => replay(program, test, seed, run),
        }
    }
    coverage
}

/// Runs a seed that failed once more and prints its last steps.
fn replay(program: &str, test: &str, seed: u64, run: Run) -> ! {
    trace::clear();
    let outcome = catch_unwind(AssertUnwindSafe(|| run(seed, true)));
    for line in trace::take() {
        eprintln!("  {line}");
    }
    let verdict = if outcome.is_err() { "failed twice" } else { "failed once and then passed" };
    panic!(
        "seed {seed} {verdict}; replay: TWINBLOCK_SEED={seed} cargo test -p twinblock-tests --test {program} {test} \
         -- --nocapture"
    );
}
