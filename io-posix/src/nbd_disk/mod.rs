//! An export of an NBD server as a disk that reconnects by itself: a replica, or a plain disk that something else
//! serves.
//!
//! ```text
//!            open                  writable            Ready
//!   Closed ───────▶ Down ──▶ Connecting ──▶ Handshake ───────▶ Up ──▶ Leaving ──▶ Closed
//!                    ▲  back-off │               │              │  close
//!                    └───────────┴───────────────┴──────────────┘  any failure
//! ```
//!
//! The two modes differ in what a lost connection means. For a [`Mode::Replica`] everything in flight fails at once,
//! and so does what comes until it is back: the primary machine marks it. For a [`Mode::Disk`] nobody else knows what
//! was in flight, so it is sent again, in its first order, once the server is back. That is right because we are the
//! only writer, because transfers in flight together do not overlap unless all read, and because repeating any of them
//! changes nothing. It takes for granted what NBD offers no way to check: that the server has dropped the old
//! connection's requests, and has kept through its own restart what it had answered. A request that a server does not
//! answer in time is failed in either mode, and not sent again.
//!
//! # Invariants
//! * L1: each transfer taken completes once.
//! * L2: no connection is begun before the embedder has heard of the end of the last one.
//! * L3: in disk mode a transfer is never given to a server before one that came earlier and has not completed, unless
//!   that one is with the server too.

mod link;
mod table;

use std::collections::HashSet;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use twinblock_core::block::{BlockDevice, Capabilities, Completion, Geometry, QueueFull, Transfer};
use twinblock_core::nbd::client::{ClientConfig, ClientError, ClientMemory, Session, TransferSlot};
use twinblock_core::nbd::{OutputEntry, client};
use twinblock_core::{Errno, Identity, Micros};

use crate::memory::HostPool;
use crate::poller::{Poller, Ready};
use crate::socket::{PeerTimeout, Target};
use crate::uri::NbdUri;
use link::Link;
use table::Table;

/// Longest name of an export (NBD protocol document, "Values").
const NAME_MAX: usize = 4096;
/// Bytes of the header of a request.
const REQUEST_BYTES: usize = 28;
/// What is received at once; longer payloads go straight to their buffers.
const RECEIVE_BYTES: usize = 128 << 10;

/// What a lost connection means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A replica: without a connection everything fails at once.
    Replica,
    /// A plain disk: without a connection transfers wait, at most this long after it was lost; then everything fails
    /// until it is back.
    Disk {
        /// How long.
        wait_max: Micros,
    },
}

/// How to use an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NbdOptions {
    /// What a lost connection means.
    pub mode: Mode,
    /// Who we say we are.
    pub identity: Option<Identity>,
    /// Ask for what tells holes from data.
    pub want_allocation: bool,
    /// From the first packet to the end of the handshake.
    pub connect_timeout: Micros,
    /// A request that is not answered for so long ends the connection.
    pub request_timeout: Micros,
    /// The first pause before connecting again; it doubles each time.
    pub pause_min: Micros,
    /// The longest pause.
    pub pause_max: Micros,
    /// When a silent peer over TCP is given up.
    pub peer_timeout: PeerTimeout,
}

impl NbdOptions {
    /// A replica: 5 s to connect, 10 s for a request, pauses of 100 ms to 2 s.
    #[must_use]
    pub fn replica(identity: Option<Identity>) -> Self {
        Self {
            mode: Mode::Replica,
            identity,
            want_allocation: false,
            connect_timeout: Micros::from_ms(5_000),
            request_timeout: Micros::from_ms(10_000),
            pause_min: Micros::from_ms(100),
            pause_max: Micros::from_ms(2_000),
            peer_timeout: PeerTimeout::default(),
        }
    }

    /// A plain disk: as a replica, but 30 s for a request, and transfers wait 30 s for the server to come back.
    #[must_use]
    pub fn disk() -> Self {
        let thirty = Micros::from_ms(30_000);
        let mode = Mode::Disk { wait_max: thirty };
        Self { mode, want_allocation: true, request_timeout: thirty, ..Self::replica(None) }
    }
}

/// Why a server cannot be used, by who must act.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LinkRefusal {
    /// The export has another size than when it was first connected. No further attempt is made.
    SizeDiffers {
        /// At first.
        first_bytes: u64,
        /// Now.
        now_bytes: u64,
    },
    /// The export has larger blocks than at first, or has become read-only. No further attempt is made.
    LessCapable,
    /// The server, or what answers in its place; with the text it gave. It is asked again after a pause.
    Server(ClientError, String),
}

impl fmt::Display for LinkRefusal {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (error, text) = match self {
            Self::SizeDiffers { first_bytes, now_bytes } => {
                return write!(
                    to,
                    "the export has {now_bytes} bytes now and had {first_bytes}; give it its size back or attach anew"
                );
            }
            Self::LessCapable => {
                return write!(
                    to,
                    "the export has larger blocks than before or is read-only now; attach it anew"
                );
            }
            Self::Server(error, text) => (error, text),
        };
        match error {
            ClientError::UnknownExport => write!(to, "the server has no export of that name")?,
            ClientError::Forbidden => write!(to, "the server does not allow it")?,
            ClientError::TlsRequired => write!(to, "the server wants TLS, which is not supported")?,
            ClientError::ShuttingDown => write!(to, "the server is shutting down")?,
            ClientError::Refused(kind) => write!(to, "the server refuses the export (reply type {kind:#x})")?,
            ClientError::NotNbd => write!(to, "what answers there is no NBD server")?,
            ClientError::OldServer => write!(to, "the server speaks only the oldstyle handshake")?,
            other => write!(to, "the server violates the protocol ({other:?})")?,
        }
        if text.is_empty() { Ok(()) } else { write!(to, ": {text}") }
    }
}

/// What has happened to the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// It is up, and this is what the server presents.
    Connected(Geometry),
    /// It is down; what was in flight has failed, or waits.
    Disconnected,
    /// It cannot be used. Told once, until it was up again or the reason changes.
    Refused(LinkRefusal),
}

/// An export of an NBD server as a disk.
///
/// What the embedder does: after each wait pass on what the poller found ([`Self::ready`]); once in each turn of the
/// loop, after the machines have run and before the next wait, call [`Self::service`]; take [`Self::poll_event`] and, of the machines, the completions; wait no longer than
/// [`Self::next_deadline`].
#[derive(Debug)]
pub struct NbdDisk {
    token: u32,
    capacity: usize,
    session: Session<'static>,
    table: Table,
    done: VecDeque<Completion>,
    buffer: Box<[u8]>,
    link: Link,
    events: VecDeque<LinkEvent>,
    peer: Option<Peer>,
    now: Micros,
    /// When the oldest request may have been with the server for too long.
    check_at: Option<Micros>,
}

/// Where to connect to, and what is known of it.
#[derive(Debug)]
struct Peer {
    name: String,
    target: Target,
    config: ClientConfig<'static>,
    options: NbdOptions,
    /// As at the first connection.
    first: Option<Geometry>,
    pause: Micros,
    /// Which run of the server was reached last, if it has told.
    run: Option<u32>,
    /// It may be another one than before; nobody has asked since.
    may_be_new: bool,
    /// Since when there is no connection.
    down_since: Micros,
    /// Transfers no longer wait.
    gave_up: bool,
    refused: Option<LinkRefusal>,
}

impl NbdDisk {
    /// A disk that is closed, with room for `capacity` transfers (200 bytes each): as many as the machine's table has.
    /// The memory of its session is kept for ever, so make these at start and use them again.
    ///
    /// # Errors
    /// Not in practice: the memory is sized here.
    pub fn new(capacity: u16, token: u32) -> io::Result<Self> {
        let capacity = capacity.max(1);
        let count = usize::from(capacity);
        let output_bytes = client::OUTPUT_BYTES_MIN + 2 * NAME_MAX + count * REQUEST_BYTES;
        let memory = ClientMemory {
            transfers: Box::leak(vec![TransferSlot::EMPTY; count].into_boxed_slice()),
            output_bytes: Box::leak(vec![0; output_bytes].into_boxed_slice()),
            output_entries: Box::leak(
                vec![OutputEntry::EMPTY; client::OUTPUT_ENTRIES_MIN + 2 * count].into_boxed_slice(),
            ),
        };
        let config = ClientConfig { export: "", identity: None, want_allocation: false };
        let mut session =
            Session::new(config, memory).map_err(|error| io::Error::other(format!("{error:?}")))?;
        session.fail_all(Errno::Io);
        Ok(Self {
            token,
            capacity: count,
            session,
            table: Table::new(capacity),
            done: VecDeque::with_capacity(count),
            buffer: vec![0; RECEIVE_BYTES].into_boxed_slice(),
            link: Link::Closed,
            events: VecDeque::with_capacity(4),
            peer: None,
            now: Micros(0),
            check_at: None,
        })
    }

    /// Begins to connect to an export. Looks up the server's name, waiting as long as that takes.
    ///
    /// # Errors
    /// The name is not known, or the disk is not closed, or not all its completions and events were taken.
    pub fn open(&mut self, uri: &NbdUri, options: NbdOptions, now: Micros) -> io::Result<()> {
        self.open_at(uri, Target::resolve(&uri.address)?, options, now)
    }

    /// As [`Self::open`], with the server's name looked up already, which may take long.
    ///
    /// # Errors
    /// The disk is not closed, or not all its completions and events were taken.
    pub fn open_at(
        &mut self,
        uri: &NbdUri,
        target: Target,
        options: NbdOptions,
        now: Micros,
    ) -> io::Result<()> {
        if !self.is_closed() || self.table.count() != 0 || !self.done.is_empty() || !self.events.is_empty() {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "the disk is still in use"));
        }
        if uri.export.len() > NAME_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the export's name is too long"));
        }
        let config = ClientConfig {
            export: keep_name(&uri.export),
            identity: options.identity,
            want_allocation: options.want_allocation,
        };
        let name = uri.to_string();
        // One that was let go and is taken again.
        let run = self.peer.as_ref().filter(|peer| peer.name == name).and_then(|peer| peer.run);
        self.peer = Some(Peer {
            name,
            target,
            config,
            options,
            first: None,
            pause: options.pause_min,
            run,
            may_be_new: false,
            down_since: now,
            gave_up: false,
            refused: None,
        });
        self.now = now;
        self.link = Link::Down { retry_at: now };
        Ok(())
    }

    /// Whether the server may have been started anew since this was asked last: then what no flush has covered may be gone
    /// there. Ask it after [`LinkEvent::Connected`].
    pub fn take_restarted(&mut self) -> bool {
        self.peer.as_mut().is_some_and(|peer| std::mem::take(&mut peer.may_be_new))
    }

    /// Waits for the first connection, for a disk without which there is nothing to start with. Its event is left to
    /// be taken.
    ///
    /// # Errors
    /// The server refuses, or cannot be reached in time; the text names it and says why.
    pub fn wait_connected(
        &mut self,
        now: Micros,
        timeout: Duration,
        memory: &mut HostPool,
    ) -> io::Result<Geometry> {
        let mut poller = Poller::new(1)?;
        let start = Instant::now();
        let result = loop {
            let elapsed = start.elapsed();
            let moment = now.after(Micros(u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX)));
            self.service(moment, memory, &mut poller);
            if self.is_up() {
                break Ok(self.geometry());
            }
            let refusal = self.peer.as_ref().and_then(|peer| peer.refused.clone());
            if let Some(refusal) = refusal {
                break Err(io::Error::other(format!("{}: {refusal}", self.name())));
            }
            if elapsed >= timeout {
                let text = format!("{}: no connection within {} ms", self.name(), timeout.as_millis());
                break Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            let rest = timeout.saturating_sub(elapsed).min(Duration::from_millis(20));
            poller.wait(Some(rest))?;
            poller.ready().for_each(|ready| self.ready(ready));
        };
        // The next service puts it into the loop's set.
        self.link.deregister(&mut poller);
        result
    }

    /// Says goodbye when nothing is in flight any more, and connects no more. What waits fails. In the end
    /// [`Self::is_closed`].
    pub fn close(&mut self) {
        self.fail_waiting();
        self.session.disconnect();
        self.link.leave(self.now.after(self.request_timeout()));
        if self.is_closed() {
            self.session.fail_all(Errno::Io);
        }
    }

    /// What its descriptor is registered under.
    #[must_use]
    pub const fn token(&self) -> u32 {
        self.token
    }

    /// Whether there is neither a connection nor an attempt at one, and will be none.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        matches!(self.link, Link::Closed)
    }

    /// Whether the connection is up.
    #[must_use]
    pub const fn is_up(&self) -> bool {
        matches!(self.link, Link::Up(_))
    }

    /// The URI; empty before the first [`Self::open`].
    #[must_use]
    pub fn name(&self) -> &str {
        self.peer.as_ref().map_or("", |peer| &peer.name)
    }

    /// What was registered with the poller under this disk's token is ready.
    pub const fn ready(&mut self, ready: Ready) {
        self.link.ready(ready);
    }

    /// Whether [`Self::service`] would send something now.
    #[must_use]
    pub const fn has_unsent(&self) -> bool {
        self.link.is_writable() && self.session.has_output()
    }

    /// Whether a queue has a message of it, whose buffers come back with the next [`Self::service`] after it has left. That
    /// it has left is not told by itself.
    #[must_use]
    pub const fn is_sending(&self) -> bool {
        self.link.is_sending()
    }

    /// What has happened to the connection, or `None`.
    pub fn poll_event(&mut self) -> Option<LinkEvent> {
        self.events.pop_front()
    }

    /// How many NBD requests that modify were put on the present connection.
    #[must_use]
    pub const fn modifications_sent(&self) -> u64 {
        self.session.modifications_sent()
    }

    /// How many transfers have not completed.
    #[must_use]
    pub const fn in_flight_count(&self) -> usize {
        self.table.count()
    }

    fn request_timeout(&self) -> Micros {
        self.peer.as_ref().map_or(Micros(0), |peer| peer.options.request_timeout)
    }

    /// When transfers stop waiting for a connection.
    fn give_up_at(&self) -> Option<Micros> {
        let peer = self.peer.as_ref().filter(|peer| !peer.gave_up && !self.is_up())?;
        match peer.options.mode {
            Mode::Replica => None,
            Mode::Disk { wait_max } => Some(peer.down_since.after(wait_max)),
        }
    }

    /// Whether a transfer that comes without a connection may wait for one.
    fn may_wait(&self) -> bool {
        !self.is_closed() && !self.link.is_leaving() && self.give_up_at().is_some()
    }

    fn complete(&mut self, index: u16, result: Completion) {
        if let Some(tag) = self.table.end(index) {
            self.done.push_back(Completion { tag, ..result });
        }
    }

    fn fail_waiting(&mut self) {
        while let Some(tag) = self.table.end_waiting() {
            self.done.push_back(Completion { tag, result: Err(Errno::Io) });
        }
    }

    /// Gives what waits to the session.
    fn push_waiting(&mut self) {
        while self.is_up() {
            let Some(transfer) = self.table.first_waiting() else { return };
            if self.session.submit(transfer, self.now).is_err() {
                return;
            }
            self.table.sent(self.now);
            let timeout = self.request_timeout();
            self.check_at.get_or_insert(self.now.after(timeout));
        }
    }
}

impl BlockDevice<HostPool> for NbdDisk {
    /// Empty before the first connection; the first server's afterwards.
    fn geometry(&self) -> Geometry {
        let none = Geometry { size_bytes: 0, block_bytes: 1, capabilities: Capabilities::empty() };
        self.peer.as_ref().and_then(|peer| peer.first).unwrap_or(none)
    }

    fn submit(&mut self, transfer: Transfer, _memory: &mut HostPool) -> Result<(), QueueFull> {
        if self.table.count() + self.done.len() >= self.capacity {
            return Err(QueueFull);
        }
        if self.is_up() || self.may_wait() {
            if !self.table.add(transfer, self.now) {
                return Err(QueueFull);
            }
            self.push_waiting();
        } else {
            self.done.push_back(Completion { tag: transfer.tag, result: Err(Errno::Io) });
        }
        Ok(())
    }

    fn poll(&mut self, memory: &mut HostPool) -> Option<Completion> {
        self.send_now(memory);
        if self.done.is_empty()
            && let Some(completion) = self.session.poll()
        {
            self.complete(completion.tag.entry, completion);
            self.push_waiting();
        }
        self.done.pop_front()
    }
}

/// The names of exports live as long as the sessions that ask for them: for ever, each once.
fn keep_name(name: &str) -> &'static str {
    static NAMES: Mutex<Option<HashSet<&'static str>>> = Mutex::new(None);
    let mut guard = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    let names = guard.get_or_insert_default();
    if let Some(kept) = names.get(name) {
        return kept;
    }
    let kept: &'static str = Box::leak(name.to_owned().into_boxed_str());
    names.insert(kept);
    kept
}

#[cfg(test)]
mod tests;
