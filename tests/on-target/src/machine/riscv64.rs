//! QEMU's machine virt, RISC-V of 64 bits.

/// Nothing is done: the stack is far larger than what the smaller machine does with.
pub const fn guard_stack() {}

/// Nothing is printed: it is measured where memory is short.
pub const fn print_stack_use() {}

/// It is not measured here.
#[must_use]
pub const fn is_stack_half_free() -> bool {
    true
}

/// An exception that nobody expects.
#[riscv_rt::exception(riscv::interrupt::Exception::LoadFault)]
fn load_fault(_frame: &riscv_rt::TrapFrame) -> ! {
    fault("load fault")
}

/// An exception that nobody expects.
#[riscv_rt::exception(riscv::interrupt::Exception::StoreFault)]
fn store_fault(_frame: &riscv_rt::TrapFrame) -> ! {
    fault("store fault")
}

fn fault(what: &str) -> ! {
    semihosting::println!("{what} at {:#x}", riscv::register::mepc::read());
    semihosting::process::exit(1)
}
