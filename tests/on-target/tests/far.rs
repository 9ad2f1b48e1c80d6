//! Disks beyond what the processor's addresses reach, on the target: 4 GiB, and as far as an offset goes.
#![no_std]
#![no_main]

use twinblock_on_target as _;

#[embedded_test::tests]
mod tests {
    use static_cell::ConstStaticCell;
    use twinblock_core::secondary::{Command, Input};
    use twinblock_core::{Extent, Micros, Op, Refused, Request, RequestId, Stage};
    use twinblock_on_target::{Block, FarDisk, GUEST, Mirror, Node, PRIMARY};

    const BLOCKS: usize = 12;
    static DISK: ConstStaticCell<[Block; BLOCKS]> = ConstStaticCell::new([Block::UNUSED; BLOCKS]);
    static TWIN: ConstStaticCell<[Block; BLOCKS]> = ConstStaticCell::new([Block::UNUSED; BLOCKS]);
    const GIB: u64 = 1 << 30;
    /// Bytes of what is written to each place.
    const LENGTH: u32 = 512;

    #[init]
    fn init() {
        twinblock_on_target::guard_stack();
    }

    /// Places that are one if the upper half of an offset is lost: at the start, around the end of 32 bits, and at the end.
    fn places(size: u64) -> [u64; 5] {
        [0, 4 * GIB - 512, 4 * GIB, 4 * GIB + 4096, size - 512]
    }

    fn take_over_on(size: u64) {
        let mut node = Node::over(FarDisk::new(size, DISK.take()));
        assert_eq!(node.driver.machine().size_bytes(), size);
        // A first copy, as it would come.
        for (offset, byte) in places(size).into_iter().zip(1..) {
            node.write(PRIMARY, offset, LENGTH, byte).unwrap();
        }
        node.start();
        for (offset, byte) in places(size).into_iter().zip(11..) {
            node.write(PRIMARY, offset, LENGTH, byte).unwrap();
            assert_eq!(node.reads(GUEST, offset, LENGTH, byte - 10), Ok(true), "old content at {offset}");
        }
        for (offset, byte) in places(size).into_iter().zip(11..) {
            assert_eq!(node.reads(PRIMARY, offset, LENGTH, byte), Ok(true), "disk at {offset}");
        }
        node.command(Command::Checkpoint { force: false }).unwrap();
        for offset in places(size) {
            node.write(PRIMARY, offset, LENGTH, 99).unwrap();
        }
        node.write(GUEST, 4 * GIB, LENGTH, 77).unwrap();
        node.command(Command::Stop { failover: true, force: false }).unwrap();
        assert_eq!(node.driver.machine().stage(), Stage::Done);
        for (offset, byte) in places(size).into_iter().zip(11..) {
            let expected = if offset == 4 * GIB { 77 } else { byte };
            assert_eq!(
                node.reads(GUEST, offset, LENGTH, expected),
                Ok(true),
                "after the failover, at {offset}"
            );
        }
        assert_eq!(node.driver.devices().disk.disk().used_blocks(), places(size).len());
        let past = Extent { offset: size - 256, length: 512 };
        let request = Request::whole(RequestId(0), Op::Flush, past);
        assert_eq!(node.driver.offer(Micros(0), Input::Request(GUEST, request)), Err(Refused::BadRequest));
    }

    #[test]
    fn a_secondary_of_5_gib_takes_over() {
        take_over_on(5 * GIB);
    }

    #[test]
    fn a_secondary_takes_over_on_the_longest_disk_that_offsets_of_files_reach() {
        take_over_on(i64::MAX as u64 / 512 * 512);
    }

    fn mirror_of(size: u64, granule: u32) {
        let mut mirror =
            Mirror::over(FarDisk::new(size, DISK.take()), FarDisk::new(size, TWIN.take()), granule);
        for (offset, byte) in places(size).into_iter().zip(1..) {
            mirror.write(offset, LENGTH, byte).unwrap();
        }
        for (offset, byte) in places(size).into_iter().zip(1..) {
            assert_eq!(mirror.reads(offset, LENGTH, byte), Ok(true), "at {offset}");
        }
        assert_eq!(mirror.misses_bytes(), 0);
        let devices = mirror.driver.devices();
        assert_eq!(devices.disk.disk().used_blocks(), places(size).len());
        assert_eq!(devices.replicas[0].disk().used_blocks(), places(size).len());
        // What a replica that has gone misses is marked where it is.
        mirror.offer(twinblock_core::primary::Input::Disconnected(0));
        let machine = |mirror: &Mirror<FarDisk<'static>>, offset| {
            let extent = Extent { offset, length: LENGTH.into() };
            mirror.driver.machine().misses(0, extent)
        };
        mirror.write(size - 512, LENGTH, 9).unwrap();
        assert!(machine(&mirror, size - 512));
        assert!(!machine(&mirror, 0) && !machine(&mirror, (size - 512) % (4 * GIB)));
        mirror.zero(4 * GIB, LENGTH).unwrap();
        assert!(machine(&mirror, 4 * GIB) && !machine(&mirror, 0));
    }

    #[test]
    fn a_primary_of_16_tib_mirrors_and_marks() {
        mirror_of(16 << 40, 1 << 31);
    }

    #[test]
    fn a_primary_of_5_gib_mirrors_and_marks() {
        mirror_of(5 * GIB, 1 << 20);
    }
}
