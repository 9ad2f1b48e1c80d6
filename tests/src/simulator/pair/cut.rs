//! Cut at every request: fixed scripts, and the primary dies at each of their requests and at each of their steps.

use fastrand::Rng;
use twinblock_core::secondary;
use twinblock_core::{Extent, Op, Stage};

use super::client::NO_DATA;
use super::script::ask;
use super::settings::Settings;
use super::world::{Place, World, with_world};
use crate::simulator::trace;

/// A thing that a script does.
#[derive(Clone, Copy, Debug)]
pub enum Deed {
    /// A guest of the primary writes: which one, where, how much.
    Write(usize, u64, u64),
    /// A guest of the primary writes zeroes.
    Zero(usize, u64, u64),
    /// A guest of the primary discards.
    Trim(usize, u64, u64),
    /// A guest of the primary reads.
    Read(usize, u64, u64),
    /// A guest of the primary flushes.
    Flush(usize),
    /// The guest of the secondary writes.
    GuestWrite(u64, u64),
    /// The guest of the secondary writes zeroes.
    GuestZero(u64, u64),
    /// The guest of the secondary reads.
    GuestRead(u64, u64),
    /// The guest of the secondary flushes.
    GuestFlush,
    /// A checkpoint of the pair begins.
    Checkpoint,
    /// The same because the buffer is full.
    UrgentCheckpoint,
    /// A manager drains the guest and takes the checkpoint on each side.
    ManagersCheckpoint,
    /// Everything that can end by itself does.
    Settle,
}

/// A script with its name.
#[derive(Clone, Copy, Debug)]
pub struct Script {
    /// For messages.
    pub name: &'static str,
    /// Slots of the buffer.
    pub slots: u64,
    /// What is done.
    pub deeds: &'static [Deed],
}

/// How the secondary takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takeover {
    /// From the last checkpoint and the guest's own writes.
    Failover,
    /// From the disk as it is.
    Stop,
}

/// When the primary dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fuel {
    /// When its guests have asked for this many things.
    Requests(u64),
    /// When this many steps were made.
    Steps(u64),
}

/// One run: which order things happen in, when the primary dies, who takes over how.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Decides the order.
    pub seed: u64,
    /// How far the primary comes.
    pub fuel: Fuel,
    /// What follows.
    pub takeover: Takeover,
}

/// What a run has seen.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// The script was over before the fuel was.
    pub is_through: bool,
    /// Requests of the primary's guests.
    pub requests: u64,
    /// Writes that were answered to them.
    pub acknowledged: u64,
    /// Checkpoints of the secondary, the start included.
    pub epochs: u64,
    /// Most writes that were held at a time.
    pub held_max: u16,
}

/// Runs a script until the primary dies, and lets the secondary take over.
///
/// # Panics
/// If a byte is not what it should be.
pub fn run(script: &Script, run: Run, is_traced: bool) -> Seen {
    let settings = Settings { slots: script.slots, ..Settings::plain(1) };
    with_world(settings, Rng::with_seed(run.seed), is_traced, |world| {
        let mut player = Player { world, run, requests: 0, held_max: 0 };
        player.world.open_guest(0);
        player.world.open_guest(0);
        player.world.start_all();
        player.world.open_secondary_guest(ONLY);
        player.world.step = 1;
        // Up to its end a run is the same as one with less fuel, which was compared.
        player.world.is_checking = matches!(run.fuel, Fuel::Requests(u64::MAX));
        let is_through = script.deeds.iter().all(|deed| player.perform(*deed)) && player.settle();
        let seen = Seen {
            is_through,
            requests: player.requests,
            acknowledged: player.world.volumes[0].active.acknowledged,
            epochs: player.world.standby(ONLY).machine().epoch(),
            held_max: player.held_max,
        };
        assert_eq!(player.world.volumes[0].active.failures, 0, "the guest is disturbed");
        match run.takeover {
            Takeover::Failover => player.world.promote(),
            Takeover::Stop => player.world.take_disk(),
        }
        assert_eq!(player.world.standby(ONLY).guest_failures, 0, "the secondary's guest is disturbed");
        seen
    })
}

/// Runs a script with more and more fuel until it gets through, by requests in the order of each seed and by steps in those
/// of the first three, and both takeovers each time. Returns how often the primary died.
///
/// # Panics
/// If a run fails; the message says which.
pub fn at_every(script: &Script, seeds: u64) -> u64 {
    let mut deaths = 0;
    for seed in 0..seeds {
        for fuel_of in [Fuel::Requests as fn(u64) -> Fuel, Fuel::Steps] {
            if seed > 2 && fuel_of(0) == Fuel::Steps(0) {
                continue;
            }
            for count in 0.. {
                let mut is_through = true;
                for takeover in [Takeover::Failover, Takeover::Stop] {
                    let run = Run { seed, fuel: fuel_of(count), takeover };
                    is_through &= watched(script, run).is_through;
                    deaths += 1;
                }
                if is_through {
                    break;
                }
            }
        }
    }
    deaths
}

/// Runs once; a failure is run again with its steps printed.
///
/// # Panics
/// If the run fails.
pub fn watched(script: &Script, which: Run) -> Seen {
    let quiet = || run(script, which, false);
    if let Ok(seen) = std::panic::catch_unwind(quiet) {
        return seen;
    }
    trace::clear();
    let again = std::panic::catch_unwind(|| run(script, which, true));
    for line in trace::take() {
        eprintln!("  {line}");
    }
    let text = match which.fuel {
        Fuel::Requests(count) => format!("requests:{count}"),
        Fuel::Steps(count) => format!("steps:{count}"),
    };
    let takeover = if which.takeover == Takeover::Failover { "failover" } else { "stop" };
    panic!(
        "{} fails{}; replay: TWINBLOCK_CUT='{}/{}/{text}/{takeover}' cargo test -p twinblock-tests --test cut -- \
         --nocapture",
        script.name,
        if again.is_err() { " twice" } else { " once" },
        script.name,
        which.seed
    );
}

/// The run that `TWINBLOCK_CUT` names: script, seed, fuel and takeover.
#[must_use]
pub fn wanted(text: &str) -> Option<(&str, Run)> {
    let mut parts = text.split('/');
    let (name, seed) = (parts.next()?, parts.next()?.parse().ok()?);
    let (kind, count) = parts.next()?.split_once(':')?;
    let count = count.parse().ok()?;
    let fuel = if kind == "steps" { Fuel::Steps(count) } else { Fuel::Requests(count) };
    let takeover = if parts.next()? == "stop" { Takeover::Stop } else { Takeover::Failover };
    Some((name, Run { seed, fuel, takeover }))
}

/// The only replica.
const ONLY: Place = Place { volume: 0, replica: 0 };

struct Player<'w, 'm> {
    world: &'w mut World<'m>,
    run: Run,
    requests: u64,
    held_max: u16,
}

impl Player<'_, '_> {
    fn is_out_of_fuel(&self) -> bool {
        match self.run.fuel {
            Fuel::Requests(count) => self.requests >= count,
            Fuel::Steps(count) => self.world.step > count,
        }
    }

    /// One step, while there is fuel. Whether there was anything to do.
    fn step(&mut self) -> bool {
        if matches!(self.run.fuel, Fuel::Steps(_)) && self.is_out_of_fuel() {
            return false;
        }
        if let Fuel::Steps(count) = self.run.fuel {
            self.world.is_checking = self.world.step >= count;
        }
        let has_worked = self.world.advance(false);
        self.held_max = self.held_max.max(self.world.standby(ONLY).machine().held());
        has_worked
    }

    /// Whether the primary still lives.
    fn settle(&mut self) -> bool {
        for _ in 0..5_000 {
            if !self.step() {
                return match self.run.fuel {
                    Fuel::Requests(_) => true,
                    Fuel::Steps(_) => !self.is_out_of_fuel(),
                };
            }
        }
        panic!("no end");
    }

    /// Whether the primary still lives.
    fn perform(&mut self, deed: Deed) -> bool {
        let zero = |may_unmap| Op::WriteZeroes { may_unmap, fast: false, fua: false };
        let write = Op::Write { data: NO_DATA, fua: false };
        let extent = |offset, length| Extent { offset, length };
        let is_alive = match deed {
            Deed::Write(client, at, length) => self.ask(client, write, extent(at, length)),
            Deed::Zero(client, at, length) => self.ask(client, zero(false), extent(at, length)),
            Deed::Trim(client, at, length) => self.ask(client, zero(true), extent(at, length)),
            Deed::Read(client, at, length) => self.ask(client, Op::Read(NO_DATA), extent(at, length)),
            Deed::Flush(client) => self.ask(client, Op::Flush, Extent::default()),
            Deed::GuestWrite(at, length) => self.world.guest_asks(write, extent(at, length)),
            Deed::GuestZero(at, length) => self.world.guest_asks(zero(true), extent(at, length)),
            Deed::GuestRead(at, length) => self.world.guest_asks(Op::Read(NO_DATA), extent(at, length)),
            Deed::GuestFlush => self.world.guest_asks(Op::Flush, Extent::default()),
            Deed::Checkpoint | Deed::UrgentCheckpoint => {
                while self.world.control.is_busy() && self.step() {}
                self.world.begin_checkpoint(matches!(deed, Deed::UrgentCheckpoint));
                true
            }
            Deed::ManagersCheckpoint => self.settle() && self.managers_checkpoint(),
            Deed::Settle => self.settle(),
        };
        if !is_alive {
            return false;
        }
        let steps = self.world.rng.u32(..12);
        (0..steps).for_each(|_| {
            self.step();
        });
        !matches!(self.run.fuel, Fuel::Steps(_)) || !self.is_out_of_fuel()
    }

    fn ask(&mut self, client: usize, op: Op, extent: Extent) -> bool {
        if matches!(self.run.fuel, Fuel::Requests(_)) && self.is_out_of_fuel() {
            return false;
        }
        self.requests += 1;
        ask(&mut self.world.volumes[0].active.clients, client, op, extent, &mut self.world.rng);
        true
    }

    /// Nothing is in flight: the disk is what the guest counts on, and becomes the view.
    fn managers_checkpoint(&mut self) -> bool {
        let checkpoint = secondary::Command::Checkpoint { force: false };
        self.world.manage(ONLY, checkpoint).expect("nothing is missing");
        let is_alive = self.settle();
        let standby = &self.world.standby(ONLY);
        if standby.answers.last().is_some_and(|(_, result)| result.is_ok())
            && self.world.volumes[0].active.is_idle()
        {
            let wrong = self.world.volumes[0].active.model.first_wrong(0, standby.disk.value(), |_, _| false);
            assert_eq!(wrong, None, "a checkpoint without something that was answered");
        }
        is_alive
    }
}

impl World<'_> {
    fn guest_asks(&mut self, op: Op, extent: Extent) -> bool {
        let clients = &mut self.volumes[0].standbys[0].clients;
        let guest = clients.open.iter().position(|client| !client.is_replication).expect("it is there");
        ask(clients, guest, op, extent, &mut self.rng);
        true
    }

    /// The primary dies; the guest goes on from the last checkpoint and its own writes.
    fn promote(&mut self) {
        self.kill_primary();
        self.wait_a_little();
        let stop = secondary::Command::Stop { failover: true, force: false };
        self.manage(ONLY, stop).expect("the view is whole");
        for round in 0..self.rng.u32(..12) {
            if round % 2 == 0 {
                self.ask_secondary();
            }
            self.advance(true);
        }
        self.run_until_idle();
        self.check_done(ONLY);
    }

    /// The primary dies; the disk holds every write that was answered to its guest.
    fn take_disk(&mut self) {
        self.kill_primary();
        self.wait_a_little();
        let stop = secondary::Command::Stop { failover: false, force: false };
        self.manage(ONLY, stop).expect("nothing is missing");
        self.run_until_idle();
        assert_eq!(self.standby(ONLY).machine().stage(), Stage::Done);
        self.check_done(ONLY);
        let excuse = |at: usize, byte: u8| self.volumes[0].active.clients.explain(false, at, byte);
        let taken = self.standby(ONLY).taken.as_ref().expect("it was stopped");
        let wrong = self.volumes[0].active.model.first_wrong(0, taken, excuse);
        assert_eq!(wrong, None, "a write that was answered to the primary's guest is lost");
    }
}
