//! Addresses: `unix:PATH` or `tcp:HOST:PORT`.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;

/// Longest path of a unix socket: `sun_path` of unix(7) less its final zero.
const UNIX_PATH_BYTES_MAX: usize = 107;

/// Where something listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// TCP.
    Tcp {
        /// A name, an IPv4 address or an IPv6 address without brackets.
        host: String,
        /// Never 0.
        port: u16,
    },
}

impl Address {
    /// Whether only this machine can reach it: a unix socket or loopback.
    pub(crate) fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp { host, .. } => {
                host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
            }
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("'{text}': {why}; write unix:PATH or tcp:HOST:PORT");
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.len() {
                0 => Err(wrong("no path")),
                1..=UNIX_PATH_BYTES_MAX => Ok(Self::Unix(path.into())),
                _ => Err(wrong(&format!("a socket's path has at most {UNIX_PATH_BYTES_MAX} bytes"))),
            };
        }
        let rest = text.strip_prefix("tcp:").ok_or_else(|| wrong("not an address"))?;
        let (host, port) = rest.rsplit_once(':').ok_or_else(|| wrong("no port"))?;
        let host = match host.strip_prefix('[') {
            Some(inner) => inner.strip_suffix(']').ok_or_else(|| wrong("'[' without ']'"))?,
            None if host.contains(':') => return Err(wrong("an IPv6 address needs brackets")),
            None => host,
        };
        let port =
            port.parse().ok().filter(|port| *port != 0).ok_or_else(|| wrong("a port is 1 to 65535"))?;
        if host.is_empty() {
            return Err(wrong("no host"));
        }
        Ok(Self::Tcp { host: host.into(), port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(formatter, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(formatter, "tcp:{host}:{port}"),
        }
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
