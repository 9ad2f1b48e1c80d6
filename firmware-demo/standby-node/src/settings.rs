//! What this node is: names, addresses, sizes.
//!
//! The board has 64 KiB of RAM, and every size here is some of it; [`crate::memory`] holds them all. There is one client
//! place for the primary and one for a guest, one manager place for the primary's control link and one for a person.

use smoltcp::wire::{EthernetAddress, Ipv4Address, Ipv4Cidr};
use twinblock_core::buffer::index::Index;
use twinblock_core::{BufferIndex, Micros, secondary};

/// Name of the replication export, and of the volume.
pub(crate) const EXPORT: &str = "disk";
/// Name of the guest's view.
pub(crate) const GUEST_EXPORT: &str = "view";
/// Where NBD clients connect to.
pub(crate) const NBD_PORT: u16 = 10809;
/// Where managers connect to.
pub(crate) const CONTROL_PORT: u16 = 10810;

/// A locally administered address.
pub(crate) const HARDWARE_ADDRESS: EthernetAddress = EthernetAddress([0x02, 0x54, 0x42, 0x00, 0x00, 0x01]);
/// What QEMU's user network takes its guest to have.
pub(crate) const ADDRESS: Ipv4Cidr = Ipv4Cidr::new(Ipv4Address::new(10, 0, 2, 15), 24);
/// The way to other networks.
pub(crate) const GATEWAY: Ipv4Address = Ipv4Address::new(10, 0, 2, 2);

/// NBD clients at a time.
pub(crate) const CLIENTS: usize = 2;
/// Managers at a time.
pub(crate) const MANAGERS: usize = 2;
/// Connections at a time.
pub(crate) const SOCKETS: usize = CLIENTS + MANAGERS;

/// Longest piece of a request, in bytes, and the window of TCP that clients are given.
pub(crate) const WINDOW: usize = 4096;
/// Bytes of a granule of the disk buffer.
pub(crate) const GRANULE: u32 = 4096;
/// Windows of the machine: one, as the card does one thing at a time.
const SCRATCH: u8 = 1;
/// Windows altogether: each client has one of its own.
pub(crate) const WINDOWS: usize = SCRATCH as usize + CLIENTS;
/// The window of the first client.
pub(crate) const FIRST_WINDOW: u16 = SCRATCH as u16;
/// Pieces of one client with the machine.
pub(crate) const PIECES: usize = 1;
/// Requests of one client that are not answered; what is beyond waits in TCP.
pub(crate) const REQUESTS: usize = 4;
/// Pieces of each port that the machine takes at a time.
const REQUESTS_OF_PORT: u16 = (CLIENTS * PIECES) as u16;
/// Places of the machine's table: both ports, the commit, and one for what a barrier waits for.
pub(crate) const TABLE: usize = 2 * REQUESTS_OF_PORT as usize + 2;
/// Nodes of the buffer's index, 248 bytes each.
pub(crate) const INDEX_NODES: usize = 28;
/// Granules in the buffer, at least, whatever their order; many more if they lie side by side.
pub(crate) const GRANULES_MIN: usize = Index::entries_for(INDEX_NODES);
/// The machine's connections: clients, and those that are just being replaced.
pub(crate) const CONNECTIONS: usize = 2 * CLIENTS;

/// Bytes that wait to be sent to a client, or to be acknowledged.
pub(crate) const CLIENT_SEND: usize = 1024;
/// Longest message of a manager.
pub(crate) const MESSAGE: usize = 1024;
/// What is received of a manager before it is looked at.
pub(crate) const MANAGER_RECEIVE: usize = 256;
/// The longest answer, an event and a little.
pub(crate) const MANAGER_SEND: usize = 1536;

/// How long a client may take for its handshake.
pub(crate) const HANDSHAKE_MAX: Micros = Micros::from_ms(3000);
/// How long the last bytes to a peer may take.
pub(crate) const PATIENCE: Micros = Micros::from_ms(3000);
/// Frames that are taken before others have their turn.
pub(crate) const FRAMES_MAX: usize = 8;
/// A peer that has been silent this long is asked whether it is there,
pub(crate) const KEEP_ALIVE_MS: u64 = 4000;
/// and one that does not answer for this long is not.
pub(crate) const PEER_TIMEOUT_MS: u64 = 10_000;

/// The machine's settings.
pub(crate) const CONFIG: secondary::Config = secondary::Config {
    granule_bytes: GRANULE,
    window_bytes: WINDOW as u32,
    when_full: secondary::WhenFull::Stall,
    stall_max: Micros::from_ms(2000),
    replication_requests: REQUESTS_OF_PORT,
    guest_requests: REQUESTS_OF_PORT,
    scratch_first: BufferIndex(0),
    scratch_count: SCRATCH,
};
