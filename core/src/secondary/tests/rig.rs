//! A secondary over two arrays, whose transfers wait until a test lets them go. It is run as a driver runs it.

use std::boxed::Box;
use std::collections::VecDeque;
use std::vec::Vec;
use std::{assert, assert_eq, panic, vec};

use crate::block::{Action, Capabilities, Completion, Geometry, Transfer};
use crate::buffer::index::{Index, Node};
use crate::driver::Machine;
use crate::order::Slot;
use crate::secondary::entry::Phase;
use crate::secondary::{Command, Config, Connection, Input, Port, Secondary, Storage, WhenFull};
use crate::{
    BufferIndex, CommandId, ConnectionId, Data, Device, Errno, Event, Extent, Identity, Micros, Notice, Op,
    Outcome, Output, Refused, Request, RequestId, Stage,
};

pub(super) const GRANULE: u64 = 512;
/// Ends within a granule.
pub(super) const SIZE: u64 = 4096 + 200;
pub(super) const SLOTS: u64 = 4;
pub(super) const STALL_MAX: Micros = Micros(500);
/// The connections that every rig opens.
pub(super) const PRIMARY: ConnectionId = ConnectionId(1);
pub(super) const GUEST: ConnectionId = ConnectionId(2);
pub(super) const NAME: Identity = Identity([7; 16]);
const WINDOW: usize = 2048;
const BUFFERS: u16 = 12;
const SCRATCH: u16 = 2;
/// Behind those for requests.
pub(super) const SCRATCH_FIRST: BufferIndex = BufferIndex(BUFFERS - SCRATCH);
/// One more than the ports are promised.
const PLACES: usize = 9;

pub(super) type Result = core::result::Result<Outcome, Errno>;

pub(super) struct Rig {
    pub(super) machine: Secondary<'static>,
    pub(super) disk: Vec<u8>,
    pub(super) slots: Vec<u8>,
    memory: Vec<Vec<u8>>,
    pub(super) queue: VecDeque<(Device, Transfer)>,
    pub(super) replies: Vec<(u32, Result)>,
    pub(super) answers: Vec<core::result::Result<(), Refused>>,
    pub(super) events: Vec<Event>,
    pub(super) closed: Vec<ConnectionId>,
    pub(super) now: Micros,
    used: u32,
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::with(WhenFull::Stall, Capabilities::empty())
    }

    pub(super) fn with(when_full: WhenFull, more: Capabilities) -> Self {
        Self::with_places(when_full, more, PLACES)
    }

    /// With so many places in its table, of which each port is promised four.
    pub(super) fn with_places(when_full: WhenFull, more: Capabilities, places: usize) -> Self {
        Self::of(when_full, more, places, SIZE, SLOTS)
    }

    /// With another disk and so many slots. Its index holds 23 runs.
    pub(super) fn with_disk(size: u64, slots: u64) -> Self {
        Self::of(WhenFull::Stall, Capabilities::empty(), PLACES, size, slots)
    }

    fn of(when_full: WhenFull, more: Capabilities, places: usize, size: u64, slots: u64) -> Self {
        let config = Config {
            granule_bytes: GRANULE as u32,
            window_bytes: WINDOW as u32,
            when_full,
            stall_max: STALL_MAX,
            replication_requests: 4,
            guest_requests: 4,
            scratch_first: SCRATCH_FIRST,
            scratch_count: SCRATCH as u8,
        };
        let capabilities = Capabilities::FLUSH | Capabilities::WRITE_ZEROES | more;
        let geometry = |size_bytes| Geometry { size_bytes, block_bytes: 1, capabilities };
        let storage = Storage {
            table: Box::leak(vec![Slot::FREE; places].into_boxed_slice()),
            nodes: Box::leak(vec![Node::EMPTY; Index::nodes_for(16)].into_boxed_slice()),
            connections: Box::leak(vec![Connection::FREE; 4].into_boxed_slice()),
        };
        let machine = Secondary::new(config, geometry(size), geometry(slots * GRANULE), storage).unwrap();
        let mut rig = Self {
            machine,
            disk: vec![b'd'; size as usize],
            slots: vec![b'?'; (slots * GRANULE) as usize],
            memory: vec![vec![b'?'; WINDOW]; usize::from(BUFFERS)],
            queue: VecDeque::new(),
            replies: Vec::new(),
            answers: Vec::new(),
            events: Vec::new(),
            closed: Vec::new(),
            now: Micros(0),
            used: 100,
        };
        rig.open(PRIMARY, Port::Replication, Some(NAME));
        rig.open(GUEST, Port::Guest, None);
        rig
    }

    pub(super) fn running() -> Self {
        let mut rig = Self::new();
        rig.start();
        rig
    }

    pub(super) fn start(&mut self) {
        self.command(Command::Start { primary: false }).unwrap();
        assert_eq!(self.answers.pop(), Some(Ok(())));
    }

    /// A secondary in this stage. In Failover a transfer of the commit is under way.
    pub(super) fn in_stage(stage: Stage) -> Self {
        let mut rig = Self::new();
        if stage != Stage::None {
            rig.start();
        }
        if matches!(stage, Stage::Failover | Stage::FailoverFailed | Stage::Done) {
            rig.write(PRIMARY, 0, b"speculative");
            rig.run();
            rig.command(Command::Stop { failover: true, force: false }).unwrap();
            rig.answers.clear();
        }
        if stage == Stage::FailoverFailed {
            rig.complete(0, Err(Errno::Io));
        }
        if stage == Stage::Done {
            rig.run();
        }
        assert_eq!(rig.machine.stage(), stage);
        rig
    }

    pub(super) fn offer(&mut self, input: Input) -> core::result::Result<(), Refused> {
        Machine::handle_input(&mut self.machine, self.now, input)?;
        self.poll();
        Ok(())
    }

    pub(super) fn open(&mut self, connection: ConnectionId, port: Port, identity: Option<Identity>) {
        self.offer(Input::Opened { connection, port, identity }).unwrap();
    }

    pub(super) fn close(&mut self, connection: ConnectionId, is_clean: bool) {
        self.offer(Input::Closed { connection, is_clean }).unwrap();
    }

    pub(super) fn command(&mut self, wanted: Command) -> core::result::Result<(), Refused> {
        self.used += 1;
        self.offer(Input::Command(CommandId(self.used), wanted))
    }

    /// Lets transfers go and gives the answer to an operation.
    pub(super) fn outcome(&mut self, wanted: Command) -> core::result::Result<(), Refused> {
        self.command(wanted)?;
        self.run();
        self.answers.pop().expect("it is answered")
    }

    pub(super) fn request(&mut self, connection: ConnectionId, op: Op, offset: u64, length: u64) -> u32 {
        self.used += 1;
        let extent = Extent { offset, length };
        let request = Request::whole(RequestId(self.used), op, extent);
        self.offer(Input::Request(connection, request)).unwrap();
        self.used
    }

    /// Memory for the next request.
    pub(super) fn place(&self, length: usize) -> Data {
        let buffer = ((self.used + 1) % u32::from(BUFFERS - SCRATCH)) as u16;
        Data { buffer: BufferIndex(buffer), offset: 0, length: length as u32 }
    }

    pub(super) fn bytes(&mut self, data: Data) -> &mut [u8] {
        &mut self.memory[usize::from(data.buffer.0)][data.offset as usize..][..data.length as usize]
    }

    pub(super) fn write(&mut self, connection: ConnectionId, offset: u64, bytes: &[u8]) -> u32 {
        let data = self.place(bytes.len());
        self.bytes(data).copy_from_slice(bytes);
        self.request(connection, Op::Write { data, fua: false }, offset, bytes.len() as u64)
    }

    pub(super) fn zero(&mut self, connection: ConnectionId, offset: u64, length: u64) -> u32 {
        self.request(connection, Op::WriteZeroes { may_unmap: true, fast: false, fua: false }, offset, length)
    }

    /// Writes, lets all transfers go, and gives the answer.
    pub(super) fn written(&mut self, connection: ConnectionId, offset: u64, bytes: &[u8]) -> Result {
        let id = self.write(connection, offset, bytes);
        self.run();
        self.reply(id).expect("it is answered")
    }

    /// Reads, lets all transfers go, and gives the bytes.
    pub(super) fn read(
        &mut self,
        connection: ConnectionId,
        offset: u64,
        length: usize,
    ) -> core::result::Result<Vec<u8>, Errno> {
        let data = self.place(length);
        let id = self.request(connection, Op::Read(data), offset, length as u64);
        self.run();
        self.reply(id).expect("it is answered").map(|_| self.bytes(data).to_vec())
    }

    /// All that the guest sees.
    pub(super) fn view(&mut self) -> Vec<u8> {
        let parts = [(0, 2048), (2048, 2048), (4096, 200)];
        parts.into_iter().flat_map(|(offset, length)| self.read(GUEST, offset, length).unwrap()).collect()
    }

    pub(super) fn reply(&self, id: u32) -> Option<Result> {
        self.replies.iter().find(|(of, _)| *of == id).map(|(_, result)| *result)
    }

    fn poll(&mut self) {
        while let Some(output) = Machine::poll_output(&mut self.machine) {
            match output {
                Output::Transfer(device, transfer) => self.queue.push_back((device, transfer)),
                Output::Fill(data) => self.bytes(data).fill(0),
                Output::Reply(reply) => {
                    assert!(self.reply(reply.id.0).is_none(), "answered twice");
                    self.replies.push((reply.id.0, reply.result));
                }
                Output::Notice(Notice::Answer(_, result)) => self.answers.push(result),
                Output::Notice(Notice::Close(connection)) => self.closed.push(connection),
                Output::Notice(Notice::Event(event)) => self.events.push(event),
            }
        }
        self.check_counts();
    }

    /// What the machine counts is what there is: while it counts too many, it looks for what is not there.
    fn check_counts(&self) {
        let count = |is_it: fn(&Phase) -> bool| {
            self.machine.table.iter().filter(|(_, work)| is_it(&work.phase)).count()
        };
        let counts = &self.machine.counts;
        assert_eq!(usize::from(counts.keeping), count(|phase| matches!(phase, Phase::Keep(_))));
        assert_eq!(usize::from(counts.held), count(|phase| matches!(phase, Phase::Held { .. })));
        let waiting = count(|phase| matches!(phase, Phase::Waiting { for_keep: true }));
        assert_eq!(usize::from(counts.waiting_for_keep), waiting);
    }

    /// Ends a transfer; its effect takes place if it succeeds.
    pub(super) fn complete(&mut self, position: usize, result: core::result::Result<(), Errno>) {
        let (device, transfer) = self.queue.remove(position).expect("a transfer is under way");
        let result = result.map(|()| self.perform(device, &transfer));
        let completion = Completion { tag: transfer.tag, result };
        Machine::handle_completion(&mut self.machine, self.now, device, completion).unwrap();
        self.poll();
    }

    fn perform(&mut self, device: Device, transfer: &Transfer) -> Outcome {
        let array = if device == Device::Disk { &mut self.disk } else { &mut self.slots };
        let part = &mut array[transfer.extent.offset as usize..][..transfer.extent.length as usize];
        let memory = |data: Data| {
            (usize::from(data.buffer.0), data.offset as usize..(data.offset + data.length) as usize)
        };
        match transfer.action {
            Action::Read(data) => {
                let (buffer, range) = memory(data);
                self.memory[buffer][range].copy_from_slice(part);
            }
            Action::Write { data, .. } => {
                let (buffer, range) = memory(data);
                part.copy_from_slice(&self.memory[buffer][range]);
            }
            Action::WriteZeroes { .. } => part.fill(0),
            Action::Flush => {}
            Action::Status => {
                let is_hole = part[0] == 0;
                let length = part.iter().take_while(|byte| (**byte == 0) == is_hole).count() as u64;
                return Outcome::Status { is_hole, length };
            }
        }
        Outcome::Done
    }

    /// Lets all transfers go, in the order in which they came.
    pub(super) fn run(&mut self) {
        for _ in 0..1000 {
            if self.queue.is_empty() {
                return;
            }
            self.complete(0, Ok(()));
        }
        panic!("it does not come to rest");
    }

    /// Lets time pass.
    pub(super) fn wait(&mut self, span: Micros) {
        self.now = self.now.after(span);
        if Machine::poll_timeout(&self.machine).is_some_and(|due| due <= self.now) {
            Machine::handle_timeout(&mut self.machine, self.now);
        }
        self.poll();
    }

    /// What is under way, in short.
    pub(super) fn under_way(&self) -> Vec<(Device, &'static str, u64, u64)> {
        let named = |(device, transfer): &(Device, Transfer)| {
            let name = match transfer.action {
                Action::Read(_) => "read",
                Action::Write { .. } => "write",
                Action::WriteZeroes { .. } => "zero",
                Action::Flush => "flush",
                Action::Status => "status",
            };
            (*device, name, transfer.extent.offset, transfer.extent.length)
        };
        self.queue.iter().map(named).collect()
    }
}
