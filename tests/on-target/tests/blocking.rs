//! A disk in RAM behind the adapter for simple disks, on the target.
#![no_std]
#![no_main]

use twinblock_on_target as _;

#[embedded_test::tests]
mod tests {
    use static_cell::ConstStaticCell;
    use twinblock_core::block::{Action, BlockDevice, Blocking, Completion, QueueFull, Tag, Transfer};
    use twinblock_core::{BufferIndex, Data, Errno, Extent, Memory, Outcome, Windows};
    use twinblock_on_target::RamDisk;

    const WINDOW: u32 = 512;
    const DISK_BYTES: usize = 8192;
    const MEMORY_BYTES: usize = 2 * WINDOW as usize;
    static WINDOWS: ConstStaticCell<[u8; MEMORY_BYTES]> = ConstStaticCell::new([0; MEMORY_BYTES]);
    static DISK: ConstStaticCell<[u8; DISK_BYTES]> = ConstStaticCell::new([0x11; DISK_BYTES]);

    struct Bench {
        disk: Blocking<RamDisk<'static>>,
        memory: Windows<'static>,
        next_entry: u16,
    }

    impl Bench {
        fn start(&mut self, action: Action, extent: Extent) -> Result<Tag, QueueFull> {
            self.next_entry += 1;
            let tag = Tag { entry: self.next_entry, generation: 7 };
            self.disk.submit(Transfer { tag, action, extent }, &mut self.memory)?;
            Ok(tag)
        }

        fn run(&mut self, action: Action, extent: Extent) -> Result<Outcome, Errno> {
            let tag = self.start(action, extent).unwrap();
            let Completion { tag: completed, result } = self.disk.poll(&mut self.memory).unwrap();
            assert_eq!(completed, tag);
            assert!(self.disk.poll(&mut self.memory).is_none());
            result
        }
    }

    fn data(buffer: u16, length: u32) -> Data {
        Data { buffer: BufferIndex(buffer), offset: 0, length }
    }

    fn extent(offset: u64, length: u64) -> Extent {
        Extent::new(offset, length).unwrap()
    }

    #[init]
    fn init() -> Bench {
        twinblock_on_target::guard_stack();
        Bench {
            disk: Blocking::new(RamDisk::new(DISK.take())),
            memory: Windows::new(WINDOWS.take(), WINDOW),
            next_entry: 0,
        }
    }

    #[test]
    fn what_was_written_is_read_back_and_nothing_else_has_changed(mut bench: Bench) {
        bench.memory.bytes(data(0, 300)).unwrap().fill(0xa5);
        bench.run(Action::Write { data: data(0, 300), fua: false }, extent(1000, 300)).unwrap();
        bench.run(Action::Read(data(1, 512)), extent(900, 512)).unwrap();
        let read = bench.memory.bytes(data(1, 512)).unwrap();
        assert!(read[..100].iter().all(|byte| *byte == 0x11));
        assert!(read[100..400].iter().all(|byte| *byte == 0xa5));
        assert!(read[400..].iter().all(|byte| *byte == 0x11));
    }

    #[test]
    fn zeroes_longer_than_a_block_of_zeroes_reach_their_end(mut bench: Bench) {
        let zeroes = Action::WriteZeroes { may_unmap: true, fast: false, fua: false };
        bench.run(zeroes, extent(10, 3000)).unwrap();
        let content = bench.disk.disk().content();
        assert!(content[..10].iter().all(|byte| *byte == 0x11));
        assert!(content[10..3010].iter().all(|byte| *byte == 0));
        assert!(content[3010..].iter().all(|byte| *byte == 0x11));
    }

    #[test]
    fn zeroes_that_must_be_fast_are_refused(mut bench: Bench) {
        let zeroes = Action::WriteZeroes { may_unmap: true, fast: true, fua: false };
        assert_eq!(bench.run(zeroes, extent(0, 512)), Err(Errno::Unsupported));
        assert!(bench.disk.disk().content().iter().all(|byte| *byte == 0x11));
    }

    #[test]
    fn forced_unit_access_flushes_after_the_write(mut bench: Bench) {
        bench.run(Action::Write { data: data(0, 512), fua: false }, extent(0, 512)).unwrap();
        assert_eq!(bench.disk.disk().flush_count, 0);
        bench.run(Action::Write { data: data(0, 512), fua: true }, extent(0, 512)).unwrap();
        assert_eq!(bench.disk.disk().flush_count, 1);
        bench.run(Action::Flush, extent(0, 0)).unwrap();
        assert_eq!(bench.disk.disk().flush_count, 2);
    }

    #[test]
    fn an_error_of_the_disk_comes_back_with_its_tag(mut bench: Bench) {
        bench.disk.disk_mut().next_write = Some(Errno::NoSpace);
        let write = Action::Write { data: data(0, 512), fua: false };
        assert_eq!(bench.run(write, extent(0, 512)), Err(Errno::NoSpace));
        assert_eq!(bench.run(write, extent(0, 512)), Ok(Outcome::Done));
    }

    #[test]
    fn a_transfer_past_the_end_or_of_another_length_than_its_data_is_refused(mut bench: Bench) {
        let end = DISK_BYTES as u64;
        assert_eq!(bench.run(Action::Read(data(0, 512)), extent(end - 511, 512)), Err(Errno::Invalid));
        assert_eq!(bench.run(Action::Read(data(0, 512)), extent(0, 511)), Err(Errno::Invalid));
        let beyond = Extent { offset: u64::MAX, length: 512 };
        assert_eq!(bench.run(Action::Read(data(0, 512)), beyond), Err(Errno::Invalid));
    }

    #[test]
    fn a_full_queue_starts_nothing_and_takes_more_after_a_poll(mut bench: Bench) {
        bench.memory.bytes(data(0, 1)).unwrap().fill(0xff);
        let write = Action::Write { data: data(0, 1), fua: false };
        let mut started = 0;
        while bench.start(write, extent(started, 1)).is_ok() {
            started += 1;
        }
        assert!(started > 0);
        let content = bench.disk.disk().content();
        assert_eq!(content.iter().filter(|byte| **byte == 0xff).count() as u64, started);
        assert!(bench.disk.poll(&mut bench.memory).is_some());
        assert!(bench.start(write, extent(started, 1)).is_ok());
    }

    #[test]
    fn the_stack_stays_far_from_its_guard(mut bench: Bench) {
        bench.run(Action::Write { data: data(0, 512), fua: true }, extent(0, 512)).unwrap();
        bench.run(Action::Read(data(1, 512)), extent(0, 512)).unwrap();
        twinblock_on_target::print_stack_use();
        assert!(twinblock_on_target::is_stack_half_free());
    }
}
