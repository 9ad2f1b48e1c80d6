//! Counts the instructions that the core takes for a request: exactly, and the same on every machine.
//!
//! The core's driver and machines run over disks that complete at once and copy nothing ([`null`]), so that what is counted
//! is the core alone. A processor that is emulated with `-icount shift=0` counts what it executes. Each line of the output
//! is a name, the mean and the most of a number of times; the script beside this compares them with the documentation.
#![no_std]
#![no_main]

mod null;
mod primary;
mod secondary;
mod sessions;

use core::fmt::Write as _;

use twinblock_riscv_virt::console::Console;
use twinblock_riscv_virt::{instructions_retired, power, stack};

/// Bytes of a request, a window and a granule.
pub(crate) const BLOCK: u32 = 4096;
/// How often each thing is done.
pub(crate) const TIMES: u32 = 512;

#[riscv_rt::entry]
fn main() -> ! {
    stack::guard_stack();
    primary::count();
    secondary::count();
    sessions::count();
    power::off(0)
}

/// Counts what is done several times.
pub(crate) struct Count {
    name: &'static str,
    total: usize,
    most: usize,
    times: usize,
    last: usize,
}

impl Count {
    pub(crate) const fn new(name: &'static str) -> Self {
        Self { name, total: 0, most: 0, times: 0, last: 0 }
    }

    /// Does it once more. What it takes to count is not counted.
    pub(crate) fn once<R>(&mut self, work: impl FnOnce() -> R) -> R {
        self.times += 1;
        self.last = 0;
        self.once_more(work)
    }

    /// Does another part of what was done last.
    pub(crate) fn once_more<R>(&mut self, work: impl FnOnce() -> R) -> R {
        let before = instructions_retired();
        let nothing = instructions_retired() - before;
        let start = instructions_retired();
        let result = work();
        let taken = instructions_retired() - start - nothing;
        self.total += taken;
        self.last += taken;
        self.most = self.most.max(self.last);
        result
    }

    /// Prints the mean, rounded to the nearest, and the most.
    pub(crate) fn tell(&self) {
        let mean = (self.total + self.times / 2) / self.times.max(1);
        let _ = writeln!(Console::open(), "{}: {mean} {}", self.name, self.most);
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    power::panic(info)
}
