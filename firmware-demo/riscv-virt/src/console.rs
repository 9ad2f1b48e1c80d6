//! The UART, a 16550A ("PC16550D Universal Asynchronous Receiver/Transmitter with FIFOs", National Semiconductor).

use core::convert::Infallible;
use core::fmt;

use crate::hardware::{Device, read8, write8};

const DATA: usize = 0;
const FIFO_CONTROL: usize = 2;
const LINE_STATUS: usize = 5;
/// FIFOs that are on, and say that they have something at 14 bytes: whoever sends is held up less often.
const FIFO_ENABLE: u8 = 1 | 3 << 6;
const LINE_STATUS_RECEIVED: u8 = 1;
const LINE_STATUS_SEND_EMPTY: u8 = 1 << 5;
/// Bytes that the FIFO takes when it is empty.
const FIFO_BYTES: usize = 16;

/// The UART. What is sent waits for room in it; there is one, whoever writes to it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Console(());

impl Console {
    /// The UART with its FIFOs on.
    #[must_use]
    pub fn open() -> Self {
        write8(Device::Uart, FIFO_CONTROL, FIFO_ENABLE);
        Self(())
    }

    fn has_received() -> bool {
        read8(Device::Uart, LINE_STATUS) & LINE_STATUS_RECEIVED != 0
    }

    fn send(bytes: &[u8]) {
        for some in bytes.chunks(FIFO_BYTES) {
            while read8(Device::Uart, LINE_STATUS) & LINE_STATUS_SEND_EMPTY == 0 {}
            some.iter().for_each(|byte| write8(Device::Uart, DATA, *byte));
        }
    }
}

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        Self::send(text.as_bytes());
        Ok(())
    }
}

impl embedded_io::ErrorType for Console {
    type Error = Infallible;
}

impl embedded_io::ReadReady for Console {
    fn read_ready(&mut self) -> Result<bool, Infallible> {
        Ok(Self::has_received())
    }
}

impl embedded_io::Read for Console {
    /// Waits for the first byte.
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, Infallible> {
        let mut count = 0;
        for place in bytes {
            while count == 0 && !Self::has_received() {}
            if !Self::has_received() {
                break;
            }
            *place = read8(Device::Uart, DATA);
            count += 1;
        }
        Ok(count)
    }
}

impl embedded_io::WriteReady for Console {
    fn write_ready(&mut self) -> Result<bool, Infallible> {
        Ok(read8(Device::Uart, LINE_STATUS) & LINE_STATUS_SEND_EMPTY != 0)
    }
}

impl embedded_io::Write for Console {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Infallible> {
        Self::send(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        while read8(Device::Uart, LINE_STATUS) & LINE_STATUS_SEND_EMPTY == 0 {}
        Ok(())
    }
}
