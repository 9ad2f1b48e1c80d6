//! TCP over a board's network device.

use core::fmt;
use core::net::Ipv4Addr;

use smoltcp::iface::{
    Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet, SocketStorage,
};
use smoltcp::phy::Device;
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, Ipv4Cidr};
use twinblock_core::Micros;

/// Ports of this side (RFC 6335, "Dynamic Ports").
const FIRST_PORT: u16 = 49152;

/// Who the node is on its network.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Of its Ethernet device.
    pub hardware_address: EthernetAddress,
    /// Its own, and the network's length.
    pub address: Ipv4Cidr,
    /// The way to other networks.
    pub gateway: Ipv4Addr,
    /// A random number, if there is one: without it a peer could guess where a connection's numbers begin, and one that
    /// this program has left behind by its end be taken for a new one.
    pub seed: u64,
    /// A peer that has been silent this long is asked whether it is there,
    pub keep_alive_ms: u64,
    /// and one that does not answer for this long is not.
    pub peer_timeout_ms: u64,
}

/// The interface and its sockets.
pub struct Network<D> {
    device: D,
    interface: Interface,
    sockets: SocketSet<'static>,
    keep_alive: Duration,
    peer_timeout: Duration,
    next_port: u16,
}

impl<D: fmt::Debug> fmt::Debug for Network<D> {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("Network").field("device", &self.device).finish_non_exhaustive()
    }
}

impl<D: Device> Network<D> {
    /// Opens the interface; `sockets` is room for as many as will be added.
    pub fn open(
        mut device: D,
        settings: &Settings,
        sockets: &'static mut [SocketStorage<'static>],
        now: Micros,
    ) -> Self {
        let mut config = Config::new(HardwareAddress::Ethernet(settings.hardware_address));
        config.random_seed = settings.seed;
        let mut interface = Interface::new(config, &mut device, instant(now));
        interface.update_ip_addrs(|addresses| {
            // There is room for one.
            let _ = addresses.push(IpCidr::Ipv4(settings.address));
        });
        // There is room for one.
        let _ = interface.routes_mut().add_default_ipv4_route(settings.gateway);
        Self {
            device,
            interface,
            sockets: SocketSet::new(sockets),
            keep_alive: Duration::from_millis(settings.keep_alive_ms),
            peer_timeout: Duration::from_millis(settings.peer_timeout_ms),
            next_port: FIRST_PORT | settings.seed as u16,
        }
    }

    /// A socket in this memory.
    ///
    /// # Panics
    /// If more are added than there is room for.
    pub fn add(&mut self, receive: &'static mut [u8], send: &'static mut [u8]) -> SocketHandle {
        let mut socket = Socket::new(SocketBuffer::new(receive), SocketBuffer::new(send));
        // Messages are whole when they are written: nothing is gained by waiting for more.
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.set_keep_alive(Some(self.keep_alive));
        socket.set_timeout(Some(self.peer_timeout));
        self.sockets.add(socket)
    }

    /// A socket that was added.
    pub fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Begins to connect; `false` if that is not possible now.
    pub fn connect(&mut self, handle: SocketHandle, to: (Ipv4Addr, u16)) -> bool {
        let port = self.next_port;
        self.next_port = port.wrapping_add(1).max(FIRST_PORT);
        self.sockets.get_mut::<Socket<'_>>(handle).connect(self.interface.context(), to, port).is_ok()
    }

    /// Takes up to `frames_max` frames and sends frames. Whether a socket may have changed.
    pub fn work(&mut self, now: Micros, frames_max: usize) -> bool {
        let Self { device, interface, sockets, .. } = self;
        let now = instant(now);
        interface.poll_maintenance(now);
        let mut has_changed = false;
        for _ in 0..frames_max {
            match interface.poll_ingress_single(now, device, sockets) {
                PollIngressSingleResult::None => break,
                PollIngressSingleResult::PacketProcessed => {}
                PollIngressSingleResult::SocketStateChanged => has_changed = true,
            }
        }
        matches!(interface.poll_egress(now, device, sockets), PollResult::SocketStateChanged) || has_changed
    }

    /// When [`Self::work`] must be called at the latest.
    pub fn next_deadline(&mut self, now: Micros) -> Option<Micros> {
        let at = self.interface.poll_at(instant(now), &self.sockets)?;
        Some(Micros(u64::try_from(at.total_micros()).unwrap_or_default()))
    }

    /// The device.
    pub const fn device(&self) -> &D {
        &self.device
    }

    /// The device.
    pub const fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }
}

/// Text that goes to TCP; an error if there is no room for all of it.
#[derive(Debug)]
pub struct Text<'s, 'm>(pub &'s mut Socket<'m>);

impl fmt::Write for Text<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        match self.0.send_slice(text.as_bytes()) {
            Ok(taken) if taken == text.len() => Ok(()),
            _ => Err(fmt::Error),
        }
    }
}

fn instant(now: Micros) -> Instant {
    Instant::from_micros(i64::try_from(now.0).unwrap_or(i64::MAX))
}
