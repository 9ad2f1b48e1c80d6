//! What managers' commands do.

mod commits;

use std::fmt::Display;
use std::mem;
use std::ops::Range;

use tracing::{info, warn};
use twinblock_core::control::json::{self, ErrorClass, HeldId, Id, ParseError};
use twinblock_core::control::{Answer, Command, RefusalText, StatusText, Trouble as StatusTrouble};
use twinblock_core::node::{self, Operation, Trouble as NodeTrouble};
use twinblock_core::secondary::{self, Port};
use twinblock_core::{Refused, Stage, primary};

use super::Daemon;
use super::jobs::{self, Trouble, Waiter, Waiting};
use super::managers::{KEPT_BYTES_MAX, ManagerId, Managers, Message, Outgoing};
use super::names;
use super::pair::NewReplica;
use crate::allocation;
use crate::spec::{Address, Backend, NbdUri, check_name};
use crate::text::one_line;
pub(super) use commits::HeldCommit;

/// What is told of a failure at most: it may quote what a manager has sent.
const FAILURE_CHARS_MAX: usize = 500;

/// Who is to be answered.
#[derive(Clone, Debug)]
pub(super) struct Asker {
    pub(super) manager: ManagerId,
    pub(super) id: Option<HeldId>,
}

impl Asker {
    pub(super) fn waiter(self, answer: jobs::Answer) -> Waiter {
        Waiter::Manager { manager: self.manager, id: self.id, answer }
    }
}

impl Daemon {
    /// Does what the messages of a manager say that have come. The room for them is used again and again.
    pub(super) fn execute_all(&mut self, index: usize) {
        let (mut text, mut scratch) = mem::take(&mut self.message);
        while let Some((manager, message)) = self.managers.next_message(index, &mut text) {
            match message {
                Message::Text => {
                    scratch.resize(text.len(), 0);
                    self.execute(manager, &text, &mut scratch);
                }
                Message::TooLong => self.managers.answer(manager, |out| ParseError::TooLong.write(out, None)),
            }
        }
        for room in [&mut text, &mut scratch] {
            room.clear();
            room.shrink_to(KEPT_BYTES_MAX);
        }
        self.message = (text, scratch);
        self.drop_commits(Managers::has_ended);
    }

    /// Does what a message says; the answer comes at once or when a job has ended.
    pub(super) fn execute(&mut self, manager: ManagerId, text: &[u8], scratch: &mut [u8]) {
        let parsed = json::parse(text, scratch);
        let id = parsed.id.as_ref().map(Id::held);
        let admitted = parsed.command.and_then(|command| {
            let negotiation = self.managers.negotiation(manager).ok_or(ParseError::NoCommand)?;
            negotiation.admit(&command).map(|()| command)
        });
        match admitted {
            Ok(command) if self.awaits_names(manager, text, names::addresses_of(&command)) => {}
            Ok(command) => self.obey(Asker { manager, id }, command),
            // It may be one that only a daemon has.
            Err(unknown @ ParseError::UnknownCommand { .. })
                if self.managers.negotiation(manager).is_some_and(|session| session.is_done()) =>
            {
                self.execute_host(&Asker { manager, id }, text, unknown);
            }
            Err(error) => self.managers.answer(manager, |out| error.write(out, parsed.id)),
        }
    }

    fn obey(&mut self, asker: Asker, command: Command<'_>) {
        match command {
            Command::Capabilities => self.answer(&asker, &Answer::Done),
            Command::Commands => self.answer_commands(&asker),
            Command::SetReplication { enable, primary, failover, force, volume } => {
                let stop = Operation::Stop { failover: failover.unwrap_or(false), force };
                let operation = if enable { Operation::Start { primary } } else { stop };
                self.operate(asker, operation, volume);
            }
            Command::Checkpoint { force, volume } => {
                self.operate(asker, Operation::Checkpoint { force }, volume);
            }
            Command::QueryReplicationStatus { volume } => self.report_trouble(&asker, volume),
            Command::QueryReplication => self.report(&asker),
            Command::QueryMemory => self.answer(&asker, &Answer::Memory(allocation::report())),
            Command::Attach { volume, uri, name, control, sync_full } => {
                let replica = name.map_or_else(|| self.new_replica_name(), str::to_owned);
                self.on_primary(&asker, volume, |daemon, volume, waiter| {
                    check_name("replica", &replica)?;
                    let named = |error: &dyn Display| format!("replica '{replica}': {error}");
                    let uri: NbdUri = uri.parse().map_err(|error| named(&error))?;
                    let control: Option<Address> =
                        control.map(str::parse).transpose().map_err(|error| named(&error))?;
                    let wanted = NewReplica {
                        name: &replica,
                        uri: &uri,
                        control: control.as_ref(),
                        is_empty: sync_full,
                    };
                    daemon.attach_uri(volume, &wanted, waiter)
                });
            }
            Command::Detach { volume, name } => {
                self.on_primary(&asker, volume, |daemon, volume, waiter| daemon.detach(volume, name, waiter));
            }
            Command::Quit => {
                self.answer(&asker, &Answer::Done);
                info!("ending: a manager asked for it");
                self.end();
            }
            Command::CheckpointPrepare { volume, epoch, claim, modifications } => {
                // Whoever begins anew has given up what it had told others to commit.
                self.drop_commits(|_, manager| manager == asker.manager);
                if let Some((asker, volume)) = self.secondary_named(asker, volume) {
                    let wanted = secondary::Command::Prepare { epoch, claim, modifications };
                    self.order_secondary(asker, volume, wanted);
                }
            }
            Command::CheckpointCommit { volume, epoch, claim, together } => {
                if let Some((asker, volume)) = self.secondary_named(asker, volume) {
                    let wanted = secondary::Command::Commit { epoch, claim };
                    self.commit(HeldCommit { asker, volume, wanted }, together);
                }
            }
            Command::CheckpointOutcome { volume } => match self.find(volume) {
                Some(place) => {
                    let epoch = self.volumes[place].epoch();
                    self.answer(&asker, &Answer::Epoch(epoch));
                }
                None => self.refuse(&asker, Refused::Unknown, volume),
            },
        }
    }

    /// The volume of this name, or the secondary whose primary calls it this.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        let named = self.volumes.iter().position(|known| !known.is_vacant() && known.name == name);
        named.or_else(|| {
            let mut exports = self.clients.exports();
            let export = exports.find(|(_, served)| served.name == name && served.port == Port::Replication);
            export.map(|(_, served)| served.volume)
        })
    }

    pub(super) fn answer(&mut self, asker: &Asker, answer: &Answer<'_>) {
        let id = asker.id.as_ref().map(HeldId::id);
        self.managers.answer(asker.manager, |out| json::write_answer(out, answer, id));
    }

    fn fail(&mut self, asker: &Asker, text: &str) {
        let id = asker.id.as_ref().map(HeldId::id);
        let text = one_line(text, FAILURE_CHARS_MAX);
        self.managers
            .answer(asker.manager, |out| json::write_error(out, ErrorClass::GenericError, &text, id));
    }

    fn refuse(&mut self, asker: &Asker, refused: Refused, volume: &str) {
        let id = asker.id.as_ref().map(HeldId::id);
        let refusal = RefusalText { refused, volume };
        self.managers.answer(asker.manager, |out| json::write_refusal(out, refusal, id));
    }

    /// The volumes that a command is for; an error if it names none that there is.
    fn selected(&self, volume: Option<&str>) -> Result<Range<usize>, Refused> {
        match volume {
            None => Ok(0..self.volumes.len()),
            Some(name) => self.find(name).map(|place| place..place + 1).ok_or(Refused::Unknown),
        }
    }

    /// An operation on one volume or on all: all are asked first, then all act.
    fn operate(&mut self, asker: Asker, operation: Operation, volume: Option<&str>) {
        let selected = match self.selected(volume) {
            Ok(selected) => selected,
            Err(refused) => return self.refuse(&asker, refused, volume.unwrap_or_default()),
        };
        let wanted = self.volumes[selected.clone()].iter();
        let checked = node::check_all(wanted.map(super::Volume::managed), operation);
        match checked {
            Ok(()) => {}
            Err((place, Refused::NoReplica)) => {
                let text = self.no_replica_text(selected.start + place);
                return self.fail(&asker, &text);
            }
            Err((place, refused)) => {
                let name = self.volumes[selected.start + place].name.clone();
                return self.refuse(&asker, refused, &name);
            }
        }
        if operation == (Operation::Start { primary: false })
            && let Err(text) = self.check_tops(selected.clone())
        {
            return self.fail(&asker, &text);
        }
        let is_checkpoint = matches!(operation, Operation::Checkpoint { .. });
        let is_paired = |place: usize| {
            is_checkpoint && self.volumes[place].is_primary() && self.volumes[place].stage() == Stage::Running
        };
        let has_pair = selected.clone().any(is_paired);
        let answer = if has_pair { jobs::Answer::Checkpoint } else { jobs::Answer::Nothing };
        let job = self.jobs.begin(asker.waiter(answer));
        for place in selected {
            if self.volumes[place].is_vacant() {
                continue;
            }
            // A primary's checkpoint is the pair's; one that has stopped has nothing to do.
            if !is_checkpoint || !self.volumes[place].is_primary() {
                self.order(place, job, operation);
            }
        }
        if has_pair {
            let only = volume.and_then(|name| self.find(name));
            self.want_checkpoint(job, only, false);
        } else {
            self.end_job(job);
        }
    }

    /// Whether what shall be on top of secondaries that are about to start is there.
    fn check_tops(&self, selected: Range<usize>) -> Result<(), String> {
        let volumes = self.volumes[selected].iter();
        let mut starting = volumes.filter(|volume| !volume.is_vacant() && volume.stage() == Stage::None);
        starting.try_for_each(|volume| self.graph.check_top(&volume.node))
    }

    /// Why there is no checkpoint of a volume whose replicas all miss something; it names them.
    pub(super) fn no_replica_text(&self, place: usize) -> String {
        let volume = &self.volumes[place];
        let names: Vec<&str> = volume.attached().map(|(_, replica)| replica.name.as_str()).collect();
        let refused = RefusalText { refused: Refused::NoReplica, volume: &volume.name };
        format!("{refused} (behind: {})", names.join(", "))
    }

    /// Gives a volume an order for a job.
    pub(super) fn order(&mut self, volume: usize, job: usize, operation: Operation) {
        let command = self.jobs.expect(Waiting::Job { job, volume });
        if let Err(refused) = self.volumes[volume].command(self.now, command, operation) {
            self.jobs.answered(command);
            self.answered(job, volume, Err(refused));
        }
    }

    /// Gives a primary an order.
    pub(super) fn order_primary(&mut self, volume: usize, waiting: Waiting, wanted: primary::Command) {
        let command = self.jobs.expect(waiting);
        let now = self.now;
        let Some(driver) = self.volumes[volume].primary() else { return };
        let Err(refused) = driver.offer(now, primary::Input::Command(command, wanted)) else { return };
        self.jobs.answered(command);
        match waiting {
            Waiting::Job { job, volume } => self.answered(job, volume, Err(refused)),
            Waiting::Barrier { volume } => self.barrier_answered(volume, Err(refused)),
            Waiting::Pair { .. } | Waiting::Nobody => warn!(?refused, ?wanted, "a volume refused"),
        }
    }

    /// The secondary of this name; whoever asks for another one is told.
    fn secondary_named(&mut self, asker: Asker, name: &str) -> Option<(Asker, usize)> {
        let refused = match self.find(name) {
            Some(volume) if !self.volumes[volume].is_primary() => return Some((asker, volume)),
            Some(_) => Refused::WrongMode { primary_wanted: false },
            None => Refused::Unknown,
        };
        self.refuse(&asker, refused, name);
        None
    }

    fn order_secondary(&mut self, asker: Asker, volume: usize, wanted: secondary::Command) {
        let now = self.now;
        let job = self.jobs.begin(asker.waiter(jobs::Answer::EpochOf(volume)));
        let command = self.jobs.expect(Waiting::Job { job, volume });
        let Some(driver) = self.volumes[volume].secondary() else { return };
        if let Err(refused) = driver.offer(now, secondary::Input::Command(command, wanted)) {
            self.jobs.answered(command);
            return self.answered(job, volume, Err(refused));
        }
        if matches!(wanted, secondary::Command::Commit { .. }) {
            self.volumes[volume].checkpoint_began = Some(std::time::Instant::now());
        }
    }

    fn on_primary(
        &mut self,
        asker: &Asker,
        name: Option<&str>,
        act: impl FnOnce(&mut Self, usize, Waiter) -> Result<(), String>,
    ) {
        let mut primaries = (0..self.volumes.len()).filter(|place| self.volumes[*place].is_primary());
        let found = match name {
            Some(name) => self.find(name).filter(|place| self.volumes[*place].is_primary()),
            None => primaries.next().filter(|_| primaries.next().is_none()),
        };
        let Some(volume) = found else {
            let text = match name {
                Some(name) => {
                    format!("there is no primary '{name}'; see query-replication for what there is")
                }
                None if self.volumes.iter().any(super::Volume::is_primary) => {
                    "there are several primaries here; name the volume".to_owned()
                }
                None => "there is no primary here, and only a primary has replicas".to_owned(),
            };
            return self.fail(asker, &text);
        };
        let waiter = Asker { manager: asker.manager, id: asker.id.clone() }.waiter(jobs::Answer::Nothing);
        if let Err(text) = act(self, volume, waiter) {
            self.fail(asker, &text);
        }
    }

    /// A name for a replica that was given none.
    fn new_replica_name(&self) -> String {
        let is_taken = |name: &String| {
            let replicas = self.volumes.iter().flat_map(|volume| &volume.replicas);
            replicas.flatten().any(|replica| replica.name == *name)
        };
        let mut names = (0..).map(crate::args::default_replica_name);
        names.find(|name| !is_taken(name)).unwrap_or_default()
    }

    /// A volume has answered to a job.
    pub(super) fn answered(&mut self, job: usize, volume: usize, result: Result<(), Refused>) {
        if !self.volumes[volume].is_primary() {
            self.volumes[volume].record_checkpoint(result.is_ok());
        }
        self.note_job(job, result.map_err(|refused| Trouble::Volume(volume, refused)));
    }

    pub(super) fn note_job(&mut self, job: usize, result: Result<(), Trouble>) {
        if let Some((waiter, trouble)) = self.jobs.note(job, result) {
            self.job_ended(waiter, trouble);
        }
    }

    /// Ends a job that had nothing to wait for.
    pub(super) fn end_job(&mut self, job: usize) {
        if let Some((waiter, trouble)) = self.jobs.end_if_done(job) {
            self.job_ended(waiter, trouble);
        }
    }

    fn job_ended(&mut self, waiter: Waiter, trouble: Option<Trouble>) {
        match (waiter, trouble) {
            (Waiter::Manager { manager, id, answer }, None) => {
                let asker = Asker { manager, id };
                match answer {
                    jobs::Answer::Nothing => self.answer(&asker, &Answer::Done),
                    jobs::Answer::Checkpoint => self.answer_checkpoint(&asker),
                    jobs::Answer::EpochOf(volume) => {
                        self.answer(&asker, &Answer::Epoch(self.volumes[volume].epoch()));
                    }
                }
            }
            (Waiter::Manager { manager, id, .. }, Some(Trouble::Volume(volume, refused))) => {
                let name = self.volumes[volume].name.clone();
                self.refuse(&Asker { manager, id }, refused, &name);
            }
            (Waiter::Manager { manager, id, .. }, Some(Trouble::Pair(failure))) => {
                let text = self.failure_text(&failure);
                self.fail(&Asker { manager, id }, &text);
            }
            (Waiter::Log(what), Some(Trouble::Volume(volume, refused))) => {
                let volume = &self.volumes[volume].name;
                warn!("{what}: {}", RefusalText { refused, volume });
            }
            // The coordinator's failures are in the log already.
            (Waiter::Log(_), _) => {}
        }
    }

    /// A checkpoint of the pair was taken. Who it did without is told by name.
    fn answer_checkpoint(&mut self, asker: &Asker) {
        let id = asker.id.as_ref().map(HeldId::id);
        let (managers, names) = (&mut self.managers, &self.pair.left_out);
        // Without names nothing is allocated.
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let answer = Answer::Checkpoint { left_out: &names };
        managers.answer(asker.manager, |out| json::write_answer(out, &answer, id));
    }

    /// What `query-xen-replication-status` tells: the first trouble there is.
    fn report_trouble(&mut self, asker: &Asker, volume: Option<&str>) {
        let selected = match self.selected(volume) {
            Ok(selected) => selected,
            Err(refused) => return self.refuse(asker, refused, volume.unwrap_or_default()),
        };
        let (managers, volumes) = (&mut self.managers, &self.volumes[selected]);
        let trouble = volumes.iter().filter(|volume| !volume.is_vacant()).find_map(Self::trouble_of);
        let id = asker.id.as_ref().map(HeldId::id);
        managers.answer(asker.manager, |out| json::write_answer(out, &Answer::Status(trouble), id));
    }

    fn trouble_of(volume: &super::Volume) -> Option<StatusText<'_>> {
        let trouble = match volume.managed().trouble() {
            Err(_) => StatusTrouble::NotRunning,
            Ok(None) => return None,
            Ok(Some(NodeTrouble::Error(kind))) => StatusTrouble::Error(kind),
            Ok(Some(NodeTrouble::Behind)) => {
                volume.replica_behind().map_or(StatusTrouble::Missing, StatusTrouble::Behind)
            }
        };
        Some(StatusText { volume: &volume.name, trouble })
    }

    /// What `query-replication` tells: everything.
    fn report(&mut self, asker: &Asker) {
        let (managers, volumes, links) = (&mut self.managers, &self.volumes, &self.links);
        let (backend, id) = (self.backend, asker.id.as_ref().map(HeldId::id));
        managers.answer(asker.manager, |out| Self::write_report(volumes, links, backend, out, id));
    }

    fn write_report(
        volumes: &[super::Volume],
        links: &super::links::Links,
        backend: Backend,
        out: &mut Outgoing<'_>,
        id: Option<Id<'_>>,
    ) -> std::fmt::Result {
        let mut report = json::ReportWriter::begin(out)?;
        for volume in volumes.iter().filter(|volume| !volume.is_vacant()) {
            report.volume(&volume.report(), volume.replica_reports(links))?;
        }
        report.end_with_backend(backend.name(), id)
    }
}
