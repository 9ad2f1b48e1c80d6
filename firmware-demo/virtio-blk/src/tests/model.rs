//! The other side of the queue: a device that completes requests when it is told to.
//!
//! Source: "Virtual I/O Device (VIRTIO) Version 1.2", sections 2.7 "Split Virtqueues" and 5.2 "Block Device".

use core::ptr::NonNull;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::RefCell;
use std::rc::Rc;
use std::vec::Vec;
use std::{assert_eq, vec};

use twinblock_core::{Errno, Outcome};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr, Result};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{OpenError, Place, VirtioBlk};

const QUEUE: usize = 16;
const DISK_BYTES: usize = 1 << 20;

pub(super) type Disk = VirtioBlk<TestHal, Wire, QUEUE>;

pub(super) struct TestHal;

fn layout(pages: usize) -> Layout {
    Layout::from_size_align(pages * PAGE_SIZE, PAGE_SIZE).unwrap()
}

// SAFETY: pages come from the allocator, and physical addresses are pointers.
unsafe impl Hal for TestHal {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        // SAFETY: the layout is not empty.
        let start = NonNull::new(unsafe { alloc_zeroed(layout(pages)) }).unwrap();
        (start.as_ptr() as PhysAddr, start)
    }

    unsafe fn dma_dealloc(_address: PhysAddr, start: NonNull<u8>, pages: usize) -> i32 {
        // SAFETY: it came from `dma_alloc`.
        unsafe { dealloc(start.as_ptr(), layout(pages)) };
        0
    }

    unsafe fn mmio_phys_to_virt(_address: PhysAddr, _size: usize) -> NonNull<u8> {
        panic!("no PCI here")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().as_ptr() as PhysAddr
    }

    unsafe fn unshare(_address: PhysAddr, _buffer: NonNull<[u8]>, _direction: BufferDirection) {}
}

/// What the device was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    In { sector: u64, bytes: usize },
    Out { sector: u64, bytes: usize },
    Flush,
    WriteZeroes { sector: u64, count: u32, may_unmap: bool },
}

struct State {
    kind: DeviceType,
    offered: u64,
    taken: u64,
    status: DeviceStatus,
    was_reset: bool,
    notified: usize,
    /// Descriptors, what the driver writes, what the device writes.
    areas: [usize; 3],
    seen: u16,
    waiting: Vec<u16>,
    used: u16,
    bytes: Vec<u8>,
    ended: Vec<(u16, core::result::Result<Outcome, Errno>)>,
}

/// The device.
#[derive(Clone)]
pub(super) struct Model(Rc<RefCell<State>>);

/// What the driver has of it.
pub(super) struct Wire(Rc<RefCell<State>>);

impl Model {
    pub(super) fn new(features: u64) -> Self {
        Self(Rc::new(RefCell::new(State {
            kind: DeviceType::Block,
            offered: features | 1 << 32,
            taken: 0,
            status: DeviceStatus::empty(),
            was_reset: false,
            notified: 0,
            areas: [0; 3],
            seen: 0,
            waiting: vec![],
            used: 0,
            bytes: vec![0xee; DISK_BYTES],
            ended: vec![],
        })))
    }

    pub(super) fn set_kind(&mut self, kind: DeviceType) {
        self.0.borrow_mut().kind = kind;
    }

    pub(super) fn disk(&self) -> core::result::Result<Disk, OpenError> {
        self.disk_with(5)
    }

    pub(super) fn disk_with(&self, places: usize) -> core::result::Result<Disk, OpenError> {
        let places: Vec<Place> = (0..places).map(|_| Place::FREE).collect();
        VirtioBlk::new(Wire(self.0.clone()), places.leak())
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.0.borrow().bytes.clone()
    }

    pub(super) fn notified(&self) -> usize {
        self.0.borrow().notified
    }

    pub(super) fn taken_features(&self) -> u64 {
        self.0.borrow().taken
    }

    pub(super) fn is_reset(&self) -> bool {
        self.0.borrow().was_reset
    }

    pub(super) fn notes(&self, ended: Vec<(u16, core::result::Result<Outcome, Errno>)>) {
        self.0.borrow_mut().ended.extend(ended);
    }

    /// What has ended since this was asked last.
    pub(super) fn ended(&self) -> Vec<(u16, core::result::Result<Outcome, Errno>)> {
        core::mem::take(&mut self.0.borrow_mut().ended)
    }

    /// The tokens of what it was asked and has not done.
    pub(super) fn waiting(&self) -> Vec<u16> {
        let mut state = self.0.borrow_mut();
        let [_, driver, _] = state.areas;
        // SAFETY: the driver has set its ring up, and nobody writes it now.
        let index = unsafe { ((driver + 2) as *const u16).read() };
        while state.seen != index {
            let slot = usize::from(state.seen) % QUEUE;
            // SAFETY: as above.
            let token = unsafe { ((driver + 4 + 2 * slot) as *const u16).read() };
            state.waiting.push(token);
            state.seen = state.seen.wrapping_add(1);
        }
        state.waiting.clone()
    }

    /// Does a request, unless `status` is a failure, and says so; what it was.
    pub(super) fn complete(&self, token: u16, status: u8) -> Request {
        self.0.borrow_mut().waiting.retain(|waiting| *waiting != token);
        let chain = self.chain(token);
        let (header, last) = (chain[0], chain[chain.len() - 1]);
        assert_eq!((header.1, last.1), (16, 1), "a header and a status");
        let header = read_bytes(header);
        let kind = u32::from_le_bytes(header[..4].try_into().unwrap());
        let sector = u64::from_le_bytes(header[8..].try_into().unwrap());
        let (at, is_good) = (sector as usize * 512, status == 0);
        let mut state = self.0.borrow_mut();
        let request = match kind {
            0 => {
                let (start, bytes) = chain[1];
                if is_good {
                    // SAFETY: the driver has lent these bytes.
                    unsafe { (start as *mut u8).copy_from(state.bytes[at..].as_ptr(), bytes) };
                }
                Request::In { sector, bytes }
            }
            1 => {
                let content = read_bytes(chain[1]);
                if is_good {
                    state.bytes[at..at + content.len()].copy_from_slice(&content);
                }
                Request::Out { sector, bytes: content.len() }
            }
            4 => Request::Flush,
            13 => {
                assert_eq!(sector, 0, "the range is elsewhere");
                let range = read_bytes(chain[1]);
                let sector = u64::from_le_bytes(range[..8].try_into().unwrap());
                let count = u32::from_le_bytes(range[8..12].try_into().unwrap());
                if is_good {
                    state.bytes[sector as usize * 512..][..count as usize * 512].fill(0);
                }
                Request::WriteZeroes { sector, count, may_unmap: range[12] == 1 }
            }
            other => panic!("request {other}"),
        };
        // SAFETY: as above.
        unsafe { (last.0 as *mut u8).write(status) };
        drop(state);
        self.pretend(token);
        request
    }

    /// Says that a request is completed.
    pub(super) fn pretend(&self, token: u16) {
        let mut state = self.0.borrow_mut();
        let [_, _, device] = state.areas;
        let slot = usize::from(state.used) % QUEUE;
        state.used = state.used.wrapping_add(1);
        // SAFETY: the driver has set its ring up, and only reads here.
        unsafe {
            ((device + 4 + 8 * slot) as *mut u32).write(token.into());
            ((device + 2) as *mut u16).write(state.used);
        }
    }

    /// Addresses and lengths of a request's parts.
    fn chain(&self, token: u16) -> Vec<(usize, usize)> {
        let [descriptors, ..] = self.0.borrow().areas;
        let mut chain = vec![];
        let mut next = Some(token);
        while let Some(index) = next {
            let at = descriptors + 16 * usize::from(index);
            // SAFETY: a descriptor of the driver's table.
            let (address, length, flags, following) = unsafe {
                (
                    (at as *const u64).read(),
                    ((at + 8) as *const u32).read(),
                    ((at + 12) as *const u16).read(),
                    ((at + 14) as *const u16).read(),
                )
            };
            chain.push((address as usize, length as usize));
            next = (flags & 1 != 0).then_some(following);
        }
        chain
    }
}

fn read_bytes((start, length): (usize, usize)) -> Vec<u8> {
    // SAFETY: the driver has lent these bytes.
    unsafe { core::slice::from_raw_parts(start as *const u8, length) }.to_vec()
}

impl Transport for Wire {
    fn device_type(&self) -> DeviceType {
        self.0.borrow().kind
    }

    fn read_device_features(&mut self) -> u64 {
        self.0.borrow().offered
    }

    fn write_driver_features(&mut self, features: u64) {
        self.0.borrow_mut().taken = features;
    }

    fn max_queue_size(&mut self, _queue: u16) -> u32 {
        QUEUE as u32
    }

    fn notify(&mut self, _queue: u16) {
        self.0.borrow_mut().notified += 1;
    }

    fn get_status(&self) -> DeviceStatus {
        self.0.borrow().status
    }

    fn set_status(&mut self, status: DeviceStatus) {
        let mut state = self.0.borrow_mut();
        state.was_reset |= status.is_empty() && state.status.contains(DeviceStatus::DRIVER_OK);
        state.status = status;
    }

    fn set_guest_page_size(&mut self, _bytes: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver: PhysAddr,
        device: PhysAddr,
    ) {
        assert_eq!((queue, size), (0, QUEUE as u32));
        self.0.borrow_mut().areas = [descriptors as usize, driver as usize, device as usize];
    }

    fn queue_unset(&mut self, _queue: u16) {}

    fn queue_used(&mut self, _queue: u16) -> bool {
        false
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::empty()
    }

    fn read_config_generation(&self) -> u32 {
        0
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T> {
        let mut config = [0; 60];
        config[..8].copy_from_slice(&(DISK_BYTES as u64 / 512).to_le_bytes());
        config[48..52].copy_from_slice(&64u32.to_le_bytes());
        config[56] = 1;
        Ok(T::read_from_prefix(&config[offset..]).unwrap().0)
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, _offset: usize, _value: T) -> Result<()> {
        panic!("nothing is to be written there")
    }
}
