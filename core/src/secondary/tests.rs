//! Every command and every kind of request in every stage, through inputs alone; and the rules one by one.

mod bounds;
mod claim;
mod config;
mod failover;
mod full;
mod io;
mod operations;
mod pair;
mod rig;
