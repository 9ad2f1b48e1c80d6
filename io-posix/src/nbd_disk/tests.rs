use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use twinblock_core::block::{Action, BlockDevice, Capabilities, Completion, Tag, Transfer};
use twinblock_core::nbd::client::ClientError;
use twinblock_core::nbd::server::{
    Export, Exports, PieceSlot, RequestSlot, ServerConfig, ServerMemory, Session,
};
use twinblock_core::nbd::{OutputEntry, RUN_MIN, Segment};
use twinblock_core::{BufferIndex, Data, Errno, Extent, Identity, Memory, Micros, Outcome, Windows};

use super::{LinkEvent, LinkRefusal, Mode, NbdDisk, NbdOptions};
use crate::edge;
use crate::memory::{HostPool, PoolSizes};
use crate::poller::Poller;
use crate::uri::NbdUri;

const SIZE: u64 = 8 << 20;
const LARGE: u32 = 256 << 10;

/// A server in a process of its own, killed at the end.
struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    /// Starts a program that listens at `socket`, which its arguments name; `None` if it is not installed.
    fn start(socket: PathBuf, program: &str, arguments: &[&str]) -> Option<Self> {
        let mut command = Command::new(program);
        command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        let Ok(child) = command.spawn() else {
            eprintln!("not tested: {program} is not installed");
            return None;
        };
        let server = Self { child, socket };
        let end = Instant::now() + Duration::from_secs(10);
        while UnixStream::connect(&server.socket).is_err() {
            assert!(Instant::now() < end, "{program} does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(server)
    }

    fn nbdkit(folder: &TempDir, arguments: &[&str]) -> Option<Self> {
        let socket = folder.path().join("nbdkit.sock");
        let _ = fs::remove_file(&socket);
        let mut all = vec!["-f", "-e", "disk", "-U", socket.to_str().unwrap()];
        all.extend(arguments);
        Self::start(socket.clone(), "nbdkit", &all)
    }

    /// Serves a file of that size, which keeps what is written when the server is killed.
    fn file(folder: &TempDir, size: u64) -> Option<Self> {
        let path = folder.path().join("image");
        fs::File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(size)
            .unwrap();
        Self::nbdkit(folder, &["file", path.to_str().unwrap()])
    }

    fn uri(&self) -> NbdUri {
        format!("nbd+unix:///disk?socket={}", self.socket.display()).parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct One;

impl Exports for One {
    fn count(&self) -> usize {
        1
    }

    fn export(&self, index: usize) -> Option<Export<'_>> {
        (index == 0).then(|| Export::new("disk", SIZE))
    }
}

/// Takes a client through the handshake as that run of a server, and cuts the connection when a word comes.
fn serve_run(mut stream: UnixStream, run: u32, cut: &mpsc::Receiver<()>) {
    let memory = ServerMemory {
        requests: &mut [RequestSlot::EMPTY; 4],
        pieces: &mut [PieceSlot::EMPTY; 4],
        option_data: &mut [0; 4096],
        output_bytes: &mut [0; 4096],
        output_entries: &mut [OutputEntry::EMPTY; 8],
    };
    let mut session = Session::new(ServerConfig { run, ..ServerConfig::new(4096, 0) }, memory).unwrap();
    let mut windows = [0; 4096];
    let mut pool = Windows::new(&mut windows, 4096);
    stream.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
    while matches!(cut.try_recv(), Err(TryRecvError::Empty)) {
        let mut sent = 0;
        for segment in session.segments() {
            let Segment::Bytes(bytes) = segment else { panic!("nothing is read") };
            stream.write_all(bytes).unwrap();
            sent += bytes.len();
        }
        session.sent(sent, &mut pool);
        let mut bytes = [0; 4096];
        let count = match stream.read(&mut bytes) {
            Ok(count) => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => 0,
            Err(error) => panic!("{error}"),
        };
        let mut at = 0;
        while at < count {
            at += session.receive(&bytes[at..count], &One, &mut pool);
            while session.poll_event(&mut pool).is_some() {}
        }
    }
}

struct Bench {
    disk: NbdDisk,
    pool: HostPool,
    poller: Poller,
    start: Instant,
}

impl Bench {
    fn open(uri: &NbdUri, options: NbdOptions) -> Self {
        let sizes = PoolSizes { small_count: 0, large_count: 32, large_bytes: LARGE };
        let mut bench = Self {
            disk: NbdDisk::new(64, 7).unwrap(),
            pool: HostPool::new(sizes).unwrap(),
            poller: edge::poller(1),
            start: Instant::now(),
        };
        bench.disk.open(uri, options, Micros(0)).unwrap();
        bench
    }

    fn connected(uri: &NbdUri, options: NbdOptions) -> Self {
        let mut bench = Self::open(uri, options);
        let now = bench.now();
        let geometry = bench.disk.wait_connected(now, Duration::from_secs(10), &mut bench.pool).unwrap();
        assert_eq!(bench.disk.poll_event(), Some(LinkEvent::Connected(geometry)));
        bench
    }

    fn now(&self) -> Micros {
        Micros(self.start.elapsed().as_micros() as u64)
    }

    /// One turn of the loop.
    fn turn(&mut self) {
        let now = self.now();
        self.disk.service(now, &mut self.pool, &mut self.poller);
        let until = self.disk.next_deadline().map(|due| Duration::from_micros(due.since(now).0));
        self.poller.wait(Some(until.unwrap_or(Duration::from_secs(1)).min(Duration::from_secs(1)))).unwrap();
        for ready in self.poller.ready() {
            assert_eq!(ready.token, 7);
            self.disk.ready(ready);
        }
        self.poller.take_back(&mut self.pool);
        let now = self.now();
        self.disk.service(now, &mut self.pool, &mut self.poller);
    }

    fn until<T>(&mut self, mut found: impl FnMut(&mut Self) -> Option<T>) -> T {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(found) = found(self) {
                return found;
            }
            assert!(Instant::now() < end, "not in time");
            self.turn();
        }
    }

    fn submit(&mut self, entry: u16, action: Action, offset: u64, length: u64) {
        let transfer =
            Transfer { tag: Tag { entry, generation: 5 }, action, extent: Extent { offset, length } };
        self.disk.submit(transfer, &mut self.pool).unwrap();
    }

    fn completion(&mut self) -> Completion {
        self.until(|bench| bench.disk.poll(&mut bench.pool))
    }

    fn event(&mut self) -> LinkEvent {
        self.until(|bench| bench.disk.poll_event())
    }

    fn run(&mut self, action: Action, offset: u64, length: u64) -> Result<Outcome, Errno> {
        self.submit(3, action, offset, length);
        let completion = self.completion();
        assert_eq!(completion.tag, Tag { entry: 3, generation: 5 });
        completion.result
    }

    fn write(&mut self, offset: u64, length: u32, byte: u8) -> Result<Outcome, Errno> {
        self.pool.bytes(data(0, length)).unwrap().fill(byte);
        self.run(Action::Write { data: data(0, length), fua: false }, offset, u64::from(length))
    }

    fn read(&mut self, offset: u64, length: u32) -> Vec<u8> {
        self.pool.bytes(data(0, length)).unwrap().fill(0xee);
        assert_eq!(self.run(Action::Read(data(0, length)), offset, u64::from(length)), Ok(Outcome::Done));
        self.pool.bytes(data(0, length)).unwrap().to_vec()
    }
}

const fn data(buffer: u16, length: u32) -> Data {
    Data { buffer: BufferIndex(buffer), offset: 0, length }
}

fn replica() -> NbdOptions {
    NbdOptions::replica(Some(Identity([7; 16])))
}

fn check_disk(bench: &mut Bench) {
    assert_eq!(bench.disk.geometry().size_bytes, SIZE);
    bench.write(0, LARGE, 1).unwrap();
    bench.write(u64::from(LARGE), 512, 2).unwrap();
    assert_eq!(bench.read(0, LARGE), vec![1; LARGE as usize]);
    assert_eq!(bench.read(u64::from(LARGE) - 512, 1024), [[1; 512], [2; 512]].concat());
    let zero = Action::WriteZeroes { may_unmap: true, fast: false, fua: true };
    assert_eq!(bench.run(zero, 0, SIZE / 2), Ok(Outcome::Done));
    assert_eq!(bench.read(0, LARGE), vec![0; LARGE as usize]);
    assert_eq!(bench.run(Action::Flush, 0, 0), Ok(Outcome::Done));
    assert_eq!(bench.disk.modifications_sent(), 3);
    assert_eq!(bench.run(Action::Read(data(0, 512)), SIZE, 512), Err(Errno::Invalid));
}

#[test]
fn an_export_of_nbdkit_is_a_disk() {
    let folder = tempfile::tempdir().unwrap();
    let Some(server) = Server::nbdkit(&folder, &["memory", "8M"]) else { return };
    check_disk(&mut Bench::connected(&server.uri(), replica()));
}

#[test]
fn an_export_of_qemu_nbd_is_a_disk_that_tells_holes() {
    let folder = tempfile::tempdir().unwrap();
    let (image, socket) = (folder.path().join("image"), folder.path().join("sock"));
    fs::File::create(&image).unwrap().set_len(SIZE).unwrap();
    let arguments =
        ["-t", "-f", "raw", "-x", "disk", "-k", socket.to_str().unwrap(), image.to_str().unwrap()];
    let Some(server) = Server::start(socket.clone(), "qemu-nbd", &arguments) else { return };
    let mut bench = Bench::connected(&server.uri(), NbdOptions::disk());
    assert!(bench.disk.geometry().capabilities.contains(Capabilities::STATUS));
    check_disk(&mut bench);
    assert_eq!(bench.run(Action::Status, 0, SIZE), Ok(Outcome::Status { is_hole: true, length: SIZE }));
    // It serves one connection: closing this one lets the next in.
    bench.disk.close();
    bench.until(|bench| bench.disk.is_closed().then_some(()));
    assert_eq!(bench.write(0, 512, 1), Err(Errno::Io));
    let now = bench.now();
    bench.disk.open(&server.uri(), NbdOptions::disk(), now).unwrap();
    assert!(matches!(bench.event(), LinkEvent::Connected(_)));
    assert_eq!(bench.read(0, 512), [0; 512]);
}

#[test]
fn many_requests_are_in_flight_and_each_completes_once() {
    let folder = tempfile::tempdir().unwrap();
    let Some(server) = Server::nbdkit(&folder, &["memory", "8M"]) else { return };
    let mut bench = Bench::connected(&server.uri(), replica());
    for round in 0..4 {
        for entry in 0..32u16 {
            bench.pool.bytes(data(entry, LARGE)).unwrap().fill(entry as u8 + round);
            let action = Action::Write { data: data(entry, LARGE), fua: false };
            bench.submit(entry, action, u64::from(entry) * u64::from(LARGE), u64::from(LARGE));
        }
        let mut completed = [0; 32];
        for _ in 0..32 {
            let completion = bench.completion();
            assert_eq!(completion.result, Ok(Outcome::Done));
            completed[usize::from(completion.tag.entry)] += 1;
        }
        assert_eq!(completed, [1; 32]);
        (0..32u16).for_each(|entry| bench.pool.bytes(data(entry, LARGE)).unwrap().fill(0xee));
        for entry in 0..32u16 {
            bench.submit(
                entry,
                Action::Read(data(entry, LARGE)),
                u64::from(entry) * u64::from(LARGE),
                u64::from(LARGE),
            );
        }
        for _ in 0..32 {
            assert_eq!(bench.completion().result, Ok(Outcome::Done));
        }
        for entry in 0..32u16 {
            assert!(
                bench.pool.bytes(data(entry, LARGE)).unwrap().iter().all(|byte| *byte == entry as u8 + round)
            );
        }
    }
    assert_eq!(bench.disk.in_flight_count(), 0);
}

#[test]
fn what_was_submitted_leaves_when_the_disk_is_polled() {
    let folder = TempDir::new().unwrap();
    let Some(server) = Server::file(&folder, SIZE) else { return };
    let mut bench = Bench::connected(&server.uri(), replica());
    for entry in 0..8 {
        let data = Data { buffer: BufferIndex(entry), offset: 0, length: 512 };
        bench.submit(entry, Action::Write { data, fua: false }, u64::from(entry) * 512, 512);
    }
    assert!(bench.disk.has_unsent());
    assert_eq!(bench.disk.poll(&mut bench.pool), None);
    assert!(!bench.disk.has_unsent());
    (0..8).for_each(|_| assert_eq!(bench.completion().result, Ok(Outcome::Done)));
}

#[test]
fn a_replica_fails_at_once_without_its_server_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let Some(server) = Server::file(&folder, SIZE) else { return };
    let mut bench = Bench::connected(&server.uri(), replica());
    bench.write(0, 512, 9).unwrap();
    drop(server);
    assert_eq!(bench.event(), LinkEvent::Disconnected);
    bench.submit(1, Action::Flush, 0, 0);
    assert_eq!(bench.disk.poll(&mut bench.pool).map(|done| done.result), Some(Err(Errno::Io)));
    let _server = Server::file(&folder, SIZE).unwrap();
    assert!(matches!(bench.event(), LinkEvent::Connected(_)));
    // nbdkit does not tell its runs apart.
    assert!(bench.disk.take_restarted());
    assert!(!bench.disk.take_restarted(), "told once");
    assert_eq!(bench.disk.modifications_sent(), 0);
    assert_eq!(bench.read(0, 512), [9; 512]);
}

#[test]
fn a_link_that_was_only_cut_leaves_a_replica_current_and_a_new_run_of_its_server_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("server.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let (cut, is_cut) = mpsc::channel();
    let (first, second) = (RUN_MIN + 7, RUN_MIN + 8);
    let serving = thread::spawn(move || {
        // The last two tell none.
        for run in [first, first, second, second, 0, 0] {
            serve_run(listener.accept().unwrap().0, run, &is_cut);
        }
    });
    let uri = format!("nbd+unix:///disk?socket={}", socket.display()).parse().unwrap();
    let mut bench = Bench::connected(&uri, replica());
    bench.disk.take_restarted();
    for is_new in [false, true, false, true, true] {
        cut.send(()).unwrap();
        assert_eq!(bench.event(), LinkEvent::Disconnected);
        assert!(matches!(bench.event(), LinkEvent::Connected(_)));
        assert_eq!(bench.disk.take_restarted(), is_new);
    }
    drop(cut);
    serving.join().unwrap();
}

#[test]
fn a_plain_disk_waits_for_its_server_and_sends_again_what_was_in_flight() {
    let folder = tempfile::tempdir().unwrap();
    let Some(server) = Server::file(&folder, SIZE) else { return };
    drop(server);
    let image = folder.path().join("image");
    let slow = ["--filter=delay", "file", image.to_str().unwrap(), "wdelay=60"];
    let server = Server::nbdkit(&folder, &slow).unwrap();
    let mut bench = Bench::connected(&server.uri(), NbdOptions::disk());
    for entry in 0..8u16 {
        bench.pool.bytes(data(entry, 4096)).unwrap().fill(entry as u8 + 1);
        let action = Action::Write { data: data(entry, 4096), fua: false };
        bench.submit(entry, action, u64::from(entry) * 4096, 4096);
    }
    bench.turn();
    drop(server);
    assert_eq!(bench.event(), LinkEvent::Disconnected);
    assert_eq!(bench.disk.poll(&mut bench.pool), None);
    bench.submit(8, Action::Flush, 0, 0);
    assert_eq!(bench.disk.in_flight_count(), 9);
    let _server = Server::file(&folder, SIZE).unwrap();
    for _ in 0..9 {
        assert_eq!(bench.completion().result, Ok(Outcome::Done));
    }
    let bytes = fs::read(&image).unwrap();
    assert!((0..8).all(|entry| bytes[entry * 4096..][..4096] == [entry as u8 + 1; 4096]));
}

#[test]
fn a_plain_disk_waits_no_longer_than_was_said() {
    let folder = tempfile::tempdir().unwrap();
    let Some(server) = Server::file(&folder, SIZE) else { return };
    let options = NbdOptions { mode: Mode::Disk { wait_max: Micros::from_ms(300) }, ..NbdOptions::disk() };
    let mut bench = Bench::connected(&server.uri(), options);
    drop(server);
    assert_eq!(bench.event(), LinkEvent::Disconnected);
    let start = Instant::now();
    assert_eq!(bench.run(Action::Flush, 0, 0), Err(Errno::Io));
    assert!(start.elapsed() > Duration::from_millis(100));
    // What comes later does not wait at all.
    bench.submit(1, Action::Flush, 0, 0);
    assert!(bench.disk.poll(&mut bench.pool).is_some());
    let _server = Server::file(&folder, SIZE).unwrap();
    assert!(matches!(bench.event(), LinkEvent::Connected(_)));
    assert_eq!(bench.run(Action::Flush, 0, 0), Ok(Outcome::Done));
}

#[test]
fn a_server_that_does_not_answer_in_time_is_given_up_in_either_mode() {
    for mode in [Mode::Replica, Mode::Disk { wait_max: Micros::from_ms(60_000) }] {
        let folder = tempfile::tempdir().unwrap();
        let Some(server) = Server::nbdkit(&folder, &["--filter=delay", "memory", "8M", "rdelay=60"]) else {
            return;
        };
        let options = NbdOptions { mode, request_timeout: Micros::from_ms(200), ..replica() };
        let mut bench = Bench::connected(&server.uri(), options);
        let start = Instant::now();
        bench.submit(1, Action::Read(data(0, 512)), 0, 512);
        bench.write(0, 512, 1).unwrap();
        assert_eq!(bench.completion().result, Err(Errno::Io));
        assert!(start.elapsed() >= Duration::from_millis(200) && start.elapsed() < Duration::from_secs(5));
        assert_eq!(bench.event(), LinkEvent::Disconnected);
    }
}

#[test]
fn an_export_that_returns_with_another_size_is_refused_for_good() {
    let folder = tempfile::tempdir().unwrap();
    let Some(server) = Server::file(&folder, SIZE) else { return };
    let mut bench = Bench::connected(&server.uri(), NbdOptions::disk());
    drop(server);
    assert_eq!(bench.event(), LinkEvent::Disconnected);
    bench.submit(1, Action::Flush, 0, 0);
    let _server = Server::file(&folder, SIZE + 4096).unwrap();
    let refusal = LinkRefusal::SizeDiffers { first_bytes: SIZE, now_bytes: SIZE + 4096 };
    assert_eq!(bench.event(), LinkEvent::Refused(refusal));
    assert_eq!(bench.completion().result, Err(Errno::Io));
    assert!(bench.disk.is_closed());
    assert_eq!(bench.disk.next_deadline(), None);
}

#[test]
fn an_unknown_export_is_refused_once_and_asked_for_again() {
    let folder = tempfile::tempdir().unwrap();
    let (image, socket) = (folder.path().join("image"), folder.path().join("sock"));
    fs::File::create(&image).unwrap().set_len(SIZE).unwrap();
    let arguments =
        ["-t", "-f", "raw", "-x", "other", "-k", socket.to_str().unwrap(), image.to_str().unwrap()];
    let Some(server) = Server::start(socket.clone(), "qemu-nbd", &arguments) else { return };
    let mut bench = Bench::open(&server.uri(), NbdOptions::disk());
    let now = bench.now();
    let error =
        bench.disk.wait_connected(now, Duration::from_secs(10), &mut bench.pool).unwrap_err().to_string();
    assert!(error.contains("no export of that name") && error.contains("nbd+unix:///disk"), "{error}");
    let event = bench.event();
    assert!(
        matches!(event, LinkEvent::Refused(LinkRefusal::Server(ClientError::UnknownExport, _))),
        "{event:?}"
    );
    drop(server);
    let _ = fs::remove_file(&socket);
    let arguments =
        ["-t", "-f", "raw", "-x", "disk", "-k", socket.to_str().unwrap(), image.to_str().unwrap()];
    let _server = Server::start(socket.clone(), "qemu-nbd", &arguments).unwrap();
    assert!(matches!(bench.event(), LinkEvent::Connected(_)));
}

#[test]
fn without_a_server_attempts_go_on_with_growing_pauses() {
    let folder = tempfile::tempdir().unwrap();
    let uri: NbdUri = format!("nbd+unix:///disk?socket={}/none", folder.path().display()).parse().unwrap();
    let mut disk = NbdDisk::new(1, 0).unwrap();
    let mut pool = HostPool::new(PoolSizes { small_count: 1, large_count: 0, large_bytes: LARGE }).unwrap();
    let mut poller = edge::poller(1);
    disk.open(&uri, replica(), Micros(0)).unwrap();
    let mut moments = Vec::new();
    let mut now = Micros(0);
    for _ in 0..8 {
        disk.service(now, &mut pool, &mut poller);
        now = disk.next_deadline().unwrap();
        moments.push(now.0 / 1000);
    }
    assert_eq!(moments, [100, 300, 700, 1500, 3100, 5100, 7100, 9100]);
    assert_eq!(disk.poll_event(), None);
    disk.close();
    assert!(disk.is_closed());
}
