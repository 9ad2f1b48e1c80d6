//! Every command and every kind of request in every stage, through inputs alone; and the rules one by one.

mod answered;
mod bounds;
mod claim;
mod config;
mod failover;
mod full;
mod guest;
mod io;
mod managed;
mod operations;
mod pair;
mod rig;
