//! A primary and its secondaries together, over disks that reorder and fail and links that are late, cut and come back.
//!
//! | module | what is there |
//! |---|---|
//! | `settings` | what a seed chooses |
//! | `client` | connections and their requests in pieces |
//! | `link` | the device that a primary takes for its replica |
//! | `active` | the primary and what its guest counts on |
//! | `standby` | a secondary, what its disk holds and what its guest sees |
//! | `control` | the coordinator of checkpoints and its questions |
//! | `world` | all of them, and what can happen next |
//! | [`random`] | seeded runs of everything |
//! | [`cut`] | fixed scripts, and the primary dies at each of their steps |

mod active;
mod bytes;
mod client;
mod control;
pub mod cut;
mod link;
pub mod random;
mod settings;
mod standby;
mod world;
