//! The answer of `query-replication`, and how it looks to people.

mod render;
#[cfg(test)]
mod tests;

pub(crate) use render::{render, render_times};
use serde::Deserialize;

/// All volumes of a daemon. What does not apply is absent; what is not known here is passed over.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Status {
    /// In the order of the daemon.
    pub(crate) volumes: Vec<Volume>,
    /// What does the I/O: `posix` or `io-uring`.
    pub(crate) backend: Option<String>,
}

/// One volume.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Volume {
    /// Name of its export.
    pub(crate) name: String,
    /// `primary` or `secondary`.
    pub(crate) role: String,
    /// `none`, `running`, `failover`, `failover-failed` or `done`.
    pub(crate) stage: String,
    /// How many checkpoints have been.
    pub(crate) epoch: u64,
    /// Size of the disk.
    pub(crate) size_bytes: Option<u64>,
    /// Unit of the buffer or of the dirty bitmap.
    pub(crate) granule_bytes: Option<u64>,
    /// A secondary that misses something, or a primary with such a replica.
    #[serde(default)]
    pub(crate) behind: bool,
    /// The disk buffer of a secondary.
    pub(crate) buffer: Option<Buffer>,
    /// The replicas of a primary.
    #[serde(default)]
    pub(crate) replicas: Vec<Replica>,
    /// How far the commit of a failover has come.
    pub(crate) commit: Option<Commit>,
    /// How long checkpoints took.
    pub(crate) checkpoint_us: Option<Times>,
    /// Counts since start.
    pub(crate) errors: Option<Errors>,
}

/// A disk buffer.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Buffer {
    /// What it can hold.
    pub(crate) size_bytes: u64,
    /// What it holds.
    pub(crate) used_bytes: u64,
    /// `stall` or `break`.
    pub(crate) policy: String,
    /// `whole` or `broken`.
    pub(crate) view: String,
    /// Writes that wait for room.
    #[serde(default)]
    pub(crate) held: u64,
}

/// A replica.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Replica {
    /// What `detach` calls it.
    pub(crate) name: String,
    /// It can be reached now.
    pub(crate) connected: bool,
    /// Whether its control address can be reached, if one was given: without it no checkpoint includes it.
    pub(crate) control_connected: Option<bool>,
    /// It is known to miss something.
    pub(crate) behind: bool,
    /// How much it misses.
    #[serde(default)]
    pub(crate) dirty_bytes: u64,
    /// Requests on their way.
    #[serde(default)]
    pub(crate) in_flight: u64,
}

/// The commit of a failover.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Commit {
    /// What the buffer held.
    pub(crate) total_bytes: u64,
    /// What of it is on the disk.
    pub(crate) done_bytes: u64,
}

/// Times in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Times {
    /// How many.
    pub(crate) count: u64,
    /// Half took no longer.
    #[serde(default)]
    pub(crate) p50: u64,
    /// 99 of 100 took no longer.
    #[serde(default)]
    pub(crate) p99: u64,
    /// The longest.
    #[serde(default)]
    pub(crate) max: u64,
}

/// How often each of the seven failures was met.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Errors {
    primary_disk: u64,
    forward: u64,
    copy_before_write: u64,
    secondary_disk: u64,
    buffer: u64,
    empty: u64,
    commit: u64,
}

impl Errors {
    /// Those that were met, with what they are called.
    pub(crate) fn met(&self) -> Vec<(&'static str, u64)> {
        [
            ("primary disk", self.primary_disk),
            ("forward", self.forward),
            ("copy before write", self.copy_before_write),
            ("secondary disk", self.secondary_disk),
            ("buffer", self.buffer),
            ("empty", self.empty),
            ("commit", self.commit),
        ]
        .into_iter()
        .filter(|(_, count)| *count != 0)
        .collect()
    }
}
