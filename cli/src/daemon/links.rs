//! Control links: a primary as the QMP client of its secondaries.
//!
//! Over them go prepare, commit and the question which epoch it is, and from the other side comes word that a buffer
//! fills up. A link that is lost is made again; what was asked on it has no answer then, which the coordinator takes for
//! a time-out.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io::IoSlice;
use std::time::Duration;

use tracing::{debug, info, warn};
use twinblock_core::control::json::{self, Framer, Incoming, IncomingEvent};
use twinblock_core::control::{BufferLevel, Command};
use twinblock_core::node::{MemberIndex, NodeIndex};
use twinblock_core::{Identity, Micros};
use twinblock_io_posix::poller::{Interest, Poller, Ready, Registration};
use twinblock_io_posix::socket::{Connecting, PeerTimeout, Stream, Target};

use super::managers::{Outgoing, drop_first};
use super::token::{Kind, token};
use crate::spec::Address;

/// Longest message of a secondary that is understood.
const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// First and longest time between two attempts to connect.
const RETRY_MIN: Micros = Micros::from_ms(100);
const RETRY_MAX: Micros = Micros::from_ms(2000);
/// How long the greeting and the answer to the negotiation may take.
const NEGOTIATION_MAX: Micros = Micros::from_ms(2000);

/// What a secondary was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    Epoch(MemberIndex),
    Prepare(MemberIndex),
    Commit(MemberIndex),
}

/// What a link tells.
#[derive(Clone, Debug)]
pub(super) enum LinkEvent {
    /// An answer: the epoch, or what the secondary said against it.
    Answer(Question, Result<Option<u64>, Refusal>),
    /// A buffer fills up.
    BufferFull { member: MemberIndex, level: BufferLevel },
    /// The link is gone, and with it what this member was asked.
    Lost(MemberIndex),
}

/// Why there is no good answer.
#[derive(Clone, Debug)]
pub(super) enum Refusal {
    /// The secondary says so.
    Said { text: String, is_missing: bool },
    /// There is no link.
    NoLink,
}

#[derive(Debug)]
enum State {
    Down { retry_at: Micros },
    Connecting { stream: Stream, registration: Registration, deadline: Micros },
    Negotiating { stream: Stream, registration: Registration, deadline: Micros },
    Up { stream: Stream, registration: Registration },
}

/// A replica that is reached over a link.
#[derive(Debug)]
struct Member {
    member: MemberIndex,
    export: String,
}

#[derive(Debug)]
struct Link {
    address: Address,
    target: Target,
    state: State,
    retry: Micros,
    framer: Framer,
    scanned: usize,
    input: Vec<u8>,
    output: Vec<u8>,
    questions: VecDeque<(u64, Question)>,
    next_id: u64,
    members: Vec<Member>,
    has_complained: bool,
}

/// All links of a daemon, one for each control address: what is behind one of these is a node.
#[derive(Debug)]
pub(super) struct Links {
    links: Vec<Link>,
    identity: Identity,
    peer_timeout: PeerTimeout,
    events: VecDeque<LinkEvent>,
    scratch: Vec<u8>,
}

impl Links {
    pub(super) fn new(identity: Identity, peer_timeout: Duration) -> Self {
        Self {
            links: Vec::new(),
            identity,
            peer_timeout: PeerTimeout(peer_timeout),
            events: VecDeque::with_capacity(64),
            scratch: vec![0; MESSAGE_BYTES_MAX],
        }
    }

    /// The node that a control address names, if `resolve` tells where it leads.
    pub(super) fn node(
        &mut self,
        address: &Address,
        resolve: impl FnOnce(&Address) -> Result<Target, String>,
    ) -> Result<NodeIndex, String> {
        if let Some(known) = self.links.iter().position(|link| link.address == *address) {
            return Ok(NodeIndex(known as u16));
        }
        let target = resolve(address)?;
        // Commits of one node go over one link, so that it knows them for those of one checkpoint.
        if let Some(known) = self.links.iter().position(|link| link.target.is_where(&target)) {
            return Ok(NodeIndex(known as u16));
        }
        self.links.push(Link {
            address: address.clone(),
            target,
            state: State::Down { retry_at: Micros(0) },
            retry: RETRY_MIN,
            framer: Framer::new(),
            scanned: 0,
            input: Vec::with_capacity(4096),
            output: Vec::with_capacity(4096),
            questions: VecDeque::new(),
            next_id: 1,
            members: Vec::new(),
            has_complained: false,
        });
        Ok(NodeIndex((self.links.len() - 1) as u16))
    }

    /// Reaches a replica over the link to its node.
    pub(super) fn add(&mut self, node: NodeIndex, member: MemberIndex, export: &str) {
        if let Some(link) = self.links.get_mut(usize::from(node.0)) {
            link.members.push(Member { member, export: export.into() });
        }
    }

    /// Forgets a replica; a link without one is left to end with the daemon, since another may come.
    pub(super) fn remove(&mut self, member: MemberIndex) {
        for link in &mut self.links {
            link.members.retain(|entry| entry.member != member);
            link.questions.retain(|(_, question)| question.member() != member);
        }
    }

    /// Whether a question to this replica's node would be sent.
    pub(super) fn is_up(&self, member: MemberIndex) -> bool {
        let of = |link: &&Link| link.members.iter().any(|entry| entry.member == member);
        self.links.iter().find(of).is_some_and(|link| matches!(link.state, State::Up { .. }))
    }

    pub(super) fn next_event(&mut self) -> Option<LinkEvent> {
        self.events.pop_front()
    }

    pub(super) fn ask_epoch(&mut self, member: MemberIndex) {
        self.ask(Question::Epoch(member), |export, _| Command::CheckpointOutcome { volume: export });
    }

    pub(super) fn ask_prepare(&mut self, member: MemberIndex, epoch: u64, modifications: u64) {
        self.ask(Question::Prepare(member), |export, claim| Command::CheckpointPrepare {
            volume: export,
            epoch,
            claim,
            modifications,
        });
    }

    pub(super) fn ask_commit(&mut self, member: MemberIndex, epoch: u64, together: u16) {
        self.ask(Question::Commit(member), |export, claim| Command::CheckpointCommit {
            volume: export,
            epoch,
            claim,
            together,
        });
    }

    fn ask(&mut self, question: Question, command: impl Fn(&str, Identity) -> Command<'_>) {
        let identity = self.identity;
        let is_asked =
            self.links.iter_mut().any(|link| link.ask(question, |export| command(export, identity)));
        if !is_asked {
            self.events.push_back(LinkEvent::Answer(question, Err(Refusal::NoLink)));
        }
    }

    /// When [`Links::tick`] has something to do next.
    pub(super) fn next_deadline(&self) -> Option<Micros> {
        let deadlines = self.links.iter().filter_map(|link| match link.state {
            State::Down { retry_at } => (!link.members.is_empty()).then_some(retry_at),
            State::Connecting { deadline, .. } | State::Negotiating { deadline, .. } => Some(deadline),
            State::Up { .. } => None,
        });
        deadlines.min()
    }

    /// Connects what is down and gives up what takes too long.
    pub(super) fn tick(&mut self, now: Micros, poller: &mut Poller) {
        for index in 0..self.links.len() {
            let link = &mut self.links[index];
            match link.state {
                State::Down { retry_at } if retry_at <= now && !link.members.is_empty() => {
                    link.connect(now, index, self.peer_timeout, poller);
                }
                State::Connecting { deadline, .. } | State::Negotiating { deadline, .. }
                    if deadline <= now =>
                {
                    link.lose("no answer in time", now, poller, &mut self.events);
                }
                _ => {}
            }
        }
    }

    /// Drops the links on which something is unanswered: a late answer must not be taken for that to a later question.
    pub(super) fn drop_unanswered(&mut self, now: Micros, poller: &mut Poller) {
        for link in &mut self.links {
            if !link.questions.is_empty() {
                link.lose("no answer in time", now, poller, &mut self.events);
            }
        }
    }

    /// A checkpoint has ended: an answer that still comes to one of its questions is none to those of the next one, which
    /// the other side may answer first.
    pub(super) fn forget_questions(&mut self) {
        self.links.iter_mut().for_each(|link| link.questions.clear());
    }

    pub(super) fn on_ready(&mut self, index: usize, ready: Ready, now: Micros, poller: &mut Poller) {
        let Some(link) = self.links.get_mut(index) else { return };
        if let State::Connecting { stream, .. } = &link.state {
            if let Err(error) = stream.finish_connect() {
                return link.lose(&error.to_string(), now, poller, &mut self.events);
            }
            link.negotiate(now, poller);
        }
        if ready.read
            && let Err(error) = link.receive(&mut self.scratch, &mut self.events)
        {
            link.lose(&error, now, poller, &mut self.events);
        }
        self.flush(now, poller);
    }

    /// Sends what waits to be sent.
    pub(super) fn flush(&mut self, now: Micros, poller: &mut Poller) {
        for link in &mut self.links {
            if let Err(error) = link.flush(poller) {
                link.lose(&error, now, poller, &mut self.events);
            }
        }
    }
}

impl Question {
    pub(super) const fn member(self) -> MemberIndex {
        match self {
            Self::Epoch(member) | Self::Prepare(member) | Self::Commit(member) => member,
        }
    }
}

impl Link {
    fn connect(&mut self, now: Micros, index: usize, peer_timeout: PeerTimeout, poller: &mut Poller) {
        self.input.clear();
        self.output.clear();
        self.framer = Framer::new();
        self.scanned = 0;
        let connecting = Stream::connect(&mut self.target, peer_timeout);
        let deadline = now.after(NEGOTIATION_MAX);
        let (stream, is_connected) = match connecting {
            Ok(Connecting::Connected(stream)) => (stream, true),
            Ok(Connecting::Pending(stream)) => (stream, false),
            Err(error) => return self.retry_later(&error.to_string(), now),
        };
        let interest = if is_connected { Interest::READ } else { Interest::WRITE };
        let Some(registration) = poller.register(&stream, interest, token(Kind::Link, index)) else {
            return self.retry_later("too many connections", now);
        };
        self.state = State::Connecting { stream, registration, deadline };
        if is_connected {
            self.negotiate(now, poller);
        }
    }

    fn negotiate(&mut self, now: Micros, poller: &mut Poller) {
        let before = std::mem::replace(&mut self.state, State::Down { retry_at: now });
        if let State::Connecting { stream, registration, deadline } = before {
            poller.set_interest(registration, Interest::READ);
            self.state = State::Negotiating { stream, registration, deadline };
        }
    }

    fn retry_later(&mut self, why: &str, now: Micros) {
        if !std::mem::replace(&mut self.has_complained, true) {
            warn!(control = %self.address, "no control link to the secondary: {why}; trying again");
        }
        self.state = State::Down { retry_at: now.after(self.retry) };
        self.retry = Micros(self.retry.0.saturating_mul(2)).min(RETRY_MAX);
    }

    fn lose(&mut self, why: &str, now: Micros, poller: &mut Poller, events: &mut VecDeque<LinkEvent>) {
        if let State::Connecting { registration, .. }
        | State::Negotiating { registration, .. }
        | State::Up { registration, .. } = self.state
        {
            poller.deregister(registration);
        }
        self.questions.clear();
        events.extend(self.members.iter().map(|entry| LinkEvent::Lost(entry.member)));
        self.retry_later(why, now);
    }

    /// Asks, if the member is reached over this link and the link is up.
    fn ask(&mut self, question: Question, command: impl Fn(&str) -> Command<'_>) -> bool {
        let entry = self.members.iter().find(|entry| entry.member == question.member());
        let Some(entry) = entry.filter(|_| matches!(self.state, State::Up { .. })) else { return false };
        let id = self.next_id;
        self.next_id += 1;
        // Memory takes whatever is written.
        let _ = json::write_command(&mut Outgoing(&mut self.output), &command(&entry.export), id);
        self.questions.push_back((id, question));
        true
    }

    fn receive(&mut self, scratch: &mut [u8], events: &mut VecDeque<LinkEvent>) -> Result<(), String> {
        loop {
            let (State::Negotiating { stream, .. } | State::Up { stream, .. }) = &self.state else {
                return Ok(());
            };
            let mut bytes = [0; 4096];
            match stream.recv(&mut bytes).map_err(|error| error.to_string())? {
                None => return Ok(()),
                Some(0) => return Err("the secondary has closed it".into()),
                Some(count) => self.input.extend_from_slice(&bytes[..count]),
            }
            while let Some(end) = self.framer.find_end(&self.input[self.scanned..]) {
                let end = self.scanned + end;
                let mut input = std::mem::take(&mut self.input);
                let understood = self.understand(&input[..end], scratch, events);
                drop_first(&mut input, end);
                self.input = input;
                self.scanned = 0;
                understood?;
            }
            self.scanned = self.input.len();
            if self.input.len() > MESSAGE_BYTES_MAX {
                return Err("a message of the secondary is too long".into());
            }
        }
    }

    fn understand(
        &mut self,
        message: &[u8],
        scratch: &mut [u8],
        events: &mut VecDeque<LinkEvent>,
    ) -> Result<(), String> {
        if message.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        let incoming = json::parse_incoming(message, scratch).map_err(|error| error.to_string())?;
        match incoming {
            Incoming::Greeting => {
                let _ = json::write_command(&mut Outgoing(&mut self.output), &Command::Capabilities, 0);
            }
            Incoming::Return { id, epoch } => match id.and_then(|id| id.number()) {
                Some(0) => self.come_up(),
                Some(id) => self.answered(id, Ok(epoch), events),
                None => {}
            },
            Incoming::Error { id, desc, is_missing } => match id.and_then(|id| id.number()) {
                Some(0) | None => return Err(format!("the secondary says: {desc}")),
                Some(id) => {
                    let refusal = Refusal::Said { text: desc.into(), is_missing };
                    self.answered(id, Err(refusal), events);
                }
            },
            Incoming::Event(IncomingEvent::BufferFull { volume, export, level }) => {
                let called = export.unwrap_or(volume);
                let named = self.members.iter().find(|entry| entry.export == called);
                events.extend(named.map(|entry| LinkEvent::BufferFull { member: entry.member, level }));
            }
            Incoming::Event(IncomingEvent::Other) => {}
        }
        Ok(())
    }

    fn come_up(&mut self) {
        let before = std::mem::replace(&mut self.state, State::Down { retry_at: Micros(0) });
        if let State::Negotiating { stream, registration, .. } = before {
            info!(control = %self.address, "control link to the secondary is up");
            self.state = State::Up { stream, registration };
            self.retry = RETRY_MIN;
            self.has_complained = false;
        }
    }

    fn answered(&mut self, id: u64, result: Result<Option<u64>, Refusal>, events: &mut VecDeque<LinkEvent>) {
        match self.questions.iter().position(|(asked, _)| *asked == id) {
            Some(place) => {
                let question = self.questions.remove(place).map(|(_, question)| question);
                events.extend(question.map(|question| LinkEvent::Answer(question, result)));
            }
            None => debug!(control = %self.address, id, "an answer to nothing that was asked"),
        }
    }

    fn flush(&mut self, poller: &mut Poller) -> Result<(), String> {
        let (State::Negotiating { stream, registration, .. } | State::Up { stream, registration }) =
            &self.state
        else {
            return Ok(());
        };
        while !self.output.is_empty() {
            match stream.send(&[IoSlice::new(&self.output)]).map_err(|error| error.to_string())? {
                Some(count) => drop_first(&mut self.output, count),
                None => {
                    poller.set_interest(*registration, Interest { read: true, write: true });
                    return Ok(());
                }
            }
        }
        poller.set_interest(*registration, Interest::READ);
        Ok(())
    }
}
