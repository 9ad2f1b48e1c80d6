//! What managers wait for: a command may need several volumes, or a checkpoint of the pair, to answer.

use twinblock_core::control::json::HeldId;
use twinblock_core::node::Failure;
use twinblock_core::{CommandId, Refused};

use super::managers::ManagerId;

/// Who is told when a job has ended.
#[derive(Clone, Debug)]
pub(super) enum Waiter {
    /// A manager, by the answer to its command.
    Manager { manager: ManagerId, id: Option<HeldId>, answer: Answer },
    /// The log, if it fails: the daemon itself wanted it.
    Log(&'static str),
}

/// What a success returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Nothing,
    /// Who was left out of the checkpoint.
    Checkpoint,
    /// The epoch of this volume.
    EpochOf(usize),
}

/// Why a job has failed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Trouble {
    /// A volume refused.
    Volume(usize, Refused),
    /// The checkpoint of the pair failed.
    Pair(Failure),
}

#[derive(Debug)]
struct Job {
    waiter: Waiter,
    remaining: usize,
    trouble: Option<Trouble>,
}

/// Jobs under way, and the commands that they wait for.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    jobs: Vec<Option<Job>>,
    commands: Vec<(CommandId, Waiting)>,
    next: u32,
}

/// What an answer to a command means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiting {
    /// A volume answers to a job.
    Job { job: usize, volume: usize },
    /// The coordinator answers to a job.
    Pair { job: usize },
    /// A volume's barrier for the coordinator.
    Barrier { volume: usize },
    /// Nobody is interested.
    Nobody,
}

impl Jobs {
    /// A job with nothing to wait for yet.
    pub(super) fn begin(&mut self, waiter: Waiter) -> usize {
        let job = Job { waiter, remaining: 0, trouble: None };
        match self.jobs.iter().position(Option::is_none) {
            Some(free) => {
                self.jobs[free] = Some(job);
                free
            }
            None => {
                self.jobs.push(Some(job));
                self.jobs.len() - 1
            }
        }
    }

    /// A new command, and what its answer will mean.
    pub(super) fn expect(&mut self, waiting: Waiting) -> CommandId {
        self.next = self.next.wrapping_add(1);
        let command = CommandId(self.next);
        if let Waiting::Job { job, .. } | Waiting::Pair { job } = waiting
            && let Some(job) = self.jobs.get_mut(job).and_then(Option::as_mut)
        {
            job.remaining += 1;
        }
        if waiting != Waiting::Nobody {
            self.commands.push((command, waiting));
        }
        command
    }

    /// Whether something is still waited for that has to do with a volume.
    pub(super) fn concerns(&self, volume: usize) -> bool {
        let is_waited_for = self.commands.iter().any(|(_, waiting)| match *waiting {
            Waiting::Job { volume: of, .. } | Waiting::Barrier { volume: of } => of == volume,
            Waiting::Pair { .. } => true,
            Waiting::Nobody => false,
        });
        is_waited_for
            || self.jobs.iter().flatten().any(|job| {
                let answer = match &job.waiter {
                    Waiter::Manager { answer, .. } => *answer,
                    Waiter::Log(_) => Answer::Nothing,
                };
                answer == Answer::EpochOf(volume)
                    || matches!(job.trouble, Some(Trouble::Volume(of, _)) if of == volume)
            })
    }

    /// A command has been answered.
    pub(super) fn answered(&mut self, command: CommandId) -> Waiting {
        match self.commands.iter().position(|(expected, _)| *expected == command) {
            Some(place) => self.commands.swap_remove(place).1,
            None => Waiting::Nobody,
        }
    }

    /// One of the answers that a job waits for; its end, if it was the last.
    pub(super) fn note(
        &mut self,
        job: usize,
        result: Result<(), Trouble>,
    ) -> Option<(Waiter, Option<Trouble>)> {
        if let Some(job) = self.jobs.get_mut(job).and_then(Option::as_mut) {
            job.remaining = job.remaining.saturating_sub(1);
            job.trouble = job.trouble.or(result.err());
        }
        self.end_if_done(job)
    }

    /// The end of a job that waits for nothing.
    pub(super) fn end_if_done(&mut self, job: usize) -> Option<(Waiter, Option<Trouble>)> {
        let place = self.jobs.get_mut(job)?;
        place.as_ref().filter(|job| job.remaining == 0)?;
        place.take().map(|job| (job.waiter, job.trouble))
    }
}
