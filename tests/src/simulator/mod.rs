//! Seeded runs of machines over disks that reorder, delay, tear and fail and links that are late, cut and come back,
//! compared after every step with a model of plain byte arrays.
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
//! | [`pair`] | scripts for a primary with its secondaries, and for several volumes |
//! | [`coverage`] | what the runs have met |
//! | [`impossible`] | what they cannot meet |
//! | [`trace`] | the last steps of a run |

pub mod arena;
pub mod coverage;
pub mod disk;
pub mod impossible;
pub mod model;
pub mod pair;
pub mod secondary;
pub mod settings;
pub mod trace;

use coverage::Coverage;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How many seeds a whole run has: so many meet every cell of the coverage table.
pub const SEEDS_WHOLE: u64 = 20_000;
/// Seeds that failed once, one a line, each with its world; `#` begins a comment.
const KEPT: &str = include_str!("../../seeds.txt");

/// What is simulated: its name, and how the script of a seed is run.
#[derive(Clone, Copy, Debug)]
struct World {
    name: &'static str,
    run: fn(seed: u64, is_traced: bool) -> Coverage,
}

const WORLDS: [World; 4] = [
    World { name: "secondary", run: secondary::run },
    World { name: "pair", run: pair::script::run_pair },
    World { name: "trio", run: pair::script::run_trio },
    World { name: "volumes", run: pair::script::run_volumes },
];

/// A seed and the world that it is for; written `world:number`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed {
    world: usize,
    number: u64,
}

impl Seed {
    /// A seed in the world whose turn it is.
    #[must_use]
    pub const fn of(number: u64) -> Self {
        Self { world: (number % WORLDS.len() as u64) as usize, number }
    }

    /// Runs its script. With `is_traced` every step is told to the trace.
    ///
    /// # Panics
    /// If a machine breaks a rule.
    #[must_use]
    pub fn run(self, is_traced: bool) -> Coverage {
        (WORLDS[self.world].run)(self.number, is_traced)
    }

    /// Runs its script and catches its panic.
    ///
    /// # Errors
    /// What the panic said.
    pub fn attempt(self) -> Result<Coverage, String> {
        catch_unwind(AssertUnwindSafe(|| self.run(false))).map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
        })
    }

    /// Runs a seed that failed once more and prints its last steps.
    fn replay(self) -> ! {
        trace::clear();
        let outcome = catch_unwind(AssertUnwindSafe(|| self.run(true)));
        for line in trace::take() {
            eprintln!("  {line}");
        }
        let verdict = if outcome.is_err() { "failed twice" } else { "failed once and then passed" };
        panic!("seed {self} {verdict}; replay: {}", self.how_to_replay());
    }

    /// The command that runs this seed alone.
    #[must_use]
    pub fn how_to_replay(self) -> String {
        format!("TWINBLOCK_SEED={self} cargo test -p twinblock-tests --test simulator -- --nocapture")
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", WORLDS[self.world].name, self.number)
    }
}

impl FromStr for Seed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is no seed: write world:number, or a number");
        let Some((name, number)) = text.split_once(':') else {
            return text.parse().map(Self::of).map_err(|_| wrong());
        };
        let world = WORLDS.iter().position(|world| world.name == name).ok_or_else(wrong)?;
        Ok(Self { world, number: number.parse().map_err(|_| wrong())? })
    }
}

/// Seeds that failed once.
///
/// # Panics
/// If the list cannot be read.
#[must_use]
pub fn kept_seeds() -> Vec<Seed> {
    let lines = KEPT.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines
        .filter(|line| !line.is_empty())
        .map(|line| line.parse().expect("a line of tests/seeds.txt"))
        .collect()
}

/// Runs seeds on all processors and puts together what they have met. With `goes_on` a failure is told and the others are
/// run nevertheless.
///
/// # Panics
/// If a seed fails; the message says how to replay it.
pub fn run_seeds(seeds: &(impl Fn(u64) -> Seed + Sync), count: u64, goes_on: bool) -> Coverage {
    let (next, has_failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let (whole, failures) = (Mutex::new(Coverage::default()), Mutex::new(Vec::new()));
    let work = || {
        let mut coverage = Coverage::default();
        while !has_failed.load(Ordering::Relaxed) || goes_on {
            let place = next.fetch_add(1, Ordering::Relaxed);
            if place >= count {
                break;
            }
            match seeds(place).attempt() {
                Ok(met) => coverage.merge(&met),
                Err(text) => {
                    has_failed.store(true, Ordering::Relaxed);
                    eprintln!("seed {} failed: {text}", seeds(place));
                    failures.lock().expect("nobody panics with it").push(seeds(place));
                }
            }
        }
        whole.lock().expect("nobody panics with it").merge(&coverage);
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let failures = failures.into_inner().expect("nobody panics with it");
    if let Some(first) = failures.first() {
        eprintln!("{} of {count} seeds failed", failures.len());
        if goes_on {
            eprintln!("the others: {}", whole.lock().expect("nobody panics with it"));
        }
        first.replay();
    }
    whole.into_inner().expect("nobody panics with it")
}
