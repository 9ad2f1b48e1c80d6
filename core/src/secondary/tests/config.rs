//! Settings that do not fit each other, the devices or the memory.

use std::{assert_eq, vec};

use crate::block::{Capabilities, Geometry};
use crate::buffer::index::{Index, Node};
use crate::order::Slot;
use crate::secondary::{Config, ConfigError, Connection, Secondary, Storage, WhenFull};
use crate::{BufferIndex, Micros};

/// Everything that is checked.
struct Settings {
    config: Config,
    disk: Geometry,
    buffer: Geometry,
    places: usize,
    nodes: usize,
}

/// What comes of making a secondary with these settings.
fn made(change: impl FnOnce(&mut Settings)) -> Option<ConfigError> {
    let capabilities = Capabilities::FLUSH | Capabilities::WRITE_ZEROES;
    let config = Config {
        granule_bytes: 1024,
        window_bytes: 1024,
        when_full: WhenFull::Stall,
        stall_max: Micros::from_ms(500),
        replication_requests: 2,
        guest_requests: 3,
        scratch_first: BufferIndex(0),
        scratch_count: 1,
    };
    let geometry = |size_bytes| Geometry { size_bytes, block_bytes: 512, capabilities };
    let mut settings = Settings {
        config,
        disk: geometry(4608),
        buffer: geometry(1024),
        places: 6,
        nodes: Index::nodes_for(1),
    };
    change(&mut settings);
    let storage = Storage {
        table: vec![Slot::FREE; settings.places].leak(),
        nodes: vec![Node::EMPTY; settings.nodes].leak(),
        connections: vec![Connection::FREE; 1].leak(),
    };
    Secondary::new(settings.config, settings.disk, settings.buffer, storage).err()
}

#[test]
fn the_granule_is_a_power_of_two_and_no_smaller_than_a_block() {
    assert_eq!(made(|_| {}), None);
    for granule in [0, 256, 768] {
        assert_eq!(made(|settings| settings.config.granule_bytes = granule), Some(ConfigError::Granule));
    }
    assert_eq!(made(|settings| settings.config.granule_bytes = 512), None);
    assert_eq!(made(|settings| settings.disk.block_bytes = 2048), Some(ConfigError::Granule));
    assert_eq!(made(|settings| settings.buffer.block_bytes = 2048), Some(ConfigError::Granule));
    assert_eq!(made(|settings| settings.disk.block_bytes = 1024), None);
}

#[test]
fn the_window_is_a_power_of_two_and_no_smaller_than_the_granule() {
    for window in [512, 1536] {
        assert_eq!(made(|settings| settings.config.window_bytes = window), Some(ConfigError::Window));
    }
    assert_eq!(made(|settings| settings.config.window_bytes = 4096), None);
}

#[test]
fn the_table_has_one_place_more_than_the_ports_are_promised() {
    assert_eq!(made(|settings| settings.places = 5), Some(ConfigError::Table));
    assert_eq!(made(|settings| settings.config.replication_requests = 0), Some(ConfigError::Table));
    assert_eq!(made(|settings| settings.config.guest_requests = 0), Some(ConfigError::Table));
    assert_eq!(made(|settings| settings.places = 65_535), None);
    assert_eq!(made(|settings| settings.places = 65_536), Some(ConfigError::Table));
}

#[test]
fn there_is_a_scratch_buffer_and_64_at_most() {
    for (count, expected) in [(0, Some(ConfigError::Scratch)), (64, None), (65, Some(ConfigError::Scratch))] {
        assert_eq!(made(|settings| settings.config.scratch_count = count), expected);
    }
}

#[test]
fn both_devices_take_modifications_and_hold_something() {
    assert_eq!(made(|settings| settings.disk.size_bytes = 0), Some(ConfigError::Disk));
    assert_eq!(made(|settings| settings.disk.size_bytes = 4700), Some(ConfigError::Disk));
    assert_eq!(
        made(|settings| settings.disk.capabilities = Capabilities::READ_ONLY),
        Some(ConfigError::Disk)
    );
    assert_eq!(made(|settings| settings.buffer.size_bytes = 1023), Some(ConfigError::Buffer));
    assert_eq!(
        made(|settings| settings.buffer.capabilities = Capabilities::READ_ONLY),
        Some(ConfigError::Buffer)
    );
    assert_eq!(made(|settings| settings.nodes = 0), Some(ConfigError::Index));
}
