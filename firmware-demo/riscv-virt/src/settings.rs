//! Text that whoever starts the machine hands in: a file that is loaded behind the program's memory,
//! `-device loader,file=FILE,addr=0x80400000,force-raw=on`, and ends with the first byte that is zero.

use crate::hardware;

/// Reads the text into `bytes`; `None` if it is no UTF-8, or too long. Where nothing was loaded it is empty.
pub fn read(bytes: &mut [u8]) -> Option<&str> {
    let length = hardware::copy_settings(bytes)?;
    core::str::from_utf8(bytes.get(..length)?).ok()
}
