//! Flags that describe one volume and its daemon.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches};

use crate::failure::Failure;
use crate::spec::{
    Address, Backend, BufferPlace, DaemonSpec, Disk, NbdUri, PrimarySpec, ReplicaSpec, SecondarySpec,
    VolumeSpec, WhenFull,
};
use crate::units::{Size, Span};

/// What every daemon has, whatever its role.
#[derive(Clone, Debug, Args)]
struct Common {
    /// The disk: a path or an NBD URI.
    #[arg(long)]
    disk: Disk,
    /// Open files with O_DIRECT.
    #[arg(long)]
    direct: bool,
    /// Where managers speak QMP; bound last, so that an answer means that the exports are served.
    #[arg(long, value_name = "ADDR")]
    control: Address,
    /// Let the control address be reached from other machines. Whoever reaches it commands this daemon.
    #[arg(long)]
    allow_remote_control: bool,
    /// Which back end does the I/O.
    #[arg(long, value_enum, default_value_t)]
    backend: Backend,
    /// Most NBD connections at a time. A further client takes the place of one that owes its handshake, or waits until
    /// one has gone. Where there are several addresses, a few places stay for each.
    #[arg(long, value_name = "COUNT", default_value_t = 32)]
    max_connections: u16,
    /// A peer that has been silent this long is taken for dead.
    #[arg(long, value_name = "SPAN", default_value = "10s")]
    peer_timeout: Span,
    /// An NBD client that has not finished its handshake by then is dropped.
    #[arg(long, value_name = "SPAN", default_value = "10s")]
    handshake_timeout: Span,
    /// Start replication at once.
    #[arg(long)]
    start: bool,
    /// End when the process that started this one does.
    #[arg(long, hide = true)]
    end_with_parent: bool,
}

/// Flags of `twinblock daemon`.
#[derive(Clone, Debug, Args)]
pub(crate) struct DaemonArgs {
    /// A TOML file; `twinblock daemon --help` shows one.
    #[arg(long, value_name = "FILE.toml", required_unless_present = "control", conflicts_with = "control")]
    config: Option<PathBuf>,
    /// Without a file: where managers speak QMP, and add volumes, servers and exports.
    #[arg(long, value_name = "ADDR")]
    control: Option<Address>,
    /// Let the control address be reached from other machines. Whoever reaches it commands this daemon.
    #[arg(long, requires = "control")]
    allow_remote_control: bool,
    /// Which back end does the I/O.
    #[arg(long, value_enum, default_value_t, requires = "control")]
    backend: Backend,
    /// Most NBD connections at a time.
    #[arg(long, value_name = "COUNT", default_value_t = 32, requires = "control")]
    max_connections: u16,
    /// A peer that has been silent this long is taken for dead.
    #[arg(long, value_name = "SPAN", default_value = "10s", requires = "control")]
    peer_timeout: Span,
    /// An NBD client that has not finished its handshake by then is dropped.
    #[arg(long, value_name = "SPAN", default_value = "10s", requires = "control")]
    handshake_timeout: Span,
    /// A replica that has not answered a write for this long is behind, and the guest goes on.
    #[arg(long, value_name = "SPAN", default_value = "10s", requires = "control")]
    replica_timeout: Span,
    /// A checkpoint of the pair without an answer for this long fails, and the guest goes on.
    #[arg(long, value_name = "SPAN", default_value = "2s", requires = "control")]
    checkpoint_timeout: Span,
    /// The primaries take checkpoints of the pair by themselves, this far apart.
    #[arg(long, value_name = "SPAN", requires = "control")]
    checkpoint_every: Option<Span>,
    /// End when the process that started this one does.
    #[arg(long, hide = true, requires = "control")]
    end_with_parent: bool,
}

/// Flags of `twinblock secondary`.
#[derive(Clone, Debug, Args)]
pub(crate) struct SecondaryArgs {
    #[command(flatten)]
    common: Common,
    /// Where the primary connects.
    #[arg(long, value_name = "ADDR")]
    listen: Address,
    /// Name of the replication export, and of the volume.
    #[arg(long, value_name = "NAME")]
    export: String,
    /// Where the secondary's guest connects; may be the same address if the names differ.
    #[arg(long, value_name = "ADDR")]
    guest: Address,
    /// Name of the guest view [default: the export's].
    #[arg(long, value_name = "NAME")]
    guest_export: Option<String>,
    /// The secondary's guest may only read.
    #[arg(long)]
    guest_read_only: bool,
    /// Where the disk buffer lives: memory, or a file or partition.
    #[arg(long, value_name = "memory|PATH", value_parser = BufferPlace::parse)]
    buffer: BufferPlace,
    /// How much the disk buffer holds: what is overwritten between two checkpoints has to fit.
    #[arg(long, value_name = "SIZE")]
    buffer_size: Size,
    /// Unit of what is kept.
    #[arg(long, value_name = "SIZE", default_value = "4K")]
    granule: Size,
    /// What to do when the buffer is full: stall holds the primary's writes until the next checkpoint; break lets
    /// them through and gives the guest's view up until the next checkpoint.
    #[arg(long, value_enum, default_value_t)]
    when_full: WhenFull,
    /// How long a write is held at most; then it is refused and the replica is behind.
    #[arg(long, value_name = "SPAN", default_value = "500ms")]
    stall_max: Span,
}

/// Flags of `twinblock primary`.
#[derive(Clone, Debug, Args)]
pub(crate) struct PrimaryArgs {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    replicas: Replicas,
    /// Take checkpoints of the pair by itself, this far apart; needs --replica-control.
    #[arg(long, value_name = "SPAN")]
    checkpoint_every: Option<Span>,
    /// A checkpoint of the pair without an answer for this long fails, and the guest goes on.
    #[arg(long, value_name = "SPAN", default_value = "2s")]
    checkpoint_timeout: Span,
    /// A replica that has not answered a write for this long is behind, and the guest goes on.
    #[arg(long, value_name = "SPAN", default_value = "10s")]
    replica_timeout: Span,
    /// Where the guest connects.
    #[arg(long, value_name = "ADDR")]
    listen: Address,
    /// Name of the export, and of the volume.
    #[arg(long, value_name = "NAME")]
    export: String,
    /// What one bit of the record of missed writes stands for.
    #[arg(long, value_name = "SIZE", default_value = "64K")]
    dirty_granule: Size,
}

/// `--replica URI [--replica-control ADDR]`, any number of times: a control address belongs to the replica before it.
#[derive(Clone, Debug, Default)]
struct Replicas(Vec<ReplicaSpec>);

const REPLICA: &str = "replica";
const REPLICA_CONTROL: &str = "replica-control";

impl Args for Replicas {
    fn augment_args(command: clap::Command) -> clap::Command {
        command
            .arg(
                Arg::new(REPLICA)
                    .long(REPLICA)
                    .value_name("NBD-URI")
                    .action(ArgAction::Append)
                    .value_parser(clap::value_parser!(NbdUri))
                    .help("A secondary's replication export that every write is copied to; may be repeated"),
            )
            .arg(
                Arg::new(REPLICA_CONTROL)
                    .long(REPLICA_CONTROL)
                    .value_name("ADDR")
                    .action(ArgAction::Append)
                    .value_parser(clap::value_parser!(Address))
                    .help(
                        "Control address of the replica before it: a checkpoint becomes one act of the pair",
                    ),
            )
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Replicas {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let indices = |name| matches.indices_of(name).into_iter().flatten();
        let uris = matches.get_many::<NbdUri>(REPLICA).into_iter().flatten();
        let controls = matches.get_many::<Address>(REPLICA_CONTROL).into_iter().flatten();
        let mut replicas: Vec<(usize, ReplicaSpec)> = indices(REPLICA)
            .zip(uris)
            .enumerate()
            .map(|(number, (index, uri))| {
                (index, ReplicaSpec { name: default_replica_name(number), uri: uri.clone(), control: None })
            })
            .collect();
        for (index, control) in indices(REPLICA_CONTROL).zip(controls) {
            let replica = replicas.iter_mut().rev().find(|(at, _)| *at < index).map(|(_, replica)| replica);
            let refuse = |text: &str| clap::Error::raw(clap::error::ErrorKind::WrongNumberOfValues, text);
            let replica = replica.ok_or_else(|| {
                refuse("--replica-control stands before any --replica: write it after the replica it belongs to\n")
            })?;
            if replica.control.replace(control.clone()).is_some() {
                return Err(refuse("two --replica-control for one --replica: leave one out\n"));
            }
        }
        Ok(Self(replicas.into_iter().map(|(_, replica)| replica).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// What a replica is called that was given no name.
pub(crate) fn default_replica_name(number: usize) -> String {
    format!("replica{number}")
}

impl DaemonArgs {
    /// The daemon that a file or these flags describe; if flags, not yet checked.
    pub(crate) fn into_spec(self) -> Result<DaemonSpec, Failure> {
        match (self.config, self.control) {
            (Some(path), _) => crate::config::load(&path),
            (None, Some(control)) => Ok(DaemonSpec {
                control,
                allow_remote_control: self.allow_remote_control,
                backend: self.backend,
                connections_max: self.max_connections,
                peer_timeout: self.peer_timeout,
                handshake_timeout: self.handshake_timeout,
                replica_timeout: self.replica_timeout,
                checkpoint_timeout: self.checkpoint_timeout,
                checkpoint_every: self.checkpoint_every,
                start: false,
                end_with_parent: self.end_with_parent,
                volumes: Vec::new(),
            }),
            // clap demands one of them.
            (None, None) => Err(Failure::Usage("daemon: give --config or --control".into())),
        }
    }
}

impl Common {
    fn daemon(self, volume: VolumeSpec) -> DaemonSpec {
        DaemonSpec {
            control: self.control,
            allow_remote_control: self.allow_remote_control,
            backend: self.backend,
            connections_max: self.max_connections,
            peer_timeout: self.peer_timeout,
            handshake_timeout: self.handshake_timeout,
            replica_timeout: Span::from_ms(10_000),
            checkpoint_timeout: Span::from_ms(2_000),
            checkpoint_every: None,
            start: self.start,
            end_with_parent: self.end_with_parent,
            volumes: vec![volume],
        }
    }
}

impl SecondaryArgs {
    /// The daemon that these flags describe, not yet checked.
    pub(crate) fn into_spec(self) -> DaemonSpec {
        let volume = VolumeSpec::Secondary(SecondarySpec {
            disk: self.common.disk.clone(),
            direct: self.common.direct,
            listen: self.listen,
            export: self.export,
            guest: self.guest,
            guest_export: self.guest_export,
            guest_read_only: self.guest_read_only,
            buffer: self.buffer,
            buffer_size: self.buffer_size,
            granule: self.granule,
            when_full: self.when_full,
            stall_max: self.stall_max,
        });
        self.common.daemon(volume)
    }
}

impl PrimaryArgs {
    /// The daemon that these flags describe, not yet checked.
    pub(crate) fn into_spec(self) -> DaemonSpec {
        let volume = VolumeSpec::Primary(PrimarySpec {
            disk: self.common.disk.clone(),
            direct: self.common.direct,
            listen: self.listen,
            export: self.export,
            replicas: self.replicas.0,
            dirty_granule: self.dirty_granule,
        });
        DaemonSpec {
            replica_timeout: self.replica_timeout,
            checkpoint_timeout: self.checkpoint_timeout,
            checkpoint_every: self.checkpoint_every,
            ..self.common.daemon(volume)
        }
    }
}
