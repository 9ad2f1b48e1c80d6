//! One connection of the workload: a thread that sends, a thread that receives, many requests in flight, and a note
//! of each.

mod choice;
#[cfg(test)]
mod tests;

use std::io::{self, BufReader, Read, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use choice::{Action, Choice, Chooser, REQUEST_BLOCKS_MAX};

use super::block::{BLOCK_BYTES, Stamp, Version};
use super::clock::{Clock, Moment};
use super::history::{End, Seen, Side, Write};
use super::image::{Image, recognise};
use super::layout::Layout;
use super::nbd::{Answer, Command, Export, FUA, Head, NO_HOLE};
use super::pair::Interrupted;

/// ENOSPC of the protocol: a guest's write that found no room in the disk buffer.
const NO_SPACE: u32 = 28;
/// How long a sender waits for room before it looks whether it shall stop.
const LOOK: Duration = Duration::from_millis(50);

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Scene {
    /// The one clock.
    pub(crate) clock: Clock,
    /// Makes and recognises blocks.
    pub(crate) stamp: Stamp,
    /// Where is written.
    pub(crate) layout: Layout,
    /// What was there before.
    pub(crate) image: Image,
    /// Set when the user interrupts.
    pub(crate) interrupted: Interrupted,
}

/// How one connection works.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Its number, which its writes bear.
    pub(crate) connection: u16,
    /// Whose it is.
    pub(crate) side: Side,
    /// Makes its requests.
    pub(crate) seed: u64,
    /// Most requests in flight.
    pub(crate) depth: usize,
    /// Least time from one request to the next.
    pub(crate) pace: Duration,
}

/// What one side has done so far.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Writes, writes of zeroes and trims answered with success.
    pub(crate) writes: AtomicU64,
    /// Bytes of these.
    pub(crate) written_bytes: AtomicU64,
    /// Reads answered with success.
    pub(crate) reads: AtomicU64,
    /// Flushes answered with success.
    pub(crate) flushes: AtomicU64,
    /// Writes of the guest refused for want of room in the disk buffer.
    pub(crate) refused: AtomicU64,
}

/// One read, with what it showed.
#[derive(Clone, Debug)]
pub(crate) struct ReadNote {
    /// First block.
    pub(crate) first: u64,
    /// Just before it was sent.
    pub(crate) submitted: Moment,
    /// Just after the data came; [`Moment::NEVER`] if it never did.
    pub(crate) answered: Moment,
    /// What each block showed.
    pub(crate) seen: Vec<Seen>,
    blocks: u32,
}

impl ReadNote {
    /// A read that has not been answered.
    pub(crate) const fn new(first: u64, blocks: u32, submitted: Moment) -> Self {
        Self { first, submitted, answered: Moment::NEVER, seen: Vec::new(), blocks }
    }
}

/// What a connection has done.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    /// Every modification, in the order in which it was sent.
    pub(crate) writes: Vec<Write>,
    /// Every read.
    pub(crate) reads: Vec<ReadNote>,
    in_flight: usize,
    has_ended: bool,
}

#[derive(Debug)]
struct Shared {
    scene: Arc<Scene>,
    counters: Arc<Counters>,
    plan: Plan,
    notes: Mutex<Notes>,
    room: Condvar,
    must_stop: AtomicBool,
    may_break: AtomicBool,
    is_unpaced: AtomicBool,
    trouble: Mutex<Option<String>>,
}

/// A connection at work.
#[derive(Debug)]
pub(crate) struct Worker {
    shared: Arc<Shared>,
    stream: UnixStream,
    threads: Vec<JoinHandle<()>>,
}

/// What a request's cookie says: which list its note is in.
#[derive(Clone, Copy)]
enum Cookie {
    Write(u32),
    Read(u32),
    Flush,
}

impl Cookie {
    const fn encode(self) -> u64 {
        match self {
            Self::Write(index) => index as u64,
            Self::Read(index) => 1 << 32 | index as u64,
            Self::Flush => 2 << 32,
        }
    }

    const fn decode(word: u64) -> Option<Self> {
        match word >> 32 {
            0 => Some(Self::Write(word as u32)),
            1 => Some(Self::Read(word as u32)),
            2 => Some(Self::Flush),
            _ => None,
        }
    }
}

impl Worker {
    /// Sets a connection to work.
    pub(crate) fn start(
        export: Export,
        plan: Plan,
        scene: &Arc<Scene>,
        counters: &Arc<Counters>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            scene: Arc::clone(scene),
            counters: Arc::clone(counters),
            plan,
            notes: Mutex::default(),
            room: Condvar::new(),
            must_stop: AtomicBool::new(false),
            may_break: AtomicBool::new(false),
            is_unpaced: AtomicBool::new(false),
            trouble: Mutex::default(),
        });
        let (receiving, sending) = (export.stream.try_clone()?, export.stream.try_clone()?);
        let (to_receive, to_send) = (Arc::clone(&shared), Arc::clone(&shared));
        let receiver = thread::spawn(move || to_receive.receive(receiving));
        let sender = thread::spawn(move || to_send.send(sending));
        Ok(Self { shared, stream: export.stream, threads: vec![receiver, sender] })
    }

    /// What went wrong, if something did.
    pub(crate) fn trouble(&self) -> Option<String> {
        lock(&self.shared.trouble).clone()
    }

    /// From now on the other side may vanish.
    pub(crate) fn expect_break(&self) {
        self.shared.may_break.store(true, Ordering::SeqCst);
    }

    /// From now on as fast as it can.
    pub(crate) fn hurry(&self) {
        self.shared.is_unpaced.store(true, Ordering::SeqCst);
    }

    /// How many requests have no answer yet.
    pub(crate) fn in_flight(&self) -> usize {
        lock(&self.shared.notes).in_flight
    }

    /// Sends nothing more, waits for the answers, ends the session, and gives back what was noted.
    pub(crate) fn finish(mut self) -> Result<Notes, String> {
        self.shared.must_stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                return Err("a thread of the workload has failed".into());
            }
        }
        match self.trouble() {
            Some(trouble) => Err(trouble),
            None => Ok(std::mem::take(&mut *lock(&self.shared.notes))),
        }
    }
}

/// Whoever drops a worker without [`Worker::finish`] does not wait for it.
impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.must_stop.store(true, Ordering::SeqCst);
        self.shared.may_break.store(true, Ordering::SeqCst);
        // It may be closed already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn name(&self) -> &'static str {
        match self.plan.side {
            Side::Primary => "the primary's guest",
            Side::Guest => "the secondary's guest",
        }
    }

    fn complain(&self, text: &str) {
        self.must_stop.store(true, Ordering::SeqCst);
        lock(&self.trouble).get_or_insert_with(|| format!("{}: {text}", self.name()));
    }

    /// The stream has ended or failed.
    fn broken(&self, error: &io::Error) {
        if self.may_break.load(Ordering::SeqCst) {
            self.must_stop.store(true, Ordering::SeqCst);
        } else if error.kind() == io::ErrorKind::WouldBlock {
            self.complain("no answer in time");
        } else {
            self.complain(&format!("the connection broke: {error}"));
        }
    }

    fn send(&self, mut stream: UnixStream) {
        let reads_percent = if self.plan.side == Side::Primary { 15 } else { 30 };
        let mut chooser = Chooser::new(self.plan.seed, self.scene.layout, reads_percent);
        let mut bytes = Vec::with_capacity(28 + REQUEST_BLOCKS_MAX as usize * BLOCK_BYTES);
        let mut next = Instant::now();
        while self.wait_for_room(self.plan.depth) {
            if !self.plan.pace.is_zero() && !self.is_unpaced.load(Ordering::SeqCst) {
                thread::sleep(next.saturating_duration_since(Instant::now()));
                next += self.plan.pace;
            }
            self.compose(chooser.next(), &mut bytes);
            if let Err(error) = stream.write_all(&bytes) {
                self.broken(&error);
                return;
            }
        }
        // The answers that are still to come are awaited before the session is ended.
        while !lock(&self.notes).has_ended {
            if lock(&self.notes).in_flight == 0 {
                let head = Head { command: Command::Disconnect, flags: 0, cookie: 0, offset: 0, length: 0 };
                self.may_break.store(true, Ordering::SeqCst);
                // Nothing is in flight, so nothing is lost if the other side has gone; and the receiver need not wait
                // until the other side hangs up.
                let _ = stream.write_all(&head.encode()).and_then(|()| stream.shutdown(Shutdown::Both));
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until another request may be sent. Whether there is one to be sent at all.
    fn wait_for_room(&self, depth: usize) -> bool {
        let mut notes = lock(&self.notes);
        loop {
            if self.must_stop.load(Ordering::SeqCst) || notes.has_ended {
                return false;
            }
            if notes.in_flight < depth {
                notes.in_flight += 1;
                return true;
            }
            notes = self.room.wait_timeout(notes, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Makes the bytes of a request, and then the note of it.
    fn compose(&self, choice: Choice, bytes: &mut Vec<u8>) {
        let Choice { action, first, count } = choice;
        let (command, flags) = match action {
            Action::Read => (Command::Read, 0),
            Action::Write { fua } => (Command::Write, if fua { FUA } else { 0 }),
            Action::Zeroes { no_hole } => (Command::WriteZeroes, if no_hole { NO_HOLE } else { 0 }),
            Action::Trim => (Command::Trim, 0),
            Action::Flush => (Command::Flush, 0),
        };
        let length = count as u32 * BLOCK_BYTES as u32;
        let mut head = Head { command, flags, cookie: 0, offset: first * BLOCK_BYTES as u64, length };
        bytes.clear();
        bytes.extend_from_slice(&head.encode());
        // Only this thread adds to the list, so the index is known before.
        let index = lock(&self.notes).writes.len() as u32;
        if matches!(action, Action::Write { .. }) {
            let version = Version { connection: self.plan.connection, index };
            let mut block = [0; BLOCK_BYTES];
            for number in first..first + count {
                self.scene.stamp.write(&mut block, number, version);
                bytes.extend_from_slice(&block);
            }
        }
        let mut notes = lock(&self.notes);
        let submitted = self.scene.clock.now();
        head.cookie = match action {
            Action::Read => {
                notes.reads.push(ReadNote::new(first, count as u32, submitted));
                Cookie::Read(notes.reads.len() as u32 - 1)
            }
            Action::Flush => Cookie::Flush,
            Action::Write { .. } | Action::Zeroes { .. } | Action::Trim => {
                let is_zeroes = !matches!(action, Action::Write { .. });
                notes.writes.push(Write { first, count: count as u32, is_zeroes, submitted, end: End::Open });
                Cookie::Write(index)
            }
        }
        .encode();
        bytes[..28].copy_from_slice(&head.encode());
    }

    fn receive(&self, stream: UnixStream) {
        let mut stream = BufReader::with_capacity(256 << 10, stream);
        let mut data = Vec::new();
        let mut initial = Vec::new();
        loop {
            let result = Answer::read(&mut stream)
                .and_then(|answer| self.take(answer, &mut stream, &mut data, &mut initial));
            if let Err(error) = result {
                let mut notes = lock(&self.notes);
                notes.has_ended = true;
                drop(notes);
                self.room.notify_all();
                self.broken(&error);
                return;
            }
        }
    }

    /// Notes one answer.
    fn take(
        &self,
        answer: Answer,
        stream: &mut impl Read,
        data: &mut Vec<u8>,
        initial: &mut Vec<u8>,
    ) -> io::Result<()> {
        let unknown = || io::Error::new(io::ErrorKind::InvalidData, "an answer to nothing that was asked");
        let cookie = Cookie::decode(answer.cookie).ok_or_else(unknown)?;
        match cookie {
            Cookie::Flush => self.take_error(answer, "flush"),
            Cookie::Write(index) => {
                let mut notes = lock(&self.notes);
                let write = notes.writes.get_mut(index as usize).ok_or_else(unknown)?;
                let now = self.scene.clock.now();
                write.end = if answer.error == 0 { End::Done(now) } else { End::Failed(now) };
                let bytes = u64::from(write.count) * BLOCK_BYTES as u64;
                drop(notes);
                self.take_error(answer, "write");
                if answer.error == 0 {
                    self.counters.writes.fetch_add(1, Ordering::Relaxed);
                    self.counters.written_bytes.fetch_add(bytes, Ordering::Relaxed);
                }
            }
            Cookie::Read(index) => {
                let note = lock(&self.notes).reads.get(index as usize).map(|note| (note.first, note.blocks));
                let (first, blocks) = note.ok_or_else(unknown)?;
                self.take_error(answer, "read");
                if answer.error == 0 {
                    data.resize(blocks as usize * BLOCK_BYTES, 0);
                    stream.read_exact(data)?;
                    let answered = self.scene.clock.now();
                    let seen = self.scene.recognise_all(first, data, initial)?;
                    if let Some(note) = lock(&self.notes).reads.get_mut(index as usize) {
                        note.answered = answered;
                        note.seen = seen;
                    }
                    self.counters.reads.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        lock(&self.notes).in_flight -= 1;
        self.room.notify_one();
        Ok(())
    }

    fn take_error(&self, answer: Answer, what: &str) {
        match (answer.error, what) {
            (0, "flush") => {
                self.counters.flushes.fetch_add(1, Ordering::Relaxed);
            }
            (0, _) => {}
            (NO_SPACE, "write") if self.plan.side == Side::Guest => {
                self.counters.refused.fetch_add(1, Ordering::Relaxed);
            }
            // A primary that is being killed may still say that it shuts down.
            _ if self.may_break.load(Ordering::SeqCst) => {}
            (error, _) => self.complain(&format!("a {what} was answered with error {error}")),
        }
    }
}

impl Scene {
    /// What each block of `data`, read from block `first` on, shows. `initial` is room to work in.
    pub(crate) fn recognise_all(
        &self,
        first: u64,
        data: &[u8],
        initial: &mut Vec<u8>,
    ) -> io::Result<Vec<Seen>> {
        initial.resize(data.len(), 0);
        self.image.read(first * BLOCK_BYTES as u64, initial)?;
        let (blocks, _) = data.as_chunks::<BLOCK_BYTES>();
        let numbered = (first..).zip(blocks).zip(initial.chunks(BLOCK_BYTES));
        Ok(numbered.map(|((number, block), initial)| recognise(self.stamp, number, block, initial)).collect())
    }
}
