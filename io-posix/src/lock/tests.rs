use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::{Access, LockError, is_lock_on, lock};

/// A file of 1 MiB, and whether the QEMU tools are installed.
struct Image {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Image {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        Self { path, _folder: folder }
    }

    fn open(&self) -> File {
        File::options().read(true).write(true).open(&self.path).unwrap()
    }

    fn run(&self, tool: &str, arguments: &[&str]) -> Output {
        Command::new(tool).args(arguments).arg(&self.path).output().unwrap()
    }
}

fn has_qemu() -> bool {
    let found = Command::new("qemu-io").arg("--version").output().is_ok();
    if !found {
        eprintln!("not tested: qemu-io and qemu-img are not installed (Debian: qemu-utils)");
    }
    found
}

fn in_use(result: Result<(), LockError>) -> String {
    match result {
        Err(LockError::InUse(in_use)) => in_use.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn two_writers_refuse_each_other_also_within_one_process() {
    let image = Image::new();
    let (one, other) = (image.open(), image.open());
    lock(&one, Access::Write).unwrap();
    let text = in_use(lock(&other, Access::Write));
    assert!(
        text.contains("write lock") && text.contains(&format!("process {}", std::process::id())),
        "{text}"
    );
    in_use(lock(&other, Access::Read));
    drop(one);
    lock(&other, Access::Write).unwrap();
}

#[test]
fn readers_go_together_and_keep_writers_out() {
    let image = Image::new();
    let (one, other, writer) = (image.open(), image.open(), image.open());
    lock(&one, Access::Read).unwrap();
    lock(&other, Access::Read).unwrap();
    assert!(in_use(lock(&writer, Access::Write)).contains("must not see changes"));
    drop((one, other));
    lock(&writer, Access::Write).unwrap();
}

#[test]
fn a_refused_lock_leaves_nothing_locked() {
    let image = Image::new();
    let (reader, writer, later) = (image.open(), image.open(), image.open());
    lock(&reader, Access::Read).unwrap();
    in_use(lock(&writer, Access::Write));
    lock(&later, Access::Read).unwrap();
}

#[test]
fn qemu_tools_refuse_an_image_that_is_written_here() {
    if !has_qemu() {
        return;
    }
    let image = Image::new();
    let file = image.open();
    lock(&file, Access::Write).unwrap();
    let copy = image.path.with_extension("copy");
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-f", "raw", "-O", "raw"]).arg(&image.path).arg(&copy);
    for output in [image.run("qemu-io", &["-f", "raw", "-c", "write 0 512"]), convert.output().unwrap()] {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains("lock"), "{text}");
    }
    let resized =
        Command::new("qemu-img").args(["resize", "-f", "raw"]).arg(&image.path).arg("2M").output().unwrap();
    assert!(!resized.status.success() && std::fs::metadata(&image.path).unwrap().len() == 1 << 20);
    // Who does not mind changes may look.
    assert!(image.run("qemu-io", &["-r", "-f", "raw", "-c", "read 0 512"]).status.success());
    drop(file);
    assert!(image.run("qemu-io", &["-f", "raw", "-c", "write 0 512"]).status.success());
}

#[test]
fn qemu_tools_may_read_an_image_that_is_read_here_but_not_write_it() {
    if !has_qemu() {
        return;
    }
    let image = Image::new();
    let file = image.open();
    lock(&file, Access::Read).unwrap();
    assert!(image.run("qemu-img", &["info", "-f", "raw"]).status.success());
    assert!(image.run("qemu-io", &["-r", "-f", "raw", "-c", "read 0 512"]).status.success());
    assert!(!image.run("qemu-io", &["-f", "raw", "-c", "write 0 512"]).status.success());
}

/// qemu-io with an open image, waiting for commands; killed at the end.
struct QemuIo(Child);

impl QemuIo {
    fn start(arguments: &[&str], path: &Path) -> Self {
        let mut command = Command::new("qemu-io");
        command.args(arguments).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // It answers only once the image is open.
        child.stdin.as_mut().unwrap().write_all(b"read 0 512\n").unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        Self(child)
    }
}

impl Drop for QemuIo {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn an_image_that_qemu_writes_is_refused_with_the_name_of_its_process() {
    if !has_qemu() {
        return;
    }
    let image = Image::new();
    let file = image.open();
    let qemu = QemuIo::start(&["-f", "raw"], &image.path);
    for access in [Access::Write, Access::Read] {
        let text = in_use(lock(&file, access));
        assert!(text.contains("qemu-io") && text.contains(&format!("process {}", qemu.0.id())), "{text}");
        assert!(text.contains("write lock"), "{text}");
    }
    drop(qemu);
    lock(&file, Access::Write).unwrap();
}

#[test]
fn an_image_that_qemu_reads_without_minding_changes_can_be_read_and_written() {
    if !has_qemu() {
        return;
    }
    let image = Image::new();
    let _qemu = QemuIo::start(&["-r", "-f", "raw"], &image.path);
    lock(image.open(), Access::Read).unwrap();
    lock(image.open(), Access::Write).unwrap();
}

#[test]
fn an_image_that_qemu_nbd_serves_is_refused() {
    if Command::new("qemu-nbd").arg("--version").output().is_err() {
        return eprintln!("not tested: qemu-nbd is not installed (Debian: qemu-utils)");
    }
    let image = Image::new();
    let socket = image.path.with_extension("sock");
    let mut command = Command::new("qemu-nbd");
    command.args(["-t", "-f", "raw", "-k"]).arg(&socket).arg(&image.path);
    let mut server = command.spawn().unwrap();
    // It opens the image at a moment of its own choice; a look does not disturb that.
    let (file, start) = (image.open(), Instant::now());
    while !super::ofd_is_locked(file.as_fd(), super::DOES + super::WRITE).unwrap()
        && start.elapsed() < Duration::from_secs(10)
    {
        std::thread::sleep(Duration::from_millis(10));
    }
    let result = lock(file, Access::Write);
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(in_use(result).contains("qemu-nbd"));
}

#[test]
fn lock_lines_of_the_system_are_read() {
    let line = "lock:\t1: OFDLCK ADVISORY READ -1 fe:00:12345 100 101";
    assert!(is_lock_on(line, 100) && is_lock_on(line, 101) && !is_lock_on(line, 102));
    assert!(is_lock_on("lock:\t1: OFDLCK ADVISORY READ -1 fe:00:12345 0 EOF", 201));
    assert!(!is_lock_on("lock:\t1: POSIX ADVISORY READ 17 fe:00:12345 100 101", 100));
    assert!(!is_lock_on("pos:\t100", 100) && !is_lock_on("lock: OFDLCK", 0) && !is_lock_on("", 0));
}
