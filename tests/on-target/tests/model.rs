//! A secondary against a model of plain arrays, on the target: scripts from seeds.
#![no_std]
#![no_main]

use twinblock_on_target as _;

#[embedded_test::tests]
mod tests {
    use static_cell::ConstStaticCell;
    use twinblock_core::secondary::Command;
    use twinblock_core::{Errno, Stage};
    use twinblock_on_target::{DISK_BYTES, GUEST, Node, PRIMARY, Random, WINDOW};

    /// The model knows each run of this many bytes by one byte, and requests are made of such runs.
    const CELL: usize = 128;
    const CELLS: usize = DISK_BYTES / CELL;
    /// Fewer granules than the buffer has, so that no write is held.
    const WRITES: usize = 5;

    #[init]
    fn init() {
        twinblock_on_target::guard_stack();
    }

    fn place(cells: &core::ops::Range<usize>) -> (u64, u32) {
        ((cells.start * CELL) as u64, (cells.len() * CELL) as u32)
    }

    struct Model {
        node: Node,
        random: Random,
        disk: &'static mut [u8; CELLS],
        view: &'static mut [u8; CELLS],
    }

    impl Model {
        /// One request of either side, and one look at both exports.
        fn step(&mut self) {
            let is_guest = self.random.below(2) == 0;
            let connection = if is_guest { GUEST } else { PRIMARY };
            let cells = self.random.run_within(WINDOW as usize / CELL, CELLS, 4);
            let (offset, length) = place(&cells);
            let byte = self.random.below(5) as u8;
            if byte == 0 {
                self.node.zero(connection, offset, length).unwrap();
            } else {
                self.node.write(connection, offset, length, byte).unwrap();
            }
            let written: &mut [u8] = if is_guest { &mut *self.view } else { &mut *self.disk };
            written[cells].fill(byte);
            self.look();
        }

        fn look(&mut self) {
            let at = self.random.below(CELLS as u64) as usize;
            let (offset, length) = place(&(at..at + 1));
            assert_eq!(self.node.reads(GUEST, offset, length, self.view[at]), Ok(true), "view at {offset}");
            assert_eq!(self.node.reads(PRIMARY, offset, length, self.disk[at]), Ok(true), "disk at {offset}");
        }

        fn disk_is(&self, expected: &[u8]) -> bool {
            expected.iter().enumerate().all(|(at, byte)| self.node.disk_holds(at * CELL, CELL, *byte))
        }
    }

    fn a_script_of_a_secondary(seed: u64, is_failover: bool) {
        static DISK: ConstStaticCell<[u8; CELLS]> = ConstStaticCell::new([1; CELLS]);
        static VIEW: ConstStaticCell<[u8; CELLS]> = ConstStaticCell::new([1; CELLS]);
        let (disk, view) = (DISK.take(), VIEW.take());
        let mut model = Model { node: Node::take(), random: Random::new(seed), disk, view };
        model.node.start();
        for _ in 0..60 {
            for _ in 0..model.random.below(WRITES as u64) {
                model.step();
            }
            if model.node.driver.machine().held() == 0 {
                model.node.command(Command::Checkpoint { force: false }).unwrap();
                model.view.copy_from_slice(model.disk);
                model.look();
            }
        }
        for _ in 0..3 {
            model.step();
        }
        model.node.command(Command::Stop { failover: is_failover, force: false }).unwrap();
        assert_eq!(model.node.driver.machine().stage(), Stage::Done);
        assert_eq!(model.node.write(PRIMARY, 0, 512, 9), Err(Errno::Shutdown));
        let kept = if is_failover { &*model.view } else { &*model.disk };
        assert!(model.disk_is(kept));
        for (at, byte) in kept.iter().enumerate() {
            let (offset, length) = place(&(at..at + 1));
            assert_eq!(model.node.reads(GUEST, offset, length, *byte), Ok(true));
        }
        twinblock_on_target::print_stack_use();
    }

    #[test]
    fn a_secondary_that_takes_over_from_the_checkpoint_is_the_model() {
        a_script_of_a_secondary(11, true);
    }

    #[test]
    fn a_secondary_that_takes_over_from_the_disk_is_the_model() {
        a_script_of_a_secondary(12, false);
    }
}
