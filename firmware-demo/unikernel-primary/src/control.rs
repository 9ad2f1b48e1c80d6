//! The control link: this program as a manager of its replica's node.
//!
//! Over it go prepare, commit and the question which epoch it is, and from the other side comes word that a buffer fills
//! up. A link that is lost is made again; what was asked on it has no answer then, which the coordinator takes for a
//! time-out.

use core::net::Ipv4Addr;

use heapless::Deque;
use smoltcp::iface::SocketHandle;
use twinblock_boards::network::Text;
use twinblock_core::Micros;
use twinblock_core::control::json::{self, Framer, Incoming, IncomingEvent};
use twinblock_core::control::{BufferLevel, Command};

use crate::memory::ControlMemory;
use crate::network::Network;
use crate::settings;

/// What the replica was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    Epoch,
    Prepare,
    Commit,
}

/// What the link tells.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ControlEvent {
    /// An answer: the epoch, if it names one.
    Answer(Question, Result<Option<u64>, Refusal>),
    /// The replica's buffer fills up.
    BufferFull(BufferLevel),
    /// The link is gone, and with it what was asked.
    Lost,
}

/// Why there is no good answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The replica says so.
    Said {
        /// It misses something.
        is_missing: bool,
    },
    /// There is no link.
    NoLink,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Down {
        retry_at: Micros,
    },
    Connecting {
        until: Micros,
    },
    Negotiating {
        until: Micros,
    },
    Up,
    /// There is no such link.
    Closed,
}

/// What a message came to.
enum Understood {
    Nothing,
    Event(ControlEvent),
    Bad,
}

/// The link.
#[derive(Debug)]
pub(crate) struct Control {
    socket: SocketHandle,
    address: Option<(Ipv4Addr, u16)>,
    state: State,
    pause: Micros,
    framer: Framer,
    message: &'static mut [u8],
    filled: usize,
    scratch: &'static mut [u8],
    question: Option<(u64, Question)>,
    next_id: u64,
    events: Deque<ControlEvent, 8>,
}

impl Control {
    pub(crate) fn new(
        memory: &'static mut ControlMemory,
        address: Option<(Ipv4Addr, u16)>,
        network: &mut Network,
    ) -> Self {
        let ControlMemory { message, scratch, receive, send } = memory;
        Self {
            socket: network.add(receive, send),
            address,
            state: if address.is_some() { State::Down { retry_at: Micros(0) } } else { State::Closed },
            pause: settings::RETRY_MIN,
            framer: Framer::new(),
            message,
            filled: 0,
            scratch,
            question: None,
            next_id: 1,
            events: Deque::new(),
        }
    }

    /// Whether there is such a link at all.
    pub(crate) fn is_there(&self) -> bool {
        self.state != State::Closed
    }

    /// Does all that can be done now. Whether anything was.
    pub(crate) fn service(&mut self, now: Micros, network: &mut Network) -> bool {
        let before = self.state;
        match self.state {
            State::Closed => {}
            State::Down { retry_at } if retry_at <= now => {
                (self.framer, self.filled, self.question) = (Framer::new(), 0, None);
                self.state = State::Connecting { until: now.after(settings::CONNECT_MAX) };
                if !self.address.is_some_and(|address| network.connect(self.socket, address)) {
                    self.lose(now, network);
                }
            }
            State::Down { .. } => {}
            State::Connecting { until } | State::Negotiating { until } if until <= now => {
                self.lose(now, network);
            }
            State::Connecting { until } => {
                let socket = network.socket(self.socket);
                if socket.may_send() {
                    self.state = State::Negotiating { until };
                } else if !socket.is_open() {
                    self.lose(now, network);
                }
            }
            State::Negotiating { .. } | State::Up => {
                return self.receive(now, network) || self.state != before;
            }
        }
        self.state != before
    }

    fn lose(&mut self, now: Micros, network: &mut Network) {
        network.socket(self.socket).abort();
        if matches!(self.state, State::Negotiating { .. } | State::Up) {
            self.tell(ControlEvent::Lost);
        }
        self.question = None;
        self.state = State::Down { retry_at: now.after(self.pause) };
        self.pause = Micros(self.pause.0.saturating_mul(2)).min(settings::RETRY_MAX);
    }

    /// Drops the link if something is unanswered: a late answer must not be taken for that to a later question.
    pub(crate) fn drop_unanswered(&mut self, now: Micros, network: &mut Network) {
        if self.question.is_some() {
            self.lose(now, network);
        }
    }

    /// A checkpoint has ended: an answer that still comes to one of its questions is none to those of the next one.
    pub(crate) const fn forget_question(&mut self) {
        self.question = None;
    }

    /// Asks; the answer is an event.
    pub(crate) fn ask(&mut self, question: Question, command: &Command<'_>, network: &mut Network) {
        let id = self.next_id;
        self.next_id += 1;
        let socket = network.socket(self.socket);
        let is_asked = self.state == State::Up && json::write_command(&mut Text(socket), command, id).is_ok();
        if is_asked {
            self.question = Some((id, question));
        } else {
            self.tell(ControlEvent::Answer(question, Err(Refusal::NoLink)));
        }
    }

    /// An event that finds no room is one of a buffer that fills up, of which one was told already.
    fn tell(&mut self, event: ControlEvent) {
        let _ = self.events.push_back(event);
    }

    pub(crate) fn poll_event(&mut self) -> Option<ControlEvent> {
        self.events.pop_front()
    }

    fn receive(&mut self, now: Micros, network: &mut Network) -> bool {
        let mut has_worked = false;
        loop {
            let socket = network.socket(self.socket);
            let received = socket.recv(|bytes| {
                let end = self.framer.find_end(bytes);
                let taken = end.unwrap_or(bytes.len());
                let place = self.message.get_mut(self.filled..self.filled + taken);
                let fits = place
                    .zip(bytes.get(..taken))
                    .map(|(place, bytes)| place.copy_from_slice(bytes))
                    .is_some();
                self.filled += taken;
                (taken, (taken, end.is_some(), fits))
            });
            match received {
                Ok((0, ..)) => return has_worked,
                Ok((_, false, true)) => {}
                Ok((_, true, true)) => {
                    let length = core::mem::take(&mut self.filled);
                    match self.understand(length, network) {
                        Understood::Nothing => {}
                        Understood::Event(event) => self.tell(event),
                        Understood::Bad => self.lose(now, network),
                    }
                }
                // It is gone, or says more than anybody needs to.
                Ok((_, _, false)) | Err(_) => {
                    self.lose(now, network);
                    return true;
                }
            }
            has_worked = true;
        }
    }

    fn understand(&mut self, length: usize, network: &mut Network) -> Understood {
        let message = self.message.get(..length).unwrap_or_default();
        if message.iter().all(u8::is_ascii_whitespace) {
            return Understood::Nothing;
        }
        let Ok(incoming) = json::parse_incoming(message, self.scratch) else { return Understood::Bad };
        let (id, answer) = match incoming {
            Incoming::Greeting => {
                let socket = network.socket(self.socket);
                let is_sent = json::write_command(&mut Text(socket), &Command::Capabilities, 0).is_ok();
                return if is_sent { Understood::Nothing } else { Understood::Bad };
            }
            Incoming::Event(IncomingEvent::BufferFull { volume, export, level }) => {
                let is_ours = export.unwrap_or(volume) == settings::EXPORT;
                return if is_ours {
                    Understood::Event(ControlEvent::BufferFull(level))
                } else {
                    Understood::Nothing
                };
            }
            Incoming::Event(IncomingEvent::Other) => return Understood::Nothing,
            Incoming::Return { id, epoch } => (id, Ok(epoch)),
            Incoming::Error { id, is_missing, .. } => (id, Err(Refusal::Said { is_missing })),
        };
        match (id.and_then(|id| id.number()), answer) {
            (Some(0), Ok(_)) => {
                (self.state, self.pause) = (State::Up, settings::RETRY_MIN);
                Understood::Nothing
            }
            (Some(0) | None, _) => Understood::Bad,
            (Some(id), answer) => match self.question.take_if(|(asked, _)| *asked == id) {
                Some((_, question)) => Understood::Event(ControlEvent::Answer(question, answer)),
                None => Understood::Nothing,
            },
        }
    }

    /// When [`Self::service`] must be called at the latest.
    pub(crate) const fn next_deadline(&self) -> Option<Micros> {
        match self.state {
            State::Down { retry_at } => Some(retry_at),
            State::Connecting { until } | State::Negotiating { until } => Some(until),
            State::Up | State::Closed => None,
        }
    }
}
