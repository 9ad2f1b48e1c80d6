//! Both machines under their drivers, the coordinator, and what they are made of.

use twinblock_core::bitmap::Bitmap;
use twinblock_core::buffer::index::{Index, Place};
use twinblock_core::driver::{Driver, Machine, PrimaryDevices, SecondaryDevices};
use twinblock_core::node::{self, Coordinator, Managed, MemberIndex, NodeIndex, Operation, VolumeIndex};
use twinblock_core::primary::{self, Primary};
use twinblock_core::secondary::{self, Secondary, WhenFull};
use twinblock_core::{BufferIndex, CommandId, ConnectionId, Extent, Micros, Windows};

use crate::devices::{AnyDevice, any_geometry};
use crate::{any, lent, see};

/// What is asked of any machine, in any state.
fn ask(machine: &impl Managed) {
    see(machine.check(any(Operation::Start { primary: false })));
    see(machine.is_behind());
    see(machine.trouble());
    see(node::check_all([machine], any(Operation::Start { primary: false })));
}

/// A driver's life, from any state of it.
macro_rules! drive {
    ($driver:expr, $input:expr, $memory:expr) => {
        let mut driver = $driver;
        see(any(&mut driver).offer(any(Micros(0)), any($input)));
        see(any(&mut driver).poll_timeout());
        see(any(&mut driver).poll_within(any(Micros(0)), any(&mut $memory), any(&mut 0)));
        see(any(&mut driver).machine_mut().handle_completion(
            any(Micros(0)),
            any(twinblock_core::Device::Disk),
            crate::devices::any_completion(),
        ));
        Machine::handle_timeout(any(&mut driver).machine_mut(), any(Micros(0)));
        ask(any(&driver).machine());
    };
}

/// A primary with replicas, and its driver.
pub(crate) fn primary() {
    let config = any(primary::Config { window_bytes: 0, dirty_granule_bytes: 0, block_bytes: 0 });
    let storage = primary::Storage {
        table: lent(),
        connections: lent(),
        written: lent(),
        lost: lent(),
        replicas: lent(),
    };
    let Ok(mut machine) = Primary::new(config, any_geometry(), storage) else { return };
    let devices = PrimaryDevices::new(AnyDevice, lent::<AnyDevice>());
    see(any(&mut machine).replica(any(0)));
    see(any(&mut machine).misses(any(0), any(Extent { offset: 0, length: 0 })));
    see(any(&mut machine).is_alone());
    let mut memory = Windows::new(lent(), any(0));
    drive!(Driver::new(machine, devices), primary::Input::Opened(ConnectionId(0)), memory);
}

/// A secondary, its buffer and its driver.
pub(crate) fn secondary() {
    let config = any(secondary::Config {
        granule_bytes: 0,
        window_bytes: 0,
        when_full: WhenFull::Stall,
        stall_max: Micros(0),
        replication_requests: 0,
        guest_requests: 0,
        scratch_first: BufferIndex(0),
        scratch_count: 0,
    });
    let storage = secondary::Storage { table: lent(), nodes: lent(), connections: lent() };
    let Ok(mut machine) = Secondary::new(config, any_geometry(), any_geometry(), storage) else { return };
    see(any(&mut machine).claim_holder());
    see(any(&mut machine).buffer().used_bytes());
    let commit = secondary::Command::Checkpoint { force: false };
    see(node::check_commits([(&*any(&mut machine), any(commit))]));
    let mut memory = Windows::new(lent(), any(0));
    let devices = SecondaryDevices { disk: AnyDevice, buffer: AnyDevice };
    let input = secondary::Input::Closed { connection: ConnectionId(0), is_clean: false };
    drive!(Driver::new(machine, devices), input, memory);
}

/// The checkpoint of a pair.
pub(crate) fn coordinator() {
    let mut coordinator = Coordinator::new(lent(), lent(), any(Micros(0)));
    let coordinator = any(&mut coordinator);
    see(coordinator.add_member(any(VolumeIndex(0)), any(NodeIndex(0))));
    see(coordinator.enrol(any(VolumeIndex(0)), any(false)));
    coordinator.forget_epoch(any(MemberIndex(0)));
    let input = node::Input::Begin { command: CommandId(0), is_urgent: false };
    see(any(&mut *coordinator).handle_input(any(Micros(0)), any(input)));
    see(any(&mut *coordinator).poll_timeout());
    any(&mut *coordinator).handle_timeout(any(Micros(0)));
    see(any(&mut *coordinator).poll_output());
    any(&mut *coordinator).remove_member(any(MemberIndex(0)));
}

/// A bitmap by itself, as embedders use it.
pub(crate) fn bitmap() {
    let Some(mut one) = Bitmap::new(lent(), any(0)) else { return };
    let Some(other) = Bitmap::new(lent(), any(0)) else { return };
    see(any(&mut one).set_range(any(0), any(0)));
    see(any(&mut one).clear_range(any(0), any(0)));
    see(any(&mut one).union_with(any(&other)));
    see(any(&one).is_any_set(any(0), any(0)));
    see(any(&one).is_all_set(any(0), any(0)));
    see(any(&one).next_set(any(0), any(0)));
    any(&mut one).set_all();
    any(&mut one).clear_all();
}

/// The index of a buffer by itself.
pub(crate) fn index() {
    let mut index = Index::new(lent());
    see(any(&mut index).set(any(0), any(0), any(Place::Absent)));
    see(any(&index).lookup(any(0), any(0)));
    see(any(&index).next_present(any(0)));
    any(&mut index).clear();
}
