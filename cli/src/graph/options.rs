//! What `blockdev-add` and `drive_add` are given, by driver.

use std::path::PathBuf;

use serde_json::Value;

use super::fields::Fields;
use crate::spec::{
    Address, BufferPlace, BufferSettings, DEFAULT_DIRTY_GRANULE, DEFAULT_GRANULE, DEFAULT_STALL_MAX, NbdUri,
    WhenFull, check_dirty_granule, check_name,
};
use crate::units::Size;

/// Nodes within each other in one command.
const DEPTH_MAX: usize = 8;
/// Children of one quorum in one command: its disk and its replicas.
const CHILDREN_MAX: usize = 1 + crate::spec::REPLICAS_MAX;

/// A node that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeSpec {
    /// Absent for one that only its parent needs to know.
    pub(crate) name: Option<String>,
    pub(crate) driver: Driver,
}

/// What a node is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Driver {
    /// A file or a block device.
    File { path: PathBuf, direct: bool, is_device: bool },
    /// An export of an NBD server.
    Nbd { uri: NbdUri },
    /// Nothing but what is below.
    Raw { file: Child },
    /// A disk and the replicas it is mirrored to; or a secondary alone.
    Quorum { children: Vec<Child>, dirty_granule: Size },
    /// `replication` with `mode=primary`: a replica.
    Replica { file: Child, control: Option<Address>, is_empty: bool },
    /// `replication` with `mode=secondary`.
    Standby { file: Child, top_id: String },
    /// The disk buffer of a secondary, over its disk.
    Buffer { settings: BufferSettings, backing: Child },
}

/// What a node lies on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Child {
    /// A node that is there.
    Name(String),
    /// A new one.
    New(Box<NodeSpec>),
}

/// Reads a node's options.
pub(crate) fn node(fields: Fields) -> Result<NodeSpec, String> {
    node_at(fields, 0)
}

fn node_at(mut fields: Fields, depth: usize) -> Result<NodeSpec, String> {
    if depth == DEPTH_MAX {
        return Err(format!("more than {DEPTH_MAX} nodes lie within each other"));
    }
    let name = fields.text("node-name")?;
    if let Some(name) = &name {
        check_node_name(name)?;
    }
    let driver = fields.needed_text("driver")?;
    fields.refuse(
        &["discard", "detect-zeroes", "auto-read-only", "force-share"],
        "data is passed on as it comes, and disks are written by one alone",
    )?;
    if fields.boolean("read-only")? == Some(true) {
        return Err("the parameter 'read-only' cannot be true: what is replicated is written".into());
    }
    let driver = match driver.as_str() {
        "file" | "host_device" => file(&mut fields, driver == "host_device")?,
        "nbd" => Driver::Nbd { uri: nbd(&mut fields)? },
        "raw" => raw(&mut fields, depth)?,
        "quorum" => quorum(&mut fields, depth)?,
        "replication" => replication(&mut fields, depth)?,
        "twinblock-buffer" => buffer(&mut fields, depth)?,
        "qcow2" => {
            return Err(
                "the driver 'qcow2' is not supported: a secondary keeps old content in a node of driver \
                        'twinblock-buffer' in place of an active and a hidden disk"
                    .into(),
            );
        }
        other => {
            let known = "file, host_device, nbd, raw, quorum, replication, twinblock-buffer";
            return Err(format!("there is no driver '{}'; there are {known}", other.escape_debug()));
        }
    };
    fields.end()?;
    Ok(NodeSpec { name, driver })
}

/// Names that managers choose; those with # are made here.
pub(crate) fn check_node_name(name: &str) -> Result<(), String> {
    check_name("node", name)?;
    if name.starts_with('#') {
        return Err(format!(
            "node name '{name}' begins with '#': such names are given to nodes that have none"
        ));
    }
    Ok(())
}

fn file(fields: &mut Fields, is_device: bool) -> Result<Driver, String> {
    let path = fields.needed_text("filename")?;
    if path.is_empty() {
        return Err("the parameter 'filename' is empty: name a file or a block device".into());
    }
    fields.refuse(&["aio", "locking", "pr-manager", "drop-cache"], "it is as it is")?;
    Ok(Driver::File { path: path.into(), direct: cache(fields)?, is_device })
}

fn cache(fields: &mut Fields) -> Result<bool, String> {
    let Some(mut cache) = fields.object("cache")? else { return Ok(false) };
    let direct = cache.boolean("direct")?.unwrap_or(false);
    if cache.boolean("no-flush")? == Some(true) {
        return Err("the parameter 'cache.no-flush' cannot be true: a flush is kept to".into());
    }
    cache.end()?;
    Ok(direct)
}

fn nbd(fields: &mut Fields) -> Result<NbdUri, String> {
    fields.refuse(&["tls-creds", "tls-hostname"], "nothing is encrypted; use a tunnel")?;
    fields.refuse(
        &["reconnect-delay", "open-timeout", "x-dirty-bitmap", "handle-reads"],
        "connections are made anew by themselves, as --replica-timeout says",
    )?;
    let address = match fields.object("server")? {
        Some(server) => {
            fields.refuse(&["path", "host", "port"], "'server' says it already")?;
            socket_address(server)?
        }
        None => match fields.text("path")? {
            Some(path) => {
                fields.refuse(&["host", "port"], "'path' says where the server is already")?;
                unix(path)?
            }
            None if fields.has("host") => {
                let host = fields.needed_text("host")?;
                inet(&host, port(fields)?)?
            }
            None => return Err(fields.missing("server")),
        },
    };
    Ok(NbdUri { address, export: fields.text("export")?.unwrap_or_default() })
}

/// Where an NBD server is or shall be: `{"type": "unix", "path": …}`, `{"type": "inet", "host": …, "port": …}`, or with
/// all but the type in a member `data`.
pub(crate) fn socket_address(mut fields: Fields) -> Result<Address, String> {
    let is_unix = fields.word("type", &[("unix", true), ("inet", false)])?;
    let is_unix = is_unix.ok_or_else(|| fields.missing("type"))?;
    let mut data = match fields.object("data")? {
        Some(data) => {
            fields.end()?;
            data
        }
        None => fields,
    };
    let address = if is_unix {
        let path = data.needed_text("path")?;
        data.refuse(&["abstract", "tight"], "sockets are files")?;
        unix(path)?
    } else {
        let host = data.needed_text("host")?;
        data.refuse(&["to", "ipv4", "ipv6", "keep-alive", "mptcp", "numeric"], "host and port say where")?;
        inet(&host, port(&mut data)?)?
    };
    data.end()?;
    Ok(address)
}

fn unix(path: String) -> Result<Address, String> {
    if path.is_empty() { Err("the path of a socket is empty".into()) } else { Ok(Address::Unix(path.into())) }
}

/// A port is a string in QMP, and a number to people.
fn port(fields: &mut Fields) -> Result<u16, String> {
    let wrong = || "the parameter 'port' must be a number from 0 to 65535, as a string".to_owned();
    match fields.value("port") {
        None => Ok(twinblock_io_posix::uri::NBD_PORT),
        Some(Value::String(text)) => text.parse().map_err(|_| wrong()),
        Some(Value::Number(number)) => {
            number.as_u64().and_then(|port| port.try_into().ok()).ok_or_else(wrong)
        }
        Some(_) => Err(wrong()),
    }
}

fn inet(host: &str, port: u16) -> Result<Address, String> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = bare.unwrap_or(host).to_owned();
    // Whatever could not be written in an address is none.
    let address = Address::Tcp { host, port };
    address.to_string().parse::<Address>().map_err(|error| error.to_string())
}

fn child(fields: &mut Fields, name: &str, depth: usize) -> Result<Child, String> {
    let value = fields.value(name).ok_or_else(|| fields.missing(name))?;
    child_of(fields, name, value, depth)
}

fn child_of(fields: &Fields, name: &str, value: Value, depth: usize) -> Result<Child, String> {
    match value {
        Value::String(name) => Ok(Child::Name(name)),
        Value::Object(_) => {
            let options = fields.object_of(name, value)?;
            Ok(Child::New(Box::new(node_at(options, depth + 1)?)))
        }
        _ => Err(format!(
            "the parameter '{name}' must be the name of a node or an object with the options of one"
        )),
    }
}

fn raw(fields: &mut Fields, depth: usize) -> Result<Driver, String> {
    fields.refuse(&["offset", "size"], "a disk is used whole")?;
    // `driver=raw,file.filename=…` leaves it to us to see that a file is meant.
    if let Some(mut file) = fields.object_if("file") {
        let path = file.needed_text("filename")?;
        let name = file.text("node-name")?;
        let direct = cache(&mut file)?;
        file.end()?;
        let driver = Driver::File { path: path.into(), direct, is_device: false };
        return Ok(Driver::Raw { file: Child::New(Box::new(NodeSpec { name, driver })) });
    }
    Ok(Driver::Raw { file: child(fields, "file", depth)? })
}

fn quorum(fields: &mut Fields, depth: usize) -> Result<Driver, String> {
    let threshold = fields.number("vote-threshold")?.ok_or_else(|| fields.missing("vote-threshold"))?;
    if threshold != 1 {
        return Err(
            "the parameter 'vote-threshold' must be 1: nothing is voted on, the first child has the disk"
                .into(),
        );
    }
    let pattern = fields.text("read-pattern")?;
    if pattern.as_deref() != Some("fifo") {
        return Err(
            "the parameter 'read-pattern' must be given, and be 'fifo': the first child is read".into()
        );
    }
    if fields.boolean("blkverify")? == Some(true) || fields.boolean("rewrite-corrupted")? == Some(true) {
        return Err("'blkverify' and 'rewrite-corrupted' cannot be true: children are not compared".into());
    }
    let children = fields.list("children")?.ok_or_else(|| fields.missing("children"))?;
    if children.is_empty() || children.len() > CHILDREN_MAX {
        return Err(format!(
            "the parameter 'children' must have 1 to {CHILDREN_MAX} elements: a disk, then replicas"
        ));
    }
    let children = children.into_iter().enumerate();
    let children =
        children.map(|(index, value)| child_of(fields, &format!("children.{index}"), value, depth));
    let children = children.collect::<Result<_, _>>()?;
    let dirty_granule = fields.size("dirty-granule")?.unwrap_or(DEFAULT_DIRTY_GRANULE);
    check_dirty_granule(dirty_granule)?;
    Ok(Driver::Quorum { children, dirty_granule })
}

fn replication(fields: &mut Fields, depth: usize) -> Result<Driver, String> {
    let is_primary = fields.word("mode", &[("primary", true), ("secondary", false)])?;
    let is_primary = is_primary.ok_or_else(|| fields.missing("mode"))?;
    let top_id = fields.text("top-id")?;
    let file = child(fields, "file", depth)?;
    if !is_primary {
        let top_id = top_id.ok_or_else(|| {
            format!("{}: with mode 'secondary' it names the node on top", fields.missing("top-id"))
        })?;
        return Ok(Driver::Standby { file, top_id });
    }
    if top_id.is_some() {
        return Err("the parameter 'top-id' is for mode 'secondary'; leave it out with mode 'primary'".into());
    }
    let control = fields.parsed("control")?;
    let is_empty = fields.word("sync", &[("full", true), ("none", false)])?.unwrap_or(false);
    Ok(Driver::Replica { file, control, is_empty })
}

fn buffer(fields: &mut Fields, depth: usize) -> Result<Driver, String> {
    let place = fields.needed_text("buffer")?;
    let settings = BufferSettings {
        place: BufferPlace::parse(&place).map_err(|error| format!("the parameter 'buffer': {error}"))?,
        direct: cache(fields)?,
        size: fields.size("buffer-size")?.ok_or_else(|| fields.missing("buffer-size"))?,
        granule: fields.size("granule")?.unwrap_or(DEFAULT_GRANULE),
        when_full: fields
            .word("when-full", &[("stall", WhenFull::Stall), ("break", WhenFull::Break)])?
            .unwrap_or_default(),
        stall_max: fields.parsed("stall-max")?.unwrap_or(DEFAULT_STALL_MAX),
    };
    settings.check()?;
    Ok(Driver::Buffer { settings, backing: child(fields, "backing", depth)? })
}
