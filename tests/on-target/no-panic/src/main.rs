//! Reaches everything that the core does with what comes from outside, and cannot be linked if that may panic.
//!
//! The panic handler calls a function that is nowhere. The program is optimised as a whole, so that a panic which cannot
//! happen is gone before the linker looks for that function. It is never run. What the core is given, and what it has in its
//! memory, goes through [`any`]: the compiler must expect any value there, and any state of a machine, also one that a
//! machine never comes into. So a bound that only an invariant keeps is no proof here; the core has to have an answer.
//!
//! With the feature `list` it is linked nevertheless, for `panics` to tell where the panics are. With `json` it reaches the
//! JSON text of managers as well, which a library reads and writes: that one checks what it does, but not so that a
//! compiler can see it, so that its panics are listed and nobody else's may be among them.
#![no_std]
#![no_main]

mod codecs;
mod control;
mod devices;
mod machines;

use core::hint::black_box;

/// Any value of this type, as far as the compiler can tell.
fn any<T>(value: T) -> T {
    black_box(value)
}

/// Uses a value, so that it has to be made.
fn see<T>(value: T) {
    black_box(value);
}

/// Memory of any length.
fn lent<T>() -> &'static mut [T] {
    any(&mut [])
}

/// Where the linker begins; what is not reached from here is left out.
#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    machines::primary();
    machines::secondary();
    machines::coordinator();
    machines::bitmap();
    machines::index();
    codecs::server();
    codecs::client();
    codecs::headers();
    control::words();
    #[cfg(feature = "json")]
    {
        control::incoming();
        control::outgoing();
    }
    devices::blocking();
    loop {
        core::hint::spin_loop();
    }
}

#[cfg(not(feature = "list"))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    unsafe extern "C" {
        safe fn a_panic_can_be_reached() -> !;
    }
    a_panic_can_be_reached()
}

#[cfg(feature = "list")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    black_box(info.location());
    loop {
        core::hint::spin_loop();
    }
}
