//! The fixed set of helper threads that run file operations which may block.
//!
//! All disks share it, and buffers in memory. Jobs are of three classes, and each class may occupy only so many threads that one of a better
//! class always finds one: a flush that takes seconds keeps neither writes nor reads from going on, and writes that
//! wait for it keep no read from going on. Nothing is allocated per job.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use crate::disk::{Job, Queue as DiskQueue, Queues};
use crate::poller::Waker;
use crate::raw::Part;

/// How many helper threads are enough for one daemon: one stays free for reads, one for reads and writes, two may
/// flush.
pub const HELPERS: usize = 4;
/// How many jobs can wait. More: a disk says that its queue is full and the transfer waits.
const JOBS_MAX: usize = 4096;
/// A helper calls a few functions deep, no more.
const STACK_BYTES: usize = 256 << 10;

/// What a job may keep waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Reads and questions.
    Read = 0,
    /// Writes that are not forced to the disk.
    Write = 1,
    /// Flushes, forced writes and changes of allocation.
    Slow = 2,
}

/// Why a job was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotTaken {
    /// Too many wait; offer it again later.
    Full,
    /// The helpers end.
    Ending,
}

const CLASSES: [Class; 3] = [Class::Read, Class::Write, Class::Slow];

/// The helper threads. Dropped, they finish what was given to them first.
#[derive(Debug)]
pub struct Workers {
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
    /// Where disks have most of their work done, if that is elsewhere.
    queues: Option<Box<dyn Queues>>,
}

impl Workers {
    /// Starts `count` threads (at least one; [`HELPERS`] is a good number). They ring `waker` when something is done.
    ///
    /// # Errors
    /// The system refuses another thread.
    pub fn start(count: usize, waker: &Waker) -> io::Result<Self> {
        let count = count.max(1);
        let state = State {
            waiting: CLASSES.map(|_| VecDeque::with_capacity(JOBS_MAX)),
            waiting_count: 0,
            running: [0; 3],
            idle: 0,
            called: 0,
            is_ending: false,
        };
        let queue = Arc::new(Queue {
            state: Mutex::new(state),
            more: Condvar::new(),
            limits: Limits::of(count),
            waker: waker.clone(),
        });
        let mut workers = Self { queue, threads: Vec::with_capacity(count), queues: None };
        for index in 0..count {
            let queue = Arc::clone(&workers.queue);
            let builder = thread::Builder::new().name(format!("disk-{index}")).stack_size(STACK_BYTES);
            workers.threads.push(builder.spawn(move || queue.work())?);
        }
        Ok(workers)
    }

    /// From now on disks are opened over queues; these threads do what a queue cannot.
    #[must_use]
    pub fn beside(mut self, queues: Box<dyn Queues>) -> Self {
        self.queues = Some(queues);
        self
    }

    pub(crate) fn queue(&self, capacity: u16) -> Option<Box<dyn DiskQueue>> {
        self.queues.as_ref().map(|queues| queues.queue(capacity))
    }

    pub(crate) fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.queue))
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.queue.lock().is_ending = true;
        self.queue.more.notify_all();
        for thread in self.threads.drain(..) {
            // A helper that panicked has said so already.
            let _ = thread.join();
        }
    }
}

/// A disk's access to the helpers.
#[derive(Clone, Debug)]
pub(crate) struct Handle(Arc<Queue>);

impl Handle {
    /// Has a helper take the memory for some pages, unless they have too much to do.
    pub(crate) fn occupy(&self, part: Part) {
        let state = self.0.lock();
        if !state.is_ending && state.waiting_count < JOBS_MAX {
            self.push(state, Class::Slow, Task::Memory(part));
        }
    }

    /// Gives a job to the helpers; back, and why, if they do not take it.
    pub(crate) fn submit(&self, class: Class, job: Job) -> Result<(), (Job, NotTaken)> {
        let state = self.0.lock();
        if state.is_ending {
            return Err((job, NotTaken::Ending));
        }
        if state.waiting_count >= JOBS_MAX {
            return Err((job, NotTaken::Full));
        }
        self.push(state, class, Task::Disk(job));
        Ok(())
    }

    fn push(&self, mut state: MutexGuard<'_, State>, class: Class, task: Task) {
        state.waiting[class as usize].push_back(task);
        state.waiting_count += 1;
        // A thread that was called and has not yet awoken will find this job too.
        let call = state.idle > state.called;
        if call {
            state.called += 1;
        }
        drop(state);
        if call {
            self.0.more.notify_one();
        }
    }
}

/// What a helper does.
#[derive(Debug)]
enum Task {
    Disk(Job),
    /// Nobody waits for the end of it.
    Memory(Part),
}

#[derive(Debug)]
struct Queue {
    state: Mutex<State>,
    more: Condvar,
    limits: Limits,
    waker: Waker,
}

/// How many threads may be at work on what.
#[derive(Clone, Copy, Debug)]
struct Limits {
    slow_max: usize,
    modifying_max: usize,
}

impl Limits {
    /// With three threads or more, all but two may run slow jobs and all but one modifications. Two are too few to
    /// keep one for reads alone; a single one does everything.
    const fn of(count: usize) -> Self {
        if count <= 2 {
            Self { slow_max: 1, modifying_max: count }
        } else {
            Self { slow_max: count - 2, modifying_max: count - 1 }
        }
    }

    /// Whether one more of a class may run beside those that are at work.
    const fn allow(self, class: Class, running: [usize; 3]) -> bool {
        let [_, writing, slow] = running;
        match class {
            Class::Read => true,
            Class::Write => writing + slow < self.modifying_max,
            Class::Slow => slow < self.slow_max && writing + slow < self.modifying_max,
        }
    }
}

#[derive(Debug)]
struct State {
    waiting: [VecDeque<Task>; 3],
    waiting_count: usize,
    /// Threads at work, by class.
    running: [usize; 3],
    /// Threads asleep.
    idle: usize,
    /// Of these, how many were called and have not yet awoken.
    called: usize,
    is_ending: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some((class, task)) = self.next(&mut state) {
                state.running[class as usize] += 1;
                // A job that could not run when it came may be able to now, and its thread is asleep.
                let call = state.idle > state.called && self.next_class(&state).is_some();
                if call {
                    state.called += 1;
                }
                drop(state);
                if call {
                    self.more.notify_one();
                }
                match task {
                    Task::Disk(job) => {
                        job.run();
                        self.waker.wake();
                    }
                    // A system that cannot (Linux before 5.14) takes it when it is used.
                    Task::Memory(part) => drop(part.occupy()),
                }
                state = self.lock();
                state.running[class as usize] -= 1;
            } else if state.is_ending && state.waiting_count == 0 {
                // Others may be asleep because what was waiting could not run beside what was running.
                self.more.notify_all();
                return;
            } else {
                state.idle += 1;
                state = self.more.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
                state.called = state.called.saturating_sub(1).min(state.idle);
            }
        }
    }

    /// The next job that may run, the best class first.
    fn next(&self, state: &mut State) -> Option<(Class, Task)> {
        let class = self.next_class(state)?;
        let task = state.waiting[class as usize].pop_front()?;
        state.waiting_count -= 1;
        Some((class, task))
    }

    fn next_class(&self, state: &State) -> Option<Class> {
        CLASSES.into_iter().find(|class| {
            self.limits.allow(*class, state.running) && !state.waiting[*class as usize].is_empty()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Class, Limits};

    #[test]
    fn slow_jobs_leave_threads_for_writes_and_modifications_leave_one_for_reads() {
        let limits = Limits::of(4);
        for (running, [read, write, slow]) in [
            ([0, 0, 0], [true, true, true]),
            ([0, 0, 2], [true, true, false]),
            ([0, 1, 2], [true, false, false]),
            ([0, 3, 0], [true, false, false]),
            ([0, 2, 1], [true, false, false]),
            ([3, 0, 0], [true, true, true]),
        ] {
            assert_eq!(limits.allow(Class::Read, running), read, "{running:?}");
            assert_eq!(limits.allow(Class::Write, running), write, "{running:?}");
            assert_eq!(limits.allow(Class::Slow, running), slow, "{running:?}");
        }
    }

    #[test]
    fn few_threads_still_do_everything() {
        for count in [1, 2, 3] {
            for class in [Class::Read, Class::Write, Class::Slow] {
                assert!(Limits::of(count).allow(class, [0; 3]), "{class:?} on {count}");
            }
        }
        assert!(!Limits::of(2).allow(Class::Slow, [0, 0, 1]), "one of two stays free of flushes");
    }
}
