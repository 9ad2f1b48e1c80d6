//! NBD, the wire between the machines and towards guests: a server session and a client session as state machines.
//!
//! Both are fed with the bytes that came in and are asked for the bytes to send; neither knows what carries them, so
//! that a UART, a TCP stack and a poll loop use the same code. Payloads are not looked at: a large one goes straight
//! between the wire and the embedder's buffers ([`Segment::Pool`], `receive_into`).
//!
//! Source: the NBD protocol document (`doc/proto.md` of NetworkBlockDevice/nbd), sections "Protocol phases", "Option
//! types", "Request types", "Structured reply types", "Metadata querying". Not implemented: TLS, extended headers,
//! resize.
//!
//! | module | what is decided there |
//! |---|---|
//! | [`wire`] | the headers, flags and numbers |
//! | [`server`] | options, requests cut into pieces, replies made out of pieces |
//! | [`client`] | options, transfers as requests, replies of a server that is not trusted |

#[cfg(feature = "nbd-client")]
pub mod client;
#[cfg(any(feature = "nbd-client", feature = "nbd-server"))]
mod gather;
#[cfg(any(feature = "nbd-client", feature = "nbd-server"))]
mod identity;
#[cfg(any(feature = "nbd-client", feature = "nbd-server"))]
mod output;
#[cfg(feature = "nbd-server")]
pub mod server;
pub mod wire;

#[cfg(all(test, feature = "nbd-server"))]
mod testing;
#[cfg(all(test, feature = "nbd-client", feature = "nbd-server"))]
mod tests;

#[cfg(any(feature = "nbd-client", feature = "nbd-server"))]
pub use identity::RUN_MIN;
#[cfg(any(feature = "nbd-client", feature = "nbd-server"))]
pub use output::{OutputEntry, Segment, Segments};

/// The settings or the memory for a session cannot work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum BadSetup {
    /// The window is no power of two, or a length that must be a multiple of it is not.
    Window,
    /// Fewer slots than the session needs to answer anything.
    Slots,
    /// Less room for output, or for an option's data, than one message takes.
    Room,
    /// The name of the export is longer than the protocol allows, or than the room for output.
    Name,
}
