//! The script of a pair: it runs, the primary dies, the secondary takes over.

use twinblock_core::buffer::Spot;
use twinblock_core::primary;
use twinblock_core::secondary::{Command, Input, Port};
use twinblock_core::{CommandId, ConnectionId, Extent, Micros, Refused, Stage, View};

use super::super::disk::{Disk, Faults, range};
use super::client::Side;
use super::{Ending, GUEST, Pair};

/// Far more steps than anything needs to come to rest.
const STEPS_TO_REST: u32 = 20_000;
/// Steps of a script.
const STEPS: u64 = 250;

impl Pair<'_> {
    pub(super) fn play(&mut self) {
        self.begin();
        while self.step < STEPS.min(self.plan.steps_max) {
            self.anything();
        }
        let lives_on = self.step < self.plan.steps_max && self.rng.bool();
        if lives_on {
            self.rest();
            self.compare_twins();
        }
        self.die();
        self.take_over();
    }

    fn begin(&mut self) {
        for connection in [GUEST, ConnectionId(GUEST.0 + 1)] {
            self.primary.offer(self.now, primary::Input::Opened(connection)).expect("there is a place");
            let opened = Input::Opened { connection, port: Port::Guest, identity: None };
            self.secondary.offer(self.now, opened).expect("there is a place");
        }
        let attach = primary::Command::Attach { replica: 0, is_empty: false, is_new: true };
        self.primary_command(attach);
        self.secondary_command(Command::Start { primary: false }).expect("it starts");
        self.connect();
        self.primary_command(primary::Command::Start { primary: true });
        self.step = 1;
    }

    pub(super) fn primary_command(&mut self, wanted: primary::Command) {
        let command = CommandId(self.name());
        self.primary.offer(self.now, primary::Input::Command(command, wanted)).expect("it is taken");
        self.drain();
    }

    /// A manager's operation on the secondary; its answer, or nothing if it waits.
    fn secondary_command(&mut self, wanted: Command) -> Result<(), Refused> {
        let command = CommandId(self.name());
        self.control.manager = Some((command, wanted));
        self.control.manager_result = None;
        let result = self.secondary.offer(self.now, Input::Command(command, wanted));
        self.trace(|_| format!("manager: {wanted:?}: {result:?}"));
        if result.is_err() {
            self.control.manager = None;
        }
        self.drain();
        result
    }

    fn anything(&mut self) {
        match self.rng.u8(..100) {
            0..30 => self.any_request(Side::Primary),
            30..40 => self.any_request(Side::Secondary),
            40..55 => self.any_disk(),
            55..72 => drop(self.deliver()),
            72..82 => self.any_answer(),
            82..90 => drop(self.control()),
            90..94 => self.begin_checkpoint(),
            94..97 => self.pass_time(),
            _ if !self.plan.has_faults => self.any_disk(),
            97 => self.cut_or_connect(),
            98 => {
                let per_million = if self.rng.bool() { 0 } else { 30_000 };
                self.set_faults(Faults { per_million, slow_zeroes_percent: 0 });
            }
            _ => self.any_disk(),
        }
        if self.control.wants_room {
            self.begin_checkpoint();
        }
    }

    fn cut_or_connect(&mut self) {
        if self.link().is_up() { self.cut() } else { self.connect() }
    }

    fn pass_time(&mut self) {
        let span = 1 << self.rng.u8(..13);
        self.now = self.now.after(Micros(span));
        self.drain();
    }

    fn any_disk(&mut self) {
        let Self { primary, secondary, rng, primary_arena, secondary_arena, is_dead, .. } = self;
        let own = &mut primary.devices_mut().disk;
        let devices = secondary.devices_mut();
        let mut busy: Vec<u8> = Vec::new();
        busy.extend((own.in_flight() != 0 && !*is_dead).then_some(0));
        busy.extend((devices.disk.in_flight() != 0).then_some(1));
        busy.extend((devices.buffer.in_flight() != 0).then_some(2));
        if busy.is_empty() {
            return;
        }
        match busy[rng.usize(..busy.len())] {
            0 => own.progress(rng, primary_arena),
            1 => devices.disk.progress(rng, secondary_arena),
            _ => devices.buffer.progress(rng, secondary_arena),
        }
        self.drain();
    }

    fn any_answer(&mut self) {
        let count = self.link().answers();
        if count != 0 {
            let answer = self.rng.usize(..count);
            self.link_mut().arrive(answer);
            self.drain();
        }
    }

    fn disks_in_flight(&self) -> usize {
        let devices = self.secondary.devices();
        let own = if self.is_dead { 0 } else { self.primary.devices().disk.in_flight() };
        own + devices.disk.in_flight() + devices.buffer.in_flight()
    }

    /// Everything that was asked is answered.
    fn rest(&mut self) {
        self.trace(|_| "rest".into());
        self.set_faults(Faults::NONE);
        for _ in 0..STEPS_TO_REST {
            if self.disks_in_flight() != 0 {
                self.any_disk();
            } else if !self.is_dead && self.link().answers() != 0 {
                self.any_answer();
            } else if (!self.is_dead && (self.deliver() || self.send_rest(Side::Primary)))
                || self.send_rest(Side::Secondary)
                || self.control()
            {
            } else if let Some(due) = self.due() {
                self.now = self.now.max(due);
                self.drain();
            } else {
                return self.check_rest();
            }
        }
        panic!("it does not come to rest");
    }

    fn due(&self) -> Option<Micros> {
        let coordinator = if self.is_dead { None } else { self.coordinator.poll_timeout() };
        [self.secondary.poll_timeout(), coordinator].into_iter().flatten().min()
    }

    fn check_rest(&self) {
        assert!(self.twin.flying.is_empty() && !self.has_rest(Side::Secondary), "{:?}", self.twin.flying);
        assert_eq!(self.secondary.machine().in_flight(), 0, "the secondary is stuck");
        if !self.is_dead {
            assert!(self.guest.flying.is_empty() && !self.has_rest(Side::Primary), "{:?}", self.guest.flying);
            assert!(self.link().is_idle() && self.primary.machine().in_flight() == 0);
            assert!(self.is_control_idle() && !self.coordinator.is_busy());
        }
    }

    /// At rest the twins hold the same, unless the primary knows better.
    fn compare_twins(&mut self) {
        let own = self.primary.devices().disk.bytes();
        assert!(own == self.guest.content, "the primary disk is not what its guest was told");
        let is_equal = self.secondary_disk().bytes() == self.guest.content;
        assert!(is_equal || self.is_behind(), "the twins differ and nobody knows");
        let verdict = if self.is_behind() { "behind" } else { "equal" };
        self.coverage.count("twins at rest", Stage::Running, verdict);
    }

    fn die(&mut self) {
        self.trace(|_| "the primary dies".into());
        self.is_dead = true;
        self.drop_control();
        self.cut();
    }

    /// One way or the other.
    fn take_over(&mut self) {
        let failover = match self.plan.ending {
            Ending::Failover => true,
            Ending::Stop => false,
            Ending::Any => self.rng.bool(),
        };
        if self.secondary.machine().view() == View::Broken && failover {
            let result = self.secondary_command(Command::Stop { failover, force: false });
            assert_eq!(result, Err(Refused::ViewBroken));
            self.coverage.count("take over", Stage::Running, "view broken");
            return;
        }
        self.control.is_failing_over = failover;
        let result = self.secondary_command(Command::Stop { failover, force: false });
        if result == Err(Refused::Missing) {
            assert!(!failover, "a failover does not ask what is missing");
            self.secondary_command(Command::Stop { failover, force: true }).expect("it is forced");
        }
        for _ in 0..self.rng.u8(..20) {
            self.any_request(Side::Secondary);
            self.any_disk();
        }
        self.rest();
        if self.secondary.machine().stage() == Stage::FailoverFailed {
            self.secondary_command(Command::Stop { failover: true, force: false })
                .expect("it is tried again");
            self.rest();
        }
        assert_eq!(self.secondary.machine().stage(), Stage::Done);
        assert!(self.secondary_disk().bytes() == self.twin.content, "not what the guest should see");
        let verdict = if failover { "failover" } else { "stop" };
        self.coverage.count("take over", Stage::Running, verdict);
    }

    /// Without a failover the secondary's disk has every write that the primary's guest was told of; checked when the
    /// stop has taken place, before its new guest writes.
    pub(super) fn check_stopped(&self) {
        if self.is_behind() {
            return;
        }
        for (byte, is) in self.secondary_disk().bytes().iter().enumerate() {
            assert!(self.guest.may_be(byte, *is), "byte {byte} was acknowledged and is not here");
        }
    }

    /// What the secondary's guest would read now.
    pub(super) fn resolve_view(&self) -> Vec<u8> {
        let mut view = self.secondary_disk().bytes().to_vec();
        let mut rest = Extent { offset: 0, length: self.size };
        while !rest.is_empty() {
            let found = self.secondary.machine().buffer().find(rest);
            let part = Extent { length: found.length, ..rest };
            match found.spot {
                Spot::Slot(at) => {
                    let slots: &Disk = &self.secondary.devices().buffer;
                    let from = range(Extent { offset: at, length: part.length });
                    view[range(part)].copy_from_slice(&slots.bytes()[from]);
                }
                Spot::Zeroes => view[range(part)].fill(0),
                Spot::Absent => {}
            }
            rest = Extent::between(part.end(), rest.end());
        }
        view
    }

    /// The secondary's guest sees the last checkpoint and its own writes, at every step.
    pub(super) fn compare_view(&self) {
        let machine = self.secondary.machine();
        if machine.stage() == Stage::None || machine.view() == View::Broken {
            return;
        }
        let view = self.resolve_view();
        if view == self.twin.content {
            return;
        }
        for (byte, is) in view.iter().enumerate() {
            assert!(self.twin.may_be(byte, *is), "byte {byte} of the view is {is:#x}");
        }
    }
}
