//! The file of `twinblock daemon --config`: several volumes of either role in one process. Keys are called as the
//! flags are; what is checked beyond the form is checked in [`DaemonSpec::check`].

#[cfg(test)]
mod tests;

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

use crate::failure::Failure;
use crate::spec::{
    Address, Backend, BufferPlace, DaemonSpec, Disk, NbdUri, PrimarySpec, ReplicaSpec, SecondarySpec,
    VolumeSpec, WhenFull,
};
use crate::units::{Size, Span};

/// The longest file that is read: thousands of volumes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A file with every key.
pub(crate) const EXAMPLE: &str = include_str!("example.toml");

/// What is written as it is on the command line.
fn text<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: FromStr<Err: Display>,
    D: Deserializer<'de>,
{
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

fn optional_text<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T: FromStr<Err: Display>,
    D: Deserializer<'de>,
{
    text(deserializer).map(Some)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Described {
    #[serde(deserialize_with = "text")]
    control: Address,
    #[serde(default)]
    allow_remote_control: bool,
    #[serde(default)]
    backend: Backend,
    #[serde(default = "max_connections")]
    max_connections: u16,
    #[serde(default = "ten_seconds")]
    peer_timeout: Span,
    #[serde(default = "ten_seconds")]
    handshake_timeout: Span,
    #[serde(default = "ten_seconds")]
    replica_timeout: Span,
    #[serde(default = "checkpoint_timeout")]
    checkpoint_timeout: Span,
    checkpoint_every: Option<Span>,
    #[serde(default)]
    start: bool,
    #[serde(default)]
    primary: Vec<Primary>,
    #[serde(default)]
    secondary: Vec<Secondary>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Primary {
    export: String,
    #[serde(deserialize_with = "text")]
    disk: Disk,
    #[serde(default)]
    direct: bool,
    #[serde(deserialize_with = "text")]
    listen: Address,
    #[serde(default = "dirty_granule")]
    dirty_granule: Size,
    #[serde(default)]
    replica: Vec<Replica>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Replica {
    name: Option<String>,
    #[serde(deserialize_with = "text")]
    uri: NbdUri,
    #[serde(default, deserialize_with = "optional_text")]
    control: Option<Address>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Secondary {
    export: String,
    #[serde(deserialize_with = "text")]
    disk: Disk,
    #[serde(default)]
    direct: bool,
    #[serde(deserialize_with = "text")]
    listen: Address,
    #[serde(deserialize_with = "text")]
    guest: Address,
    guest_export: Option<String>,
    #[serde(default)]
    guest_read_only: bool,
    buffer: BufferPlace,
    buffer_size: Size,
    #[serde(default = "granule")]
    granule: Size,
    #[serde(default)]
    when_full: WhenFull,
    #[serde(default = "stall_max")]
    stall_max: Span,
}

const fn max_connections() -> u16 {
    32
}

const fn ten_seconds() -> Span {
    Span::from_ms(10_000)
}

const fn checkpoint_timeout() -> Span {
    Span::from_ms(2_000)
}

const fn stall_max() -> Span {
    Span::from_ms(500)
}

const fn granule() -> Size {
    Size(4 << 10)
}

const fn dirty_granule() -> Size {
    Size(64 << 10)
}

/// Reads a file.
///
/// # Errors
/// [`Failure::Usage`]: it cannot be read, or is wrong; with file and line.
pub(crate) fn load(path: &Path) -> Result<DaemonSpec, Failure> {
    let text = read(path).map_err(|error| {
        let path = path.display();
        Failure::Usage(format!(
            "cannot read {path}: {error}; `twinblock daemon --help` shows what such a file holds"
        ))
    })?;
    parse(&text, &path.display().to_string()).map_err(Failure::Usage)
}

fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::other("it is no text"))
}

/// Reads a file's text; `origin` is what refusals call it.
pub(crate) fn parse(text: &str, origin: &str) -> Result<DaemonSpec, String> {
    let file: Described = toml::from_str(text).map_err(|error| {
        let message = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
        match error.span() {
            Some(span) => format!("{origin}:{}: {message}", line_at(text, span.start)),
            None => format!("{origin}: {message}"),
        }
    })?;
    let spec = file.into_spec();
    spec.check().map_err(|refusal| format!("{origin}: {refusal}"))?;
    Ok(spec)
}

fn line_at(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}

impl Described {
    fn into_spec(self) -> DaemonSpec {
        let secondaries =
            self.secondary.into_iter().map(|secondary| VolumeSpec::Secondary(secondary.into_spec()));
        let primaries = self.primary.into_iter().map(|primary| VolumeSpec::Primary(primary.into_spec()));
        DaemonSpec {
            control: self.control,
            allow_remote_control: self.allow_remote_control,
            backend: self.backend,
            connections_max: self.max_connections,
            peer_timeout: self.peer_timeout,
            handshake_timeout: self.handshake_timeout,
            replica_timeout: self.replica_timeout,
            checkpoint_timeout: self.checkpoint_timeout,
            checkpoint_every: self.checkpoint_every,
            start: self.start,
            end_with_parent: false,
            volumes: primaries.chain(secondaries).collect(),
        }
    }
}

impl Primary {
    fn into_spec(self) -> PrimarySpec {
        let replicas = self.replica.into_iter().enumerate().map(|(number, replica)| ReplicaSpec {
            name: replica.name.unwrap_or_else(|| crate::args::default_replica_name(number)),
            uri: replica.uri,
            control: replica.control,
        });
        PrimarySpec {
            disk: self.disk,
            direct: self.direct,
            listen: self.listen,
            export: self.export,
            replicas: replicas.collect(),
            dirty_granule: self.dirty_granule,
        }
    }
}

impl Secondary {
    fn into_spec(self) -> SecondarySpec {
        SecondarySpec {
            disk: self.disk,
            direct: self.direct,
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
        }
    }
}
