//! A primary, its disk and replicas, its guest and its manager.

use std::fmt::Write;
use std::hash::{DefaultHasher, Hasher};

use twinblock_core::block::{Action, Capabilities, Completion, Geometry, Tag, Transfer};
use twinblock_core::primary::{Command, Input, Primary};
use twinblock_core::{
    CommandId, ConnectionId, Device, Errno, Extent, Memory, Micros, Notice, Op, Outcome, Output, Pool,
    Refused, Stage,
};

use super::{CONNECTIONS, REPLICAS, Settings, Step};
use crate::buffers::Buffers;
use crate::disk::{Disk, Ending, about, range};
use crate::known::Known;
use crate::requests::{Flying, Link, Wanted, is_sound, request};

pub(super) struct World<'m> {
    settings: Settings,
    machine: Primary<'m>,
    /// The disk first, then the replicas.
    legs: Vec<Disk>,
    /// Replicas that were never attached, or now belong to another: what they hold is no matter.
    is_used: [bool; REPLICAS],
    memory: Buffers,
    links: [Option<Link<()>>; 4],
    flying: Vec<Flying<()>>,
    commands: Vec<(CommandId, Command)>,
    names: u32,
    /// What was answered, where it is known.
    known: Known,
    /// A barrier was answered with success and not released.
    is_reached: bool,
}

impl<'m> World<'m> {
    pub(super) fn new(settings: Settings, machine: Primary<'m>) -> Self {
        let disk = Disk::new(settings.disk);
        Self {
            settings,
            machine,
            legs: (0..=REPLICAS).map(|_| Disk::new(settings.disk)).collect(),
            is_used: [false; REPLICAS],
            memory: Buffers::new(settings.places, settings.config.window_bytes as usize),
            links: [None; 4],
            flying: Vec::new(),
            commands: Vec::new(),
            names: 0,
            known: Known::all(disk.bytes),
            is_reached: false,
        }
    }

    fn name(&mut self) -> u32 {
        self.names += 1;
        self.names
    }

    pub(super) fn play(&mut self, step: Step) {
        match step {
            Step::Open { place, is_again } => self.open(usize::from(place), is_again),
            Step::Close { place } => self.close(usize::from(place)),
            Step::Request(wanted) => self.request(&wanted),
            Step::End { leg, which, ending } => self.end(usize::from(leg), usize::from(which), ending),
            Step::Forge { leg, entry, generation } => {
                let tag = Tag { entry, generation };
                if !self.legs.iter().any(|leg| leg.has(tag)) {
                    let completion = Completion { tag, result: Ok(Outcome::Done) };
                    let forged = Input::Completed(device(usize::from(leg)), completion);
                    assert_eq!(self.offer(forged), Err(Refused::Stale));
                }
            }
            Step::Command(command) => self.command(command),
            Step::Connect { replica, is_unfit, is_short } => self.connect(replica, is_unfit, is_short),
            Step::Disconnect { replica } => self.disconnect(replica),
            Step::Missing { replica } => {
                let result = self.offer(Input::Missing(replica));
                assert_eq!(result.is_ok(), self.is_attached(replica));
                assert!(
                    result.is_err() || self.machine.replica(replica).is_some_and(|status| status.is_behind)
                );
            }
        }
        self.poll();
    }

    fn is_attached(&self, replica: u8) -> bool {
        self.machine.replica(replica).is_some_and(|status| status.is_attached)
    }

    fn offer(&mut self, input: Input) -> Result<(), Refused> {
        let before = self.settings.is_strict.then(|| self.fingerprint());
        let result = self.machine.handle_input(Micros(0), input);
        if let (Err(refused), Some(before)) = (result, before) {
            assert_eq!(self.fingerprint(), before, "{input:?}: {refused:?}, and yet something has changed");
        }
        result
    }

    /// Of all that the machine knows.
    fn fingerprint(&self) -> u64 {
        struct Hash(DefaultHasher);
        impl Write for Hash {
            fn write_str(&mut self, text: &str) -> std::fmt::Result {
                self.0.write(text.as_bytes());
                Ok(())
            }
        }
        let mut hash = Hash(DefaultHasher::new());
        write!(hash, "{:?}", self.machine).expect("it takes everything");
        hash.0.finish()
    }

    fn open(&mut self, place: usize, is_again: bool) {
        if let Some(link) = self.links[place] {
            if is_again {
                assert_eq!(self.offer(Input::Opened(link.id)), Err(Refused::Stale));
            }
            return;
        }
        let id = ConnectionId(self.name());
        let result = self.offer(Input::Opened(id));
        assert_eq!(result.is_ok(), self.links.iter().flatten().count() < CONNECTIONS);
        if result.is_ok() {
            self.links[place] = Some(Link { id, about: (), modifications: 0, is_unfinished: false });
        }
    }

    fn close(&mut self, place: usize) {
        let link = self.links.get_mut(place).and_then(Option::take);
        let result = self.offer(Input::Closed(link.map_or(ConnectionId(u32::MAX), |link| link.id)));
        assert_eq!(result.is_ok(), link.is_some());
    }

    fn request(&mut self, wanted: &Wanted) {
        let Some(Some(link)) = self.links.get(usize::from(wanted.connection)).copied() else { return };
        let name = self.name();
        let sizes = (self.settings.disk.size_bytes, u64::from(self.settings.config.window_bytes));
        let made = request(wanted, name, sizes, link.is_unfinished, &mut self.memory);
        let Some((request, data, new)) = made else { return };
        let is_sound = is_sound(&request, sizes.0, u64::from(self.settings.config.block_bytes), sizes.1);
        match self.offer(Input::Request(link.id, request)) {
            Ok(()) => {
                assert!(is_sound, "{request:?} was taken");
                if let Some(Some(link)) = self.links.get_mut(usize::from(wanted.connection))
                    && request.op.is_modification()
                {
                    link.is_unfinished = !request.is_last;
                }
                self.flying.push(Flying { request, about: (), data, new, is_certain: true });
            }
            Err(refused) => {
                assert_eq!(refused == Refused::BadRequest, !is_sound, "{request:?}: {refused:?}");
                assert!(matches!(refused, Refused::BadRequest | Refused::Busy));
                if let Some(data) = data {
                    self.memory.release(data.buffer);
                }
            }
        }
    }

    fn end(&mut self, leg: usize, which: usize, ending: Ending) {
        let disk = &mut self.legs[leg];
        if disk.queue.is_empty() {
            return;
        }
        let which = which % disk.queue.len();
        let completion = disk.end(which, ending, &mut self.memory);
        assert_eq!(self.offer(Input::Completed(device(leg), completion)), Ok(()), "{completion:?}");
    }

    fn command(&mut self, command: Command) {
        let name = CommandId(self.name());
        let verdict = self.machine.check_command(&command);
        self.commands.push((name, command));
        let result = self.offer(Input::Command(name, command));
        assert!(
            result == verdict || result == Err(Refused::Busy),
            "{command:?}: {result:?}, not {verdict:?}"
        );
        if result.is_err() {
            self.commands.retain(|(other, _)| *other != name);
            return;
        }
        match command {
            Command::Release { .. } | Command::Stop => self.is_reached = false,
            Command::Attach { replica, is_empty, is_new } => {
                let place = usize::from(replica);
                // Another one: what it holds is what everybody held at first.
                if is_new || !self.is_used[place] {
                    let leg = &mut self.legs[place + 1];
                    leg.bytes = Disk::new(self.settings.disk).bytes;
                    leg.queue.iter_mut().for_each(|started| started.is_gone = true);
                }
                self.is_used[place] = true;
                assert!(!is_empty || self.machine.misses(replica, self.whole()));
            }
            _ => {}
        }
    }

    const fn whole(&self) -> Extent {
        Extent { offset: 0, length: self.settings.disk.size_bytes }
    }

    fn connect(&mut self, replica: u8, is_unfit: bool, is_short: bool) {
        let mut geometry = Geometry { block_bytes: 1, ..self.settings.disk };
        geometry.capabilities.set(Capabilities::READ_ONLY, is_unfit);
        geometry.size_bytes -= u64::from(is_short);
        let result = self.offer(Input::Connected(replica, geometry));
        let is_fit = self.is_attached(replica) && !is_unfit && !is_short;
        assert_eq!(result.is_ok(), is_fit, "{result:?}");
    }

    fn disconnect(&mut self, replica: u8) {
        let result = self.offer(Input::Disconnected(replica));
        assert_eq!(result.is_ok(), self.is_attached(replica));
        if let Some(leg) = self.legs.get_mut(usize::from(replica) + 1) {
            leg.queue.iter_mut().for_each(|started| started.must_fail = true);
        }
    }

    fn poll(&mut self) {
        for _ in 0..10_000 {
            let output = self.machine.poll_output();
            let Some(output) = output else {
                self.compare();
                return;
            };
            self.handle(output);
        }
        panic!("it does not come to rest");
    }

    fn handle(&mut self, output: Output) {
        match output {
            Output::Transfer(device, transfer) => self.start(device, transfer),
            Output::Fill(data) => self.memory.bytes(data).expect("it is a buffer").fill(0),
            Output::Reply(reply) => {
                let place = self.flying.iter().position(|flying| flying.request.id == reply.id);
                let flying = self.flying.remove(place.expect("a request is answered once"));
                flying.check_reply(&reply);
                let bytes = flying.data.map(|data| self.memory.bytes(data).expect("it is a buffer").to_vec());
                self.replied(&flying, reply.result, bytes.as_deref());
                if let Some(data) = flying.data {
                    self.memory.release(data.buffer);
                }
            }
            Output::Notice(Notice::Answer(name, result)) => {
                let place = self.commands.iter().position(|(other, _)| *other == name);
                let (_, command) = self.commands.remove(place.expect("a command is answered once"));
                if matches!(command, Command::Barrier { .. }) && result.is_ok() {
                    self.is_reached = true;
                }
            }
            Output::Notice(Notice::Close(_)) => panic!("a primary closes no connection"),
            Output::Notice(Notice::Event(_)) => {}
        }
    }

    fn start(&mut self, device: Device, transfer: Transfer) {
        let leg = match device {
            Device::Disk => 0,
            Device::Replica(replica) => {
                let status = self.machine.replica(replica).expect("there is such a replica");
                // What was begun and is asked again may come late.
                let is_again = matches!(transfer.action, Action::WriteZeroes { fast: false, .. });
                let is_forwarding = self.machine.stage() == Stage::Running && status.is_connected;
                assert!(is_again || is_forwarding, "{transfer:?} to a replica that takes no part");
                let is_change = about(transfer.action).1;
                assert!(!(is_change && self.is_reached), "P4: {transfer:?} after the barrier");
                usize::from(replica) + 1
            }
            Device::Buffer => panic!("a primary has no buffer"),
        };
        self.legs[leg].start(transfer);
    }

    fn replied(&mut self, flying: &Flying<()>, result: Result<Outcome, Errno>, data: Option<&[u8]>) {
        let extent = flying.request.extent;
        match (flying.request.op, result) {
            (Op::Read(_), Ok(_)) => {
                let data = data.unwrap_or_default();
                let byte = self.known.differing(data, extent.offset, |_| false);
                assert_eq!(byte, None, "P3: {:?} reads something else", flying.request);
            }
            (Op::Write { .. } | Op::WriteZeroes { .. }, Ok(_)) => {
                self.known.set(extent, &flying.new);
                self.check_marked(extent, |_| false);
            }
            // What was dropped before it began has touched nothing.
            (Op::Write { .. } | Op::WriteZeroes { .. }, Err(Errno::Shutdown)) => {}
            (Op::Write { .. } | Op::WriteZeroes { .. }, Err(_)) => self.known.forget(extent),
            _ => {}
        }
    }

    /// P1: each replica has what was answered, or it is marked.
    fn check_marked(&self, extent: Extent, is_left_out: impl Fn(u64) -> bool) {
        for replica in (0..REPLICAS).filter(|replica| self.is_used[*replica]) {
            let is_marked = |byte| self.machine.misses(replica as u8, Extent { offset: byte, length: 1 });
            let is = &self.legs[replica + 1].bytes[range(extent)];
            let missing =
                self.known.differing(is, extent.offset, |byte| is_left_out(byte) || is_marked(byte));
            assert_eq!(missing, None, "P1: replica {replica} lacks a byte that is not marked");
        }
    }

    fn compare(&self) {
        self.check_marked(self.whole(), |byte| self.flying.iter().any(|flying| flying.touches(byte)));
        for replica in 0..REPLICAS as u8 {
            let status = self.machine.replica(replica).expect("there is such a place");
            assert!(status.dirty_bytes == 0 || status.is_behind, "P2: replica {replica} is dirty");
            let in_flight = self.legs[usize::from(replica) + 1].queue.len();
            assert_eq!(usize::from(status.in_flight), in_flight, "replica {replica}");
        }
        assert_eq!(self.machine.in_flight(), self.flying.len());
    }

    /// Everything ends well, and then nothing is left.
    pub(super) fn finish(&mut self) {
        for place in 0..4 {
            self.play(Step::Close { place });
        }
        self.play(Step::Command(Command::Release { is_checkpoint: false }));
        for _ in 0..64 {
            for leg in 0..=REPLICAS {
                while !self.legs[leg].queue.is_empty() {
                    self.end(leg, 0, Ending::Done);
                    self.poll();
                }
            }
        }
        assert_eq!(self.machine.in_flight(), 0, "a request is never answered");
        assert!(self.flying.is_empty() && self.commands.is_empty(), "{:?} {:?}", self.flying, self.commands);
    }
}

const fn device(leg: usize) -> Device {
    if leg == 0 { Device::Disk } else { Device::Replica((leg - 1) as u8) }
}
