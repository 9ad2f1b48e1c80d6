//! What can happen in a state, and how it does.

use foldhash::fast::FixedState;
use twinblock_core::block::Transfer;
use twinblock_core::primary::{Command, Input};
use twinblock_core::{
    BufferIndex, CommandId, Data, Device, Extent, Micros, Notice, Op, Output, Refused, Request, RequestId,
    Stage,
};

use super::super::disk::{BLOCK, Disk, End, POISON, WINDOW_BLOCKS, is_modification, mask};
use super::super::walk::{hash_of, note};
use super::{Act, Around, BLOCKS, Barrier, FLYING, Flying, GUEST, Kind, Link, Piece, REPLICAS, State};

/// More outputs than an input can lead to.
const OUTPUTS_MAX: usize = 200;

/// Something that can happen.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// Somebody asks something.
    Act(Act),
    /// The guest sends the second piece of its request.
    Piece,
    /// A transfer of the disk ends.
    Disk(usize, End),
    /// A transfer of a replica ends.
    Replica(u8, usize, End),
}

impl Step {
    /// Whether it comes by itself if only one waits.
    pub(super) const fn is_inevitable(self) -> bool {
        matches!(self, Self::Piece | Self::Disk(_, End::Done) | Self::Replica(..))
    }
}

impl Around {
    /// A crash leaves what is durable.
    fn note_durable(&mut self, replica: usize) {
        let Disk { content, volatile, .. } = &self.replicas[replica];
        let Some(durable) = &mut self.durable else { return };
        for block in (0..BLOCKS).filter(|block| volatile & 1 << block == 0) {
            durable[replica][block] = content[block];
        }
    }

    fn crash(&mut self, replica: usize) {
        let Some(durable) = &self.durable else { return };
        let disk = &mut self.replicas[replica];
        (disk.content, disk.volatile) = (durable[replica], 0);
        self.links[replica].has_crashed = true;
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
        for (replica, disk) in (0..).zip(&around.replicas) {
            let is_up = around.links[usize::from(replica)].is_up;
            for nth in 0..disk.in_flight.len() {
                let ends = disk.ends(nth, may_fail || !is_up);
                let has_crashed = around.links[usize::from(replica)].has_crashed;
                let may_end = |end: &End| match end {
                    End::Failed => true,
                    End::FailedLate => is_up || !has_crashed,
                    End::Done | End::NotFast => is_up,
                };
                let ends = ends.filter(may_end);
                steps.extend(ends.map(|end| Step::Replica(replica, nth, end)));
            }
        }
        if around.outbox.is_some() {
            steps.push(Step::Piece);
        }
        if around.inputs_left != 0 {
            steps.extend(acts.iter().filter(|act| self.is_possible(**act)).map(|act| Step::Act(*act)));
        }
        steps
    }

    fn is_possible(&self, act: Act) -> bool {
        let around = &self.around;
        let link = |replica: u8| around.links[usize::from(replica)];
        match act {
            Act::Read(_)
            | Act::Write(_)
            | Act::WriteDurably(_)
            | Act::Trim(_)
            | Act::FastZeroes(_)
            | Act::Flush => around.is_open && around.outbox.is_none() && around.flying.len() + 1 < FLYING,
            Act::Close => around.is_open,
            Act::Cut(replica) => link(replica).is_up,
            // Nothing arrives any more.
            Act::Crash(replica) => {
                link(replica).is_up || around.replicas[usize::from(replica)].in_flight.is_empty()
            }
            Act::Connect(replica) => {
                let Link { is_attached, is_up, .. } = link(replica);
                is_attached && !is_up && around.replicas[usize::from(replica)].in_flight.is_empty()
            }
            Act::Missing(replica) => link(replica).is_attached,
            _ => true,
        }
    }

    pub(super) fn take(&mut self, step: Step) {
        match step {
            Step::Act(act) => self.act(act),
            Step::Piece => {
                if let Some(piece) = self.around.outbox.take()
                    && !self.offer(piece)
                {
                    self.around.outbox = Some(piece);
                }
            }
            Step::Disk(nth, end) => {
                let transfer = self.around.disk.in_flight[nth].transfer;
                let completion = self.around.disk.complete(nth, end, &mut self.around.arena);
                self.ended(Device::Disk, &transfer, end);
                self.input(Input::Completed(Device::Disk, completion));
            }
            Step::Replica(replica, nth, end) => {
                let disk = &mut self.around.replicas[usize::from(replica)];
                let transfer = disk.in_flight[nth].transfer;
                let completion = disk.complete(nth, end, &mut self.around.arena);
                let device = Device::Replica(replica);
                self.ended(device, &transfer, end);
                self.around.note_durable(usize::from(replica));
                self.input(Input::Completed(device, completion));
            }
        }
        self.pump();
        self.check();
    }

    /// Something that must be taken.
    fn input(&mut self, input: Input) {
        let taken = self.machine.handle_input(Micros(0), input);
        assert_eq!(taken, Ok(()), "{input:?} was not taken");
    }

    /// Notes whom a failure has hit.
    fn ended(&mut self, device: Device, transfer: &Transfer, end: End) {
        if matches!(end, End::Done | End::NotFast) {
            return;
        }
        if device == Device::Disk {
            if let Some(owner) = self.owner(transfer) {
                self.around.flying[owner].has_disk_failed = true;
            }
            self.around.model.has_disk_failed |= is_modification(transfer);
        }
        let is_cut =
            matches!(device, Device::Replica(replica) if !self.around.links[usize::from(replica)].is_up);
        self.around.faults_left -= u8::from(!is_cut);
    }

    /// The request that a transfer is of; the first one is known by what it does.
    pub(super) fn owner(&self, transfer: &Transfer) -> Option<usize> {
        let flying = &self.around.flying;
        let is_known = |flying: &Flying| flying.entry == Some(transfer.tag.entry);
        let is_it = |flying: &Flying| {
            flying.entry.is_none()
                && flying.request.extent.contains(&transfer.extent)
                && flying.does(&transfer.action)
        };
        flying.iter().position(is_known).or_else(|| flying.iter().position(is_it))
    }

    fn act(&mut self, act: Act) {
        let (kind, blocks) = match act {
            Act::Read(blocks) => (Kind::Read, blocks),
            Act::Write(blocks) => (Kind::Write { fua: false }, blocks),
            Act::WriteDurably(blocks) => (Kind::Write { fua: true }, blocks),
            Act::Trim(blocks) => (Kind::Zeroes { fast: false }, blocks),
            Act::FastZeroes(blocks) => (Kind::Zeroes { fast: true }, blocks),
            Act::Flush => (Kind::Flush, (0, 0)),
            Act::Close => {
                self.around.is_open = false;
                self.around.outbox = None;
                self.around.inputs_left -= 1;
                return self.input(Input::Closed(GUEST));
            }
            Act::Cut(replica) => return self.cut(replica),
            Act::Crash(replica) => {
                self.around.crash(usize::from(replica));
                return self.cut(replica);
            }
            Act::Connect(replica) => {
                if std::mem::take(&mut self.around.links[usize::from(replica)].has_crashed) {
                    self.input(Input::Restarted(replica));
                }
                self.around.links[usize::from(replica)].is_up = true;
                self.around.inputs_left -= 1;
                return self.input(Input::Connected(replica, Disk::<BLOCKS>::geometry(false)));
            }
            Act::Missing(replica) => {
                self.around.inputs_left -= 1;
                return self.input(Input::Missing(replica));
            }
            _ => return self.operate(act),
        };
        let whole = Extent::between(u64::from(blocks.0) * BLOCK, u64::from(blocks.1) * BLOCK);
        let window = WINDOW_BLOCKS as u64 * BLOCK;
        let is_cut = whole.end() > window && whole.offset < window;
        let extent = Extent::between(whole.offset, if is_cut { window } else { whole.end() });
        if self.offer(Piece { kind, extent, is_first: true, is_last: !is_cut }) {
            self.around.inputs_left -= 1;
            if is_cut {
                let extent = Extent::between(window, whole.end());
                self.around.outbox = Some(Piece { kind, extent, is_first: false, is_last: true });
            }
        }
    }

    fn cut(&mut self, replica: u8) {
        self.around.inputs_left -= 1;
        if std::mem::take(&mut self.around.links[usize::from(replica)].is_up) {
            self.input(Input::Disconnected(replica));
        }
    }

    /// Offers a piece. Whether it was taken; a machine that is busy must be as it was.
    fn offer(&mut self, piece: Piece) -> bool {
        let name = self.around.names_used + 1;
        let length = piece.extent.length as u32;
        let data = matches!(piece.kind, Kind::Read | Kind::Write { .. }).then(|| {
            let is_free = |buffer: &u16| {
                self.around
                    .flying
                    .iter()
                    .all(|flying| flying.data.is_none_or(|data| data.buffer.0 != *buffer))
            };
            let buffer = (0..).find(is_free).unwrap_or_default();
            Data { buffer: BufferIndex(buffer), offset: 0, length }
        });
        let op = match (piece.kind, data) {
            (Kind::Read, Some(data)) => Op::Read(data),
            (Kind::Write { fua }, Some(data)) => Op::Write { data, fua },
            (Kind::Zeroes { fast }, _) => Op::WriteZeroes { may_unmap: true, fast, fua: false },
            _ => Op::Flush,
        };
        let Piece { extent, is_first, is_last, .. } = piece;
        let request = Request { id: RequestId(name.into()), op, extent, is_first, is_last };
        let before = self.machine_hash();
        let taken = self.machine.handle_input(Micros(0), Input::Request(GUEST, request));
        if taken.is_err() {
            assert_eq!(taken, Err(Refused::Busy), "{request:?}");
            assert_eq!(before, self.machine_hash(), "a request that was refused has changed something");
            self.check_busy(&request);
            return false;
        }
        if let (Op::Write { .. }, Some(data)) = (op, data) {
            self.around.arena.blocks(data).fill(name);
        }
        self.around.names_used = name;
        self.taken(name, request, data);
        true
    }

    fn taken(&mut self, name: u8, request: Request, data: Option<Data>) {
        let around = &mut self.around;
        let is_modification = request.op.is_modification();
        let is_up = around.model.barrier.is_some();
        let is_rest = !request.is_first && !around.model.is_rest_after_barrier && !around.model.is_rest_cut;
        let is_urgent = around.model.barrier.is_some_and(|barrier| barrier.is_urgent);
        let is_after_barrier = is_modification && is_up && (is_urgent || !is_rest);
        if request.is_first && is_modification {
            around.model.is_rest_after_barrier = is_up;
            around.model.is_rest_cut = false;
        }
        let mut covers = 0;
        if request.op == Op::Flush {
            let changing = around.flying.iter().filter(|flying| flying.request.op.is_modification());
            covers = changing.fold((1 << BLOCKS) - 1, |rest, flying| rest & !mask(flying.request.extent));
        }
        for flying in around.flying.iter_mut().filter(|_| is_modification) {
            flying.covers &= !mask(request.extent);
        }
        let attached = (0..REPLICAS).filter(|replica| around.links[*replica].is_attached);
        let attached = attached.fold(0, |attached, replica| attached | 1 << replica);
        let flying = Flying {
            name,
            request,
            data,
            entry: None,
            is_after_barrier,
            has_disk_failed: false,
            covers,
            attached,
        };
        around.flying.push(flying).expect("few are in flight");
    }

    fn operate(&mut self, act: Act) {
        let wanted = match act {
            Act::Start => Command::Start { primary: true },
            Act::Attach(replica) => Command::Attach { replica, is_empty: false, is_new: false },
            Act::AttachEmpty(replica) => Command::Attach { replica, is_empty: true, is_new: true },
            Act::Detach(replica) => Command::Detach { replica },
            Act::Barrier => Command::Barrier { is_urgent: false },
            Act::UrgentBarrier => Command::Barrier { is_urgent: true },
            Act::Hurry => Command::Hurry,
            Act::Release => Command::Release { is_checkpoint: false },
            _ => Command::Stop,
        };
        let expected = self.expected(&wanted);
        let name = self.around.names_used + 1;
        let before = self.machine_hash();
        let checked = self.machine.check_command(&wanted);
        // What is answered at once is known before the answer is heard.
        let barrier = self.around.model.barrier;
        if let (Command::Barrier { is_urgent }, Ok(())) = (wanted, checked) {
            self.around.model.barrier = Some(Barrier { name, is_urgent, is_reached: false });
        }
        let result = self.machine.handle_input(Micros(0), Input::Command(CommandId(name.into()), wanted));
        assert_eq!(result, expected, "{wanted:?}");
        assert_eq!(checked, result, "what would be taken is not");
        if result.is_err() {
            assert_eq!(before, self.machine_hash(), "an operation that was refused has changed something");
            return;
        }
        self.around.names_used = name;
        self.around.inputs_left -= 1;
        self.operated(&wanted, barrier);
    }

    /// The table of SEMANTICS.md, "Operations".
    fn expected(&self, wanted: &Command) -> Result<(), Refused> {
        let model = &self.around.model;
        let is_attached = |replica: u8| self.around.links[usize::from(replica)].is_attached;
        match (*wanted, model.stage) {
            (Command::Start { .. }, Stage::Running) => Err(Refused::Running),
            (Command::Barrier { .. }, Stage::Running) if model.barrier.is_some() => Err(Refused::InProgress),
            (Command::Barrier { .. }, Stage::None | Stage::Done) | (Command::Stop, Stage::None) => {
                Err(Refused::NotRunning)
            }
            (Command::Attach { replica, .. }, _) if is_attached(replica) => Err(Refused::InProgress),
            (Command::Detach { replica }, _) if !is_attached(replica) => Err(Refused::Unknown),
            _ => Ok(()),
        }
    }

    fn operated(&mut self, wanted: &Command, barrier: Option<Barrier>) {
        let around = &mut self.around;
        let mut goes_on = false;
        match *wanted {
            Command::Start { .. } => around.model.stage = Stage::Running,
            Command::Stop => {
                goes_on = around.model.stage == Stage::Running
                    && around.model.barrier.is_some_and(|barrier| !barrier.is_reached);
                around.model.stage = Stage::Done;
            }
            Command::Release { .. } => goes_on = true,
            Command::Attach { replica, is_new, .. } => {
                let link = &mut around.links[usize::from(replica)];
                *link =
                    Link { is_attached: true, is_up: false, was_behind: link.was_behind && !is_new, ..*link };
            }
            Command::Detach { replica } => {
                let link = &mut around.links[usize::from(replica)];
                (link.is_attached, link.is_up) = (false, false);
                for flying in &mut around.flying {
                    flying.attached &= !(1 << replica);
                }
            }
            Command::Hurry | Command::Barrier { .. } => {
                if let Some(barrier) = &mut around.model.barrier
                    && !barrier.is_reached
                    && (matches!(wanted, Command::Hurry) || barrier.is_urgent)
                {
                    barrier.is_urgent = true;
                    let is_modification = |piece: &Piece| !matches!(piece.kind, Kind::Read | Kind::Flush);
                    let is_waited_for = !around.model.is_rest_after_barrier;
                    around.model.is_rest_cut |=
                        is_waited_for && around.outbox.as_ref().is_some_and(is_modification);
                    for flying in around.flying.iter_mut().filter(|flying| flying.entry.is_none()) {
                        flying.is_after_barrier = flying.request.op.is_modification();
                    }
                }
            }
        }
        if goes_on {
            around.model.barrier = None;
            around.model.is_rest_after_barrier = false;
            for flying in &mut around.flying {
                flying.is_after_barrier = false;
            }
            // One that was not reached is answered, with a refusal.
            self.given_up = barrier.filter(|barrier| !barrier.is_reached).map(|barrier| barrier.name);
        }
    }

    /// Lets the machine do what it can, and hears what it says.
    fn pump(&mut self) {
        for _ in 0..OUTPUTS_MAX {
            let Some(output) = self.machine.poll_output() else {
                assert_eq!(self.given_up, None, "a barrier that was given up is never answered");
                return;
            };
            note(|| format!("        {output:?}"));
            match output {
                Output::Transfer(device, transfer) => self.submitted(device, transfer),
                Output::Fill(data) => self.around.arena.blocks(data).fill(0),
                Output::Reply(reply) => self.replied(&reply),
                Output::Notice(Notice::Answer(command, result)) => self.answered(command.0 as u8, result),
                Output::Notice(Notice::Close(connection)) => panic!("{connection:?} shall be closed"),
                Output::Notice(Notice::Event(_)) => {}
            }
        }
        panic!("it never comes to rest");
    }

    pub(super) fn machine_hash(&self) -> u64 {
        hash_of(&FixedState::default(), &self.machine)
    }

    /// Gives the buffer of a request back.
    pub(super) fn release(&mut self, data: Data) {
        self.around.arena.0[usize::from(data.buffer.0)] = [POISON; WINDOW_BLOCKS];
    }

    pub(super) fn describe(&self, step: Step) -> String {
        let around = &self.around;
        let what = match step {
            Step::Disk(nth, end) => {
                format!("the disk ends {end:?}: {:?}", around.disk.in_flight[nth].transfer)
            }
            Step::Replica(replica, nth, end) => {
                let transfer = around.replicas[usize::from(replica)].in_flight[nth].transfer;
                format!("replica {replica} ends {end:?}: {transfer:?}")
            }
            Step::Act(act) => format!("{act:?} (name {})", around.names_used + 1),
            Step::Piece => "Piece".into(),
        };
        let content = [around.disk.content, around.replicas[0].content, around.replicas[1].content];
        format!("{:?} disk and replicas {content:x?} {:?}\n    {what}", around.model.stage, around.links)
    }
}
