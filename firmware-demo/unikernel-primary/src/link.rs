//! The link to the replica: the core's NBD client over TCP, as a block device of the machine.
//!
//! ```text
//!          connect            TCP is up            Ready
//!   Down ───────────▶ Connecting ─────▶ Handshake ──────▶ Up
//!    ▲  after a pause     │                  │             │
//!    └────────────────────┴──────────────────┴─────────────┘  lost, late, refused
//! ```
//!
//! # Invariants
//! * L1: each transfer that was taken completes once; without a connection at once, with an error.
//! * L2: no connection is begun before everything of the last one has completed and the machine has heard of its end.

use core::net::Ipv4Addr;

use heapless::Deque;
use smoltcp::iface::SocketHandle;
use twinblock_core::block::{BlockDevice, Completion, Geometry, QueueFull, Tag, Transfer};
use twinblock_core::nbd::client::{ClientConfig, ClientError, ClientEvent, ClientMemory, Session};
use twinblock_core::nbd::{BadSetup, Segment};
use twinblock_core::{Errno, Identity, Memory, Micros};
use twinblock_virtio_blk::DmaWindows;

use crate::memory::LinkMemory;
use crate::network::Network;
use crate::settings;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Down {
        retry_at: Micros,
    },
    Connecting {
        until: Micros,
    },
    Handshake {
        until: Micros,
    },
    Up,
    /// There is no replica, or none that can be used, or it was told goodbye.
    Closed,
}

/// What has happened to the link.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LinkEvent {
    /// It is up. `is_new`: this may be another run of the replica than the last one that was reached.
    Up { geometry: Geometry, is_new: bool },
    /// It is down.
    Down,
    /// The replica does not speak as it should, or does not want this program.
    Refused(ClientError),
}

/// The link.
#[derive(Debug)]
pub(crate) struct Link {
    session: Session<'static>,
    socket: SocketHandle,
    address: Option<(Ipv4Addr, u16)>,
    state: State,
    is_leaving: bool,
    pause: Micros,
    /// Transfers that came without a connection.
    refused: Deque<Tag, { settings::TABLE }>,
    events: Deque<LinkEvent, 4>,
    /// Which run of the replica was reached last.
    run: Option<u32>,
    now: Micros,
}

impl Link {
    pub(crate) fn new(
        memory: &'static mut LinkMemory,
        address: Option<(Ipv4Addr, u16)>,
        identity: Identity,
        network: &mut Network,
    ) -> Result<Self, BadSetup> {
        let LinkMemory { transfers, output_bytes, output_entries, receive, send } = memory;
        let config =
            ClientConfig { export: settings::EXPORT, identity: Some(identity), want_allocation: false };
        let memory = ClientMemory { transfers, output_bytes, output_entries };
        let mut session = Session::new(config, memory)?;
        session.fail_all(Errno::Io);
        Ok(Self {
            session,
            socket: network.add(receive, send),
            address,
            state: if address.is_some() { State::Down { retry_at: Micros(0) } } else { State::Closed },
            is_leaving: false,
            pause: settings::RETRY_MIN,
            refused: Deque::new(),
            events: Deque::new(),
            run: None,
            now: Micros(0),
        })
    }

    /// Does all that can be done now: connects, receives, sends, gives up what takes too long. Whether anything was done.
    pub(crate) fn service(&mut self, now: Micros, network: &mut Network, memory: &mut DmaWindows) -> bool {
        self.now = now;
        let before = self.state;
        let mut has_worked = false;
        match self.state {
            State::Closed => return false,
            State::Down { retry_at } => {
                // L2.
                let is_settled =
                    self.events.is_empty() && self.refused.is_empty() && self.session.in_flight() == 0;
                if retry_at <= now && is_settled {
                    self.connect(network);
                }
                return self.state != before;
            }
            State::Connecting { until } => {
                let socket = network.socket(self.socket);
                if socket.may_send() {
                    self.state = State::Handshake { until };
                } else if !socket.is_open() {
                    self.cut(network);
                }
            }
            State::Handshake { .. } | State::Up => has_worked = self.exchange(network, memory),
        }
        if self.is_late() {
            self.cut(network);
        }
        has_worked || self.state != before
    }

    fn connect(&mut self, network: &mut Network) {
        let Some(address) = self.address else { return };
        if self.session.reset().is_ok() && network.connect(self.socket, address) {
            self.state = State::Connecting { until: self.now.after(settings::CONNECT_MAX) };
        } else {
            self.cut(network);
        }
    }

    fn is_late(&self) -> bool {
        match self.state {
            State::Connecting { until } | State::Handshake { until } => until <= self.now,
            State::Up => self
                .session
                .oldest_in_flight()
                .is_some_and(|since| since.after(settings::REQUEST_MAX) <= self.now),
            State::Down { .. } | State::Closed => false,
        }
    }

    fn exchange(&mut self, network: &mut Network, memory: &mut DmaWindows) -> bool {
        let Self { session, .. } = self;
        let socket = network.socket(self.socket);
        let mut has_worked = false;
        let is_lost = loop {
            let received = socket.recv(|bytes| {
                session.receive(bytes, memory);
                (bytes.len(), bytes.len())
            });
            match received {
                Ok(0) => break false,
                Ok(_) => has_worked = true,
                Err(_) => break true,
            }
        };
        while let Some(event) = self.session.poll_event() {
            match event {
                ClientEvent::Ready(info) => self.come_up(info.geometry(), info.run),
                ClientEvent::Failed(error) => {
                    let _ = self.events.push_back(LinkEvent::Refused(error));
                }
            }
        }
        let is_broken = self.session.is_closed() && !self.is_leaving;
        if is_lost || is_broken {
            self.cut(network);
            return true;
        }
        has_worked |= self.send(network, memory);
        if self.session.is_closed() && !self.session.has_output() {
            // The goodbye is on its way.
            network.socket(self.socket).close();
        }
        has_worked
    }

    /// Gives TCP what there is to send. Whether it took any.
    fn send(&mut self, network: &mut Network, memory: &mut DmaWindows) -> bool {
        let socket = network.socket(self.socket);
        let mut has_sent = false;
        while let Some(segment) = self.session.segments().next() {
            let taken = match segment {
                Segment::Bytes(bytes) => socket.send_slice(bytes),
                Segment::Pool(data) => socket.send_slice(memory.bytes(data).unwrap_or_default()),
            };
            // One that takes nothing more is found out when it is read.
            let Ok(taken @ 1..) = taken else { break };
            self.session.sent(taken);
            has_sent = true;
        }
        has_sent
    }

    fn come_up(&mut self, geometry: Geometry, run: Option<u32>) {
        let is_new = run.is_none() || self.run != run;
        self.run = run;
        self.state = State::Up;
        self.pause = settings::RETRY_MIN;
        let _ = self.events.push_back(LinkEvent::Up { geometry, is_new });
    }

    /// The connection is of no use any more.
    fn cut(&mut self, network: &mut Network) {
        network.socket(self.socket).abort();
        self.session.fail_all(Errno::Io);
        if self.state == State::Up {
            let _ = self.events.push_back(LinkEvent::Down);
        }
        let retry_at = self.now.after(self.pause);
        self.state = if self.is_leaving { State::Closed } else { State::Down { retry_at } };
        self.pause = Micros(self.pause.0.saturating_mul(2)).min(settings::RETRY_MAX);
    }

    /// The machine does not want what is there: it is not tried again.
    pub(crate) fn close(&mut self, network: &mut Network) {
        self.cut(network);
        self.events.clear();
        self.state = State::Closed;
    }

    /// Says goodbye once nothing is in flight, and connects no more.
    pub(crate) fn leave(&mut self) {
        if self.state == State::Up {
            self.is_leaving = true;
            self.session.disconnect();
        } else {
            self.state = State::Closed;
        }
    }

    /// Whether there is no connection and will be none: the replica has heard the goodbye and hung up, or cannot be used.
    pub(crate) fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    pub(crate) fn poll_event(&mut self) -> Option<LinkEvent> {
        self.events.pop_front()
    }

    /// How many modifications were put on the present connection.
    pub(crate) const fn modifications_sent(&self) -> u64 {
        self.session.modifications_sent()
    }

    /// When [`Self::service`] must be called at the latest.
    pub(crate) const fn next_deadline(&self) -> Option<Micros> {
        match self.state {
            State::Down { retry_at } => Some(retry_at),
            State::Connecting { until } | State::Handshake { until } => Some(until),
            State::Up | State::Closed => None,
        }
    }
}

impl BlockDevice<DmaWindows> for Link {
    /// What is there is told by [`LinkEvent::Up`].
    fn geometry(&self) -> Geometry {
        let none = Geometry { size_bytes: 0, block_bytes: 1, capabilities: Default::default() };
        self.session.info().map_or(none, |info| info.geometry())
    }

    fn submit(&mut self, transfer: Transfer, _memory: &mut DmaWindows) -> Result<(), QueueFull> {
        if self.state == State::Up {
            return self.session.submit(transfer, self.now);
        }
        self.refused.push_back(transfer.tag).map_err(|_| QueueFull)
    }

    fn poll(&mut self, _memory: &mut DmaWindows) -> Option<Completion> {
        let refused = self.refused.pop_front().map(|tag| Completion { tag, result: Err(Errno::Io) });
        refused.or_else(|| self.session.poll())
    }
}
