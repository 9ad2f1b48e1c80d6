//! All memory of the program that is lent to somebody, in one place.

use smoltcp::iface::SocketStorage;
use static_cell::{ConstStaticCell, StaticCell};
use twinblock_core::Connection;
use twinblock_core::nbd::OutputEntry;
use twinblock_core::nbd::client::TransferSlot;
use twinblock_core::node::{Member, Volume as Enrolled};
use twinblock_core::order::Slot;
use twinblock_core::primary::{Replica, Work};
use twinblock_riscv_virt::network::Frames;
use twinblock_virtio_blk::Place;

use crate::Program;
use crate::settings;
use crate::store::RECORD_BYTES_MAX;

/// What the link to the replica has.
#[derive(Debug)]
pub(crate) struct LinkMemory {
    pub(crate) transfers: [TransferSlot; settings::TABLE],
    pub(crate) output_bytes: [u8; settings::LINK_OUTPUT],
    pub(crate) output_entries: [OutputEntry; settings::LINK_ENTRIES],
    pub(crate) receive: [u8; settings::LINK_RECEIVE],
    pub(crate) send: [u8; settings::LINK_SEND],
}

/// What the control link has.
#[derive(Debug)]
pub(crate) struct ControlMemory {
    pub(crate) message: [u8; settings::MESSAGE],
    pub(crate) scratch: [u8; settings::MESSAGE],
    pub(crate) receive: [u8; settings::CONTROL_RECEIVE],
    pub(crate) send: [u8; settings::CONTROL_SEND],
}

pub(crate) static WINDOWS: ConstStaticCell<[u8; settings::WINDOWS * settings::WINDOW]> =
    ConstStaticCell::new([0; settings::WINDOWS * settings::WINDOW]);
pub(crate) static TABLE: ConstStaticCell<[Slot<Work>; settings::TABLE]> =
    ConstStaticCell::new([Slot::FREE; settings::TABLE]);
pub(crate) static CONNECTIONS: ConstStaticCell<[Connection<()>; 1]> =
    ConstStaticCell::new([Connection::FREE; 1]);
pub(crate) static WRITTEN: ConstStaticCell<[u64; settings::BITMAP_WORDS]> =
    ConstStaticCell::new([0; settings::BITMAP_WORDS]);
pub(crate) static LOST: ConstStaticCell<[u64; settings::BITMAP_WORDS]> =
    ConstStaticCell::new([0; settings::BITMAP_WORDS]);
pub(crate) static REPLICA_WORDS: ConstStaticCell<[u64; settings::REPLICA_WORDS]> =
    ConstStaticCell::new([0; settings::REPLICA_WORDS]);
pub(crate) static REPLICAS: StaticCell<[Replica<'static>; 1]> = StaticCell::new();
pub(crate) static PLACES: ConstStaticCell<[Place; settings::TABLE]> =
    ConstStaticCell::new([const { Place::FREE }; settings::TABLE]);
pub(crate) static LINK: ConstStaticCell<LinkMemory> = ConstStaticCell::new(LinkMemory {
    transfers: [TransferSlot::EMPTY; settings::TABLE],
    output_bytes: [0; settings::LINK_OUTPUT],
    output_entries: [OutputEntry::EMPTY; settings::LINK_ENTRIES],
    receive: [0; settings::LINK_RECEIVE],
    send: [0; settings::LINK_SEND],
});
pub(crate) static CONTROL: ConstStaticCell<ControlMemory> = ConstStaticCell::new(ControlMemory {
    message: [0; settings::MESSAGE],
    scratch: [0; settings::MESSAGE],
    receive: [0; settings::CONTROL_RECEIVE],
    send: [0; settings::CONTROL_SEND],
});
pub(crate) static ENROLLED: ConstStaticCell<[Enrolled; 1]> = ConstStaticCell::new([Enrolled::FREE; 1]);
pub(crate) static MEMBERS: ConstStaticCell<[Member; 1]> = ConstStaticCell::new([Member::FREE; 1]);
pub(crate) static SOCKETS: ConstStaticCell<[SocketStorage<'static>; 2]> =
    ConstStaticCell::new([SocketStorage::EMPTY; 2]);
pub(crate) static FRAMES: ConstStaticCell<Frames> = ConstStaticCell::new(Frames::EMPTY);
/// A record that is being made, and one that is being read.
pub(crate) static MADE: ConstStaticCell<[u8; RECORD_BYTES_MAX]> = ConstStaticCell::new([0; RECORD_BYTES_MAX]);
pub(crate) static READ: ConstStaticCell<[u8; RECORD_BYTES_MAX]> = ConstStaticCell::new([0; RECORD_BYTES_MAX]);
pub(crate) static GIVEN: ConstStaticCell<[u8; 256]> = ConstStaticCell::new([0; 256]);
pub(crate) static PROGRAM: StaticCell<Program> = StaticCell::new();
