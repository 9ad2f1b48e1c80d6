//! What a daemon shall do, whether flags or a file said so. The rules are here alone: [`DaemonSpec::check`].

mod disk;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::ValueEnum;
pub(crate) use disk::Disk;
use serde::Deserialize;
pub(crate) use twinblock_io_posix::address::Address;
pub(crate) use twinblock_io_posix::uri::{NbdUri, UriError};

use crate::units::{Size, Span};

/// Longest name of a volume, an export or a replica, in bytes of UTF-8.
pub(crate) const NAME_BYTES_MAX: usize = 64;
/// Smallest granule of a disk buffer.
pub(crate) const GRANULE_BYTES_MIN: u64 = 512;
/// Largest granule of a disk buffer: no more than a window.
pub(crate) const GRANULE_BYTES_MAX: u64 = 256 << 10;
/// Largest granule of a dirty bitmap.
pub(crate) const DIRTY_GRANULE_BYTES_MAX: u64 = 1 << 31;
/// A buffer holds at least this many granules, else it stalls all the time.
pub(crate) const BUFFER_GRANULES_MIN: u64 = 64;
/// Most NBD connections of one daemon.
pub(crate) const CONNECTIONS_MAX: u16 = 16_384;
/// Most replicas of one primary.
pub(crate) const REPLICAS_MAX: usize = 8;

/// What one bit of a dirty bitmap stands for unless told otherwise.
pub(crate) const DEFAULT_DIRTY_GRANULE: Size = Size(64 << 10);
/// The granule of a disk buffer unless told otherwise.
pub(crate) const DEFAULT_GRANULE: Size = Size(4 << 10);
/// How long a write is held unless told otherwise.
pub(crate) const DEFAULT_STALL_MAX: Span = Span::from_ms(500);

/// Which back end does the I/O.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Backend {
    /// The best there is.
    #[default]
    Auto,
    /// Files and sockets by POSIX calls.
    Posix,
    /// One io_uring for everything.
    IoUring,
}

impl Backend {
    /// As it is written.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Posix => "posix",
            Self::IoUring => "io-uring",
        }
    }
}

/// What a secondary does when a primary write finds no room in the disk buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum WhenFull {
    /// Hold the write until the next checkpoint; the guest's view is preserved.
    #[default]
    Stall,
    /// Let the write through; the guest's view is broken until the next checkpoint.
    Break,
}

/// Where a disk buffer lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BufferPlace {
    /// In the daemon's memory.
    Memory,
    /// In a file or on a partition.
    Path(PathBuf),
}

impl BufferPlace {
    /// From `memory` or a path; a file of that name is written `./memory`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("a buffer is 'memory' or a path".into()),
            "memory" => Ok(Self::Memory),
            path => Ok(Self::Path(path.into())),
        }
    }
}

impl<'de> Deserialize<'de> for BufferPlace {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// One daemon with all its volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DaemonSpec {
    /// Where managers speak QMP; bound last.
    pub(crate) control: Address,
    /// `control` may be reached from other machines.
    pub(crate) allow_remote_control: bool,
    /// Who does the I/O.
    pub(crate) backend: Backend,
    /// Most NBD connections at a time, over all volumes; memory for each is reserved at start.
    pub(crate) connections_max: u16,
    /// A silent peer is taken for dead after this time.
    pub(crate) peer_timeout: Span,
    /// A client that has not finished its handshake by then is dropped.
    pub(crate) handshake_timeout: Span,
    /// A forwarded write that a replica has not answered in this time makes it behind.
    pub(crate) replica_timeout: Span,
    /// A checkpoint of the pair that has no answer in this time fails.
    pub(crate) checkpoint_timeout: Span,
    /// The primaries take checkpoints by themselves, this far apart.
    pub(crate) checkpoint_every: Option<Span>,
    /// Replication starts with the daemon.
    pub(crate) start: bool,
    /// The daemon ends when the process that started it does.
    pub(crate) end_with_parent: bool,
    /// Those that are there from the start; managers can add others.
    pub(crate) volumes: Vec<VolumeSpec>,
}

/// One volume of either role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum VolumeSpec {
    /// A primary disk with its replicas.
    Primary(PrimarySpec),
    /// A secondary disk with its disk buffer.
    Secondary(SecondarySpec),
}

/// A primary disk with its replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PrimarySpec {
    /// The primary disk.
    pub(crate) disk: Disk,
    /// Files are opened with `O_DIRECT`.
    pub(crate) direct: bool,
    /// Where the guest connects.
    pub(crate) listen: Address,
    /// The export's name, which is the volume's.
    pub(crate) export: String,
    /// Where writes are copied to.
    pub(crate) replicas: Vec<ReplicaSpec>,
    /// What one bit of the dirty bitmap stands for.
    pub(crate) dirty_granule: Size,
}

/// One replica of a primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReplicaSpec {
    /// What `detach` calls it.
    pub(crate) name: String,
    /// The secondary's replication export.
    pub(crate) uri: NbdUri,
    /// The secondary's control address, if the primary shall take checkpoints of the pair.
    pub(crate) control: Option<Address>,
}

/// A secondary disk with its disk buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SecondarySpec {
    /// The secondary disk.
    pub(crate) disk: Disk,
    /// Files are opened with `O_DIRECT`.
    pub(crate) direct: bool,
    /// Where the primary connects.
    pub(crate) listen: Address,
    /// The replication export's name, which is the volume's.
    pub(crate) export: String,
    /// Where the secondary's guest connects.
    pub(crate) guest: Address,
    /// The guest view's name; the export's if absent.
    pub(crate) guest_export: Option<String>,
    /// The guest may not write.
    pub(crate) guest_read_only: bool,
    /// Where the disk buffer lives.
    pub(crate) buffer: BufferPlace,
    /// How much it holds.
    pub(crate) buffer_size: Size,
    /// Unit of what is kept.
    pub(crate) granule: Size,
    /// What happens when it is full.
    pub(crate) when_full: WhenFull,
    /// How long a write is held at most.
    pub(crate) stall_max: Span,
}

/// The disk buffer of a secondary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BufferSettings {
    /// Where it lives.
    pub(crate) place: BufferPlace,
    /// A file is opened with `O_DIRECT`.
    pub(crate) direct: bool,
    /// How much it holds.
    pub(crate) size: Size,
    /// Unit of what is kept.
    pub(crate) granule: Size,
    /// What happens when it is full.
    pub(crate) when_full: WhenFull,
    /// How long a write is held at most.
    pub(crate) stall_max: Span,
}

impl BufferSettings {
    /// Checks what single values cannot show by themselves.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub(crate) fn check(&self) -> Result<(), String> {
        let granule = self.granule;
        if !granule.0.is_power_of_two() || !(GRANULE_BYTES_MIN..=GRANULE_BYTES_MAX).contains(&granule.0) {
            return Err(format!("granule {granule} is no power of two between 512 and 256K: take 4K"));
        }
        let least = Size(granule.0.saturating_mul(BUFFER_GRANULES_MIN));
        if self.size < least {
            return Err(format!(
                "buffer of {} is too small for granules of {granule}: give it {least} or more",
                self.size
            ));
        }
        Ok(())
    }
}

/// Checks what one bit of a dirty bitmap shall stand for.
///
/// # Errors
/// What is wrong, and what to do.
pub(crate) fn check_dirty_granule(granule: Size) -> Result<(), String> {
    if !granule.0.is_power_of_two() || !(GRANULE_BYTES_MIN..=DIRTY_GRANULE_BYTES_MAX).contains(&granule.0) {
        return Err(format!("dirty granule {granule} is no power of two between 512 and 2G: take 64K"));
    }
    Ok(())
}

impl SecondarySpec {
    /// Its disk buffer.
    pub(crate) fn buffer_settings(&self) -> BufferSettings {
        BufferSettings {
            place: self.buffer.clone(),
            direct: self.direct,
            size: self.buffer_size,
            granule: self.granule,
            when_full: self.when_full,
            stall_max: self.stall_max,
        }
    }

    /// The name of the guest view.
    pub(crate) fn guest_export(&self) -> &str {
        self.guest_export.as_deref().unwrap_or(&self.export)
    }
}

impl VolumeSpec {
    /// The volume's name: its export's.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Primary(primary) => &primary.export,
            Self::Secondary(secondary) => &secondary.export,
        }
    }

    /// Each address it listens on, with the export that is served there and what the setting is called.
    pub(crate) fn exports(&self) -> Vec<(&Address, &str, &'static str)> {
        match self {
            Self::Primary(primary) => vec![(&primary.listen, primary.export.as_str(), "listen")],
            Self::Secondary(secondary) => vec![
                (&secondary.listen, secondary.export.as_str(), "listen"),
                (&secondary.guest, secondary.guest_export(), "guest"),
            ],
        }
    }

    const fn disk(&self) -> &Disk {
        match self {
            Self::Primary(primary) => &primary.disk,
            Self::Secondary(secondary) => &secondary.disk,
        }
    }

    fn check(&self) -> Result<(), String> {
        match self {
            Self::Primary(primary) => primary.check(),
            Self::Secondary(secondary) => secondary.check(),
        }
        .map_err(|refusal| format!("volume '{}': {refusal}", self.name().escape_debug()))
    }
}

impl PrimarySpec {
    fn check(&self) -> Result<(), String> {
        check_name("export", &self.export)?;
        if self.replicas.len() > REPLICAS_MAX {
            return Err(format!("{} replicas are too many: at most {REPLICAS_MAX}", self.replicas.len()));
        }
        check_dirty_granule(self.dirty_granule)?;
        let mut names = BTreeSet::new();
        for replica in &self.replicas {
            check_name("replica", &replica.name)?;
            if !names.insert(&replica.name) {
                return Err(format!("two replicas are called '{}': give each its own name", replica.name));
            }
        }
        Ok(())
    }
}

impl SecondarySpec {
    fn check(&self) -> Result<(), String> {
        check_name("export", &self.export)?;
        check_name("guest export", self.guest_export())?;
        self.buffer_settings().check()
    }
}

impl DaemonSpec {
    /// Checks what single values cannot show by themselves.
    ///
    /// # Errors
    /// One line: what is wrong, where, and what to do.
    pub(crate) fn check(&self) -> Result<(), String> {
        if !self.allow_remote_control && !self.control.is_local() {
            return Err(format!(
                "control address {} can be reached from other machines, and whoever reaches it commands the \
                 daemon: use a unix socket or loopback, or say --allow-remote-control (allow-remote-control = true)",
                self.control
            ));
        }
        for (name, span) in [
            ("peer-timeout", Some(self.peer_timeout)),
            ("handshake-timeout", Some(self.handshake_timeout)),
            ("replica-timeout", Some(self.replica_timeout)),
            ("checkpoint-timeout", Some(self.checkpoint_timeout)),
            ("checkpoint-every", self.checkpoint_every),
        ] {
            if span.is_some_and(|span| span.0.as_millis() == 0) {
                return Err(format!("{name} must be at least 1ms"));
            }
        }
        if !(1..=CONNECTIONS_MAX).contains(&self.connections_max) {
            return Err(format!(
                "max-connections {} is out of range: take 1 to {CONNECTIONS_MAX}",
                self.connections_max
            ));
        }
        let has_primary = self.volumes.iter().any(|volume| matches!(volume, VolumeSpec::Primary(_)));
        if self.checkpoint_every.is_some() && !has_primary && !self.volumes.is_empty() {
            return Err("checkpoint-every is for primaries, and there is none: leave it out".into());
        }
        self.check_volumes()
    }

    fn check_volumes(&self) -> Result<(), String> {
        let mut names = BTreeSet::new();
        let mut disks = BTreeSet::new();
        let mut served = BTreeSet::new();
        for volume in &self.volumes {
            volume.check()?;
            let name = volume.name();
            if !names.insert(name) {
                return Err(format!("two volumes are called '{name}': give each export its own name"));
            }
            if !disks.insert(volume.disk().to_string()) {
                return Err(format!("volume '{name}': disk {} is another volume's already", volume.disk()));
            }
            if let VolumeSpec::Secondary(SecondarySpec { buffer: BufferPlace::Path(path), .. }) = volume
                && !disks.insert(path.display().to_string())
            {
                return Err(format!(
                    "volume '{name}': buffer {} is another file of this daemon already: take another path",
                    path.display()
                ));
            }
            for (address, export, setting) in volume.exports() {
                if *address == self.control {
                    return Err(format!(
                        "volume '{name}': {setting} address {address} is the control address: take another"
                    ));
                }
                if !served.insert((address, export)) {
                    return Err(format!(
                        "volume '{name}': {address} serves an export '{export}' already: give this one another \
                         name (guest-export) or another address"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Checks the name of an export or a replica.
///
/// # Errors
/// What is wrong with it, and what to do.
pub(crate) fn check_name(what: &str, name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err(format!("{what} has no name"));
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(format!("{what} name '{name}' is too long: at most {NAME_BYTES_MAX} bytes"));
    }
    if name.chars().any(char::is_control) {
        return Err(format!("{what} name {name:?} has control characters: leave them out"));
    }
    Ok(())
}
