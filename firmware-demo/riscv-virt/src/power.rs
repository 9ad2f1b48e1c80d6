//! The end: the machine is switched off, and its emulator ends with an exit code.

use core::fmt::Write as _;

use crate::console::Console;
use crate::hardware::{Device, write32};

const PASS: u32 = 0x5555;
const FAIL: u32 = 0x3333;

/// Switches the machine off (SiFive's test finisher): the emulator ends with this code.
pub fn off(code: u8) -> ! {
    let word = if code == 0 { PASS } else { u32::from(code) << 16 | FAIL };
    loop {
        write32(Device::Power, 0, word);
    }
}

/// What a program does in a panic: it says where, and switches the machine off.
pub fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let _ = writeln!(Console::open(), "panic: {info}");
    off(101)
}

/// An exception: most likely the stack has run into its guard.
#[unsafe(export_name = "ExceptionHandler")]
extern "C" fn exception(_frame: &riscv_rt::TrapFrame) -> ! {
    let (cause, at) = (riscv::register::mcause::read().code(), riscv::register::mepc::read());
    let value = riscv::register::mtval::read();
    let _ = writeln!(Console::open(), "exception {cause} at {at:#x}, value {value:#x}");
    off(102)
}
