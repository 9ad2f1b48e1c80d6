//! A secondary with its disks, its guest's connections and the far ends of its primary's connections, beside the bytes
//! that its disk and its guest's view should hold.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use twinblock_core::block::{Action, BlockDevice};
use twinblock_core::buffer::Spot;
use twinblock_core::buffer::index::Node;
use twinblock_core::driver::{Driver, Emitted, SecondaryDevices};
use twinblock_core::order::Slot;
use twinblock_core::secondary::{Command, Connection, Input, Port, Secondary, Storage, Work};
use twinblock_core::{
    CommandId, ConnectionId, Errno, Event, Extent, Identity, Micros, Notice, Op, Outcome, Refused, Reply,
    Stage, View,
};

use super::bytes::Bytes;
use super::client::{Clients, Flying, NO_DATA};
use super::link::Message;
use super::settings::Settings;
use crate::simulator::disk::{Disk, range};

/// What a secondary borrows.
#[derive(Debug)]
pub(super) struct Room {
    table: Vec<Slot<Work>>,
    nodes: Vec<Node>,
    connections: Vec<Connection>,
}

impl Room {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            table: vec![Slot::FREE; settings.secondary_places()],
            nodes: vec![Node::EMPTY; settings.nodes],
            connections: vec![Connection::FREE; 6],
        }
    }
}

/// What the primary's guest counted on when its writes stood still for a checkpoint.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) bytes: Bytes,
    /// Modifications in flight: where, and what they write.
    pub(super) flying: Vec<(Extent, Vec<u8>)>,
}

/// Where the answer to an operation goes.
#[derive(Clone, Debug)]
pub(super) enum Asker {
    /// A manager, who counts nothing but its success.
    Manager,
    /// The same, by force.
    Force,
    /// The coordinator, with the name of its question.
    Prepare(u64, Rc<Snapshot>),
    /// The coordinator, with the name of its question.
    Commit(u64),
}

/// A transfer of the primary that has been received.
#[derive(Debug)]
struct Incoming {
    session: ConnectionId,
    name: u64,
    pieces_left: u32,
    result: Result<Outcome, Errno>,
    extent: Extent,
    read: Vec<u8>,
}

/// An answer on its way to the primary.
#[derive(Debug)]
pub(super) struct Returning {
    pub(super) session: ConnectionId,
    pub(super) name: u64,
    pub(super) result: Result<Outcome, Errno>,
    pub(super) read: Vec<u8>,
}

/// The secondary's machine.
#[derive(Debug)]
pub(super) struct Standby<'m> {
    pub(super) driver: Driver<Secondary<'m>, SecondaryDevices<Disk, Disk>>,
    pub(super) clients: Clients,
    incoming: BTreeMap<u64, Incoming>,
    pub(super) returning: Vec<Returning>,
    /// The far end of the link, while it is up.
    pub(super) session: Option<ConnectionId>,
    /// What was answered to the primary.
    pub(super) disk: Bytes,
    /// The disk at the last checkpoint and what was answered to the guest since.
    pub(super) view: Bytes,
    /// The disk at the moment in which it was taken without a failover, before its guest goes on with it.
    pub(super) taken: Option<Vec<u8>>,
    epoch: u64,
    stage: Stage,
    asked: Vec<(CommandId, Asker)>,
    /// Questions of the coordinator that were answered.
    pub(super) answered: Vec<(u64, Result<(), Refused>)>,
    /// Operations of managers that were answered.
    pub(super) answers: Vec<(CommandId, Result<(), Refused>)>,
    /// Of the prepare that was answered last.
    snapshot: Option<Rc<Snapshot>>,
    /// Since then nothing has happened that is a reason to refuse the commit.
    pub(super) is_prepared: bool,
    /// Whose modification was carried out last in stage Running.
    owner: Option<ConnectionId>,
    /// An error was answered to the owner.
    has_failed: bool,
    /// The owner has gone without a goodbye.
    is_in_doubt: bool,
    /// Checkpoints of the pair.
    pub(super) commits: u64,
    /// One was taken just now.
    has_committed: bool,
    /// Guest's requests that failed.
    pub(super) guest_failures: u64,
    /// A connection of the primary was cut at some time.
    pub(super) was_cut: bool,
    /// It has told that its buffer is full.
    pub(super) is_full_told: bool,
}

impl<'m> Standby<'m> {
    pub(super) fn new(settings: &Settings, content: Vec<u8>, room: &'m mut Room) -> Self {
        let config = settings.secondary;
        let window = config.window_bytes as usize;
        let slots = vec![0xEE; settings.buffer().size_bytes as usize];
        let mut disk =
            Disk::new("secondary disk", settings.geometry(), content.clone(), settings.depth, window);
        let mut buffer = Disk::new("buffer", settings.buffer(), slots, settings.depth, window);
        disk.faults = settings.secondary_faults;
        buffer.faults = settings.secondary_faults;
        let Room { table, nodes, connections } = room;
        let storage = Storage { table, nodes, connections };
        let machine = Secondary::new(config, disk.geometry(), buffer.geometry(), storage).expect("it fits");
        let places = settings.secondary_places() as u16;
        Self {
            driver: Driver::new(machine, SecondaryDevices { disk, buffer }),
            clients: Clients::new(config.scratch_count.into(), places, config.window_bytes),
            incoming: BTreeMap::new(),
            returning: Vec::new(),
            session: None,
            disk: Bytes::new(content.clone()),
            view: Bytes::new(content),
            taken: None,
            epoch: 0,
            stage: Stage::None,
            asked: Vec::new(),
            answered: Vec::new(),
            answers: Vec::new(),
            snapshot: None,
            is_prepared: false,
            owner: None,
            has_failed: false,
            is_in_doubt: false,
            commits: 0,
            has_committed: false,
            guest_failures: 0,
            was_cut: false,
            is_full_told: false,
        }
    }

    pub(super) fn set_traced(&mut self, is_traced: bool) {
        let devices = self.driver.devices_mut();
        devices.disk.is_traced = is_traced;
        devices.buffer.is_traced = is_traced;
    }

    /// Whether an operation is under way.
    pub(super) fn is_asked(&self) -> bool {
        !self.asked.is_empty()
    }

    pub(super) fn machine(&self) -> &Secondary<'m> {
        self.driver.machine()
    }

    pub(super) fn device(&self) -> &Disk {
        &self.driver.devices().disk
    }

    pub(super) fn buffer(&self) -> &Disk {
        &self.driver.devices().buffer
    }

    /// Somebody connects. `None`: there is no room.
    pub(super) fn open(&mut self, now: Micros, identity: Option<Identity>) -> Option<ConnectionId> {
        let connection = ConnectionId(self.clients.name());
        let port = if identity.is_some() { Port::Replication } else { Port::Guest };
        match self.driver.offer(now, Input::Opened { connection, port, identity }) {
            Ok(()) => {
                self.clients.opened(connection, identity.is_some());
                Some(connection)
            }
            Err(Refused::NoRoom) => None,
            Err(refused) => panic!("a connection is refused: {refused:?}"),
        }
    }

    /// A connection has ended: what it has sent and nobody has read is dropped.
    pub(super) fn close(&mut self, now: Micros, client: usize, is_clean: bool) {
        let client = self.clients.open.swap_remove(client);
        if client.is_replication {
            self.is_prepared = false;
            self.is_in_doubt |= self.owner == Some(client.connection) && !is_clean;
        }
        if self.session == Some(client.connection) {
            self.session = None;
        }
        self.driver
            .offer(now, Input::Closed { connection: client.connection, is_clean })
            .expect("it was open");
    }

    /// The primary's end of the link is gone; these arrive yet.
    pub(super) fn cut(&mut self, arriving: VecDeque<Message>) {
        let Some(session) = self.session.take() else { return };
        self.was_cut = true;
        for message in arriving {
            self.receive(session, &message);
        }
        if let Some(client) = self.clients.find(session) {
            self.clients.open[client].is_ending = true;
        }
    }

    /// A transfer of the primary has arrived as a request.
    pub(super) fn receive(&mut self, session: ConnectionId, message: &Message) {
        let Some(client) = self.clients.find(session) else { return };
        let op = match message.transfer.action {
            Action::Read(_) => Op::Read(NO_DATA),
            Action::Write { fua, .. } => Op::Write { data: NO_DATA, fua },
            Action::WriteZeroes { may_unmap, fast, fua } => Op::WriteZeroes { may_unmap, fast, fua },
            Action::Flush => Op::Flush,
            Action::Status => Op::Status,
        };
        let extent = message.transfer.extent;
        let group = u64::from(self.clients.name());
        let pieces_left = self.clients.ask(client, group, op, extent, &message.new);
        let read = if matches!(op, Op::Read(_)) { vec![0; extent.length as usize] } else { Vec::new() };
        let result = Ok(Outcome::Done);
        let incoming = Incoming { session, name: message.name, pieces_left, result, extent, read };
        self.incoming.insert(group, incoming);
    }

    pub(super) fn command(
        &mut self,
        now: Micros,
        asker: Asker,
        wanted: Command,
    ) -> Result<CommandId, Refused> {
        let command = CommandId(self.clients.name());
        let was_prepared = std::mem::replace(&mut self.is_prepared, false);
        match (self.driver.offer(now, Input::Command(command, wanted)), &asker) {
            (Ok(()), _) => {
                let is_commit = matches!(asker, Asker::Commit(_));
                assert!(!is_commit || !self.lacks_something(), "a commit although something is missing");
                self.asked.push((command, asker));
                Ok(command)
            }
            (Err(refused), Asker::Commit(name)) => {
                let may_fail = !was_prepared || self.machine().is_behind();
                assert!(may_fail, "a commit fails after its prepare was answered: {refused:?}");
                self.answered.push((*name, Err(refused)));
                Err(refused)
            }
            (Err(refused), Asker::Prepare(name, _)) => {
                self.answered.push((*name, Err(refused)));
                Err(refused)
            }
            (Err(refused), Asker::Manager | Asker::Force) => {
                self.is_prepared = was_prepared;
                Err(refused)
            }
        }
    }

    /// Offers a connection's next piece; gives what was taken.
    pub(super) fn offer(&mut self, now: Micros, step: u64, client: usize) -> Option<Op> {
        let Self { driver, clients, .. } = self;
        let take = |connection, request| driver.offer(now, Input::Request(connection, request));
        match clients.offer(client, step, take)? {
            Ok(request) => Some(request.op),
            Err(Refused::Busy) => None,
            Err(refused) => panic!("a request is refused: {refused:?}"),
        }
    }

    /// Lets the machine do what it can, and hears what it says.
    pub(super) fn pump(&mut self, now: Micros, step: u64) {
        self.driver.devices_mut().disk.step = step;
        self.driver.devices_mut().buffer.step = step;
        self.look_at_stage();
        while let Some(emitted) = self.driver.poll(now, &mut self.clients.arena) {
            match emitted {
                Emitted::Reply(reply) => self.replied(&reply),
                Emitted::Notice(Notice::Answer(command, result)) => self.command_answered(command, result),
                Emitted::Notice(Notice::Close(connection)) => {
                    let told = self.clients.find(connection).expect("it is open");
                    self.clients.open[told].is_ending = true;
                }
                Emitted::Notice(Notice::Event(event)) => self.is_full_told |= event == Event::BufferFull,
            }
        }
        self.look_at_stage();
        assert_eq!(self.driver.stale_completions(), 0);
    }

    fn look_at_stage(&mut self) {
        let stage = self.machine().stage();
        if self.stage == Stage::Running && stage == Stage::Done {
            self.view = self.disk.clone();
            self.taken = Some(self.device().bytes().to_vec());
        }
        if self.stage != stage {
            self.is_prepared = false;
        }
        self.stage = stage;
    }

    fn replied(&mut self, reply: &Reply) {
        let (flying, read) = self.clients.answered(reply);
        let range = flying.range();
        let is_faulty = !self.device().injected.is_empty() || !self.buffer().injected.is_empty();
        let model = if flying.is_replication { &mut self.disk } else { &mut self.view };
        match (reply.result, flying.request.op) {
            (Ok(_), Op::Write { .. } | Op::WriteZeroes { .. }) => model.wrote(range, &flying.new),
            (Err(_), Op::Write { .. } | Op::WriteZeroes { .. }) if is_faulty => {
                model.may_have_written(range, &flying.new);
            }
            (Ok(_), Op::Read(_)) if !flying.is_replication => {
                let wrong = model.first_wrong(range.start, &read, |_, _| false);
                assert_eq!(wrong, None, "the guest of the secondary reads other bytes than its view has");
            }
            _ => {}
        }
        if !flying.is_replication {
            self.guest_failures += u64::from(reply.result.is_err());
            return;
        }
        self.look_at_claim(&flying, reply.result);
        let Some(incoming) = self.incoming.get_mut(&flying.group) else { return };
        incoming.pieces_left -= 1;
        incoming.result = incoming.result.and(reply.result);
        if !incoming.read.is_empty() {
            let start = (flying.request.extent.offset - incoming.extent.offset) as usize;
            incoming.read[start..start + read.len()].copy_from_slice(&read);
        }
        if incoming.pieces_left == 0
            && let Some(Incoming { session, name, result, read, .. }) = self.incoming.remove(&flying.group)
        {
            self.returning.push(Returning { session, name, result, read });
        }
    }

    /// Nobody modifies while requests of another holder of the claim may still come, and errors are not forgotten.
    fn look_at_claim(&mut self, flying: &Flying, result: Result<Outcome, Errno>) {
        if self.machine().stage() != Stage::Running {
            return;
        }
        let is_write = flying.is_modification();
        if is_write && result.is_ok() {
            if let Some(owner) = self.owner.filter(|owner| *owner != flying.connection) {
                let is_left = |other: &Flying| other.connection == owner && other.is_modification();
                assert!(self.clients.find(owner).is_none(), "two connections modify at a time");
                assert!(
                    !self.clients.flying.iter().any(is_left),
                    "the claim moves on before its transfers end"
                );
            }
            self.owner = Some(flying.connection);
        }
        let is_failure = matches!(result, Err(Errno::Io | Errno::NoSpace));
        self.has_failed |= is_failure && (is_write || flying.request.op == Op::Flush);
    }

    const fn lacks_something(&self) -> bool {
        self.has_failed || self.is_in_doubt
    }

    fn command_answered(&mut self, command: CommandId, result: Result<(), Refused>) {
        let place = self.asked.iter().position(|(asked, _)| *asked == command);
        let (_, asker) = self.asked.remove(place.expect("an answer to what was asked"));
        let epoch = self.machine().epoch();
        if epoch != self.epoch {
            assert_eq!(epoch, self.epoch + 1);
            self.epoch = epoch;
            match asker {
                // A claim that has ended since the commit was taken puts the next epoch in doubt.
                Asker::Commit(_) => assert!(!self.has_failed, "a commit although something is missing"),
                Asker::Force => (self.has_failed, self.is_in_doubt) = (false, false),
                _ if epoch == 1 => {}
                _ => assert!(!self.lacks_something(), "a checkpoint although something is missing"),
            }
            self.epoch_ended();
        }
        match asker {
            Asker::Manager | Asker::Force => self.answers.push((command, result)),
            Asker::Prepare(name, snapshot) => {
                if result.is_ok() {
                    self.snapshot = Some(snapshot);
                    self.is_prepared = true;
                }
                self.answered.push((name, result));
            }
            Asker::Commit(name) => {
                match result {
                    Ok(()) => self.check_committed(),
                    Err(refused) => {
                        let is_faulty =
                            !self.device().injected.is_empty() || !self.buffer().injected.is_empty();
                        assert!(
                            is_faulty || refused == Refused::NotRunning,
                            "a commit that was taken fails: {refused:?}"
                        );
                    }
                }
                self.answered.push((name, result));
            }
        }
    }

    /// A checkpoint: nothing is in flight on the disks, and the view is the disk.
    fn epoch_ended(&mut self) {
        assert_eq!(self.device().in_flight() + self.buffer().in_flight(), 0, "S2");
        let is = self.device().bytes().to_vec();
        assert_eq!(self.disk.first_wrong(0, &is, |_, _| false), None, "at a checkpoint the disk is wrong");
        self.disk = Bytes::new(is.clone());
        self.view = Bytes::new(is);
        self.is_prepared = false;
    }

    /// After a checkpoint of the pair the disk is what the primary's guest counted on when it stood still.
    fn check_committed(&mut self) {
        self.commits += 1;
        self.has_committed = true;
        let snapshot = self.snapshot.clone().expect("a commit follows a prepare");
        let flew = |at: usize, byte: u8| {
            let explains = |(extent, new): &(Extent, Vec<u8>)| {
                let range = range(*extent);
                range.contains(&at) && new[at - range.start] == byte
            };
            snapshot.flying.iter().any(explains)
        };
        if let Some(at) = snapshot.bytes.first_wrong(0, self.device().bytes(), flew) {
            let is = self.device().bytes()[at];
            let should = snapshot.bytes.value()[at];
            panic!("a checkpoint while something is missing: byte {at} is {is:#x}, not {should:#x}");
        }
    }

    /// Whether a checkpoint of the pair was taken since this was asked last.
    pub(super) fn has_committed(&mut self) -> bool {
        std::mem::take(&mut self.has_committed)
    }

    /// What the guest would read, were nothing in flight.
    pub(super) fn resolve_view(&self) -> Vec<u8> {
        let mut view = self.device().bytes().to_vec();
        let mut rest = Extent { offset: 0, length: view.len() as u64 };
        while !rest.is_empty() {
            let found = self.machine().buffer().find(rest);
            let part = Extent { length: found.length, ..rest };
            match found.spot {
                Spot::Slot(at) => {
                    let slots = range(Extent { offset: at, length: part.length });
                    view[range(part)].copy_from_slice(&self.buffer().bytes()[slots]);
                }
                Spot::Zeroes => view[range(part)].fill(0),
                Spot::Absent => {}
            }
            rest = Extent::between(part.end(), rest.end());
        }
        view
    }

    /// Disk and view are what they should be, but for what requests in flight may have done already.
    pub(super) fn check(&self) {
        let stage = self.machine().stage();
        if matches!(stage, Stage::None | Stage::Running) {
            let excuse = |at: usize, byte: u8| self.clients.explain(true, at, byte);
            let wrong = self.disk.first_wrong(0, self.device().bytes(), excuse);
            assert_eq!(wrong, None, "a byte of the secondary disk is wrong in {stage:?}");
        }
        if stage != Stage::None && self.machine().view() == View::Whole {
            let excuse = |at: usize, byte: u8| self.clients.explain(false, at, byte);
            let wrong = self.view.first_wrong(0, &self.resolve_view(), excuse);
            assert_eq!(wrong, None, "a byte of the guest's view is wrong in {stage:?}");
        }
    }

    /// What keeps it from being idle.
    pub(super) fn left(&self) -> String {
        let Self { clients, asked, .. } = self;
        let asked: Vec<_> = asked.iter().map(|(command, _)| command).collect();
        let ending = clients.open.iter().filter(|client| client.is_ending).count();
        let in_flight = self.machine().in_flight();
        format!("{asked:?}, {:?}, {in_flight} in flight, {ending} connections that end", clients.flying)
    }

    pub(super) fn is_idle(&self) -> bool {
        // One that came after its connection was lost waits for modifications that nobody sends any more.
        let is_late = |(_, asker): &(CommandId, Asker)| matches!(asker, Asker::Prepare(..));
        self.clients.is_idle()
            && self.asked.iter().all(is_late)
            && self.device().in_flight() + self.buffer().in_flight() == 0
            && self.machine().in_flight() == 0
            && self.clients.open.iter().all(|client| !client.is_ending)
    }
}

/// As the coverage table has it.
pub(crate) fn name_of(wanted: &Command) -> &'static str {
    match wanted {
        Command::Start { .. } => "start",
        Command::Checkpoint { force: false } => "checkpoint",
        Command::Checkpoint { force: true } => "forced checkpoint",
        Command::Prepare { .. } => "prepare",
        Command::Commit { .. } => "commit",
        Command::Stop { failover: true, .. } => "failover",
        Command::Stop { force: false, .. } => "stop",
        Command::Stop { force: true, .. } => "forced stop",
    }
}
