//! Both sessions, wired together.

use std::{vec, vec::Vec};

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
        let direct = self.client.receive_into().filter(|_| step % 2 == 0 && now != 0);
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
