//! A primary over a disk in RAM with a replica in RAM, on the target.
#![no_std]
#![no_main]

use twinblock_on_target as _;

#[embedded_test::tests]
mod tests {
    use static_cell::ConstStaticCell;
    use twinblock_core::Errno;
    use twinblock_on_target::{MIRROR_BYTES, MIRROR_GRANULE, MIRROR_WINDOW, Mirror, Random};

    /// The model knows each run of this many bytes by one byte, and requests are made of such runs.
    const CELL: usize = 128;

    #[init]
    fn init() -> Mirror {
        Mirror::take()
    }

    #[test]
    fn a_write_reaches_both_disks(mut mirror: Mirror) {
        mirror.write(1024, 1000, 2).unwrap();
        assert!(mirror.are_twins());
        assert_eq!(mirror.driver.devices().disk.disk().content()[1024], 2);
        assert_eq!(mirror.misses_bytes(), 0);
    }

    #[test]
    fn a_replica_that_fails_is_behind_and_the_guest_does_not_notice(mut mirror: Mirror) {
        mirror.driver.devices_mut().replicas[0].disk_mut().next_write = Some(Errno::Io);
        mirror.write(1024, 600, 3).unwrap();
        assert!(!mirror.are_twins());
        assert_eq!(mirror.misses_bytes(), 1024);
    }

    /// The replica fails now and then; where the twins differ is marked, and nothing that was not written since is.
    #[test]
    fn a_primary_marks_what_its_replica_misses_as_the_model_does(mut mirror: Mirror) {
        static MODEL: ConstStaticCell<[u8; MIRROR_BYTES / CELL]> =
            ConstStaticCell::new([1; MIRROR_BYTES / CELL]);
        const PER_GRANULE: usize = MIRROR_GRANULE as usize / CELL;
        let model = MODEL.take();
        let mut random = Random::new(13);
        let mut misses = [false; MIRROR_BYTES / MIRROR_GRANULE as usize];
        for step in 0..300 {
            let cells = random.run_within(MIRROR_WINDOW as usize / CELL, MIRROR_BYTES / CELL, 8);
            let (offset, length) = ((cells.start * CELL) as u64, (cells.len() * CELL) as u32);
            let byte = random.below(250) as u8 + 1;
            let fails = random.below(40) == 0;
            mirror.driver.devices_mut().replicas[0].disk_mut().next_write = fails.then_some(Errno::Io);
            mirror.write(offset, length, byte).unwrap();
            model[cells.clone()].fill(byte);
            // One that is behind is sent what comes; that it misses something only a manager's act ends.
            if fails {
                misses[cells.start / PER_GRANULE..=(cells.end - 1) / PER_GRANULE].fill(true);
            }
            let missed = misses.iter().filter(|is_missed| **is_missed).count();
            assert_eq!(mirror.misses_bytes(), missed as u64 * u64::from(MIRROR_GRANULE), "step {step}");
            assert_eq!(mirror.reads(offset, length, byte), Ok(true), "step {step}");
        }
        let devices = mirror.driver.devices();
        let (disk, twin) = (devices.disk.disk().content(), devices.replicas[0].disk().content());
        for (at, byte) in model.iter().enumerate() {
            let range = at * CELL..(at + 1) * CELL;
            assert!(disk[range.clone()].iter().all(|held| held == byte));
            assert!(misses[at / PER_GRANULE] || twin[range.clone()] == disk[range]);
        }
        assert!(misses.contains(&true) && misses.contains(&false));
    }
}
