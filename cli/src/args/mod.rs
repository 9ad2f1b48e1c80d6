//! The command line.

mod daemon;
mod refusal;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
pub(crate) use daemon::{DaemonArgs, PrimaryArgs, SecondaryArgs, default_replica_name};
pub(crate) use refusal::one_line;

use crate::spec::{Address, NbdUri};
use crate::units::{Size, Span};

const AFTER_HELP: &str = "\
Addresses are unix:PATH or tcp:HOST:PORT. A disk is a path or an NBD URI (nbd://HOST:PORT/EXPORT,
nbd+unix:///EXPORT?socket=PATH). Sizes are 512, 64K, 1G (powers of 1024); spans of time are 100ms, 10s.

Exit codes: 0 done; 1 refused or failed, with the reason on standard error; 2 wrong usage; 3 no daemon answers.";

const STOP_HELP: &str = "\
Ends replication. On a secondary this is how it takes over, and there are two ways:

  stop --failover  The guest on the secondary goes on from the last checkpoint plus its own writes. For a
                   secondary whose guest has been running all along (a COLO virtual machine), and for whoever
                   wants the consistent point of the last checkpoint back. What the primary wrote after that
                   checkpoint is rolled back, in the background, while the guest goes on.

  stop             The secondary disk as it is: every write that was acknowledged to the primary's guest is
                   there, as after a power cut. For a guest that starts afresh on the secondary and repairs its
                   file system or database from its journal. What the secondary's guest wrote since the last
                   checkpoint is dropped. Refused if something is known to be missing, unless forced.

On a primary, stop ends forwarding; what its replicas miss from then on stays marked.";

/// Keeps a running twin of a disk on a second machine.
#[derive(Debug, Parser)]
#[command(name = "twinblock", version, about, after_help = AFTER_HELP, max_term_width = 110)]
pub(crate) struct Cli {
    /// What to log on standard error: error, warn, info, debug, trace, or targets as in RUST_LOG, which is honoured
    /// where this is absent [default: info for daemons, warn for the others].
    #[arg(long, global = true, value_name = "LEVEL")]
    pub(crate) log: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve a secondary disk: to its primary, and as a guest view that stays at the last checkpoint.
    Secondary(Box<SecondaryArgs>),
    /// Serve a primary disk to its guest and copy every write to the replicas.
    Primary(Box<PrimaryArgs>),
    /// Serve several volumes of either role: those that a file describes, and those that managers add by QMP.
    #[command(after_long_help = format!("A file with every key:\n\n{}", crate::config::EXAMPLE))]
    Daemon(Box<DaemonArgs>),
    /// Start replication of all volumes of a daemon.
    Start {
        /// Only this volume.
        #[arg(long, value_name = "NAME")]
        volume: Option<String>,
        #[command(flatten)]
        control: Control,
    },
    /// Take a checkpoint: on a secondary the guest view moves on; on a primary with known secondaries, the
    /// checkpoint of the pair.
    Checkpoint {
        /// Take it although something written on the primary is known to be missing on the secondary. The hole
        /// becomes part of the checkpoint.
        #[arg(long)]
        force: bool,
        /// Only this volume.
        #[arg(long, value_name = "NAME")]
        volume: Option<String>,
        #[command(flatten)]
        control: Control,
    },
    /// Stop replication; on a secondary: take over (two ways, see --help).
    #[command(long_about = STOP_HELP)]
    Stop {
        /// Go on from the last checkpoint plus the secondary guest's own writes.
        #[arg(long)]
        failover: bool,
        /// Take the secondary disk as it is although something is known to be missing on it.
        #[arg(long, conflicts_with = "failover")]
        force: bool,
        /// Only this volume.
        #[arg(long, value_name = "NAME")]
        volume: Option<String>,
        #[command(flatten)]
        control: Control,
    },
    /// Show what the volumes of a daemon do.
    Status {
        /// The whole answer of query-replication as JSON.
        #[arg(long)]
        json: bool,
        /// Show it again after each such time, until interrupted.
        #[arg(long, value_name = "SPAN", num_args = 0..=1, default_missing_value = "1s")]
        watch: Option<Span>,
        #[command(flatten)]
        control: Control,
    },
    /// Attach a replica to a running primary.
    Attach {
        /// The secondary's replication export.
        #[arg(value_name = "NBD-URI")]
        uri: NbdUri,
        /// What `detach` and `status` shall call it.
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// The primary's volume; needed only where there are several.
        #[arg(long, value_name = "NAME")]
        volume: Option<String>,
        /// The secondary's control address: checkpoints become one act of the pair.
        #[arg(long, value_name = "ADDR")]
        replica_control: Option<Address>,
        /// What the replica is taken to miss: none, what was written since the disk was opened; full, everything.
        #[arg(long, value_enum, default_value_t)]
        sync: Sync,
        #[command(flatten)]
        control: Control,
    },
    /// Detach a replica from a running primary. What it misses stays marked until it is attached again.
    Detach {
        /// The replica, as `status` names it.
        name: String,
        /// The primary's volume; needed only where there are several.
        #[arg(long, value_name = "NAME")]
        volume: Option<String>,
        #[command(flatten)]
        control: Control,
    },
    /// The whole story on this machine: a pair, a workload, checkpoints, a killed primary, a failover, a verdict.
    Demo(DemoArgs),
}

/// What a replica that is attached is taken to miss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sync {
    /// What was written since the disk was opened.
    #[default]
    None,
    /// Everything.
    Full,
}

/// Which daemon a command speaks to.
#[derive(Clone, Debug, Args)]
pub(crate) struct Control {
    /// The daemon's control address.
    #[arg(long = "control", value_name = "ADDR")]
    pub(crate) address: Address,
    /// How long to wait for an answer.
    #[arg(long, value_name = "SPAN", default_value = "30s")]
    pub(crate) timeout: Span,
}

/// How the demo runs.
#[derive(Clone, Debug, Args)]
pub(crate) struct DemoArgs {
    /// Replicate a copy of this image instead of an empty disk.
    #[arg(long, value_name = "FILE", conflicts_with = "size")]
    pub(crate) disk: Option<PathBuf>,
    /// Size of the disk.
    #[arg(long, default_value = "256M")]
    pub(crate) size: Size,
    /// How long the workload runs before the primary is killed.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub(crate) seconds: u32,
    /// Makes the same requests again [default: chosen from the clock, and printed].
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Leave disks and logs in this directory.
    #[arg(long, value_name = "DIR")]
    pub(crate) keep: Option<PathBuf>,
    /// End with one line of JSON; the story goes to standard error.
    #[arg(long)]
    pub(crate) json: bool,
    /// How often the primary takes a checkpoint.
    #[arg(long, value_name = "SPAN", default_value = "200ms")]
    pub(crate) checkpoint_every: Span,
    /// Size of the secondary's disk buffer.
    #[arg(long, default_value = "128M")]
    pub(crate) buffer_size: Size,
}
