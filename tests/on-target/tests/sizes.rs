//! What each machine and driver takes of the target's RAM, apart from the memory that it borrows.
#![no_std]
#![no_main]

use twinblock_on_target as _;

#[embedded_test::tests]
mod tests {
    use core::mem::size_of;

    use semihosting::println;
    use twinblock_core::bitmap::Bitmap;
    use twinblock_core::block::{Blocking, Completion, Seekable, Transfer};
    use twinblock_core::buffer::index::Node;
    use twinblock_core::driver::{Driver, PrimaryDevices, SecondaryDevices};
    use twinblock_core::nbd::{client, server};
    use twinblock_core::node::{Coordinator, Member, Volume};
    use twinblock_core::order::Slot;
    use twinblock_core::primary::{self, Primary, Replica};
    use twinblock_core::secondary::{self, Secondary};
    use twinblock_core::{Connection, Event, Reply, Request, Windows};
    use twinblock_on_target::RamDisk;

    /// Prints the size of each type and compares it with its bound. A bound has some room; to raise one is a decision
    /// about the RAM of every node, not a repair of a test.
    macro_rules! sizes {
        ($($type:ty => $bound:literal,)*) => {
            &[$((stringify!($type), size_of::<$type>(), $bound)),*]
        };
    }

    type Disk = Blocking<RamDisk<'static>>;
    type SecondaryDriver = Driver<Secondary<'static>, SecondaryDevices<Disk, Disk>>;
    /// With one replica that is a disk in RAM, too.
    type PrimaryDriver = Driver<Primary<'static>, PrimaryDevices<Disk, [Disk; 1]>>;

    /// Type, its bytes, and how many it may have: first what there is one of in a volume or a connection, then what
    /// the embedder lends an array of, then what is passed around.
    const SIZES: &[(&str, usize, usize)] = sizes! {
        Secondary<'static> => 1536,
        SecondaryDriver => 2048,
        Primary<'static> => 1536,
        PrimaryDriver => 2048,
        Coordinator<'static> => 96,
        server::Session<'static> => 448,
        client::Session<'static> => 576,
        Bitmap<'static> => 88,
        Disk => 256,
        Seekable<&'static mut [u8]> => 24,
        Windows<'static> => 32,
        Slot<secondary::Work> => 176,
        Node => 256,
        secondary::Connection => 40,
        Slot<primary::Work> => 152,
        Replica<'static> => 256,
        Connection<()> => 32,
        Volume => 8,
        Member => 32,
        server::RequestSlot => 64,
        server::PieceSlot => 48,
        client::TransferSlot => 200,
        Request => 56,
        Reply => 32,
        Transfer => 48,
        Completion => 32,
        Event => 32,
    };

    #[init]
    fn init() {
        twinblock_on_target::guard_stack();
    }

    #[test]
    fn no_type_has_outgrown_its_bound() {
        println!("{:40} {:>6} {:>6}", "type", "bytes", "bound");
        for (name, bytes, bound) in SIZES {
            println!("{name:40} {bytes:>6} {bound:>6}");
        }
        for (name, bytes, bound) in SIZES {
            assert!(bytes <= bound, "{name} takes {bytes} bytes, more than {bound}");
        }
    }
}
