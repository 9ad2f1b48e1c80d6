//! NBD URIs (the NBD project's URI document): `nbd://HOST[:PORT]/EXPORT` and `nbd+unix:///EXPORT?socket=PATH`.

use std::error::Error;
use std::fmt;
use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use url::{Host, Url};

use crate::address::{Address, is_host};

/// Where NBD servers listen unless told otherwise.
pub const NBD_PORT: u16 = 10809;

/// What is encoded when a URI is written, slashes too.
const WITH_SLASHES: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// The same, but slashes stay as they are.
const ENCODED: &AsciiSet = &WITH_SLASHES.remove(b'/');

/// An export of an NBD server.
///
/// ```
/// use twinblock_io_posix::uri::NbdUri;
///
/// let uri: NbdUri = "nbd+unix:///disk?socket=/run/nbd.sock".parse()?;
/// assert_eq!(uri.export, "disk");
/// assert_eq!(uri.to_string(), "nbd+unix:///disk?socket=/run/nbd.sock");
/// # Ok::<(), twinblock_io_posix::uri::UriError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NbdUri {
    /// Where the server listens.
    pub address: Address,
    /// Name of the export; empty means the server's default.
    pub export: String,
}

impl NbdUri {
    /// Whether a text is meant as an NBD URI rather than a path.
    #[must_use]
    pub fn is_meant(text: &str) -> bool {
        text.split_once("://").is_some_and(|(scheme, _)| scheme.starts_with("nbd"))
    }
}

impl fmt::Display for NbdUri {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A path loses its dots when it is read, unless its slashes are no slashes of a path.
        let has_dots = self.export.split('/').any(|part| matches!(part, "." | ".."));
        let export = utf8_percent_encode(&self.export, if has_dots { WITH_SLASHES } else { ENCODED });
        match &self.address {
            Address::Unix(path) => {
                let path = path.to_string_lossy();
                write!(to, "nbd+unix:///{export}?socket={}", utf8_percent_encode(&path, ENCODED))
            }
            Address::Tcp { host, port } => {
                let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
                write!(to, "nbd://{open}{host}{close}")?;
                if *port != NBD_PORT {
                    write!(to, ":{port}")?;
                }
                write!(to, "/{export}")
            }
        }
    }
}

/// Why a text is no NBD URI that can be used here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UriError {
    /// What was written.
    pub text: String,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for UriError {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { text, reason } = self;
        write!(
            to,
            "'{text}' is not a usable NBD URI: {reason}; write nbd://HOST[:PORT]/EXPORT or \
             nbd+unix:///EXPORT?socket=PATH"
        )
    }
}

impl Error for UriError {}

impl FromStr for NbdUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        parse(text).map_err(|reason| UriError { text: text.to_owned(), reason })
    }
}

fn parse(text: &str) -> Result<NbdUri, String> {
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    let is_unix = match url.scheme() {
        "nbd" => false,
        "nbd+unix" => true,
        "nbds" | "nbds+unix" => return Err("TLS is not supported".into()),
        other => return Err(format!("'{other}' is not a scheme of NBD")),
    };
    if !url.as_str().get(url.scheme().len()..).is_some_and(|rest| rest.starts_with("://")) {
        return Err("it has no //".into());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a user name has no meaning without TLS".into());
    }
    if url.fragment().is_some() {
        return Err("a '#' must be written %23".into());
    }
    let export = decode(url.path().strip_prefix('/').unwrap_or(url.path()))?;
    let socket = find_socket(url.query())?;
    let address = match (is_unix, socket, url.host()) {
        (true, _, Some(_)) => return Err("nbd+unix:// has no host; write three slashes".into()),
        (true, None, None) => return Err("?socket=PATH is missing".into()),
        (true, Some(path), None) => Address::Unix(path.into()),
        (false, Some(_), _) => return Err("a socket belongs to nbd+unix://".into()),
        (false, None, host) => {
            let host = match host {
                Some(Host::Domain(name)) if !name.is_empty() => host_name(name)?,
                Some(Host::Ipv4(ip)) => ip.to_string(),
                Some(Host::Ipv6(ip)) => ip.to_string(),
                _ => return Err("the host is missing".into()),
            };
            Address::Tcp { host, port: url.port().unwrap_or(NBD_PORT) }
        }
    };
    Ok(NbdUri { address, export })
}

/// A host's name; what only percent signs can bring into it belongs to no name.
fn host_name(text: &str) -> Result<String, String> {
    let name = decode(text)?;
    if !is_host(&name) || name.contains([':', '%']) {
        return Err(format!("'{}' is no host", name.escape_debug()));
    }
    Ok(name)
}

fn find_socket(query: Option<&str>) -> Result<Option<String>, String> {
    let mut socket = None;
    for part in query.unwrap_or_default().split('&').filter(|part| !part.is_empty()) {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        if key != "socket" {
            return Err(format!("'{key}' is not known"));
        }
        if value.is_empty() || socket.is_some() {
            return Err("socket needs one path".into());
        }
        socket = Some(decode(value)?);
    }
    Ok(socket)
}

fn decode(text: &str) -> Result<String, String> {
    let decoded =
        percent_decode_str(text).decode_utf8().map_err(|_| "it is not UTF-8 when decoded".to_owned())?;
    if decoded.contains('\0') {
        return Err("it has a zero byte".into());
    }
    Ok(decoded.into_owned())
}

#[cfg(test)]
mod tests;
