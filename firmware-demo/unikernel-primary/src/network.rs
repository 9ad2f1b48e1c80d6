//! TCP over the machine's network device, to servers elsewhere.

use core::net::Ipv4Addr;

use smoltcp::iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpCidr};
use twinblock_core::Micros;
use twinblock_riscv_virt::network::{Counts, Network as Device};

use crate::{memory, settings};

/// Frames that are taken before others have their turn.
const FRAMES_MAX: usize = 16;
/// Ports of this side (RFC 6335, "Dynamic Ports").
const FIRST_PORT: u16 = 49152;

/// The interface and its sockets.
pub(crate) struct Network {
    device: Device,
    interface: Interface,
    sockets: SocketSet<'static>,
    next_port: u16,
}

impl Network {
    /// `seed` is a random number: without it a peer could guess where a connection's numbers begin, and one that this
    /// program has left behind by its end be taken for a new one.
    pub(crate) fn open(mut device: Device, seed: u64, now: Micros) -> Self {
        let mut config = Config::new(HardwareAddress::Ethernet(settings::HARDWARE_ADDRESS));
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut device, instant(now));
        interface.update_ip_addrs(|addresses| {
            // There is room for one.
            let _ = addresses.push(IpCidr::Ipv4(settings::ADDRESS));
        });
        // There is room for one.
        let _ = interface.routes_mut().add_default_ipv4_route(settings::GATEWAY);
        let sockets = SocketSet::new(memory::SOCKETS.take().as_mut_slice());
        Self { device, interface, sockets, next_port: FIRST_PORT | seed as u16 }
    }

    /// A socket in this memory.
    pub(crate) fn add(&mut self, receive: &'static mut [u8], send: &'static mut [u8]) -> SocketHandle {
        let mut socket = Socket::new(SocketBuffer::new(receive), SocketBuffer::new(send));
        // Requests are whole when they are written: nothing is gained by waiting for more.
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.set_keep_alive(Some(Duration::from_millis(settings::KEEP_ALIVE_MS)));
        socket.set_timeout(Some(Duration::from_millis(settings::PEER_TIMEOUT_MS)));
        self.sockets.add(socket)
    }

    pub(crate) fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Begins to connect; `false` if that is not possible now.
    pub(crate) fn connect(&mut self, handle: SocketHandle, to: (Ipv4Addr, u16)) -> bool {
        let port = self.next_port;
        self.next_port = port.wrapping_add(1).max(FIRST_PORT);
        self.sockets.get_mut::<Socket<'_>>(handle).connect(self.interface.context(), to, port).is_ok()
    }

    /// Takes frames and sends frames. Whether a socket may have changed.
    pub(crate) fn work(&mut self, now: Micros) -> bool {
        let Self { device, interface, sockets, .. } = self;
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

    /// When [`Self::work`] must be called at the latest.
    pub(crate) fn next_deadline(&mut self, now: Micros) -> Option<Micros> {
        let at = self.interface.poll_at(instant(now), &self.sockets)?;
        Some(Micros(u64::try_from(at.total_micros()).unwrap_or_default()))
    }

    pub(crate) fn acknowledge_interrupt(&mut self) {
        self.device.acknowledge_interrupt();
    }

    pub(crate) const fn counts(&self) -> Counts {
        self.device.counts()
    }
}

fn instant(now: Micros) -> Instant {
    Instant::from_micros(i64::try_from(now.0).unwrap_or(i64::MAX))
}
