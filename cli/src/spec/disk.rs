//! Disks: a path or an NBD URI.
//!
//! Source: "The NBD Uniform Resource Indicator (URI) format" (`doc/uri.md` of the NBD protocol's repository), without
//! TLS and vsock.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;

use super::Address;

/// The port that IANA gave to NBD.
const NBD_PORT: u16 = 10_809;

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
        if text.starts_with("nbd://") || text.starts_with("nbd+unix://") || text.starts_with("nbds") {
            return text.parse().map(Self::Nbd);
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

impl<'de> Deserialize<'de> for Disk {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// An NBD export: `nbd://host:port/export` or `nbd+unix:///export?socket=PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NbdUri {
    /// Where the server listens.
    pub(crate) address: Address,
    /// Which export; empty for the server's default.
    pub(crate) export: String,
}

impl FromStr for NbdUri {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| {
            format!("'{text}': {why}; write nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH")
        };
        if let Some(rest) = text.strip_prefix("nbd://") {
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            if path.contains('?') {
                return Err(wrong("no parameter is known for TCP"));
            }
            let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
            let full =
                if has_port { format!("tcp:{authority}") } else { format!("tcp:{authority}:{NBD_PORT}") };
            let address = full.parse().map_err(|_| wrong("no host and port"))?;
            return Ok(Self { address, export: decoded(path).map_err(wrong)? });
        }
        let rest =
            text.strip_prefix("nbd+unix://").ok_or_else(|| wrong("not an NBD URI that is known here"))?;
        let rest = rest.strip_prefix('/').ok_or_else(|| wrong("a unix socket has no host"))?;
        let (path, query) = rest.split_once('?').ok_or_else(|| wrong("no socket"))?;
        let socket = query.strip_prefix("socket=").filter(|value| !value.contains('&'));
        let socket =
            decoded(socket.ok_or_else(|| wrong("the only parameter is 'socket'"))?).map_err(wrong)?;
        let address =
            format!("unix:{socket}").parse().map_err(|_| wrong("the socket's path is empty or too long"))?;
        Ok(Self { address, export: decoded(path).map_err(wrong)? })
    }
}

impl fmt::Display for NbdUri {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let export = encoded(&self.export);
        match &self.address {
            Address::Unix(path) => {
                write!(formatter, "nbd+unix:///{export}?socket={}", encoded(&path.to_string_lossy()))
            }
            tcp @ Address::Tcp { .. } => {
                let text = tcp.to_string();
                write!(formatter, "nbd://{}/{export}", text.strip_prefix("tcp:").unwrap_or(&text))
            }
        }
    }
}

impl<'de> Deserialize<'de> for NbdUri {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Undoes percent-encoding (RFC 3986, section 2.1).
fn decoded(text: &str) -> Result<String, &'static str> {
    const WRONG: &str = "'%' needs two hexadecimal digits";
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let (Some(high), Some(low)) = (digit(), digit()) else { return Err(WRONG) };
        bytes.push((high * 16 + low) as u8);
    }
    String::from_utf8(bytes).map_err(|_| "not UTF-8")
}

/// Percent-encodes what is neither unreserved in RFC 3986, section 2.3, nor a slash.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
