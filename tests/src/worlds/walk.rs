//! The walker.
//!
//! Depth first: a machine borrows its memory, so that each level of the recursion has memory of its own into which the
//! state above is copied. When a check fails, the space is walked again with a growing limit until the shortest path is
//! found, and that path is played once more with every step told.

use foldhash::fast::{FixedState, RandomState};
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// Levels of the recursion, at most.
const DEPTH_MAX: usize = 250;
/// What a level may take of the stack.
const STACK_BYTES: usize = DEPTH_MAX * 64 * 1024;
/// How long a shorter path to a failure is looked for.
const SHORTENING_MAX: Duration = Duration::from_secs(60);

/// Name of the threads that walk.
const THREAD: &str = "walk";

/// A space of states.
pub trait World: Sync {
    /// What a state borrows.
    type Memory;
    /// A state.
    type State<'m>;
    /// What can happen in a state.
    type Step: Copy;

    /// Its name, for messages.
    fn name(&self) -> &str;
    /// Memory for one state.
    fn memory(&self) -> Self::Memory;
    /// Gives the first state.
    fn start<R>(&self, memory: &mut Self::Memory, go_on: impl FnOnce(&mut Self::State<'_>) -> R) -> R;
    /// Gives a copy of a state.
    fn fork<R>(
        &self,
        state: &Self::State<'_>,
        memory: &mut Self::Memory,
        go_on: impl FnOnce(&mut Self::State<'_>) -> R,
    ) -> R;
    /// Everything that can happen now.
    fn steps(&self, state: &Self::State<'_>) -> Vec<Self::Step>;
    /// Lets a step happen, and checks.
    fn take(&self, state: &mut Self::State<'_>, step: Self::Step);
    /// Equal for states that go on alike.
    fn hash(&self, state: &Self::State<'_>, hasher: &FixedState) -> u64;
    /// Whether a step comes by itself if only one waits: a completion, a time-out.
    fn is_inevitable(&self, step: Self::Step) -> bool;
    /// Checks a state in which nothing more happens by itself.
    fn check_rest(&self, state: &Self::State<'_>);
    /// A step in words.
    fn describe(&self, state: &Self::State<'_>, step: Self::Step) -> String;
}

/// What a walk has seen.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Different states.
    pub states: u64,
    /// Steps from one state to another, or to the same.
    pub transitions: u64,
    /// States in which nothing more happens by itself.
    pub rests: u64,
    /// Steps of the longest path that was taken.
    pub deepest: usize,
    /// How long it took.
    pub took: Duration,
}

thread_local! {
    static LINES: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Adds a line to what is told of a path, if one is told.
pub fn note(line: impl FnOnce() -> String) {
    LINES.with_borrow_mut(|lines| {
        if let Some(lines) = lines {
            lines.push(line());
        }
    });
}

struct Walk {
    report: Report,
    hasher: FixedState,
    seen: HashSet<u64, RandomState>,
    /// Instead of `seen`, while a shortest path is looked for: how many steps could be taken from a state.
    left_at: HashMap<u64, usize, RandomState>,
    /// Steps of a path at most.
    limit: usize,
    is_shortening: bool,
    give_up_at: Option<Instant>,
    /// From the first state to this one: which of the steps that were possible.
    path: Vec<u16>,
    /// The states on the way.
    on_path: Vec<u64>,
}

impl Walk {
    fn new(limit: usize, is_shortening: bool) -> Self {
        Self {
            report: Report::default(),
            hasher: FixedState::default(),
            seen: HashSet::default(),
            left_at: HashMap::default(),
            limit,
            is_shortening,
            give_up_at: None,
            path: Vec::new(),
            on_path: Vec::new(),
        }
    }

    /// Whether to go on from a state.
    fn is_new(&mut self, hash: u64) -> bool {
        if !self.is_shortening {
            return self.seen.insert(hash);
        }
        let left = self.limit - self.path.len();
        let known = self.left_at.entry(hash).or_insert(0);
        left > core::mem::replace(known, left.max(*known))
    }

    fn begin<W: World>(&mut self, world: &W, pool: &mut [W::Memory]) {
        let (mine, rest) = pool.split_first_mut().expect("there is memory for one state");
        world.start(mine, |state| {
            let hash = world.hash(state, &self.hasher);
            self.is_new(hash);
            self.report.states = 1;
            self.explore(world, state, hash, rest);
        });
    }

    fn explore<W: World>(&mut self, world: &W, state: &W::State<'_>, hash: u64, pool: &mut [W::Memory]) {
        self.report.deepest = self.report.deepest.max(self.path.len());
        if self.path.len() == self.limit || self.give_up_at.is_some_and(|at| at < Instant::now()) {
            return;
        }
        let (mine, rest) = pool.split_first_mut().expect("no path is that long");
        self.on_path.push(hash);
        let mut goes_on = false;
        for (nth, step) in world.steps(state).into_iter().enumerate() {
            self.path.push(u16::try_from(nth).expect("few steps"));
            self.report.transitions += 1;
            world.fork(state, mine, |next| {
                world.take(next, step);
                let next_hash = world.hash(next, &self.hasher);
                goes_on |= next_hash != hash && world.is_inevitable(step);
                if self.is_new(next_hash) {
                    self.report.states += 1;
                    self.explore(world, next, next_hash, rest);
                } else if next_hash != hash {
                    assert!(!self.on_path.contains(&next_hash), "it goes round in circles");
                }
            });
            self.path.pop();
        }
        if !goes_on {
            self.report.rests += 1;
            world.check_rest(state);
        }
        self.on_path.pop();
    }
}

/// Walks through a world.
///
/// # Errors
/// What has failed, with the shortest path that leads to it.
pub fn walk<W: World>(world: &W) -> Result<Report, String> {
    on_large_stack(|| {
        let mut pool: Vec<_> = (0..DEPTH_MAX).map(|_| world.memory()).collect();
        let began = Instant::now();
        let mut all = Walk::new(usize::MAX, false);
        match catch_unwind(AssertUnwindSafe(|| all.begin(world, &mut pool))) {
            Ok(()) => Ok(Report { took: began.elapsed(), ..all.report }),
            Err(_) => Err(failure(world, &shortened(world, &all.path, &mut pool), &mut pool)),
        }
    })
}

/// A failed check of a walk is told with its path, once.
fn silence_walks() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let tell = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if std::thread::current().name() != Some(THREAD) {
                tell(panic);
            }
        }));
    });
}

fn on_large_stack<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    silence_walks();
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(THREAD.into()).stack_size(STACK_BYTES);
        let thread = thread.spawn_scoped(scope, work);
        thread.expect("a thread").join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The shortest path to a failure, no longer than this one, which leads to one.
fn shortened<W: World>(world: &W, path: &[u16], pool: &mut [W::Memory]) -> Vec<u16> {
    let give_up_at = Instant::now() + SHORTENING_MAX;
    for limit in 1..path.len() {
        let mut walk = Walk::new(limit, true);
        walk.give_up_at = Some(give_up_at);
        if catch_unwind(AssertUnwindSafe(|| walk.begin(world, pool))).is_err() {
            return walk.path;
        }
        if Instant::now() > give_up_at {
            break;
        }
    }
    path.to_vec()
}

/// Plays a path, and tells what happens on it and whether it fails.
///
/// # Errors
/// The same, if it fails.
pub fn replay<W: World>(world: &W, path: &[u16]) -> Result<String, String> {
    on_large_stack(|| {
        let mut pool: Vec<_> = (0..=path.len()).map(|_| world.memory()).collect();
        let (is_failing, lines) = play(world, path, &mut pool);
        if is_failing { Err(lines) } else { Ok(lines) }
    })
}

fn play<W: World>(world: &W, path: &[u16], pool: &mut [W::Memory]) -> (bool, String) {
    LINES.set(Some(Vec::new()));
    let (mine, _) = pool.split_first_mut().expect("there is memory for one state");
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        world.start(mine, |state| {
            for nth in path {
                let step = world.steps(state)[usize::from(*nth)];
                note(|| world.describe(state, step));
                world.take(state, step);
            }
            if !world.steps(state).into_iter().any(|step| world.is_inevitable(step)) {
                note(|| "nothing more happens by itself".into());
                world.check_rest(state);
            }
        });
    }));
    let lines = LINES.take().unwrap_or_default();
    let reason = outcome.err().map(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    });
    let mut text = String::new();
    for line in lines.iter().chain(reason.iter()) {
        text.push_str("  ");
        text.push_str(line);
        text.push('\n');
    }
    (reason.is_some(), text)
}

fn failure<W: World>(world: &W, path: &[u16], pool: &mut [W::Memory]) -> String {
    let (_, lines) = play(world, path, pool);
    let name = world.name();
    let numbers: Vec<_> = path.iter().map(u16::to_string).collect();
    format!(
        "{name} fails after {} steps:\n{lines}  replay: TWINBLOCK_WORLD={name} TWINBLOCK_PATH={} cargo test -p \
         twinblock-tests --test worlds -- --nocapture",
        path.len(),
        numbers.join(","),
    )
}

/// The hash of anything.
pub fn hash_of(hasher: &FixedState, value: impl core::hash::Hash) -> u64 {
    hasher.hash_one(value)
}
