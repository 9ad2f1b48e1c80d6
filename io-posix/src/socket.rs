//! Listeners and streams that never block, over unix sockets and TCP alike.

use std::fs;
use std::io::{self, IoSlice};
use std::net::ToSocketAddrs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, Mode, OFlags, fchmod, flock};
use rustix::io::Errno;
use rustix::net::{
    self, AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, SocketAddrAny, SocketAddrUnix,
    SocketFlags, SocketType, sockopt,
};

use crate::address::Address;
use crate::errno::io_error;

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 1024;
/// How often a port is tried, and the pause between.
const ATTEMPTS: u32 = 11;
const PAUSE: Duration = Duration::from_millis(10);
/// How many unanswered keep-alive probes end a connection.
const PROBES: u32 = 3;
/// How often, and each time how long, it is tried whether a socket that answers is about to vanish.
const PROBES_OF_STALE: usize = 20;
const STALE_MAX: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// How long a silent peer over TCP is taken to be alive: it is probed when it has been silent for half of that, and
/// the connection fails when nothing was heard or acknowledged for all of it. Unix sockets need no such thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerTimeout(pub Duration);

impl Default for PeerTimeout {
    /// 10 s.
    fn default() -> Self {
        Self(Duration::from_secs(10))
    }
}

/// How to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ListenOptions {
    /// A unix socket that only this user can connect to (mode 0600), from its first moment on.
    pub is_private: bool,
    /// For the connections that are accepted.
    pub peer_timeout: PeerTimeout,
}

/// A socket that accepts connections. Dropped, it removes its socket file.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    address: Address,
    peer_timeout: PeerTimeout,
    _file: Option<SocketFile>,
}

/// A socket file that is ours: removed only while it still is.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
}

fn file_id(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if file_id(&self.path).is_ok_and(|id| id == self.id) {
            // Somebody else may remove it at the same moment; then it is gone all the same.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Listener {
    /// Listens. A socket file left behind by a process that has ended is replaced; one where somebody answers is not.
    ///
    /// # Errors
    /// The address is in use, cannot be resolved, or the system refuses; the text names the address.
    pub fn bind(address: &Address, options: ListenOptions) -> io::Result<Self> {
        let named = |error: io::Error| {
            let remedy = remedy(&error);
            io::Error::new(error.kind(), format!("cannot listen on {address}: {error}{remedy}"))
        };
        match address {
            Address::Unix(path) => bind_unix(path, options),
            Address::Tcp { .. } => bind_tcp(address, options),
        }
        .map_err(named)
    }

    /// The next connection, or `None` if none is waiting.
    ///
    /// # Errors
    /// The process has no descriptor left, in practice: do not listen for a while, since the connection goes on waiting.
    pub fn accept(&self) -> io::Result<Option<Stream>> {
        loop {
            match net::accept_with(&self.socket, FLAGS) {
                Ok(socket) => return Ok(Some(self.welcome(socket))),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR | Errno::CONNABORTED | Errno::PROTO) => {}
                Err(error) => return Err(io_error(error)),
            }
        }
    }

    /// Makes a stream of a socket that was accepted for it.
    pub(crate) fn welcome(&self, socket: OwnedFd) -> Stream {
        let is_tcp = matches!(self.address, Address::Tcp { .. });
        // A peer that has gone already makes this fail; its stream will say so.
        let _ = if is_tcp { tune(socket.as_fd(), self.peer_timeout) } else { widen(&socket) };
        Stream { socket }
    }

    /// Where it listens, with the port that the system chose if 0 was asked for.
    #[must_use]
    pub const fn address(&self) -> &Address {
        &self.address
    }
}

/// What to do, where the system's text leaves that open.
fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::ADDRINUSE) => "; another process listens there: stop it or use another address",
        Some(Errno::ADDRNOTAVAIL) => "; use an address of this machine",
        Some(Errno::NOENT | Errno::NOTDIR) => "; make the folder first, or correct the path",
        Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => {
            "; choose a place where this user may make a socket"
        }
        _ => "",
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn bind_unix(path: &Path, options: ListenOptions) -> io::Result<Listener> {
    let address = SocketAddrUnix::new(path).map_err(|error| match error {
        Errno::NAMETOOLONG => io::Error::other("the path of a unix socket has at most 107 bytes"),
        error => io_error(error),
    })?;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, FLAGS, None)?;
    if options.is_private {
        // The file takes over the socket's mode when it is bound, so that it is never open to others.
        fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    }
    // Two that start together must not remove each other's fresh file.
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder =
        rustix::fs::open(folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    flock(&folder, FlockOperation::LockExclusive)?;
    match net::bind(&socket, &address) {
        Err(Errno::ADDRINUSE) => {
            remove_stale(path, &address)?;
            net::bind(&socket, &address)?;
        }
        bound => bound?,
    }
    let _file = Some(SocketFile { path: path.to_owned(), id: file_id(path)? });
    if options.is_private {
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    }
    // Before the folder is unlocked: a socket that does not listen yet looks stale.
    net::listen(&socket, BACKLOG)?;
    Ok(Listener {
        socket,
        address: Address::Unix(path.to_owned()),
        peer_timeout: options.peer_timeout,
        _file,
    })
}

/// Removes a socket file where nobody answers.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is not a socket"));
    }
    let in_use = || {
        io::Error::new(io::ErrorKind::AddrInUse, "another process listens there; stop it or use another path")
    };
    // The socket of a process that was killed may take connections for a moment longer, but none of them lasts.
    for _ in 0..PROBES_OF_STALE {
        let probe = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, FLAGS, None)?;
        match net::connect(&probe, address) {
            Err(Errno::CONNREFUSED) => return fs::remove_file(path),
            Err(Errno::NOENT) => return Ok(()),
            Err(Errno::AGAIN) => return Err(in_use()),
            Err(error) => return Err(io_error(error)),
            Ok(()) => {}
        }
        let mut waiting = [PollFd::new(&probe, PollFlags::IN)];
        poll(&mut waiting, Some(&STALE_MAX))?;
        let [found] = &waiting;
        if !found.revents().intersects(PollFlags::HUP | PollFlags::ERR) {
            return Err(in_use());
        }
    }
    Err(in_use())
}

fn bind_tcp(address: &Address, options: ListenOptions) -> io::Result<Listener> {
    let mut refused = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for candidate in resolve_tcp(address)? {
        match bind_one(&candidate) {
            Ok((socket, port)) => {
                let host = if let Address::Tcp { host, .. } = address { host.clone() } else { String::new() };
                let address = Address::Tcp { host, port };
                return Ok(Listener { socket, address, peer_timeout: options.peer_timeout, _file: None });
            }
            Err(error) => refused = io_error(error),
        }
    }
    Err(refused)
}

/// A port in use is given a tenth of a second to become free: of a process that was killed, what is in flight on a ring may
/// keep its sockets for a moment longer.
fn bind_one(address: &std::net::SocketAddr) -> Result<(OwnedFd, u16), Errno> {
    for _ in 1..ATTEMPTS {
        match try_bind(address) {
            Err(Errno::ADDRINUSE) => thread::sleep(PAUSE),
            result => return result,
        }
    }
    try_bind(address)
}

fn try_bind(address: &std::net::SocketAddr) -> Result<(OwnedFd, u16), Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = net::socket_with(family, SocketType::STREAM, FLAGS, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    net::bind(&socket, address)?;
    net::listen(&socket, BACKLOG)?;
    let bound = std::net::SocketAddr::try_from(net::getsockname(&socket)?)?;
    Ok((socket, bound.port()))
}

fn resolve_tcp(address: &Address) -> io::Result<impl Iterator<Item = std::net::SocketAddr>> {
    let (host, port) = match address {
        Address::Tcp { host, port } => (host.as_str(), *port),
        Address::Unix(_) => ("", 0),
    };
    (host, port).to_socket_addrs()
}

/// Lets a unix socket hold some windows, as a TCP connection grows to by itself: with less, sender and receiver wait for
/// each other several times for each MiB. The system takes what it allows anybody, without a word.
fn widen(socket: &OwnedFd) -> Result<(), Errno> {
    sockopt::set_socket_send_buffer_size(socket, UNIX_SEND_BYTES)
}

/// Small messages leave at once; a peer that has vanished is noticed.
fn tune(socket: BorrowedFd<'_>, peer_timeout: PeerTimeout) -> Result<(), Errno> {
    let second = Duration::from_secs(1);
    let timeout = peer_timeout.0.max(second);
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, (timeout / 2).max(second))?;
    sockopt::set_tcp_keepintvl(socket, (timeout / (2 * PROBES)).max(second))?;
    sockopt::set_tcp_keepcnt(socket, PROBES)?;
    sockopt::set_tcp_user_timeout(socket, u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX))
}

/// Where to connect to, resolved once: looking up a name may take seconds, which the loop cannot spend.
#[derive(Clone, Debug)]
pub struct Target {
    addresses: Box<[SocketAddrAny]>,
    next: usize,
    is_tcp: bool,
    /// Of a unix socket: its path without detours.
    path: Option<PathBuf>,
}

impl Target {
    /// Looks up the name, waiting as long as that takes: call it before the loop starts, or on another thread.
    ///
    /// # Errors
    /// The name is not known, or the path of the unix socket is too long.
    pub fn resolve(address: &Address) -> io::Result<Self> {
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("cannot resolve {address}: {error}"));
        let addresses: Box<[SocketAddrAny]> = match address {
            Address::Unix(path) => {
                let unix = SocketAddrUnix::new(path).map_err(|error| named(io_error(error)))?;
                Box::new([unix.into()])
            }
            Address::Tcp { .. } => resolve_tcp(address).map_err(named)?.map(SocketAddrAny::from).collect(),
        };
        if addresses.is_empty() {
            return Err(named(io::Error::new(io::ErrorKind::NotFound, "the name has no address")));
        }
        let path = match address {
            Address::Unix(path) => Some(direct(path)),
            Address::Tcp { .. } => None,
        };
        Ok(Self { addresses, next: 0, is_tcp: path.is_none(), path })
    }

    /// Whether both lead to one place, however that is written: names that share an IP address and the port, or paths of
    /// one unix socket.
    #[must_use]
    pub fn is_where(&self, other: &Self) -> bool {
        match (&self.path, &other.path) {
            (Some(here), Some(there)) => here == there,
            (None, None) => self.addresses.iter().any(|address| other.addresses.contains(address)),
            _ => false,
        }
    }
}

/// The path without links and dots; that of the folder if the socket is not there yet.
fn direct(path: &Path) -> PathBuf {
    let whole = fs::canonicalize(path);
    let folder = || {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Some(fs::canonicalize(folder).ok()?.join(path.file_name()?))
    };
    whole.ok().or_else(folder).unwrap_or_else(|| path.to_owned())
}

/// A connection.
#[derive(Debug)]
pub struct Stream {
    socket: OwnedFd,
}

/// A connection attempt.
#[derive(Debug)]
pub enum Connecting {
    /// It has succeeded.
    Connected(Stream),
    /// Wait until the stream is writable, then ask [`Stream::finish_connect`].
    Pending(Stream),
}

impl Stream {
    /// Begins to connect; at each call to the next of the target's addresses.
    ///
    /// # Errors
    /// It was refused at once.
    pub fn connect(target: &mut Target, peer_timeout: PeerTimeout) -> io::Result<Connecting> {
        let index = target.next % target.addresses.len().max(1);
        target.next = index + 1;
        let address = target.addresses.get(index).ok_or(io::ErrorKind::NotFound)?;
        let socket = net::socket_with(address.address_family(), SocketType::STREAM, FLAGS, None)?;
        if target.is_tcp {
            tune(socket.as_fd(), peer_timeout)?;
        } else {
            widen(&socket)?;
        }
        let connected = net::connect(&socket, address);
        let stream = Self { socket };
        match connected {
            Ok(()) => Ok(Connecting::Connected(stream)),
            Err(Errno::INPROGRESS | Errno::INTR) => Ok(Connecting::Pending(stream)),
            // A unix socket says so when too many wait to be accepted.
            Err(error) => Err(io_error(error)),
        }
    }

    /// What came of a pending attempt, once the stream is writable.
    ///
    /// # Errors
    /// The attempt has failed.
    pub fn finish_connect(&self) -> io::Result<()> {
        sockopt::socket_error(&self.socket)?.map_err(io_error)
    }

    /// Two connected streams, for tests and for threads of one process.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = net::socketpair(AddressFamily::UNIX, SocketType::STREAM, FLAGS, None)?;
        Ok((Self { socket: one }, Self { socket: other }))
    }

    /// Receives what is there: how many bytes, `Some(0)` if the peer has closed, `None` if nothing is there now.
    ///
    /// # Errors
    /// The connection has failed.
    pub fn recv(&self, bytes: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match net::recv(&self.socket, &mut *bytes, RecvFlags::empty()) {
                Ok((count, _)) => return Ok(Some(count)),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(error) => return Err(io_error(error)),
            }
        }
    }

    /// Sends as much as there is room for, all in one system call: how many bytes, or `None` if there is no room now.
    ///
    /// # Errors
    /// The connection has failed.
    pub fn send(&self, segments: &[IoSlice<'_>]) -> io::Result<Option<usize>> {
        send_on(self.socket.as_fd(), segments)
    }

    /// Tells the peer that nothing more will be sent; receiving goes on.
    pub fn finish_sending(&self) {
        // It fails only on a connection that is gone.
        let _ = net::shutdown(&self.socket, Shutdown::Write);
    }
}

impl From<Stream> for OwnedFd {
    fn from(stream: Stream) -> Self {
        stream.socket
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// As [`Stream::send`], of a stream that somebody else has.
pub(crate) fn send_on(socket: BorrowedFd<'_>, segments: &[IoSlice<'_>]) -> io::Result<Option<usize>> {
    loop {
        let mut control = SendAncillaryBuffer::default();
        match net::sendmsg(socket, segments, &mut control, SendFlags::NOSIGNAL) {
            Ok(count) => return Ok(Some(count)),
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::INTR) => {}
            Err(error) => return Err(io_error(error)),
        }
    }
}

/// What a unix socket holds on its way; the system adds as much again for its own needs.
const UNIX_SEND_BYTES: usize = 512 << 10;

/// How many segments leave in one system call.
pub const BATCH_MAX: usize = 64;

/// Batch gathered for one [`Stream::send`], on the stack.
#[derive(Debug)]
pub struct Batch<'a> {
    slices: [IoSlice<'a>; BATCH_MAX],
    count: usize,
    bytes: usize,
}

impl Default for Batch<'_> {
    fn default() -> Self {
        Self { slices: [IoSlice::new(&[]); BATCH_MAX], count: 0, bytes: 0 }
    }
}

impl<'a> Batch<'a> {
    /// Adds one; `false` if there is no room for it. Empty ones take none.
    pub fn push(&mut self, bytes: &'a [u8]) -> bool {
        if bytes.is_empty() {
            return true;
        }
        let Some(slice) = self.slices.get_mut(self.count) else { return false };
        *slice = IoSlice::new(bytes);
        self.count += 1;
        self.bytes += bytes.len();
        true
    }

    /// All of them, in order.
    #[must_use]
    pub fn slices(&self) -> &[IoSlice<'a>] {
        self.slices.get(..self.count).unwrap_or_default()
    }

    /// How many bytes they have together.
    #[must_use]
    pub const fn byte_count(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests;
