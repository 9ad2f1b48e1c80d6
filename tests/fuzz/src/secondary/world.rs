//! A secondary, its devices, its clients and its manager.

use std::fmt::Write;
use std::hash::{DefaultHasher, Hasher};

use twinblock_core::block::{Completion, Tag, Transfer};
use twinblock_core::secondary::{Command, Input, Port, Secondary};
use twinblock_core::{
    CommandId, ConnectionId, Device, Errno, Event, Identity, Memory, Micros, Notice, Outcome, Output, Pool,
    Refused, Stage, View,
};

use super::check::Model;
use super::{Asked, Settings, Step, identity};
use crate::buffers::Buffers;
use crate::disk::{Disk, Ending, about};
use crate::requests::{Flying, Link, Wanted, is_sound, request};

/// What a connection was opened for.
pub(super) type Client = (Port, Option<Identity>);

pub(super) struct World<'m> {
    settings: Settings,
    pub(super) machine: Secondary<'m>,
    pub(super) disk: Disk,
    pub(super) buffer: Disk,
    memory: Buffers,
    now: Micros,
    pub(super) links: [Option<Link<Client>>; 4],
    pub(super) flying: Vec<Flying<Port>>,
    commands: Vec<(CommandId, Command)>,
    names: u32,
    pub(super) model: Model,
}

impl<'m> World<'m> {
    pub(super) fn new(settings: Settings, machine: Secondary<'m>, places: usize) -> Self {
        let scratch = usize::from(settings.config.scratch_count);
        let mut memory = Buffers::new(scratch + places, settings.config.window_bytes as usize);
        memory.reserve(scratch);
        let disk = Disk::new(settings.disk);
        Self {
            settings,
            machine,
            model: Model::new(disk.bytes.clone()),
            disk,
            buffer: Disk::new(settings.buffer),
            memory,
            now: Micros(0),
            links: [None; 4],
            flying: Vec::new(),
            commands: Vec::new(),
            names: 0,
        }
    }

    fn name(&mut self) -> u32 {
        self.names += 1;
        self.names
    }

    pub(super) fn play(&mut self, step: Step) {
        match step {
            Step::Open { place, port, identity: number, is_again } => {
                self.open(usize::from(place), port, number.map(identity), is_again);
            }
            Step::Close { place, is_clean } => self.close(usize::from(place), is_clean),
            Step::Request(wanted) => self.request(&wanted),
            Step::End { device, which, ending } => self.end(device, usize::from(which), ending),
            Step::Forge { device, entry, generation } => {
                let tag = Tag { entry, generation };
                if !self.disk.has(tag) && !self.buffer.has(tag) {
                    let completion = Completion { tag, result: Ok(Outcome::Done) };
                    assert_eq!(self.offer(Input::Completed(device, completion)), Err(Refused::Stale));
                }
            }
            Step::Command(asked) => self.command(asked),
            Step::Wait(span) => self.wait(span),
        }
    }

    /// Offers an input and does what comes of it.
    fn offer(&mut self, input: Input) -> Result<(), Refused> {
        let before = self.settings.is_strict.then(|| self.fingerprint());
        let result = self.machine.handle_input(self.now, input);
        if let (Err(refused), Some(before)) = (result, before) {
            assert_eq!(self.fingerprint(), before, "{input:?}: {refused:?}, and yet something has changed");
        }
        if result.is_ok() {
            self.observe();
        }
        result
    }

    /// Of all that the machine knows.
    fn fingerprint(&self) -> u64 {
        struct Hash(DefaultHasher);
        impl Write for Hash {
            fn write_str(&mut self, text: &str) -> std::fmt::Result {
                self.0.write(text.as_bytes());
                Ok(())
            }
        }
        let mut hash = Hash(DefaultHasher::new());
        write!(hash, "{:?}", self.machine).expect("it takes everything");
        hash.0.finish()
    }

    fn open(&mut self, place: usize, port: Port, identity: Option<Identity>, is_again: bool) {
        if let Some(link) = self.links[place] {
            if is_again {
                let again = Input::Opened { connection: link.id, port, identity };
                assert_eq!(self.offer(again), Err(Refused::Stale));
            }
            return;
        }
        let id = ConnectionId(self.name());
        let result = self.offer(Input::Opened { connection: id, port, identity });
        let open = self.links.iter().flatten().count();
        assert_eq!(result.is_ok(), open < self.settings.connections);
        if result.is_ok() {
            let about = (port, identity);
            self.links[place] = Some(Link { id, about, modifications: 0, is_unfinished: false });
            self.poll();
        }
    }

    fn close(&mut self, place: usize, is_clean: bool) {
        let link = self.links.get_mut(place).and_then(Option::take);
        let connection = link.map_or(ConnectionId(u32::MAX), |link| link.id);
        let result = self.offer(Input::Closed { connection, is_clean });
        assert_eq!(result.is_ok(), link.is_some());
        self.poll();
    }

    fn request(&mut self, wanted: &Wanted) {
        let Some(Some(link)) = self.links.get(usize::from(wanted.connection)).copied() else { return };
        let name = self.name();
        let sizes = (self.settings.disk.size_bytes, u64::from(self.settings.config.window_bytes));
        let made = request(wanted, name, sizes, link.is_unfinished, &mut self.memory);
        let Some((request, data, new)) = made else { return };
        let block = u64::from(self.machine.block_bytes());
        let result = self.machine_take(link.id, request);
        match result {
            Ok(()) => {
                assert!(is_sound(&request, sizes.0, block, sizes.1), "{request:?} was taken");
                let port = link.about.0;
                if request.op.is_modification() {
                    self.modified(usize::from(wanted.connection), request.is_first, request.is_last);
                }
                self.flying.push(Flying { request, about: port, data, new, is_certain: true });
                self.model.taken(name, self.machine.stage());
                self.observe();
            }
            Err(refused) => {
                let is_sound = is_sound(&request, sizes.0, block, sizes.1);
                assert_eq!(refused == Refused::BadRequest, !is_sound, "{request:?}: {refused:?}");
                assert!(matches!(refused, Refused::BadRequest | Refused::Busy));
                if let Some(data) = data {
                    self.memory.release(data.buffer);
                }
            }
        }
        self.poll();
    }

    /// As `offer`, but the model is told of the request before it is compared.
    fn machine_take(
        &mut self,
        connection: ConnectionId,
        request: twinblock_core::Request,
    ) -> Result<(), Refused> {
        let before = self.settings.is_strict.then(|| self.fingerprint());
        let result = self.machine.handle_input(self.now, Input::Request(connection, request));
        if let (Err(refused), Some(before)) = (result, before) {
            assert_eq!(self.fingerprint(), before, "{request:?}: {refused:?}, and yet something has changed");
        }
        result
    }

    fn modified(&mut self, place: usize, is_first: bool, is_last: bool) {
        let Some(link) = &mut self.links[place] else { return };
        link.is_unfinished = !is_last;
        if is_first && link.about.0 == Port::Replication {
            link.modifications += 1;
            if link.about.1.is_some() && self.model.prepared == link.about.1 {
                self.model.prepared = None;
            }
        }
    }

    fn end(&mut self, device: Device, which: usize, ending: Ending) {
        let disk = if device == Device::Disk { &mut self.disk } else { &mut self.buffer };
        if disk.queue.is_empty() {
            return;
        }
        let which = which % disk.queue.len();
        let completion = disk.end(which, ending, &mut self.memory);
        let result = self.machine.handle_input(self.now, Input::Completed(device, completion));
        assert_eq!(result, Ok(()), "{completion:?}");
        self.observe();
        self.poll();
    }

    fn command(&mut self, asked: Asked) {
        let epoch = self.machine.epoch();
        let received = |claim: Identity| {
            let mut links = self.links.iter().flatten();
            links
                .find(|link| link.about == (Port::Replication, Some(claim)))
                .map_or(0, |link| link.modifications)
        };
        let command = match asked {
            Asked::Start { primary } => Command::Start { primary },
            Asked::Checkpoint { force } => Command::Checkpoint { force },
            Asked::Prepare { epoch: ahead, claim, modifications } => {
                let claim = identity(claim);
                let modifications = received(claim).wrapping_add_signed(i64::from(modifications));
                Command::Prepare { epoch: epoch.wrapping_add(ahead), claim, modifications }
            }
            Asked::Commit { epoch: ahead, claim } => {
                Command::Commit { epoch: epoch.wrapping_add(ahead), claim: identity(claim) }
            }
            Asked::Stop { failover, force } => Command::Stop { failover, force },
        };
        let name = CommandId(self.name());
        let verdict = self.machine.check_command(&command);
        let stage = self.machine.stage();
        self.commands.push((name, command));
        let result = self.offer(Input::Command(name, command));
        assert!(
            result == verdict || result == Err(Refused::Busy),
            "{command:?}: {result:?}, not {verdict:?}"
        );
        if result.is_err() {
            self.commands.retain(|(other, _)| *other != name);
        } else if let Command::Commit { claim, .. } = command {
            assert_eq!(stage, Stage::Running);
            assert_eq!(self.model.prepared, Some(claim), "a commit of what was not prepared");
        }
        self.poll();
    }

    fn wait(&mut self, span: u64) {
        self.now = self.now.after(Micros(span));
        self.machine.handle_timeout(self.now);
        let due = self.machine.poll_timeout();
        assert!(due.is_none_or(|due| due > self.now), "{due:?} was due at {:?}", self.now);
        self.observe();
        self.poll();
    }

    fn poll(&mut self) {
        for _ in 0..10_000 {
            let output = self.machine.poll_output();
            self.observe();
            let Some(output) = output else {
                self.compare();
                return;
            };
            self.handle(output);
        }
        panic!("it does not come to rest");
    }

    fn handle(&mut self, output: Output) {
        match output {
            Output::Transfer(device, transfer) => self.start(device, transfer),
            Output::Fill(data) => self.memory.bytes(data).expect("it is a buffer").fill(0),
            Output::Reply(reply) => {
                let place = self.flying.iter().position(|flying| flying.request.id == reply.id);
                let flying = self.flying.remove(place.expect("a request is answered once"));
                flying.check_reply(&reply);
                let bytes = flying.data.map(|data| self.memory.bytes(data).expect("it is a buffer").to_vec());
                self.replied(&flying, reply.result, bytes.as_deref());
                if let Some(data) = flying.data {
                    self.memory.release(data.buffer);
                }
            }
            Output::Notice(Notice::Answer(name, result)) => {
                let place = self.commands.iter().position(|(other, _)| *other == name);
                let (_, command) = self.commands.remove(place.expect("a command is answered once"));
                self.answered(command, result);
            }
            Output::Notice(Notice::Close(_)) => {}
            Output::Notice(Notice::Event(event)) => {
                if let Event::CommitProgress { total_bytes, done_bytes } = event {
                    assert!(done_bytes <= total_bytes);
                }
            }
        }
    }

    fn start(&mut self, device: Device, transfer: Transfer) {
        let scratch = u16::from(self.settings.config.scratch_count);
        if let (Some(data), _) = about(transfer.action) {
            let all = self.disk.queue.iter().chain(&self.buffer.queue).map(|started| started.transfer);
            for other in all {
                let own = about(other.action).0;
                let is_shared = own.is_some_and(|own| own.buffer == data.buffer && own.buffer.0 < scratch);
                assert!(!is_shared || other.tag == transfer.tag, "S5: {transfer:?} and {other:?}");
            }
        }
        match device {
            Device::Disk => self.disk.start(transfer),
            Device::Buffer => self.buffer.start(transfer),
            Device::Replica(_) => panic!("a secondary has no replica"),
        }
    }

    fn answered(&mut self, command: Command, result: Result<(), Refused>) {
        if result.is_err() {
            return;
        }
        match command {
            Command::Prepare { claim, modifications, .. } => {
                let is_it = |link: &&Link<Client>| {
                    link.about == (Port::Replication, Some(claim)) && link.modifications == modifications
                };
                assert!(self.links.iter().flatten().any(|link| is_it(&link)), "prepared without all");
                assert!(!self.model.has_missed, "prepared although something is missing");
                self.model.prepared = Some(claim);
            }
            Command::Commit { .. } | Command::Checkpoint { force: false } => {
                let is_over = self.machine.stage() != Stage::Running;
                assert!(is_over || !self.model.had_missed, "a checkpoint although something is missing");
            }
            _ => {}
        }
    }

    /// Everything ends well, and then nothing is left.
    pub(super) fn finish(&mut self) {
        for round in 0..64 {
            while !self.disk.queue.is_empty() || !self.buffer.queue.is_empty() {
                self.end(Device::Buffer, 0, Ending::Done);
                self.end(Device::Disk, 0, Ending::Done);
            }
            if round < 4 {
                self.close(round, false);
            }
            self.wait(1000);
            if self.machine.in_flight() == 0 && round >= 4 {
                break;
            }
        }
        assert_eq!(self.machine.in_flight(), 0, "a request is never answered");
        assert!(self.flying.is_empty() && self.commands.is_empty(), "{:?} {:?}", self.flying, self.commands);
        assert!(self.machine.stage() != Stage::Failover, "a failover never ends");
        assert!(
            self.machine.held() == 0 && self.machine.view() != View::Broken
                || self.machine.stage() == Stage::Running
        );
    }

    /// Errors that nothing but the machine itself answers with.
    pub(super) const fn is_own(errno: Errno) -> bool {
        matches!(errno, Errno::NoSpace | Errno::Shutdown | Errno::NotPermitted)
    }
}
