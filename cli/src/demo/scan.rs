//! Reads whole disks and notes what every block shows.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, ensure};

use super::block::BLOCK_BYTES;
use super::history::{Finding, Seen};
use super::nbd::{Answer, Command, Export, Head};
use super::pair::check;
use super::workload::{ReadNote, Scene};

/// Bytes of one read.
const CHUNK_BYTES: u64 = 256 << 10;
/// Reads in flight.
const DEPTH: u64 = 8;

/// What a scan has brought.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// What was seen where the workload writes.
    pub(crate) notes: Vec<ReadNote>,
    /// What was wrong elsewhere.
    pub(crate) findings: Vec<Finding>,
    /// How many bytes were looked at.
    pub(crate) bytes: u64,
}

impl Scan {
    /// Reads a file.
    pub(crate) fn file(scene: &Scene, path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let size_bytes = scene.layout.size_bytes();
        ensure!(file.metadata()?.len() == size_bytes, "{} has changed its size", path.display());
        let mut scan = Self::default();
        let mut initial = Vec::new();
        let mut offset = 0;
        while offset < size_bytes {
            let mut data = vec![0; CHUNK_BYTES.min(size_bytes - offset) as usize];
            let mut note = scene.note(offset, data.len());
            file.read_exact_at(&mut data, offset).with_context(|| format!("reading {}", path.display()))?;
            note.answered = scene.clock.now();
            scan.take(scene, note, &data, &mut initial)?;
            offset += data.len() as u64;
        }
        Ok(scan)
    }

    /// Reads an export, several reads in flight.
    pub(crate) fn export(scene: &Scene, mut export: Export) -> anyhow::Result<Self> {
        use std::io::{Read, Write};
        let size_bytes = scene.layout.size_bytes();
        ensure!(export.size_bytes == size_bytes, "the export has {} bytes", export.size_bytes);
        let chunks = size_bytes.div_ceil(CHUNK_BYTES);
        let length = |chunk: u64| CHUNK_BYTES.min(size_bytes - chunk * CHUNK_BYTES) as u32;
        let mut scan = Self::default();
        let mut initial = Vec::new();
        let mut data = Vec::new();
        let mut pending: Vec<Option<ReadNote>> = (0..DEPTH).map(|_| None).collect();
        let mut sent = 0;
        let mut received = 0;
        while received < chunks {
            while sent < chunks
                && sent < received + DEPTH
                && let Some(slot) = pending.iter_mut().position(|slot| slot.is_none())
            {
                let offset = sent * CHUNK_BYTES;
                let length = length(sent);
                pending[slot] = Some(scene.note(offset, length as usize));
                let head = Head { command: Command::Read, flags: 0, cookie: slot as u64, offset, length };
                export.stream.write_all(&head.encode())?;
                sent += 1;
            }
            let answer = Answer::read(&mut export.stream).context("no answer to a read")?;
            ensure!(answer.error == 0, "a read was answered with error {}", answer.error);
            let slot = pending.get_mut(answer.cookie as usize).and_then(Option::take);
            let mut note = slot.context("an answer to nothing that was asked")?;
            let chunk = note.first * BLOCK_BYTES as u64 / CHUNK_BYTES;
            data.resize(length(chunk) as usize, 0);
            export.stream.read_exact(&mut data)?;
            note.answered = scene.clock.now();
            scan.take(scene, note, &data, &mut initial)?;
            received += 1;
        }
        export.disconnect();
        Ok(scan)
    }

    fn take(
        &mut self,
        scene: &Scene,
        mut note: ReadNote,
        data: &[u8],
        initial: &mut Vec<u8>,
    ) -> anyhow::Result<()> {
        check(&scene.interrupted)?;
        self.bytes += data.len() as u64;
        let blocks = data.len() / BLOCK_BYTES;
        let seen = scene.recognise_all(note.first, data, initial).context("reading the first content")?;
        let tail = blocks * BLOCK_BYTES;
        if data.get(tail..) != initial.get(tail..) {
            let block = note.first + blocks as u64;
            self.findings.push(Finding { block, text: "the rest behind the last block has changed".into() });
        }
        let mut is_in_layout = false;
        for (number, seen) in (note.first..).zip(&seen) {
            if scene.layout.place(number).is_some() {
                is_in_layout = true;
            } else if !matches!(seen, Seen::Initial | Seen::ZeroOrInitial) {
                self.findings
                    .push(Finding { block: number, text: "changed, and nobody writes there".into() });
            }
        }
        if is_in_layout {
            note.seen = seen;
            self.notes.push(note);
        }
        Ok(())
    }
}

impl Scene {
    fn note(&self, offset: u64, length: usize) -> ReadNote {
        ReadNote::new(offset / BLOCK_BYTES as u64, (length / BLOCK_BYTES) as u32, self.clock.now())
    }
}
