//! One NBD client's connection: a stream and core's session over it.
//!
//! Bytes are received into a buffer of the connection; the payload of a write that is not there yet is received
//! straight into its pool buffer. Everything that waits to be sent leaves in one system call, up to
//! [`SEGMENTS_MAX`](crate::socket::SEGMENTS_MAX) segments.

use std::io;

use twinblock_core::nbd::OutputEntry;
use twinblock_core::nbd::Segment;
use twinblock_core::nbd::server::{Exports, ServerConfig, ServerEvent, ServerMemory, Session};
use twinblock_core::nbd::server::{PieceSlot, RequestSlot};
use twinblock_core::{Memory, Reply};

use crate::memory::HostPool;
use crate::socket::{Segments, Stream};

/// Bytes of the receive buffer: many small requests come with one system call.
const INPUT_BYTES: usize = 64 << 10;
/// Requests of a client that are not answered yet. More: it is not read for a while.
const REQUESTS_MAX: usize = 128;
/// Pieces of these that are with the machine or on their way out.
const PIECES_MAX: usize = 128;
/// Longest option that is understood.
const OPTION_BYTES: usize = 8 << 10;
/// Headers that wait to be sent.
const OUTPUT_BYTES: usize = 8 << 10;
/// Payloads and runs of headers that wait to be sent.
const OUTPUT_ENTRIES: usize = 288;

/// How far receiving came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// Something was taken; poll events, then receive again.
    Some,
    /// Nothing is there to be received now.
    Nothing,
    /// What is there cannot be taken before an event is polled, a reply is given or something is sent.
    Stalled,
    /// The session takes nothing more.
    Closed,
}

/// A connection, or a place for one: memory is taken when it is made, and used again for later clients.
#[derive(Debug)]
pub struct Connection {
    stream: Option<Stream>,
    session: Session<'static>,
    input: Box<[u8]>,
    start: usize,
    end: usize,
}

fn leak<T: Clone>(value: T, count: usize) -> &'static mut [T] {
    Box::leak(vec![value; count].into_boxed_slice())
}

impl Connection {
    /// A place for one connection, whose pieces are at most `window_bytes` long and whose requests carry `index` in the
    /// upper half of their identifiers. Its memory is never given back: make places once and use them again.
    ///
    /// # Errors
    /// The window is not a power of two.
    pub fn new(window_bytes: u32, index: u16) -> io::Result<Self> {
        let memory = ServerMemory {
            requests: leak(RequestSlot::EMPTY, REQUESTS_MAX),
            pieces: leak(PieceSlot::EMPTY, PIECES_MAX),
            option_data: leak(0, OPTION_BYTES),
            output_bytes: leak(0, OUTPUT_BYTES),
            output_entries: leak(OutputEntry::EMPTY, OUTPUT_ENTRIES),
        };
        let session = Session::new(ServerConfig::new(window_bytes, index), memory)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, format!("{error:?}")))?;
        Ok(Self { stream: None, session, input: vec![0; INPUT_BYTES].into_boxed_slice(), start: 0, end: 0 })
    }

    /// Serves another client from now on.
    pub fn open(&mut self, stream: Stream) {
        self.stream = Some(stream);
        self.start = 0;
        self.end = 0;
    }

    /// The stream, while there is one.
    #[must_use]
    pub const fn stream(&self) -> Option<&Stream> {
        self.stream.as_ref()
    }

    /// Core's session.
    #[must_use]
    pub const fn session(&self) -> &Session<'static> {
        &self.session
    }

    /// Takes what the client has sent, with at most one system call.
    ///
    /// # Errors
    /// The connection has failed, or the client has closed it.
    pub fn receive(&mut self, exports: &impl Exports, pool: &mut HostPool) -> io::Result<Received> {
        let taken = self.feed(exports, pool);
        if self.start < self.end {
            return Ok(if taken == 0 { Received::Stalled } else { Received::Some });
        }
        if self.session.is_closed() {
            return Ok(Received::Closed);
        }
        let Some(stream) = &self.stream else { return Ok(Received::Closed) };
        let place = self.session.receive_into().filter(|data| data.length != 0);
        let into_pool = place.and_then(|data| pool.bytes(data));
        let is_direct = into_pool.is_some();
        let count = match stream.recv(into_pool.unwrap_or(&mut self.input))? {
            Some(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Some(count) => count,
            None => return Ok(if taken == 0 { Received::Nothing } else { Received::Some }),
        };
        if is_direct {
            self.session.received_into(count as u32);
        } else {
            self.start = 0;
            self.end = count;
            self.feed(exports, pool);
        }
        Ok(Received::Some)
    }

    fn feed(&mut self, exports: &impl Exports, pool: &mut HostPool) -> usize {
        let taken = self.session.receive(&self.input[self.start..self.end], exports, pool);
        self.start += taken;
        taken
    }

    /// What the session tells next.
    pub fn next_event(&mut self, pool: &mut HostPool) -> Option<ServerEvent> {
        self.session.poll_event(pool)
    }

    /// Answers a piece.
    pub fn reply(&mut self, reply: Reply, pool: &mut HostPool) {
        self.session.handle_reply(reply, pool);
    }

    /// Sends what waits to be sent. Whether everything has left.
    ///
    /// # Errors
    /// The connection has failed.
    pub fn flush(&mut self, pool: &mut HostPool) -> io::Result<bool> {
        while self.session.has_output() {
            let Some(stream) = &self.stream else { return Ok(true) };
            let mut segments = Segments::default();
            for segment in self.session.segments() {
                let is_in = match segment {
                    Segment::Bytes(bytes) => segments.push(bytes),
                    Segment::Pool(data) => match pool.shared(data) {
                        Some(bytes) => segments.push(bytes),
                        None => return Err(io::ErrorKind::InvalidData.into()),
                    },
                };
                if !is_in {
                    break;
                }
            }
            match stream.send(segments.slices())? {
                Some(count) => self.session.sent(count, pool),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Ends the connection. Pieces that are with the machine are still to be answered.
    pub fn close(&mut self, pool: &mut HostPool) {
        self.session.abandon(pool);
        self.stream = None;
        self.start = 0;
        self.end = 0;
    }

    /// Makes the place ready for the next client. Whether it could: not before every piece of the last one was answered.
    pub fn reset(&mut self) -> bool {
        self.stream.is_none() && self.session.reset().is_ok()
    }
}
