//! NBD clients: listeners, exports, and the places for connections.

mod servers;

use tracing::{debug, info, warn};
use twinblock_core::nbd::server::{Export, Exports, ServerConfig, ServerEvent};
use twinblock_core::nbd::wire::TransmissionFlags;
use twinblock_core::secondary::Port;
use twinblock_core::{ConnectionId, Errno, Identity, Micros, Refused, Reply, Request};
use twinblock_io_posix::connection::{Connection, ConnectionSizes};
use twinblock_io_posix::memory::{Holder, HostPool};
use twinblock_io_posix::poller::{Interest, Poller, Ready, Registration};
use twinblock_io_posix::socket::{Listener, Stream};

use super::admission::{self, Standing, Verdict};
use super::awake::Awake;
use super::throttle::Throttle;
use super::token::{Kind, token};
use super::volume::Volume;

/// A primary's connection takes all that the primary can have in flight; each of its requests is one piece.
const REQUESTS: u16 = super::build::REPLICATION_REQUESTS;
const PIECES: u16 = super::build::REPLICATION_REQUESTS + 32;
/// Events of one client before others have their turn.
const EVENTS_MAX: usize = 256;
/// Connections that are taken from one listener before others have their turn.
const ACCEPTS_MAX: usize = 32;
/// How long nothing is accepted after the system has refused to.
const PAUSE: Micros = Micros::from_ms(250);

/// An export: which volume, and which side of it.
#[derive(Clone, Debug)]
pub(super) struct Served {
    pub(super) name: String,
    /// What managers call it.
    pub(super) id: String,
    /// The node that it shows.
    pub(super) node: String,
    pub(super) description: String,
    pub(super) volume: usize,
    pub(super) port: Port,
    pub(super) size_bytes: u64,
    pub(super) block_bytes: u32,
    pub(super) is_read_only: bool,
    pub(super) is_fast_zero: bool,
}

/// The exports at one address.
#[derive(Debug)]
pub(super) struct Exported(Vec<Served>);

impl Exports for Exported {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn export(&self, index: usize) -> Option<Export<'_>> {
        let served = self.0.get(index)?;
        let mut export = Export::new(&served.name, served.size_bytes);
        export.description = &served.description;
        export.block_min = served.block_bytes;
        export.block_preferred = served.block_bytes.max(4096);
        export.flags.set(TransmissionFlags::READ_ONLY, served.is_read_only);
        export.flags.set(TransmissionFlags::SEND_FAST_ZERO, served.is_fast_zero);
        // Only one connection at a time may modify a running secondary's disk.
        export.flags.set(TransmissionFlags::CAN_MULTI_CONN, served.port == Port::Guest);
        Some(export)
    }
}

/// An NBD server: an address and what is exported there. Its place stays when it is stopped, until another one comes.
#[derive(Debug)]
struct Listening {
    /// What managers call it; empty for the one that they need not name.
    name: String,
    listener: Option<(Listener, Registration)>,
    exports: Exported,
    rest: Rest,
}

/// Whether a listener is listened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    No,
    /// Nothing is accepted before then.
    Until(Micros),
    /// Nothing is accepted before then, or before there is a place.
    UntilPlace(Option<Micros>),
}

/// A place for a connection, and what it is used for.
#[derive(Debug)]
struct Client {
    connection: Connection,
    listening: usize,
    /// The volume and the name there, once an export was chosen.
    chosen: Option<(usize, ConnectionId)>,
    /// The name of the export that was chosen last.
    export: String,
}

/// All NBD clients of a daemon.
#[derive(Debug)]
pub(super) struct Clients {
    listenings: Vec<Listening>,
    places: Awake<Client>,
    places_max: usize,
    /// Whose turn is first in the next round.
    first: usize,
    window_bytes: u32,
    handshake_max: Micros,
    /// Told to primaries, which learn by it that this daemon was started anew.
    run: u32,
    next_connection: u32,
    is_ending: bool,
    told_full: Throttle,
    told_replaced: Throttle,
    told_failed: Throttle,
}

impl Clients {
    pub(super) fn new(places_max: usize, window_bytes: u32, handshake_max: Micros, run: u32) -> Self {
        Self {
            listenings: Vec::new(),
            places: Awake::with_capacity(0),
            places_max,
            first: 0,
            window_bytes,
            handshake_max,
            run,
            next_connection: 0,
            is_ending: false,
            told_full: Throttle::default(),
            told_replaced: Throttle::default(),
            told_failed: Throttle::default(),
        }
    }

    /// The name of the export that a connection has opened.
    pub(super) fn export_of(&self, connection: ConnectionId) -> Option<&str> {
        let is_it = |client: &&Client| client.chosen.is_some_and(|(_, name)| name == connection);
        self.places.iter().find(is_it).map(|client| client.export.as_str())
    }

    /// A name for a connection that was never used before.
    pub(super) const fn new_connection(&mut self) -> ConnectionId {
        self.next_connection += 1;
        ConnectionId(self.next_connection)
    }

    /// Takes connections while there are places or some can be made free; the others wait in the system's queue.
    pub(super) fn accept(&mut self, listening: usize, now: Micros, pool: &mut HostPool, poller: &mut Poller) {
        for _ in 0..ACCEPTS_MAX {
            if self.is_ending || self.listenings.get(listening).is_none_or(Listening::is_stopped) {
                return;
            }
            let verdict = self.verdict(listening, now);
            if let Verdict::Wait(until) = verdict {
                if until.is_none()
                    && let Some(left_out) = self.told_full.pass(now)
                {
                    let (address, max) = (&self.listenings[listening].name, self.places_max);
                    warn!(
                        address,
                        max,
                        left_out,
                        "all places for connections are taken; new clients wait until one has gone (--max-connections)"
                    );
                }
                return self.rest(listening, Rest::UntilPlace(until), poller);
            }
            match self.listenings[listening].accept(poller) {
                Ok(Some(stream)) => {
                    if let Some(place) = self.place_for(verdict, now, pool, poller) {
                        self.open(place, listening, stream, now, pool);
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    if let Some(left_out) = self.told_failed.pass(now) {
                        warn!(left_out, "cannot accept connections for a while: {error}");
                    }
                    return self.rest(listening, Rest::Until(now.after(PAUSE)), poller);
                }
            }
        }
    }

    fn verdict(&self, listening: usize, now: Micros) -> Verdict {
        // Addresses are numbered without the servers that were stopped: nothing is kept free for those.
        let number = |of: usize| self.listenings.iter().take(of).filter(|other| !other.is_stopped()).count();
        let is_stopped = |of: usize| self.listenings.get(of).is_none_or(Listening::is_stopped);
        let number_of = |of: usize| if is_stopped(of) { usize::MAX } else { number(of) };
        let standings = self.places.iter().map(|client| client.standing(number_of(client.listening)));
        admission::admit(number(listening), number(self.listenings.len()), self.places_max, &standings, now)
    }

    fn rest(&mut self, listening: usize, rest: Rest, poller: &mut Poller) {
        let listening = &mut self.listenings[listening];
        listening.rest = rest;
        let interest = if rest == Rest::No { Interest::READ } else { Interest::NONE };
        if let Some((_, registration)) = &listening.listener {
            poller.set_interest(*registration, interest);
        }
    }

    /// Listens again where the reason not to has gone.
    fn end_rests(&mut self, now: Micros, poller: &mut Poller) {
        for listening in 0..self.listenings.len() {
            let is_over = match self.listenings[listening].rest {
                Rest::No => false,
                Rest::Until(at) => at <= now,
                Rest::UntilPlace(at) => {
                    at.is_some_and(|at| at <= now)
                        || !matches!(self.verdict(listening, now), Verdict::Wait(_))
                }
            };
            if is_over {
                self.rest(listening, Rest::No, poller);
            }
        }
    }

    fn place_for(
        &mut self,
        verdict: Verdict,
        now: Micros,
        pool: &mut HostPool,
        poller: &mut Poller,
    ) -> Option<usize> {
        match verdict {
            Verdict::Wait(_) => None,
            Verdict::Welcome => self.free_place(),
            Verdict::Replace(place) => {
                if let Some(left_out) = self.told_replaced.pass(now) {
                    let max = self.places_max;
                    warn!(
                        max,
                        left_out,
                        "a client that has not finished its handshake was dropped to make room for another"
                    );
                }
                self.places[place].connection.give_up_handshake(pool, poller);
                Some(place)
            }
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
        let config = ServerConfig { run: self.run, ..ServerConfig::new(self.window_bytes, index as u16) };
        let sizes = ConnectionSizes { requests: REQUESTS, pieces: PIECES, handshake_max: self.handshake_max };
        let connection = Connection::new(config, sizes, token(Kind::Client, index)).ok()?;
        self.places.push(Client { connection, listening: 0, chosen: None, export: String::new() });
        Some(index)
    }

    fn open(&mut self, place: usize, listening: usize, stream: Stream, now: Micros, pool: &mut HostPool) {
        let client = &mut self.places[place];
        client.listening = listening;
        client.chosen = None;
        client.export.clear();
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
    pub(super) fn serve(&mut self, now: Micros, volumes: &mut Awake<Volume>, pool: &mut HostPool) -> bool {
        let mut has_told = false;
        // Each has the first turn in its time: whoever comes first may take all that a machine can take.
        let after = self.places.awake_from(self.first + 1);
        self.first = after.or_else(|| self.places.awake_from(0)).unwrap_or_default();
        let mut next = self.places.awake_after(None, self.first);
        while let Some(place) = next {
            let is_guaranteed = self.places[place].holds_claim(volumes);
            pool.act_for(Some(Holder { account: place as u16, is_guaranteed }));
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
            next = self.places.awake_after(Some(place), self.first);
        }
        pool.act_for(None);
        has_told
    }

    /// A client has chosen an export.
    fn choose(
        &mut self,
        place: usize,
        export: usize,
        identity: Option<Identity>,
        now: Micros,
        volumes: &mut Awake<Volume>,
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
        client.export.clone_from(&served.name);
    }

    /// A machine wants a connection closed.
    pub(super) fn close(
        &mut self,
        connection: ConnectionId,
        now: Micros,
        volumes: &mut Awake<Volume>,
        pool: &mut HostPool,
    ) {
        let is_it = |client: &Client| client.chosen.is_some_and(|(_, name)| name == connection);
        if let Some(place) = self.places.iter().position(is_it) {
            let client = &mut self.places[place];
            info!(connection = connection.0, "closed: the same primary has connected anew");
            client.connection.kick(pool);
            client.leave(false, now, volumes);
        }
    }

    /// Sends what waits. Whether a client may get further by it: what was sent has freed slots and buffers, and some
    /// client waits for one, which the system does not tell.
    pub(super) fn finish(&mut self, now: Micros, pool: &mut HostPool, poller: &mut Poller) -> bool {
        let (mut has_changed, mut is_waiting) = (false, false);
        let mut next = self.places.awake_from(0);
        while let Some(place) = next {
            let client = &mut self.places[place];
            has_changed |= client.connection.finish(now, pool, poller);
            is_waiting |= client.connection.is_waiting();
            next = self.places.awake_from(place + 1);
        }
        if !self.is_ending {
            self.end_rests(now, poller);
        }
        has_changed && is_waiting && !self.is_ending
    }

    /// Wakes those whose time has come.
    pub(super) fn wake_due(&mut self, now: Micros) {
        self.places.wake_due(now);
    }

    /// Puts those to sleep that wait for their client or for a machine alone. Each has just been found to have nothing to
    /// do.
    pub(super) fn settle(&mut self) {
        let mut next = self.places.awake_from(0);
        while let Some(place) = next {
            let connection = &self.places[place].connection;
            let (sleeps, due) = (!connection.is_waiting(), connection.next_deadline());
            self.places.settle(place, sleeps, due);
            next = self.places.awake_from(place + 1);
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Micros> {
        let rests = self.listenings.iter().filter_map(|listening| match listening.rest {
            Rest::No => None,
            Rest::Until(at) => Some(at),
            Rest::UntilPlace(at) => at,
        });
        rests.chain(self.places.next_due()).min()
    }

    /// Reads no more requests and takes no more connections.
    pub(super) fn stop(&mut self, poller: &mut Poller) {
        self.is_ending = true;
        for listening in 0..self.listenings.len() {
            self.rest(listening, Rest::UntilPlace(None), poller);
        }
    }
}

impl Listening {
    const fn is_stopped(&self) -> bool {
        self.listener.is_none()
    }

    fn accept(&self, poller: &mut Poller) -> std::io::Result<Option<Stream>> {
        let listener = self.listener.as_ref();
        listener.map_or(Ok(None), |(listener, registration)| poller.accept(listener, *registration))
    }
}

impl Client {
    /// What it is to others at its address, which has this number.
    const fn standing(&self, address: usize) -> Standing {
        let is_silent = self.connection.is_silent();
        match self.connection.handshake_since() {
            _ if self.connection.is_free() => Standing::Free,
            Some(since) => Standing::Owing { address, since, is_silent },
            None => Standing::Settled { address },
        }
    }

    /// Whether it holds the claim on a running secondary: it must not wait for others.
    fn holds_claim(&self, volumes: &[Volume]) -> bool {
        self.chosen.is_some_and(|(volume, name)| {
            volumes.get(volume).and_then(Volume::claim_holder).is_some_and(|holder| holder == name)
        })
    }

    /// Offers a piece to its volume; keeps it if the machine is busy.
    fn offer(
        &mut self,
        request: Request,
        now: Micros,
        volumes: &mut Awake<Volume>,
        pool: &mut HostPool,
    ) -> bool {
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

    fn leave(&mut self, is_clean: bool, now: Micros, volumes: &mut Awake<Volume>) {
        if let Some((volume, connection)) = self.chosen.take() {
            debug!(connection = connection.0, is_clean, "a client has gone");
            volumes[volume].close(now, connection, is_clean);
        }
    }
}
