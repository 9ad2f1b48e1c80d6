//! A unikernel that mirrors its disk to a replica while it works on it.
//!
//! The machine is QEMU's RISC-V `virt`. The program has a workload of its own ([`store`]) on a virtio disk, and the core's
//! primary between the two: each write goes to the disk and, by NBD over TCP, to a replica on another machine, of which
//! checkpoints are taken by its control socket, as the daemon does it. There is no allocator, no operating system and no
//! thread: [`memory`] holds all that is lent to the core and to TCP, and the loop below gives each its turn and sleeps when
//! there is nothing to do. What the program has to say goes to the UART, one line each.
//!
//! What is replicated, what a lost replica means and when a checkpoint is one is decided by the core alone.
#![no_std]
#![no_main]

mod control;
mod link;
mod memory;
mod network;
mod pair;
mod record;
mod settings;
mod store;
mod volume;

use core::fmt::Write as _;

use twinblock_core::driver::Emitted;
use twinblock_core::primary::{Command, Input};
use twinblock_core::{CommandId, Identity, Micros, Notice, Refused, ReplicaState, Stage};
use twinblock_riscv_virt::console::Console;
use twinblock_riscv_virt::devices::Devices;
use twinblock_riscv_virt::{clock, network as board, power, settings as given, stack};
use twinblock_virtio_blk::VirtioBlk;
use virtio_drivers::transport::DeviceType;

use control::Control;
use link::{Link, LinkEvent};
use network::Network;
use pair::Pair;
use settings::Given;
use store::{Counts, Store};
use volume::Volume;

/// How long the last bytes to the replica may take.
const FAREWELL: Micros = Micros::from_ms(1000);

#[riscv_rt::entry]
fn main() -> ! {
    stack::guard_stack();
    let now = Micros(clock::now());
    match Program::build(now) {
        Ok(program) => program.run(),
        Err(reason) => {
            let _ = writeln!(Console::open(), "cannot begin: {reason}");
            power::off(1)
        }
    }
}

/// What the program is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The end of the records is looked for.
    Scanning,
    /// The replica is waited for, until then.
    Waiting(Micros),
    Working,
    /// All records that were wanted are durable; the replica is told goodbye, until then.
    Leaving(Micros),
}

/// What was told last.
#[derive(Clone, Copy, Debug, Default)]
struct Reported {
    at: Micros,
    counts: Counts,
    stack_bytes: usize,
}

/// Everything that takes turns.
pub(crate) struct Program {
    phase: Phase,
    volume: Volume,
    network: Network,
    control: Control,
    pair: Pair,
    store: Store,
    replica: Option<ReplicaState>,
    reported: Reported,
}

impl Program {
    /// The program in its static; a call of its own, so that what is moved about meanwhile is not on the stack afterwards.
    #[inline(never)]
    fn build(now: Micros) -> Result<&'static mut Self, &'static str> {
        let given = given::read(memory::GIVEN.take()).unwrap_or_default();
        let given = Given::parse(given).map_err(|_| "a word of the settings is not understood")?;
        let mut devices = Devices::take().ok_or("the devices are taken")?;
        let mut random = [0; 24];
        if !devices.random(&mut random) {
            return Err("there is no source of entropy (-device virtio-rng-device)");
        }
        let (identity, seed) = random.split_first_chunk().ok_or("too little entropy")?;
        let identity = Identity(*identity);
        let seed = seed.try_into().map(u64::from_le_bytes).map_err(|_| "too little entropy")?;
        let disk = devices.next(DeviceType::Block).ok_or("there is no disk (-device virtio-blk-device)")?;
        let disk = VirtioBlk::new(disk, memory::PLACES.take()).map_err(|_| "the disk does not work")?;
        let nic =
            devices.next(DeviceType::Network).ok_or("there is no network (-device virtio-net-device)")?;
        let nic = board::Network::open(nic, memory::FRAMES.take()).ok_or("the network does not work")?;
        let mut network = network::open(nic, seed, now);
        let link = Link::new(memory::LINK.take(), given.replica, identity, &mut network)
            .map_err(|_| "the link has too little memory")?;
        let control = Control::new(memory::CONTROL.take(), given.control, &mut network);
        let volume = Volume::open(disk, link, given.replica.is_some(), now)?;
        let pair =
            Pair::new(identity, given.checkpoint_every).map_err(|_| "there is no room for a replica")?;
        let store = Store::new(memory::MADE.take(), memory::READ.take(), given.rate, given.records);
        Ok(memory::PROGRAM.init(Self {
            phase: Phase::Scanning,
            volume,
            network,
            control,
            pair,
            store,
            replica: None,
            reported: Reported::default(),
        }))
    }

    fn run(&mut self) -> ! {
        loop {
            let now = Micros(clock::now());
            if self.turn(now) {
                continue;
            }
            let until = self.next_deadline(now);
            let Self { volume, network, .. } = self;
            clock::sleep_until(until.0, || {
                volume.acknowledge_interrupt();
                network.device_mut().acknowledge_interrupt();
            });
        }
    }

    fn next_deadline(&mut self, now: Micros) -> Micros {
        let phase = match self.phase {
            Phase::Waiting(until) | Phase::Leaving(until) => Some(until),
            Phase::Scanning | Phase::Working => None,
        };
        let report = Some(self.reported.at.after(settings::REPORT_EVERY));
        let of_pair = if self.phase == Phase::Working { self.pair.next_deadline() } else { None };
        let deadlines = [
            phase,
            report,
            of_pair,
            self.store.next_deadline(),
            self.volume.link().next_deadline(),
            self.control.next_deadline(),
            self.network.next_deadline(now),
        ];
        deadlines.into_iter().flatten().min().unwrap_or(now)
    }

    /// Gives everybody one turn. Whether anything was done: then there may be more.
    fn turn(&mut self, now: Micros) -> bool {
        let mut has_worked = self.network.work(now, settings::FRAMES_MAX);
        has_worked |= self.volume.service_link(now, &mut self.network);
        while let Some(event) = self.volume.link().poll_event() {
            self.link_changed(event, now);
            has_worked = true;
        }
        has_worked |= self.control.service(now, &mut self.network);
        let Self { pair, volume, control, network, store, .. } = self;
        has_worked |= pair.work(now, store.counts().acknowledged, volume, control, network);
        has_worked |= self.go_on(now);
        while let Some(emitted) = self.volume.work(now) {
            self.pass_on(emitted, now);
            has_worked = true;
        }
        has_worked |= self.volume.service_link(now, &mut self.network);
        self.report(now);
        has_worked
    }

    /// Lets the workload work, if it is time for that.
    fn go_on(&mut self, now: Micros) -> bool {
        match self.phase {
            Phase::Scanning => {
                if !self.store.scan(now, &mut self.volume) {
                    return false;
                }
                self.store.start(now);
                let (found, end) = (self.store.counts().acknowledged, self.store.end());
                let size = self.volume.size_bytes();
                say(format_args!("store: {found} records found, which end at {end} of {size} bytes"));
                self.phase = Phase::Waiting(now.after(settings::START_PATIENCE));
            }
            Phase::Waiting(until) => {
                let replica = self.volume.replica();
                let is_there = replica.is_none_or(|(state, _)| state != ReplicaState::Disconnected);
                if !is_there && !self.volume.link().is_closed() && now < until {
                    return false;
                }
                let start = Command::Start { primary: true };
                if let Err(refused) = self.volume.command(now, CommandId(0), start) {
                    say(format_args!("not started: {refused:?}"));
                }
                self.store.start(now);
                self.phase = Phase::Working;
            }
            Phase::Working if self.store.is_over() => {
                self.volume.link().leave();
                self.phase = Phase::Leaving(now.after(FAREWELL));
            }
            Phase::Working => return self.store.work(now, &mut self.volume),
            Phase::Leaving(until) => {
                if until <= now || self.volume.link().is_closed() {
                    self.reported.at = Micros(0);
                    self.report(now);
                    power::off(0)
                }
                return false;
            }
        }
        true
    }

    fn link_changed(&mut self, event: LinkEvent, now: Micros) {
        let offered = match event {
            LinkEvent::Down => self.volume.offer(now, Input::Disconnected(0)),
            LinkEvent::Refused(error) => {
                say(format_args!("replica: refuses: {error:?}"));
                Ok(())
            }
            LinkEvent::Up { geometry, is_new } => {
                // At the first time there is nothing that could be lost.
                let restarted = if is_new { self.volume.offer(now, Input::Restarted(0)) } else { Ok(()) };
                restarted.and_then(|()| self.volume.offer(now, Input::Connected(0, geometry)))
            }
        };
        if let Err(refused) = offered {
            say(format_args!("replica: cannot be used: {refused:?}"));
            if matches!(refused, Refused::SizeDiffers { .. } | Refused::Unsuitable) {
                self.volume.link().close(&mut self.network);
            }
        }
    }

    fn pass_on(&mut self, emitted: Emitted, now: Micros) {
        match emitted {
            Emitted::Reply(reply) => self.store.answered(reply, now, &mut self.volume),
            Emitted::Notice(Notice::Answer(command, result)) => self.pair.answered(command, result, now),
            Emitted::Notice(Notice::Event(event)) => say(format_args!("event: {event:?}")),
            Emitted::Notice(Notice::Close(_)) => {}
        }
    }

    /// Tells how things stand, if that has changed.
    fn report(&mut self, now: Micros) {
        let replica = self.volume.replica();
        if replica.map(|(state, _)| state) != self.replica {
            self.replica = replica.map(|(state, _)| state);
            let dirty_bytes = replica.map_or(0, |(_, dirty_bytes)| dirty_bytes);
            say(format_args!("replica: state={:?} misses={dirty_bytes}", self.replica));
        }
        if now < self.reported.at.after(settings::REPORT_EVERY) {
            return;
        }
        self.reported.at = now;
        let counts = self.store.counts();
        let is_new = counts.acknowledged != self.reported.counts.acknowledged
            || counts.durable != self.reported.counts.durable
            || counts.read != self.reported.counts.read
            || counts.failed != self.reported.counts.failed;
        if is_new && self.volume.machine().stage() != Stage::None {
            let Counts { acknowledged, durable, read, failed } = counts;
            let (requests, frames) = (self.volume.requests, self.network.device().counts());
            let misses = replica.map_or(0, |(_, dirty_bytes)| dirty_bytes);
            self.reported.counts = counts;
            say(format_args!(
                "records: acknowledged={acknowledged} durable={durable} read={read} failed={failed} \
                 requests={requests} frames-in={} frames-out={} misses={misses} checkpoints={}",
                frames.received, frames.sent, self.pair.taken,
            ));
        }
        let stack = stack::stack_use();
        if stack.used_bytes > self.reported.stack_bytes {
            self.reported.stack_bytes = stack.used_bytes;
            say(format_args!("stack: {} of {} bytes", stack.used_bytes, stack.total_bytes));
        }
    }
}

/// One line for whoever listens.
fn say(text: core::fmt::Arguments<'_>) {
    let _ = writeln!(Console::open(), "{text}");
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    power::panic(info)
}
