//! The bus of the SD card: SPI controller 0, and pin D0 that selects the card (DS-LM3S6965, "Synchronous Serial
//! Interface", "General-Purpose Input/Outputs").

use core::convert::Infallible;

use embedded_hal::delay::DelayNs;
use embedded_hal::digital::{self, OutputPin};
use embedded_hal::spi::{self, Operation, SpiBus, SpiDevice};
use embedded_hal_bus::spi::{ExclusiveDevice, NoDelay};

use crate::hardware::{Device, read, write};

const CONTROL_0: usize = 0x00;
const CONTROL_1: usize = 0x04;
const DATA: usize = 0x08;
const STATUS: usize = 0x0c;
const PRESCALE: usize = 0x10;
/// 8 bits a frame, Motorola's format, polarity and phase 0.
const CONTROL_0_8_BITS: u32 = 7;
const CONTROL_1_ENABLE: u32 = 1 << 1;
const STATUS_RECEIVED: u32 = 1 << 2;
const STATUS_BUSY: u32 = 1 << 4;
/// Bytes that the controller holds in each direction.
const FIFO_BYTES: usize = 8;
/// 12.5 MHz / 32: a card must be woken at 400 kHz or less (SD Physical Layer Specification, 6.4.1).
const PRESCALE_SLOW: u32 = 32;
/// 12.5 MHz / 2.
const PRESCALE_FAST: u32 = 2;

/// The bus, not yet opened.
#[derive(Debug)]
pub struct CardBus(pub(crate) ());

/// The card as it is spoken to.
pub type Card = CardDevice<ExclusiveDevice<Spi, Select, NoDelay>>;

impl CardBus {
    /// Opens the bus slowly, as a card must be woken, and gives the card the clocks that it needs before the first command.
    #[must_use]
    pub fn open(self) -> Card {
        let select = Select::open();
        let mut spi = Spi::open();
        // At least 74 clocks with the card not selected (SD Physical Layer Specification, 6.4.1.1).
        let Ok(()) = spi.write(&[0xff; 10]);
        let Ok(device) = ExclusiveDevice::new_no_delay(spi, select);
        CardDevice { device, awaits_ocr: false }
    }
}

/// The SPI controller.
#[derive(Debug)]
pub struct Spi(());

impl Spi {
    fn open() -> Self {
        let mut spi = Self(());
        write(Device::Spi, CONTROL_0, CONTROL_0_8_BITS);
        spi.set_prescale(PRESCALE_SLOW);
        while read(Device::Spi, STATUS) & STATUS_RECEIVED != 0 {
            let _ = read(Device::Spi, DATA);
        }
        spi
    }

    fn set_prescale(&mut self, prescale: u32) {
        write(Device::Spi, CONTROL_1, 0);
        write(Device::Spi, PRESCALE, prescale);
        write(Device::Spi, CONTROL_1, CONTROL_1_ENABLE);
    }

    fn put(&mut self, byte: u8) {
        write(Device::Spi, DATA, u32::from(byte));
    }

    /// Waits until all that was put has been sent; as much was received by then.
    fn wait(&mut self) {
        while read(Device::Spi, STATUS) & STATUS_BUSY != 0 {}
    }

    fn take(&mut self) -> u8 {
        read(Device::Spi, DATA) as u8
    }
}

impl spi::ErrorType for Spi {
    type Error = Infallible;
}

impl SpiBus<u8> for Spi {
    fn read(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        bytes.fill(0xff);
        self.transfer_in_place(bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
        for part in bytes.chunks(FIFO_BYTES) {
            part.iter().for_each(|byte| self.put(*byte));
            self.wait();
            for _ in part {
                let _ = self.take();
            }
        }
        Ok(())
    }

    fn transfer(&mut self, received: &mut [u8], sent: &[u8]) -> Result<(), Infallible> {
        for at in 0..received.len().max(sent.len()) {
            self.put(sent.get(at).copied().unwrap_or(0xff));
            self.wait();
            let byte = self.take();
            if let Some(place) = received.get_mut(at) {
                *place = byte;
            }
        }
        Ok(())
    }

    fn transfer_in_place(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for part in bytes.chunks_mut(FIFO_BYTES) {
            part.iter().for_each(|byte| self.put(*byte));
            self.wait();
            for byte in part {
                *byte = self.take();
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        self.wait();
        Ok(())
    }
}

/// The pin that selects the card; low selects.
#[derive(Debug)]
pub struct Select(());

impl Select {
    /// Address bits 2 to 9 of the data register choose the pins that are written.
    const DATA_PIN_0: usize = 1 << 2;
    const DIRECTION: usize = 0x400;
    const DIGITAL: usize = 0x51c;

    fn open() -> Self {
        write(Device::PortD, Self::DATA_PIN_0, 1);
        write(Device::PortD, Self::DIRECTION, read(Device::PortD, Self::DIRECTION) | 1);
        write(Device::PortD, Self::DIGITAL, read(Device::PortD, Self::DIGITAL) | 1);
        write(Device::PortD, Self::DATA_PIN_0, 1);
        Self(())
    }
}

impl digital::ErrorType for Select {
    type Error = Infallible;
}

impl OutputPin for Select {
    fn set_low(&mut self) -> Result<(), Infallible> {
        write(Device::PortD, Self::DATA_PIN_0, 0);
        Ok(())
    }

    fn set_high(&mut self) -> Result<(), Infallible> {
        write(Device::PortD, Self::DATA_PIN_0, 1);
        Ok(())
    }
}

/// A card on its bus, with what the emulated one of QEMU 7.2 needs and no other minds: it answers CMD58 as if it were
/// still idle, and it takes the byte after the answer to CMD24 for the gap that must be there (SD Physical Layer
/// Specification, 7.5.3: N_WR is 1 byte at least).
#[derive(Debug)]
pub struct CardDevice<D> {
    device: D,
    /// CMD58 was sent, and its answer has not come.
    awaits_ocr: bool,
}

const CMD58: u8 = 0x40 | 58;
const R1_IDLE: u8 = 1;
const DATA_TOKEN: u8 = 0xfe;

impl Card {
    /// As fast as the bus goes; once the card was woken.
    pub fn speed_up(&mut self) {
        self.device.bus_mut().set_prescale(PRESCALE_FAST);
    }
}

impl<D: spi::ErrorType> spi::ErrorType for CardDevice<D> {
    type Error = D::Error;
}

impl<D: SpiDevice<u8>> SpiDevice<u8> for CardDevice<D> {
    fn transaction(&mut self, operations: &mut [Operation<'_, u8>]) -> Result<(), D::Error> {
        if let [Operation::Transfer(_, [DATA_TOKEN])] = operations {
            self.device.transaction(&mut [Operation::Write(&[0xff])])?;
        }
        self.device.transaction(operations)?;
        for operation in operations.iter_mut() {
            match operation {
                Operation::Write(command) if command.len() == 6 => {
                    self.awaits_ocr = command.first() == Some(&CMD58);
                }
                Operation::Transfer([answer], _) if self.awaits_ocr && *answer != 0xff => {
                    *answer &= !R1_IDLE;
                    self.awaits_ocr = false;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Waits by counting.
#[derive(Clone, Copy, Debug)]
pub struct Spin;

impl DelayNs for Spin {
    fn delay_ns(&mut self, ns: u32) {
        // A turn of the loop is at least one cycle of 80 ns.
        for _ in 0..ns.div_ceil(80) {
            cortex_m::asm::nop();
        }
    }
}
