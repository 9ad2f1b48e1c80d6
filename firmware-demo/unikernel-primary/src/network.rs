//! TCP over the machine's network device, to servers elsewhere.

use twinblock_boards::network::Settings;
use twinblock_core::Micros;
use twinblock_riscv_virt::network::Network as Device;

use crate::{memory, settings};

/// The interface and its sockets.
pub(crate) type Network = twinblock_boards::network::Network<Device>;

/// `seed` is a random number.
pub(crate) fn open(device: Device, seed: u64, now: Micros) -> Network {
    let settings = Settings {
        hardware_address: settings::HARDWARE_ADDRESS,
        address: settings::ADDRESS,
        gateway: settings::GATEWAY,
        seed,
        keep_alive_ms: settings::KEEP_ALIVE_MS,
        peer_timeout_ms: settings::PEER_TIMEOUT_MS,
    };
    Network::open(device, &settings, memory::SOCKETS.take(), now)
}
