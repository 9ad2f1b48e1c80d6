//! A manager's side of the control socket: QMP, one JSON object a line.
//!
//! Source: "QEMU Machine Protocol Specification" (`docs/interop/qmp-spec`), sections 2.2 to 2.5.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::spec::Address;

/// Longest line that a daemon may send; a longer one is no QMP.
const LINE_BYTES_MAX: usize = 1 << 20;

/// A connection to a daemon's control socket, past the greeting.
#[derive(Debug)]
pub(crate) struct Qmp {
    stream: Stream,
    address: Address,
    timeout: Duration,
    received: Vec<u8>,
    next_id: u64,
}

#[derive(Debug)]
enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

#[derive(Debug, Deserialize)]
struct Message {
    #[serde(rename = "return")]
    value: Option<Box<RawValue>>,
    error: Option<QmpError>,
    event: Option<String>,
    id: Option<u64>,
    #[serde(rename = "QMP")]
    greeting: Option<Box<RawValue>>,
}

#[derive(Debug, Deserialize)]
struct QmpError {
    desc: String,
}

impl Qmp {
    /// Connects and negotiates; each later answer is awaited for `timeout` at most.
    ///
    /// # Errors
    /// [`Failure::Unreachable`]: nobody answers there, or not as a daemon would.
    pub(crate) fn connect(address: &Address, timeout: Duration) -> Result<Self, Failure> {
        let unreachable = |error: &io::Error| {
            Failure::Unreachable(format!("cannot reach a daemon at {address}: {error}; is it running?"))
        };
        let stream = Stream::connect(address, timeout).map_err(|error| unreachable(&error))?;
        let mut qmp = Self { stream, address: address.clone(), timeout, received: Vec::new(), next_id: 1 };
        let deadline = Instant::now() + timeout;
        let greeting: Message = qmp.message(deadline).map_err(|failure| match failure {
            Failure::Refused(text) => Failure::Unreachable(text),
            other => other,
        })?;
        if let Some(error) = greeting.error {
            return Err(Failure::Unreachable(format!("the daemon at {address} refuses: {}", error.desc)));
        }
        if greeting.greeting.is_none() {
            return Err(Failure::Unreachable(format!("what answers at {address} does not speak QMP")));
        }
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Executes one command and gives back what it returned, as the daemon wrote it.
    ///
    /// # Errors
    /// [`Failure::Refused`] with the daemon's text, or if it did not answer in time.
    pub(crate) fn execute(&mut self, command: &str, arguments: &Value) -> Result<Box<RawValue>, Failure> {
        let id = self.next_id;
        self.next_id += 1;
        let line = match arguments.as_object().is_some_and(serde_json::Map::is_empty) {
            true => json!({ "execute": command, "id": id }),
            false => json!({ "execute": command, "arguments": arguments, "id": id }),
        };
        self.stream
            .send(format!("{line}\n").as_bytes())
            .map_err(|error| self.broken(command, &error.to_string()))?;
        let deadline = Instant::now() + self.timeout;
        loop {
            let message = self.message(deadline).map_err(|failure| match failure {
                Failure::Refused(text) => self.broken(command, &text),
                other => other,
            })?;
            match message {
                Message { error: Some(error), .. } => return Err(Failure::Refused(error.desc)),
                Message { value: Some(value), id: answered, .. }
                    if answered.is_none_or(|answered| answered == id) =>
                {
                    return Ok(value);
                }
                _ => {}
            }
        }
    }

    fn broken(&self, command: &str, reason: &str) -> Failure {
        Failure::Refused(format!("{command} at {}: {reason}; whether it was done is not known", self.address))
    }

    /// The next message that is no event; what goes wrong is [`Failure::Refused`] with the bare reason.
    fn message(&mut self, deadline: Instant) -> Result<Message, Failure> {
        loop {
            let line = self.line(deadline).map_err(|error| Failure::Refused(error.to_string()))?;
            let message: Message = serde_json::from_slice(&line).map_err(|error| {
                Failure::Refused(format!("{} sent what is no QMP ({error})", self.address))
            })?;
            if message.event.is_none() {
                return Ok(message);
            }
        }
    }

    fn line(&mut self, deadline: Instant) -> io::Result<Vec<u8>> {
        let mut searched = 0;
        loop {
            let unsearched = self.received.get(searched..).unwrap_or_default();
            if let Some(at) = unsearched.iter().position(|byte| *byte == b'\n') {
                let rest = self.received.split_off(searched + at + 1);
                return Ok(std::mem::replace(&mut self.received, rest));
            }
            // Every message is an object; an NBD server, for one, greets without ever ending the line.
            if self.received.iter().find(|byte| !byte.is_ascii_whitespace()).is_some_and(|byte| *byte != b'{')
            {
                let text = format!("what answers at {} is no control socket", self.address);
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            searched = self.received.len();
            if searched > LINE_BYTES_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a line without end"));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let no_answer = || io::Error::new(io::ErrorKind::TimedOut, "no answer in time");
            if left.is_zero() {
                return Err(no_answer());
            }
            let mut chunk = [0; 4096];
            match self.stream.receive(&mut chunk, left) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the daemon hung up")),
                Ok(length) => self.received.extend_from_slice(chunk.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(no_answer()),
                Err(error) => return Err(error),
            }
        }
    }
}

impl Stream {
    fn connect(address: &Address, timeout: Duration) -> io::Result<Self> {
        match address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_write_timeout(Some(timeout))?;
                Ok(Self::Unix(stream))
            }
            Address::Tcp { host, port } => {
                let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                for candidate in (host.as_str(), *port).to_socket_addrs()? {
                    match TcpStream::connect_timeout(&candidate, timeout) {
                        Ok(stream) => {
                            stream.set_nodelay(true)?;
                            stream.set_write_timeout(Some(timeout))?;
                            return Ok(Self::Tcp(stream));
                        }
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.write_all(bytes),
            Self::Tcp(stream) => stream.write_all(bytes),
        }
    }

    fn receive(&mut self, bytes: &mut [u8], timeout: Duration) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => {
                stream.set_read_timeout(Some(timeout))?;
                stream.read(bytes)
            }
            Self::Tcp(stream) => {
                stream.set_read_timeout(Some(timeout))?;
                stream.read(bytes)
            }
        }
    }
}
