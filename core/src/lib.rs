//! Twinblock's core: block replication with checkpoints as state machines that never block, never allocate and never
//! look at a clock, a file, a socket or the bytes of a request.
//!
//! Inputs are requests and completions; outputs are transfers to start and replies to send. The data of a request
//! stays in buffers that the embedder owns; the core only names them ([`Data`]).
//!
//! | module | what is decided there |
//! |---|---|
//! | [`block`] | what a disk is: a queue pair; how a simple blocking disk becomes one |
//! | [`bitmap`] | what is marked: hierarchical bitmap over borrowed words |
//! | [`buffer`] | where old content and guest writes are kept until the next checkpoint |
//! | [`order`] | which request waits for which |
//! | [`secondary`] | the standby side: keep, write through, checkpoint, failover |
//! | [`primary`] | the mirror: forward, fall behind, barrier |
//! | [`node`] | operations over all volumes; the checkpoint of a pair |
//! | [`driver`] | the loop that runs a machine over its devices |
//! | [`nbd`] | the wire between machines and towards guests |
//! | [`control`] | commands, answers and events, and their JSON text |
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod bitmap;
pub mod block;
pub mod buffer;
#[cfg(any(feature = "primary", feature = "secondary"))]
mod connection;
pub mod control;
pub mod driver;
mod errno;
mod extent;
mod memory;
pub mod nbd;
pub mod node;
mod operation;
pub mod order;
#[cfg(feature = "primary")]
pub mod primary;
mod request;
#[cfg(feature = "secondary")]
pub mod secondary;
mod time;

#[cfg(any(feature = "primary", feature = "secondary"))]
pub use connection::Connection;
pub use errno::Errno;
pub use extent::Extent;
pub use memory::{BufferIndex, Data, Memory, Pool, Windows};
pub use operation::{
    CommandId, Device, ErrorCounters, ErrorKind, Event, Notice, Output, Refused, ReplicaState, Stage, View,
};
pub use request::{ConnectionId, Identity, Op, Outcome, Reply, Request, RequestId};
pub use time::Micros;
