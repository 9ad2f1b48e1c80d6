//! Every command and every kind of request in every stage, through inputs alone; and the rules one by one.

mod claim;
mod failover;
mod full;
mod io;
mod operations;
mod pair;
mod rig;
