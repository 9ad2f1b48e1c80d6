//! Disks: a path or an NBD URI.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::NbdUri;

/// A disk: something local, or something that another server serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Disk {
    /// A file or a block device.
    Path(PathBuf),
    /// An NBD export.
    Nbd(NbdUri),
}

impl FromStr for Disk {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("a disk is a path or an NBD URI".into());
        }
        if NbdUri::is_meant(text) {
            return text.parse().map(Self::Nbd).map_err(|error: super::UriError| error.to_string());
        }
        Ok(Self::Path(text.into()))
    }
}

impl fmt::Display for Disk {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(formatter),
            Self::Nbd(uri) => uri.fmt(formatter),
        }
    }
}
