//! The daemon: one thread that carries bytes between sockets, machines and devices.
//!
//! | module | what is there |
//! |---|---|
//! | `nodes`, `start` | nodes come and go, and volumes with them; those of the command line at the start |
//! | `build`, `cells` | what volumes are made of, and the memory that they borrow |
//! | `clients`, `admission` | NBD servers and their clients, and who gets a place |
//! | `managers`, `jobs` | managers, and what they wait for |
//! | `execute`, `host` | what their commands do: those that every node has, those that only a daemon has |
//! | `links`, `pair` | control links to secondaries, and the checkpoint of the pair over them |
//! | `volume`, `devices` | a machine with its devices |
//! | `awake` | which volumes and clients have something to do |
//! | `edge` | by what means it waits, moves bytes and works on files |
//! | `limits`, `throttle` | what the system lets a process open; lines of the log that others can cause |
//!
//! Each turn of the loop waits, lets every socket and machine do what it can, and then sends what has gathered.

mod admission;
mod awake;
mod build;
mod cells;
mod clients;
mod devices;
mod edge;
mod execute;
mod host;
mod jobs;
mod limits;
mod links;
mod managers;
mod names;
mod nodes;
mod pair;
mod start;
mod throttle;
mod token;
mod volume;

use std::io::Read;
use std::mem;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tracing::{debug, error, info, warn};
use twinblock_core::control::{EventReport, error_name, replica_state_name};
use twinblock_core::driver::Emitted;
use twinblock_core::secondary::Port;
use twinblock_core::{Event, Extent, Identity, Micros, Notice, Op, Request, RequestId};
use twinblock_io_posix::memory::HostPool;
use twinblock_io_posix::nbd_disk::LinkEvent as DiskEvent;
use twinblock_io_posix::poller::{Poller, Ready, Registration};
use twinblock_io_posix::socket::Listener;

use crate::failure::Failure;
use crate::graph::Graph;
use crate::spec::{Backend, DaemonSpec};
use awake::Awake;
use build::Stores;
use clients::Clients;
use execute::HeldCommit;
use jobs::{Jobs, Waiting};
use links::Links;
use managers::Managers;
use names::Names;
use nodes::Nodes;
use pair::Pair;
use token::Kind;
use volume::Volume;

/// Rounds of one turn, and completions of a machine in one round: then answers are sent and sockets looked at, however
/// much is left. Fast disks can keep a commit going without a pause.
const ROUNDS_MAX: usize = 8;
const COMPLETIONS_MAX: u32 = 64;
/// Completions of a machine that takes over in one turn, which has one round then. Its commit always has more to do, and
/// its guest and its manager must not wait for it: 16 copies take less than 0.1 ms in granules of 4 KiB, and with 8 rounds
/// of 64 the first answer to a guest took 4 ms.
const TAKING_OVER_COMPLETIONS_MAX: u32 = 16;
/// How long buffers are unused before their memory is given back.
const REST: Micros = Micros::from_ms(1000);
/// How long the end may take: requests that are held or wait for a dead device do not keep a daemon alive.
const END_MAX: Micros = Micros::from_ms(10_000);
/// Requests of the daemon itself carry this in the upper half of their identifiers; no client's place has it.
const OWN_REQUESTS: u32 = (u16::MAX as u32) << 16;

/// Where the daemon stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Serving,
    /// Requests are being finished.
    Finishing {
        deadline: Micros,
    },
    /// Disks are being flushed.
    Flushing {
        deadline: Micros,
        remaining: usize,
    },
    /// Replicas are told goodbye.
    Leaving {
        deadline: Micros,
    },
}

/// A daemon with all its volumes.
struct Daemon {
    started: Instant,
    /// The time of this turn.
    now: Micros,
    life: Life,
    poller: Poller,
    pool: HostPool,
    /// By place; one that was removed leaves its place vacant.
    volumes: Awake<Volume>,
    /// How many places there can be.
    volumes_max: usize,
    graph: Graph,
    /// What waits for a server, or for requests to end.
    nodes: Nodes,
    /// Hosts that are being looked up, and commands that wait for them.
    names: Names,
    clients: Clients,
    managers: Managers,
    /// Bound when everything of the command line is served.
    control: Option<Listener>,
    jobs: Jobs,
    /// Commits that wait for those of other volumes.
    commits: Vec<HeldCommit>,
    pair: Pair,
    links: Links,
    signals: (UnixStream, Registration),
    identity: Identity,
    replica_timeout: Micros,
    peer_timeout: Duration,
    ready: Vec<Ready>,
    /// What does the I/O.
    backend: Backend,
    /// When memory is given back the next time, if there is some to give.
    rest_at: Micros,
    /// A volume has done something since its memory was given back.
    has_worn: bool,
    /// A client or a manager was answered in this turn.
    has_answered: bool,
    /// A manager's message, and room for its names without escapes.
    message: (Vec<u8>, Vec<u8>),
    /// Dropped last: disks give their work to its helpers.
    stores: Stores,
}

/// Runs a daemon until a signal or a manager ends it.
///
/// # Errors
/// It could not be started, or could not end cleanly.
pub(crate) fn run(spec: &DaemonSpec) -> Result<(), Failure> {
    let mut daemon = Daemon::start(spec)?;
    let result = daemon.serve();
    info!("ended");
    result
}

impl Daemon {
    fn serve(&mut self) -> Result<(), Failure> {
        loop {
            let has_more = self.turn();
            if mem::take(&mut self.has_answered) && has_more && self.is_taking_over() {
                // The commit leaves its processor to nobody for milliseconds, and whoever was answered may have to run on it.
                thread::yield_now();
            }
            if self.has_ended() {
                // The last answers may not have been handed to the system.
                let _ = self.poller.wait(Some(Duration::ZERO));
                return Ok(());
            }
            let timeout = self.next_deadline().map(|due| Duration::from_micros(due.since(self.now).0));
            let timeout = if has_more { Some(Duration::ZERO) } else { timeout };
            if let Err(error) = self.poller.wait(timeout) {
                return Err(Failure::Refused(format!("waiting for sockets: {error}")));
            }
            self.now = Micros(self.started.elapsed().as_micros() as u64);
            self.poller.take_back(&mut self.pool);
            self.ready.clear();
            self.ready.extend(self.poller.ready());
            for place in 0..self.ready.len() {
                self.dispatch(self.ready[place]);
            }
        }
    }

    fn dispatch(&mut self, ready: Ready) {
        let Some((kind, index)) = token::split(ready.token) else { return };
        match kind {
            Kind::Listener => self.clients.accept(index, self.now, &mut self.pool, &mut self.poller),
            Kind::Client => self.clients.on_ready(index, ready),
            Kind::ControlListener => {
                if let Some(control) = &self.control {
                    self.managers.accept(control, self.now, &mut self.poller);
                }
            }
            Kind::Manager => {
                self.managers.on_ready(index, ready, self.now, &mut self.poller);
                self.execute_all(index);
            }
            Kind::Link => self.links.on_ready(index, ready, self.now, &mut self.poller),
            Kind::NbdDisk => self.link_ready(index, ready),
            Kind::Signal => self.on_signal(),
        }
    }

    /// Lets everything do what it can, up to a bound, then sends. Whether there may be more to do.
    fn turn(&mut self) -> bool {
        self.volumes.wake_due(self.now);
        self.clients.wake_due(self.now);
        self.links.tick(self.now, &mut self.poller);
        self.tick_pair();
        self.tick_attaching();
        self.tick_nodes();
        self.tick_names();
        self.rest();
        let mut has_worked = true;
        for _ in 0..ROUNDS_MAX {
            has_worked = self.service_nbd_disks();
            has_worked |= self.clients.serve(self.now, &mut self.volumes, &mut self.pool);
            let mut next = self.volumes.awake_from(0);
            while let Some(volume) = next {
                has_worked |= self.pump(volume);
                // What was submitted without anything else coming of it has not left yet.
                has_worked |= self.volumes[volume].nbd_disks().any(|(_, disk)| disk.has_unsent());
                next = self.volumes.awake_from(volume + 1);
            }
            has_worked |= self.coordinate();
            has_worked |= self.live_on();
            if !has_worked {
                has_worked = self.clients.finish(self.now, &mut self.pool, &mut self.poller);
            }
            if !has_worked || self.is_taking_over() {
                break;
            }
        }
        if has_worked {
            self.clients.finish(self.now, &mut self.pool, &mut self.poller);
        }
        has_worked |= self.finish_removals();
        if !has_worked {
            self.settle_volumes();
            self.clients.settle();
        }
        self.managers.flush(self.control.as_ref(), self.now, &mut self.poller);
        self.links.flush(self.now, &mut self.poller);
        has_worked
    }

    /// Whether a volume copies its buffer to its disk; one that does is awake.
    fn is_taking_over(&self) -> bool {
        let mut next = self.volumes.awake_from(0);
        while let Some(volume) = next {
            if self.volumes[volume].is_taking_over() {
                return true;
            }
            next = self.volumes.awake_from(volume + 1);
        }
        false
    }

    /// Puts the volumes to sleep of which nothing can come before somebody touches them or their time has come. Each has
    /// just been found to have nothing to do.
    fn settle_volumes(&mut self) {
        let mut next = self.volumes.awake_from(0);
        while let Some(volume) = next {
            let this = &mut self.volumes[volume];
            let (sleeps, due) = (this.in_flight() == 0 && !this.is_sending(), this.next_deadline());
            self.volumes.settle(volume, sleeps, due);
            next = self.volumes.awake_from(volume + 1);
        }
    }

    /// What was registered for a link is ready.
    fn link_ready(&mut self, index: usize, ready: Ready) {
        if let Some((volume, replica)) = self.stores.owner(index) {
            let volume = self.volumes.get_mut(volume);
            if let Some((_, disk)) =
                volume.and_then(|volume| volume.nbd_disks().find(|(which, _)| *which == replica))
            {
                disk.ready(ready);
            }
        } else if let Some(disk) = self.stores.spare_mut(ready.token) {
            disk.ready(ready);
        } else {
            self.nodes.ready(ready);
        }
    }

    /// Runs a machine, up to a bound. Whether it had anything to do.
    fn pump(&mut self, volume: usize) -> bool {
        let mut has_worked = false;
        let is_taking_over = self.volumes[volume].is_taking_over();
        let budget_max = if is_taking_over { TAKING_OVER_COMPLETIONS_MAX } else { COMPLETIONS_MAX };
        let mut budget = budget_max;
        while let Some(emitted) = self.volumes[volume].poll(self.now, &mut self.pool, &mut budget) {
            has_worked = true;
            match emitted {
                Emitted::Reply(reply) if reply.id.0 >= OWN_REQUESTS => {
                    self.flushed(volume, reply.result.is_ok());
                }
                Emitted::Reply(reply) => {
                    self.has_answered = true;
                    self.clients.reply(reply, &mut self.pool);
                }
                Emitted::Notice(Notice::Close(connection)) => {
                    self.clients.close(connection, self.now, &mut self.volumes, &mut self.pool);
                }
                Emitted::Notice(Notice::Answer(command, result)) => {
                    self.has_answered = true;
                    match self.jobs.answered(command) {
                        Waiting::Job { job, volume } => self.answered(job, volume, result),
                        Waiting::Barrier { volume } => self.barrier_answered(volume, result),
                        Waiting::Pair { .. } | Waiting::Nobody => {}
                    }
                }
                Emitted::Notice(Notice::Event(event)) => self.tell(volume, event),
            }
        }
        if has_worked || budget != budget_max {
            self.volumes[volume].is_rested = false;
            self.has_worn = true;
        }
        has_worked || budget == 0
    }

    /// Gives the memory of buffers back that a load has left behind.
    fn rest(&mut self) {
        if self.rest_at > self.now {
            return;
        }
        self.rest_at = self.now.after(REST);
        self.pool.rest();
        self.has_worn = false;
        for place in 0..self.volumes.len() {
            let volume = &self.volumes[place];
            if volume.is_rested {
                continue;
            }
            if volume.in_flight() != 0 {
                self.has_worn = true;
                continue;
            }
            self.pool.rest_reserved(volume.scratch.clone());
            self.volumes[place].is_rested = true;
        }
    }

    fn has_to_rest(&self) -> bool {
        self.has_worn || self.pool.is_occupied()
    }

    /// Passes an event on to managers, the log, and the checkpoint of the pair.
    fn tell(&mut self, volume: usize, event: Event) {
        let this = &self.volumes[volume];
        let replica = match event {
            Event::Replica(index, _) => this.replicas.get(usize::from(index)).and_then(Option::as_ref),
            _ => None,
        };
        let name = replica.map_or("", |replica| replica.name.as_str());
        match event {
            Event::Stage(stage) => info!(volume = this.name, stage = stage.name(), "stage"),
            Event::Error(kind) => warn!(volume = this.name, kind = error_name(kind), "error"),
            Event::Replica(_, state) => {
                info!(volume = this.name, replica = name, state = replica_state_name(state), "replica");
            }
            other => debug!(volume = this.name, event = ?other, "event"),
        }
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at = Micros(at.as_micros() as u64);
        let export = match event {
            Event::BufferThreeQuarters | Event::BufferFull => {
                let named = this.claim_holder().and_then(|connection| self.clients.export_of(connection));
                named.filter(|export| *export != this.name).unwrap_or_default()
            }
            _ => "",
        };
        self.managers.tell(&EventReport { volume: &this.name, event, replica: name, export, at });
        if let Event::Replica(_, state) = event
            && let Some(member) = replica.and_then(|replica| replica.member)
        {
            self.pair.replica_changed(self.now, member, state);
        }
    }

    /// Lets links to replicas and NBD disks work. Whether something has happened that machines must hear of.
    fn service_nbd_disks(&mut self) -> bool {
        let mut has_worked = false;
        self.stores.service(self.now, &mut self.pool, &mut self.poller);
        let mut next = self.volumes.awake_from(0);
        while let Some(volume) = next {
            let mut told: heapless::Vec<(Option<u8>, DiskEvent), 16> = heapless::Vec::new();
            for (which, disk) in self.volumes[volume].nbd_disks() {
                disk.service(self.now, &mut self.pool, &mut self.poller);
                while let Some(event) = disk.poll_event() {
                    let _ = told.push((which, event));
                }
            }
            has_worked |= !told.is_empty();
            for (which, event) in told {
                self.link_changed(volume, which, event);
            }
            next = self.volumes.awake_from(volume + 1);
        }
        has_worked
    }

    fn next_deadline(&self) -> Option<Micros> {
        let life = match self.life {
            Life::Serving => None,
            Life::Finishing { deadline } | Life::Flushing { deadline, .. } | Life::Leaving { deadline } => {
                Some(deadline)
            }
        };
        let others = [
            self.volumes.next_due(),
            self.stores.next_deadline(),
            self.nodes.next_deadline(),
            self.names.next_deadline(),
            self.clients.next_deadline(),
            self.managers.next_deadline(),
            self.links.next_deadline(),
            self.pair.next_deadline(),
            self.has_to_rest().then_some(self.rest_at),
            life,
        ];
        others.into_iter().flatten().min()
    }

    fn on_signal(&mut self) {
        let mut bytes = [0; 16];
        let _ = self.signals.0.read(&mut bytes);
        if self.life == Life::Serving {
            info!("ending: requests are finished and disks flushed");
            self.end();
        } else {
            warn!("asked twice to end: ending at once");
            self.life = Life::Leaving { deadline: self.now };
        }
    }

    /// Begins to end.
    fn end(&mut self) {
        if self.life == Life::Serving {
            self.clients.stop(&mut self.poller);
            self.life = Life::Finishing { deadline: self.now.after(END_MAX) };
        }
    }

    /// Takes the next step of the end. Whether it was one.
    fn live_on(&mut self) -> bool {
        if self.life == Life::Serving {
            return false;
        }
        let volumes_quiet = self.volumes.iter().all(|volume| volume.in_flight() == 0);
        match self.life {
            Life::Finishing { deadline } if volumes_quiet || deadline <= self.now => {
                if !volumes_quiet {
                    warn!("some requests could not be finished in time");
                }
                let places = 0..self.volumes.len();
                let volumes: Vec<usize> = places.filter(|place| !self.volumes[*place].is_vacant()).collect();
                self.life = Life::Flushing { deadline: self.now.after(END_MAX), remaining: volumes.len() };
                for volume in volumes {
                    self.flush_disk(volume);
                }
                true
            }
            Life::Flushing { remaining, deadline } if remaining == 0 || deadline <= self.now => {
                if remaining != 0 {
                    error!("some disks could not be flushed in time");
                }
                self.life = Life::Leaving { deadline: self.now.after(END_MAX) };
                for volume in 0..self.volumes.len() {
                    self.volumes[volume].nbd_disks().for_each(|(_, disk)| disk.close());
                }
                true
            }
            _ => false,
        }
    }

    fn has_ended(&mut self) -> bool {
        let Life::Leaving { deadline } = self.life else { return false };
        let mut volumes = 0..self.volumes.len();
        let has_left =
            volumes.all(|volume| self.volumes[volume].nbd_disks().all(|(_, disk)| disk.is_closed()));
        deadline <= self.now || has_left
    }

    /// Asks a volume to flush, as a client of its own.
    fn flush_disk(&mut self, volume: usize) {
        let connection = self.clients.new_connection();
        let flush = Request::whole(RequestId(OWN_REQUESTS | volume as u32), Op::Flush, Extent::default());
        let this = &mut self.volumes[volume];
        let offered = this
            .open(self.now, connection, Port::Replication, None)
            .and_then(|()| this.request(self.now, connection, flush));
        if offered.is_err() {
            self.flushed(volume, false);
        }
    }

    fn flushed(&mut self, volume: usize, is_done: bool) {
        if !is_done {
            error!(volume = self.volumes[volume].name, "the disk could not be flushed");
        }
        if let Life::Flushing { deadline, remaining } = self.life {
            self.life = Life::Flushing { deadline, remaining: remaining.saturating_sub(1) };
        }
    }
}
