//! Asks the secondary for its status again and again, from a thread of its own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::clock::Clock;
use super::history::{Epochs, Poll};
use crate::commands::{self, Qmp};

/// Time between two questions.
const EVERY: Duration = Duration::from_millis(10);

/// What was seen so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// When which epoch was seen.
    pub(crate) epochs: Epochs,
    /// The last stage.
    pub(crate) stage: String,
    /// When the last stage was first seen.
    pub(crate) since: Option<Instant>,
    /// The secondary said that it misses something.
    pub(crate) is_behind: bool,
    /// The view was broken at some time.
    pub(crate) has_broken: bool,
    /// Most that the disk buffer held.
    pub(crate) buffer_bytes_max: u64,
    /// Most writes that were held for want of room.
    pub(crate) held_max: u64,
    /// What the commit had to do.
    pub(crate) commit_bytes: u64,
    /// What went wrong.
    pub(crate) trouble: Option<String>,
}

#[derive(Debug, Default)]
struct Shared {
    seen: Mutex<Seen>,
    must_stop: AtomicBool,
}

/// The thread that asks; it ends with this value.
#[derive(Debug)]
pub(crate) struct Watcher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Asks once, so that there is an answer from before whatever comes next; then goes on in a thread.
    pub(crate) fn start(mut qmp: Qmp, clock: Clock) -> Self {
        let shared = Arc::new(Shared::default());
        let watched = Arc::clone(&shared);
        watched.ask(&mut qmp, clock);
        let thread = thread::spawn(move || {
            while !watched.must_stop.load(Ordering::Relaxed) {
                thread::sleep(EVERY);
                if !watched.ask(&mut qmp, clock) {
                    return;
                }
            }
        });
        Self { shared, thread: Some(thread) }
    }

    /// What was seen so far.
    pub(crate) fn seen(&self) -> Seen {
        self.shared.lock().clone()
    }

    /// How many epochs ended so far.
    pub(crate) fn epochs_passed(&self) -> u64 {
        self.shared.lock().epochs.passed()
    }

    /// The stage and the trouble so far, if any.
    pub(crate) fn stage(&self) -> (String, Option<String>) {
        let seen = self.shared.lock();
        (seen.stage.clone(), seen.trouble.clone())
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.must_stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has nothing to give back.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks once. Whether it makes sense to go on.
    fn ask(&self, qmp: &mut Qmp, clock: Clock) -> bool {
        let sent = clock.now();
        let status = commands::query(qmp);
        let received = clock.now();
        let mut seen = self.lock();
        let volume = match status.as_ref().map(|status| status.volumes.first()) {
            Ok(Some(volume)) => volume,
            Ok(None) => {
                seen.trouble = Some("the secondary has no volume".into());
                return false;
            }
            Err(failure) => {
                seen.trouble = Some(format!("the secondary's status: {failure}"));
                return false;
            }
        };
        if let Err(poll) = seen.epochs.add(Poll { sent, received, epoch: volume.epoch }) {
            seen.trouble = Some(format!("the secondary's epoch went back to {}", poll.epoch));
            return false;
        }
        if seen.stage != volume.stage {
            seen.stage.clone_from(&volume.stage);
            seen.since = Some(Instant::now());
        }
        seen.is_behind |= volume.behind && volume.stage == "running";
        if let Some(buffer) = &volume.buffer {
            seen.has_broken |= buffer.view != "whole";
            seen.buffer_bytes_max = seen.buffer_bytes_max.max(buffer.used_bytes);
            seen.held_max = seen.held_max.max(buffer.held);
        }
        if let Some(commit) = &volume.commit {
            seen.commit_bytes = commit.total_bytes;
        }
        true
    }
}
