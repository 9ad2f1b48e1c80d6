//! A secondary alone: clients of both ports, a manager, and two disks.

mod check;
mod client;
mod command;
mod reply;
mod script;

use fastrand::Rng;
use std::collections::BTreeMap;
use twinblock_core::block::BlockDevice;
use twinblock_core::buffer::index::Node;
use twinblock_core::driver::{Driver, Emitted, SecondaryDevices};
use twinblock_core::order::Slot;
use twinblock_core::secondary::{Connection, Input, Port, Secondary, Storage};
use twinblock_core::{
    CommandId, ConnectionId, Data, Event, Extent, Memory, Micros, Notice, Op, Pool, Refused, Request,
    RequestId, Stage, View,
};

use super::arena::Arena;
use super::coverage::Coverage;
use super::disk::Disk;
use super::model::Model;
use super::settings::Settings;
use super::trace;
use client::{Client, Piece};
use command::Asked;

/// Runs the script of a seed.
///
/// # Panics
/// If the machine breaks a rule.
pub fn run(seed: u64, is_traced: bool) -> Coverage {
    let mut rng = Rng::with_seed(seed);
    let settings = Settings::choose(&mut rng);
    let is_calm = (seed / CALM_RUN).is_multiple_of(CALM_EVERY);
    let settings = if is_calm { settings.calmed() } else { settings };
    let promised = settings.config.replication_requests + settings.config.guest_requests;
    let mut table = vec![Slot::FREE; usize::from(promised) + settings.spare_places];
    let mut nodes = vec![Node::EMPTY; settings.nodes];
    let mut connections = vec![Connection::FREE; settings.connections];
    let storage = Storage { table: &mut table, nodes: &mut nodes, connections: &mut connections };
    let content = settings.content(&mut rng);
    let machine = Secondary::new(settings.config, settings.disk, settings.buffer, storage).expect("it fits");
    let mut world = World::new(rng, settings, machine, content, is_traced);
    world.trace(|world| format!("{:?}", world.settings));
    world.play();
    world.coverage
}

/// Of so many runs of neighbouring seeds one is calm; each has some seeds for each world.
const CALM_EVERY: u64 = 8;
const CALM_RUN: u64 = 16;

/// A request that a machine has taken and not answered.
#[derive(Clone, Debug)]
struct Flying {
    request: Request,
    connection: ConnectionId,
    port: Port,
    group: u64,
    data: Option<Data>,
    /// What a modification writes.
    new: Vec<u8>,
    taken_at: u64,
    /// Stages it has seen, one bit each.
    stages: u8,
    /// It has seen a moment in which the guest view was served.
    was_served: bool,
    /// It has seen a moment in which the guest view was not served.
    was_unserved: bool,
    /// It has seen held writes.
    saw_held: bool,
    /// It has seen another connection that holds the claim, or may.
    saw_rival: bool,
    /// Its connection has closed, or was told to.
    is_parting: bool,
    /// Fewest free slots it has seen.
    free_slots_min: u32,
    /// What was in flight when it was taken.
    beside: Vec<Extent>,
}

/// A request of a client, however many pieces it has.
#[derive(Clone, Copy, Debug, Default)]
struct Group {
    pieces: u32,
    answered: u32,
    is_modification: bool,
}

/// Everything around a secondary.
struct World<'m> {
    rng: Rng,
    settings: Settings,
    driver: Driver<Secondary<'m>, SecondaryDevices<Disk, Disk>>,
    arena: Arena,
    now: Micros,
    step: u64,
    model: Model,
    clients: Vec<Client>,
    flying: Vec<Flying>,
    groups: BTreeMap<u64, Group>,
    asked: Vec<Asked>,
    names_used: u32,
    coverage: Coverage,
    /// A connection of a primary has gone without a goodbye.
    was_cut: bool,
    /// The clock has jumped.
    has_jumped: bool,
    is_traced: bool,
}

impl<'m> World<'m> {
    fn new(rng: Rng, settings: Settings, machine: Secondary<'m>, content: Vec<u8>, is_traced: bool) -> Self {
        let window = settings.config.window_bytes as usize;
        let scratch = u16::from(settings.config.scratch_count);
        let slots = vec![0xEE; settings.buffer.size_bytes as usize];
        let model = Model::new(content.clone());
        let mut disk = Disk::new("disk", settings.disk, content, settings.depth, window);
        let mut buffer = Disk::new("buffer", settings.buffer, slots, settings.depth, window);
        disk.faults = settings.faults;
        buffer.faults = settings.faults;
        disk.is_traced = is_traced;
        buffer.is_traced = is_traced;
        // As many buffers as there are places: a piece that a barrier waits for must find one.
        let promised = settings.config.replication_requests + settings.config.guest_requests;
        let places = promised + settings.spare_places as u16;
        Self {
            rng,
            settings,
            driver: Driver::new(machine, SecondaryDevices { disk, buffer }),
            arena: Arena::new(scratch, places, window),
            now: Micros(0),
            step: 1,
            model,
            clients: Vec::new(),
            flying: Vec::new(),
            groups: BTreeMap::new(),
            asked: Vec::new(),
            names_used: 0,
            coverage: Coverage::default(),
            was_cut: false,
            has_jumped: false,
            is_traced,
        }
    }

    fn machine(&self) -> &Secondary<'m> {
        self.driver.machine()
    }

    fn disk(&self) -> &Disk {
        &self.driver.devices().disk
    }

    fn buffer(&self) -> &Disk {
        &self.driver.devices().buffer
    }

    fn trace(&self, line: impl FnOnce(&Self) -> String) {
        if self.is_traced {
            let line = line(self);
            trace::push(format!("{:>5} {:>8}us {line}", self.step, self.now.0));
        }
    }

    fn name(&mut self) -> u32 {
        self.names_used += 1;
        self.names_used
    }

    /// Lets the machine do what it can, hears what it says, and compares.
    fn drain(&mut self) {
        self.pump();
        // What the machine says waits behind a transfer that a full queue does not take.
        while self.disk().is_overfull() || self.buffer().is_overfull() {
            let Self { driver, rng, arena, .. } = self;
            let devices = driver.devices_mut();
            let is_disk = devices.disk.is_overfull();
            let full = if is_disk { &mut devices.disk } else { &mut devices.buffer };
            let is_done = full.progress(rng, arena);
            self.meet_completion(is_disk, is_done);
            self.pump();
        }
        assert_eq!(self.driver.stale_completions(), 0, "a completion was refused");
        self.compare();
        self.step += 1;
        let step = self.step;
        let devices = self.driver.devices_mut();
        devices.disk.step = step;
        devices.buffer.step = step;
    }

    fn pump(&mut self) {
        if self.driver.poll_timeout().is_some_and(|due| due <= self.now) {
            self.meet("time-out");
        }
        while let Some(emitted) = self.driver.poll(self.now, &mut self.arena) {
            self.trace(|_| format!("    {emitted:?}"));
            match emitted {
                Emitted::Reply(reply) => self.replied(&reply),
                Emitted::Notice(Notice::Answer(command, result)) => self.answered(command, result),
                Emitted::Notice(Notice::Close(connection)) => self.told_to_close(connection),
                Emitted::Notice(Notice::Event(event)) => self.heard(event),
            }
        }
    }

    fn heard(&mut self, event: Event) {
        match event {
            Event::Stage(stage) => self.entered(stage),
            Event::View(view) => {
                assert_ne!(self.model.is_broken, view == View::Broken, "it was so before");
                self.model.is_broken = view == View::Broken;
                self.look_around();
            }
            Event::CommitProgress { total_bytes, done_bytes } => {
                assert!(done_bytes <= total_bytes && self.model.stage == Stage::Failover);
            }
            Event::BufferFull => {
                assert_eq!(self.model.stage, Stage::Running);
                self.coverage.count("event: buffer full", self.model.stage, "");
            }
            Event::Error(_) | Event::BufferThreeQuarters | Event::Replica(..) => {}
        }
    }

    /// Offers the next piece of a client. Whether it was taken.
    fn offer(&mut self, client: usize) -> bool {
        let Some(piece) = self.clients[client].outbox.front().cloned() else { return false };
        let Some((request, data, new)) = self.prepare_piece(&piece) else { return false };
        let connection = self.clients[client].connection;
        let port = self.clients[client].port;
        let result = self.driver.offer(self.now, Input::Request(connection, request));
        self.trace(|_| format!("{port:?} {connection:?} {request:?}: {result:?}"));
        if let Err(refused) = result {
            assert_eq!(refused, Refused::Busy, "{request:?}");
            self.check_busy(port);
            if let Some(data) = data {
                self.arena.release(data.buffer);
            }
            self.coverage.count("offer", self.model.stage, "busy");
            self.drain();
            return false;
        }
        let is_primarys = port == Port::Replication;
        self.meet(super::pair::name_of_request(is_primarys, &request.op));
        let flying = self.flying_of(request, client, piece.group, data, new);
        self.clients[client].outbox.pop_front();
        if request.op.is_modification() {
            self.clients[client].modifications += u64::from(request.is_first);
            if port == Port::Replication {
                self.model.prepared = None;
            }
        }
        self.flying.push(flying);
        self.look_around();
        self.drain();
        true
    }

    /// Takes a buffer for a piece and fills it.
    fn prepare_piece(&mut self, piece: &Piece) -> Option<(Request, Option<Data>, Vec<u8>)> {
        let length = piece.extent.length as u32;
        let mut data = None;
        let mut new = Vec::new();
        let op = match piece.op {
            Op::Read(_) => {
                data = Some(Data { buffer: self.arena.acquire(length)?, offset: 0, length });
                Op::Read(data?)
            }
            Op::Write { fua, .. } => {
                let place = Data { buffer: self.arena.acquire(length)?, offset: 0, length };
                let bytes = self.arena.bytes(place)?;
                self.rng.fill(bytes);
                new = bytes.to_vec();
                data = Some(place);
                Op::Write { data: place, fua }
            }
            Op::WriteZeroes { .. } => {
                new = vec![0; length as usize];
                piece.op
            }
            Op::Flush | Op::Status => piece.op,
        };
        let Piece { extent, is_first, is_last, .. } = *piece;
        Some((Request { id: RequestId(self.name()), op, extent, is_first, is_last }, data, new))
    }

    fn flying_of(
        &self,
        request: Request,
        client: usize,
        group: u64,
        data: Option<Data>,
        new: Vec<u8>,
    ) -> Flying {
        let Client { connection, port, is_told_to_close, .. } = self.clients[client];
        Flying {
            request,
            connection,
            port,
            group,
            data,
            new,
            taken_at: self.step,
            stages: 0,
            was_served: false,
            was_unserved: false,
            saw_held: false,
            saw_rival: false,
            is_parting: is_told_to_close,
            free_slots_min: u32::MAX,
            beside: self.flying.iter().map(|other| other.request.extent).collect(),
        }
    }

    /// Notes what the requests in flight see now.
    fn look_around(&mut self) {
        let stage = 1 << self.model.stage as u8;
        let is_served = self.model.serves_guest();
        let has_held = self.machine().held() != 0;
        let free_slots = self.machine().buffer().free_slots();
        let changes =
            |flying: &&Flying| flying.port == Port::Replication && flying.request.op.is_modification();
        let mut rivals: Vec<_> = self.flying.iter().filter(changes).map(|flying| flying.connection).collect();
        rivals.extend(self.model.owner);
        for flying in &mut self.flying {
            flying.stages |= stage;
            flying.was_served |= is_served;
            flying.was_unserved |= !is_served;
            flying.saw_held |= has_held;
            flying.free_slots_min = flying.free_slots_min.min(free_slots);
            flying.saw_rival |= rivals.iter().any(|rival| *rival != flying.connection);
        }
    }

    fn command_name(&mut self) -> CommandId {
        CommandId(self.name())
    }
}

impl Flying {
    fn saw(&self, stages: &[Stage]) -> bool {
        stages.iter().any(|stage| self.stages & (1 << *stage as u8) != 0)
    }

    fn extent(&self) -> Extent {
        self.request.extent
    }

    /// Whether one of them has to wait for the other.
    fn conflicts(&self, other: &Self) -> bool {
        let changes = self.request.op.is_modification() || other.request.op.is_modification();
        changes && self.extent().overlaps(&other.extent())
    }
}

/// The shape of a device, whatever the memory.
fn size_of(disk: &Disk) -> u64 {
    BlockDevice::<Arena>::geometry(disk).size_bytes
}
