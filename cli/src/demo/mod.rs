//! The whole story on this machine.

mod block;
mod clock;
mod history;
mod layout;
mod random;
