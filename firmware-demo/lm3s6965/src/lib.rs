//! The board lm3s6965evb: what a Twinblock node needs of it.
//!
//! | module | what is there |
//! |---|---|
//! | [`stack`] | a guard below the stack, and how much of it was used |
//! | [`clock`] | microseconds since the reset |
//! | [`watchdog`] | a reset for a program that hangs |
//! | `uart` | the first UART, for logs |
//! | `card` | the SD card behind the SPI controller |
//! | `ethernet` | the Ethernet controller as a device of smoltcp |
//!
//! Source: the data sheet "Stellaris LM3S6965 Microcontroller" (DS-LM3S6965), by chapter; the ARMv7-M Architecture
//! Reference Manual for what belongs to the processor. Nothing here interrupts the program but the clock: a node asks
//! its devices when it has time, and sleeps ([`sleep_unless`]) until one of them has something.
#![no_std]

#[cfg(feature = "card")]
pub mod card;
pub mod clock;
#[cfg(feature = "ethernet")]
pub mod ethernet;
mod hardware;
pub mod stack;
#[cfg(feature = "uart")]
pub mod uart;
pub mod watchdog;

use core::sync::atomic::{AtomicBool, Ordering};

static IS_TAKEN: AtomicBool = AtomicBool::new(false);

/// The board's devices, each of which there is once.
#[derive(Debug)]
pub struct Board {
    /// Time since the reset.
    pub clock: clock::Clock,
    /// Resets the board if nobody tells it in time that all is well.
    pub watchdog: watchdog::Watchdog,
    /// The first UART.
    #[cfg(feature = "uart")]
    pub uart: uart::Uart,
    /// The SD card's bus.
    #[cfg(feature = "card")]
    pub card: card::CardBus,
    /// The Ethernet controller.
    #[cfg(feature = "ethernet")]
    pub ethernet: ethernet::Controller,
}

impl Board {
    /// All devices, switched on; `None` if they were taken before.
    #[must_use]
    pub fn take() -> Option<Self> {
        // The processor has compare-and-swap, but a swap is all that is needed.
        if IS_TAKEN.swap(true, Ordering::AcqRel) {
            return None;
        }
        hardware::enable_clocks();
        Some(Self {
            clock: clock::Clock::start(cortex_m::Peripherals::take()?.SYST),
            watchdog: watchdog::Watchdog(()),
            #[cfg(feature = "uart")]
            uart: uart::Uart::open(),
            #[cfg(feature = "card")]
            card: card::CardBus(()),
            #[cfg(feature = "ethernet")]
            ethernet: ethernet::Controller(()),
        })
    }
}

/// Sleeps until the clock ticks or a frame has come, unless there is something to do already. What `has_work` asks is
/// asked with interrupts off, so that nothing which comes between the question and the sleep is slept over.
pub fn sleep_unless(has_work: impl FnOnce() -> bool) {
    cortex_m::interrupt::disable();
    if !has_work() {
        hardware::wait_for_interrupt();
    }
    hardware::enable_interrupts();
}
