use super::*;
use crate::demo::history::{Finding, Index, Log, Picture, check_present};
use crate::demo::scan::Scan;
use crate::demo::server::Server;

const SIZE: u64 = (4 << 20) + 100;
const TIMEOUT: Duration = Duration::from_secs(10);

fn scene() -> (Arc<Scene>, Server) {
    let stamp = Stamp::new(7);
    let image = Image::Striped { stamp, size_bytes: SIZE };
    let mut disk = vec![0; SIZE as usize];
    image.read(0, &mut disk).unwrap();
    let scene =
        Scene { clock: Clock::start(), stamp, layout: Layout::new(SIZE), image, interrupted: Arc::default() };
    (Arc::new(scene), Server::start(disk))
}

fn start(scene: &Arc<Scene>, server: &Server, connection: u16) -> Worker {
    let plan =
        Plan { connection, side: Side::Primary, seed: u64::from(connection), depth: 8, pace: Duration::ZERO };
    let export = Export::connect(&server.path, "x", TIMEOUT).unwrap();
    Worker::start(export, plan, scene, &Arc::default()).unwrap()
}

/// Everything that can be said about a disk at rest.
fn findings(scene: &Scene, log: &Log, scan: &Scan) -> Vec<Finding> {
    let index = Index::new(log, scene.layout);
    let guest = Log::default();
    let mut picture = Picture::new(log, &guest, scene.layout);
    let mut findings = scan.findings.clone();
    for note in &scan.notes {
        for (number, seen) in (note.first..).zip(&note.seen) {
            picture.set(number, *seen);
            findings.extend(check_present(&index, number, *seen, note.submitted, note.answered));
        }
    }
    findings.extend(picture.check());
    findings
}

fn run(may_break: bool) -> (Arc<Scene>, Server, Log) {
    let (scene, server) = scene();
    let workers: Vec<Worker> = (0..3).map(|connection| start(&scene, &server, connection)).collect();
    thread::sleep(Duration::from_millis(200));
    if may_break {
        workers.iter().for_each(Worker::expect_break);
        server.kill();
    }
    let mut log = Log::default();
    for (connection, worker) in (0..).zip(workers) {
        let notes = worker.finish().unwrap();
        assert!(notes.writes.len() > 20 && notes.reads.iter().any(|read| !read.seen.is_empty()));
        log.add(connection, notes.writes);
    }
    (scene, server, log)
}

#[test]
fn a_disk_that_does_everything_right_is_never_accused() {
    let (scene, server, log) = run(false);
    assert!(log.iter_ends().all(|end| matches!(end, End::Done(_))));
    let scan = Scan::export(&scene, Export::connect(&server.path, "x", TIMEOUT).unwrap()).unwrap();
    assert_eq!(scan.bytes, SIZE);
    assert_eq!(findings(&scene, &log, &scan), []);
}

#[test]
fn a_killed_server_leaves_open_writes_and_no_accusation() {
    // The cut may fall into a moment when every write is answered; not every time.
    let leaves_open_writes = || {
        let (scene, server, log) = run(true);
        let path = server.path.with_file_name("disk");
        std::fs::write(&path, &*server.disk.lock().unwrap()).unwrap();
        let scan = Scan::file(&scene, &path).unwrap();
        assert_eq!(findings(&scene, &log, &scan), []);
        log.iter_ends().any(|end| end == End::Open)
    };
    assert!((0..50).any(|_| leaves_open_writes()));
}

#[test]
fn one_wrong_byte_is_found_wherever_it_is() {
    let (scene, server, log) = run(false);
    for at in [0, 511, 5000, 1 << 20, SIZE as usize - 101, SIZE as usize - 1] {
        server.disk.lock().unwrap()[at] ^= 0x20;
        let scan = Scan::export(&scene, Export::connect(&server.path, "x", TIMEOUT).unwrap()).unwrap();
        let found = findings(&scene, &log, &scan);
        assert_eq!(
            found.iter().map(|finding| finding.block).collect::<Vec<_>>(),
            [at as u64 / 512],
            "byte {at}"
        );
        server.disk.lock().unwrap()[at] ^= 0x20;
    }
}

#[test]
fn an_unexpected_end_is_trouble() {
    let (scene, server) = scene();
    let worker = start(&scene, &server, 0);
    thread::sleep(Duration::from_millis(50));
    server.kill();
    while worker.trouble().is_none() {
        thread::sleep(Duration::from_millis(1));
    }
    let trouble = worker.finish().unwrap_err();
    assert!(trouble.contains("the primary's guest"), "{trouble}");
}
