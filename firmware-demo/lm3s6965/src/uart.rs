//! The first UART, for logs: 115,200 baud, 8 bits, no parity (DS-LM3S6965, "UART").

use core::convert::Infallible;

use crate::hardware::{Device, read, write};

const DATA: usize = 0x00;
const FLAGS: usize = 0x18;
const BAUD_WHOLE: usize = 0x24;
const BAUD_FRACTION: usize = 0x28;
const LINE: usize = 0x2c;
const CONTROL: usize = 0x30;
const FLAGS_SEND_FULL: u32 = 1 << 5;
const FLAGS_BUSY: u32 = 1 << 3;
/// 8 bits with the FIFO.
const LINE_8_BITS: u32 = 0x70;
const CONTROL_ENABLE_SEND: u32 = 0x101;
/// 12.5 MHz / (16 × 115,200) = 6.78: 6 and 50/64.
const DIVISOR: (u32, u32) = (6, 50);

/// The UART. Sending waits for room in its FIFO.
#[derive(Debug)]
pub struct Uart(());

impl Uart {
    pub(crate) fn open() -> Self {
        write(Device::Uart, CONTROL, 0);
        write(Device::Uart, BAUD_WHOLE, DIVISOR.0);
        write(Device::Uart, BAUD_FRACTION, DIVISOR.1);
        write(Device::Uart, LINE, LINE_8_BITS);
        write(Device::Uart, CONTROL, CONTROL_ENABLE_SEND);
        Self(())
    }
}

impl embedded_io::ErrorType for Uart {
    type Error = Infallible;
}

impl embedded_io::Write for Uart {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Infallible> {
        for byte in bytes {
            while read(Device::Uart, FLAGS) & FLAGS_SEND_FULL != 0 {}
            write(Device::Uart, DATA, u32::from(*byte));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        while read(Device::Uart, FLAGS) & FLAGS_BUSY != 0 {}
        Ok(())
    }
}
