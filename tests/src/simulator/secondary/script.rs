//! The script: anything at any time, and then an end in which everything must come to rest.

use twinblock_core::block::{Completion, Tag};
use twinblock_core::secondary::{Command, Input, Port};
use twinblock_core::{
    ConnectionId, Data, Device, Extent, Micros, Op, Outcome, Pool, Refused, Request, RequestId, Stage,
};

use super::super::disk::Faults;
use super::World;
use super::command::Asked;

/// Far more steps than any script needs to come to rest.
const STEPS_TO_REST: u32 = 20_000;
/// Pieces that a client has ready.
const OUTBOX_MAX: usize = 4;

impl World<'_> {
    /// Everything.
    pub(super) fn play(&mut self) {
        self.open();
        self.open();
        if self.rng.u8(..4) != 0 {
            self.command(Command::Start { primary: false });
        }
        let steps = self.settings.steps;
        for step in 0..steps {
            self.anything();
            if step == steps / 2 && self.rng.u8(..4) == 0 {
                self.rest();
            }
        }
        self.rest();
        self.end();
    }

    fn anything(&mut self) {
        match self.rng.u8(..100) {
            0..40 => self.devices(),
            40..82 => self.any_client(),
            82..88 => self.pass_time(),
            88..93 => self.any_command(),
            93..95 => self.open(),
            95..97 => self.part(),
            97 => self.stale(),
            98 => self.bad_request(),
            _ => self.change_faults(),
        }
    }

    /// One transfer of one device makes progress.
    fn devices(&mut self) {
        let Self { driver, rng, arena, .. } = self;
        let devices = driver.devices_mut();
        let is_disk = match (devices.disk.in_flight(), devices.buffer.in_flight()) {
            (0, _) => false,
            (_, 0) => true,
            _ => rng.bool(),
        };
        let device = if is_disk { &mut devices.disk } else { &mut devices.buffer };
        let is_done = device.progress(rng, arena);
        self.meet_completion(is_disk, is_done);
        self.drain();
    }

    fn any_client(&mut self) {
        if self.clients.is_empty() {
            return self.open();
        }
        let client = self.rng.usize(..self.clients.len());
        if self.clients[client].outbox.len() < OUTBOX_MAX {
            self.ask(client);
        }
        for _ in 0..self.rng.u8(1..4) {
            if !self.offer(client) {
                break;
            }
        }
    }

    fn pass_time(&mut self) {
        // Seldom the clock jumps.
        let is_jump = self.rng.u8(..16) == 0 && !self.settings.is_calm;
        self.has_jumped |= is_jump;
        let bits = if is_jump { self.rng.u8(16..40) } else { self.rng.u8(..16) };
        let span = self.rng.u64(1..=1 << bits);
        self.now = self.now.after(Micros(span));
        self.drain();
    }

    fn part(&mut self) {
        if !self.clients.is_empty() {
            let told = self.clients.iter().position(|client| client.is_told_to_close);
            let client = told.unwrap_or_else(|| self.rng.usize(..self.clients.len()));
            if !self.settings.is_calm || self.may_leave(client) {
                self.close(client);
            }
        }
    }

    fn change_faults(&mut self) {
        let faults = if self.rng.bool() { Faults::NONE } else { self.settings.faults };
        let devices = self.driver.devices_mut();
        if self.rng.bool() {
            devices.disk.faults = faults;
        } else {
            devices.buffer.faults = faults;
        }
    }

    /// What names nothing is refused.
    fn stale(&mut self) {
        let tag = Tag { entry: self.rng.u16(..40), generation: self.rng.u32(..3).wrapping_sub(1) };
        let is_used = self.disk().transfers().chain(self.buffer().transfers()).any(|other| other.tag == tag);
        let connection = ConnectionId(0);
        let flush = Request::whole(RequestId(0), Op::Flush, Extent::default());
        let inputs = [
            Input::Completed(Device::Disk, Completion { tag, result: Ok(Outcome::Done) }),
            Input::Closed { connection, is_clean: true },
            Input::Request(connection, flush),
        ];
        let skipped = usize::from(is_used);
        for input in inputs.into_iter().skip(skipped) {
            assert_eq!(self.driver.offer(self.now, input), Err(Refused::Stale), "{input:?}");
        }
        self.drain();
    }

    /// What does not fit is refused.
    fn bad_request(&mut self) {
        let Some(client) = self.clients.first() else { return };
        let connection = client.connection;
        let size = self.settings.disk.size_bytes;
        let window = u64::from(self.settings.config.window_bytes);
        let block = u64::from(self.settings.disk.block_bytes);
        let zeroes = Op::WriteZeroes { may_unmap: true, fast: false, fua: false };
        let Some(buffer) = self.arena.acquire(1) else { return };
        let data = Data { buffer, offset: 0, length: block as u32 };
        let bad = [
            (zeroes, Extent { offset: size, length: block }),
            (zeroes, Extent { offset: u64::MAX, length: u64::MAX }),
            (zeroes, Extent { offset: 0, length: 0 }),
            (zeroes, Extent { offset: window - block, length: 2 * block }),
            (zeroes, Extent { offset: 0, length: window * 2 }),
            (Op::Read(data), Extent { offset: 0, length: 2 * block }),
            (Op::Write { data, fua: false }, Extent { offset: 1, length: block + 1 }),
            (Op::Status, Extent { offset: 0, length: 0 }),
            (Op::Flush, Extent { offset: 0, length: block }),
        ];
        for (op, extent) in bad {
            let request = Request::whole(RequestId(0), op, extent);
            let result = self.driver.offer(self.now, Input::Request(connection, request));
            assert_eq!(result, Err(Refused::BadRequest), "{request:?}");
        }
        self.arena.release(buffer);
        self.drain();
    }

    /// Everything that was asked is answered if only the devices complete, clients close when told, and time passes.
    fn rest(&mut self) {
        self.trace(|_| "rest".into());
        for _ in 0..STEPS_TO_REST {
            if self.disk().in_flight() + self.buffer().in_flight() != 0 {
                self.devices();
            } else if self.send_something() {
            } else if let Some(told) = self.clients.iter().position(|client| client.is_told_to_close) {
                self.close(told);
            } else if let Some(due) = self.driver.poll_timeout() {
                self.now = self.now.max(due);
                self.drain();
            } else if self.asked.iter().any(Asked::is_waiting_for_more) {
                // The primary has died with what it has counted.
                self.command(Command::Checkpoint { force: true });
            } else if self.flying.is_empty() && self.clients.iter().all(|client| client.outbox.is_empty()) {
                return self.check_idle();
            } else if self.flying.is_empty() {
                // What was in the way was answered while the next was offered in vain.
            } else {
                panic!("nothing can be done and {} requests wait: {:?}", self.flying.len(), self.flying);
            }
        }
        panic!("it does not come to rest");
    }

    fn send_something(&mut self) -> bool {
        (0..self.clients.len()).any(|client| self.offer(client))
    }

    /// What goes on while the commit does, or after it has failed.
    fn go_on(&mut self) {
        for _ in 0..self.rng.u8(..40) {
            self.any_client();
            self.devices();
            match self.rng.u8(..24) {
                0..=3 if self.model.stage != Stage::Running => self.any_command(),
                4..=5 => self.open(),
                6 => self.part(),
                _ => {}
            }
        }
    }

    /// The secondary takes over, one way or the other.
    fn end(&mut self) {
        let failover = self.rng.u8(..4) != 0;
        if self.model.stage == Stage::None {
            assert!(self.asked.is_empty(), "{:?} is not answered", self.asked);
            return;
        }
        if self.model.stage == Stage::Running {
            let failover = failover && !self.model.is_broken;
            for _ in 0..self.rng.u8(..40) {
                self.any_client();
            }
            if self.model.stage == Stage::Running && !(failover && self.model.is_broken) {
                self.command(Command::Stop { failover, force: true });
            }
            self.go_on();
        }
        for _ in 0..4 {
            self.rest();
            if self.model.stage != Stage::FailoverFailed {
                break;
            }
            self.go_on();
            self.command(Command::Stop { failover: true, force: false });
            self.go_on();
        }
        let devices = self.driver.devices_mut();
        devices.disk.faults = Faults::NONE;
        devices.buffer.faults = Faults::NONE;
        self.rest();
        if self.model.stage == Stage::FailoverFailed {
            self.command(Command::Stop { failover: true, force: false });
        }
        self.rest();
        if self.model.stage == Stage::Running {
            assert!(self.model.is_broken, "the stop did not take place");
            return;
        }
        assert_eq!(self.model.stage, Stage::Done);
        assert!(self.asked.is_empty(), "{:?} is not answered", self.asked);
        assert!(self.disk().bytes() == self.model.view, "the disk is not what the guest saw");
        let guest = self.clients.iter().position(|client| client.port == Port::Guest);
        if let Some(guest) = guest {
            self.ask(guest);
            self.rest();
        }
    }
}
