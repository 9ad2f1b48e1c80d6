//! Resets the board if the program hangs (DS-LM3S6965, "Watchdog Timer").

use crate::hardware::{Device, read, write};

const LOAD: usize = 0x00;
const CONTROL: usize = 0x08;
const CLEAR: usize = 0x0c;
const CONTROL_COUNT: u32 = 1;
const CONTROL_RESET: u32 = 1 << 1;
/// It counts to zero twice before it resets the board.
const CYCLES: u32 = 12_500_000 * 10;

/// The watchdog; asleep until the first [`Watchdog::feed`].
#[derive(Debug)]
pub struct Watchdog(pub(crate) ());

impl Watchdog {
    /// All is well: the board is reset if this is not said again for 10 to 20 s.
    pub fn feed(&mut self) {
        write(Device::Watchdog, LOAD, CYCLES);
        write(Device::Watchdog, CLEAR, 1);
        let control = read(Device::Watchdog, CONTROL);
        if control & CONTROL_COUNT == 0 {
            write(Device::Watchdog, CONTROL, CONTROL_COUNT | CONTROL_RESET);
        }
    }
}
