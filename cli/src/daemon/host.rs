//! Commands that only a daemon has: nodes, NBD servers and exports, and what managers ask of any QMP server. Names and
//! arguments are QEMU's where QEMU has the command.

use std::fmt::Write;

use serde_json::{Map, Value, json};
use twinblock_core::Stage;
use twinblock_core::control::json::{self as qmp, HeldId, ParseError};
use twinblock_core::control::{Answer, Command};

use super::execute::Asker;
use super::jobs;
use super::names;
use super::nodes::Pending;
use super::{Daemon, Life};
use crate::graph::{self, Fields};
use crate::spec::{Address, check_name};
use crate::text::one_line;

/// Their names.
const NAMES: [&str; 15] = [
    "blockdev-add",
    "blockdev-del",
    "x-blockdev-change",
    "nbd-server-start",
    "nbd-server-add",
    "nbd-server-remove",
    "nbd-server-stop",
    "block-export-add",
    "block-export-del",
    "query-block-exports",
    "query-named-block-nodes",
    "query-jobs",
    "query-version",
    "query-status",
    "human-monitor-command",
];

/// What is told of a failure at most: it may quote what a manager has sent.
const FAILURE_CHARS_MAX: usize = 500;
/// Longest identifier of an export.
const ID_BYTES_MAX: usize = 128;

/// What a command comes to at once.
enum Told {
    Done,
    Value(Value),
    /// It is answered later.
    Later,
}

impl Daemon {
    /// Does what a message says that names none of the commands that every node has.
    pub(super) fn execute_host(&mut self, asker: &Asker, text: &[u8], unknown: ParseError<'_>) {
        let Ok(Value::Object(mut message)) = graph::parse_strict(text).inspect_err(|error| {
            self.fail_with(asker, error);
        }) else {
            return;
        };
        let name = message.remove("execute");
        let known = NAMES.into_iter().find(|known| name.as_ref().and_then(Value::as_str) == Some(known));
        let Some(command) = known else {
            let id = asker.id.as_ref().map(HeldId::id);
            return self.managers.answer(asker.manager, |out| unknown.write(out, id));
        };
        let arguments = match message.remove("arguments") {
            None => Map::new(),
            Some(Value::Object(arguments)) => arguments,
            Some(_) => {
                return self.fail_with(asker, &format!("'arguments' of '{command}' must be an object"));
            }
        };
        let addresses = self.addresses_of(command, &arguments);
        if self.awaits_names(asker.manager, text, addresses) {
            return;
        }
        match self.obey_host(asker, command, Fields::of_command(arguments)) {
            Ok(Told::Done) => self.answer(asker, &Answer::Done),
            Ok(Told::Value(value)) => self.answer_value(asker, &value),
            Ok(Told::Later) => {}
            Err(error) => self.fail_with(asker, &format!("'{command}': {error}")),
        }
    }

    /// The addresses that a command names, or the nodes that it is about. What is wrong with it is told when it is obeyed.
    fn addresses_of(&self, command: &str, arguments: &Map<String, Value>) -> Vec<Address> {
        let text = |name: &str| arguments.get(name).and_then(Value::as_str);
        let spec = match command {
            "blockdev-add" => graph::node(Fields::of_command(arguments.clone())).ok(),
            "human-monitor-command" => {
                let mut words = text("command-line").unwrap_or_default().split_whitespace();
                let is_add = words.next() == Some("drive_add");
                is_add.then(|| drive_options(words).and_then(graph::node).ok()).flatten()
            }
            "x-blockdev-change" => {
                return text("node")
                    .map_or_else(Vec::new, |node| names::addresses_of_node(&self.graph, node));
            }
            _ => None,
        };
        spec.map_or_else(Vec::new, |spec| names::addresses_below(&self.graph, &spec))
    }

    fn obey_host(&mut self, asker: &Asker, command: &str, mut given: Fields) -> Result<Told, String> {
        match command {
            "blockdev-add" => {
                if !given.has("node-name") {
                    return Err(given.missing("node-name"));
                }
                let node = graph::node(given)?;
                self.add_nodes_for(Pending { asker: asker.clone(), is_text: false }, node);
                Ok(Told::Later)
            }
            "blockdev-del" => {
                let name = given.needed_text("node-name")?;
                given.end()?;
                self.remove_node_for(Pending { asker: asker.clone(), is_text: false }, &name);
                Ok(Told::Later)
            }
            "x-blockdev-change" => self.change_children(asker, given),
            "nbd-server-start" => self.start_nbd(given),
            "nbd-server-stop" => {
                let server = given.text("server")?.unwrap_or_default();
                given.end()?;
                let (volumes, pool) = (&mut self.volumes, &mut self.pool);
                self.clients.stop_server(&server, self.now, volumes, pool, &mut self.poller)?;
                Ok(Told::Done)
            }
            "nbd-server-add" => self.add_export(given, true),
            "block-export-add" => self.add_export(given, false),
            "nbd-server-remove" => self.remove_export(given, "name"),
            "block-export-del" => self.remove_export(given, "id"),
            "query-block-exports" => given.end().map(|()| Told::Value(self.list_exports())),
            "query-named-block-nodes" => {
                given.boolean("flat")?;
                given.end().map(|()| Told::Value(self.list_nodes()))
            }
            "query-jobs" => given.end().map(|()| Told::Value(self.list_commits())),
            "query-version" => given.end().map(|()| Told::Value(version())),
            "query-status" => {
                let is_running = self.life == Life::Serving;
                let status = if is_running { "running" } else { "shutdown" };
                given.end().map(|()| Told::Value(json!({"running": is_running, "status": status})))
            }
            _ => self.human_command(asker, given),
        }
    }

    fn change_children(&mut self, asker: &Asker, mut given: Fields) -> Result<Told, String> {
        let parent = given.needed_text("parent")?;
        let (node, child) = (given.text("node")?, given.text("child")?);
        given.end()?;
        let waiter = asker.clone().waiter(jobs::Answer::Nothing);
        match (node, child) {
            (Some(node), None) => self.attach_child(&parent, &node, waiter)?,
            (None, Some(child)) => self.detach_child(&parent, &child, waiter)?,
            (Some(_), Some(_)) => return Err("'node' adds and 'child' takes away; give one of them".into()),
            (None, None) => return Err("give 'node' to add one, or 'child' to take one away".into()),
        }
        Ok(Told::Later)
    }

    fn start_nbd(&mut self, mut given: Fields) -> Result<Told, String> {
        given.refuse(&["tls-creds", "tls-authz"], "nothing is encrypted; use a tunnel")?;
        given.refuse(
            &["max-connections", "handshake-max-seconds"],
            "the daemon's own --max-connections and --handshake-timeout hold for all",
        )?;
        let address = given.object("addr")?.ok_or_else(|| given.missing("addr"))?;
        let address = graph::socket_address(address)?;
        let server = given.text("server")?.unwrap_or_default();
        given.end()?;
        if !server.is_empty() {
            check_name("server", &server)?;
        }
        if self.clients.check_server(&server).is_ok() {
            return Err(
                "that NBD server runs already; stop it first, or give this one a 'server' name".into()
            );
        }
        self.start_server(&server, &address)?;
        Ok(Told::Done)
    }

    /// `nbd-server-add` names the node `device`; `block-export-add` has an identifier besides.
    fn add_export(&mut self, mut given: Fields, is_by_device: bool) -> Result<Told, String> {
        if !is_by_device {
            let kind = given.text("type")?.ok_or_else(|| given.missing("type"))?;
            if kind != "nbd" {
                return Err(format!(
                    "exports of type '{}' are not supported; take 'nbd'",
                    kind.escape_debug()
                ));
            }
        }
        given.refuse(&["iothread", "fixed-iothread"], "one thread serves all")?;
        given.refuse(&["bitmap", "bitmaps", "allocation-depth", "allow-inactive"], "there is none here")?;
        if given.boolean("writethrough")? == Some(true) {
            return Err("'writethrough' cannot be true: clients flush, or force single writes".into());
        }
        let node = given.needed_text(if is_by_device { "device" } else { "node-name" })?;
        let id = if is_by_device { None } else { Some(given.needed_text("id")?) };
        let name = given.text("name")?.unwrap_or_else(|| node.clone());
        let description = given.text("description")?;
        let is_writable = given.boolean("writable")?.unwrap_or(false);
        let server = given.text("server")?.unwrap_or_default();
        given.end()?;
        let id = id.unwrap_or_else(|| name.clone());
        if id.is_empty() || id.len() > ID_BYTES_MAX || id.chars().any(char::is_control) {
            return Err(format!("'id' must have 1 to {ID_BYTES_MAX} bytes and no control characters"));
        }
        check_name("export", &name)?;
        if let Some(text) = &description
            && text.len() > crate::spec::NAME_BYTES_MAX
        {
            return Err(format!("'description' is too long: at most {} bytes", crate::spec::NAME_BYTES_MAX));
        }
        self.export_node(&server, &id, &node, &name, !is_writable, description)?;
        Ok(Told::Done)
    }

    fn remove_export(&mut self, mut given: Fields, id: &str) -> Result<Told, String> {
        let id = given.needed_text(id)?;
        let is_hard = given.word("mode", &[("safe", false), ("hard", true)])?.unwrap_or(false);
        // An identifier is enough; a server's name does no harm.
        given.text("server")?;
        given.end()?;
        self.clients.remove_export(&id, is_hard, self.now, &mut self.volumes, &mut self.pool)?;
        Ok(Told::Done)
    }

    fn list_exports(&self) -> Value {
        let exports = self.clients.exports().map(|(server, served)| {
            let mut export = json!({
                "id": served.id, "type": "nbd", "node-name": served.node, "name": served.name,
                "writable": !served.is_read_only, "shutting-down": false,
            });
            if let (Some(export), false) = (export.as_object_mut(), server.is_empty()) {
                export.insert("server".into(), server.into());
            }
            export
        });
        exports.collect()
    }

    fn list_nodes(&self) -> Value {
        let nodes = self.graph.nodes().map(|node| {
            let children = node.children.iter();
            let children: Vec<Value> =
                children.map(|edge| json!({"child": edge.role, "node-name": edge.node})).collect();
            let mut told = json!({"node-name": node.name, "drv": node.kind.driver(), "ro": false, "children": children});
            let size = self.size_of_node(&node.name);
            if let Some(told) = told.as_object_mut() {
                let file = node.kind.place();
                if let Some(file) = &file {
                    told.insert("file".into(), file.as_str().into());
                }
                if let Some(size) = size {
                    let image = json!({"filename": file.unwrap_or_default(), "format": node.kind.driver(), "virtual-size": size});
                    told.insert("image".into(), image);
                }
            }
            told
        });
        nodes.collect()
    }

    /// Commits that are under way, or have failed and can be repeated.
    fn list_commits(&self) -> Value {
        let commits = self.volumes.iter().filter_map(|volume| {
            let report = volume.report();
            let commit = report.commit?;
            let status = match report.stage {
                Stage::Failover => "running",
                Stage::FailoverFailed => "concluded",
                _ => return None,
            };
            let mut job = json!({
                "id": volume.name, "type": "commit", "status": status,
                "current-progress": commit.done_bytes, "total-progress": commit.total_bytes,
            });
            if let (Some(job), Stage::FailoverFailed) = (job.as_object_mut(), report.stage) {
                job.insert("error".into(), "the commit met an error; repeat the failover".into());
            }
            Some(job)
        });
        commits.collect()
    }

    /// The few commands for people that documents on replication use. Their answer is text, also where they fail.
    fn human_command(&mut self, asker: &Asker, mut given: Fields) -> Result<Told, String> {
        let line = given.needed_text("command-line")?;
        given.number("cpu-index")?;
        given.end()?;
        let mut words = line.split_whitespace();
        let pending = Pending { asker: asker.clone(), is_text: true };
        let result = match words.next() {
            Some("drive_add") => drive_options(words).and_then(|options| {
                let node = graph::node(options)?;
                if node.name.is_none() {
                    return Err("the parameter 'node-name' is missing".into());
                }
                Ok(node)
            }),
            Some("drive_del") => match (words.next(), words.next()) {
                (Some(name), None) => {
                    self.remove_node_for(pending, name);
                    return Ok(Told::Later);
                }
                _ => Err("usage: drive_del NODE".to_owned()),
            },
            _ => {
                let text =
                    format!("'{}' is not understood; there are drive_add and drive_del", one_line(&line, 64));
                Err(text)
            }
        };
        match result {
            Ok(node) => self.add_nodes_for(pending, node),
            Err(error) => self.answer_pending(pending, Err(error)),
        }
        Ok(Told::Later)
    }

    /// Answers a command that a node has waited for.
    pub(super) fn answer_pending(&mut self, pending: Pending, result: Result<(), String>) {
        let Pending { asker, is_text } = pending;
        match (result, is_text) {
            (Ok(()), false) => self.answer(&asker, &Answer::Done),
            (Ok(()), true) => self.answer_value(&asker, &"".into()),
            (Err(error), false) => self.fail_with(&asker, &error),
            (Err(error), true) => {
                let text = format!("Error: {}\r\n", one_line(&error, FAILURE_CHARS_MAX));
                self.answer_value(&asker, &text.into());
            }
        }
    }

    /// The names of all commands.
    pub(super) fn answer_commands(&mut self, asker: &Asker) {
        let names = Command::NAMES.iter().chain(&NAMES);
        let names: Value = names.map(|name| json!({ "name": name })).collect();
        self.answer_value(asker, &names);
    }

    fn answer_value(&mut self, asker: &Asker, value: &Value) {
        let id = asker.id.as_ref().map(HeldId::id);
        self.managers.answer(asker.manager, |out| {
            write!(out, "{{\"return\": {value}")?;
            if let Some(id) = id {
                out.write_str(", \"id\": ")?;
                // Line ends can only stand between its values.
                id.text().split(['\r', '\n']).try_for_each(|part| out.write_str(part))?;
            }
            out.write_str("}\r\n")
        });
    }

    fn fail_with(&mut self, asker: &Asker, text: &str) {
        let id = asker.id.as_ref().map(HeldId::id);
        let text = one_line(text, FAILURE_CHARS_MAX);
        let class = qmp::ErrorClass::GenericError;
        self.managers.answer(asker.manager, |out| qmp::write_error(out, class, &text, id));
    }
}

fn version() -> Value {
    let number = |text: &str| text.parse::<u64>().unwrap_or_default();
    let (major, minor, micro) = (
        number(env!("CARGO_PKG_VERSION_MAJOR")),
        number(env!("CARGO_PKG_VERSION_MINOR")),
        number(env!("CARGO_PKG_VERSION_PATCH")),
    );
    json!({
        "qemu": {"major": major, "minor": minor, "micro": micro},
        "package": concat!("twinblock ", env!("CARGO_PKG_VERSION")),
    })
}

/// What follows `drive_add`: perhaps `-n`, a bus that means nothing here, and options.
fn drive_options<'a>(words: impl Iterator<Item = &'a str>) -> Result<Fields, String> {
    let words: Vec<&str> = words.filter(|word| *word != "-n").collect();
    let Some((_, options)) = words.split_first().filter(|(_, options)| !options.is_empty()) else {
        return Err("usage: drive_add [-n] BUS OPTION=VALUE[,…]".into());
    };
    let mut options = graph::parse_text(&options.join(" "))?;
    if let Some(interface) = options.remove("if")
        && interface != "none"
    {
        return Err("the parameter 'if' must be none: there is no machine".into());
    }
    if let Some(id) = options.remove("id")
        && options.insert("node-name".into(), id).is_some()
    {
        return Err("'id' and 'node-name' mean the same here; give one of them".into());
    }
    Ok(Fields::of_text(options))
}
