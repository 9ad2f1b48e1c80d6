//! An NBD session over anything that reads and writes bytes: `embedded-io`'s [`Read`] and [`Write`].
//!
//! A session takes what bytes there are and gives out pieces for the machine; replies go back, and what there is to send is
//! written. Reading waits for bytes, as `embedded-io` has it, and is done only when there is nothing else to do: on a line with
//! one client nothing can happen then but that it speaks.

use embedded_io::{Read, Write};
use twinblock_core::driver::Devices;
use twinblock_core::driver::{Driver, Emitted};
use twinblock_core::nbd::Segment;
use twinblock_core::nbd::server::{Exports, ServerEvent, Session};
use twinblock_core::primary::{Input, Primary};
use twinblock_core::{ConnectionId, Errno, Memory, Micros, Refused, Reply, Request, Windows};

/// What is read at a time.
const READ_BYTES: usize = 256;

/// Who is served, and with what.
pub(crate) struct Server<'s, 'm, S, D> {
    /// The line.
    pub(crate) stream: S,
    /// The session of the one client.
    pub(crate) session: Session<'m>,
    /// The volume.
    pub(crate) driver: Driver<Primary<'m>, D>,
    /// Windows for its requests.
    pub(crate) memory: &'s mut Windows<'m>,
    /// Microseconds.
    pub(crate) clock: fn() -> u64,
}

/// How a session has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With a goodbye, or with none.
    Closed { clean: bool },
    /// The other side of the line is gone.
    Lost,
}

impl<'m, S: Read + Write, D: Devices<Windows<'m>>> Server<'_, 'm, S, D> {
    /// Serves one client from its handshake to its end.
    ///
    /// # Errors
    /// What the line reports.
    pub(crate) fn serve<E: Exports>(&mut self, exports: &E) -> Result<End, S::Error> {
        let client = ConnectionId(1);
        let mut bytes = [0; READ_BYTES];
        let (mut from, mut to) = (0, 0);
        let mut kept = None;
        loop {
            let taken = self.session.receive(bytes.get(from..to).unwrap_or_default(), exports, self.memory);
            from += taken;
            let event =
                kept.take().map(ServerEvent::Request).or_else(|| self.session.poll_event(self.memory));
            let has_event = event.is_some();
            match event {
                Some(ServerEvent::Opened { .. }) => {
                    let _ = self.driver.offer(self.now(), Input::Opened(client));
                }
                Some(ServerEvent::Request(request)) => kept = self.offer(client, request),
                Some(ServerEvent::Closed { clean }) => {
                    self.send()?;
                    return Ok(End::Closed { clean });
                }
                None => {}
            }
            let has_replied = self.work();
            let has_sent = self.send()?;
            if taken == 0 && !has_event && !has_replied && !has_sent && from == to {
                (from, to) = (0, self.stream.read(&mut bytes)?);
                if to == 0 {
                    return Ok(End::Lost);
                }
            }
        }
    }

    fn now(&self) -> Micros {
        Micros((self.clock)())
    }

    /// What the machine has no place for now is given back.
    fn offer(&mut self, client: ConnectionId, request: Request) -> Option<Request> {
        match self.driver.offer(self.now(), Input::Request(client, request)) {
            Ok(()) => None,
            Err(Refused::Busy) => Some(request),
            Err(_) => {
                let reply = Reply { id: request.id, result: Err(Errno::Invalid) };
                self.session.handle_reply(reply, self.memory);
                None
            }
        }
    }

    /// Lets the machine work; whether it has answered anything.
    fn work(&mut self) -> bool {
        let mut has_replied = false;
        while let Some(emitted) = self.driver.poll(self.now(), self.memory) {
            if let Emitted::Reply(reply) = emitted {
                self.session.handle_reply(reply, self.memory);
                has_replied = true;
            }
        }
        has_replied
    }

    /// Writes what there is to send; whether there was anything.
    fn send(&mut self) -> Result<bool, S::Error> {
        let mut has_sent = false;
        while let Some(segment) = self.session.segments().next() {
            let length = segment.length();
            match segment {
                Segment::Bytes(bytes) => self.stream.write_all(bytes)?,
                Segment::Pool(data) => self.stream.write_all(self.memory.bytes(data).unwrap_or_default())?,
            }
            self.session.sent(length, self.memory);
            has_sent = true;
        }
        if has_sent {
            self.stream.flush()?;
        }
        Ok(has_sent)
    }
}
