//! The primary with its disk, its links and its guest's connections, beside the bytes that its guest counts on.

use twinblock_core::block::BlockDevice;
use twinblock_core::driver::{Driver, Emitted, PrimaryDevices};
use twinblock_core::order::Slot;
use twinblock_core::primary::{Command, Config, Input, Primary, Replica, Storage, Work};
use twinblock_core::{
    CommandId, Connection, ConnectionId, Errno, Event, Extent, Micros, Notice, Op, Refused, ReplicaState,
    Reply, Stage,
};

use super::bytes::Bytes;
use super::client::{Clients, Flying};
use super::link::Link;
use super::settings::{REPLICAS, Settings};
use crate::simulator::disk::Disk;

/// What a primary borrows.
#[derive(Debug)]
pub(super) struct Room {
    table: Vec<Slot<Work>>,
    connections: Vec<Connection<()>>,
    written: Vec<u64>,
    lost: Vec<u64>,
    replicas: Vec<Vec<u64>>,
}

impl Room {
    pub(super) fn new(settings: &Settings) -> Self {
        let granule = settings.primary.dirty_granule_bytes;
        let words = Primary::bitmap_words(settings.size_bytes, granule);
        let each = Primary::replica_words(settings.size_bytes, granule);
        Self {
            table: vec![Slot::FREE; settings.primary_places],
            connections: vec![Connection::FREE; 8],
            written: vec![0; words],
            lost: vec![0; words],
            replicas: vec![vec![0; each]; REPLICAS],
        }
    }

    /// The replicas' bitmaps, and the rest.
    pub(super) fn replicas(&mut self) -> (Vec<Replica<'_>>, Rest<'_>) {
        let Self { table, connections, written, lost, replicas } = self;
        let replicas = replicas.iter_mut().map(|words| Replica::new(words)).collect();
        (replicas, Rest { table, connections, written, lost })
    }
}

/// What a primary borrows beside its replicas.
#[derive(Debug)]
pub(super) struct Rest<'m> {
    table: &'m mut [Slot<Work>],
    connections: &'m mut [Connection<()>],
    written: &'m mut [u64],
    lost: &'m mut [u64],
}

/// The primary's machine.
#[derive(Debug)]
pub(super) struct Active<'m> {
    pub(super) driver: Driver<Primary<'m>, PrimaryDevices<Disk, [Link; REPLICAS]>>,
    pub(super) clients: Clients,
    /// What was answered to the guest.
    pub(super) model: Bytes,
    /// When the last write of each byte was answered.
    pub(super) answered_at: Vec<u64>,
    /// Operations that were answered.
    pub(super) answers: Vec<(CommandId, Result<(), Refused>)>,
    /// Replicas that have changed.
    pub(super) changes: Vec<(usize, ReplicaState)>,
    /// Flushes that were answered with success, by the step in which they were taken.
    pub(super) flushed: Vec<u64>,
    /// Reads that failed, by the step in which they were taken.
    pub(super) failed_reads: Vec<u64>,
    /// Since when it forwards.
    pub(super) running_since: u64,
    /// Requests of the guest that failed.
    pub(super) failures: u64,
    /// Writes and zeroes that were answered with success.
    pub(super) acknowledged: u64,
}

impl<'m> Active<'m> {
    pub(super) fn new(
        settings: &Settings,
        content: Vec<u8>,
        replicas: &'m mut [Replica<'m>],
        rest: Rest<'m>,
    ) -> Self {
        let config: Config = settings.primary;
        let geometry = settings.geometry();
        let window = config.window_bytes;
        let mut disk = Disk::new("primary disk", geometry, content.clone(), settings.depth, window as usize);
        disk.faults = settings.primary_faults;
        let Rest { table, connections, written, lost } = rest;
        let storage = Storage { table, connections, written, lost, replicas };
        let machine = Primary::new(config, geometry, storage).expect("it fits");
        let links = std::array::from_fn(|_| Link::new(geometry));
        Self {
            driver: Driver::new(machine, PrimaryDevices::new(disk, links)),
            clients: Clients::new(0, settings.primary_places as u16 + 2, window),
            answered_at: vec![0; content.len()],
            model: Bytes::new(content),
            answers: Vec::new(),
            changes: Vec::new(),
            flushed: Vec::new(),
            failed_reads: Vec::new(),
            running_since: 0,
            failures: 0,
            acknowledged: 0,
        }
    }

    pub(super) fn machine(&self) -> &Primary<'m> {
        self.driver.machine()
    }

    pub(super) fn disk(&self) -> &Disk {
        &self.driver.devices().disk
    }

    pub(super) fn disk_mut(&mut self) -> &mut Disk {
        &mut self.driver.devices_mut().disk
    }

    pub(super) fn link(&self, replica: usize) -> &Link {
        &self.driver.devices().replicas[replica]
    }

    pub(super) fn link_mut(&mut self, replica: usize) -> &mut Link {
        &mut self.driver.devices_mut().replicas[replica]
    }

    pub(super) fn geometry(&self) -> twinblock_core::block::Geometry {
        self.disk().geometry()
    }

    /// A guest connects.
    pub(super) fn open(&mut self, now: Micros) {
        let connection = ConnectionId(self.clients.name());
        self.driver.offer(now, Input::Opened(connection)).expect("there is room");
        self.clients.opened(connection, false);
    }

    /// A guest goes; what it has not sent is lost.
    pub(super) fn close(&mut self, now: Micros, client: usize) {
        let client = self.clients.open.swap_remove(client);
        self.driver.offer(now, Input::Closed(client.connection)).expect("it was open");
    }

    pub(super) fn command(&mut self, now: Micros, wanted: Command) -> Result<CommandId, Refused> {
        let command = CommandId(self.clients.name());
        self.driver.offer(now, Input::Command(command, wanted)).map(|()| command)
    }

    /// Offers a guest's next piece; tells which request was taken.
    pub(super) fn offer(&mut self, now: Micros, step: u64, client: usize) -> Option<Op> {
        let Self { driver, clients, .. } = self;
        let take = |connection, request| driver.offer(now, Input::Request(connection, request));
        match clients.offer(client, step, take)? {
            Ok(request) => Some(request.op),
            Err(Refused::Busy) => None,
            Err(refused) => panic!("the guest's request is refused: {refused:?}"),
        }
    }

    /// Lets the machine do what it can, and hears what it says.
    pub(super) fn pump(&mut self, now: Micros, step: u64) {
        self.disk_mut().step = step;
        while let Some(emitted) = self.driver.poll(now, &mut self.clients.arena) {
            match emitted {
                Emitted::Reply(reply) => self.replied(step, &reply),
                Emitted::Notice(Notice::Answer(command, result)) => self.answers.push((command, result)),
                Emitted::Notice(Notice::Event(Event::Replica(replica, state))) => {
                    self.changes.push((replica.into(), state));
                }
                Emitted::Notice(_) => {}
            }
        }
        assert_eq!(self.driver.stale_completions(), 0);
    }

    fn replied(&mut self, step: u64, reply: &Reply) {
        let (flying, read) = self.clients.answered(reply);
        let range = flying.range();
        match (reply.result, flying.request.op) {
            (Ok(_), Op::Read(_)) => {
                let wrong = self.model.first_wrong(range.start, &read, |_, _| false);
                assert_eq!(wrong, None, "P3: the guest reads other bytes than were answered");
            }
            (Ok(_), Op::Write { .. } | Op::WriteZeroes { .. }) => {
                self.model.wrote(range.clone(), &flying.new);
                self.answered_at[range].fill(step);
                self.acknowledged += 1;
            }
            (Ok(_), Op::Flush) => self.flushed.push(flying.taken_at),
            (Ok(_), Op::Status) => {}
            (Err(errno), _) => self.failed(&flying, errno),
        }
    }

    fn failed(&mut self, flying: &Flying, errno: Errno) {
        let is_gone = self.clients.find(flying.connection).is_none();
        assert!(is_gone || !self.disk().injected.is_empty(), "{errno:?} disturbs the guest: {flying:?}");
        self.failures += 1;
        if matches!(flying.request.op, Op::Read(_)) && !is_gone {
            self.failed_reads.push(flying.taken_at);
        }
        if flying.is_modification() {
            self.model.may_have_written(flying.range(), &flying.new);
        }
    }

    /// Each attached replica holds what was answered, or is known not to.
    pub(super) fn check_replica(&self, replica: usize, there: &[u8]) {
        let status = self.machine().replica(replica as u8).expect("there is such a place");
        if !status.is_attached || there == self.model.value() {
            return;
        }
        let granule = self.machine().config().dirty_granule_bytes as usize;
        for (place, bytes) in there.chunks(granule).enumerate() {
            let from = place * granule;
            let extent = Extent { offset: from as u64, length: bytes.len() as u64 };
            if status.is_behind && self.machine().misses(replica as u8, extent) {
                continue;
            }
            let excuse = |at: usize, byte: u8| self.clients.explain(false, at, byte);
            if let Some(at) = self.model.first_wrong(from, bytes, excuse) {
                let (is, should) = (there[at], self.model.value()[at]);
                panic!(
                    "P1: byte {at} of replica {replica} is {is:#x}, not {should:#x}, and nobody knows: {status:?}"
                );
            }
        }
    }

    /// The disk holds what was answered, as long as it never failed.
    pub(super) fn check_disk(&self) {
        if !self.disk().injected.is_empty() {
            return;
        }
        let excuse = |at: usize, byte: u8| self.clients.explain(false, at, byte);
        let wrong = self.model.first_wrong(0, self.disk().bytes(), excuse);
        assert_eq!(wrong, None, "a byte of the primary disk is not what was answered");
    }

    /// Nothing that was answered before the flush was taken waits in a cache.
    pub(super) fn check_flushed(&self, disk: &Disk, taken_at: u64) {
        let is_lost = |(at, written_at): (usize, &u64)| {
            *written_at != 0 && *written_at <= self.answered_at[at] && self.answered_at[at] < taken_at
        };
        let lost = disk.written_at().iter().enumerate().position(is_lost);
        assert_eq!(lost, None, "a byte that was answered before a flush is not durable");
    }

    pub(super) fn is_idle(&self) -> bool {
        let is_link_idle = |link: &Link| link.is_idle();
        self.clients.is_idle()
            && self.machine().in_flight() == 0
            && self.disk().in_flight() == 0
            && self.driver.devices().replicas.iter().all(is_link_idle)
    }

    pub(super) fn is_running(&self) -> bool {
        self.machine().stage() == Stage::Running
    }
}
