//! Managers: the core's control module over TCP, one line at a time.
//!
//! A manager is answered before its next message is looked at, so that one answer at a time is owed to each and all of it
//! finds room: what is written goes straight to TCP, and a message is begun only if it fits.

use core::fmt;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;
use twinblock_boards::network::Text;
use twinblock_core::control::json::{
    self, ErrorClass, Framer, HeldId, Id, Negotiation, ParseError, ReportWriter,
};
use twinblock_core::control::{
    Answer, Command, EventReport, RefusalText, StatusText, Trouble as StatusTrouble,
};
use twinblock_core::node::{self, Managed as _, Operation, Trouble};
use twinblock_core::{CommandId, Event, Micros, Refused, secondary};

use crate::memory::ManagerMemory;
use crate::network::Network;
use crate::node::Node;
use crate::settings;

/// The commands that are obeyed here. A daemon has more.
const NAMES: [&str; 9] = [
    "qmp_capabilities",
    "query-commands",
    "xen-set-replication",
    "xen-colo-do-checkpoint",
    "query-xen-replication-status",
    "query-replication",
    "checkpoint-prepare",
    "checkpoint-commit",
    "checkpoint-outcome",
];
/// Room for an answer of any kind: the longest is that of `query-replication` with all numbers at their largest.
const ANSWER_MAX: usize = 1152;
/// Room that events leave for an answer which is owed, and which is never that of `query-replication`.
const OWED_MAX: usize = 512;
/// Room for an event.
const EVENT_MAX: usize = 256;
const _: () = assert!(settings::MANAGER_SEND >= ANSWER_MAX + EVENT_MAX, "an answer and an event fit");
/// Room for strings with escapes; a name here has none.
const SCRATCH: usize = 128;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Listening,
    Open,
    /// It has closed its side; it gets its answers.
    Closing {
        until: Micros,
    },
    Gone,
}

/// What is answered when the machine has.
#[derive(Debug)]
struct Owed {
    command: CommandId,
    id: Option<HeldId>,
    /// The epoch, or just that it is done.
    wants_epoch: bool,
}

/// A place for a manager.
#[derive(Debug)]
pub(crate) struct Manager {
    socket: SocketHandle,
    state: State,
    negotiation: Negotiation,
    framer: Framer,
    message: &'static mut [u8],
    filled: usize,
    /// The message was too long: its rest is passed over.
    is_skipping: bool,
    owed: Option<Owed>,
}

/// What was received of a message.
enum Received {
    Part,
    Whole,
    TooLong,
    Nothing,
    Lost,
}

impl Manager {
    pub(crate) fn new(memory: &'static mut ManagerMemory, network: &mut Network) -> Self {
        let ManagerMemory { message, receive, send } = memory;
        Self {
            socket: network.add(receive, send),
            state: State::Gone,
            negotiation: Negotiation::new(),
            framer: Framer::new(),
            message,
            filled: 0,
            is_skipping: false,
            owed: None,
        }
    }

    /// Does what has come. Whether anything was done.
    pub(crate) fn serve(&mut self, now: Micros, network: &mut Network, node: &mut Node) -> bool {
        let socket = network.socket(self.socket);
        match self.state {
            State::Gone => self.listen(socket),
            State::Listening if socket.may_send() => self.greet(socket),
            State::Listening if !socket.is_open() => {
                self.state = State::Gone;
                true
            }
            State::Listening => false,
            State::Open => self.read(now, socket, node),
            State::Closing { until } => {
                if self.owed.is_none() {
                    socket.close();
                }
                let is_over =
                    until <= now || !socket.is_open() || matches!(socket.state(), tcp::State::TimeWait);
                if is_over {
                    self.give_up(socket);
                }
                is_over
            }
        }
    }

    fn listen(&mut self, socket: &mut tcp::Socket<'_>) -> bool {
        self.negotiation = Negotiation::new();
        self.framer = Framer::new();
        (self.filled, self.is_skipping, self.owed) = (0, false, None);
        if socket.listen(settings::CONTROL_PORT).is_ok() {
            self.state = State::Listening;
        }
        true
    }

    fn greet(&mut self, socket: &mut tcp::Socket<'_>) -> bool {
        self.state = State::Open;
        self.write(socket, |out| json::write_greeting(out));
        true
    }

    fn give_up(&mut self, socket: &mut tcp::Socket<'_>) {
        socket.abort();
        self.state = State::Gone;
    }

    /// Writes one message; a manager to whom it cannot be written whole is let go.
    fn write(&mut self, socket: &mut tcp::Socket<'_>, write: impl FnOnce(&mut Text<'_, '_>) -> fmt::Result) {
        if write(&mut Text(socket)).is_err() {
            defmt::warn!("a manager was let go: no room for its answer");
            self.give_up(socket);
        }
    }

    fn read(&mut self, now: Micros, socket: &mut tcp::Socket<'_>, node: &mut Node) -> bool {
        let mut has_worked = false;
        while self.state == State::Open && self.owed.is_none() && room(socket) >= ANSWER_MAX {
            match self.receive(socket) {
                Received::Part => {}
                Received::Nothing => break,
                Received::Whole => {
                    let length = core::mem::take(&mut self.filled);
                    self.understand(length, now, socket, node);
                }
                Received::TooLong => self.write(socket, |out| ParseError::TooLong.write(out, None)),
                Received::Lost => self.state = State::Closing { until: now.after(settings::PATIENCE) },
            }
            has_worked = true;
        }
        has_worked
    }

    fn receive(&mut self, socket: &mut tcp::Socket<'_>) -> Received {
        let received = socket.recv(|bytes| {
            // White space between messages, such as the line's end, belongs to none.
            if self.filled == 0 && !self.is_skipping {
                let between = bytes.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
                if between != 0 {
                    return (between, (between, false, true));
                }
            }
            let end = self.framer.find_end(bytes);
            let taken = end.unwrap_or(bytes.len());
            let place = self.message.get_mut(self.filled..self.filled + taken);
            let fits = place.is_some();
            if let (Some(place), Some(bytes)) = (place, bytes.get(..taken)) {
                place.copy_from_slice(bytes);
                self.filled += taken;
            }
            (taken, (taken, end.is_some(), fits))
        });
        let Ok((taken, is_end, fits)) = received else { return Received::Lost };
        if taken == 0 {
            return Received::Nothing;
        }
        let is_first_too_many = !fits && !self.is_skipping;
        self.is_skipping |= !fits;
        if is_end {
            let was_skipping = core::mem::take(&mut self.is_skipping);
            if was_skipping {
                self.filled = 0;
            } else {
                return Received::Whole;
            }
        }
        if is_first_too_many { Received::TooLong } else { Received::Part }
    }

    /// Does what a message says.
    fn understand(&mut self, length: usize, now: Micros, socket: &mut tcp::Socket<'_>, node: &mut Node) {
        let message = core::mem::take(&mut self.message);
        let mut scratch = [0; SCRATCH];
        let parsed = json::parse(message.get(..length).unwrap_or_default(), &mut scratch);
        let admitted = parsed.command.and_then(|command| {
            self.negotiation.admit(&command)?;
            Ok(command)
        });
        match admitted {
            Ok(command) => self.obey(command, parsed.id, now, socket, node),
            Err(error) => self.write(socket, |out| error.write(out, parsed.id)),
        }
        self.message = message;
    }

    fn obey(
        &mut self,
        command: Command<'_>,
        id: Option<Id<'_>>,
        now: Micros,
        socket: &mut tcp::Socket<'_>,
        node: &mut Node,
    ) {
        if let Some(volume) = volume_of(&command)
            && volume != settings::EXPORT
        {
            return self.refuse(Refused::Unknown, volume, id, socket);
        }
        match command {
            Command::Capabilities => self.write(socket, |out| json::write_answer(out, &Answer::Done, id)),
            Command::Commands => self.write(socket, |out| json::write_commands(out, &NAMES, id)),
            Command::SetReplication { enable, primary, failover, force, .. } => {
                let stop = Operation::Stop { failover: failover.unwrap_or(false), force };
                let operation = if enable { Operation::Start { primary } } else { stop };
                self.operate(operation, id, now, socket, node);
            }
            Command::Checkpoint { force, .. } => {
                self.operate(Operation::Checkpoint { force }, id, now, socket, node);
            }
            Command::QueryReplicationStatus { .. } => {
                let status = Answer::Status(trouble_of(node));
                self.write(socket, |out| json::write_answer(out, &status, id));
            }
            Command::QueryReplication => self.write(socket, |out| {
                let mut report = ReportWriter::begin(out)?;
                report.volume(&node.report(), [])?;
                report.end(id)
            }),
            Command::CheckpointPrepare { epoch, claim, modifications, .. } => {
                let wanted = secondary::Command::Prepare { epoch, claim, modifications };
                self.order(wanted, true, id, now, socket, node);
            }
            Command::CheckpointCommit { epoch, claim, together: 1, .. } => {
                self.order(secondary::Command::Commit { epoch, claim }, true, id, now, socket, node);
            }
            Command::CheckpointCommit { together, .. } => {
                let text =
                    format_args!("this node has one volume, and cannot commit {together} of them together");
                self.write(socket, |out| json::write_error(out, ErrorClass::GenericError, text, id));
            }
            Command::CheckpointOutcome { .. } => {
                let answer = Answer::Epoch(node.machine().epoch());
                self.write(socket, |out| json::write_answer(out, &answer, id));
            }
            Command::Attach { .. } | Command::Detach { .. } | Command::QueryMemory | Command::Quit => {
                let name = command.name();
                let text = format_args!("this node has no command '{name}'; see query-commands");
                self.write(socket, |out| json::write_error(out, ErrorClass::CommandNotFound, text, id));
            }
        }
    }

    fn refuse(&mut self, refused: Refused, volume: &str, id: Option<Id<'_>>, socket: &mut tcp::Socket<'_>) {
        self.write(socket, |out| json::write_refusal(out, RefusalText { refused, volume }, id));
    }

    fn operate(
        &mut self,
        operation: Operation,
        id: Option<Id<'_>>,
        now: Micros,
        socket: &mut tcp::Socket<'_>,
        node: &mut Node,
    ) {
        match node::check_all([node.machine()], operation) {
            Ok(()) => self.order(operation.into(), false, id, now, socket, node),
            Err((_, refused)) => self.refuse(refused, settings::EXPORT, id, socket),
        }
    }

    fn order(
        &mut self,
        wanted: secondary::Command,
        wants_epoch: bool,
        id: Option<Id<'_>>,
        now: Micros,
        socket: &mut tcp::Socket<'_>,
        node: &mut Node,
    ) {
        match node.command(now, wanted) {
            Ok(command) => {
                self.owed = Some(Owed { command, id: id.as_ref().map(Id::held), wants_epoch });
            }
            Err(refused) => self.refuse(refused, settings::EXPORT, id, socket),
        }
    }

    /// The machine has answered a command; `false` if it was not this manager's.
    pub(crate) fn answer(
        &mut self,
        command: CommandId,
        result: Result<(), Refused>,
        epoch: u64,
        network: &mut Network,
    ) -> bool {
        let Some(owed) = self.owed.take_if(|owed| owed.command == command) else { return false };
        let id = owed.id.as_ref().map(HeldId::id);
        let socket = network.socket(self.socket);
        match result {
            Err(refused) => self.refuse(refused, settings::EXPORT, id, socket),
            Ok(()) => {
                let answer = if owed.wants_epoch { Answer::Epoch(epoch) } else { Answer::Done };
                self.write(socket, |out| json::write_answer(out, &answer, id));
            }
        }
        true
    }

    /// Tells of an event, if there is room: what it tells can be asked for.
    pub(crate) fn tell(&mut self, event: Event, network: &mut Network) {
        let socket = network.socket(self.socket);
        let is_open = self.state == State::Open && self.negotiation.is_done();
        if is_open && room(socket) >= EVENT_MAX + OWED_MAX {
            let (volume, at) = (settings::EXPORT, Micros(0));
            let report = EventReport { volume, event, replica: "", export: "", at };
            self.write(socket, |out| json::write_event(out, &report));
        }
    }
}

/// Bytes that may be written now.
fn room(socket: &tcp::Socket<'_>) -> usize {
    socket.send_capacity() - socket.send_queue()
}

/// The volume that a command names.
const fn volume_of<'a>(command: &Command<'a>) -> Option<&'a str> {
    match *command {
        Command::SetReplication { volume, .. }
        | Command::Checkpoint { volume, .. }
        | Command::QueryReplicationStatus { volume } => volume,
        Command::CheckpointPrepare { volume, .. }
        | Command::CheckpointCommit { volume, .. }
        | Command::CheckpointOutcome { volume } => Some(volume),
        _ => None,
    }
}

fn trouble_of(node: &Node) -> Option<StatusText<'static>> {
    let trouble = match node.machine().trouble() {
        Err(_) => StatusTrouble::NotRunning,
        Ok(None) => return None,
        Ok(Some(Trouble::Error(kind))) => StatusTrouble::Error(kind),
        Ok(Some(Trouble::Behind)) => StatusTrouble::Missing,
    };
    Some(StatusText { volume: settings::EXPORT, trouble })
}
