//! What this program is: names, sizes, times; and what whoever starts the machine may say of it.

use core::net::Ipv4Addr;

use smoltcp::wire::{EthernetAddress, Ipv4Address, Ipv4Cidr};
use twinblock_core::primary::{self, Primary};
use twinblock_core::{Micros, nbd};
use twinblock_virtio_blk::places_max;

/// Name of the replica's replication export.
pub(crate) const EXPORT: &str = "disk";
/// A locally administered address.
pub(crate) const HARDWARE_ADDRESS: EthernetAddress = EthernetAddress([0x02, 0x54, 0x42, 0x00, 0x00, 0x02]);
/// What QEMU's user network takes its guest to have.
pub(crate) const ADDRESS: Ipv4Cidr = Ipv4Cidr::new(Ipv4Address::new(10, 0, 2, 15), 24);
/// The way to other networks; for QEMU's user network it is also the machine that it runs on.
pub(crate) const GATEWAY: Ipv4Address = Ipv4Address::new(10, 0, 2, 2);

/// Longest piece of a request, in bytes.
pub(crate) const WINDOW: usize = 4096;
/// Windows altogether: more than requests in flight, so that one which is refused waits for a place and not for a window.
pub(crate) const WINDOWS: usize = 32;
/// Descriptors of the disk's queue.
pub(crate) const DESCRIPTORS: usize = 64;
/// Places of the machine's table, and of each queue that it feeds.
pub(crate) const TABLE: usize = 20;
const _: () = assert!(TABLE <= places_max(DESCRIPTORS), "no full queue holds up another");
/// Bytes of one dirty granule.
const DIRTY_GRANULE: u32 = 64 << 10;
/// The largest disk: its bitmaps are static.
pub(crate) const DISK_BYTES_MAX: u64 = 1 << 30;
/// Words of a bitmap, and of a replica.
pub(crate) const BITMAP_WORDS: usize = Primary::bitmap_words(DISK_BYTES_MAX, DIRTY_GRANULE);
pub(crate) const REPLICA_WORDS: usize = Primary::replica_words(DISK_BYTES_MAX, DIRTY_GRANULE);

/// Room for what the NBD client sends: a header for each transfer.
pub(crate) const LINK_OUTPUT: usize = nbd::client::OUTPUT_BYTES_MIN + 2 * EXPORT.len() + 28 * TABLE;
/// Entries of it: a header and a payload for each transfer.
pub(crate) const LINK_ENTRIES: usize = nbd::client::OUTPUT_ENTRIES_MIN + 2 * TABLE;
/// Bytes that wait to be sent to the replica, or to be acknowledged.
pub(crate) const LINK_SEND: usize = 64 << 10;
/// Bytes of the replica that wait to be looked at.
pub(crate) const LINK_RECEIVE: usize = 16 << 10;
/// Longest message of the replica's control socket that is understood.
pub(crate) const MESSAGE: usize = 4096;
/// What is sent to it, and received before it is looked at.
pub(crate) const CONTROL_SEND: usize = 1024;
pub(crate) const CONTROL_RECEIVE: usize = 2048;

/// First and longest time between two attempts to connect.
pub(crate) const RETRY_MIN: Micros = Micros::from_ms(100);
pub(crate) const RETRY_MAX: Micros = Micros::from_ms(1000);
/// From the first packet to the end of a handshake or negotiation.
pub(crate) const CONNECT_MAX: Micros = Micros::from_ms(5000);
/// A request of the replica that is not answered for so long ends the connection.
pub(crate) const REQUEST_MAX: Micros = Micros::from_ms(10_000);
/// How long the start waits for the replica; what is written without it is missing there.
pub(crate) const START_PATIENCE: Micros = Micros::from_ms(5000);
/// A checkpoint that takes longer is given up.
pub(crate) const CHECKPOINT_MAX: Micros = Micros::from_ms(2000);
/// Frames that are taken before others have their turn.
pub(crate) const FRAMES_MAX: usize = 16;
/// A peer that has been silent this long is asked whether it is there,
pub(crate) const KEEP_ALIVE_MS: u64 = 1000;
/// and one that does not answer for this long is not.
pub(crate) const PEER_TIMEOUT_MS: u64 = 4000;
/// How often the program tells how it stands.
pub(crate) const REPORT_EVERY: Micros = Micros::from_ms(100);

/// The machine's settings. Blocks are those of virtio disks.
pub(crate) const CONFIG: primary::Config =
    primary::Config { window_bytes: WINDOW as u32, dirty_granule_bytes: DIRTY_GRANULE, block_bytes: 512 };

/// What was said when the machine was started: `key=value`, with spaces between.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Given {
    /// `replica=ADDRESS:PORT`: the replica's NBD server; without it there is no replica.
    pub(crate) replica: Option<(Ipv4Addr, u16)>,
    /// `control=ADDRESS:PORT`: its control socket; without it the program takes no checkpoints.
    pub(crate) control: Option<(Ipv4Addr, u16)>,
    /// `rate=N`: records in a second.
    pub(crate) rate: u64,
    /// `checkpoint-ms=N`: milliseconds between checkpoints.
    pub(crate) checkpoint_every: Micros,
    /// `records=N`: how many records to append before the machine is switched off.
    pub(crate) records: u64,
}

impl Given {
    /// Understands the text; `Err` is the word that it does not.
    pub(crate) fn parse(text: &str) -> Result<Self, &str> {
        let mut given = Self {
            replica: None,
            control: None,
            rate: 400,
            checkpoint_every: Micros::from_ms(500),
            records: u64::MAX,
        };
        for word in text.split_ascii_whitespace() {
            let (key, value) = word.split_once('=').ok_or(word)?;
            let number = || value.parse::<u64>().ok().filter(|number| *number != 0).ok_or(word);
            match key {
                "replica" => given.replica = Some(endpoint(value).ok_or(word)?),
                "control" => given.control = Some(endpoint(value).ok_or(word)?),
                "rate" => given.rate = number()?.min(1_000_000),
                "checkpoint-ms" => given.checkpoint_every = Micros::from_ms(number()?),
                "records" => given.records = number()?,
                _ => return Err(word),
            }
        }
        Ok(given)
    }
}

fn endpoint(text: &str) -> Option<(Ipv4Addr, u16)> {
    let (address, port) = text.rsplit_once(':')?;
    Some((address.parse().ok()?, port.parse().ok()?))
}
