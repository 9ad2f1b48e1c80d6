//! The stream of a connection or of an NBD disk, and how its bytes go: by system calls when the poller says that they can,
//! or by a queue that the poller has, which moves them while the loop waits.

use std::fmt;
use std::io;
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::rc::Rc;

use twinblock_core::nbd::{Segment, Segments};
use twinblock_core::{Data, Memory};

use crate::memory::{HostPool, Lease, Lend};
use crate::outgoing::send_segments;
use crate::poller::{Interest, Poller, Ready, Registration};
use crate::socket::Stream;

/// Bytes of headers and short payloads that leave in one message of a queue.
const OUTBOX_BYTES: usize = 64 << 10;
/// Runs of bytes that leave in one message of a queue; with 4 KiB writes two each.
const OUTBOX_PARTS: usize = 256;

/// What a stream's bytes are received into; a queue has it until the bytes have come.
#[derive(Debug)]
pub enum Room {
    /// The owner's own buffer.
    Own(Box<[u8]>),
    /// Part of a buffer of the pool, lent for [`Lend::Writing`].
    Pool(Lease),
}

/// Moves the bytes of one stream while the loop waits: at most one message in each direction at a time. Dropped, it closes
/// the stream; what the system still has of its memory is kept until the system has let go of it.
pub trait Carrier: fmt::Debug {
    /// Begins to receive; nothing is being received. The poller tells when something has come.
    fn receive(&mut self, room: Room);

    /// Whether a room was given and has not come back.
    fn is_receiving(&self) -> bool;

    /// The room that was given, once something has come, and how many bytes; none: the peer has closed.
    fn received(&mut self) -> Option<(Room, io::Result<usize>)>;

    /// Begins to send all of a message; nothing is being sent. When that has ended the poller tells, unless the message is
    /// [quiet](Outbox::is_quiet) and nobody is in a hurry.
    fn send(&mut self, message: Box<Outbox>);

    /// The socket, for what cannot wait; nothing is being sent.
    fn socket(&self) -> Option<Rc<OwnedFd>>;

    /// The owner waits for the end of the message that is being sent.
    fn hurry(&mut self);

    /// The message that was given, once all of it is sent or the stream has failed.
    fn sent(&mut self) -> Option<(Box<Outbox>, io::Result<()>)>;
}

/// A message that a queue sends. Headers are copied, payloads are lent.
#[derive(Debug)]
pub struct Outbox {
    bytes: Box<[u8]>,
    filled: usize,
    parts: Vec<Part>,
    total: usize,
    is_quiet: bool,
}

#[derive(Debug)]
enum Part {
    Copied { start: usize, length: usize },
    Lent(Lease),
}

impl Outbox {
    /// Most parts of one message.
    pub const PARTS_MAX: usize = OUTBOX_PARTS;

    fn new() -> Self {
        let bytes = vec![0; OUTBOX_BYTES].into_boxed_slice();
        Self { bytes, filled: 0, parts: Vec::with_capacity(OUTBOX_PARTS), total: 0, is_quiet: false }
    }

    /// How many bytes the message has.
    #[must_use]
    pub const fn total(&self) -> usize {
        self.total
    }

    /// Whether nothing can go on for its having been sent: it has freed no buffer, or none that is free before an answer
    /// has come.
    #[must_use]
    pub const fn is_quiet(&self) -> bool {
        self.is_quiet
    }

    /// Where the bytes of the message lie, in order: first byte and length of each part. They stay there, unchanged, as
    /// long as the message exists.
    pub fn places(&self) -> impl Iterator<Item = (NonNull<u8>, usize)> + '_ {
        self.parts.iter().map(|part| match part {
            Part::Copied { start, length } => {
                let bytes = self.bytes.get(*start..start + length).unwrap_or_default();
                (NonNull::from(bytes).cast(), bytes.len())
            }
            Part::Lent(lease) => lease.place(0),
        })
    }

    /// The leases of a message that nobody wants back.
    pub fn into_leases(self) -> impl Iterator<Item = Lease> {
        self.parts.into_iter().filter_map(|part| match part {
            Part::Copied { .. } => None,
            Part::Lent(lease) => Some(lease),
        })
    }

    /// Takes what fits; how many bytes.
    fn fill(&mut self, segments: Segments<'_>, is_answered: bool, pool: &mut HostPool) -> io::Result<usize> {
        let missing = || io::Error::other("a buffer to send is not there");
        for segment in segments {
            let whole = match segment {
                Segment::Bytes(bytes) => self.copy(bytes),
                // What is released while it is lent is not used again before it has come back. A machine's own buffers
                // may be: whoever answers before it has received everything must not get hold of what comes next.
                Segment::Pool(data) if pool.is_reserved(data.buffer) => {
                    self.copy(pool.shared(data).ok_or_else(missing)?)
                }
                Segment::Pool(_) if self.parts.len() >= OUTBOX_PARTS || !pool.can_lend() => false,
                Segment::Pool(data) => {
                    self.total += data.length as usize;
                    self.parts.push(Part::Lent(pool.lend(data, Lend::Reading).ok_or_else(missing)?));
                    true
                }
            };
            if !whole {
                break;
            }
        }
        self.is_quiet = is_answered || self.filled == self.total;
        Ok(self.total)
    }

    /// Copies what fits; whether that was all.
    fn copy(&mut self, bytes: &[u8]) -> bool {
        let count = bytes.len().min(self.bytes.len() - self.filled);
        if self.parts.len() >= OUTBOX_PARTS || count == 0 {
            return false;
        }
        let (start, end) = (self.filled, self.filled + count);
        if let (Some(to), Some(from)) = (self.bytes.get_mut(start..end), bytes.get(..count)) {
            to.copy_from_slice(from);
        }
        match self.parts.last_mut() {
            Some(Part::Copied { start: first, length }) if *first + *length == start => *length += count,
            _ => self.parts.push(Part::Copied { start, length: count }),
        }
        self.filled = end;
        self.total += count;
        count == bytes.len()
    }

    fn clear(&mut self, pool: &mut HostPool) {
        for part in self.parts.drain(..) {
            if let Part::Lent(lease) = part {
                pool.take_back(lease);
            }
        }
        (self.filled, self.total) = (0, 0);
    }
}

/// What was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// So many bytes at the start of the owner's buffer; none: the peer has closed.
    Own(usize),
    /// So many bytes of those of the pool that were asked for.
    Pool(usize),
}

/// A stream in use.
#[derive(Debug)]
pub(crate) struct Wire {
    line: Line,
    is_readable: bool,
    is_writable: bool,
    /// What is sent is answered, and its buffers are needed until then.
    is_answered: bool,
    /// A message did not leave whole: nothing more can.
    is_broken: bool,
}

#[derive(Debug)]
enum Line {
    Stream {
        stream: Stream,
        registration: Option<Registration>,
    },
    Queue {
        carrier: Box<dyn Carrier>,
        /// The message to fill next; away while it is being sent.
        outbox: Option<Box<Outbox>>,
    },
    /// Between two others.
    None,
}

impl Wire {
    /// That of a server, to a client which may have sent something.
    pub(crate) const fn server(stream: Stream) -> Self {
        let line = Line::Stream { stream, registration: None };
        Self { line, is_readable: true, is_writable: true, is_answered: false, is_broken: false }
    }

    /// That of a client, which may still be connecting.
    pub(crate) const fn client(stream: Stream, is_connected: bool) -> Self {
        let line = Line::Stream { stream, registration: None };
        Self { line, is_readable: false, is_writable: is_connected, is_answered: true, is_broken: false }
    }

    /// What was registered for it is ready.
    pub(crate) const fn ready(&mut self, ready: Ready) {
        self.is_readable |= ready.read;
        self.is_writable |= ready.write;
    }

    /// Whether receiving may get something.
    pub(crate) const fn is_readable(&self) -> bool {
        self.is_readable
    }

    /// Whether sending may get rid of something.
    pub(crate) const fn is_writable(&self) -> bool {
        self.is_writable
    }

    /// Whether a message is with a queue: not all that was taken over has left. The poller tells when it has.
    pub(crate) fn is_sending(&mut self) -> bool {
        let Line::Queue { outbox: None, carrier } = &mut self.line else { return false };
        carrier.hurry();
        true
    }

    /// Whether a queue has a message of it.
    pub(crate) const fn has_away(&self) -> bool {
        matches!(self.line, Line::Queue { outbox: None, .. })
    }

    /// What came of a pending attempt to connect.
    pub(crate) fn finish_connect(&self) -> io::Result<()> {
        match &self.line {
            Line::Stream { stream, .. } => stream.finish_connect(),
            Line::Queue { .. } | Line::None => Ok(()),
        }
    }

    /// Receives into `direct` or else into `buffer`, whichever it was when receiving began; `None` if nothing has come
    /// yet. A queue has the buffer meanwhile, and leaves an empty one.
    pub(crate) fn receive(
        &mut self,
        direct: Option<Data>,
        buffer: &mut Box<[u8]>,
        pool: &mut HostPool,
    ) -> io::Result<Option<Received>> {
        match &mut self.line {
            Line::Stream { stream, .. } => {
                let place = match direct {
                    Some(data) => {
                        pool.bytes(data).ok_or_else(|| io::Error::other("a buffer to fill is not there"))?
                    }
                    None => buffer,
                };
                let room = place.len();
                let Some(count) = stream.recv(place)? else {
                    self.is_readable = false;
                    return Ok(None);
                };
                // With room left over there is nothing more now; the poller tells when there is.
                self.is_readable = count == room;
                Ok(Some(if direct.is_some() { Received::Pool(count) } else { Received::Own(count) }))
            }
            Line::Queue { carrier, .. } => {
                if let Some((room, result)) = carrier.received() {
                    return match room {
                        Room::Own(own) => {
                            *buffer = own;
                            result.map(|count| Some(Received::Own(count)))
                        }
                        Room::Pool(lease) => {
                            pool.take_back(lease);
                            result.map(|count| Some(Received::Pool(count)))
                        }
                    };
                }
                if !carrier.is_receiving() {
                    // A machine's own buffer may be used again as soon as the stream is given up, which the system hears
                    // of later.
                    let direct = direct.filter(|data| !pool.is_reserved(data.buffer));
                    let lease = direct.and_then(|data| pool.lend(data, Lend::Writing));
                    carrier.receive(lease.map_or_else(|| Room::Own(mem::take(buffer)), Room::Pool));
                }
                self.is_readable = false;
                Ok(None)
            }
            Line::None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Takes over what can be sent now; how many bytes, or `None` if nothing can be. What the socket has room for leaves at
    /// once, also past a queue: a message that is handed over leaves later, is copied, and has to be taken back. The queue
    /// waits for room for the rest.
    pub(crate) fn send(&mut self, segments: Segments<'_>, pool: &mut HostPool) -> io::Result<Option<usize>> {
        let count = match &mut self.line {
            Line::Stream { stream, .. } => send_segments(stream.as_fd(), segments, pool)?,
            Line::Queue { carrier, outbox } => match outbox {
                Some(_) => {
                    let socket = carrier.socket().ok_or(io::ErrorKind::NotConnected)?;
                    match send_segments(socket.as_fd(), segments.clone(), pool)? {
                        None => return self.hand_over(segments, pool),
                        sent => sent,
                    }
                }
                None => {
                    carrier.hurry();
                    None
                }
            },
            Line::None => return Err(io::ErrorKind::NotConnected.into()),
        };
        if count.is_none() {
            self.is_writable = false;
        }
        Ok(count)
    }

    /// Gives the queue what it can take.
    fn hand_over(&mut self, segments: Segments<'_>, pool: &mut HostPool) -> io::Result<Option<usize>> {
        let Line::Queue { carrier, outbox } = &mut self.line else { return Ok(None) };
        let Some(mut message) = outbox.take() else { return Ok(None) };
        match message.fill(segments, self.is_answered, pool) {
            Ok(0) => {
                *outbox = Some(message);
                Err(io::Error::other("nothing to send where something should be"))
            }
            Ok(count) => {
                carrier.send(message);
                self.is_writable = false;
                Ok(Some(count))
            }
            Err(error) => {
                message.clear(pool);
                Err(error)
            }
        }
    }

    /// Takes a message back that a queue has sent. Whether there was one: its buffers are free.
    pub(crate) fn settle(&mut self, pool: &mut HostPool) -> io::Result<bool> {
        if self.is_broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let Line::Queue { carrier, outbox } = &mut self.line else { return Ok(false) };
        let Some((mut message, result)) = carrier.sent() else { return Ok(false) };
        message.clear(pool);
        *outbox = Some(message);
        self.is_writable = true;
        self.is_broken = result.is_err();
        result.map(|()| true)
    }

    /// Has the poller tell when it can be used again; a poller with a queue takes the stream over, unless it is still
    /// connecting. `false` if the poller has no place left.
    pub(crate) fn attend(
        &mut self,
        interest: Interest,
        is_connecting: bool,
        token: u32,
        poller: &mut Poller,
    ) -> bool {
        match mem::replace(&mut self.line, Line::None) {
            Line::Stream { stream, mut registration } if !is_connecting && poller.carries() => {
                if let Some(registration) = registration.take() {
                    poller.deregister(registration);
                }
                match poller.carry(stream, token) {
                    Ok(carrier) => {
                        self.line = Line::Queue { carrier, outbox: Some(Box::new(Outbox::new())) };
                    }
                    Err(stream) => {
                        self.line = Line::Stream { stream, registration };
                        return false;
                    }
                }
            }
            Line::Stream { stream, registration: Some(registration) } => {
                poller.set_interest(registration, interest);
                self.line = Line::Stream { stream, registration: Some(registration) };
            }
            Line::Stream { stream, registration: None } => {
                let registration = poller.register(&stream, interest, token);
                self.line = Line::Stream { stream, registration };
                return registration.is_some();
            }
            other => self.line = other,
        }
        true
    }

    /// Takes it out of the poller's set, if it is there. It can be used on.
    pub(crate) fn detach(&mut self, poller: &mut Poller) {
        if let Line::Stream { registration, .. } = &mut self.line
            && let Some(registration) = registration.take()
        {
            poller.deregister(registration);
        }
    }
}
