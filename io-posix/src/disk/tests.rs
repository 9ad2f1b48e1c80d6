use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use twinblock_core::block::{Action, BlockDevice, Capabilities, Completion, QueueFull, Tag, Transfer};
use twinblock_core::{BufferIndex, Data, Errno, Extent, Memory, Outcome};

use super::{Disk, OpenReason, Options};
use crate::edge;
use crate::memory::{HostPool, Lend, PoolSizes};
use crate::poller::Poller;
use crate::workers::Workers;

const SIZE: u64 = 4 << 20;
const LARGE: u32 = 1 << 20;

/// A folder on a file system that is memory and one that is not, as far as this machine has them.
pub(super) fn folders() -> Vec<TempDir> {
    let on_disk = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).or_else(|_| tempfile::tempdir());
    let mut folders = vec![on_disk.unwrap()];
    match tempfile::tempdir_in("/dev/shm") {
        Ok(folder) => folders.push(folder),
        Err(error) => eprintln!("not tested on tmpfs: {error}"),
    }
    folders
}

pub(super) struct Bench {
    pub(super) disk: Disk,
    pub(super) pool: HostPool,
    pub(super) poller: Poller,
    pub(super) _workers: Workers,
}

impl Bench {
    fn open(path: &Path, options: Options) -> Self {
        let (poller, workers) = edge::both(1, 2);
        let disk = Disk::open(path, options, &workers).unwrap();
        let sizes = PoolSizes { small_count: 0, large_count: 8, large_bytes: LARGE };
        Self { disk, pool: HostPool::new(sizes).unwrap(), poller, _workers: workers }
    }

    /// A disk of which nothing was written.
    pub(super) fn sparse(folder: &TempDir) -> Self {
        let path = folder.path().join("disk");
        fs::File::create(&path).unwrap().set_len(SIZE).unwrap();
        Self::open(&path, Options::default())
    }

    pub(super) fn submit(
        &mut self,
        entry: u16,
        action: Action,
        offset: u64,
        length: u64,
    ) -> Result<(), QueueFull> {
        let tag = Tag { entry, generation: 0 };
        self.disk.submit(Transfer { tag, action, extent: Extent { offset, length } }, &mut self.pool)
    }

    pub(super) fn completion(&mut self) -> Completion {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(completion) = self.disk.poll(&mut self.pool) {
                return completion;
            }
            assert!(Instant::now() < end, "no completion");
            self.poller.wait(Some(Duration::from_secs(5))).unwrap();
        }
    }

    pub(super) fn run(&mut self, action: Action, offset: u64, length: u64) -> Result<Outcome, Errno> {
        self.submit(7, action, offset, length).unwrap();
        let completion = self.completion();
        assert_eq!(completion.tag.entry, 7);
        assert_eq!(self.disk.in_flight_count(), 0);
        completion.result
    }

    pub(super) fn write(&mut self, offset: u64, length: u32, byte: u8, fua: bool) -> Result<Outcome, Errno> {
        self.pool.bytes(data(0, length)).unwrap().fill(byte);
        self.run(Action::Write { data: data(0, length), fua }, offset, u64::from(length))
    }

    pub(super) fn read(&mut self, offset: u64, length: u32) -> Vec<u8> {
        self.pool.bytes(data(0, length)).unwrap().fill(0xee);
        assert_eq!(self.run(Action::Read(data(0, length)), offset, u64::from(length)), Ok(Outcome::Done));
        self.pool.bytes(data(0, length)).unwrap().to_vec()
    }

    fn status(&mut self, offset: u64, length: u64) -> (bool, u64) {
        match self.run(Action::Status, offset, length) {
            Ok(Outcome::Status { is_hole, length }) => (is_hole, length),
            other => panic!("{other:?}"),
        }
    }
}

pub(super) const fn data(buffer: u16, length: u32) -> Data {
    Data { buffer: BufferIndex(buffer), offset: 0, length }
}

const fn zero(may_unmap: bool, fast: bool) -> Action {
    Action::WriteZeroes { may_unmap, fast, fua: false }
}

#[test]
fn what_was_written_is_read_back_and_is_in_the_file() {
    for folder in folders() {
        let mut bench = Bench::sparse(&folder);
        assert_eq!(bench.disk.geometry().size_bytes, SIZE);
        assert_eq!(bench.disk.geometry().block_bytes, 1);
        bench.write(5, 100_000, 3, false).unwrap();
        bench.write(SIZE - 1, 1, 4, true).unwrap();
        assert_eq!(bench.run(Action::Flush, 0, 0), Ok(Outcome::Done));
        assert_eq!(bench.read(0, 8), [0, 0, 0, 0, 0, 3, 3, 3]);
        assert_eq!(bench.read(100_000, 8), [3, 3, 3, 3, 3, 0, 0, 0]);
        let file = fs::read(folder.path().join("disk")).unwrap();
        assert_eq!((file.len() as u64, file[5], file[4], file[SIZE as usize - 1]), (SIZE, 3, 0, 4));
    }
}

#[test]
fn zeroes_cover_the_range_and_nothing_else_whatever_the_way() {
    for folder in folders() {
        for (may_unmap, fast) in [(true, true), (true, false), (false, true), (false, false)] {
            for (offset, length) in [(0, SIZE), (1, 3), (4095, 70_000), (65_536, 65_536), (SIZE - 3, 3)] {
                let path = folder.path().join("disk");
                fs::write(&path, vec![7; SIZE as usize]).unwrap();
                let mut bench = Bench::open(&path, Options::default());
                assert_eq!(bench.run(zero(may_unmap, fast), offset, length), Ok(Outcome::Done));
                drop(bench);
                let file = fs::read(&path).unwrap();
                let (start, end) = (offset as usize, (offset + length) as usize);
                assert!(file[..start].iter().chain(&file[end..]).all(|byte| *byte == 7));
                assert!(file[start..end].iter().all(|byte| *byte == 0));
            }
        }
    }
}

#[test]
fn zeroes_that_may_unmap_give_space_back_and_others_keep_it() {
    for folder in folders() {
        let path = folder.path().join("disk");
        fs::write(&path, vec![7; SIZE as usize]).unwrap();
        let mut bench = Bench::open(&path, Options::default());
        bench.run(Action::Flush, 0, 0).unwrap();
        bench.run(zero(false, false), 0, SIZE).unwrap();
        assert!(fs::metadata(&path).unwrap().blocks() * 512 >= SIZE);
        bench.run(zero(true, false), 0, SIZE).unwrap();
        assert!(fs::metadata(&path).unwrap().blocks() * 512 < SIZE / 2);
    }
}

#[test]
fn holes_are_told_from_data() {
    for folder in folders() {
        let mut bench = Bench::sparse(&folder);
        assert!(bench.disk.geometry().capabilities.contains(Capabilities::STATUS));
        assert_eq!(bench.status(0, SIZE), (true, SIZE));
        bench.write(1 << 20, 1 << 20, 7, true).unwrap();
        assert_eq!(bench.status(0, SIZE), (true, 1 << 20));
        assert_eq!(bench.status(5, 10), (true, 10));
        assert_eq!(bench.status((1 << 20) + 1, SIZE - (1 << 20) - 1), (false, (1 << 20) - 1));
        assert_eq!(bench.status(2 << 20, 2 << 20), (true, 2 << 20));
    }
}

#[test]
fn a_dense_file_has_no_holes_until_one_is_punched() {
    for folder in folders() {
        let path = folder.path().join("disk");
        fs::write(&path, vec![7; SIZE as usize]).unwrap();
        fs::File::open(&path).unwrap().sync_all().unwrap();
        let mut bench = Bench::open(&path, Options::default());
        bench.submit(0, Action::Status, 0, SIZE).unwrap();
        assert!(bench.disk.poll(&mut bench.pool).is_some(), "nobody is asked");
        assert_eq!(bench.status(0, SIZE), (false, SIZE));
        bench.run(zero(true, false), 0, 1 << 20).unwrap();
        assert_eq!(bench.status(0, SIZE), (true, 1 << 20));
    }
}

#[test]
fn what_is_out_of_range_misfit_or_not_allowed_is_refused() {
    for folder in folders() {
        let mut bench = Bench::sparse(&folder);
        assert_eq!(bench.write(SIZE - 1, 2, 1, false), Err(Errno::Invalid));
        assert_eq!(bench.run(Action::Read(data(0, 2)), u64::MAX, 2), Err(Errno::Invalid));
        assert_eq!(bench.run(Action::Read(data(0, 2)), 0, 3), Err(Errno::Invalid));
        assert_eq!(bench.run(Action::Read(data(99, 2)), 0, 2), Err(Errno::Invalid));
        assert_eq!(bench.run(zero(true, true), 1, SIZE), Err(Errno::Invalid));
        assert_eq!(bench.run(Action::Status, SIZE, 1), Err(Errno::Invalid));
        drop(bench);
        let options = Options { read_only: true, ..Options::default() };
        let mut bench = Bench::open(&folder.path().join("disk"), options);
        assert!(bench.disk.geometry().capabilities.contains(Capabilities::READ_ONLY));
        assert_eq!(bench.write(0, 1, 1, false), Err(Errno::NotPermitted));
        assert_eq!(bench.run(zero(true, false), 0, 1), Err(Errno::NotPermitted));
        assert_eq!(bench.run(Action::Flush, 0, 0), Ok(Outcome::Done));
        assert_eq!(bench.read(0, 4), [0; 4]);
    }
}

#[test]
fn a_file_cut_short_under_us_is_an_error_and_no_zeroes() {
    for folder in folders() {
        let mut bench = Bench::sparse(&folder);
        let file = fs::File::options().write(true).open(folder.path().join("disk")).unwrap();
        file.set_len(1000).unwrap();
        assert_eq!(bench.run(Action::Read(data(0, 4096)), 0, 4096), Err(Errno::Io));
        assert_eq!(bench.read(0, 1000), [0; 1000]);
        // Nor is what is missing told to be a hole, which would be copied as zeroes.
        assert_eq!(bench.run(Action::Status, 4096, 4096), Err(Errno::Io));
        let start = bench.run(Action::Status, 0, 4096);
        assert!(matches!(start, Ok(Outcome::Status { length: 1..=1000, .. })), "{start:?}");
    }
}

#[test]
fn many_transfers_are_in_flight_and_each_completes_once() {
    for folder in folders() {
        let mut bench = Bench::sparse(&folder);
        for entry in 0..8 {
            bench.pool.bytes(data(entry, LARGE)).unwrap().fill(u8::try_from(entry).unwrap() + 1);
        }
        let unit = SIZE / 64;
        let mut completed = [0; 64];
        for entry in 0..64u16 {
            let bytes = Data {
                buffer: BufferIndex(entry / 8),
                offset: u32::from(entry % 8) * unit as u32,
                length: unit as u32,
            };
            let action = Action::Write { data: bytes, fua: entry % 16 == 0 };
            bench.submit(entry, action, u64::from(entry) * unit, unit).unwrap();
        }
        while bench.disk.in_flight_count() != 0 {
            let completion = bench.completion();
            assert_eq!(completion.result, Ok(Outcome::Done));
            completed[usize::from(completion.tag.entry)] += 1;
        }
        assert_eq!(completed, [1; 64]);
        for entry in 0..64u64 {
            let byte = u8::try_from(entry / 8).unwrap() + 1;
            assert_eq!(bench.read(entry * unit, 4), [byte; 4]);
        }
        assert_eq!(bench.pool.lend(data(0, LARGE), Lend::Writing).map(drop), Some(()));
    }
}

#[test]
fn a_full_queue_refuses_until_it_is_polled() {
    for folder in folders() {
        fs::File::create(folder.path().join("disk")).unwrap().set_len(SIZE).unwrap();
        let options = Options { queue_capacity: 3, ..Options::default() };
        let mut bench = Bench::open(&folder.path().join("disk"), options);
        for entry in 0..3 {
            bench.submit(entry, Action::Write { data: data(0, 512), fua: true }, 0, 512).unwrap();
        }
        assert_eq!(bench.submit(3, Action::Flush, 0, 0), Err(QueueFull));
        bench.completion();
        assert_eq!(bench.submit(3, Action::Flush, 0, 0), Ok(()));
    }
}

#[test]
fn the_ends_of_data_and_of_holes_are_found_in_short_extents_too() {
    let pages = [true, true, false, true, false, false, true, true, true, false, true];
    for folder in folders() {
        let path = folder.path().join("disk");
        let file = fs::File::create(&path).unwrap();
        file.set_len(SIZE).unwrap();
        // Of 64 KiB: then every file system keeps what lies between as a hole.
        const UNIT: u64 = 64 << 10;
        for (index, _) in (0..).zip(pages).filter(|(_, is_data)| *is_data) {
            file.write_all_at(&[1; UNIT as usize], index * UNIT).unwrap();
        }
        let mut bench = Bench::open(&path, Options::default());
        for (index, is_data) in (0..).zip(pages) {
            let alike =
                pages.iter().skip(index as usize).take_while(|other| **other == is_data).count() as u64;
            for (skipped, length) in
                [(0, UNIT), (1, 10), (5000, 2 * UNIT), (UNIT - 1, 4 * UNIT), (9, 16 * UNIT)]
            {
                let offset = index * UNIT + skipped;
                let length = length.min(pages.len() as u64 * UNIT - offset);
                let expected = (!is_data, length.min(alike * UNIT - skipped));
                assert_eq!(bench.status(offset, length), expected, "{index} {skipped} {length}");
            }
        }
    }
}

#[test]
fn nothing_begins_before_the_disk_is_polled() {
    for folder in folders() {
        let mut bench = Bench::sparse(&folder);
        let file = folder.path().join("disk");
        for entry in 0..4u16 {
            bench.pool.bytes(data(entry, 512)).unwrap().fill(entry as u8 + 1);
            let write = Action::Write { data: data(entry, 512), fua: false };
            bench.submit(entry, write, u64::from(entry) * 512, 512).unwrap();
        }
        assert_eq!(fs::read(&file).unwrap()[..2048], [0; 2048]);
        assert_eq!(bench.disk.in_flight_count(), 4);
        (0..4).for_each(|_| assert_eq!(bench.completion().result, Ok(Outcome::Done)));
        assert_eq!(bench.disk.in_flight_count(), 0);
        let written: Vec<u8> = (1..5).flat_map(|byte| [byte; 512]).collect();
        assert_eq!(fs::read(&file).unwrap()[..2048], written);
    }
}

#[test]
fn a_clean_disk_is_flushed_without_waiting_and_a_written_one_is_not() {
    let folder = folders().swap_remove(0);
    let mut bench = Bench::sparse(&folder);
    bench.run(Action::Flush, 0, 0).unwrap();
    bench.submit(0, Action::Flush, 0, 0).unwrap();
    assert!(bench.disk.poll(&mut bench.pool).is_some());
    bench.write(0, 512, 1, false).unwrap();
    bench.submit(1, Action::Flush, 0, 0).unwrap();
    bench.submit(2, Action::Flush, 0, 0).unwrap();
    bench.completion();
    bench.completion();
    bench.submit(3, Action::Flush, 0, 0).unwrap();
    assert!(bench.disk.poll(&mut bench.pool).is_some());
}

#[test]
fn direct_disks_take_aligned_transfers_only() {
    let folder = folders().swap_remove(0);
    let path = folder.path().join("disk");
    fs::File::create(&path).unwrap().set_len(SIZE).unwrap();
    let (_poller, workers) = edge::both(1, 1);
    let options = Options { direct: true, ..Options::default() };
    match Disk::open(&path, options, &workers) {
        Err(error) => return eprintln!("not tested: {error}"),
        Ok(disk) => drop(disk),
    }
    let mut bench = Bench::open(&path, options);
    let unit = bench.disk.geometry().block_bytes;
    assert!(unit == 512 || unit == 4096, "{unit}");
    bench.write(u64::from(unit), unit, 9, true).unwrap();
    assert_eq!(bench.read(u64::from(unit), unit), vec![9; unit as usize]);
    assert_eq!(bench.write(1, unit, 9, false), Err(Errno::Invalid));
    assert_eq!(bench.run(Action::Read(data(0, 1)), 0, 1), Err(Errno::Invalid));
    assert_eq!(bench.run(zero(true, false), 1, u64::from(unit)), Err(Errno::Invalid));
    bench.run(zero(true, false), 0, 2 * u64::from(unit)).unwrap();
    assert_eq!(bench.read(u64::from(unit), unit), vec![0; unit as usize]);
    drop(bench);
    fs::File::options().write(true).open(&path).unwrap().set_len(SIZE + 1).unwrap();
    let error = Disk::open(&path, options, &workers).unwrap_err();
    assert!(error.to_string().contains("not a multiple"), "{error}");
}

#[test]
fn a_new_disk_is_all_hole_and_one_in_use_is_not_emptied() {
    for folder in folders() {
        let path = folder.path().join("buffer");
        fs::write(&path, "old content").unwrap();
        let (_poller, workers) = edge::both(1, 1);
        let disk = Disk::create(&path, SIZE, Options::default(), &workers).unwrap();
        assert_eq!(disk.geometry().size_bytes, SIZE);
        fs::write(&path, "precious").unwrap();
        let error = Disk::create(&path, SIZE, Options::default(), &workers).unwrap_err();
        assert!(matches!(error.reason, OpenReason::InUse(_)), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        drop(disk);
        drop(Disk::create(&path, SIZE, Options::default(), &workers).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().len(), SIZE);
        assert!(fs::read(&path).unwrap().iter().all(|byte| *byte == 0));
    }
}

#[test]
fn what_is_no_disk_is_refused_with_its_name() {
    let folder = folders().swap_remove(0);
    let (_poller, workers) = edge::both(1, 1);
    let open = |path: &Path| Disk::open(path, Options::default(), &workers).unwrap_err().to_string();
    let none = folder.path().join("none");
    assert!(open(&none).starts_with(&format!("cannot open {}", none.display())));
    let options = Options { read_only: true, ..Options::default() };
    let error = Disk::open(folder.path(), options, &workers).unwrap_err().to_string();
    assert!(error.contains("neither a file nor a block device"), "{error}");
    assert!(open(Path::new("/dev/null")).contains("neither"));
}

/// A block device over a file, taken down at the end.
struct LoopDevice(std::path::PathBuf);

impl LoopDevice {
    fn over(file: &Path) -> Option<Self> {
        let output = std::process::Command::new("losetup").args(["--find", "--show"]).arg(file).output();
        match output {
            Ok(output) if output.status.success() => {
                Some(Self(String::from_utf8(output.stdout).unwrap().trim_end().into()))
            }
            _ => {
                eprintln!("not tested: losetup makes no device here");
                None
            }
        }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn a_block_device_is_a_disk_of_its_own_length() {
    let folder = folders().swap_remove(0);
    let path = folder.path().join("backing");
    fs::write(&path, vec![7; SIZE as usize]).unwrap();
    let Some(device) = LoopDevice::over(&path) else { return };
    for direct in [false, true] {
        let mut bench = Bench::open(&device.0, Options { direct, ..Options::default() });
        let geometry = bench.disk.geometry();
        assert_eq!((geometry.size_bytes, geometry.block_bytes), (SIZE, if direct { 512 } else { 1 }));
        assert!(!geometry.capabilities.contains(Capabilities::STATUS));
        assert_eq!(bench.status(0, SIZE), (false, SIZE));
        bench.write(4096, 4096, 3, true).unwrap();
        assert_eq!(bench.read(4096, 4096), vec![3; 4096]);
        // Sectors by the system, the edges written out.
        let (offset, length) = if direct { (4096, 8192) } else { (4099, 8000) };
        for (may_unmap, fast) in [(true, true), (false, false)] {
            bench.write(0, 65_536, 9, false).unwrap();
            match bench.run(zero(may_unmap, fast), offset, length) {
                Err(Errno::Unsupported) if fast => continue,
                result => assert_eq!(result, Ok(Outcome::Done)),
            }
            let bytes = bench.read(0, 65_536);
            for (place, byte) in (0..).zip(bytes) {
                let expected = if (offset..offset + length).contains(&place) { 0 } else { 9 };
                assert_eq!(byte, expected, "at {place}");
            }
        }
        assert_eq!(bench.run(Action::Flush, 0, 0), Ok(Outcome::Done));
    }
    let (_poller, workers) = edge::both(1, 1);
    let create = |size| Disk::create(&device.0, size, Options::default(), &workers);
    assert_eq!(create(SIZE / 2).unwrap().geometry().size_bytes, SIZE / 2);
    assert!(matches!(create(SIZE + 1).unwrap_err().reason, OpenReason::TooShort { .. }));
}
