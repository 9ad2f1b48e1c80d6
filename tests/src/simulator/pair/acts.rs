//! What can happen next by itself, and how one of these things does.

use twinblock_core::node::check_commits;
use twinblock_core::primary;
use twinblock_core::secondary::{self, Command};
use twinblock_core::{Micros, Op, Refused};

use super::active::Active;
use super::control::{Control, Message, Question};
use super::settings::REPLICAS;
use super::standby::{Asker, Standby};
use super::world::{PRIMARY, Place, World};

/// Something that can happen next by itself.
#[derive(Clone, Copy, Debug)]
pub(super) enum Act {
    /// The disk of a volume's primary.
    PrimaryDisk(usize),
    /// A guest's next piece, by volume and client.
    PrimaryOffer(usize, usize),
    SecondaryDisk(Place),
    SecondaryBuffer(Place),
    /// A client's next piece.
    SecondaryOffer(Place, usize),
    Transmit(Place),
    /// One of the answers on their way to the primary arrives.
    Return(Place, usize),
    Question(usize),
    Answer(usize),
    /// The far end of a connection that was cut hears of it, or one that was told to close does.
    End(Place, usize),
    /// The primary hears that a link is down.
    Disconnected(Place),
    /// A time-out is due and nothing else is.
    Wait,
}

impl World<'_> {
    /// What can happen by itself.
    pub(super) fn acts(&self) -> Vec<Act> {
        let mut acts = Vec::with_capacity(32);
        if !self.is_primary_dead {
            self.primary_acts(&mut acts);
        }
        for place in self.places() {
            self.secondary_acts(place, &mut acts);
        }
        let every = self.settings.control_every;
        if !self.step.is_multiple_of(every) {
            return acts;
        }
        // Where a turn is rare it is taken.
        if every > 1 && self.control.is_under_way() {
            acts.clear();
        }
        for node in 0..self.settings.replicas {
            let Control { questions, answers, .. } = &self.control;
            let question = questions.iter().position(|one| one.place.replica == node);
            let question = question.filter(|at| !self.way(questions[*at].place).is_frozen);
            acts.extend(question.map(Act::Question));
            let answer = answers.iter().position(|one| one.place.replica == node);
            let answer = answer.filter(|at| !self.way(answers[*at].place).is_frozen);
            acts.extend(answer.map(Act::Answer));
        }
        acts
    }

    fn primary_acts(&self, acts: &mut Vec<Act>) {
        for (volume, this) in self.volumes.iter().enumerate() {
            if this.active.disk().in_flight() != 0 {
                acts.extend([Act::PrimaryDisk(volume); 2]);
            }
            for (place, client) in this.active.clients.open.iter().enumerate() {
                if !client.outbox.is_empty() {
                    acts.push(Act::PrimaryOffer(volume, place));
                }
            }
            for (replica, way) in this.ways.iter().enumerate() {
                if way.is_cut {
                    acts.push(Act::Disconnected(Place { volume, replica }));
                }
            }
        }
    }

    fn secondary_acts(&self, place: Place, acts: &mut Vec<Act>) {
        let standby = self.standby(place);
        let is_silent = self.way(place).is_frozen || self.is_primary_dead;
        if !is_silent {
            let link = self.volumes[place.volume].active.link(place.replica);
            if standby.session.is_some() && !link.wire.is_empty() {
                acts.push(Act::Transmit(place));
            }
            acts.extend((0..standby.returning.len().min(3)).map(|answer| Act::Return(place, answer)));
        }
        for (client, open) in standby.clients.open.iter().enumerate() {
            if !open.outbox.is_empty() {
                acts.push(Act::SecondaryOffer(place, client));
            }
            // It takes a while to notice: what was sent before is mostly read.
            let is_noticed = open.outbox.is_empty() || self.step.is_multiple_of(8);
            if open.is_ending && is_noticed {
                acts.push(Act::End(place, client));
            }
        }
        if standby.device().in_flight() != 0 {
            acts.extend([Act::SecondaryDisk(place); 2]);
        }
        if standby.buffer().in_flight() != 0 {
            acts.extend([Act::SecondaryBuffer(place); 2]);
        }
    }

    /// How long until something happens by itself, by the clock of whoever it happens to.
    fn next_timeout(&self) -> Option<Micros> {
        let left = |due: Micros, skew: u64| Micros(due.0.saturating_sub(skew).max(self.now.0));
        let of_control = self.control.poll_timeout().filter(|_| !self.is_primary_dead);
        let of_control = of_control.map(|due| left(due, self.skew[0]));
        let of_standby = |place: Place| {
            Some(left(self.standby(place).driver.poll_timeout()?, self.skew[1 + place.replica]))
        };
        self.places().filter_map(of_standby).chain(of_control).min()
    }

    /// One thing happens by itself, if anything can. Whether it did. With `may_wait`, time passes up to the next time-out
    /// when nothing else is left.
    pub(super) fn advance(&mut self, may_wait: bool) -> bool {
        let acts = self.acts();
        // Whoever only offers what is not taken waits too.
        let is_offer = |act: &Act| matches!(act, Act::PrimaryOffer(..) | Act::SecondaryOffer(..));
        let has_time = may_wait && acts.iter().all(is_offer) && self.rng.u8(..4) == 0;
        let due = if may_wait && (acts.is_empty() || has_time) { self.next_timeout() } else { None };
        // Where control messages pass in some steps only, the others go by.
        let may_skip = may_wait && acts.is_empty() && due.is_none() && self.control.is_under_way();
        let act = match due {
            Some(due) => {
                self.now = self.now.max(due);
                Act::Wait
            }
            None if may_skip => Act::Wait,
            None if acts.is_empty() => return false,
            None => acts[self.rng.usize(..acts.len())],
        };
        self.step += 1;
        self.now = self.now.after(Micros(self.rng.u64(..40)));
        self.perform(act);
        self.look_at_clocks();
        self.settle();
        if self.is_checking {
            self.check(act);
        }
        true
    }

    fn look_at_clocks(&mut self) {
        let now = self.primary_now();
        if !self.is_primary_dead && self.control.poll_timeout().is_some_and(|due| due <= now) {
            self.meet_coordinator("time-out");
            self.control.handle_timeout(now);
            self.trace(|_| "the coordinator gives up".to_owned());
        }
        for place in self.places() {
            let now = self.secondary_now(place.replica);
            if self.standby(place).driver.poll_timeout().is_some_and(|due| due <= now) {
                self.meet_secondary(place, "time-out");
            }
        }
    }

    fn perform(&mut self, act: Act) {
        self.trace(|_| format!("{act:?}"));
        match act {
            Act::Wait => {}
            Act::PrimaryDisk(volume) => self.primary_disk(volume),
            Act::PrimaryOffer(volume, client) => {
                let (now, step) = (self.primary_now(), self.step);
                let taken = self.volumes[volume].active.offer(now, step, client);
                if let Some(op) = taken {
                    self.meet_primary(volume, name_of(&op));
                }
            }
            Act::SecondaryDisk(place) => self.secondary_device(place, true),
            Act::SecondaryBuffer(place) => self.secondary_device(place, false),
            Act::SecondaryOffer(place, client) => {
                let (now, step) = (self.secondary_now(place.replica), self.step);
                let is_primarys = self.standby(place).clients.open[client].is_replication;
                if let Some(op) = self.standby_mut(place).offer(now, step, client) {
                    self.meet_request(place, is_primarys, &op);
                }
            }
            Act::Transmit(place) => {
                let link = self.volumes[place.volume].active.link_mut(place.replica);
                let message = link.wire.pop_front().expect("it is there");
                let standby = self.standby_mut(place);
                standby.receive(standby.session.expect("the link is up"), &message);
            }
            Act::Return(place, answer) => self.bring_answer(place, answer),
            Act::Question(at) => self.deliver_question(at),
            Act::Answer(at) => {
                let answer = self.control.answers.remove(at);
                if let Some(name) = self.control.name_of(&answer) {
                    self.meet_coordinator(name);
                }
                let now = self.primary_now();
                self.control.hear(now, &answer);
            }
            Act::End(place, client) => self.end_session(place, client),
            Act::Disconnected(place) => {
                self.way_mut(place).is_cut = false;
                let gone = primary::Input::Disconnected(place.replica as u8);
                self.tell_primary(place.volume, "disconnected", gone);
            }
        }
    }

    fn primary_disk(&mut self, volume: usize) {
        let step = self.step;
        let Active { driver, clients, .. } = &mut self.volumes[volume].active;
        let disk = &mut driver.devices_mut().disk;
        disk.step = step;
        if let Some(is_done) = disk.progress(&mut self.rng, &mut clients.arena) {
            self.meet_primary(volume, if is_done { "disk done" } else { "disk failed" });
        }
    }

    fn secondary_device(&mut self, place: Place, is_disk: bool) {
        let step = self.step;
        let Standby { driver, clients, .. } = &mut self.volumes[place.volume].standbys[place.replica];
        let devices = driver.devices_mut();
        let device = if is_disk { &mut devices.disk } else { &mut devices.buffer };
        device.step = step;
        let name = match (device.progress(&mut self.rng, &mut clients.arena), is_disk) {
            (None, _) => return,
            (Some(true), true) => "disk done",
            (Some(false), true) => "disk failed",
            (Some(true), false) => "buffer done",
            (Some(false), false) => "buffer failed",
        };
        self.meet_secondary(place, name);
    }

    fn bring_answer(&mut self, place: Place, answer: usize) {
        let answer = self.standby_mut(place).returning.swap_remove(answer);
        if self.standby(place).session != Some(answer.session) {
            return;
        }
        self.meet_primary(
            place.volume,
            if answer.result.is_ok() { "replica done" } else { "replica failed" },
        );
        let Active { driver, clients, .. } = &mut self.volumes[place.volume].active;
        let link = &mut driver.devices_mut().replicas[place.replica];
        link.answered(answer.name, answer.result, &answer.read, &mut clients.arena);
    }

    /// A secondary closes a connection; if the primary still uses it, it is cut there too.
    fn end_session(&mut self, place: Place, client: usize) {
        let connection = self.standby(place).clients.open[client].connection;
        if self.standby(place).session == Some(connection) {
            self.volumes[place.volume].active.link_mut(place.replica).cut();
            self.way_mut(place).is_cut = true;
        }
        self.meet_secondary(place, "unclean close");
        let now = self.secondary_now(place.replica);
        self.standby_mut(place).close(now, client, false);
    }

    fn deliver_question(&mut self, at: usize) {
        let Message { name, place, what } = self.control.questions.remove(at);
        let now = self.secondary_now(place.replica);
        let (asker, wanted) = match what {
            Question::Epoch => {
                let epoch = self.standby(place).machine().epoch();
                self.control.answers.push(Message { name, place, what: Ok(epoch) });
                return;
            }
            Question::Prepare { epoch, modifications, snapshot } => {
                self.commits[place.replica].clear();
                let wanted = secondary::Command::Prepare { epoch, claim: PRIMARY, modifications };
                (Asker::Prepare(name, snapshot), wanted)
            }
            Question::Commit { epoch, together } => return self.commit(name, place, epoch, together),
        };
        self.meet_secondary(place, super::standby::name_of(&wanted));
        let _ = self.standby_mut(place).command(now, asker, wanted);
    }

    /// A node carries commits out when all have come that belong together, and only if all can be.
    fn commit(&mut self, name: u64, place: Place, epoch: u64, together: u16) {
        let node = place.replica;
        self.commits[node].push((name, place, epoch));
        if self.commits[node].len() < usize::from(together) {
            return;
        }
        let commits = std::mem::take(&mut self.commits[node]);
        let command = |epoch| Command::Commit { epoch, claim: PRIMARY };
        let machines =
            commits.iter().map(|(_, place, epoch)| (self.standby(*place).machine(), command(*epoch)));
        let refusing = check_commits(machines).err().map(|(refusing, _)| refusing);
        let now = self.secondary_now(node);
        for (at, (name, place, epoch)) in commits.into_iter().enumerate() {
            self.meet_secondary(place, "commit");
            let standby = self.standby_mut(place);
            if refusing.is_some_and(|refusing| refusing != at) {
                standby.answered.push((name, Err(Refused::Failed)));
                continue;
            }
            let result = standby.command(now, Asker::Commit(name), command(epoch));
            assert_eq!(result.is_err(), refusing.is_some(), "checked, and then {result:?}");
        }
    }

    /// Everything ends that can; held writes, barriers and questions by their time-outs.
    pub(super) fn run_until_idle(&mut self) {
        for _ in 0..20_000 {
            let is_waiting = self.control.is_busy() && !self.is_primary_dead;
            let is_holding = self.places().any(|place| self.standby(place).machine().held() != 0);
            if !is_waiting && !is_holding && self.acts().is_empty() && !self.control.is_under_way() {
                self.check_idle();
                return;
            }
            assert!(self.advance(true), "nothing can happen any more, and not everything is answered");
        }
        panic!("no end: {:?}", self.acts());
    }

    /// A node's clock jumps ahead.
    pub(super) fn jump(&mut self) {
        let node = self.rng.usize(..=REPLICAS);
        let bits = self.rng.u8(8..30);
        self.skew[node] += self.rng.u64(1..=1 << bits);
        self.trace(|world| format!("clocks are ahead by {:?}", world.skew));
    }
}

/// The name of a request, as the coverage table has it for a primary.
pub(super) fn name_of(op: &Op) -> &'static str {
    match op {
        Op::Read(_) => "read",
        Op::Write { .. } => "write",
        Op::WriteZeroes { may_unmap: true, .. } => "trim",
        Op::WriteZeroes { .. } => "zeroes",
        Op::Flush => "flush",
        Op::Status => "status",
    }
}
