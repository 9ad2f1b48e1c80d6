//! What each machine and driver takes of the target's RAM, apart from the memory that it borrows.
#![no_std]
#![no_main]

use twinblock_on_target as _;

#[embedded_test::tests]
mod tests {
    use core::mem::size_of;

    use semihosting::println;
    use twinblock_core::block::{Blocking, Completion, Seekable, Transfer};
    use twinblock_core::{ErrorCounters, Event, Reply, Request, Windows};
    use twinblock_on_target::RamDisk;

    /// Prints the size of each type and compares it with its bound. A bound has some room; to raise one is a decision
    /// about the RAM of every node, not a repair of a test.
    macro_rules! sizes {
        ($($type:ty => $bound:literal,)*) => {
            &[$((stringify!($type), size_of::<$type>(), $bound)),*]
        };
    }

    type Disk = Blocking<RamDisk<'static>>;

    /// Type, its bytes, and how many it may have.
    const SIZES: &[(&str, usize, usize)] = sizes! {
        Request => 56,
        Reply => 32,
        Transfer => 48,
        Completion => 32,
        Event => 32,
        ErrorCounters => 64,
        Windows<'static> => 32,
        Disk => 320,
        Seekable<&'static mut [u8]> => 24,
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
