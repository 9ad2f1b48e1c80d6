//! Microseconds since the reset, from the processor's own timer.

use core::sync::atomic::{AtomicU32, Ordering};

use cortex_m::peripheral::SYST;
use cortex_m::peripheral::syst::SystClkSource;

/// Frequency of the processor after a reset, as nobody changes it: 200 MHz divided by 16 (DS-LM3S6965, "Run-Mode Clock
/// Configuration"). A board that runs on its internal oscillator is some percent off.
const CYCLES_PER_SECOND: u32 = 12_500_000;
/// How often the clock ticks, and with that how long a node sleeps at most.
pub const TICK_MICROS: u32 = 10_000;
const CYCLES_PER_TICK: u32 = CYCLES_PER_SECOND / (1_000_000 / TICK_MICROS);
const _: () = assert!(CYCLES_PER_TICK < 1 << 24, "the timer counts 24 bits");

/// Ticks since the start; wraps after 497 days, which [`Clock::now`] sees to.
static TICKS: AtomicU32 = AtomicU32::new(0);

#[cortex_m_rt::exception]
fn SysTick() {
    // There is one writer: no read-modify-write is needed.
    TICKS.store(TICKS.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}

/// Milliseconds since the start, to the tick, for logs: wraps with the ticks.
#[must_use]
pub fn uptime_ms() -> u64 {
    u64::from(TICKS.load(Ordering::Relaxed)) * u64::from(TICK_MICROS / 1000)
}

/// The clock.
#[derive(Debug)]
pub struct Clock {
    /// Ticks as they were counted last, all of them.
    ticks: u64,
}

impl Clock {
    pub(crate) fn start(mut timer: SYST) -> Self {
        timer.set_clock_source(SystClkSource::Core);
        timer.set_reload(CYCLES_PER_TICK - 1);
        timer.clear_current();
        timer.enable_counter();
        timer.enable_interrupt();
        Self { ticks: 0 }
    }

    /// Microseconds since the reset; never runs backwards. To be asked once in 497 days at least.
    pub fn now(&mut self) -> u64 {
        let (ticks, cycles_left) = loop {
            let ticks = TICKS.load(Ordering::Relaxed);
            let cycles_left = SYST::get_current();
            if TICKS.load(Ordering::Relaxed) == ticks {
                break (ticks, cycles_left);
            }
        };
        self.ticks += u64::from(ticks.wrapping_sub(self.ticks as u32));
        let within = (CYCLES_PER_TICK - 1).saturating_sub(cycles_left) / (CYCLES_PER_SECOND / 100_000);
        self.ticks * u64::from(TICK_MICROS) + u64::from(within) * 10
    }
}
