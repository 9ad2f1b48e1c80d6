//! All memory of the node that is lent to somebody, in one place.

use smoltcp::iface::SocketStorage;
use static_cell::{ConstStaticCell, StaticCell};
use twinblock_core::buffer::index::Node as IndexNode;
use twinblock_core::nbd::OutputEntry;
use twinblock_core::nbd::server::{OPTION_BYTES_MIN, OUTPUT_BYTES_MIN, PieceSlot, RequestSlot};
use twinblock_core::order::Slot;
use twinblock_core::secondary::{Connection, Work};
use twinblock_lm3s6965::ethernet::Frames;
use twinblock_lm3s6965::uart::Uart;

use crate::Program;
use crate::node::{Card, Node};
use crate::settings;

/// Entries of a client's output: a header and a payload, twice.
const OUTPUT_ENTRIES: usize = 6;

/// What one NBD client has.
#[derive(Debug)]
pub(crate) struct ClientMemory {
    pub(crate) requests: [RequestSlot; settings::REQUESTS],
    pub(crate) pieces: [PieceSlot; settings::PIECES],
    pub(crate) option_data: [u8; OPTION_BYTES_MIN],
    pub(crate) output_bytes: [u8; OUTPUT_BYTES_MIN],
    pub(crate) output_entries: [OutputEntry; OUTPUT_ENTRIES],
    pub(crate) receive: [u8; settings::WINDOW],
    pub(crate) send: [u8; settings::CLIENT_SEND],
}

impl ClientMemory {
    const EMPTY: Self = Self {
        requests: [RequestSlot::EMPTY; settings::REQUESTS],
        pieces: [PieceSlot::EMPTY; settings::PIECES],
        option_data: [0; OPTION_BYTES_MIN],
        output_bytes: [0; OUTPUT_BYTES_MIN],
        output_entries: [OutputEntry::EMPTY; OUTPUT_ENTRIES],
        receive: [0; settings::WINDOW],
        send: [0; settings::CLIENT_SEND],
    };
}

/// What one manager has.
#[derive(Debug)]
pub(crate) struct ManagerMemory {
    pub(crate) message: [u8; settings::MESSAGE],
    pub(crate) receive: [u8; settings::MANAGER_RECEIVE],
    pub(crate) send: [u8; settings::MANAGER_SEND],
}

impl ManagerMemory {
    const EMPTY: Self = Self {
        message: [0; settings::MESSAGE],
        receive: [0; settings::MANAGER_RECEIVE],
        send: [0; settings::MANAGER_SEND],
    };
}

pub(crate) static WINDOWS: ConstStaticCell<[u8; settings::WINDOWS * settings::WINDOW]> =
    ConstStaticCell::new([0; settings::WINDOWS * settings::WINDOW]);
pub(crate) static TABLE: ConstStaticCell<[Slot<Work>; settings::TABLE]> =
    ConstStaticCell::new([Slot::FREE; settings::TABLE]);
pub(crate) static INDEX: ConstStaticCell<[IndexNode; settings::INDEX_NODES]> =
    ConstStaticCell::new([IndexNode::EMPTY; settings::INDEX_NODES]);
pub(crate) static CONNECTIONS: ConstStaticCell<[Connection; settings::CONNECTIONS]> =
    ConstStaticCell::new([Connection::FREE; settings::CONNECTIONS]);
pub(crate) static CLIENTS: ConstStaticCell<[ClientMemory; settings::CLIENTS]> =
    ConstStaticCell::new([ClientMemory::EMPTY; settings::CLIENTS]);
pub(crate) static MANAGERS: ConstStaticCell<[ManagerMemory; settings::MANAGERS]> =
    ConstStaticCell::new([ManagerMemory::EMPTY; settings::MANAGERS]);
pub(crate) static SOCKETS: ConstStaticCell<[SocketStorage<'static>; settings::SOCKETS]> =
    ConstStaticCell::new([SocketStorage::EMPTY; settings::SOCKETS]);
pub(crate) static FRAMES: ConstStaticCell<Frames> = ConstStaticCell::new(Frames::EMPTY);
pub(crate) static CARD: StaticCell<Card> = StaticCell::new();
pub(crate) static LOG: StaticCell<Uart> = StaticCell::new();
pub(crate) static NODE: StaticCell<Node> = StaticCell::new();
pub(crate) static PROGRAM: StaticCell<Program> = StaticCell::new();
