//! Disks, sockets and an event loop on POSIX (Linux).
//!
//! | module | what it is |
//! |---|---|
//! | [`memory`] | the pool of buffers that requests travel in |
//! | [`workers`] | the fixed set of helper threads for calls that may block |
//! | [`disk`] | files and block devices as disks |
//! | [`lock`] | an image has one writer |
//! | [`ram`] | a disk in memory |
//! | [`nbd_disk`] | exports of NBD servers as disks that reconnect |
//! | [`address`], [`uri`] | where things are: `unix:PATH`, `tcp:HOST:PORT`, `nbd://…` |
//! | [`socket`] | listeners and streams that never block |
//! | [`connection`] | an NBD client's connection |
//! | [`poller`] | waiting for any of them |
//! | [`wire`] | how the bytes of a stream go |
//!
//! One thread, the loop, runs all machines; the helper threads only run file operations that may block. After start
//! nothing here allocates per request. All `unsafe` is in the private module `raw`.
//!
//! Another crate can wait, move bytes and run file operations in another way under the same connections and disks, so that
//! what they decide is written once: [`poller::Waiting`], [`wire::Carrier`] and [`disk::Queue`] are all that it implements.
#![deny(unsafe_code)]

pub mod address;
pub mod connection;
pub mod disk;
#[cfg(test)]
mod edge;
mod errno;
pub mod lock;
pub mod memory;
pub mod nbd_disk;
mod outgoing;
pub mod poller;
pub mod ram;
#[expect(
    unsafe_code,
    reason = "the one module that may: mappings, leases of them to threads, and calls rustix lacks"
)]
mod raw;
pub mod socket;
pub mod uri;
pub mod wire;
pub mod workers;

pub use errno::errno_of;
