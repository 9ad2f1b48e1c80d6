//! The devices of each machine, found by name.

use crate::block::{BlockDevice, Completion, QueueFull, Transfer};
use crate::{Device, Errno, Memory};

/// All devices of one machine.
pub trait Devices<M: Memory + ?Sized> {
    /// Starts a transfer on one of them.
    ///
    /// # Errors
    /// [`QueueFull`]: nothing was started.
    fn submit(&mut self, device: Device, transfer: Transfer, memory: &mut M) -> Result<(), QueueFull>;

    /// The next completion of any of them.
    fn poll(&mut self, memory: &mut M) -> Option<(Device, Completion)>;
}

/// The two devices of a secondary.
#[derive(Debug)]
pub struct SecondaryDevices<D, B> {
    /// The secondary disk.
    pub disk: D,
    /// Where the buffer's slots are.
    pub buffer: B,
}

impl<M: Memory + ?Sized, D: BlockDevice<M>, B: BlockDevice<M>> Devices<M> for SecondaryDevices<D, B> {
    fn submit(&mut self, device: Device, transfer: Transfer, memory: &mut M) -> Result<(), QueueFull> {
        match device {
            Device::Disk => self.disk.submit(transfer, memory),
            Device::Buffer | Device::Replica(_) => self.buffer.submit(transfer, memory),
        }
    }

    fn poll(&mut self, memory: &mut M) -> Option<(Device, Completion)> {
        if let Some(completion) = self.buffer.poll(memory) {
            return Some((Device::Buffer, completion));
        }
        self.disk.poll(memory).map(|completion| (Device::Disk, completion))
    }
}

/// A set of links to replicas, in the order of the machine's replica indices; it may grow.
pub trait Links {
    /// One link.
    type Link;

    /// All of them.
    fn links(&mut self) -> &mut [Self::Link];
}

impl<L, const N: usize> Links for [L; N] {
    type Link = L;

    fn links(&mut self) -> &mut [L] {
        self
    }
}

impl<L> Links for &mut [L] {
    type Link = L;

    fn links(&mut self) -> &mut [L] {
        self
    }
}

/// The devices of a primary: its disk, and a link to each replica, in the order of the machine's replica indices.
#[derive(Debug)]
pub struct PrimaryDevices<D, R> {
    /// The primary disk.
    pub disk: D,
    /// Links to replicas.
    pub replicas: R,
    /// A transfer for a replica that is not there.
    lost: Option<(Device, Completion)>,
}

impl<D, R> PrimaryDevices<D, R> {
    /// Puts them together.
    pub const fn new(disk: D, replicas: R) -> Self {
        Self { disk, replicas, lost: None }
    }
}

impl<M, D, R> Devices<M> for PrimaryDevices<D, R>
where
    M: Memory + ?Sized,
    D: BlockDevice<M>,
    R: Links,
    R::Link: BlockDevice<M>,
{
    fn submit(&mut self, device: Device, transfer: Transfer, memory: &mut M) -> Result<(), QueueFull> {
        let Device::Replica(index) = device else { return self.disk.submit(transfer, memory) };
        match self.replicas.links().get_mut(usize::from(index)) {
            Some(replica) => replica.submit(transfer, memory),
            None if self.lost.is_some() => Err(QueueFull),
            None => {
                self.lost = Some((device, Completion { tag: transfer.tag, result: Err(Errno::Io) }));
                Ok(())
            }
        }
    }

    fn poll(&mut self, memory: &mut M) -> Option<(Device, Completion)> {
        if let Some(lost) = self.lost.take() {
            return Some(lost);
        }
        // Links first: one that sends when it is polled lets its replica begin before this disk does.
        for (index, replica) in self.replicas.links().iter_mut().enumerate() {
            if let Some(completion) = replica.poll(memory) {
                return Some((Device::Replica(index as u8), completion));
            }
        }
        let completion = self.disk.poll(memory)?;
        Some((Device::Disk, completion))
    }
}
