//! The whole story on this machine.

mod block;
mod clock;
mod history;
mod image;
mod layout;
mod nbd;
mod random;
mod scan;
#[cfg(test)]
mod server;
mod workload;
