//! TCP over the board's Ethernet.

use smoltcp::iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpCidr};
use twinblock_core::Micros;
use twinblock_lm3s6965::ethernet::{Controller, Counts, Ethernet};

use crate::{memory, settings};

/// Frames that are taken before others have their turn.
const FRAMES_MAX: usize = 8;

/// The interface and its sockets.
pub(crate) struct Network {
    device: Ethernet<'static>,
    interface: Interface,
    sockets: SocketSet<'static>,
}

impl Network {
    pub(crate) fn open(controller: Controller, now: Micros) -> Self {
        let mut device = controller.open(settings::HARDWARE_ADDRESS, memory::FRAMES.take());
        let config = Config::new(HardwareAddress::Ethernet(settings::HARDWARE_ADDRESS));
        let mut interface = Interface::new(config, &mut device, instant(now));
        interface.update_ip_addrs(|addresses| {
            // There is room for one.
            let _ = addresses.push(IpCidr::Ipv4(settings::ADDRESS));
        });
        // There is room for one.
        let _ = interface.routes_mut().add_default_ipv4_route(settings::GATEWAY);
        Self { device, interface, sockets: SocketSet::new(memory::SOCKETS.take().as_mut_slice()) }
    }

    /// A socket in this memory.
    pub(crate) fn add(&mut self, receive: &'static mut [u8], send: &'static mut [u8]) -> SocketHandle {
        let mut socket = Socket::new(SocketBuffer::new(receive), SocketBuffer::new(send));
        // Answers are whole when they are written: nothing is gained by waiting for more.
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.set_keep_alive(Some(Duration::from_millis(settings::KEEP_ALIVE_MS)));
        socket.set_timeout(Some(Duration::from_millis(settings::PEER_TIMEOUT_MS)));
        self.sockets.add(socket)
    }

    pub(crate) fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Takes frames and sends frames. Whether a socket may have changed.
    pub(crate) fn work(&mut self, now: Micros) -> bool {
        let Self { device, interface, sockets } = self;
        let now = instant(now);
        interface.poll_maintenance(now);
        let mut has_changed = false;
        for _ in 0..FRAMES_MAX {
            match interface.poll_ingress_single(now, device, sockets) {
                PollIngressSingleResult::None => break,
                PollIngressSingleResult::PacketProcessed => {}
                PollIngressSingleResult::SocketStateChanged => has_changed = true,
            }
        }
        matches!(interface.poll_egress(now, device, sockets), PollResult::SocketStateChanged) || has_changed
    }

    pub(crate) const fn counts(&self) -> Counts {
        self.device.counts()
    }
}

fn instant(now: Micros) -> Instant {
    Instant::from_micros(i64::try_from(now.0).unwrap_or(i64::MAX))
}
