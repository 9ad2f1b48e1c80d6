use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use twinblock_core::block::{Action, BlockDevice, Completion, Tag, Transfer};
use twinblock_core::nbd::server::{Export, Exports, ServerConfig, ServerEvent};
use twinblock_core::{Data, Extent, Memory, Micros, Op, Outcome, Pool, Reply, Request, RequestId};

use super::{Connection, ConnectionSizes};
use crate::address::Address;
use crate::disk::{Disk, Options};
use crate::edge;
use crate::memory::{HostPool, PoolSizes};
use crate::nbd_disk::{NbdDisk, NbdOptions};
use crate::poller::{Poller, Registration, Waker};
use crate::socket::{ListenOptions, Listener, Stream};
use crate::workers::Workers;

const SIZE: u64 = 16 << 20;
const WINDOW: u32 = 64 << 10;
const SLOTS: usize = 4;

struct One;

impl Exports for One {
    fn count(&self) -> usize {
        1
    }

    fn export(&self, index: usize) -> Option<Export<'_>> {
        (index == 0).then(|| Export::new("disk", SIZE))
    }
}

/// The simplest machine: each piece is one transfer; full means busy. It does not order what overlaps.
struct Machine {
    disk: Disk,
    entries: Vec<Option<(usize, RequestId)>>,
}

impl Machine {
    fn offer(&mut self, from: usize, request: Request, pool: &mut HostPool) -> Result<(), Request> {
        let Some(free) = self.entries.iter().position(Option::is_none) else { return Err(request) };
        let action = match request.op {
            Op::Read(data) => Action::Read(data),
            Op::Write { data, fua } => Action::Write { data, fua },
            Op::WriteZeroes { may_unmap, fast, fua } => Action::WriteZeroes { may_unmap, fast, fua },
            Op::Flush => Action::Flush,
            Op::Status => Action::Status,
        };
        let tag = Tag { entry: free as u16, generation: 0 };
        let transfer = Transfer { tag, action, extent: request.extent };
        self.disk.submit(transfer, pool).map_err(|_| request)?;
        self.entries[free] = Some((from, request.id));
        Ok(())
    }

    fn poll(&mut self, pool: &mut HostPool) -> Option<(usize, Reply)> {
        let Completion { tag, result } = self.disk.poll(pool)?;
        let (to, id) = self.entries[usize::from(tag.entry)].take().unwrap();
        Some((to, Reply { id, result }))
    }
}

/// A server on a thread of its own.
struct Server {
    folder: TempDir,
    thread: Option<JoinHandle<()>>,
    waker: Waker,
    state: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    is_ending: AtomicBool,
    opened: AtomicUsize,
    closed_clean: AtomicUsize,
    closed_otherwise: AtomicUsize,
    /// All slots are free and all buffers are back.
    is_idle: AtomicBool,
}

impl Server {
    fn start(machine_entries: usize, buffers: u16) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::File::create(folder.path().join("image")).unwrap().set_len(SIZE).unwrap();
        let state = Arc::<Shared>::default();
        let (told, path) = (Arc::clone(&state), folder.path().to_owned());
        let (tell, waker) = mpsc::channel();
        // A poller belongs to the thread that makes it.
        let thread = thread::spawn(move || {
            let mut server = Loop::new(&path, machine_entries, buffers, told);
            tell.send(server.poller.waker()).unwrap();
            while !server.state.is_ending.load(Ordering::Relaxed) {
                server.turn();
            }
        });
        Self { folder, thread: Some(thread), waker: waker.recv().unwrap(), state }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("sock")
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///disk?socket={}", self.socket().display())
    }

    fn image(&self) -> Vec<u8> {
        fs::read(self.folder.path().join("image")).unwrap()
    }

    /// Runs a client program with this server's URI at the end; `None` if it is not installed.
    fn run(&self, program: &str, arguments: &[&str]) -> Option<String> {
        let Ok(output) = Command::new(program).args(arguments).output() else {
            eprintln!("not tested: {program} is not installed");
            return None;
        };
        let text =
            [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        assert!(output.status.success(), "{program} {arguments:?}: {text}");
        Some(text)
    }

    fn until(&self, is_so: impl Fn(&Shared) -> bool) {
        let end = Instant::now() + Duration::from_secs(10);
        while !is_so(&self.state) {
            assert!(Instant::now() < end, "not in time");
            thread::sleep(Duration::from_millis(2));
            self.waker.wake();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.state.is_ending.store(true, Ordering::Relaxed);
        self.waker.wake();
        let result = self.thread.take().unwrap().join();
        assert!(result.is_ok() || thread::panicking());
    }
}

struct Loop {
    listener: (Listener, Registration),
    poller: Poller,
    pool: HostPool,
    machine: Machine,
    connections: Vec<Connection>,
    /// Somebody may wait to be accepted.
    has_newcomers: bool,
    state: Arc<Shared>,
    start: Instant,
    _workers: Workers,
}

impl Loop {
    fn new(folder: &Path, machine_entries: usize, buffers: u16, state: Arc<Shared>) -> Self {
        let listener = Listener::bind(&Address::Unix(folder.join("sock")), ListenOptions::default()).unwrap();
        let (mut poller, workers) = edge::both(16, 2);
        let registration = poller.listen(&listener, 99).unwrap();
        let disk = Disk::open(folder.join("image"), Options::default(), &workers).unwrap();
        let sizes = PoolSizes { small_count: buffers, large_count: buffers, large_bytes: WINDOW };
        let sizes_of_one = ConnectionSizes { requests: 16, pieces: 16, ..ConnectionSizes::default() };
        let connection = |index: usize| {
            Connection::new(ServerConfig::new(WINDOW, index as u16), sizes_of_one, index as u32).unwrap()
        };
        Self {
            listener: (listener, registration),
            poller,
            _workers: workers,
            pool: HostPool::new(sizes).unwrap(),
            machine: Machine { disk, entries: vec![None; machine_entries] },
            connections: (0..SLOTS).map(connection).collect(),
            has_newcomers: false,
            state,
            start: Instant::now(),
        }
    }

    fn turn(&mut self) {
        let now = Micros(self.start.elapsed().as_micros() as u64);
        while let Some((to, reply)) = self.machine.poll(&mut self.pool) {
            self.connections[to].reply(reply, &mut self.pool);
        }
        for index in 0..self.connections.len() {
            self.serve(index);
        }
        while let Some((to, reply)) = self.machine.poll(&mut self.pool) {
            self.connections[to].reply(reply, &mut self.pool);
        }
        // Buffers that replies have set free may be what another connection waits for.
        let mut is_more = false;
        for connection in &mut self.connections {
            connection.finish(now, &mut self.pool, &mut self.poller);
            is_more |= connection.has_work();
        }
        let is_idle = self.connections.iter().all(Connection::is_free);
        self.state
            .is_idle
            .store(is_idle && self.machine.entries.iter().all(Option::is_none), Ordering::Relaxed);
        let timeout =
            if is_more || self.has_newcomers { Duration::from_millis(1) } else { Duration::from_secs(1) };
        self.poller.wait(Some(timeout)).unwrap();
        self.poller.take_back(&mut self.pool);
        for ready in self.poller.ready() {
            match self.connections.get_mut(ready.token as usize) {
                Some(connection) => connection.ready(ready),
                None => self.has_newcomers = true,
            }
        }
        let (listener, registration) = &self.listener;
        // The slots of clients that have gone are free only when what these had sent is done with.
        while self.has_newcomers
            && let Some(free) = self.connections.iter_mut().find(|connection| connection.is_free())
        {
            match self.poller.accept(listener, *registration).unwrap() {
                Some(stream) => free.open(stream, now, &mut self.pool).unwrap(),
                None => self.has_newcomers = false,
            }
        }
    }

    fn serve(&mut self, index: usize) {
        while let Some(event) = self.connections[index].next(&One, &mut self.pool) {
            match event {
                ServerEvent::Opened { export, .. } => {
                    assert_eq!(export, 0);
                    self.state.opened.fetch_add(1, Ordering::Relaxed);
                }
                ServerEvent::Request(request) => {
                    if let Err(request) = self.machine.offer(index, request, &mut self.pool) {
                        return self.connections[index].put_back(request);
                    }
                }
                ServerEvent::Closed { clean: true } => {
                    self.state.closed_clean.fetch_add(1, Ordering::Relaxed);
                }
                ServerEvent::Closed { clean: false } => {
                    self.state.closed_otherwise.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
}

/// Sizes at which nothing waits, and sizes at which everything does.
const SIZES: [(usize, u16); 2] = [(32, 32), (2, 2)];

#[test]
fn what_clients_write_is_in_the_image_and_is_read_back() {
    for (entries, buffers) in SIZES {
        let server = Server::start(entries, buffers);
        let uri = server.uri();
        let script =
            ["-c", "write -P 17 1000 3M", "-c", "write -z 2M 64k", "-c", "write -P 19 15M 1M", "-c", "flush"];
        let check = [
            "-c",
            "read -P 17 1000 2000000",
            "-c",
            "read -P 0 2M 64k",
            "-c",
            "read -P 19 15M 1M",
            "-c",
            "read -P 0 8M 4M",
        ];
        for commands in [script.as_slice(), &check] {
            let arguments = [["-f", "raw"].as_slice(), commands, &[uri.as_str()]].concat();
            let Some(text) = server.run("qemu-io", &arguments) else { return };
            assert!(!text.contains("failed"), "{text}");
        }
        let image = server.image();
        assert!(
            image[1000] == 17 && image[999] == 0 && image[2 << 20] == 0 && image[SIZE as usize - 1] == 19
        );
        server.until(|state| state.is_idle.load(Ordering::Relaxed));
        assert_eq!(server.state.opened.load(Ordering::Relaxed), 2);
        assert_eq!(server.state.closed_clean.load(Ordering::Relaxed), 2);
    }
}

#[test]
fn whole_disks_are_copied_in_and_out_over_several_connections() {
    for (entries, buffers) in SIZES {
        let server = Server::start(entries, buffers);
        let (from, to) = (server.folder.path().join("from"), server.folder.path().join("to"));
        let bytes: Vec<u8> =
            (0..SIZE as u32).map(|place| (place.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        fs::write(&from, &bytes).unwrap();
        let uri = server.uri();
        if server.run("nbdcopy", &["--flush", from.to_str().unwrap(), &uri]).is_none() {
            return;
        }
        assert!(server.image() == bytes);
        server.run("nbdcopy", &[&uri, to.to_str().unwrap()]).unwrap();
        assert!(fs::read(to).unwrap() == bytes);
        server.until(|state| state.is_idle.load(Ordering::Relaxed));
        assert!(server.state.opened.load(Ordering::Relaxed) > 2, "several connections");
    }
}

#[test]
fn an_export_is_described_and_its_holes_are_told() {
    let server = Server::start(32, 32);
    let Some(text) = server.run("nbdinfo", &[&server.uri()]) else { return };
    assert!(
        text.contains(&format!("export-size: {SIZE}")) && text.contains("can_multi_conn: true"),
        "{text}"
    );
    let text = server.run("nbdinfo", &["--map", &server.uri()]).unwrap();
    assert!(text.contains("hole"), "{text}");
    server.until(|state| state.is_idle.load(Ordering::Relaxed));
}

#[test]
fn our_own_client_is_served_with_many_requests_in_flight() {
    for (entries, buffers) in SIZES {
        let server = Server::start(entries, buffers);
        let mut pool =
            HostPool::new(PoolSizes { small_count: 0, large_count: 32, large_bytes: 256 << 10 }).unwrap();
        let mut poller = edge::poller(1);
        let mut disk = NbdDisk::new(32, 0).unwrap();
        let start = Instant::now();
        let now = || Micros(start.elapsed().as_micros() as u64);
        disk.open(&server.uri().parse().unwrap(), NbdOptions::replica(None), now()).unwrap();
        disk.wait_connected(now(), Duration::from_secs(5), &mut pool).unwrap();
        let data: Vec<Data> = (0..32)
            .map(|_| Data { buffer: pool.acquire(200_000).unwrap(), offset: 0, length: 200_000 })
            .collect();
        for is_write in [true, false] {
            for (entry, data) in (0..).zip(&data) {
                pool.bytes(*data).unwrap().fill(if is_write { entry as u8 + 1 } else { 0 });
                let action =
                    if is_write { Action::Write { data: *data, fua: false } } else { Action::Read(*data) };
                let extent = Extent { offset: u64::from(entry) * 300_001, length: 200_000 };
                let tag = Tag { entry, generation: 0 };
                disk.submit(Transfer { tag, action, extent }, &mut pool).unwrap();
            }
            let mut completed = 0;
            while completed < 32 {
                disk.service(now(), &mut pool, &mut poller);
                while let Some(completion) = disk.poll(&mut pool) {
                    assert_eq!(completion.result, Ok(Outcome::Done));
                    completed += 1;
                }
                if completed < 32 {
                    poller.wait(Some(Duration::from_secs(5))).unwrap();
                    poller.ready().for_each(|ready| disk.ready(ready));
                }
            }
        }
        for (entry, data) in (0..).zip(&data) {
            assert!(pool.bytes(*data).unwrap().iter().all(|byte| *byte == entry + 1));
        }
        disk.close();
        while !disk.is_closed() {
            disk.service(now(), &mut pool, &mut poller);
            poller.wait(Some(Duration::from_millis(1))).unwrap();
            poller.ready().for_each(|ready| disk.ready(ready));
        }
        server.until(|state| state.closed_clean.load(Ordering::Relaxed) == 1);
        server.until(|state| state.is_idle.load(Ordering::Relaxed));
    }
}

#[test]
fn a_client_that_vanishes_leaves_its_slot_and_its_buffers_free() {
    for (entries, buffers) in SIZES {
        let server = Server::start(entries, buffers);
        let uri = server.uri();
        for round in 0..10 {
            // Killed in the midst of writing; the next one finds a slot.
            let arguments = [
                "-f",
                "raw",
                "-c",
                "aio_write -P 1 0 8M",
                "-c",
                "aio_write 8M 8M",
                "-c",
                "sleep 60000",
                &uri,
            ];
            let Ok(mut client) =
                Command::new("qemu-io").args(arguments).stdout(std::process::Stdio::null()).spawn()
            else {
                return eprintln!("not tested: qemu-io is not installed");
            };
            server.until(|state| state.opened.load(Ordering::Relaxed) > round);
            thread::sleep(Duration::from_millis(round as u64));
            client.kill().unwrap();
            client.wait().unwrap();
        }
        server.until(|state| state.closed_otherwise.load(Ordering::Relaxed) == 10);
        server.until(|state| state.is_idle.load(Ordering::Relaxed));
    }
}

#[test]
fn what_is_no_client_is_closed() {
    let server = Server::start(2, 2);
    use std::io::{Read, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(server.socket()).unwrap();
    stream.write_all(&[0xff; 100]).unwrap();
    let mut answer = Vec::new();
    // The greeting, and the end.
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.starts_with(b"NBDMAGIC"));
    server.until(|state| state.is_idle.load(Ordering::Relaxed));
}

struct Alone {
    connection: Connection,
    pool: HostPool,
    poller: Poller,
    peer: Stream,
}

impl Alone {
    fn new() -> Self {
        let mut connection =
            Connection::new(ServerConfig::new(WINDOW, 0), ConnectionSizes::default(), 5).unwrap();
        let mut pool =
            HostPool::new(PoolSizes { small_count: 2, large_count: 2, large_bytes: WINDOW }).unwrap();
        let (stream, peer) = Stream::pair().unwrap();
        connection.open(stream, Micros(0), &mut pool).unwrap();
        Self { connection, pool, poller: edge::poller(1), peer }
    }

    fn turn(&mut self, now: Micros) -> Option<ServerEvent> {
        let event = self.connection.next(&One, &mut self.pool);
        self.connection.finish(now, &mut self.pool, &mut self.poller);
        self.pass(Duration::ZERO);
        event
    }

    /// Lets what was begun be done, and passes on what is ready.
    fn pass(&mut self, timeout: Duration) {
        self.poller.wait(Some(timeout)).unwrap();
        self.poller.take_back(&mut self.pool);
        self.poller.ready().for_each(|ready| self.connection.ready(ready));
    }
}

#[test]
fn a_client_that_does_not_finish_the_handshake_is_closed_in_time() {
    let mut alone = Alone::new();
    assert_eq!(alone.turn(Micros(1)), None);
    let due = alone.connection.next_deadline().unwrap();
    alone.turn(Micros(due.0 - 1));
    assert!(alone.connection.handshake_since().is_some());
    assert!(alone.connection.open(Stream::pair().unwrap().0, due, &mut alone.pool).is_err());
    alone.turn(due);
    assert_eq!(alone.turn(due), Some(ServerEvent::Closed { clean: false }));
    assert!(alone.connection.is_free());
    // Not twice, and the slot can be used again.
    assert_eq!(alone.turn(due), None);
    let mut bytes = [0; 64];
    while alone.peer.recv(&mut bytes).unwrap().unwrap() != 0 {}
    let (stream, peer) = Stream::pair().unwrap();
    alone.connection.open(stream, due, &mut alone.pool).unwrap();
    alone.turn(due);
    assert_eq!(peer.recv(&mut bytes).unwrap(), Some(18));
}

#[test]
fn a_kicked_connection_is_closed_and_told_once() {
    let mut alone = Alone::new();
    alone.turn(Micros(0));
    alone.connection.kick(&mut alone.pool);
    assert!(alone.connection.has_work());
    assert_eq!(alone.turn(Micros(0)), Some(ServerEvent::Closed { clean: false }));
    assert!(alone.connection.is_free());
    assert_eq!(alone.turn(Micros(0)), None);
}

#[test]
fn a_piece_that_was_put_back_gives_its_buffer_back_when_the_connection_is_lost() {
    let mut alone = Alone::new();
    let flags = 3u32.to_be_bytes();
    let option = [b"IHAVEOPT".as_slice(), &1u32.to_be_bytes(), &4u32.to_be_bytes(), b"disk"].concat();
    let read = [0x2560_9513u32.to_be_bytes().as_slice(), &[0; 20], &512u32.to_be_bytes()].concat();
    let bytes = [flags.as_slice(), &option, &read].concat();
    alone.peer.send(&[std::io::IoSlice::new(&bytes)]).unwrap();
    assert!(matches!(alone.turn(Micros(0)), Some(ServerEvent::Opened { export: 0, .. })));
    let Some(ServerEvent::Request(request)) = alone.turn(Micros(0)) else { panic!("no request") };
    assert_eq!(alone.pool.free_counts(), (1, 2));
    alone.connection.put_back(request);
    assert_eq!(alone.connection.next(&One, &mut alone.pool), Some(ServerEvent::Request(request)));
    alone.connection.put_back(request);
    alone.connection.kick(&mut alone.pool);
    assert_eq!(alone.turn(Micros(0)), Some(ServerEvent::Closed { clean: false }));
    assert_eq!(alone.pool.free_counts(), (2, 2));
    assert!(alone.connection.is_free());
}

#[test]
fn a_client_given_up_in_its_handshake_leaves_a_free_slot_and_no_event() {
    let mut alone = Alone::new();
    assert_eq!(alone.turn(Micros(1)), None);
    assert_eq!((alone.connection.handshake_since(), alone.connection.is_silent()), (Some(Micros(0)), true));
    // It answers the greeting, and says nothing more.
    alone.peer.send(&[std::io::IoSlice::new(&[0, 0, 0, 3])]).unwrap();
    alone.pass(Duration::from_secs(10));
    assert_eq!(alone.turn(Micros(2)), None);
    assert_eq!(alone.turn(Micros(2)), None);
    assert_eq!((alone.connection.handshake_since(), alone.connection.is_silent()), (Some(Micros(0)), false));
    alone.connection.give_up_handshake(&mut alone.pool, &mut alone.poller);
    assert!(alone.connection.is_free());
    assert_eq!(alone.turn(Micros(3)), None);
    let mut rest = [0; 64];
    assert_eq!(alone.peer.recv(&mut rest).unwrap(), Some(18), "the greeting");
    assert_eq!(alone.peer.recv(&mut rest).unwrap(), Some(0), "the end");
    assert!(alone.connection.open(Stream::pair().unwrap().0, Micros(4), &mut alone.pool).is_ok());
}
