//! The program `twinblock`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    twinblock::main()
}
