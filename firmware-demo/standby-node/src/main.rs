//! A microcontroller with 64 KiB of RAM that keeps a twin of a disk on an SD card.
//!
//! The board is an lm3s6965evb. Two partitions of the card are the secondary disk and its disk buffer; the host reaches
//! the node over Ethernet by NBD and by the control module, as it reaches a daemon. There is no allocator and no operating
//! system: [`memory`] holds all that is lent to the core and to TCP, and the loop below gives each its turn and sleeps when
//! there is nothing to do.
//!
//! After a reset, by a watchdog or by hand, the node is in stage None: what its card holds is the primary's last state and
//! nobody's view, and it says so until a manager starts it anew.
#![no_std]
#![no_main]

mod clients;
mod managers;
mod memory;
mod network;
mod node;
mod settings;

use cortex_m as _;
use twinblock_core::driver::Emitted;
use twinblock_core::{Event, Micros, Notice};
use twinblock_lm3s6965::ethernet::Controller;
use twinblock_lm3s6965::{Board, clock, ethernet, sleep_unless, stack};

use clients::{Client, Exported};
use managers::Manager;
use network::Network;
use node::Node;

defmt::timestamp!("{=u64:ms}", clock::uptime_ms());

/// How often the node tells how it stands, if anything was asked of it.
const REPORT_EVERY: Micros = Micros::from_ms(1000);

#[cortex_m_rt::entry]
fn main() -> ! {
    stack::guard_stack();
    let Some(board) = Board::take() else { halt() };
    defmt_serial::defmt_serial(memory::LOG.init(board.uart));
    let mut clock = board.clock;
    let mut watchdog = board.watchdog;
    let now = Micros(clock.now());
    let Some(node) = Node::open(board.card) else { halt() };
    let Some(program) = Program::build(node, board.ethernet, now) else { halt() };
    program.greet();
    loop {
        watchdog.feed();
        if !program.turn(Micros(clock.now())) {
            sleep_unless(ethernet::has_frame);
        }
    }
}

/// Everything that takes turns.
pub(crate) struct Program {
    node: &'static mut Node,
    network: Network,
    exports: Exported,
    clients: [Client; settings::CLIENTS],
    managers: [Manager; settings::MANAGERS],
    reported: Reported,
}

/// What was told last.
#[derive(Clone, Copy, Default)]
struct Reported {
    at: Micros,
    requests: u32,
    stack_bytes: usize,
}

impl Program {
    /// All but the node. It lies in a static, and is put there by a call of its own: what is moved about meanwhile is not
    /// on the stack afterwards.
    #[inline(never)]
    fn build(node: &'static mut Node, ethernet: Controller, now: Micros) -> Option<&'static mut Self> {
        let mut network = network::open(ethernet, now);
        let [first, second] = memory::CLIENTS.take();
        let clients = [Client::new(0, first, &mut network).ok()?, Client::new(1, second, &mut network).ok()?];
        let managers = memory::MANAGERS.take().each_mut().map(|memory| Manager::new(memory, &mut network));
        let machine = node.machine();
        let exports = Exported { size_bytes: machine.size_bytes(), block_bytes: machine.block_bytes() };
        let reported = Reported::default();
        Some(memory::PROGRAM.init(Self { node, network, exports, clients, managers, reported }))
    }

    fn greet(&self) {
        let buffer = self.node.machine().buffer();
        defmt::info!(
            "standby node: disk of {=u64} bytes, buffer of {=u64} bytes and {=usize} granules or more, NBD port {=u16}, control port {=u16}",
            self.exports.size_bytes,
            buffer.size_bytes(),
            settings::GRANULES_MIN,
            settings::NBD_PORT,
            settings::CONTROL_PORT,
        );
    }

    /// Gives everybody one turn. Whether anything was done: then there may be more.
    fn turn(&mut self, now: Micros) -> bool {
        let mut has_worked = self.network.work(now, settings::FRAMES_MAX);
        for client in &mut self.clients {
            has_worked |= client.serve(now, &self.exports, &mut self.network, self.node);
        }
        for manager in &mut self.managers {
            has_worked |= manager.serve(now, &mut self.network, self.node);
        }
        let mut budget = Node::budget();
        while let Some(emitted) = self.node.work(now, &mut budget) {
            self.pass_on(emitted, now);
            has_worked = true;
        }
        // Without a budget left the card had work to do, and may have more.
        has_worked |= budget == 0;
        for client in &mut self.clients {
            has_worked |= client.send(&mut self.network, self.node);
        }
        self.report(now);
        has_worked
    }

    fn pass_on(&mut self, emitted: Emitted, now: Micros) {
        match emitted {
            Emitted::Reply(reply) => {
                if let Some(client) = self.clients.get_mut((reply.id.0 >> 16) as usize) {
                    client.reply(reply, self.node);
                }
            }
            Emitted::Notice(Notice::Answer(command, result)) => {
                let epoch = self.node.machine().epoch();
                let mut managers = self.managers.iter_mut();
                // One whose manager has gone concerns nobody.
                managers.any(|manager| manager.answer(command, result, epoch, &mut self.network));
                defmt::debug!("epoch {}: {}", epoch, result);
            }
            Emitted::Notice(Notice::Close(connection)) => {
                for client in &mut self.clients {
                    if client.close(connection, now, &mut self.network, self.node) {
                        break;
                    }
                }
            }
            Emitted::Notice(Notice::Event(event)) => {
                if !matches!(event, Event::CommitProgress { .. }) {
                    defmt::info!("{}", event);
                }
                for manager in &mut self.managers {
                    manager.tell(event, &mut self.network);
                }
            }
        }
    }

    /// Tells the log how the node stands, if that has changed.
    fn report(&mut self, now: Micros) {
        if now < self.reported.at.after(REPORT_EVERY) {
            return;
        }
        let stack = stack::stack_use();
        let requests = self.node.requests;
        if requests != self.reported.requests || stack.used_bytes != self.reported.stack_bytes {
            let frames = self.network.device().counts();
            defmt::info!(
                "requests {=u32}, stack {=usize} of {=usize} bytes, frames {=u32} in {=u32} out {=u32} dropped",
                requests,
                stack.used_bytes,
                stack.total_bytes,
                frames.received,
                frames.sent,
                frames.dropped,
            );
        }
        self.reported = Reported { at: now, requests, stack_bytes: stack.used_bytes };
    }
}

/// Nothing can be done any more. The watchdog, if it was ever fed, resets the board; otherwise somebody must look at it.
fn halt() -> ! {
    loop {
        sleep_unless(|| false);
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    defmt::error!("{}", defmt::Display2Format(info));
    halt()
}

/// A fault: most likely the stack has run into its guard. The watchdog ends it.
#[cortex_m_rt::exception]
unsafe fn HardFault(_frame: &cortex_m_rt::ExceptionFrame) -> ! {
    loop {
        cortex_m::asm::nop();
    }
}
