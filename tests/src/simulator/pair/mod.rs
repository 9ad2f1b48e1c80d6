//! A primary node, its secondaries and the coordinator of checkpoints together, over disks that reorder and fail and links
//! that are late, cut and come back.
//!
//! | module | what is there |
//! |---|---|
//! | `settings` | what a seed chooses |
//! | `bytes` | what a range should hold, and may hold after failures |
//! | `client` | connections and their requests in pieces |
//! | `link` | the device that a primary takes for its replica |
//! | `active` | a primary and what its guest counts on |
//! | `standby` | a secondary, what its disk holds and what its guest sees |
//! | `control` | the coordinator of checkpoints and its questions |
//! | `world` | all of them |
//! | `acts` | what can happen next |
//! | `check` | what must hold after every step |
//! | [`script`] | seeded runs of everything |
//! | `manager` | operations at any time, on either side |
//! | `ending` | rest, failover and stop |
//! | [`cut`] | fixed scripts, and the primary dies at each of their steps |

mod active;
mod acts;
mod bytes;
mod check;
mod client;
mod control;
pub mod cut;
mod ending;
mod link;
mod manager;
pub mod script;
mod settings;
mod standby;
mod world;

pub(super) use check::name_of as name_of_request;
pub use settings::Shape;
pub(super) use standby::name_of as name_of_command;
