//! The loop that runs a machine over its devices.
//!
//! A machine says what is to be done; a [`Driver`] does it: it submits transfers, polls completions, fills zeroes, and
//! hands out what only the embedder can do, replies and notices. Poll loop, ring and interrupt handler differ only in
//! when they call it.
//!
//! ```
//! use twinblock_core::block::{Blocking, BlockingDisk, BlockDevice};
//! use twinblock_core::buffer::index::{Index, Node};
//! use twinblock_core::driver::{Driver, Emitted, SecondaryDevices};
//! use twinblock_core::order::Slot;
//! use twinblock_core::secondary::{Command, Config, Connection, Input, Port, Secondary, Storage, WhenFull};
//! use twinblock_core::{
//!     BufferIndex, CommandId, ConnectionId, Data, Errno, Extent, Memory, Micros, Op, Request, RequestId, Windows,
//! };
//!
//! struct Ram(Vec<u8>);
//! impl BlockingDisk for Ram {
//!     fn size_bytes(&self) -> u64 {
//!         self.0.len() as u64
//!     }
//!     fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), Errno> {
//!         bytes.copy_from_slice(&self.0[offset as usize..][..bytes.len()]);
//!         Ok(())
//!     }
//!     fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
//!         self.0[offset as usize..][..bytes.len()].copy_from_slice(bytes);
//!         Ok(())
//!     }
//!     fn flush(&mut self) -> Result<(), Errno> {
//!         Ok(())
//!     }
//! }
//!
//! // All memory is handed in; on a microcontroller these are statics.
//! let (mut table, mut nodes) = ([Slot::FREE; 9], [Node::EMPTY; Index::nodes_for(16)]);
//! let mut connections = [Connection::FREE; 4];
//! let mut bytes = [0; 4 * 4096];
//! let mut memory = Windows::new(&mut bytes, 4096);
//! memory.reserve(2);
//!
//! let config = Config {
//!     granule_bytes: 512,
//!     window_bytes: 4096,
//!     when_full: WhenFull::Stall,
//!     stall_max: Micros::from_ms(500),
//!     replication_requests: 4,
//!     guest_requests: 4,
//!     scratch_first: BufferIndex(0),
//!     scratch_count: 2,
//! };
//! let (disk, buffer) = (Blocking::new(Ram(vec![1; 65536])), Blocking::new(Ram(vec![0; 8192])));
//! let geometry = |device: &Blocking<Ram>| BlockDevice::<Windows>::geometry(device);
//! let storage = Storage { table: &mut table, nodes: &mut nodes, connections: &mut connections };
//! let machine = Secondary::new(config, geometry(&disk), geometry(&buffer), storage).unwrap();
//! let mut driver = Driver::new(machine, SecondaryDevices { disk, buffer });
//!
//! let now = Micros(0);
//! driver.offer(now, Input::Command(CommandId(1), Command::Start { primary: false })).unwrap();
//! while driver.poll(now, &mut memory).is_some() {}
//! let primary = ConnectionId(1);
//! driver.offer(now, Input::Opened { connection: primary, port: Port::Replication, identity: None }).unwrap();
//! let data = Data { buffer: BufferIndex(3), offset: 0, length: 512 };
//! memory.bytes(data).unwrap().fill(2);
//! let write = Request::whole(RequestId(7), Op::Write { data, fua: false }, Extent { offset: 0, length: 512 });
//! driver.offer(now, Input::Request(primary, write)).unwrap();
//! let Some(Emitted::Reply(reply)) = driver.poll(now, &mut memory) else { panic!() };
//! assert!(reply.id == RequestId(7) && reply.result.is_ok());
//! assert_eq!(driver.devices().disk.disk().0[0], 2);
//! assert_eq!(driver.devices().buffer.disk().0[0], 1, "the old content is kept");
//! ```

mod devices;
#[cfg(test)]
mod tests;

pub use devices::{Devices, Links, PrimaryDevices, SecondaryDevices};

use crate::block::Completion;
use crate::{Device, Memory, Micros, Notice, Output, Refused, Reply};

/// What a driver runs: both machines are this.
pub trait Machine {
    /// What is offered to it.
    type Input;

    /// Offers one input. On `Err` the machine is exactly as it was.
    ///
    /// # Errors
    /// Why it was refused.
    fn handle_input(&mut self, now: Micros, input: Self::Input) -> Result<(), Refused>;

    /// A transfer has ended.
    ///
    /// # Errors
    /// [`Refused::Stale`] if it names nothing in flight.
    fn handle_completion(
        &mut self,
        now: Micros,
        device: Device,
        completion: Completion,
    ) -> Result<(), Refused>;

    /// The next thing to do.
    fn poll_output(&mut self) -> Option<Output>;

    /// When [`Machine::handle_timeout`] is due.
    fn poll_timeout(&self) -> Option<Micros>;

    /// Lets time pass.
    fn handle_timeout(&mut self, now: Micros);
}

/// What only the embedder can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emitted {
    /// Answer this request; its data is the embedder's again.
    Reply(Reply),
    /// Tell the manager, or close a connection.
    Notice(Notice),
}

/// A machine and the devices it works on.
#[derive(Debug)]
pub struct Driver<K, D> {
    machine: K,
    devices: D,
    /// A transfer that a full queue did not take.
    stuck: Option<Output>,
    stale_completions: u64,
}

impl<K: Machine, D> Driver<K, D> {
    /// Puts the two together.
    pub const fn new(machine: K, devices: D) -> Self {
        Self { machine, devices, stuck: None, stale_completions: 0 }
    }

    /// The machine, to ask how it stands.
    pub const fn machine(&self) -> &K {
        &self.machine
    }

    /// The machine, for what is no input.
    pub const fn machine_mut(&mut self) -> &mut K {
        &mut self.machine
    }

    /// The devices.
    pub const fn devices(&self) -> &D {
        &self.devices
    }

    /// The devices, to let them do their part of the work.
    pub const fn devices_mut(&mut self) -> &mut D {
        &mut self.devices
    }

    /// Completions that named nothing in flight: a device, or the other side of one, is at fault.
    pub const fn stale_completions(&self) -> u64 {
        self.stale_completions
    }

    /// Offers one input to the machine; poll after it.
    ///
    /// # Errors
    /// Why it was refused; nothing has changed. On [`Refused::Busy`] the embedder keeps the input and offers it again
    /// after the next reply.
    pub fn offer(&mut self, now: Micros, input: K::Input) -> Result<(), Refused> {
        self.machine.handle_input(now, input)
    }

    /// When [`Driver::poll`] must be called at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Micros> {
        self.machine.poll_timeout()
    }

    /// Does everything that can be done now, up to the next thing that only the embedder can do. `None`: nothing is
    /// left until an input, a completion or the time of [`Driver::poll_timeout`].
    ///
    /// A queue that is full holds up the others too: give each device a queue as long as the machine's table.
    pub fn poll<M: Memory + ?Sized>(&mut self, now: Micros, memory: &mut M) -> Option<Emitted>
    where
        D: Devices<M>,
    {
        let mut unbounded = u32::MAX;
        self.poll_within(now, memory, &mut unbounded)
    }

    /// As [`Driver::poll`], but also `None` once `budget` is 0: each completion takes one off it. For an embedder that has
    /// clients to serve meanwhile: devices that are quick enough can keep a commit of the whole buffer going in one call.
    pub fn poll_within<M: Memory + ?Sized>(
        &mut self,
        now: Micros,
        memory: &mut M,
        budget: &mut u32,
    ) -> Option<Emitted>
    where
        D: Devices<M>,
    {
        if self.machine.poll_timeout().is_some_and(|due| due <= now) {
            self.machine.handle_timeout(now);
        }
        loop {
            let is_submitting = match self.stuck.take().or_else(|| self.machine.poll_output()) {
                Some(Output::Reply(reply)) => return Some(Emitted::Reply(reply)),
                Some(Output::Notice(notice)) => return Some(Emitted::Notice(notice)),
                Some(Output::Fill(data)) => {
                    if let Some(bytes) = memory.bytes(data) {
                        bytes.fill(0);
                    }
                    true
                }
                Some(output @ Output::Transfer(device, transfer)) => {
                    if self.devices.submit(device, transfer, memory).is_err() {
                        self.stuck = Some(output);
                    }
                    self.stuck.is_none()
                }
                None => false,
            };
            if is_submitting {
                continue;
            }
            *budget = budget.checked_sub(1)?;
            let (device, completion) = self.devices.poll(memory)?;
            if self.machine.handle_completion(now, device, completion).is_err() {
                self.stale_completions += 1;
            }
        }
    }
}

/// A driver that an interrupt handler and a main loop, or two cores, share.
///
/// An interrupt handler must only use [`Shared::try_with`]: the main loop that it has interrupted may hold the lock. It
/// then notes that there is work and leaves it to the main loop.
#[derive(Debug)]
pub struct Shared<T>(spin::Mutex<T>);

impl<T> Shared<T> {
    /// Wraps it; may be a static.
    pub const fn new(inner: T) -> Self {
        Self(spin::Mutex::new(inner))
    }

    /// Waits until nobody else has it. Never from an interrupt handler.
    pub fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> R {
        work(&mut self.0.lock())
    }

    /// Works on it if nobody else has it.
    pub fn try_with<R>(&self, work: impl FnOnce(&mut T) -> R) -> Option<R> {
        self.0.try_lock().map(|mut guard| work(&mut guard))
    }
}
