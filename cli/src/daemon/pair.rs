//! The checkpoint of the pair: core's coordinator over barriers here and control links to there.

use std::collections::VecDeque;
use std::time::Instant;

use tracing::{debug, info, warn};
use twinblock_core::control::{BufferLevel, RefusalText};
use twinblock_core::node::{
    Coordinator, Failure, Input, Member, MemberIndex, Operation, Output, Volume as Enrolled, VolumeIndex,
};
use twinblock_core::primary::{self, Command};
use twinblock_core::{Micros, Refused, ReplicaState, Stage};
use twinblock_io_posix::nbd_disk::{LinkEvent as DiskEvent, NbdDisk, NbdOptions};

use super::Daemon;
use super::devices::ReplicaLink;
use super::jobs::{Trouble, Waiter, Waiting};
use super::links::{LinkEvent, Question, Refusal};
use super::volume::Replica;
use crate::spec::{Address, DaemonSpec, NbdUri};

/// Replicas over all volumes that can take part in checkpoints.
const MEMBERS_PER_VOLUME: usize = crate::spec::REPLICAS_MAX;

/// Which replica a member is.
#[derive(Clone, Copy, Debug)]
struct Place {
    volume: usize,
    replica: u8,
}

/// A checkpoint that waits for the one under way.
#[derive(Debug)]
struct Wanted {
    job: usize,
    /// Only this volume.
    volume: Option<usize>,
    is_urgent: bool,
}

/// A replica that is to be attached.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewReplica<'a> {
    pub(super) name: &'a str,
    /// Its replication export.
    pub(super) uri: &'a NbdUri,
    /// Its secondary's control address: checkpoints become one act of the pair.
    pub(super) control: Option<&'a Address>,
    /// Everything is missing there.
    pub(super) is_empty: bool,
}

/// Checkpoints of the pair.
#[derive(Debug)]
pub(super) struct Pair {
    coordinator: Coordinator<'static>,
    places: Vec<Option<Place>>,
    states: Vec<ReplicaState>,
    wanted: VecDeque<Wanted>,
    every: Option<Micros>,
    next_at: Micros,
    /// The last that the daemon took by itself has failed, and the log knows.
    has_complained: bool,
    /// What a secondary said against it.
    said: String,
    /// Replicas that the checkpoint under way, or the last one, did without.
    pub(super) left_out: Vec<String>,
    /// Those of them that are themselves behind or not connected, and did not just share a node with one.
    lagging: Vec<String>,
}

impl Pair {
    /// For so many volumes at a time.
    pub(super) fn new(spec: &DaemonSpec, volumes: usize) -> Self {
        let members = volumes * MEMBERS_PER_VOLUME;
        let timeout = Micros(spec.checkpoint_timeout.0.as_micros() as u64);
        let every = spec.checkpoint_every.map(|span| Micros(span.0.as_micros() as u64));
        Self {
            coordinator: Coordinator::new(
                Box::leak(vec![Enrolled::FREE; volumes].into_boxed_slice()),
                Box::leak(vec![Member::FREE; members].into_boxed_slice()),
                timeout,
            ),
            places: vec![None; members],
            states: vec![ReplicaState::Disconnected; members],
            wanted: VecDeque::new(),
            every,
            next_at: every.unwrap_or_default(),
            has_complained: false,
            said: String::new(),
            left_out: Vec::new(),
            lagging: Vec::new(),
        }
    }

    pub(super) fn replica_changed(&mut self, now: Micros, member: MemberIndex, state: ReplicaState) {
        if let Some(known) = self.states.get_mut(usize::from(member.0)) {
            *known = state;
        }
        let _ = self.coordinator.handle_input(now, Input::Replica(member, state));
    }

    pub(super) fn next_deadline(&self) -> Option<Micros> {
        let automatic = self.every.is_some().then_some(self.next_at);
        self.coordinator.poll_timeout().into_iter().chain(automatic).min()
    }

    /// Whether a checkpoint is under way or wanted.
    pub(super) fn is_busy(&self) -> bool {
        self.coordinator.is_busy() || !self.wanted.is_empty()
    }

    fn place(&self, member: MemberIndex) -> Option<Place> {
        self.places.get(usize::from(member.0)).copied().flatten()
    }

    /// Whether a checkpoint would include anybody.
    fn has_current(&self) -> bool {
        self.places
            .iter()
            .zip(&self.states)
            .any(|(place, state)| place.is_some() && *state == ReplicaState::Current)
    }
}

impl Daemon {
    /// Adds a replica, or one that was detached again.
    pub(super) fn attach(
        &mut self,
        volume: usize,
        wanted: &NewReplica<'_>,
        block_node: &str,
        waiter: Waiter,
    ) -> Result<(), String> {
        let NewReplica { name, uri, control, is_empty } = *wanted;
        let this = &mut self.volumes[volume];
        if this.attached().any(|(_, replica)| replica.name == name) {
            return Err(format!(
                "replica '{name}' is attached already; detach it first, or give another name"
            ));
        }
        let resolve = |address: &Address| self.names.target(address);
        let target = resolve(&uri.address).map_err(|error| format!("replica '{name}': {error}"))?;
        let node = control.map(|control| self.links.node(control, resolve)).transpose()?;
        let place =
            this.replicas.iter().position(|replica| replica.as_ref().is_some_and(|known| known.name == name));
        let is_new = place.is_none();
        // One whose last link is still being closed cannot be used yet.
        let closed: Vec<bool> = (0..this.replicas.len()).map(|index| this.is_link_closed(index)).collect();
        let free =
            || (0..this.replicas.len()).find(|index| this.replicas[*index].is_none() && closed[*index]);
        let detached = || {
            let attached: Vec<u8> = this.attached().map(|(index, _)| index).collect();
            (0..this.replicas.len()).find(|index| !attached.contains(&(*index as u8)) && closed[*index])
        };
        let place = place.or_else(free).or_else(detached);
        let index =
            place.ok_or_else(|| RefusalText { refused: Refused::NoRoom, volume: &this.name }.to_string())?;
        let options = NbdOptions {
            request_timeout: self.replica_timeout,
            connect_timeout: self.replica_timeout,
            peer_timeout: twinblock_io_posix::socket::PeerTimeout(self.peer_timeout),
            ..NbdOptions::replica(Some(self.identity))
        };
        while this.link_count() <= index {
            let owner = Some((volume, Some(this.link_count() as u8)));
            this.add_link(ReplicaLink::new(self.stores.link(owner)?));
        }
        let opened = this.nbd_disk(index as u8).map(|disk| disk.open_at(uri, target, options, self.now));
        if let Some(Err(error)) = opened {
            return Err(format!("replica '{name}': {error}"));
        }
        let of = VolumeIndex(volume as u16);
        let member = node.and_then(|node| self.pair.coordinator.add_member(of, node).ok());
        if let (Some(member), Some(node)) = (member, node) {
            self.pair.places[usize::from(member.0)] = Some(Place { volume, replica: index as u8 });
            self.pair.states[usize::from(member.0)] = ReplicaState::Disconnected;
            self.links.add(node, member, &uri.export);
        }
        let is_awaited = matches!(waiter, Waiter::Manager { .. });
        let job = self.jobs.begin(waiter);
        // Whoever attaches it is told whether it fits, if it can be reached.
        let until = self.now.after(self.replica_timeout);
        let attaching = is_awaited.then(|| (self.jobs.expect(Waiting::Job { job, volume }), until));
        let this = &mut self.volumes[volume];
        this.replicas[index] =
            Some(Replica { name: name.into(), node: block_node.into(), member, attaching });
        let command = Command::Attach { replica: index as u8, is_empty, is_new };
        self.order_primary(volume, Waiting::Job { job, volume }, command);
        info!(volume = self.volumes[volume].name, replica = name, %uri, "attached");
        Ok(())
    }

    /// Lets a replica go, and its node from under the volume's.
    pub(super) fn detach(&mut self, volume: usize, name: &str, waiter: Waiter) -> Result<(), String> {
        let this = &mut self.volumes[volume];
        let found = this.attached().find(|(_, replica)| replica.name == name).map(|(index, _)| index);
        let Some(index) = found else {
            return Err(RefusalText { refused: Refused::Unknown, volume: name }.to_string());
        };
        if let Some(disk) = this.nbd_disk(index) {
            disk.close();
        }
        self.attached_at_last(volume, index, Ok(()));
        self.unlink_replica(volume, usize::from(index));
        self.forget_member(volume, usize::from(index));
        let job = self.jobs.begin(waiter);
        self.order_primary(volume, Waiting::Job { job, volume }, Command::Detach { replica: index });
        info!(volume = self.volumes[volume].name, replica = name, "detached");
        Ok(())
    }

    /// A replica takes no part in checkpoints any more.
    pub(super) fn forget_member(&mut self, volume: usize, replica: usize) {
        let known = self.volumes[volume].replicas.get_mut(replica).and_then(Option::as_mut);
        if let Some(member) = known.and_then(|replica| replica.member.take()) {
            self.links.remove(member);
            self.pair.coordinator.remove_member(member);
            self.pair.places[usize::from(member.0)] = None;
        }
    }

    /// The connection to a replica, or to a disk that something else serves, has changed.
    pub(super) fn link_changed(&mut self, volume: usize, which: Option<u8>, event: DiskEvent) {
        let this = &mut self.volumes[volume];
        let Some(replica) = which else {
            match event {
                DiskEvent::Connected(_) => info!(volume = this.name, "the disk's server is back"),
                DiskEvent::Disconnected => {
                    warn!(volume = this.name, "the disk's server is gone; waiting for it");
                }
                DiskEvent::Refused(why) => {
                    warn!(volume = this.name, "the disk's server cannot be used: {why}");
                }
            }
            return;
        };
        let name = this.replicas.get(usize::from(replica)).and_then(Option::as_ref);
        let name = name.map_or_else(String::new, |replica| replica.name.clone());
        let volume_name = this.name.clone();
        let now = self.now;
        let is_new = matches!(event, DiskEvent::Connected(_))
            && this.nbd_disk(replica).is_some_and(NbdDisk::take_restarted);
        if let (true, Some(driver)) = (is_new, this.primary()) {
            // Stale is what a detached one is.
            let _ = driver.offer(now, primary::Input::Restarted(replica));
        }
        let (Some(driver), input) = (
            this.primary(),
            match event {
                DiskEvent::Connected(geometry) => primary::Input::Connected(replica, geometry),
                DiskEvent::Disconnected => primary::Input::Disconnected(replica),
                DiskEvent::Refused(why) => {
                    warn!(volume = volume_name, replica = name, "the replica cannot be used: {why}");
                    return self.attached_at_last(volume, replica, Err(Refused::Unsuitable));
                }
            },
        ) else {
            return;
        };
        let has_come = matches!(event, DiskEvent::Connected(_));
        match driver.offer(now, input) {
            Ok(()) if has_come => self.attached_at_last(volume, replica, Ok(())),
            // Stale is what a detached one is.
            Ok(()) | Err(Refused::Stale) => {}
            Err(refused) => {
                let text = RefusalText { refused, volume: &volume_name };
                warn!(volume = volume_name, replica = name, "the replica cannot be used: {text}");
                if let Some(disk) = this.nbd_disk(replica) {
                    disk.close();
                }
                self.attached_at_last(volume, replica, Err(refused));
            }
        }
    }

    /// Whoever attached a replica hears how its first connection went. One that was refused is not attached.
    fn attached_at_last(&mut self, volume: usize, replica: u8, result: Result<(), Refused>) {
        let place = usize::from(replica);
        let Some(known) = self.volumes[volume].replicas.get_mut(place).and_then(Option::as_mut) else {
            return;
        };
        let Some((command, _)) = known.attaching.take() else { return };
        if result.is_err() {
            let name = known.name.clone();
            // It is attached, so that this cannot fail.
            let _ = self.detach(volume, &name, Waiter::Log("detaching"));
            self.volumes[volume].replicas[place] = None;
        }
        if let Waiting::Job { job, volume } = self.jobs.answered(command) {
            self.answered(job, volume, result);
        }
    }

    /// Those who wait for a replica that cannot be reached wait no longer: it is attached, and tried again and again.
    pub(super) fn tick_attaching(&mut self) {
        let mut next = self.volumes.awake_from(0);
        while let Some(volume) = next {
            for replica in 0..self.volumes[volume].replicas.len() {
                let known = self.volumes[volume].replicas[replica].as_ref();
                if known.and_then(|known| known.attaching).is_some_and(|(_, until)| until <= self.now) {
                    self.attached_at_last(volume, replica as u8, Ok(()));
                }
            }
            next = self.volumes.awake_from(volume + 1);
        }
    }

    /// A job wants a checkpoint of the running primaries, or of one of them.
    pub(super) fn want_checkpoint(&mut self, job: usize, volume: Option<usize>, is_urgent: bool) {
        self.pair.wanted.push_back(Wanted { job, volume, is_urgent });
    }

    /// Takes checkpoints when they are due.
    pub(super) fn tick_pair(&mut self) {
        if self.pair.coordinator.poll_timeout().is_some_and(|due| due <= self.now) {
            self.pair.coordinator.handle_timeout(self.now);
            self.links.drop_unanswered(self.now, &mut self.poller);
        }
        let Some(every) = self.pair.every.filter(|_| self.pair.next_at <= self.now) else { return };
        // Late ones are not made up for.
        self.pair.next_at = self.now.after(every);
        let is_idle = !self.pair.coordinator.is_busy() && self.pair.wanted.is_empty();
        if is_idle && self.pair.has_current() && self.life == super::Life::Serving {
            self.take_automatic_checkpoint(false);
        }
    }

    /// The barrier that is up must not wait for what a full buffer holds.
    fn hurry(&mut self, member: MemberIndex) {
        let Some(place) = self.pair.place(member) else { return };
        if self.pair.coordinator.is_busy() {
            self.order_primary(place.volume, Waiting::Nobody, Command::Hurry);
        }
    }

    fn take_automatic_checkpoint(&mut self, is_urgent: bool) {
        let job = self.jobs.begin(Waiter::Log("taking a checkpoint"));
        self.want_checkpoint(job, None, is_urgent);
    }

    /// Lets the coordinator and the links work. Whether they had anything to do.
    pub(super) fn coordinate(&mut self) -> bool {
        let mut has_worked = false;
        while let Some(event) = self.links.next_event() {
            has_worked = true;
            self.link_said(event);
        }
        if !self.pair.coordinator.is_busy()
            && let Some(wanted) = self.pair.wanted.pop_front()
        {
            has_worked = true;
            self.begin_checkpoint(&wanted);
        }
        while let Some(output) = self.pair.coordinator.poll_output() {
            has_worked = true;
            self.carry_out(output);
        }
        has_worked
    }

    fn begin_checkpoint(&mut self, wanted: &Wanted) {
        self.pair.said.clear();
        self.pair.left_out.clear();
        self.pair.lagging.clear();
        let command = self.jobs.expect(Waiting::Pair { job: wanted.job });
        for volume in 0..self.volumes.len() {
            let this = &self.volumes[volume];
            let is_in = this.is_primary()
                && this.stage() == Stage::Running
                && wanted.volume.is_none_or(|only| only == volume);
            // Also where none of its replicas has a control address.
            let checked = this.managed().check(Operation::Checkpoint { force: false });
            if let (true, Err(refused)) = (is_in, checked) {
                let failure = Failure { refused, member: None, volume: Some(VolumeIndex(volume as u16)) };
                return self.checkpoint_ended(command, Err(failure));
            }
            let _ = self.pair.coordinator.enrol(VolumeIndex(volume as u16), is_in);
        }
        let begin = Input::Begin { command, is_urgent: wanted.is_urgent };
        let _ = self.pair.coordinator.handle_input(self.now, begin);
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Barrier { volume, is_urgent } => {
                let volume = usize::from(volume.0);
                self.volumes[volume].checkpoint_began = Some(Instant::now());
                self.order_primary(volume, Waiting::Barrier { volume }, Command::Barrier { is_urgent });
            }
            Output::Hurry(volume) => {
                self.order_primary(usize::from(volume.0), Waiting::Nobody, Command::Hurry);
            }
            Output::Release { volume, is_checkpoint } => {
                let volume = usize::from(volume.0);
                self.volumes[volume].record_checkpoint(is_checkpoint);
                self.order_primary(volume, Waiting::Nobody, Command::Release { is_checkpoint });
            }
            Output::AskEpoch(member) => self.links.ask_epoch(member),
            Output::Prepare { member, epoch } => {
                let place = self.pair.place(member);
                let disk = place.and_then(|place| self.volumes[place.volume].nbd_disk(place.replica));
                let modifications = disk.map_or(0, |disk| disk.modifications_sent());
                self.links.ask_prepare(member, epoch, modifications);
            }
            Output::Commit { member, epoch, together } => self.links.ask_commit(member, epoch, together),
            Output::LeftOut(member) => self.leave_out(member),
            Output::Missing(member) => {
                let Some(place) = self.pair.place(member) else { return };
                warn!(replica = self.member_name(member), "the secondary says that it misses something");
                let now = self.now;
                if let Some(driver) = self.volumes[place.volume].primary() {
                    let _ = driver.offer(now, primary::Input::Missing(place.replica));
                }
            }
            Output::Answer(command, result) => self.checkpoint_ended(command, result),
        }
    }

    fn leave_out(&mut self, member: MemberIndex) {
        let name = self.member_name(member).to_owned();
        let is_current = self.pair.states.get(usize::from(member.0)) == Some(&ReplicaState::Current);
        if !is_current && let Some(place) = self.pair.place(member) {
            let volume = &self.volumes[place.volume].name;
            self.pair.lagging.push(format!("replica '{name}' of volume '{volume}'"));
        }
        // Several volumes may call theirs alike.
        if !self.pair.left_out.contains(&name) {
            self.pair.left_out.push(name);
        }
    }

    fn checkpoint_ended(&mut self, command: twinblock_core::CommandId, result: Result<(), Failure>) {
        self.links.forget_questions();
        match (&result, self.pair.has_complained) {
            (Err(failure), false) => {
                self.pair.has_complained = true;
                warn!("no checkpoint was taken: {}", self.failure_text(failure));
            }
            (Ok(()), true) => {
                self.pair.has_complained = false;
                info!("checkpoints are taken again");
            }
            _ => {}
        }
        if let Waiting::Pair { job } = self.jobs.answered(command) {
            self.note_job(job, result.map_err(Trouble::Pair));
        }
    }

    /// Why a checkpoint of the pair was not taken, in one line.
    pub(super) fn failure_text(&self, failure: &Failure) -> String {
        if !self.pair.said.is_empty() {
            return self.pair.said.clone();
        }
        let volume = match (failure.volume, failure.member.and_then(|member| self.pair.place(member))) {
            (Some(volume), _) => usize::from(volume.0),
            (None, Some(place)) => place.volume,
            (None, None) => self.volumes.iter().position(super::Volume::is_primary).unwrap_or_default(),
        };
        let refused = RefusalText { refused: failure.refused, volume: &self.volumes[volume].name };
        match failure.member {
            None if failure.refused == Refused::NoReplica && self.pair.left_out.is_empty() => {
                self.no_replica_text(volume)
            }
            None if !self.pair.left_out.is_empty() => {
                let (names, lagging) = (self.pair.left_out.join(", "), self.pair.lagging.join(", "));
                format!("{refused} (left out: {names}; behind or not connected: {lagging})")
            }
            Some(member) => format!("replica '{}': {refused}", self.member_name(member)),
            None => refused.to_string(),
        }
    }

    fn member_name(&self, member: MemberIndex) -> &str {
        let place = self.pair.place(member);
        let replica =
            place.and_then(|place| self.volumes[place.volume].replicas.get(usize::from(place.replica)));
        replica.and_then(Option::as_ref).map_or("", |replica| &replica.name)
    }

    pub(super) fn barrier_answered(&mut self, volume: usize, result: Result<(), Refused>) {
        let input = Input::Barrier(VolumeIndex(volume as u16), result);
        let _ = self.pair.coordinator.handle_input(self.now, input);
    }

    fn link_said(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Lost(member) => {
                self.pair.coordinator.forget_epoch(member);
                for input in [
                    Input::Epoch(member, Err(Refused::TimedOut)),
                    Input::Prepared(member, Err(Refused::TimedOut)),
                    Input::Committed(member, Err(Refused::TimedOut)),
                ] {
                    // Only the one that is waited for is taken.
                    let _ = self.pair.coordinator.handle_input(self.now, input);
                }
            }
            LinkEvent::BufferFull { member, level } => {
                debug!(?member, ?level, "the buffer of a secondary fills up");
                let is_urgent = level == BufferLevel::Full;
                if is_urgent {
                    self.hurry(member);
                }
                let is_wanted = !self.pair.wanted.iter().any(|wanted| wanted.is_urgent);
                if self.pair.every.is_some() && is_wanted {
                    self.take_automatic_checkpoint(is_urgent);
                }
            }
            LinkEvent::Answer(question, answer) => {
                let answer = answer.map_err(|refusal| self.refusal_of(question.member(), refusal));
                let input = match question {
                    Question::Epoch(member) => {
                        Input::Epoch(member, answer.and_then(|epoch| epoch.ok_or(Refused::Failed)))
                    }
                    Question::Prepare(member) => Input::Prepared(member, answer.map(|_| ())),
                    Question::Commit(member) => Input::Committed(member, answer.map(|_| ())),
                };
                if self.pair.coordinator.handle_input(self.now, input).is_err() {
                    debug!(?question, "an answer came too late");
                }
            }
        }
    }

    /// A secondary's refusal: its words are kept for whoever asked.
    fn refusal_of(&mut self, member: MemberIndex, refusal: Refusal) -> Refused {
        match refusal {
            Refusal::NoLink => Refused::NoControl,
            Refusal::Said { text, is_missing } => {
                self.pair.said = format!("replica '{}' refuses: {text}", self.member_name(member));
                if is_missing { Refused::Missing } else { Refused::Failed }
            }
        }
    }
}
