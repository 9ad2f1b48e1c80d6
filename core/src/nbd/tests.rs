//! Both sessions, wired together.

use std::vec::Vec;

use super::client::{ClientConfig, ClientEvent, ClientMemory, Session, TransferSlot};
use super::output::OutputEntry;
use super::server::{Export, ServerConfig, ServerEvent};
use super::testing::{Buffers, Chance, Server, Sizes, leak, take};
use super::wire::TransmissionFlags;
use crate::block::{Action, Capabilities, Completion, Tag, Transfer};
use crate::{BufferIndex, Data, Errno, Extent, Identity, Memory, Micros, Outcome, Pool};

const DISK: usize = 64 << 10;

struct Pair {
    server: Server,
    client: Session<'static>,
    memory: Buffers,
    /// Bytes on their way.
    to_server: Vec<u8>,
    to_client: Vec<u8>,
    /// How much moves at a time.
    step: usize,
}

impl Pair {
    fn new(server: Server, config: ClientConfig<'static>, step: usize) -> Self {
        let memory = ClientMemory {
            transfers: leak(TransferSlot::EMPTY, 8),
            output_bytes: leak(0, 300),
            output_entries: leak(OutputEntry::EMPTY, 6),
        };
        let client = Session::new(config, memory).unwrap();
        let mut memory = Buffers::new(8, DISK);
        for _ in 0..8 {
            memory.acquire(1);
        }
        Self { server, client, memory, to_server: Vec::new(), to_client: Vec::new(), step }
    }

    fn plain(server: Server, step: usize) -> Self {
        Self::new(server, ClientConfig { export: "disk", identity: None, want_allocation: true }, step)
    }

    /// Moves some bytes in each direction; tells whether anything happened.
    fn turn(&mut self, step: usize) -> bool {
        let out = take(self.client.segments(), step, &mut self.memory);
        self.client.sent(out.len());
        self.to_server.extend_from_slice(&out);
        let taken = self.server.receive(&self.to_server[..self.to_server.len().min(step)]);
        self.to_server.drain(..taken);
        let back = self.server.send(step);
        self.to_client.extend_from_slice(&back);
        let now = self.to_client.len().min(step);
        let direct = self.client.receive_into().filter(|_| step.is_multiple_of(2) && now != 0);
        let received = if let Some(data) = direct {
            let count = data.length.min(now as u32);
            let place = self.memory.bytes(data.part(0, count)).unwrap();
            place.copy_from_slice(&self.to_client[..count as usize]);
            self.client.received_into(count);
            count as usize
        } else {
            self.client.receive(&self.to_client[..now], &mut self.memory);
            now
        };
        self.to_client.drain(..received);
        !out.is_empty() || taken != 0 || !back.is_empty() || received != 0
    }

    fn settle(&mut self) {
        while self.turn(self.step) {}
    }

    fn open(&mut self) -> super::client::ServerInfo {
        self.settle();
        match self.client.poll_event() {
            Some(ClientEvent::Ready(info)) => info,
            other => panic!("not ready: {other:?}, {}", self.client.error_text()),
        }
    }

    fn run(&mut self, action: Action, extent: Extent) -> Result<Outcome, Errno> {
        self.client.submit(Transfer { tag: Tag::default(), action, extent }, Micros(1)).unwrap();
        for _ in 0..1_000_000 {
            if let Some(Completion { result, .. }) = self.client.poll() {
                return result;
            }
            self.turn(self.step);
        }
        panic!("{action:?} at {extent:?} never ends; client {:?}", self.client.error());
    }

    fn fill(&mut self, buffer: u16, length: usize, value: impl Fn(usize) -> u8) -> Data {
        let data = Data { buffer: BufferIndex(buffer), offset: 0, length: length as u32 };
        for (at, byte) in self.memory.bytes(data).unwrap().iter_mut().enumerate() {
            *byte = value(at);
        }
        data
    }
}

fn export() -> Export<'static> {
    Export::new("disk", DISK as u64)
}

fn extent(offset: u64, length: u64) -> Extent {
    Extent { offset, length }
}

#[test]
fn what_is_written_is_read_back_whatever_the_fragments() {
    for sizes in [Sizes::SMALL, Sizes::LARGE] {
        for step in [1, 2, 3, 17, 64, 1000, 100_000] {
            let mut pair = Pair::plain(Server::new(sizes, export()), step);
            let info = pair.open();
            assert_eq!(info.size_bytes, DISK as u64);
            assert!(info.is_structured && info.has_allocation);
            let data = pair.fill(0, 5000, |at| (at * 3) as u8);
            let place = extent(777, 5000);
            assert_eq!(pair.run(Action::Write { data, fua: true }, place), Ok(Outcome::Done));
            let back = pair.fill(1, 5000, |_| 0);
            assert_eq!(pair.run(Action::Read(back), place), Ok(Outcome::Done));
            let written = pair.memory.bytes(data).unwrap().to_vec();
            assert_eq!(pair.memory.bytes(back).unwrap(), written, "step {step}");
            let zeroes = Action::WriteZeroes { may_unmap: false, fast: true, fua: true };
            assert_eq!(pair.run(zeroes, extent(1000, 3000)), Ok(Outcome::Done));
            assert!(pair.server.ram.disk[1000..4000].iter().all(|byte| *byte == 0));
            assert_eq!(pair.run(Action::Flush, Extent::default()), Ok(Outcome::Done));
            let hole = pair.run(Action::Status, extent(1000, 20_000));
            assert_eq!(hole, Ok(Outcome::Status { is_hole: true, length: 3000 }));
            assert_eq!(pair.client.modifications_sent(), 2);
            pair.client.disconnect();
            pair.settle();
            assert_eq!(pair.server.events.last(), Some(&ServerEvent::Closed { clean: true }));
            pair.server.assert_idle();
        }
    }
}

#[test]
fn a_primary_is_known_by_its_identity() {
    let identity = Some(Identity([0x3c; 16]));
    let config = ClientConfig { export: "disk", identity, want_allocation: false };
    let mut pair = Pair::new(Server::new(Sizes::SMALL, export()), config, 100);
    assert!(!pair.open().has_allocation);
    assert_eq!(pair.server.events, [ServerEvent::Opened { export: 0, identity }]);
}

#[test]
fn an_error_of_the_machine_arrives_as_what_it_is() {
    for errno in [
        Errno::NotPermitted,
        Errno::Io,
        Errno::NoMemory,
        Errno::Invalid,
        Errno::NoSpace,
        Errno::Overflow,
        Errno::Unsupported,
        Errno::Shutdown,
    ] {
        let mut pair = Pair::plain(Server::new(Sizes::SMALL, export()), 1000);
        pair.open();
        pair.server.ram.bad = Some((2000, errno));
        let data = pair.fill(0, 5000, |_| 1);
        for action in [
            Action::Read(data),
            Action::Write { data, fua: false },
            Action::WriteZeroes { may_unmap: true, fast: false, fua: false },
        ] {
            assert_eq!(pair.run(action, extent(0, 5000)), Err(errno), "{action:?}");
        }
        assert_eq!(pair.run(Action::Flush, Extent::default()), Ok(Outcome::Done));
    }
}

#[test]
fn a_server_that_lacks_things_is_helped_out() {
    let all = TransmissionFlags::all();
    for flags in
        [TransmissionFlags::empty(), TransmissionFlags::SEND_FLUSH, all - TransmissionFlags::READ_ONLY]
    {
        let export = Export { flags, payload_max: 700, ..export() };
        let mut pair = Pair::plain(Server::new(Sizes::SMALL, export), 1000);
        let info = pair.open();
        let can_zero = info.geometry().capabilities.contains(Capabilities::WRITE_ZEROES);
        assert_eq!(can_zero, flags.contains(TransmissionFlags::SEND_WRITE_ZEROES));
        let data = pair.fill(0, 5000, |at| at as u8);
        assert_eq!(pair.run(Action::Write { data, fua: true }, extent(9, 5000)), Ok(Outcome::Done));
        let zeroes = Action::WriteZeroes { may_unmap: true, fast: false, fua: true };
        assert_eq!(pair.run(zeroes, extent(1009, 2000)), Ok(Outcome::Done));
        assert_eq!(pair.run(Action::Flush, Extent::default()), Ok(Outcome::Done));
        let mut expected: Vec<u8> = (0..5000).map(|at| at as u8).collect();
        expected[1000..3000].fill(0);
        assert_eq!(pair.server.ram.disk[9..5009], expected);
    }
}

/// Random transfers at a time in regions of their own, the machine answering in any order, any fragments.
#[test]
fn both_sessions_keep_a_disk_right_whatever_the_order() {
    for seed in 0..150 {
        let mut chance = Chance(seed);
        let sizes = if seed % 2 == 0 { Sizes::SMALL } else { Sizes::LARGE };
        let payload_max = if seed % 3 == 0 { 1000 } else { 1 << 20 };
        let mut pair = Pair::plain(Server::new(sizes, Export { payload_max, ..export() }), 4096);
        pair.open();
        pair.server.is_holding = true;
        let mut model = pair.server.ram.disk.clone();
        let mut busy: [Option<(Action, Extent)>; 8] = [None; 8];
        let (mut started, mut ended, mut modified) = (0, 0, 0);
        for _ in 0..200_000 {
            let slot = chance.below(8) as usize;
            if busy[slot].is_none() && started < 120 {
                let length = 1 + chance.below(4000);
                let place = extent(slot as u64 * 8192 + chance.below(4000), length);
                let value = chance.below(256) as u8;
                let data = pair.fill(slot as u16, length as usize, |_| value);
                let range = place.offset as usize..place.end() as usize;
                let action = match chance.below(4) {
                    0 => Action::Read(data),
                    1 => Action::Flush,
                    2 => {
                        model[range].fill(0);
                        modified += 1;
                        Action::WriteZeroes { may_unmap: true, fast: true, fua: false }
                    }
                    _ => {
                        model[range].fill(value);
                        modified += if payload_max == 1000 { length.div_ceil(1000) } else { 1 };
                        Action::Write { data, fua: chance.below(2) == 0 }
                    }
                };
                let place = if action == Action::Flush { Extent::default() } else { place };
                let tag = Tag { entry: slot as u16, generation: 0 };
                pair.client.submit(Transfer { tag, action, extent: place }, Micros(1)).unwrap();
                busy[slot] = Some((action, place));
                started += 1;
            }
            let step = 1 + chance.below(3000) as usize;
            pair.turn(step);
            if !pair.server.held.is_empty() && chance.below(2) == 0 {
                pair.server.answer(chance.below(pair.server.held.len() as u64) as usize);
            }
            while let Some(Completion { tag, result }) = pair.client.poll() {
                assert_eq!(result, Ok(Outcome::Done), "seed {seed}");
                let (action, place) = busy[usize::from(tag.entry)].take().unwrap();
                ended += 1;
                if let Action::Read(data) = action {
                    let range = place.offset as usize..place.end() as usize;
                    assert!(*pair.memory.bytes(data).unwrap() == model[range], "seed {seed}");
                }
            }
            if ended == 120 {
                break;
            }
        }
        assert_eq!((ended, pair.client.error()), (120, None), "seed {seed}");
        assert!(pair.server.ram.disk == model, "seed {seed}");
        assert_eq!(pair.client.modifications_sent(), modified);
        assert_eq!(pair.client.oldest_in_flight(), None);
        pair.settle();
        pair.server.assert_idle();
    }
}

#[test]
fn a_primary_is_told_which_run_of_the_server_it_has_reached() {
    let identity = Some(Identity([5; 16]));
    for (run, who, told) in [
        (77, identity, Some(77)),
        (super::RUN_MIN, identity, Some(super::RUN_MIN)),
        (super::RUN_MIN - 1, identity, None),
        (0, identity, None),
        (77, None, None),
    ] {
        let config = ServerConfig { run, ..ServerConfig::new(4096, 5) };
        let server = Server::with(Sizes::LARGE, config, std::vec![export()]);
        let client = ClientConfig { export: "disk", identity: who, want_allocation: true };
        assert_eq!(Pair::new(server, client, 7).open().run, told, "{run} to {who:?}");
    }
}
