//! What is in flight when its owner goes. A system that still writes would be caught by the canaries: memory of the same
//! size, taken as soon as the owner is gone.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Duration;

use twinblock_core::block::{Action, BlockDevice, Tag, Transfer};
use twinblock_core::nbd::server::ServerConfig;
use twinblock_core::{BufferIndex, Data, Extent, Memory, Micros, Pool};
use twinblock_io_posix::connection::{Connection, ConnectionSizes};
use twinblock_io_posix::disk::{Disk, Options};
use twinblock_io_posix::memory::{HostPool, Lend, PoolSizes};
use twinblock_io_posix::poller::{Interest, Poller};
use twinblock_io_posix::socket::{ListenOptions, Listener, Stream};
use twinblock_io_posix::wire::Room;
use twinblock_io_posix::workers::Workers;

use super::Engine;
use crate::Ring;
use crate::raw::Raw;

const ROOM: usize = 64 << 10;
const LARGE: u32 = 256 << 10;
const SOON: Option<Duration> = Some(Duration::from_millis(50));

/// None where the system gives none: then there is nothing to test.
fn ring() -> Option<Ring> {
    Ring::new(16).inspect_err(|error| eprintln!("not tested: {error}")).ok()
}

fn engine() -> Option<Engine> {
    ring().map(|_| Engine::new(Raw::new().unwrap(), 16))
}

fn pool() -> HostPool {
    HostPool::new(PoolSizes { small_count: 0, large_count: 2, large_bytes: LARGE }).unwrap()
}

const fn whole(buffer: BufferIndex) -> Data {
    Data { buffer, offset: 0, length: LARGE }
}

/// A stream on the ring, and its other end.
fn stream(engine: &mut Engine, token: u32) -> (usize, UnixStream) {
    let (here, there) = UnixStream::pair().unwrap();
    (engine.adopt(OwnedFd::from(here), token), there)
}

/// Takes memory that has just become free, if any has.
fn canaries() -> Vec<Box<[u8]>> {
    (0..64).map(|_| vec![0xc5; ROOM].into_boxed_slice()).collect()
}

fn assert_alive(canaries: &[Box<[u8]>]) {
    for canary in canaries {
        assert!(canary.iter().all(|byte| *byte == 0xc5), "somebody has written to memory that is not theirs");
    }
}

fn waits(engine: &mut Engine, count: usize) {
    (0..count).for_each(|_| engine.wait(SOON).unwrap());
}

#[test]
fn a_buffer_that_is_being_received_into_is_kept_when_its_stream_goes() {
    // Before the system has heard of it, and after.
    for is_told in [false, true] {
        let Some(mut engine) = engine() else { return };
        let (place, mut peer) = stream(&mut engine, 1);
        waits(&mut engine, 1);
        engine.receive(place, Room::Own(vec![0; ROOM].into_boxed_slice()));
        if is_told {
            engine.wait(Some(Duration::ZERO)).unwrap();
        }
        let _ = peer.write_all(&[7; ROOM / 2]);
        engine.hang_up(place);
        let canaries = canaries();
        waits(&mut engine, 3);
        assert_alive(&canaries);
        assert!(engine.streams[place].is_over());
        assert_eq!(engine.raw.in_flight(), 0);
    }
}

#[test]
fn what_the_pool_has_lent_comes_back_only_when_the_system_has_let_go_of_it() {
    let Some(mut engine) = engine() else { return };
    let mut pool = pool();
    let (place, mut peer) = stream(&mut engine, 1);
    let buffers = [pool.acquire(LARGE).unwrap(), pool.acquire(LARGE).unwrap()];
    let lease = pool.lend(whole(buffers[0]), Lend::Writing).unwrap();
    engine.receive(place, Room::Pool(lease));
    peer.write_all(&[7; 1000]).unwrap();
    engine.hang_up(place);
    // Its owner is gone, and gives the buffer back.
    pool.release(buffers[0]);
    engine.take_back(&mut pool);
    assert_eq!(pool.acquire(LARGE), None, "the system may still write to it");
    assert!(pool.bytes(whole(buffers[0])).is_none());
    waits(&mut engine, 2);
    engine.take_back(&mut pool);
    assert_eq!(pool.acquire(LARGE), Some(buffers[0]));
    assert_eq!(pool.bytes(whole(buffers[0])).unwrap()[..1000], [7; 1000], "the system has");
}

#[test]
fn a_place_of_a_stream_is_not_used_again_before_all_of_it_has_ended() {
    let Some(mut engine) = engine() else { return };
    let (place, mut peer) = stream(&mut engine, 1);
    engine.receive(place, Room::Own(vec![0; ROOM].into_boxed_slice()));
    engine.hang_up(place);
    let (other, _peer) = stream(&mut engine, 2);
    assert_ne!(place, other);
    waits(&mut engine, 2);
    assert!(engine.received(other).is_none());
    assert_eq!(stream(&mut engine, 3).0, place);
    // The socket has closed.
    assert_eq!(peer.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn a_disk_that_goes_with_transfers_in_flight_leaves_their_buffers_with_the_system() {
    for folder in [tempfile::tempdir_in("/dev/shm"), tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR"))] {
        let Ok(folder) = folder else { continue };
        let path = folder.path().join("disk");
        fs::write(&path, vec![7; LARGE as usize]).unwrap();
        let Some(ring) = ring() else { return };
        let mut poller = ring.poller().unwrap();
        let workers = Workers::start(1, &poller.waker()).unwrap().beside(ring.queues());
        let mut disk = Disk::open(&path, Options::default(), &workers).unwrap();
        let mut pool = pool();
        let buffers = [pool.acquire(LARGE).unwrap(), pool.acquire(LARGE).unwrap()];
        for buffer in buffers {
            let extent = Extent { offset: 0, length: u64::from(LARGE) };
            let action = Action::Read(whole(buffer));
            disk.submit(Transfer { tag: Tag::default(), action, extent }, &mut pool).unwrap();
        }
        assert_eq!(disk.poll(&mut pool), None);
        drop(disk);
        for buffer in buffers {
            pool.release(buffer);
            assert!(pool.bytes(whole(buffer)).is_none());
        }
        for _ in 0..20 {
            poller.wait(SOON).unwrap();
            poller.take_back(&mut pool);
        }
        for buffer in buffers {
            assert!(pool.bytes(whole(buffer)).unwrap().iter().all(|byte| *byte == 7), "it has been read");
        }
        assert_eq!(pool.free_counts(), (0, 2));
    }
}

#[test]
fn a_ring_that_goes_first_waits_for_the_system() {
    let mut pool = pool();
    let Some(mut engine) = engine() else { return };
    let (mut peers, mut sockets) = (Vec::new(), Vec::new());
    for token in 0..8 {
        let (place, peer) = stream(&mut engine, token);
        peers.push(peer);
        sockets.extend(engine.socket(place));
        engine.receive(place, Room::Own(vec![0; ROOM].into_boxed_slice()));
    }
    let (place, peer) = stream(&mut engine, 9);
    peers.push(peer);
    let buffer = pool.acquire(LARGE).unwrap();
    engine.receive(place, Room::Pool(pool.lend(whole(buffer), Lend::Writing).unwrap()));
    engine.wait(Some(Duration::ZERO)).unwrap();
    drop((pool, engine));
    assert!(
        sockets.iter().all(|socket| Rc::strong_count(socket) == 1),
        "something is still in flight, or lost"
    );
    let canaries = canaries();
    for peer in &mut peers {
        let _ = peer.write_all(&[7; 1000]);
    }
    std::thread::sleep(Duration::from_millis(20));
    assert_alive(&canaries);
}

/// A client that has sent the head of a long write and part of its data.
fn half_a_write(peer: &mut UnixStream) {
    let option = [b"IHAVEOPT".as_slice(), &1u32.to_be_bytes(), &4u32.to_be_bytes(), b"disk"].concat();
    let head =
        [0x2560_9513u32.to_be_bytes().as_slice(), &[0, 0, 0, 1], &[0; 16], &LARGE.to_be_bytes()].concat();
    let bytes = [3u32.to_be_bytes().as_slice(), &option, &head, &[7; 1000]].concat();
    peer.write_all(&bytes).unwrap();
}

struct One;

impl twinblock_core::nbd::server::Exports for One {
    fn count(&self) -> usize {
        1
    }

    fn export(&self, index: usize) -> Option<twinblock_core::nbd::server::Export<'_>> {
        (index == 0).then(|| twinblock_core::nbd::server::Export::new("disk", 1 << 30))
    }
}

#[test]
fn a_connection_that_is_closed_while_it_receives_into_the_pool_gives_the_buffer_back_later() {
    let mut pool = pool();
    let Some(mut poller) = ring().map(|ring| ring.poller().unwrap()) else { return };
    let folder = tempfile::tempdir().unwrap();
    let address = twinblock_io_posix::address::Address::Unix(folder.path().join("sock"));
    let listener = Listener::bind(&address, ListenOptions::default()).unwrap();
    let registration = poller.listen(&listener, 9).unwrap();
    let mut connection = Connection::new(ServerConfig::new(LARGE, 0), ConnectionSizes::default(), 5).unwrap();
    for _ in 0..3 {
        let mut peer = UnixStream::connect(folder.path().join("sock")).unwrap();
        let stream = accepted(&mut poller, &listener, registration);
        connection.open(stream, Micros(0), &mut pool).unwrap();
        half_a_write(&mut peer);
        for _ in 0..6 {
            turn(&mut connection, &mut pool, &mut poller);
        }
        assert_eq!(pool.free_counts(), (0, 1), "the data go to a buffer");
        connection.kick(&mut pool);
        let _ = peer.write_all(&[9; 1000]);
        while connection.next(&One, &mut pool).is_some() {}
        connection.finish(Micros(0), &mut pool, &mut poller);
        assert!(connection.is_free());
        assert_eq!(pool.free_counts(), (0, 1), "the system may still write to it");
        for _ in 0..4 {
            poller.wait(SOON).unwrap();
            poller.take_back(&mut pool);
        }
        assert_eq!(pool.free_counts(), (0, 2));
    }
}

fn accepted(
    poller: &mut Poller,
    listener: &Listener,
    registration: twinblock_io_posix::poller::Registration,
) -> Stream {
    for _ in 0..100 {
        poller.wait(SOON).unwrap();
        if let Some(stream) = poller.accept(listener, registration).unwrap() {
            return stream;
        }
    }
    panic!("nobody was accepted");
}

fn turn(connection: &mut Connection, pool: &mut HostPool, poller: &mut Poller) {
    while connection.next(&One, pool).is_some() {}
    connection.finish(Micros(0), pool, poller);
    poller.wait(SOON).unwrap();
    poller.take_back(pool);
    poller.ready().filter(|ready| ready.token == 5).for_each(|ready| connection.ready(ready));
}

#[test]
fn who_was_accepted_while_nobody_shall_be_is_kept_until_somebody_may() {
    let Some(mut poller) = ring().map(|ring| ring.poller().unwrap()) else { return };
    let folder = tempfile::tempdir().unwrap();
    let address = twinblock_io_posix::address::Address::Unix(folder.path().join("sock"));
    let listener = Listener::bind(&address, ListenOptions::default()).unwrap();
    let registration = poller.listen(&listener, 9).unwrap();
    let mut clients: Vec<_> =
        (0..2).map(|_| UnixStream::connect(folder.path().join("sock")).unwrap()).collect();
    poller.wait(SOON).unwrap();
    assert_eq!(poller.ready().count(), 1);
    poller.set_interest(registration, Interest::NONE);
    poller.wait(SOON).unwrap();
    assert_eq!(poller.ready().count(), 0);
    poller.set_interest(registration, Interest::READ);
    // One that comes while the ring is already accepting, too.
    let greet = |client: &mut UnixStream, poller: &mut Poller| {
        let stream = accepted(poller, &listener, registration);
        stream.send(&[std::io::IoSlice::new(b"hello")]).unwrap();
        let mut word = [0; 5];
        client.read_exact(&mut word).unwrap();
        assert_eq!(&word, b"hello");
    };
    clients.iter_mut().for_each(|client| greet(client, &mut poller));
    poller.wait(SOON).unwrap();
    let mut late = UnixStream::connect(folder.path().join("sock")).unwrap();
    poller.set_interest(registration, Interest::NONE);
    poller.wait(SOON).unwrap();
    poller.set_interest(registration, Interest::READ);
    greet(&mut late, &mut poller);
}
