//! The connection of an NBD disk: made, used, lost and made again.

use std::io;

use twinblock_core::block::{Capabilities, Geometry};
use twinblock_core::nbd::client::{ClientError, ClientEvent};
use twinblock_core::{Errno, Micros};

use super::{LinkEvent, LinkRefusal, Mode, NbdDisk, RECEIVE_BYTES};
use crate::memory::HostPool;
use crate::poller::{Interest, Poller, Ready};
use crate::socket::{Connecting, Stream};
use crate::wire::{Received, Wire};

/// Payloads from this length on are received into their buffers; for shorter ones a copy costs less than a call.
const DIRECT_BYTES: u32 = 8 << 10;
/// How often one disk receives in one turn of the loop, so that the others have theirs.
const RECEIVES_MAX: usize = 32;

/// Where the connection stands.
#[derive(Debug)]
pub(super) enum Link {
    Closed,
    Down { retry_at: Micros },
    Connecting { wire: Wire, deadline: Micros },
    Handshake { wire: Wire, deadline: Micros },
    Up(Wire),
    Leaving { wire: Wire, deadline: Micros },
}

impl Link {
    const fn wire(&mut self) -> Option<&mut Wire> {
        match self {
            Self::Closed | Self::Down { .. } => None,
            Self::Connecting { wire, .. }
            | Self::Handshake { wire, .. }
            | Self::Up(wire)
            | Self::Leaving { wire, .. } => Some(wire),
        }
    }

    pub(super) const fn ready(&mut self, ready: Ready) {
        if let Some(wire) = self.wire() {
            wire.ready(ready);
        }
    }

    pub(super) fn deregister(&mut self, poller: &mut Poller) {
        if let Some(wire) = self.wire() {
            wire.detach(poller);
        }
    }

    pub(super) const fn is_writable(&self) -> bool {
        match self {
            Self::Handshake { wire, .. } | Self::Up(wire) | Self::Leaving { wire, .. } => wire.is_writable(),
            Self::Closed | Self::Down { .. } | Self::Connecting { .. } => false,
        }
    }

    pub(super) const fn is_sending(&self) -> bool {
        match self {
            Self::Handshake { wire, .. } | Self::Up(wire) | Self::Leaving { wire, .. } => wire.has_away(),
            Self::Closed | Self::Down { .. } | Self::Connecting { .. } => false,
        }
    }

    pub(super) const fn is_leaving(&self) -> bool {
        matches!(self, Self::Leaving { .. })
    }

    /// A connection that is up is left in order; any other state is left at once, by [`NbdDisk::service`] if there is a
    /// socket.
    pub(super) fn leave(&mut self, deadline: Micros) {
        *self = match std::mem::replace(self, Self::Closed) {
            Self::Closed | Self::Down { .. } => Self::Closed,
            Self::Up(wire) => Self::Leaving { wire, deadline },
            Self::Connecting { wire, .. } | Self::Handshake { wire, .. } => {
                Self::Leaving { wire, deadline: Micros(0) }
            }
            leaving @ Self::Leaving { .. } => leaving,
        };
    }
}

impl NbdDisk {
    /// Does all that can be done now: connects, receives, sends, gives up what takes too long.
    pub fn service(&mut self, now: Micros, memory: &mut HostPool, poller: &mut Poller) {
        self.now = Micros(now.0.max(self.now.0));
        if self.give_up_at().is_some_and(|at| at <= self.now) {
            if let Some(peer) = &mut self.peer {
                peer.gave_up = true;
            }
            self.fail_waiting();
        }
        match &mut self.link {
            Link::Closed => return,
            // L2.
            Link::Down { retry_at }
                if *retry_at <= self.now && self.events.is_empty() && self.done.is_empty() =>
            {
                self.begin();
            }
            Link::Down { .. } => return,
            Link::Connecting { wire, .. } if wire.is_writable() => self.finish_connecting(poller),
            _ => {}
        }
        if let Err(reason) = self.exchange(memory) {
            self.cut(&reason, poller);
        } else if self.is_late() {
            self.cut_late(poller);
        }
        self.register(poller);
    }

    /// When [`NbdDisk::service`] must be called at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Micros> {
        let link = match &self.link {
            Link::Closed => None,
            Link::Down { retry_at } => Some(*retry_at),
            Link::Connecting { deadline, .. }
            | Link::Handshake { deadline, .. }
            | Link::Leaving { deadline, .. } => Some(*deadline),
            Link::Up(_) => self.check_at,
        };
        let give_up = self.give_up_at().filter(|_| self.table.has_waiting());
        link.into_iter().chain(give_up).min()
    }

    fn begin(&mut self) {
        let Some(peer) = &mut self.peer else { return };
        let deadline = self.now.after(peer.options.connect_timeout);
        if self.buffer.is_empty() {
            // The system may still have that of the last connection.
            self.buffer = vec![0; RECEIVE_BYTES].into_boxed_slice();
        }
        let connecting = match self.session.reset_for(peer.config) {
            Ok(()) => Stream::connect(&mut peer.target, peer.options.peer_timeout),
            Err(_) => Err(io::ErrorKind::ResourceBusy.into()),
        };
        match connecting {
            Ok(Connecting::Connected(stream)) => {
                self.link = Link::Handshake { wire: Wire::client(stream, true), deadline };
            }
            Ok(Connecting::Pending(stream)) => {
                self.link = Link::Connecting { wire: Wire::client(stream, false), deadline };
            }
            Err(error) => self.pause(&error),
        }
    }

    /// Down until the pause is over; the next one is twice as long.
    fn pause(&mut self, reason: &dyn std::fmt::Display) {
        self.session.fail_all(Errno::Io);
        let Some(peer) = &mut self.peer else { return };
        tracing::debug!(server = peer.name, %reason, "not connected");
        self.link = Link::Down { retry_at: self.now.after(peer.pause) };
        peer.pause = Micros(peer.pause.0.saturating_mul(2).min(peer.options.pause_max.0));
    }

    fn finish_connecting(&mut self, poller: &mut Poller) {
        let Link::Connecting { wire, deadline } = std::mem::replace(&mut self.link, Link::Closed) else {
            return;
        };
        let result = wire.finish_connect();
        self.link = Link::Handshake { wire, deadline };
        if let Err(error) = result {
            self.cut(&error.to_string(), poller);
        }
    }

    /// Receives and sends. `Err`: the connection cannot be used any more, and why.
    fn exchange(&mut self, memory: &mut HostPool) -> Result<(), String> {
        if !matches!(self.link, Link::Handshake { .. } | Link::Up(_) | Link::Leaving { .. }) {
            return Ok(());
        }
        self.receive(memory)?;
        while let Some(event) = self.session.poll_event() {
            match event {
                ClientEvent::Ready(info) => self.come_up(info.geometry(), info.run)?,
                ClientEvent::Failed(error) => {
                    // For logs: one line.
                    let text = self.session.error_text().replace(char::is_control, " ");
                    let refusal = LinkRefusal::Server(error, text);
                    let reason = refusal.to_string();
                    // An error on a connection that was up is like any loss of it, unless the server is broken.
                    if matches!(self.link, Link::Handshake { .. }) || error == ClientError::UnknownBuffer {
                        self.refuse(refusal);
                    }
                    return Err(reason);
                }
            }
        }
        self.send(memory)?;
        let is_over = self.link.is_leaving()
            && self.session.is_closed()
            && !self.session.has_output()
            && !self.link.wire().is_some_and(|wire| wire.is_sending());
        if is_over { Err("closed".into()) } else { Ok(()) }
    }

    fn receive(&mut self, memory: &mut HostPool) -> Result<(), String> {
        for _ in 0..RECEIVES_MAX {
            let Some(wire) = self.link.wire().filter(|wire| wire.is_readable()) else { return Ok(()) };
            let direct = self.session.receive_into().filter(|data| data.length >= DIRECT_BYTES);
            match wire.receive(direct, &mut self.buffer, memory).map_err(|error| error.to_string())? {
                None => return Ok(()),
                Some(Received::Own(0) | Received::Pool(0)) => {
                    return Err("the server has closed the connection".into());
                }
                Some(Received::Own(count)) => {
                    self.session.receive(self.buffer.get(..count).unwrap_or_default(), memory);
                }
                Some(Received::Pool(count)) => {
                    self.session.received_into(u32::try_from(count).unwrap_or(u32::MAX));
                }
            }
        }
        Ok(())
    }

    fn send(&mut self, memory: &mut HostPool) -> Result<(), String> {
        let Some(wire) = self.link.wire() else { return Ok(()) };
        wire.settle(memory).map_err(|error| error.to_string())?;
        while wire.is_writable() && self.session.has_output() {
            match wire.send(self.session.segments(), memory) {
                Ok(Some(count)) => self.session.sent(count),
                Ok(None) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    }

    /// Sends what was submitted since the disk was polled last, all of it together. That the connection has failed is
    /// found out by [`NbdDisk::service`], which meets the same error.
    pub(super) fn send_now(&mut self, memory: &mut HostPool) {
        if self.is_up() && self.has_unsent() {
            let _ = self.send(memory);
        }
    }

    fn come_up(&mut self, geometry: Geometry, run: Option<u32>) -> Result<(), String> {
        let Some(peer) = &mut self.peer else { return Ok(()) };
        let first = *peer.first.get_or_insert(geometry);
        let is_read_only = |geometry: Geometry| geometry.capabilities.contains(Capabilities::READ_ONLY);
        let refusal = if geometry.size_bytes != first.size_bytes {
            let (first_bytes, now_bytes) = (first.size_bytes, geometry.size_bytes);
            Some(LinkRefusal::SizeDiffers { first_bytes, now_bytes })
        } else if geometry.block_bytes > first.block_bytes || is_read_only(geometry) && !is_read_only(first) {
            Some(LinkRefusal::LessCapable)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            let reason = refusal.to_string();
            self.refuse(refusal);
            return Err(reason);
        }
        (peer.refused, peer.gave_up, peer.pause) = (None, false, peer.options.pause_min);
        peer.may_be_new |= run.is_none() || peer.run != run;
        peer.run = run;
        tracing::info!(server = peer.name, size_bytes = geometry.size_bytes, "connected");
        self.link = match std::mem::replace(&mut self.link, Link::Closed) {
            Link::Handshake { wire, .. } => Link::Up(wire),
            other => other,
        };
        self.check_at = None;
        self.events.push_back(LinkEvent::Connected(geometry));
        self.push_waiting();
        Ok(())
    }

    fn refuse(&mut self, refusal: LinkRefusal) {
        let Some(peer) = &mut self.peer else { return };
        if peer.refused.as_ref() != Some(&refusal) {
            tracing::warn!(server = peer.name, reason = %refusal, "the server cannot be used");
            peer.refused = Some(refusal.clone());
            self.events.push_back(LinkEvent::Refused(refusal));
        }
    }

    /// Whether something takes too long. What is with the server is looked through at most once in each time-out.
    fn is_late(&mut self) -> bool {
        match &self.link {
            Link::Closed | Link::Down { .. } => false,
            Link::Connecting { deadline, .. }
            | Link::Handshake { deadline, .. }
            | Link::Leaving { deadline, .. } => *deadline <= self.now,
            Link::Up(_) if self.check_at.is_some_and(|at| at <= self.now) => {
                let timeout = self.request_timeout();
                self.check_at = self.table.oldest_sent().map(|since| since.after(timeout));
                self.check_at.is_some_and(|at| at <= self.now)
            }
            Link::Up(_) => false,
        }
    }

    fn cut_late(&mut self, poller: &mut Poller) {
        let reason = if self.is_up() { "a request was not answered in time" } else { "no answer in time" };
        // Whether the server will still do what is with it is not known: it is not asked again.
        self.fail_sent();
        self.cut(reason, poller);
    }

    /// What the server has answered completes with that; what it has not, with an error.
    fn fail_sent(&mut self) {
        self.settle_answered();
        self.session.fail_all(Errno::Io);
        self.settle_answered();
    }

    fn settle_answered(&mut self) {
        while let Some(completion) = self.session.poll() {
            self.complete(completion.tag.entry, completion);
        }
    }

    /// The connection is gone.
    fn cut(&mut self, reason: &str, poller: &mut Poller) {
        self.settle_answered();
        let sends_again = self.may_send_again();
        if sends_again {
            self.table.wait_again();
        }
        self.session.fail_all(Errno::Io);
        while let Some(completion) = self.session.poll() {
            if !sends_again {
                self.complete(completion.tag.entry, completion);
            }
        }
        self.check_at = None;
        self.link.deregister(poller);
        let (was_up, is_leaving) = (self.is_up(), self.link.is_leaving());
        self.link = Link::Closed;
        let Some(peer) = &mut self.peer else { return };
        if was_up {
            tracing::warn!(server = peer.name, reason, "connection lost");
            peer.down_since = self.now;
            self.events.push_back(LinkEvent::Disconnected);
        }
        let is_final =
            matches!(peer.refused, Some(LinkRefusal::SizeDiffers { .. } | LinkRefusal::LessCapable));
        if is_final || is_leaving {
            self.fail_waiting();
        } else {
            self.pause(&reason);
        }
    }

    fn may_send_again(&self) -> bool {
        let is_disk = self.peer.as_ref().is_some_and(|peer| matches!(peer.options.mode, Mode::Disk { .. }));
        is_disk && self.is_up()
    }

    fn register(&mut self, poller: &mut Poller) {
        let is_connecting = matches!(self.link, Link::Connecting { .. });
        let has_output = self.session.has_output();
        let token = self.token;
        let Some(wire) = self.link.wire() else { return };
        let interest = if is_connecting {
            Interest::WRITE
        } else {
            Interest { read: true, write: has_output && !wire.is_writable() }
        };
        if !wire.attend(interest, is_connecting, token, poller) {
            self.cut("there is no place left in the poll set", poller);
        }
    }
}
