//! What is bounded, counted and refused.

use super::super::ConfigError;
use super::*;

/// What comes of making a primary with these settings.
fn made(change: impl FnOnce(&mut Config, &mut Geometry)) -> Option<ConfigError> {
    let mut config = Config { window_bytes: 16384, dirty_granule_bytes: 512, block_bytes: 512 };
    let mut disk = Geometry { block_bytes: 512, ..geometry() };
    change(&mut config, &mut disk);
    let words = Primary::bitmap_words(SIZE, 512);
    let storage = Storage {
        table: leak(Slot::FREE, 1),
        connections: leak(Connection::FREE, 1),
        written: leak(0, words),
        lost: leak(0, words),
        replicas: vec![Replica::new(leak(0, Primary::replica_words(SIZE, 512)))].leak(),
    };
    Primary::new(config, disk, storage).err()
}

#[test]
fn settings_that_do_not_fit_are_named() {
    use ConfigError::{Bitmap, Block, DirtyGranule, Disk, Window};
    assert_eq!(made(|_, _| {}), None);
    assert_eq!(made(|config, _| config.window_bytes = 3 << 12), Some(Window));
    assert_eq!(made(|config, _| config.dirty_granule_bytes = 256), Some(DirtyGranule));
    assert_eq!(made(|config, _| config.dirty_granule_bytes = 1536), Some(DirtyGranule));
    assert_eq!(made(|config, _| config.block_bytes = 256), Some(Block));
    assert_eq!(made(|config, _| config.block_bytes = 768), Some(Block));
    assert_eq!(made(|config, _| config.block_bytes = 1024), None);
    assert_eq!(made(|_, disk| disk.size_bytes = 0), Some(Disk));
    assert_eq!(made(|_, disk| disk.capabilities = Capabilities::READ_ONLY), Some(Disk));
    assert_eq!(made(|_, disk| disk.size_bytes = 100 * SIZE), Some(Bitmap));
}

#[test]
fn memory_that_is_too_little_or_too_much_is_named() {
    let config = Config { window_bytes: 16384, dirty_granule_bytes: GRANULE, block_bytes: 1 };
    let words = Primary::bitmap_words(1 << 24, GRANULE);
    assert_eq!(words, 64 + 1, "4096 granules and the level above");
    let disk = Geometry { size_bytes: 1 << 24, ..geometry() };
    let make = |places, written, lost, replicas: usize, dirty| {
        let storage = Storage {
            table: leak(Slot::FREE, places),
            connections: leak(Connection::FREE, 1),
            written: leak(0, written),
            lost: leak(0, lost),
            replicas: (0..replicas).map(|_| Replica::new(leak(0, dirty))).collect::<Vec<_>>().leak(),
        };
        Primary::new(config, disk, storage).err()
    };
    let each = Primary::replica_words(1 << 24, GRANULE);
    assert_eq!(each, 3 * words, "dirty, and two for what is not flushed");
    assert_eq!(make(1, words, words, 32, each), None);
    assert_eq!(make(1, words, words, 0, 0), None);
    assert_eq!(make(0, words, words, 1, each), Some(ConfigError::Table));
    assert_eq!(make(1, words - 1, words, 1, each), Some(ConfigError::Bitmap));
    assert_eq!(make(1, words, words - 1, 1, each), Some(ConfigError::Bitmap));
    assert_eq!(make(1, words, words, 1, each - 1), Some(ConfigError::Bitmap));
    assert_eq!(make(1, words, words, 33, each), Some(ConfigError::Replicas));
}

#[test]
fn the_epoch_counts_starts_and_checkpoints() {
    let mut bench = Bench::new();
    assert_eq!(bench.machine.epoch(), 0);
    bench.command(Command::Start { primary: true }).unwrap();
    assert_eq!(bench.machine.epoch(), 1);
    for (is_checkpoint, epoch) in [(true, 2), (false, 2), (true, 3)] {
        bench.command(Command::Barrier { is_urgent: false }).unwrap();
        assert_eq!(bench.command(Command::Barrier { is_urgent: false }), Err(Refused::InProgress));
        bench.command(Command::Release { is_checkpoint }).unwrap();
        assert_eq!(bench.machine.epoch(), epoch);
    }
    assert_eq!(bench.machine.replica_count(), 2);
    assert_eq!(crate::driver::Machine::poll_timeout(&bench.machine), None, "a primary waits for no time");
}

#[test]
fn a_stop_and_a_start_clear_the_errors_and_a_stop_ends_a_barrier_that_is_not_reached() {
    let mut bench = Bench::running();
    for _ in 0..2 {
        let id = bench.write(0, 512);
        bench.end(Device::Disk, IO);
        bench.ok(FIRST);
        bench.ok(SECOND);
        assert_eq!(bench.reply(id), DONE);
    }
    assert_eq!(bench.machine.errors().count(ErrorKind::PrimaryDisk), 2);
    let long = Request {
        is_last: false,
        ..Request::whole(
            RequestId(90),
            Op::Write { data: data(512), fua: false },
            Extent { offset: 0, length: 512 },
        )
    };
    bench.offer(Input::Request(GUEST, long)).unwrap();
    bench.answers.clear();
    bench.command(Command::Barrier { is_urgent: false }).unwrap();
    assert!(bench.answers.is_empty(), "the rest of a request is still to come");
    bench.command(Command::Stop).unwrap();
    let answers: Vec<_> = bench.answers.iter().map(|(_, result)| *result).collect();
    assert_eq!(answers, [Err(Refused::NotRunning), Ok(())]);
    assert_eq!(bench.machine.errors().first(), None);
}

#[test]
fn a_barrier_that_is_reached_outlasts_a_stop_and_a_start() {
    let mut bench = Bench::running();
    bench.command(Command::Barrier { is_urgent: false }).unwrap();
    let id = bench.write(0, 512);
    bench.command(Command::Stop).unwrap();
    bench.command(Command::Start { primary: true }).unwrap();
    assert_eq!(bench.command(Command::Barrier { is_urgent: false }), Err(Refused::InProgress));
    assert!(bench.transfers.is_empty(), "what came after the barrier waits for its release");
    bench.command(Command::Release { is_checkpoint: true }).unwrap();
    bench.end(Device::Disk, Ok(Outcome::Done));
    bench.ok(FIRST);
    bench.ok(SECOND);
    assert_eq!(bench.reply(id), DONE);
}

#[test]
fn requests_that_do_not_fit_and_completions_of_nothing_are_refused() {
    let mut bench = Bench::running();
    let request = |op, offset, length| Request::whole(RequestId(0), op, Extent { offset, length });
    let read = Op::Read(data(512));
    for wrong in [
        request(read, SIZE - 511, 512),
        request(read, u64::MAX, 512),
        request(read, 0, 511),
        request(Op::Read(data(0)), 0, 0),
        request(Op::Read(data(16385)), 0, 16385),
        request(Op::Read(data(2)), 16383, 2),
        request(Op::Flush, 0, 1),
    ] {
        assert_eq!(bench.offer(Input::Request(GUEST, wrong)), Err(Refused::BadRequest), "{wrong:?}");
    }
    let unknown = Input::Request(ConnectionId(99), request(read, 0, 512));
    assert_eq!(bench.offer(unknown), Err(Refused::Stale));
    bench.read(0, 1);
    let transfer = bench.ok(Device::Disk);
    let again = Completion { tag: transfer.tag, result: Ok(Outcome::Done) };
    assert_eq!(bench.offer(Input::Completed(Device::Disk, again)), Err(Refused::Stale));
}

#[test]
fn a_full_table_refuses_and_a_closed_connection_gives_its_untouched_requests_back() {
    let mut bench = Bench::running();
    for _ in 0..8 {
        bench.write(0, 1);
    }
    let one_more = Request::whole(RequestId(99), Op::Flush, Extent::default());
    assert_eq!(bench.offer(Input::Request(GUEST, one_more)), Err(Refused::Busy));
    bench.offer(Input::Closed(GUEST)).unwrap();
    assert_eq!(bench.replies.len(), 7);
    assert!(bench.replies.iter().all(|reply| reply.result == Err(Errno::Shutdown)));
    assert_eq!(bench.machine.in_flight(), 1, "the one with transfers under way ends by itself");
}
