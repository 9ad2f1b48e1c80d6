//! Small worlds: a machine, its disks and its clients, so small that every order of what can happen is walked through.
//!
//! Where the simulator draws from a large space, here a small one is left with no gap: in each state every input that
//! the world knows is offered, every transfer in flight completes or fails, and every time-out comes; and in each state
//! every invariant of the machine is checked.
//!
//! What is *not* told apart, and why nothing is lost by it:
//! * A transfer takes effect when it completes. No machine has two transfers in flight that touch the same bytes unless
//!   both only read (the disks check it), so that nobody can see when between start and end it happened.
//! * A transfer that fails has had no effect or its whole effect. Bytes are independent of each other for a machine, so
//!   that a torn write is the one for some bytes and the other for the rest.
//! * A block of the disk is one symbol, the name of the request that wrote it: machines do not look at data.
//! * Generations of tags and the order of free places are not part of a state (`inspect` in the core).
//! * Time passes only when a machine has asked to be woken, and then up to that moment.
//! * States are told apart by a hash of 64 bits. Two of ten million collide with a probability of 1 in 300,000.
//!
//! | module | what is there |
//! |---|---|
//! | [`walk`] | the walker: depth first, shortest path to a failure, replay |
//! | [`disk`] | disks of a few blocks, and the embedder's buffers |
//! | [`pair`] | a primary, its secondary and the coordinator of their checkpoints |
//! | [`primary`] | a primary with its replicas, guest and manager |
//! | [`secondary`] | a secondary with its primary, rival, guest and manager |

use std::io::Write as _;

pub mod disk;
pub mod pair;
pub mod primary;
pub mod secondary;
pub mod walk;

use walk::{Report, World};

/// Whether a large run was asked for, by `TWINBLOCK_WORLDS=large`.
#[must_use]
pub fn is_large() -> bool {
    std::env::var_os("TWINBLOCK_WORLDS").is_some_and(|size| size == "large")
}

/// Walks through a world and prints what was seen, past the capture of a test's output. `TWINBLOCK_WORLD` names the only
/// one to walk through; with `TWINBLOCK_PATH` that path is played instead, and told.
///
/// # Panics
/// If a check fails, or if there are fewer than `states_min` states.
pub fn run<W: World>(world: &W, states_min: u64) -> Option<Report> {
    if std::env::var("TWINBLOCK_WORLD").is_ok_and(|only| only != world.name()) {
        return None;
    }
    if let Ok(path) = std::env::var("TWINBLOCK_PATH") {
        let path: Vec<_> = path.split(',').map(|nth| nth.parse().expect("a number")).collect();
        match walk::replay(world, &path) {
            Ok(lines) => println!("{lines}"),
            Err(lines) => panic!("{}:\n{lines}", world.name()),
        }
        return None;
    }
    let report = walk::walk(world).unwrap_or_else(|failure| panic!("{failure}"));
    let Report { states, transitions, rests, deepest, took } = &report;
    let line = format!(
        "world {:<12} {states:>10} states {transitions:>11} transitions {rests:>9} rests, {deepest:>3} steps at most, \
         {:>6.1} s\n",
        world.name(),
        took.as_secs_f64()
    );
    let _ = std::io::stderr().write_all(line.as_bytes());
    assert!(*states >= states_min, "{}: {states} states are less than {states_min}", world.name());
    Some(report)
}
