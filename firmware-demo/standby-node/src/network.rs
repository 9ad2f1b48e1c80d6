//! TCP over the board's Ethernet.

use twinblock_boards::network::Settings;
use twinblock_core::Micros;
use twinblock_lm3s6965::ethernet::{Controller, Ethernet};

use crate::{memory, settings};

/// The interface and its sockets.
pub(crate) type Network = twinblock_boards::network::Network<Ethernet<'static>>;

pub(crate) fn open(controller: Controller, now: Micros) -> Network {
    let device = controller.open(settings::HARDWARE_ADDRESS, memory::FRAMES.take());
    let settings = Settings {
        hardware_address: settings::HARDWARE_ADDRESS,
        address: settings::ADDRESS,
        gateway: settings::GATEWAY,
        // The board has no source of entropy.
        seed: 0,
        keep_alive_ms: settings::KEEP_ALIVE_MS,
        peer_timeout_ms: settings::PEER_TIMEOUT_MS,
    };
    Network::open(device, &settings, memory::SOCKETS.take(), now)
}
