//! NBD clients: the core's server sessions over TCP.
//!
//! ```text
//!   Listening ──connected──▶ Open ──DISC, violation──▶ Closing ──all sent──▶ Gone ──pieces replied──▶ Listening
//!                             └────────────lost, kicked, late────────────────▶┘
//! ```
//!
//! # Invariants
//! * K1: the machine hears once of the end of each connection that it has heard of.
//! * K2: a piece that the machine refused is offered again before anything that came after it.

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;
use twinblock_core::nbd::BadSetup;
use twinblock_core::nbd::Segment;
use twinblock_core::nbd::server::{Export, Exports, ServerConfig, ServerEvent, ServerMemory, Session};
use twinblock_core::nbd::wire::TransmissionFlags;
use twinblock_core::secondary::Port;
use twinblock_core::{
    BufferIndex, ConnectionId, Data, Errno, Memory, Micros, Pool, Refused, Reply, Request, Windows,
};

use crate::memory::ClientMemory;
use crate::network::Network;
use crate::node::Node;
use crate::settings;

/// Events of one client before others have their turn.
const EVENTS_MAX: usize = 8;

/// Both exports of the volume.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exported {
    pub(crate) size_bytes: u64,
    pub(crate) block_bytes: u32,
}

const PORTS: [(Port, &str, &str); 2] = [
    (Port::Replication, settings::EXPORT, "secondary disk, for its primary"),
    (Port::Guest, settings::GUEST_EXPORT, "the last checkpoint and what its guest has written since"),
];

impl Exports for Exported {
    fn count(&self) -> usize {
        PORTS.len()
    }

    fn export(&self, index: usize) -> Option<Export<'_>> {
        let (_, name, description) = PORTS.get(index)?;
        let mut export = Export::new(name, self.size_bytes);
        export.description = description;
        export.block_min = self.block_bytes;
        export.block_preferred = settings::WINDOW as u32;
        // A card is as slow with zeroes as with anything else; and there is one place for each port's client.
        export.flags.remove(TransmissionFlags::SEND_FAST_ZERO | TransmissionFlags::CAN_MULTI_CONN);
        Some(export)
    }
}

#[derive(Clone, Copy, Debug)]
enum State {
    Listening,
    Open {
        since: Micros,
    },
    /// The session is over and has said so; what it has sent is on its way until then.
    Closing {
        until: Micros,
    },
    /// The socket was given up; pieces may still be with the machine.
    Gone,
}

/// The one window that a client has: what another one does not read takes nothing from it.
#[derive(Debug)]
struct OwnWindow {
    index: BufferIndex,
    is_taken: bool,
}

impl OwnWindow {
    const fn lend<'n>(&'n mut self, memory: &'n mut Windows<'static>) -> Lent<'n> {
        Lent { own: self, memory }
    }
}

/// A client's window together with the memory that it lies in.
struct Lent<'n> {
    own: &'n mut OwnWindow,
    memory: &'n mut Windows<'static>,
}

impl Memory for Lent<'_> {
    fn bytes(&mut self, data: Data) -> Option<&mut [u8]> {
        self.memory.bytes(data)
    }
}

impl Pool for Lent<'_> {
    fn acquire(&mut self, length: u32) -> Option<BufferIndex> {
        if self.own.is_taken || length as usize > settings::WINDOW {
            return None;
        }
        self.own.is_taken = true;
        Some(self.own.index)
    }

    fn release(&mut self, buffer: BufferIndex) {
        self.own.is_taken &= buffer != self.own.index;
    }
}

/// A place for a client.
#[derive(Debug)]
pub(crate) struct Client {
    session: Session<'static>,
    window: OwnWindow,
    socket: SocketHandle,
    state: State,
    /// What the machine had no place for.
    kept: Option<Request>,
    /// What the machine calls the connection, once an export was chosen.
    chosen: Option<ConnectionId>,
}

impl Client {
    pub(crate) fn new(
        index: u16,
        memory: &'static mut ClientMemory,
        network: &mut Network,
    ) -> Result<Self, BadSetup> {
        let ClientMemory { requests, pieces, option_data, output_bytes, output_entries, receive, send } =
            memory;
        let memory = ServerMemory { requests, pieces, option_data, output_bytes, output_entries };
        let session = Session::new(ServerConfig::new(settings::WINDOW as u32, index), memory)?;
        let socket = network.add(receive, send);
        let window = OwnWindow { index: BufferIndex(settings::FIRST_WINDOW + index), is_taken: false };
        Ok(Self { session, window, socket, state: State::Gone, kept: None, chosen: None })
    }

    /// Does what can be done with what has come. Whether anything was.
    pub(crate) fn serve(
        &mut self,
        now: Micros,
        exports: &Exported,
        network: &mut Network,
        node: &mut Node,
    ) -> bool {
        let socket = network.socket(self.socket);
        let is_changed = match self.state {
            State::Listening => self.arrive(now, socket),
            State::Gone => self.listen(socket, node),
            State::Open { since } => {
                if self.session.is_handshake() && since.after(settings::HANDSHAKE_MAX) <= now {
                    defmt::info!("a client was dropped: no handshake in time");
                    self.lose(now, socket, node);
                }
                false
            }
            State::Closing { until } => {
                if !self.session.has_output() {
                    socket.close();
                }
                let is_over =
                    until <= now || !socket.is_open() || matches!(socket.state(), tcp::State::TimeWait);
                if is_over {
                    self.give_up(socket, node);
                }
                is_over
            }
        };
        let mut has_worked = is_changed;
        for _ in 0..EVENTS_MAX {
            if !matches!(self.state, State::Open { .. }) {
                break;
            }
            match self.next(exports, socket, node) {
                Ok(Some(event)) => {
                    if !self.take(event, now, socket, node) {
                        break;
                    }
                }
                Ok(None) => break,
                Err(Lost) => self.lose(now, socket, node),
            }
            has_worked = true;
        }
        has_worked
    }

    fn listen(&mut self, socket: &mut tcp::Socket<'_>, node: &mut Node) -> bool {
        self.session.abandon(&mut self.window.lend(&mut node.memory));
        // Not before the last piece was replied. The last word to the old peer has left since the socket was given up.
        if self.session.in_flight() != 0 || self.session.reset().is_err() {
            return false;
        }
        if socket.listen(settings::NBD_PORT).is_ok() {
            self.state = State::Listening;
        }
        true
    }

    fn arrive(&mut self, now: Micros, socket: &tcp::Socket<'_>) -> bool {
        if socket.may_send() {
            self.state = State::Open { since: now };
        } else if !socket.is_open() {
            self.state = State::Gone;
        } else {
            return false;
        }
        true
    }

    /// The next event or piece.
    fn next(
        &mut self,
        exports: &Exported,
        socket: &mut tcp::Socket<'_>,
        node: &mut Node,
    ) -> Result<Option<ServerEvent>, Lost> {
        if let Some(request) = self.kept.take() {
            return Ok(Some(ServerEvent::Request(request)));
        }
        let (session, memory) = (&mut self.session, &mut self.window.lend(&mut node.memory));
        loop {
            if let Some(event) = session.poll_event(memory) {
                return Ok(Some(event));
            }
            // What the client says after its goodbye does not matter.
            if session.is_leaving() {
                return if socket.may_send() { Ok(None) } else { Err(Lost) };
            }
            let received = socket.recv(|bytes| {
                let taken = session.receive(bytes, exports, memory);
                (taken, taken)
            });
            match received {
                Ok(0) => return Ok(session.poll_event(memory)),
                Ok(_) => {}
                Err(_) => return Err(Lost),
            }
        }
    }

    /// Passes an event on; `false` if the machine has no place for it now.
    fn take(
        &mut self,
        event: ServerEvent,
        now: Micros,
        socket: &mut tcp::Socket<'_>,
        node: &mut Node,
    ) -> bool {
        match event {
            ServerEvent::Request(request) => return self.offer(request, now, node),
            ServerEvent::Opened { export, identity } => {
                let Some((port, name, _)) = PORTS.get(export) else { return true };
                match node.open_connection(now, *port, identity) {
                    Ok(connection) => {
                        defmt::info!("{}: client {} has connected", name, connection.0);
                        self.chosen = Some(connection);
                    }
                    Err(refused) => {
                        defmt::warn!("{}: a client was turned away: {}", name, refused);
                        self.lose(now, socket, node);
                    }
                }
            }
            ServerEvent::Closed { clean } => {
                self.leave(clean, now, node);
                self.state = State::Closing { until: now.after(settings::PATIENCE) };
            }
        }
        true
    }

    fn offer(&mut self, request: Request, now: Micros, node: &mut Node) -> bool {
        let result = match self.chosen {
            Some(connection) => node.request(now, connection, request),
            None => Err(Refused::Stale),
        };
        match result {
            Ok(()) => true,
            Err(Refused::Busy) => {
                self.kept = Some(request);
                false
            }
            Err(_) => {
                let reply = Reply { id: request.id, result: Err(Errno::Invalid) };
                self.session.handle_reply(reply, &mut self.window.lend(&mut node.memory));
                true
            }
        }
    }

    /// The machine's answer to a piece.
    pub(crate) fn reply(&mut self, reply: Reply, node: &mut Node) {
        self.session.handle_reply(reply, &mut self.window.lend(&mut node.memory));
    }

    /// Gives TCP what there is to send. Whether it took any.
    pub(crate) fn send(&mut self, network: &mut Network, node: &mut Node) -> bool {
        let socket = network.socket(self.socket);
        let memory = &mut self.window.lend(&mut node.memory);
        let mut has_sent = false;
        if !matches!(self.state, State::Open { .. } | State::Closing { .. }) {
            return false;
        }
        while let Some(segment) = self.session.segments().next() {
            let taken = match segment {
                Segment::Bytes(bytes) => socket.send_slice(bytes),
                Segment::Pool(data) => socket.send_slice(memory.bytes(data).unwrap_or_default()),
            };
            // One that takes nothing more is found out when it is read.
            let Ok(taken @ 1..) = taken else { break };
            self.session.sent(taken, memory);
            has_sent = true;
        }
        has_sent
    }

    /// The machine wants this connection closed; `false` if it is not this client's.
    pub(crate) fn close(
        &mut self,
        connection: ConnectionId,
        now: Micros,
        network: &mut Network,
        node: &mut Node,
    ) -> bool {
        let is_it = self.chosen == Some(connection);
        if is_it {
            defmt::info!("client {}: closed, as the same primary has connected anew", connection.0);
            self.lose(now, network.socket(self.socket), node);
        }
        is_it
    }

    /// The connection is of no use any more.
    fn lose(&mut self, now: Micros, socket: &mut tcp::Socket<'_>, node: &mut Node) {
        self.leave(false, now, node);
        self.give_up(socket, node);
    }

    fn give_up(&mut self, socket: &mut tcp::Socket<'_>, node: &mut Node) {
        // The machine never had it.
        if let Some(request) = self.kept.take() {
            let reply = Reply { id: request.id, result: Err(Errno::Shutdown) };
            self.session.handle_reply(reply, &mut self.window.lend(&mut node.memory));
        }
        self.session.abandon(&mut self.window.lend(&mut node.memory));
        socket.abort();
        self.state = State::Gone;
    }

    fn leave(&mut self, is_clean: bool, now: Micros, node: &mut Node) {
        if let Some(connection) = self.chosen.take() {
            defmt::info!("client {} has gone, clean: {}", connection.0, is_clean);
            node.close_connection(now, connection, is_clean);
        }
    }
}

/// The peer has gone without a word, or TCP has given it up.
struct Lost;
