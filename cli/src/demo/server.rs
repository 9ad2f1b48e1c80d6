//! An NBD server over RAM, for the tests of the demo's client: simple replies, one request after the other.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;

/// Serves the export `x`.
pub(crate) struct Server {
    /// Where it listens.
    pub(crate) path: PathBuf,
    /// The disk.
    pub(crate) disk: Arc<Mutex<Vec<u8>>>,
    connections: Arc<Mutex<Vec<UnixStream>>>,
    _directory: tempfile::TempDir,
}

impl Server {
    /// Starts it over these bytes.
    pub(crate) fn start(disk: Vec<u8>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nbd.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let disk = Arc::new(Mutex::new(disk));
        let connections = Arc::new(Mutex::new(Vec::new()));
        let (served, kept) = (Arc::clone(&disk), Arc::clone(&connections));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                kept.lock().unwrap().push(stream.try_clone().unwrap());
                let disk = Arc::clone(&served);
                thread::spawn(move || serve(stream, &disk));
            }
        });
        Self { path, disk, connections, _directory: directory }
    }

    /// Cuts every connection, in the middle of whatever it does.
    pub(crate) fn kill(&self) {
        for stream in self.connections.lock().unwrap().iter() {
            stream.shutdown(std::net::Shutdown::Both).unwrap();
        }
    }
}

fn read<const N: usize>(stream: &mut UnixStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn serve(mut stream: UnixStream, disk: &Mutex<Vec<u8>>) -> io::Result<()> {
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    read::<4>(&mut stream)?;
    let head = read::<16>(&mut stream)?;
    let mut option = vec![0; usize::from(head[15])];
    stream.read_exact(&mut option)?;
    let reply = |kind: u32, data: &[u8]| {
        let mut bytes = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
        bytes.extend_from_slice(&7_u32.to_be_bytes());
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
        bytes.extend_from_slice(data);
        bytes
    };
    if option != b"\0\0\0\x01x\0\0" {
        return stream.write_all(&reply(0x8000_0006, b"no such export"));
    }
    let mut info = vec![0, 0];
    info.extend_from_slice(&(disk.lock().unwrap().len() as u64).to_be_bytes());
    info.extend_from_slice(&[0, 0x6d]);
    stream.write_all(&reply(3, &[0, 3, 0, 0]))?;
    stream.write_all(&reply(3, &info))?;
    stream.write_all(&reply(1, b""))?;
    loop {
        let head = read::<28>(&mut stream)?;
        let offset = u64::from_be_bytes(head[16..24].try_into().unwrap()) as usize;
        let length = u32::from_be_bytes(head[24..28].try_into().unwrap()) as usize;
        let mut data = vec![0; if head[7] == 1 { length } else { 0 }];
        stream.read_exact(&mut data)?;
        let mut disk = disk.lock().unwrap();
        let mut reply = vec![0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0];
        reply.extend_from_slice(&head[8..16]);
        match head[7] {
            0 => reply.extend_from_slice(&disk[offset..offset + length]),
            1 => disk[offset..offset + length].copy_from_slice(&data),
            2 => return Ok(()),
            4 | 6 => disk[offset..offset + length].fill(0),
            _ => {}
        }
        drop(disk);
        stream.write_all(&reply)?;
    }
}
