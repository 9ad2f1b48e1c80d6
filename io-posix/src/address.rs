//! Addresses as people write them: `unix:PATH` and `tcp:HOST:PORT`.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where something listens.
///
/// ```
/// use twinblock_io_posix::address::Address;
///
/// let address: Address = "tcp:[::1]:10809".parse()?;
/// assert_eq!(address, Address::Tcp { host: "::1".into(), port: 10809 });
/// assert_eq!(address.to_string(), "tcp:[::1]:10809");
/// # Ok::<(), twinblock_io_posix::address::AddressError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// A unix socket at this path.
    Unix(PathBuf),
    /// A TCP port.
    Tcp {
        /// A name, or an IP address without brackets.
        host: String,
        /// Port; 0 lets the system choose one to listen on.
        port: u16,
    },
}

impl Address {
    /// Whether only this machine can reach it: a unix socket, or TCP on a loopback address or `localhost`.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp { host, .. } => {
                host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
            }
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(to, "unix:{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(to, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(to, "tcp:{host}:{port}"),
        }
    }
}

/// Why a text is no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressError {
    /// What was written.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl fmt::Display for AddressError {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "'{}' is not an address: {}; write unix:PATH or tcp:HOST:PORT", self.text, self.reason)
    }
}

impl Error for AddressError {}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let refuse = |reason| Err(AddressError { text: text.to_owned(), reason });
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { refuse("the path is missing") } else { Ok(Self::Unix(path.into())) };
        }
        let Some(rest) = text.strip_prefix("tcp:") else {
            return refuse("it begins neither with unix: nor with tcp:");
        };
        let Some((host, port)) = rest.rsplit_once(':') else { return refuse("the port is missing") };
        let Ok(port) = port.parse() else { return refuse("the port is not a number up to 65535") };
        let host = match host.strip_prefix('[') {
            Some(bracketed) => match bracketed.strip_suffix(']') {
                Some(inner) => inner,
                None => return refuse("a bracket is not closed"),
            },
            None if host.contains(':') => return refuse("an IPv6 address needs brackets"),
            None => host,
        };
        if host.is_empty() {
            return refuse("the host is missing");
        }
        if !is_host(host) {
            return refuse("the host is neither a name nor an IP address");
        }
        Ok(Self::Tcp { host: host.to_owned(), port })
    }
}

/// Whether a text has only what names and addresses of hosts are made of: what else there is could not be written in an
/// address or a URI again.
pub(crate) fn is_host(text: &str) -> bool {
    let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:%".contains(&byte);
    !text.is_empty() && text.bytes().all(is_fit)
}

#[cfg(test)]
mod tests;
