//! NBD clients: listeners, exports, and the places for connections.

use std::io;
use std::time::Duration;

use tracing::{debug, info, warn};
use twinblock_core::nbd::server::{Export, Exports, ServerEvent};
use twinblock_core::nbd::wire::TransmissionFlags;
use twinblock_core::secondary::Port;
use twinblock_core::{ConnectionId, Errno, Identity, Micros, Refused, Reply, Request, RequestId};
use twinblock_io_posix::connection::{Connection, Received};
use twinblock_io_posix::memory::HostPool;
use twinblock_io_posix::poller::{Interest, Poller, Ready, Registration};
use twinblock_io_posix::socket::{Listener, Stream};

use super::token::{Kind, token};
use super::volume::Volume;

/// System calls for one client before others have their turn.
const RECEIVES_MAX: usize = 8;

/// An export: which volume, and which side of it.
#[derive(Clone, Debug)]
pub(super) struct Served {
    pub(super) name: String,
    pub(super) description: &'static str,
    pub(super) volume: usize,
    pub(super) port: Port,
    pub(super) size_bytes: u64,
    pub(super) block_bytes: u32,
    pub(super) is_read_only: bool,
    pub(super) is_fast_zero: bool,
}

/// The exports at one address.
#[derive(Debug)]
pub(super) struct Exported(pub(super) Vec<Served>);

impl Exports for Exported {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn export(&self, index: usize) -> Option<Export<'_>> {
        let served = self.0.get(index)?;
        let mut export = Export::new(&served.name, served.size_bytes);
        export.description = served.description;
        export.block_min = served.block_bytes;
        export.block_preferred = served.block_bytes.max(4096);
        export.flags.set(TransmissionFlags::READ_ONLY, served.is_read_only);
        export.flags.set(TransmissionFlags::SEND_FAST_ZERO, served.is_fast_zero);
        // Only one connection at a time may modify a running secondary's disk.
        export.flags.set(TransmissionFlags::CAN_MULTI_CONN, served.port == Port::Guest);
        Some(export)
    }
}

#[derive(Debug)]
pub(super) struct Listening {
    pub(super) listener: Listener,
    pub(super) exports: Exported,
    registration: Registration,
}

/// What a place for a connection is used for.
#[derive(Debug)]
struct Client {
    connection: Connection,
    registration: Option<Registration>,
    listening: usize,
    opened_at: Micros,
    /// The volume and the name there, once an export was chosen.
    chosen: Option<(usize, ConnectionId)>,
    /// A piece that the machine was too busy for.
    waiting: Option<Request>,
    /// Something may be done without new bytes.
    is_restless: bool,
    /// What it has sent cannot be taken now.
    is_stalled: bool,
    has_output: bool,
    /// The session has ended; what is left to send is sent.
    is_ending: bool,
}

/// All NBD clients of a daemon.
#[derive(Debug)]
pub(super) struct Clients {
    pub(super) listenings: Vec<Listening>,
    places: Vec<Client>,
    places_max: usize,
    window_bytes: u32,
    next_connection: u32,
    handshake_max: Micros,
    is_accepting: bool,
    is_reading: bool,
}

impl Clients {
    pub(super) fn new(places_max: u16, window_bytes: u32, handshake_max: Duration) -> Self {
        Self {
            listenings: Vec::new(),
            places: Vec::new(),
            places_max: usize::from(places_max),
            window_bytes,
            next_connection: 0,
            handshake_max: Micros(handshake_max.as_micros() as u64),
            is_accepting: true,
            is_reading: true,
        }
    }

    pub(super) fn listen(
        &mut self,
        listener: Listener,
        exports: Exported,
        poller: &mut Poller,
    ) -> Result<(), String> {
        let token = token(Kind::Listener, self.listenings.len());
        let registration = poller.register(&listener, Interest::READ, token).ok_or("too many listeners")?;
        self.listenings.push(Listening { listener, exports, registration });
        Ok(())
    }

    /// A name for a connection that was never used before.
    pub(super) const fn new_connection(&mut self) -> ConnectionId {
        self.next_connection += 1;
        ConnectionId(self.next_connection)
    }

    /// Takes connections while there are places.
    pub(super) fn accept(&mut self, listening: usize, now: Micros, poller: &mut Poller) {
        while self.is_accepting {
            let Some(place) = self.free_place() else {
                warn!("every place for a connection is taken; new ones wait until one is free");
                return self.pause(poller, true);
            };
            match self.listenings[listening].listener.accept() {
                Ok(Some(stream)) => self.open(place, listening, stream, now, poller),
                Ok(None) => return,
                Err(error) => {
                    warn!("cannot accept a connection: {error}");
                    return self.pause(poller, true);
                }
            }
        }
    }

    fn pause(&mut self, poller: &mut Poller, is_paused: bool) {
        self.is_accepting = !is_paused;
        let interest = if is_paused { Interest::NONE } else { Interest::READ };
        for listening in &self.listenings {
            poller.set_interest(listening.registration, interest);
        }
    }

    fn free_place(&mut self) -> Option<usize> {
        let is_free = |client: &mut Client| client.connection.stream().is_none() && client.connection.reset();
        if let Some(place) = self.places.iter_mut().position(is_free) {
            return Some(place);
        }
        if self.places.len() >= self.places_max {
            return None;
        }
        let index = self.places.len();
        // A place is made once and used for all later clients.
        let connection = Connection::new(self.window_bytes, index as u16).ok()?;
        self.places.push(Client {
            connection,
            registration: None,
            listening: 0,
            opened_at: Micros(0),
            chosen: None,
            waiting: None,
            is_restless: false,
            is_stalled: false,
            has_output: false,
            is_ending: false,
        });
        Some(index)
    }

    fn open(&mut self, place: usize, listening: usize, stream: Stream, now: Micros, poller: &mut Poller) {
        let client = &mut self.places[place];
        client.registration = poller.register(&stream, Interest::READ, token(Kind::Client, place));
        if client.registration.is_none() {
            return warn!("a connection was turned away: too many descriptors");
        }
        client.connection.open(stream);
        client.listening = listening;
        client.opened_at = now;
        client.chosen = None;
        client.waiting = None;
        client.is_ending = false;
        client.is_stalled = false;
        client.is_restless = true;
        client.has_output = true;
    }

    pub(super) fn on_ready(&mut self, place: usize, ready: Ready) {
        if let Some(client) = self.places.get_mut(place) {
            client.is_restless |= ready.read;
            client.has_output |= ready.write;
        }
    }

    /// A machine's answer to a piece.
    pub(super) fn reply(&mut self, reply: Reply, pool: &mut HostPool) {
        let place = (reply.id.0 >> 16) as usize;
        if let Some(client) = self.places.get_mut(place) {
            client.connection.reply(reply, pool);
            client.has_output = true;
            // There is room again for what was held back.
            client.is_restless = true;
        }
    }

    /// Lets every client that may have something do what it can. Whether a machine has taken anything.
    pub(super) fn serve(
        &mut self,
        now: Micros,
        volumes: &mut [Volume],
        pool: &mut HostPool,
        poller: &mut Poller,
    ) -> bool {
        let mut has_offered = false;
        for place in 0..self.places.len() {
            let client = &mut self.places[place];
            let is_stalled = client.is_stalled || client.waiting.is_some();
            if !std::mem::take(&mut client.is_restless) && !is_stalled {
                continue;
            }
            match self.serve_one(place, now, volumes, pool) {
                Ok(offered) => has_offered |= offered,
                Err(error) => {
                    if error.kind() != io::ErrorKind::UnexpectedEof {
                        debug!("a connection has failed: {error}");
                    }
                    self.drop_one(place, now, volumes, pool, poller, false);
                    has_offered = true;
                }
            }
        }
        has_offered
    }

    fn serve_one(
        &mut self,
        place: usize,
        now: Micros,
        volumes: &mut [Volume],
        pool: &mut HostPool,
    ) -> io::Result<bool> {
        let mut has_offered = false;
        for _ in 0..RECEIVES_MAX {
            let (offered, is_busy) = self.hear(place, now, volumes, pool)?;
            has_offered |= offered;
            let client = &mut self.places[place];
            if is_busy || client.connection.stream().is_none() || client.is_ending || !self.is_reading {
                return Ok(has_offered);
            }
            let exports = &self.listenings[client.listening].exports;
            let received = client.connection.receive(exports, pool)?;
            client.has_output |= client.connection.session().has_output();
            client.set_stalled(received == Received::Stalled);
            if received != Received::Some {
                let (offered, _) = self.hear(place, now, volumes, pool)?;
                return Ok(has_offered || offered);
            }
        }
        self.places[place].is_restless = true;
        Ok(has_offered)
    }

    /// Takes what the session tells. Whether a machine has taken anything, and whether one was too busy.
    fn hear(
        &mut self,
        place: usize,
        now: Micros,
        volumes: &mut [Volume],
        pool: &mut HostPool,
    ) -> io::Result<(bool, bool)> {
        let mut has_offered = false;
        loop {
            let client = &mut self.places[place];
            if let Some(request) = client.waiting.take() {
                if !client.offer(request, now, volumes, pool) {
                    // Its interest in more bytes is looked at again.
                    client.has_output = true;
                    return Ok((has_offered, true));
                }
                has_offered = true;
            }
            match client.connection.next_event(pool) {
                Some(ServerEvent::Request(request)) => client.waiting = Some(request),
                Some(ServerEvent::Opened { export, identity }) => {
                    self.choose(place, export, identity, now, volumes)?;
                }
                Some(ServerEvent::Closed { clean }) => {
                    client.is_ending = true;
                    client.has_output = true;
                    if let Some((volume, connection)) = client.chosen.take() {
                        info!(connection = connection.0, clean, "a client has disconnected");
                        volumes[volume].close(now, connection, clean);
                        has_offered = true;
                    }
                }
                None => return Ok((has_offered, false)),
            }
        }
    }

    /// A client has chosen an export.
    fn choose(
        &mut self,
        place: usize,
        export: usize,
        identity: Option<Identity>,
        now: Micros,
        volumes: &mut [Volume],
    ) -> io::Result<()> {
        let connection = self.new_connection();
        let exports = &self.listenings[self.places[place].listening].exports;
        let served = exports.0.get(export).ok_or(io::ErrorKind::NotFound)?;
        if let Err(refused) = volumes[served.volume].open(now, connection, served.port, identity) {
            warn!(export = served.name, "a client was turned away: {refused:?}");
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        info!(export = served.name, port = ?served.port, connection = connection.0, "a client has connected");
        self.places[place].chosen = Some((served.volume, connection));
        Ok(())
    }

    /// Sends what waits, and lets go of sessions that have ended.
    pub(super) fn flush(&mut self, now: Micros, volumes: &mut [Volume], pool: &mut HostPool, poller: &mut Poller) {
        for place in 0..self.places.len() {
            let client = &mut self.places[place];
            if !std::mem::take(&mut client.has_output) || client.connection.stream().is_none() {
                continue;
            }
            let sent = client.connection.flush(pool);
            let is_ending = client.is_ending;
            match sent {
                Ok(true) if is_ending => self.drop_one(place, now, volumes, pool, poller, true),
                Ok(has_left) => {
                    let stalled = client.waiting.is_some() || client.is_stalled;
                    let interest = Interest { read: !is_ending && !stalled && self.is_reading, write: !has_left };
                    if let Some(registration) = client.registration {
                        poller.set_interest(registration, interest);
                    }
                    // There is room again for what the session could not answer.
                    client.is_restless |= has_left;
                }
                Err(error) => {
                    debug!("a connection has failed: {error}");
                    self.drop_one(place, now, volumes, pool, poller, false);
                }
            }
        }
    }

    fn drop_one(
        &mut self,
        place: usize,
        now: Micros,
        volumes: &mut [Volume],
        pool: &mut HostPool,
        poller: &mut Poller,
        is_clean: bool,
    ) {
        let client = &mut self.places[place];
        if let Some(registration) = client.registration.take() {
            poller.deregister(registration);
        }
        if let Some((volume, connection)) = client.chosen.take() {
            info!(connection = connection.0, clean = is_clean, "a client has gone");
            volumes[volume].close(now, connection, is_clean);
        }
        client.waiting = None;
        client.is_stalled = false;
        client.connection.close(pool);
        if !self.is_accepting && self.is_reading {
            self.pause(poller, false);
        }
    }

    /// A machine wants a connection closed.
    pub(super) fn close(
        &mut self,
        connection: ConnectionId,
        now: Micros,
        volumes: &mut [Volume],
        pool: &mut HostPool,
        poller: &mut Poller,
    ) {
        let is_it = |client: &Client| client.chosen.is_some_and(|(_, name)| name == connection);
        if let Some(place) = self.places.iter().position(is_it) {
            info!(connection = connection.0, "closed: the same primary has connected anew");
            self.drop_one(place, now, volumes, pool, poller, false);
        }
    }

    /// When a handshake takes too long.
    pub(super) fn next_deadline(&self) -> Option<Micros> {
        let handshakes = self.places.iter().filter(|client| client.is_in_handshake());
        handshakes.map(|client| client.opened_at.after(self.handshake_max)).min()
    }

    /// Lets go of clients whose handshake takes too long.
    pub(super) fn tick(&mut self, now: Micros, volumes: &mut [Volume], pool: &mut HostPool, poller: &mut Poller) {
        for place in 0..self.places.len() {
            let client = &self.places[place];
            if client.is_in_handshake() && client.opened_at.after(self.handshake_max) <= now {
                debug!("a handshake took too long");
                self.drop_one(place, now, volumes, pool, poller, false);
            }
        }
    }

    /// Reads no more requests and takes no more connections.
    pub(super) fn stop(&mut self, poller: &mut Poller) {
        self.pause(poller, true);
        self.is_reading = false;
        for client in &mut self.places {
            client.has_output = true;
        }
    }

    /// Whether everything that was asked has been answered and sent.
    pub(super) fn is_quiet(&self) -> bool {
        self.places.iter().all(|client| {
            client.connection.session().in_flight() == 0
                && (client.connection.stream().is_none() || !client.connection.session().has_output())
        })
    }
}

impl Client {
    /// Offers a piece to its volume; keeps it if the machine is busy.
    fn offer(
        &mut self,
        request: Request,
        now: Micros,
        volumes: &mut [Volume],
        pool: &mut HostPool,
    ) -> bool {
        let Some((volume, connection)) = self.chosen else { return true };
        match volumes[volume].request(now, connection, request) {
            Ok(()) => true,
            Err(Refused::Busy) => {
                self.waiting = Some(request);
                false
            }
            Err(_) => {
                self.refuse(request.id, pool);
                true
            }
        }
    }

    fn refuse(&mut self, id: RequestId, pool: &mut HostPool) {
        self.connection.reply(Reply { id, result: Err(Errno::Invalid) }, pool);
        self.has_output = true;
    }

    fn set_stalled(&mut self, is_stalled: bool) {
        // Its interest in more bytes is looked at again.
        self.has_output |= is_stalled != self.is_stalled;
        self.is_stalled = is_stalled;
    }

    fn is_in_handshake(&self) -> bool {
        self.connection.stream().is_some() && self.connection.session().is_handshake()
    }
}
