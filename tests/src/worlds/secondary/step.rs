//! What can happen in a state, and how it does.

use foldhash::fast::FixedState;
use twinblock_core::block::{Action, Transfer};
use twinblock_core::secondary::{Input, Port};
use twinblock_core::{
    BufferIndex, Data, Device, Event, Extent, Micros, Notice, Op, Output, Refused, Request, RequestId, Stage,
    View,
};

use super::super::disk::{BLOCK, End, POISON, WINDOW_BLOCKS, is_modification, mask};
use super::super::walk::{hash_of, note};
use super::{Act, Client, FLYING, Flying, Kind, Model, Open, Piece, Prepared, SCRATCH_MAX, State};

/// More outputs than an input can lead to.
const OUTPUTS_MAX: usize = 200;

/// Something that can happen.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// Somebody asks something.
    Act(Act),
    /// A client sends the second piece of its request.
    Piece(Client),
    /// A client closes that was told to.
    Close(Client),
    /// A transfer of the disk ends.
    Disk(usize, End),
    /// A transfer of the buffer ends.
    Buffer(usize, End),
    /// The time has come that the machine waits for.
    Time,
}

impl Step {
    /// Whether it comes by itself if only one waits.
    pub(super) const fn is_inevitable(self) -> bool {
        matches!(
            self,
            Self::Piece(_)
                | Self::Close(_)
                | Self::Disk(_, End::Done)
                | Self::Buffer(_, End::Done)
                | Self::Time
        )
    }
}

impl State<'_> {
    pub(super) fn steps(&self, acts: &[Act]) -> Vec<Step> {
        let around = &self.around;
        let may_fail = around.faults_left != 0;
        let mut steps = Vec::with_capacity(24);
        for nth in 0..around.disk.in_flight.len() {
            steps.extend(around.disk.ends(nth, may_fail).map(|end| Step::Disk(nth, end)));
        }
        for nth in 0..around.buffer.in_flight.len() {
            steps.extend(around.buffer.ends(nth, may_fail).map(|end| Step::Buffer(nth, end)));
        }
        for client in Client::ALL {
            let Some(open) = &around.open[client as usize] else { continue };
            if open.outbox.is_some() {
                steps.push(Step::Piece(client));
            }
            if open.is_told_to_close {
                steps.push(Step::Close(client));
            }
        }
        if self.machine.poll_timeout().is_some() {
            steps.push(Step::Time);
        }
        if around.inputs_left != 0 {
            steps.extend(acts.iter().filter(|act| self.is_possible(**act)).map(|act| Step::Act(*act)));
        }
        steps
    }

    /// Whether somebody is there to ask it.
    fn is_possible(&self, act: Act) -> bool {
        match act {
            Act::Read(client, _)
            | Act::Write(client, _)
            | Act::WriteDurably(client, _)
            | Act::Trim(client, _)
            | Act::FastZeroes(client, _)
            | Act::Flush(client)
            | Act::Status(client, _) => {
                let is_ready = |open: &Open| open.outbox.is_none() && !open.is_told_to_close;
                self.around.open[client as usize].as_ref().is_some_and(is_ready)
                    && self.around.flying.len() + 1 < FLYING
            }
            Act::Close(client) => self.around.open[client as usize].is_some() && self.is_idle(client),
            Act::Break(client) => self.around.open[client as usize].is_some(),
            Act::Prepare | Act::PrepareAhead => self.around.open[Client::Primary as usize].is_some(),
            _ => true,
        }
    }

    /// Whether nothing of a client's is unanswered.
    fn is_idle(&self, client: Client) -> bool {
        self.around.open[client as usize].is_none_or(|open| open.outbox.is_none())
            && self.around.flying.iter().all(|flying| flying.client != client)
    }

    pub(super) fn take(&mut self, step: Step) {
        match step {
            Step::Act(act) => self.act(act),
            Step::Piece(client) => {
                let open = self.around.open[client as usize].as_mut();
                if let Some(piece) = open.and_then(|open| open.outbox.take())
                    && !self.offer(client, piece)
                    && let Some(open) = &mut self.around.open[client as usize]
                {
                    open.outbox = Some(piece);
                }
            }
            Step::Close(client) => self.close(client, self.is_idle(client)),
            Step::Disk(nth, end) => {
                let transfer = self.around.disk.in_flight[nth].transfer;
                self.note_commit(&transfer);
                let completion = self.around.disk.complete(nth, end, &mut self.around.arena);
                self.ended(Device::Disk, &transfer, end);
                self.input(Input::Completed(Device::Disk, completion));
            }
            Step::Buffer(nth, end) => {
                let transfer = self.around.buffer.in_flight[nth].transfer;
                let completion = self.around.buffer.complete(nth, end, &mut self.around.arena);
                self.ended(Device::Buffer, &transfer, end);
                self.input(Input::Completed(Device::Buffer, completion));
            }
            Step::Time => self.pass_time(),
        }
        self.pump();
        self.check();
    }

    /// Something that must be taken.
    fn input(&mut self, input: Input) {
        let taken = self.machine.handle_input(self.around.now, input);
        assert_eq!(taken, Ok(()), "{input:?} was not taken");
    }

    fn pass_time(&mut self) {
        let due = self.machine.poll_timeout().expect("it waits for a time");
        self.around.now = self.around.now.max(due);
        self.machine.handle_timeout(self.around.now);
        let next = self.machine.poll_timeout();
        assert!(next.is_none_or(|next| next > self.around.now), "a time-out changes nothing");
    }

    /// What a commit moves from the buffer to the disk is durable when the failover is done, and not before.
    fn note_commit(&mut self, transfer: &Transfer) {
        let is_own = match transfer.action {
            Action::Write { data, .. } => data.buffer.0 < SCRATCH_MAX,
            Action::WriteZeroes { .. } => true,
            _ => false,
        };
        if is_own && self.around.model.stage != Stage::Running {
            for flying in &mut self.around.flying {
                flying.covers &= !mask(transfer.extent);
            }
        }
    }

    /// Notes whom a failure may have hit.
    fn ended(&mut self, device: Device, transfer: &Transfer, end: End) {
        if end == End::Done {
            return;
        }
        let is_flush = transfer.action == Action::Flush;
        for flying in &mut self.around.flying {
            let is_near = device == Device::Buffer || flying.granules().overlaps(&transfer.extent);
            let is_it = if is_flush { flying.request.op == Op::Flush } else { is_near };
            if end == End::NotFast {
                flying.saw_slow |= is_it;
                continue;
            }
            flying.saw_fault |= is_it;
            flying.may_be_torn |= is_it
                && is_modification(transfer)
                && (device == Device::Disk || flying.client.port() == Port::Guest);
        }
        if end != End::NotFast {
            self.around.faults_left -= 1;
        }
    }

    fn act(&mut self, act: Act) {
        let kind = match act {
            Act::Read(..) => Kind::Read,
            Act::Write(..) => Kind::Write { fua: false },
            Act::WriteDurably(..) => Kind::Write { fua: true },
            Act::Trim(..) => Kind::Zeroes { fast: false },
            Act::FastZeroes(..) => Kind::Zeroes { fast: true },
            Act::Flush(_) => Kind::Flush,
            Act::Status(..) => Kind::Status,
            Act::Close(client) => {
                self.around.inputs_left -= 1;
                return self.close(client, true);
            }
            Act::Break(client) => {
                self.around.inputs_left -= 1;
                return self.close(client, false);
            }
            _ => return self.operate(act),
        };
        let (client, (from, to)) = match act {
            Act::Read(client, blocks)
            | Act::Write(client, blocks)
            | Act::WriteDurably(client, blocks)
            | Act::Trim(client, blocks)
            | Act::FastZeroes(client, blocks)
            | Act::Status(client, blocks) => (client, blocks),
            Act::Flush(client) => (client, (0, 0)),
            _ => return,
        };
        let whole = Extent::between(u64::from(from) * BLOCK, u64::from(to) * BLOCK);
        let window = WINDOW_BLOCKS as u64 * BLOCK;
        let is_cut =
            !matches!(kind, Kind::Flush | Kind::Status) && whole.end() > window && whole.offset < window;
        let end = if is_cut { window } else { whole.end() };
        let first = Piece {
            group: 0,
            kind,
            extent: Extent::between(whole.offset, end),
            is_first: true,
            is_last: !is_cut,
        };
        if self.offer(client, first) {
            self.around.inputs_left -= 1;
            if is_cut && let Some(open) = &mut self.around.open[client as usize] {
                let extent = Extent::between(window, whole.end());
                open.outbox = Some(Piece {
                    group: self.around.names_used,
                    kind,
                    extent,
                    is_first: false,
                    is_last: true,
                });
            }
        }
    }

    /// Offers a piece. Whether it was taken; a machine that is busy must be as it was.
    fn offer(&mut self, client: Client, piece: Piece) -> bool {
        let name = self.around.names_used + 1;
        let length = piece.extent.length as u32;
        let data = matches!(piece.kind, Kind::Read | Kind::Write { .. }).then(|| {
            let is_free =
                |buffer: &u16| self.around.flying.iter().all(|flying| !flying.owns(BufferIndex(*buffer)));
            let buffer = (SCRATCH_MAX..).find(is_free).unwrap_or_default();
            Data { buffer: BufferIndex(buffer), offset: 0, length }
        });
        let op = match (piece.kind, data) {
            (Kind::Read, Some(data)) => Op::Read(data),
            (Kind::Write { fua }, Some(data)) => Op::Write { data, fua },
            (Kind::Zeroes { fast }, _) => Op::WriteZeroes { may_unmap: true, fast, fua: false },
            (Kind::Status, _) => Op::Status,
            _ => Op::Flush,
        };
        let Piece { extent, is_first, is_last, .. } = piece;
        let request = Request { id: RequestId(name.into()), op, extent, is_first, is_last };
        let before = self.machine_hash();
        let taken = self.machine.handle_input(self.around.now, Input::Request(client.connection(), request));
        if taken.is_err() {
            assert_eq!(taken, Err(Refused::Busy), "{request:?}");
            assert_eq!(before, self.machine_hash(), "a request that was refused has changed something");
            self.check_busy(client.port());
            return false;
        }
        if let (Op::Write { .. }, Some(data)) = (op, data) {
            self.around.arena.blocks(data).fill(name);
        }
        self.around.name();
        self.taken(client, if piece.is_first { name } else { piece.group }, request, data);
        true
    }

    fn taken(&mut self, client: Client, group: u8, request: Request, data: Option<Data>) {
        let covers = if request.op == Op::Flush { self.to_be_flushed(client.port()) } else { 0 };
        let around = &mut self.around;
        let model = &mut around.model;
        let mut is_parting = false;
        if let Some(open) = &mut around.open[client as usize] {
            is_parting = open.is_told_to_close;
            if request.op.is_modification() {
                open.modifications += u8::from(request.is_first);
            }
        }
        if request.op.is_modification() && client.port() == Port::Replication {
            model.suitors |= 1 << client as u8;
            if request.is_first {
                let is_its = client.identity() == Client::Primary.identity();
                model.prepared = match model.prepared {
                    Prepared::No => Prepared::No,
                    _ if is_its && model.owner == Some(client) => Prepared::No,
                    _ => Prepared::Maybe,
                };
            }
        }
        for other in &mut around.flying {
            let is_of_one_view = other.client.port() == client.port() || model.stage != Stage::Running;
            if request.op.is_modification() && is_of_one_view {
                other.covers &= !mask(request.extent);
            }
        }
        let name = request.id.0 as u8;
        let flying = Flying { covers, group, ..Flying::new(client, name, request, data, is_parting) };
        around.flying.push(flying).expect("few are in flight");
        self.look_around();
    }

    fn close(&mut self, client: Client, is_clean: bool) {
        let is_idle = self.is_idle(client);
        let connection = client.connection();
        let around = &mut self.around;
        around.open[client as usize] = None;
        for flying in &mut around.flying {
            flying.is_parting |= flying.client == client;
        }
        let model = &mut around.model;
        if model.stage == Stage::Running && client.port() == Port::Replication {
            if model.prepared != Prepared::No {
                model.prepared = Prepared::Maybe;
            }
            if !is_clean {
                model.is_in_doubt |= model.owner == Some(client);
                model.may_be_in_doubt |= model.suitors & 1 << client as u8 != 0;
            }
        }
        debug_assert!(is_idle || !is_clean);
        self.input(Input::Closed { connection, is_clean });
    }

    /// Lets the machine do what it can, and hears what it says.
    fn pump(&mut self) {
        for _ in 0..OUTPUTS_MAX {
            let Some(output) = self.machine.poll_output() else { return };
            note(|| format!("        {output:?}"));
            match output {
                Output::Transfer(Device::Disk, transfer) => {
                    self.check_submitted(&transfer);
                    self.around.disk.submit(transfer);
                }
                Output::Transfer(_, transfer) => self.around.buffer.submit(transfer),
                Output::Fill(data) => self.around.arena.blocks(data).fill(0),
                Output::Reply(reply) => self.replied(&reply),
                Output::Notice(Notice::Answer(command, result)) => self.answered(command, result),
                Output::Notice(Notice::Close(connection)) => self.told_to_close(Client::of(connection)),
                Output::Notice(Notice::Event(event)) => self.heard(event),
            }
        }
        panic!("it never comes to rest");
    }

    fn told_to_close(&mut self, client: Client) {
        let is_successor = |other: &Client| {
            *other != client && other.identity() == client.identity() && self.is_open(*other)
        };
        assert!(Client::ALL.iter().any(is_successor), "nobody takes the place of {client:?}");
        self.around.open[client as usize].as_mut().expect("it is open").is_told_to_close = true;
        for flying in &mut self.around.flying {
            flying.is_parting |= flying.client == client;
        }
    }

    pub(super) fn is_open(&self, client: Client) -> bool {
        self.around.open[client as usize].is_some()
    }

    fn heard(&mut self, event: Event) {
        match event {
            Event::Stage(stage) => self.entered(stage),
            Event::View(view) => {
                let model = &mut self.around.model;
                assert_ne!(model.is_broken, view == View::Broken, "it was so before");
                model.is_broken = view == View::Broken;
                self.look_around();
            }
            Event::CommitProgress { total_bytes, done_bytes } => {
                assert!(done_bytes <= total_bytes && self.around.model.stage == Stage::Failover);
            }
            Event::BufferFull => assert_eq!(self.around.model.stage, Stage::Running),
            Event::Error(_) | Event::BufferThreeQuarters | Event::Replica(..) => {}
        }
    }

    pub(super) fn machine_hash(&self) -> u64 {
        hash_of(&FixedState::default(), &self.machine)
    }

    /// Gives the buffer of a request back.
    pub(super) fn release(&mut self, data: Data) {
        self.around.arena.0[usize::from(data.buffer.0)] = [POISON; WINDOW_BLOCKS];
    }

    pub(super) fn describe(&self, step: Step) -> String {
        let Model { stage, disk, view, .. } = &self.around.model;
        let what = match step {
            Step::Disk(nth, end) => {
                format!("the disk ends {end:?}: {:?}", self.around.disk.in_flight[nth].transfer)
            }
            Step::Buffer(nth, end) => {
                format!("the buffer ends {end:?}: {:?}", self.around.buffer.in_flight[nth].transfer)
            }
            Step::Act(act) => format!("{act:?} (name {})", self.around.names_used + 1),
            Step::Piece(_) | Step::Close(_) | Step::Time => format!("{step:?}"),
        };
        let (is, slots, Micros(now)) =
            (self.around.disk.content, self.around.buffer.content, self.around.now);
        format!("{now}us {stage:?} disk {is:x?} model {disk:x?} view {view:x?} slots {slots:x?}\n    {what}")
    }
}
