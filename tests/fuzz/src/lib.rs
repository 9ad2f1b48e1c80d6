//! What the fuzz targets do with their inputs, and what must hold whatever these are.
//!
//! | target | input | what must hold |
//! |---|---|---|
//! | [`parsers`] | bytes for every parser of NBD | what was decoded encodes to the same; fragments make no difference |
//! | [`json`] | text, or a command | the same verdict as another parser; parse, write and parse again agree |
//! | [`server`] | a client's bytes in any fragments, a disk that fails | each request is answered once and truly |
//! | [`client`] | a server's bytes in any fragments, transfers | each transfer ends once, and with success only if its bytes came |
//! | [`secondary`] | inputs in any order | the view, order and answers, against arrays of bytes |
//! | [`primary`] | inputs in any order | the twins differ only where it is marked |
//! | [`coordinator`] | inputs in any order | no commit before all have prepared; barriers are released |
//! | [`nodes`] | managers' commands on nodes | each is taken or refused whole; the graph's invariants |
//! | [`config`] | a file, an address, a URI | refused in one line or taken; what is written reads back as the same |
//!
//! An input that is more than bytes implements [`arbitrary::Arbitrary`] by hand: one byte for each choice, so that a
//! changed byte changes one choice and the rest of the script stays as it was.
#![forbid(unsafe_code)]

mod buffers;
pub mod client;
pub mod config;
pub mod coordinator;
mod disk;
pub mod json;
mod known;
pub mod nodes;
pub mod parsers;
pub mod primary;
mod requests;
mod script;
pub mod secondary;
pub mod server;
