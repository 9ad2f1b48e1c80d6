//! A disk of 1 MiB in RAM behind a serial line: NBD needs no network.
//!
//! The machine is QEMU's RISC-V `virt`; its UART is the line, on the other end of which a unix socket of the host is. A
//! serial line knows no connections: the program greets whoever is there when the machine is switched on, serves it until its
//! goodbye and switches the machine off. The transport ([`stream`]) takes anything that reads and writes.
//!
//! ```sh
//! qemu-system-riscv64 -M virt -m 16M -bios none -display none -monitor none \
//!     -serial unix:/tmp/line,server=on,wait=on -kernel uart-disk &
//! nbdinfo 'nbd+unix:///disk?socket=/tmp/line'
//! ```
#![no_std]
#![no_main]

mod stream;

use static_cell::ConstStaticCell;
use twinblock_core::block::{BlockDevice, Blocking, BlockingDisk};
use twinblock_core::driver::{Driver, PrimaryDevices};
use twinblock_core::nbd::OutputEntry;
use twinblock_core::nbd::server::{
    Export, Exports, OPTION_BYTES_MIN, OUTPUT_BYTES_MIN, PieceSlot, RequestSlot, ServerConfig, ServerMemory,
    Session,
};
use twinblock_core::order::Slot;
use twinblock_core::primary::{Config, Primary, Replica, Storage, Work};
use twinblock_core::{Connection, Errno, Windows};
use twinblock_riscv_virt::console::Console;
use twinblock_riscv_virt::{clock, power, stack};

use stream::{End, Server};

const DISK_BYTES: usize = 1 << 20;
const WINDOW: u32 = 4096;
const WINDOWS: usize = 4;
const DIRTY_GRANULE: u32 = 64 << 10;
const WORDS: usize = Primary::bitmap_words(DISK_BYTES as u64, DIRTY_GRANULE);
const CONFIG: Config = Config { window_bytes: WINDOW, dirty_granule_bytes: DIRTY_GRANULE, block_bytes: 1 };

static DISK: ConstStaticCell<[u8; DISK_BYTES]> = ConstStaticCell::new([0; DISK_BYTES]);
static BYTES: ConstStaticCell<[u8; WINDOWS * WINDOW as usize]> =
    ConstStaticCell::new([0; WINDOWS * WINDOW as usize]);
static SLOTS: ConstStaticCell<[Slot<Work>; WINDOWS + 1]> = ConstStaticCell::new([Slot::FREE; WINDOWS + 1]);
static CONNECTIONS: ConstStaticCell<[Connection<()>; 1]> = ConstStaticCell::new([Connection::FREE; 1]);
static BITMAPS: ConstStaticCell<[[u64; WORDS]; 2]> = ConstStaticCell::new([[0; WORDS]; 2]);
static REPLICAS: ConstStaticCell<[Replica<'static>; 0]> = ConstStaticCell::new([]);
static REQUESTS: ConstStaticCell<[RequestSlot; 4]> = ConstStaticCell::new([RequestSlot::EMPTY; 4]);
static PIECES: ConstStaticCell<[PieceSlot; WINDOWS]> = ConstStaticCell::new([PieceSlot::EMPTY; WINDOWS]);
static OPTION: ConstStaticCell<[u8; OPTION_BYTES_MIN]> = ConstStaticCell::new([0; OPTION_BYTES_MIN]);
static OUTPUT: ConstStaticCell<[u8; OUTPUT_BYTES_MIN]> = ConstStaticCell::new([0; OUTPUT_BYTES_MIN]);
static ENTRIES: ConstStaticCell<[OutputEntry; 12]> = ConstStaticCell::new([OutputEntry::EMPTY; 12]);

/// A disk in RAM.
struct Ram(&'static mut [u8]);

impl BlockingDisk for Ram {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        let content = self.0.get(offset as usize..).and_then(|rest| rest.get(..bytes.len()));
        bytes.copy_from_slice(content.ok_or(Errno::Invalid)?);
        Ok(())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let content = self.0.get_mut(offset as usize..).and_then(|rest| rest.get_mut(..bytes.len()));
        content.ok_or(Errno::Invalid)?.copy_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Errno> {
        Ok(())
    }
}

struct One;

impl Exports for One {
    fn count(&self) -> usize {
        1
    }

    fn export(&self, index: usize) -> Option<Export<'_>> {
        let mut export = Export::new("disk", DISK_BYTES as u64);
        export.description = "1 MiB of RAM behind a serial line";
        (index == 0).then_some(export)
    }
}

#[riscv_rt::entry]
fn main() -> ! {
    stack::guard_stack();
    let disk = Blocking::new(Ram(DISK.take()));
    let [written, lost] = BITMAPS.take();
    let storage = Storage {
        table: SLOTS.take(),
        connections: CONNECTIONS.take(),
        written,
        lost,
        replicas: REPLICAS.take(),
    };
    let machine = Primary::new(CONFIG, BlockDevice::<Windows<'_>>::geometry(&disk), storage);
    let memory = ServerMemory {
        requests: REQUESTS.take(),
        pieces: PIECES.take(),
        option_data: OPTION.take(),
        output_bytes: OUTPUT.take(),
        output_entries: ENTRIES.take(),
    };
    let session = Session::new(ServerConfig::new(WINDOW, 0), memory);
    let (Ok(machine), Ok(session)) = (machine, session) else { power::off(1) };
    let none: [Blocking<Ram>; 0] = [];
    let mut server = Server {
        stream: Console::open(),
        session,
        driver: Driver::new(machine, PrimaryDevices::new(disk, none)),
        memory: &mut Windows::new(BYTES.take(), WINDOW),
        clock: clock::now,
    };
    match server.serve(&One) {
        Ok(End::Closed { clean: true }) => power::off(0),
        Ok(_) => power::off(2),
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    power::panic(info)
}
