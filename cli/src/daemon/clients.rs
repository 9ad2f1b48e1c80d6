//! NBD clients: listeners, exports, and the places for connections.

use tracing::{debug, info, warn};
use twinblock_core::nbd::server::{Export, Exports, ServerConfig, ServerEvent};
use twinblock_core::nbd::wire::TransmissionFlags;
use twinblock_core::secondary::Port;
use twinblock_core::{ConnectionId, Errno, Identity, Micros, Refused, Reply, Request};
use twinblock_io_posix::connection::{Connection, ConnectionSizes};
use twinblock_io_posix::memory::HostPool;
use twinblock_io_posix::poller::{Interest, Poller, Ready, Registration};
use twinblock_io_posix::socket::{Listener, Stream};

use super::token::{Kind, token};
use super::volume::Volume;

/// A primary's connection takes all that the primary can have in flight; each of its requests is one piece.
const SIZES: ConnectionSizes = ConnectionSizes {
    requests: super::build::REPLICATION_REQUESTS,
    pieces: super::build::REPLICATION_REQUESTS + 32,
};
/// Events of one client before others have their turn.
const EVENTS_MAX: usize = 256;

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
    listener: Listener,
    exports: Exported,
    registration: Registration,
}

/// A place for a connection, and what it is used for.
#[derive(Debug)]
struct Client {
    connection: Connection,
    listening: usize,
    /// The volume and the name there, once an export was chosen.
    chosen: Option<(usize, ConnectionId)>,
    /// A primary: it need not leave buffers to others.
    is_primary: bool,
}

/// All NBD clients of a daemon.
#[derive(Debug)]
pub(super) struct Clients {
    listenings: Vec<Listening>,
    places: Vec<Client>,
    places_max: usize,
    window_bytes: u32,
    /// Small and large buffers that guests leave to primaries.
    kept_free: (u16, u16),
    next_connection: u32,
    /// There was no place for the last that came.
    is_crowded: bool,
    is_ending: bool,
}

impl Clients {
    pub(super) const fn new(places_max: u16, window_bytes: u32, kept_free: (u16, u16)) -> Self {
        Self {
            listenings: Vec::new(),
            places: Vec::new(),
            places_max: places_max as usize,
            window_bytes,
            kept_free,
            next_connection: 0,
            is_crowded: false,
            is_ending: false,
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

    /// Takes connections while there are places; those that find none wait in the system's queue.
    pub(super) fn accept(&mut self, listening: usize, now: Micros, pool: &mut HostPool, poller: &mut Poller) {
        while !self.is_ending {
            let Some(place) = self.free_place() else {
                warn!("every place for a connection is taken; new ones wait until one is free");
                return self.listen_no_more(poller);
            };
            match self.listenings[listening].listener.accept() {
                Ok(Some(stream)) => self.open(place, listening, stream, now, pool),
                Ok(None) => return,
                Err(error) => {
                    warn!("cannot accept a connection: {error}");
                    return self.listen_no_more(poller);
                }
            }
        }
    }

    fn listen_no_more(&mut self, poller: &mut Poller) {
        self.is_crowded = true;
        for listening in &self.listenings {
            poller.set_interest(listening.registration, Interest::NONE);
        }
    }

    fn listen_again(&mut self, poller: &mut Poller) {
        self.is_crowded = false;
        for listening in &self.listenings {
            poller.set_interest(listening.registration, Interest::READ);
        }
    }

    fn free_place(&mut self) -> Option<usize> {
        if let Some(place) = self.places.iter().position(|client| client.connection.is_free()) {
            return Some(place);
        }
        let index = self.places.len();
        if index >= self.places_max {
            return None;
        }
        // A place is made once and used for all later clients.
        let config = ServerConfig::new(self.window_bytes, index as u16);
        let connection = Connection::new(config, SIZES, token(Kind::Client, index)).ok()?;
        self.places.push(Client { connection, listening: 0, chosen: None, is_primary: false });
        Some(index)
    }

    fn open(&mut self, place: usize, listening: usize, stream: Stream, now: Micros, pool: &mut HostPool) {
        let client = &mut self.places[place];
        client.listening = listening;
        client.chosen = None;
        client.is_primary = false;
        if let Err(error) = client.connection.open(stream, now, pool) {
            warn!("a connection was turned away: {error}");
        }
    }

    pub(super) fn on_ready(&mut self, place: usize, ready: Ready) {
        if let Some(client) = self.places.get_mut(place) {
            client.connection.ready(ready);
        }
    }

    /// A machine's answer to a piece.
    pub(super) fn reply(&mut self, reply: Reply, pool: &mut HostPool) {
        if let Some(client) = self.places.get_mut((reply.id.0 >> 16) as usize) {
            client.connection.reply(reply, pool);
        }
    }

    /// Lets every client that may have something do what it can. Whether a machine was told anything.
    pub(super) fn serve(&mut self, now: Micros, volumes: &mut [Volume], pool: &mut HostPool) -> bool {
        let mut has_told = false;
        for place in 0..self.places.len() {
            let (small, large) = if self.places[place].is_primary { (0, 0) } else { self.kept_free };
            pool.keep_free(usize::from(small), usize::from(large));
            for _ in 0..EVENTS_MAX {
                let client = &mut self.places[place];
                if !client.connection.has_work() || self.is_ending {
                    break;
                }
                let exports = &self.listenings[client.listening].exports;
                let Some(event) = client.connection.next(exports, pool) else { break };
                match event {
                    ServerEvent::Request(request) => {
                        if !client.offer(request, now, volumes, pool) {
                            break;
                        }
                    }
                    ServerEvent::Opened { export, identity } => {
                        self.choose(place, export, identity, now, volumes, pool);
                    }
                    ServerEvent::Closed { clean } => client.leave(clean, now, volumes),
                }
                has_told = true;
            }
        }
        has_told
    }

    /// A client has chosen an export.
    fn choose(
        &mut self,
        place: usize,
        export: usize,
        identity: Option<Identity>,
        now: Micros,
        volumes: &mut [Volume],
        pool: &mut HostPool,
    ) {
        let name = self.new_connection();
        let client = &mut self.places[place];
        let Some(served) = self.listenings[client.listening].exports.0.get(export) else { return };
        if let Err(refused) = volumes[served.volume].open(now, name, served.port, identity) {
            warn!(export = served.name, "a client was turned away: {refused:?}");
            return client.connection.kick(pool);
        }
        info!(export = served.name, port = ?served.port, connection = name.0, "a client has connected");
        client.chosen = Some((served.volume, name));
        client.is_primary = served.port == Port::Replication;
    }

    /// A machine wants a connection closed.
    pub(super) fn close(
        &mut self,
        connection: ConnectionId,
        now: Micros,
        volumes: &mut [Volume],
        pool: &mut HostPool,
    ) {
        let is_it = |client: &&mut Client| client.chosen.is_some_and(|(_, name)| name == connection);
        if let Some(client) = self.places.iter_mut().find(is_it) {
            info!(connection = connection.0, "closed: the same primary has connected anew");
            client.connection.kick(pool);
            client.leave(false, now, volumes);
        }
    }

    /// Sends what waits. Whether a client may get further by it: what was sent has freed slots and buffers, and some
    /// client waits for one, which the system does not tell.
    pub(super) fn finish(&mut self, now: Micros, pool: &mut HostPool, poller: &mut Poller) -> bool {
        let (mut has_changed, mut is_waiting) = (false, false);
        for client in &mut self.places {
            has_changed |= client.connection.finish(now, pool, poller);
            is_waiting |= client.connection.is_waiting();
        }
        if self.is_crowded && !self.is_ending && self.free_place().is_some() {
            self.listen_again(poller);
        }
        has_changed && is_waiting && !self.is_ending
    }

    pub(super) fn next_deadline(&self) -> Option<Micros> {
        self.places.iter().filter_map(|client| client.connection.next_deadline()).min()
    }

    /// Reads no more requests and takes no more connections.
    pub(super) fn stop(&mut self, poller: &mut Poller) {
        self.is_ending = true;
        self.listen_no_more(poller);
    }
}

impl Client {
    /// Offers a piece to its volume; keeps it if the machine is busy.
    fn offer(&mut self, request: Request, now: Micros, volumes: &mut [Volume], pool: &mut HostPool) -> bool {
        let result = match self.chosen {
            Some((volume, connection)) => volumes[volume].request(now, connection, request),
            None => Err(Refused::Stale),
        };
        match result {
            Ok(()) => true,
            Err(Refused::Busy) => {
                self.connection.put_back(request);
                false
            }
            Err(_) => {
                self.connection.reply(Reply { id: request.id, result: Err(Errno::Invalid) }, pool);
                true
            }
        }
    }

    fn leave(&mut self, is_clean: bool, now: Micros, volumes: &mut [Volume]) {
        if let Some((volume, connection)) = self.chosen.take() {
            debug!(connection = connection.0, is_clean, "a client has gone");
            volumes[volume].close(now, connection, is_clean);
        }
    }
}
