use std::cell::Cell;
use std::rc::Rc;
use std::vec::Vec;
use std::{assert, assert_eq, vec};

use super::{
    Action, BlockDevice, Blocking, BlockingDisk, Capabilities, Completion, QueueFull, Seekable, Tag, Transfer,
};
use crate::{BufferIndex, Data, Errno, Extent, Memory, Outcome, Windows};

/// A disk that notes what it is asked.
struct Noted {
    bytes: Vec<u8>,
    block_bytes: u32,
    is_read_only: bool,
    calls: Vec<(&'static str, u64, usize)>,
    failure: Option<Errno>,
}

impl Noted {
    fn new(size: usize, block_bytes: u32) -> Self {
        Self { bytes: vec![7; size], block_bytes, is_read_only: false, calls: vec![], failure: None }
    }

    fn note(&mut self, name: &'static str, offset: u64, length: usize) -> Result<(), Errno> {
        self.calls.push((name, offset, length));
        self.failure.map_or(Ok(()), Err)
    }
}

impl BlockingDisk for Noted {
    fn size_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        self.note("read", offset, bytes.len())?;
        bytes.copy_from_slice(&self.bytes[offset as usize..][..bytes.len()]);
        Ok(())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.note("write", offset, bytes.len())?;
        self.bytes[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Errno> {
        self.note("flush", 0, 0)
    }

    fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    fn is_read_only(&self) -> bool {
        self.is_read_only
    }
}

const TAG: Tag = Tag { entry: 3, generation: 4 };

/// Submits one transfer and gives what comes of it; the memory is filled with 1 before.
fn run(disk: &mut Blocking<Noted>, action: Action, offset: u64, length: u64) -> Result<Outcome, Errno> {
    let mut bytes = [1; 2048];
    let mut memory = Windows::new(&mut bytes, 1024);
    let extent = Extent { offset, length };
    disk.submit(Transfer { tag: TAG, action, extent }, &mut memory).unwrap();
    let completion = disk.poll(&mut memory).unwrap();
    assert_eq!(completion.tag, TAG);
    assert_eq!(disk.poll(&mut memory), None);
    if let (Action::Read(data), Ok(_)) = (action, completion.result) {
        assert!(memory.bytes(data).unwrap().iter().all(|byte| *byte == 7));
    }
    completion.result
}

const fn data(length: u32) -> Data {
    Data { buffer: BufferIndex(1), offset: 0, length }
}

const fn zeroes(fast: bool, fua: bool) -> Action {
    Action::WriteZeroes { may_unmap: true, fast, fua }
}

#[test]
fn a_blocking_disk_does_each_transfer_at_once_and_flushes_for_fua() {
    let mut disk = Blocking::new(Noted::new(2000, 1));
    let done = Ok(Outcome::Done);
    assert_eq!(run(&mut disk, Action::Read(data(100)), 5, 100), done);
    assert_eq!(run(&mut disk, Action::Write { data: data(200), fua: false }, 1800, 200), done);
    assert_eq!(run(&mut disk, Action::Write { data: data(10), fua: true }, 0, 10), done);
    assert_eq!(run(&mut disk, Action::Flush, 0, 0), done);
    assert_eq!(run(&mut disk, zeroes(false, false), 20, 1100), done);
    assert_eq!(run(&mut disk, zeroes(false, true), 1999, 1), done);
    let expected = [
        ("read", 5, 100),
        ("write", 1800, 200),
        ("write", 0, 10),
        ("flush", 0, 0),
        ("flush", 0, 0),
        ("write", 20, 512),
        ("write", 532, 512),
        ("write", 1044, 76),
        ("write", 1999, 1),
        ("flush", 0, 0),
    ];
    assert_eq!(disk.disk().calls, expected);
    let mut bytes = vec![7; 2000];
    bytes[1800..].fill(1);
    bytes[..10].fill(1);
    bytes[20..1120].fill(0);
    bytes[1999] = 0;
    assert!(disk.into_disk().bytes == bytes);
}

#[test]
fn what_does_not_fit_or_cannot_be_fast_is_refused_before_the_disk_hears_of_it() {
    let mut disk = Blocking::new(Noted::new(2000, 1));
    for (offset, length) in [(1901, 100), (2001, 0), (u64::MAX, 1), (u64::MAX, 2)] {
        assert_eq!(run(&mut disk, zeroes(false, false), offset, length), Err(Errno::Invalid), "{offset}");
    }
    for action in [Action::Read(data(99)), Action::Write { data: data(101), fua: false }] {
        assert_eq!(run(&mut disk, action, 0, 100), Err(Errno::Invalid), "other data than bytes");
    }
    let nowhere = Data { buffer: BufferIndex(2), ..data(100) };
    assert_eq!(run(&mut disk, Action::Read(nowhere), 0, 100), Err(Errno::Invalid));
    assert_eq!(run(&mut disk, zeroes(true, false), 0, 100), Err(Errno::Unsupported));
    assert_eq!(run(&mut disk, Action::Status, 0, 100), Err(Errno::Unsupported));
    assert!(disk.disk().calls.is_empty());
    let mut coarse = Blocking::new(Noted::new(4096, 1024));
    assert_eq!(run(&mut coarse, zeroes(false, false), 0, 1024), Err(Errno::Unsupported));
    let mut fine = Blocking::new(Noted::new(4096, 512));
    assert_eq!(run(&mut fine, zeroes(false, false), 0, 1024), Ok(Outcome::Done));
}

#[test]
fn an_error_of_the_disk_is_told_and_nothing_follows_it() {
    let mut disk = Blocking::new(Noted::new(2000, 1));
    disk.disk_mut().failure = Some(Errno::NoSpace);
    let actions = [
        Action::Read(data(8)),
        Action::Write { data: data(8), fua: true },
        zeroes(false, true),
        Action::Flush,
    ];
    for (action, length) in actions.into_iter().zip([8, 8, 1500, 0]) {
        assert_eq!(run(&mut disk, action, 0, length), Err(Errno::NoSpace));
    }
    assert_eq!(disk.disk().calls.len(), 4);
}

#[test]
fn the_shape_of_a_blocking_disk_is_that_of_the_disk() {
    let mut disk = Noted::new(2048, 512);
    for is_read_only in [false, true] {
        disk.is_read_only = is_read_only;
        let device = Blocking::new(disk);
        let geometry = BlockDevice::<Windows<'_>>::geometry(&device);
        assert_eq!((geometry.size_bytes, geometry.block_bytes), (2048, 512));
        let expected = if is_read_only { Capabilities::READ_ONLY } else { Capabilities::empty() };
        assert_eq!(geometry.capabilities, Capabilities::FLUSH | Capabilities::WRITE_ZEROES | expected);
        disk = device.into_disk();
    }
    struct Plain;
    impl BlockingDisk for Plain {
        fn size_bytes(&self) -> u64 {
            1
        }
        fn read(&mut self, _offset: u64, _bytes: &mut [u8]) -> Result<(), Errno> {
            Ok(())
        }
        fn write(&mut self, _offset: u64, _bytes: &[u8]) -> Result<(), Errno> {
            Ok(())
        }
        fn flush(&mut self) -> Result<(), Errno> {
            Ok(())
        }
    }
    assert_eq!((Plain.block_bytes(), Plain.is_read_only()), (1, false), "unless it says otherwise");
}

#[test]
fn completions_wait_in_order_and_a_full_queue_takes_no_more() {
    let mut disk = Blocking::new(Noted::new(2000, 1));
    let mut memory = Windows::new(&mut [], 1);
    let flush = |entry| Transfer {
        tag: Tag { entry, generation: 0 },
        action: Action::Flush,
        extent: Extent::default(),
    };
    for entry in 0..8 {
        assert_eq!(disk.submit(flush(entry), &mut memory), Ok(()));
    }
    assert_eq!(disk.submit(flush(8), &mut memory), Err(QueueFull));
    assert_eq!(disk.disk().calls.len(), 8, "what was not taken was not done");
    for entry in 0..8 {
        let expected = Completion { tag: flush(entry).tag, result: Ok(Outcome::Done) };
        assert_eq!(disk.poll(&mut memory), Some(expected));
    }
    assert_eq!(disk.poll(&mut memory), None);
}

/// A stream that can seek, and can be made to go wrong.
struct Stream {
    bytes: Vec<u8>,
    position: u64,
    is_lost: Rc<Cell<bool>>,
    flushes: Rc<Cell<u32>>,
}

impl embedded_io::ErrorType for Stream {
    type Error = embedded_io::ErrorKind;
}

impl embedded_io::Read for Stream {
    fn read(&mut self, to: &mut [u8]) -> Result<usize, Self::Error> {
        let rest = &self.bytes[(self.position as usize).min(self.bytes.len())..];
        let count = rest.len().min(to.len()).min(100);
        to[..count].copy_from_slice(&rest[..count]);
        self.position += count as u64;
        Ok(count)
    }
}

impl embedded_io::Write for Stream {
    fn write(&mut self, from: &[u8]) -> Result<usize, Self::Error> {
        let count = from.len().min(100);
        let place = self.bytes.get_mut(self.position as usize..self.position as usize + count);
        place.ok_or(embedded_io::ErrorKind::OutOfMemory)?.copy_from_slice(&from[..count]);
        self.position += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> Result<(), Self::Error> {
        self.flushes.set(self.flushes.get() + 1);
        if self.is_lost.get() { Err(embedded_io::ErrorKind::NotConnected) } else { Ok(()) }
    }
}

impl embedded_io::Seek for Stream {
    fn seek(&mut self, to: embedded_io::SeekFrom) -> Result<u64, Self::Error> {
        self.position = match to {
            embedded_io::SeekFrom::Start(offset) => offset,
            embedded_io::SeekFrom::End(offset) => self.bytes.len() as u64 + offset as u64,
            embedded_io::SeekFrom::Current(_) => return Err(embedded_io::ErrorKind::Unsupported),
        };
        Ok(if self.is_lost.get() { self.position + 1 } else { self.position })
    }
}

#[test]
fn a_stream_that_can_seek_is_a_disk() {
    let (is_lost, flushes) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0)));
    let bytes = (0..=255).cycle().take(1000).collect();
    let stream = Stream { bytes, position: 9, is_lost: is_lost.clone(), flushes: flushes.clone() };
    let mut disk = Seekable::new(stream).unwrap();
    assert_eq!(disk.size_bytes(), 1000);
    let mut bytes = [0; 300];
    disk.read(500, &mut bytes).unwrap();
    assert!((500..800).map(|at| (at % 256) as u8).eq(bytes));
    disk.write(600, &[9; 300]).unwrap();
    disk.read(599, &mut bytes).unwrap();
    assert_eq!(bytes[0], (599 % 256) as u8);
    assert!(bytes[1..].iter().all(|byte| *byte == 9));
    assert_eq!(disk.read(900, &mut bytes), Err(Errno::Io), "past its end");
    assert_eq!(disk.write(900, &bytes), Err(Errno::Io));
    disk.flush().unwrap();
    assert_eq!(flushes.get(), 1);
    is_lost.set(true);
    assert_eq!(disk.read(0, &mut bytes), Err(Errno::Io), "it seeks elsewhere");
    assert_eq!(disk.write(0, &bytes), Err(Errno::Io));
    assert_eq!(disk.flush(), Err(Errno::Io));
    is_lost.set(false);
    disk.read(0, &mut bytes).unwrap();
    assert_eq!(bytes[0], 0, "nothing was written elsewhere");
}

/// A stream that claims to have moved this many bytes, whatever it is given.
struct Liar(usize);

impl embedded_io::ErrorType for Liar {
    type Error = embedded_io::ErrorKind;
}

impl embedded_io::Read for Liar {
    fn read(&mut self, _bytes: &mut [u8]) -> Result<usize, Self::Error> {
        Ok(self.0)
    }
}

impl embedded_io::Write for Liar {
    fn write(&mut self, _bytes: &[u8]) -> Result<usize, Self::Error> {
        Ok(self.0)
    }

    fn flush(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }
}

impl embedded_io::Seek for Liar {
    fn seek(&mut self, to: embedded_io::SeekFrom) -> Result<u64, Self::Error> {
        Ok(if let embedded_io::SeekFrom::Start(at) = to { at } else { 1000 })
    }
}

#[test]
fn a_stream_that_moves_nothing_or_more_than_it_was_given_is_an_error() {
    for claimed in [0, 301] {
        let mut disk = Seekable::new(Liar(claimed)).unwrap();
        assert_eq!(disk.read(0, &mut [0; 300]), Err(Errno::Io), "{claimed}");
        assert_eq!(disk.write(0, &[0; 300]), Err(Errno::Io), "{claimed}");
    }
}
