//! The daemon's file, and the addresses and URIs in it.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use twinblock_io_posix::address::Address;
use twinblock_io_posix::uri::NbdUri;

/// Reads bytes as a file, or its first line as an address or URI: the first byte chooses.
///
/// # Panics
/// On a finding.
pub fn run(bytes: &[u8]) {
    let Some((choice, rest)) = bytes.split_first() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    match choice {
        b'a' => check_written::<Address>(text),
        b'u' => check_written::<NbdUri>(text),
        _ => {
            let lines = text.lines().count() + 1;
            if let Err(refusal) = twinblock::check_config(text, "origin") {
                assert!(!refusal.contains('\n'), "not one line: {refusal}");
                check_line(&refusal, lines);
            }
        }
    }
}

/// A refusal names the text, and a line that it has.
fn check_line(refusal: &str, lines: usize) {
    let rest = refusal.strip_prefix("origin:").expect("it names the text");
    if let Some((line, _)) = rest.split_once(':')
        && let Ok(line) = line.parse::<usize>()
    {
        assert!((1..=lines).contains(&line), "line {line} of {lines}: {refusal}");
    }
}

/// What is taken is written so that it reads back as the same; what is not is refused in one line.
fn check_written<T: FromStr<Err: Display> + Display + Debug + PartialEq>(text: &str) {
    match text.parse::<T>() {
        Ok(value) => {
            let written = value.to_string();
            let again = written.parse::<T>().unwrap_or_else(|error| panic!("{value:?}: {error}"));
            assert_eq!(again, value, "{written}");
        }
        Err(refusal) => {
            let refusal = refusal.to_string();
            assert!(refusal.contains("write "), "it says what to do: {refusal}");
        }
    }
}
