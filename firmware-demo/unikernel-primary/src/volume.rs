//! The volume: a primary over the disk and the link to its replica.

use twinblock_core::block::BlockDevice;
use twinblock_core::driver::{Driver, Emitted, PrimaryDevices};
use twinblock_core::primary::{Command, Input, Primary, Replica, Storage};
use twinblock_core::{CommandId, ConnectionId, Data, Memory, Micros, Pool, Refused, ReplicaState, Request};
use twinblock_riscv_virt::devices::{Dma, Transport};
use twinblock_virtio_blk::{DmaWindows, VirtioBlk};

use crate::link::Link;
use crate::network::Network;
use crate::{memory, settings};

pub(crate) type Disk = VirtioBlk<Dma, Transport, { settings::DESCRIPTORS }>;

/// The workload, which is the only client.
const GUEST: ConnectionId = ConnectionId(1);
/// The one replica.
const REPLICA: u8 = 0;

/// The machine, its devices and its memory.
pub(crate) struct Volume {
    driver: Driver<Primary<'static>, PrimaryDevices<Disk, [Link; 1]>>,
    memory: DmaWindows,
    free_windows: usize,
    /// Pieces that the machine has taken.
    pub(crate) requests: u64,
}

impl Volume {
    /// A primary in stage None, with the replica attached; `Err` tells what is wrong, for people.
    pub(crate) fn open(disk: Disk, link: Link, has_replica: bool, now: Micros) -> Result<Self, &'static str> {
        let replicas = memory::REPLICAS.init([Replica::new(memory::REPLICA_WORDS.take())]);
        let storage = Storage {
            table: memory::TABLE.take(),
            connections: memory::CONNECTIONS.take(),
            written: memory::WRITTEN.take(),
            lost: memory::LOST.take(),
            replicas,
        };
        let machine = Primary::new(settings::CONFIG, disk.geometry(), storage)
            .map_err(|_| "the disk is empty, read-only, or longer than 1 GiB")?;
        let memory = DmaWindows::new(memory::WINDOWS.take(), settings::WINDOW as u32);
        let mut volume = Self {
            driver: Driver::new(machine, PrimaryDevices::new(disk, [link])),
            free_windows: memory.count(),
            memory,
            requests: 0,
        };
        volume.offer(now, Input::Opened(GUEST)).map_err(|_| "the machine takes no client")?;
        if has_replica {
            let attach = Command::Attach { replica: REPLICA, is_empty: false, is_new: true };
            volume.command(now, CommandId(0), attach).map_err(|_| "the machine takes no replica")?;
        }
        Ok(volume)
    }

    pub(crate) const fn machine(&self) -> &Primary<'static> {
        self.driver.machine()
    }

    pub(crate) const fn size_bytes(&self) -> u64 {
        self.machine().size_bytes()
    }

    /// How the replica stands; `None` if there is none.
    pub(crate) fn replica(&self) -> Option<(ReplicaState, u64)> {
        let status = self.machine().replica(REPLICA).filter(|status| status.is_attached)?;
        let state = match (status.is_connected, status.is_behind) {
            (false, _) => ReplicaState::Disconnected,
            (true, true) => ReplicaState::Behind,
            (true, false) => ReplicaState::Current,
        };
        Some((state, status.dirty_bytes))
    }

    pub(crate) fn offer(&mut self, now: Micros, input: Input) -> Result<(), Refused> {
        self.driver.offer(now, input)
    }

    pub(crate) fn command(&mut self, now: Micros, id: CommandId, command: Command) -> Result<(), Refused> {
        self.offer(now, Input::Command(id, command))
    }

    pub(crate) fn request(&mut self, now: Micros, request: Request) -> Result<(), Refused> {
        self.offer(now, Input::Request(GUEST, request))?;
        self.requests += 1;
        Ok(())
    }

    /// Works, up to the next thing that concerns somebody else.
    pub(crate) fn work(&mut self, now: Micros) -> Option<Emitted> {
        self.driver.poll(now, &mut self.memory)
    }

    pub(crate) const fn link(&mut self) -> &mut Link {
        let [link] = &mut self.driver.devices_mut().replicas;
        link
    }

    /// Lets the link do its part. Whether it did anything.
    pub(crate) fn service_link(&mut self, now: Micros, network: &mut Network) -> bool {
        let [link] = &mut self.driver.devices_mut().replicas;
        link.service(now, network, &mut self.memory)
    }

    pub(crate) fn acknowledge_interrupt(&mut self) {
        self.driver.devices_mut().disk.acknowledge_interrupt();
    }

    pub(crate) fn bytes(&mut self, data: Data) -> Option<&mut [u8]> {
        self.memory.bytes(data)
    }

    /// How many windows nobody has.
    pub(crate) const fn free_windows(&self) -> usize {
        self.free_windows
    }

    pub(crate) fn acquire(&mut self, length: u32) -> Option<Data> {
        let buffer = self.memory.acquire(length)?;
        self.free_windows -= 1;
        Some(Data { buffer, offset: 0, length })
    }

    /// Gives a window back; one without bytes was none.
    pub(crate) fn release(&mut self, data: Data) {
        if data.length != 0 {
            self.memory.release(data.buffer);
            self.free_windows += 1;
        }
    }
}
