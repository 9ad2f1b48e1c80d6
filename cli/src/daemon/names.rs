//! Names of hosts are looked up by a thread of their own: the answer of a name server may take many seconds, which the loop
//! and its guests cannot spend. A command that needs a name waits until it is known, and is then obeyed as if it had just come.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use twinblock_core::Micros;
use twinblock_core::control::Command;
use twinblock_io_posix::poller::Waker;
use twinblock_io_posix::socket::Target;

use super::Daemon;
use super::managers::ManagerId;
use crate::graph::{Child, Driver, Graph, Kind, NodeSpec};
use crate::spec::{Address, NbdUri};

/// How long a command waits for its names.
const LOOKUP_MAX: Micros = Micros::from_ms(10_000);
/// How long an answer is used: a command may wait for its disk after it has waited for the name.
const KNOWN_FOR: Micros = Micros::from_ms(60_000);
/// How long a name is taken for unknown: the commands that have waited hear of it, and whoever tries again asks again.
const UNKNOWN_FOR: Micros = Micros::from_ms(1_000);
/// Most commands that wait.
const WAITING_MAX: usize = 16;

type Answer = Result<Target, String>;

/// A command whose names are being looked up, as it came.
#[derive(Debug)]
struct Waiting {
    manager: ManagerId,
    text: Vec<u8>,
    addresses: Vec<Address>,
    until: Micros,
}

/// What is known of names, and who waits for more.
#[derive(Debug)]
pub(super) struct Names {
    questions: Sender<Address>,
    answers: Receiver<(Address, Answer)>,
    /// Asked and not answered yet.
    asked: HashSet<Address>,
    known: HashMap<Address, (Answer, Micros)>,
    waiting: Vec<Waiting>,
    /// Nothing may block any more.
    pub(super) is_serving: bool,
}

impl Names {
    /// Starts the thread, which ends with the process: nobody can tell it to stop waiting.
    pub(super) fn new(waker: Waker) -> std::io::Result<Self> {
        let (questions, asked) = channel::<Address>();
        let (answering, answers) = channel();
        thread::Builder::new().name("names".into()).spawn(move || {
            for address in asked {
                let answer = look_up(&address);
                if answering.send((address, answer)).is_err() {
                    return;
                }
                waker.wake();
            }
        })?;
        let (asked, known, waiting) = (HashSet::new(), HashMap::new(), Vec::new());
        Ok(Self { questions, answers, asked, known, waiting, is_serving: false })
    }

    /// Where an address leads. Does not block once the daemon serves.
    pub(super) fn target(&self, address: &Address) -> Answer {
        match self.known.get(address) {
            _ if !self.is_serving || !is_name(address) => look_up(address),
            Some((answer, _)) => answer.clone(),
            None => Err(format!("{address} was not looked up in time; try again")),
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Micros> {
        self.waiting.iter().map(|waiting| waiting.until).min()
    }

    fn is_known(&self, address: &Address, now: Micros) -> bool {
        !is_name(address) || self.known.get(address).is_some_and(|(_, until)| now < *until)
    }

    /// Takes answers; the commands that can be obeyed now.
    fn take(&mut self, now: Micros) -> Vec<(ManagerId, Vec<u8>)> {
        while let Ok((address, answer)) = self.answers.try_recv() {
            self.asked.remove(&address);
            let kept_for = if answer.is_ok() { KNOWN_FOR } else { UNKNOWN_FOR };
            self.known.insert(address, (answer, now.after(kept_for)));
        }
        for waiting in self.waiting.iter().filter(|waiting| waiting.until <= now) {
            for address in &waiting.addresses {
                if is_name(address) && !self.known.contains_key(address) {
                    let why = Err(format!("cannot resolve {address}: no answer in time"));
                    self.known.insert(address.clone(), (why, now.after(Micros(1))));
                }
            }
        }
        let mut ready = Vec::new();
        let mut index = 0;
        while let Some(waiting) = self.waiting.get(index) {
            if waiting.addresses.iter().all(|address| self.is_known(address, now)) {
                let waiting = self.waiting.swap_remove(index);
                ready.push((waiting.manager, waiting.text));
            } else {
                index += 1;
            }
        }
        if ready.is_empty() {
            self.known.retain(|_, (_, until)| now < *until);
        }
        ready
    }
}

/// Whether somebody has to be asked where an address leads.
fn is_name(address: &Address) -> bool {
    match address {
        Address::Unix(_) => false,
        Address::Tcp { host, .. } => host.parse::<IpAddr>().is_err(),
    }
}

fn look_up(address: &Address) -> Answer {
    Target::resolve(address).map_err(|error| error.to_string())
}

impl Daemon {
    /// Whether a command has to wait until names are known; it is kept then.
    pub(super) fn awaits_names(&mut self, manager: ManagerId, text: &[u8], addresses: Vec<Address>) -> bool {
        let names = &mut self.names;
        if addresses.iter().all(|address| names.is_known(address, self.now))
            || names.waiting.len() >= WAITING_MAX
        {
            return false;
        }
        for address in &addresses {
            if names.is_known(address, self.now) {
                continue;
            }
            names.known.remove(address);
            if names.asked.insert(address.clone()) {
                // The thread is there as long as this is.
                let _ = names.questions.send(address.clone());
            }
        }
        let until = self.now.after(LOOKUP_MAX);
        names.waiting.push(Waiting { manager, text: text.to_vec(), addresses, until });
        true
    }

    /// Obeys the commands whose names are known now, or will not be in time.
    pub(super) fn tick_names(&mut self) {
        for (manager, text) in self.names.take(self.now) {
            let mut scratch = vec![0; text.len()];
            self.execute(manager, &text, &mut scratch);
        }
    }
}

/// The addresses that a command of every node names.
pub(super) fn addresses_of(command: &Command<'_>) -> Vec<Address> {
    let Command::Attach { uri, control, .. } = command else { return Vec::new() };
    let uri = uri.parse().ok().map(|uri: NbdUri| uri.address);
    uri.into_iter().chain(control.and_then(|control| control.parse().ok())).collect()
}

/// The addresses of nodes that are to be added, and of those that they lie on.
pub(super) fn addresses_below(graph: &Graph, spec: &NodeSpec) -> Vec<Address> {
    let of = |child: &Child| match child {
        Child::Name(name) => addresses_of_node(graph, name),
        Child::New(spec) => addresses_below(graph, spec),
    };
    match &spec.driver {
        Driver::File { .. } => Vec::new(),
        Driver::Nbd { uri } => vec![uri.address.clone()],
        Driver::Raw { file: child }
        | Driver::Standby { file: child, .. }
        | Driver::Buffer { backing: child, .. } => of(child),
        Driver::Replica { file, control, .. } => of(file).into_iter().chain(control.clone()).collect(),
        Driver::Quorum { children, .. } => children.iter().flat_map(of).collect(),
    }
}

/// The addresses of a node that is there, and of those that it lies on.
pub(super) fn addresses_of_node(graph: &Graph, name: &str) -> Vec<Address> {
    let Some(node) = graph.find(name) else { return Vec::new() };
    let own = match &node.kind {
        Kind::Nbd { uri } => Some(uri.address.clone()),
        Kind::Replica { control, .. } => control.clone(),
        _ => None,
    };
    let below = node.children.iter().flat_map(|edge| addresses_of_node(graph, &edge.node));
    own.into_iter().chain(below).collect()
}
