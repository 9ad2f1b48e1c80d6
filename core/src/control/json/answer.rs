//! What is sent: the greeting, answers, errors, events, the report; and commands, to other nodes.

use super::Id;
use super::emit::Emitter;
use super::error::{ErrorClass, ParseError};
use crate::control::report::{ERROR_KINDS, REASON_MISSING};
use crate::control::{
    Answer, BufferLevel, BufferReport, Command, EventReport, MemoryReport, RefusalText, ReplicaReport, Role,
    VolumeReport, error_name, replica_state_name, view_name,
};
use crate::{ErrorCounters, Event, Identity, Refused};
use core::fmt::{self, Display, Write};

/// Writes the line that a session begins with.
///
/// # Errors
/// Those of the sink.
pub fn write_greeting<W: Write>(out: &mut W) -> fmt::Result {
    const PACKAGE: &str = concat!("twinblock ", env!("CARGO_PKG_VERSION"));
    let mut json = Emitter::new(out);
    json.open('{')?;
    json.key("QMP")?;
    json.open('{')?;
    json.key("version")?;
    json.open('{')?;
    // Clients of QMP expect a member of this name, with three numbers.
    json.key("qemu")?;
    json.open('{')?;
    json.key("micro")?;
    json.raw(env!("CARGO_PKG_VERSION_PATCH"))?;
    json.key("minor")?;
    json.raw(env!("CARGO_PKG_VERSION_MINOR"))?;
    json.key("major")?;
    json.raw(env!("CARGO_PKG_VERSION_MAJOR"))?;
    json.close('}')?;
    json.text_member("package", PACKAGE)?;
    json.close('}')?;
    json.key("capabilities")?;
    json.open('[')?;
    json.close(']')?;
    json.close('}')?;
    json.close('}')?;
    json.end_line()
}

/// Writes the answer to a command that succeeded.
///
/// # Errors
/// Those of the sink.
pub fn write_answer<W: Write>(out: &mut W, answer: &Answer<'_>, id: Option<Id<'_>>) -> fmt::Result {
    let mut json = Emitter::new(out);
    json.open('{')?;
    json.key("return")?;
    match answer {
        Answer::Done => {
            json.open('{')?;
            json.close('}')?;
        }
        Answer::Status(status) => {
            json.open('{')?;
            json.boolean_member("error", status.is_some())?;
            if let Some(status) = status {
                json.text_member("desc", status)?;
            }
            json.close('}')?;
        }
        Answer::Epoch(epoch) => {
            json.open('{')?;
            json.number_member("epoch", *epoch)?;
            json.close('}')?;
        }
        Answer::Memory(memory) => write_memory(&mut json, memory)?,
        Answer::Checkpoint { left_out } => {
            json.open('{')?;
            if !left_out.is_empty() {
                json.key("left-out")?;
                json.open('[')?;
                for name in *left_out {
                    json.text(name)?;
                }
                json.close(']')?;
            }
            json.close('}')?;
        }
        Answer::Commands => write_names(&mut json, &Command::NAMES)?,
    }
    end_answer(json, id)
}

/// Writes the answer to `query-commands` of a node that knows these commands alone.
///
/// # Errors
/// Those of the sink.
pub fn write_commands<W: Write>(out: &mut W, names: &[&str], id: Option<Id<'_>>) -> fmt::Result {
    let mut json = Emitter::new(out);
    json.open('{')?;
    json.key("return")?;
    write_names(&mut json, names)?;
    end_answer(json, id)
}

fn write_names<W: Write>(json: &mut Emitter<'_, W>, names: &[&str]) -> fmt::Result {
    json.open('[')?;
    for name in names {
        json.open('{')?;
        json.text_member("name", name)?;
        json.close('}')?;
    }
    json.close(']')
}

/// Writes the answer to a command that failed.
///
/// # Errors
/// Those of the sink.
pub fn write_error<W: Write>(
    out: &mut W,
    class: ErrorClass,
    desc: impl Display,
    id: Option<Id<'_>>,
) -> fmt::Result {
    write_reasoned_error(out, class, desc, None, id)
}

fn write_reasoned_error<W: Write>(
    out: &mut W,
    class: ErrorClass,
    desc: impl Display,
    reason: Option<&str>,
    id: Option<Id<'_>>,
) -> fmt::Result {
    let mut json = Emitter::new(out);
    json.open('{')?;
    json.key("error")?;
    json.open('{')?;
    json.text_member("class", class.name())?;
    json.text_member("desc", desc)?;
    if let Some(reason) = reason {
        json.text_member("reason", reason)?;
    }
    json.close('}')?;
    end_answer(json, id)
}

/// Writes the answer to a command that a volume has refused. A secondary that misses something says so in a member
/// `reason` beside QMP's own, so that its primary need not read prose.
///
/// # Errors
/// Those of the sink.
pub fn write_refusal<W: Write>(out: &mut W, refusal: RefusalText<'_>, id: Option<Id<'_>>) -> fmt::Result {
    // One that has taken over lacks at least what comes from now on.
    let is_missing = matches!(refusal.refused, Refused::Missing | Refused::TakenOver);
    let reason = is_missing.then_some(REASON_MISSING);
    write_reasoned_error(out, ErrorClass::GenericError, refusal, reason, id)
}

impl ParseError<'_> {
    /// Writes the answer to a message that is no command.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn write<W: Write>(&self, out: &mut W, id: Option<Id<'_>>) -> fmt::Result {
        write_error(out, self.class(), self, id)
    }
}

fn end_answer<W: Write>(mut json: Emitter<'_, W>, id: Option<Id<'_>>) -> fmt::Result {
    if let Some(id) = id {
        json.key("id")?;
        json.raw(id.text())?;
    }
    json.close('}')?;
    json.end_line()
}

/// Writes an event.
///
/// # Errors
/// Those of the sink.
pub fn write_event<W: Write>(out: &mut W, report: &EventReport<'_>) -> fmt::Result {
    const MICROS: u64 = 1_000_000;
    let mut json = Emitter::new(out);
    json.open('{')?;
    json.text_member("event", report.name())?;
    json.key("data")?;
    json.open('{')?;
    json.text_member("volume", report.volume)?;
    match report.event {
        Event::Stage(stage) => json.text_member("stage", stage.name())?,
        Event::Error(kind) => json.text_member("error", error_name(kind))?,
        Event::BufferThreeQuarters | Event::BufferFull => {
            let is_full = report.event == Event::BufferFull;
            let level = if is_full { BufferLevel::Full } else { BufferLevel::ThreeQuarters };
            json.text_member("level", level.name())?;
            if !report.export.is_empty() {
                json.text_member("export", report.export)?;
            }
        }
        Event::View(view) => json.text_member("view", view_name(view))?,
        Event::CommitProgress { total_bytes, done_bytes } => {
            json.number_member("total_bytes", total_bytes)?;
            json.number_member("done_bytes", done_bytes)?;
        }
        Event::Replica(_, state) => {
            json.text_member("replica", report.replica)?;
            json.text_member("state", replica_state_name(state))?;
        }
    }
    json.close('}')?;
    json.key("timestamp")?;
    json.open('{')?;
    json.number_member("seconds", report.at.0 / MICROS)?;
    json.number_member("microseconds", report.at.0 % MICROS)?;
    json.close('}')?;
    json.close('}')?;
    json.end_line()
}

/// Writes the answer to `query-replication`, volume by volume, so that no more than one is in memory at a time.
///
/// ```
/// use twinblock_core::control::json::{ReportWriter, TextBuffer};
/// let mut text = [0; 64];
/// let mut out = TextBuffer::new(&mut text);
/// let report = ReportWriter::begin(&mut out).unwrap();
/// report.end(None).unwrap();
/// assert_eq!(out.text(), "{\"return\": {\"volumes\": []}}\r\n");
/// ```
pub struct ReportWriter<'w, W> {
    json: Emitter<'w, W>,
}

impl<'w, W: Write> ReportWriter<'w, W> {
    /// Before the first volume.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn begin(out: &'w mut W) -> Result<Self, fmt::Error> {
        let mut json = Emitter::new(out);
        json.open('{')?;
        json.key("return")?;
        json.open('{')?;
        json.key("volumes")?;
        json.open('[')?;
        Ok(Self { json })
    }

    /// One volume, and the replicas of a primary; those of a secondary are left out, as it has none.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn volume<'r>(
        &mut self,
        volume: &VolumeReport<'_>,
        replicas: impl IntoIterator<Item = ReplicaReport<'r>>,
    ) -> fmt::Result {
        let json = &mut self.json;
        json.open('{')?;
        json.text_member("name", volume.name)?;
        json.text_member("role", volume.role.name())?;
        json.text_member("stage", volume.stage.name())?;
        json.number_member("epoch", volume.epoch)?;
        json.number_member("size_bytes", volume.size_bytes)?;
        json.number_member("granule_bytes", volume.granule_bytes)?;
        json.boolean_member("behind", volume.is_behind)?;
        if let Some(buffer) = &volume.buffer {
            write_buffer(json, buffer)?;
        }
        if volume.role == Role::Primary {
            json.key("replicas")?;
            json.open('[')?;
            for replica in replicas {
                write_replica(json, &replica)?;
            }
            json.close(']')?;
        }
        if let Some(commit) = &volume.commit {
            json.key("commit")?;
            json.open('{')?;
            json.number_member("total_bytes", commit.total_bytes)?;
            json.number_member("done_bytes", commit.done_bytes)?;
            json.close('}')?;
        }
        if let Some(checkpoint) = &volume.checkpoint {
            json.key("checkpoint_us")?;
            json.open('{')?;
            json.number_member("count", checkpoint.count)?;
            json.number_member("p50", checkpoint.p50.0)?;
            json.number_member("p99", checkpoint.p99.0)?;
            json.number_member("max", checkpoint.max.0)?;
            json.close('}')?;
        }
        write_errors(json, &volume.errors)?;
        json.close('}')
    }

    /// After the last volume.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn end(self, id: Option<Id<'_>>) -> fmt::Result {
        self.finish(None, id)
    }

    /// After the last volume, with the name of what does the I/O of all of them.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn end_with_backend(self, backend: &str, id: Option<Id<'_>>) -> fmt::Result {
        self.finish(Some(backend), id)
    }

    fn finish(mut self, backend: Option<&str>, id: Option<Id<'_>>) -> fmt::Result {
        self.json.close(']')?;
        if let Some(backend) = backend {
            self.json.text_member("backend", backend)?;
        }
        self.json.close('}')?;
        end_answer(self.json, id)
    }
}

fn write_buffer<W: Write>(json: &mut Emitter<'_, W>, buffer: &BufferReport) -> fmt::Result {
    json.key("buffer")?;
    json.open('{')?;
    json.number_member("size_bytes", buffer.size_bytes)?;
    json.number_member("used_bytes", buffer.used_bytes)?;
    json.text_member("policy", buffer.policy.name())?;
    json.text_member("view", view_name(buffer.view))?;
    json.number_member("held", buffer.held_count)?;
    json.close('}')
}

fn write_memory<W: Write>(json: &mut Emitter<'_, W>, memory: &MemoryReport) -> fmt::Result {
    json.open('{')?;
    json.number_member("allocations", memory.allocation_count)?;
    json.number_member("deallocations", memory.deallocation_count)?;
    json.number_member("allocated_bytes", memory.allocated_bytes)?;
    json.number_member("resident_bytes", memory.resident_bytes)?;
    json.close('}')
}

fn write_replica<W: Write>(json: &mut Emitter<'_, W>, replica: &ReplicaReport<'_>) -> fmt::Result {
    json.open('{')?;
    json.text_member("name", replica.name)?;
    json.boolean_member("connected", replica.is_connected)?;
    if let Some(is_controlled) = replica.is_controlled {
        json.boolean_member("control_connected", is_controlled)?;
    }
    json.boolean_member("behind", replica.is_behind)?;
    json.number_member("dirty_bytes", replica.dirty_bytes)?;
    json.number_member("in_flight", replica.in_flight_count)?;
    json.close('}')
}

fn write_errors<W: Write>(json: &mut Emitter<'_, W>, errors: &ErrorCounters) -> fmt::Result {
    json.key("errors")?;
    json.open('{')?;
    for kind in ERROR_KINDS {
        json.number_member(error_name(kind), errors.count(kind))?;
    }
    json.close('}')
}

/// Writes a command to another node, with a number as its `id`.
///
/// # Errors
/// Those of the sink.
pub fn write_command<W: Write>(out: &mut W, command: &Command<'_>, id: u64) -> fmt::Result {
    let mut json = Emitter::new(out);
    json.open('{')?;
    json.text_member("execute", command.name())?;
    json.key("arguments")?;
    json.open('{')?;
    write_arguments(&mut json, command)?;
    json.close('}')?;
    json.number_member("id", id)?;
    json.close('}')?;
    json.end_line()
}

fn write_arguments<W: Write>(json: &mut Emitter<'_, W>, command: &Command<'_>) -> fmt::Result {
    let text = |json: &mut Emitter<'_, W>, name, text: Option<&str>| match text {
        Some(text) => json.text_member(name, text),
        None => Ok(()),
    };
    match *command {
        Command::Capabilities
        | Command::Commands
        | Command::QueryReplication
        | Command::QueryMemory
        | Command::Quit => Ok(()),
        Command::SetReplication { enable, primary, failover, force, volume } => {
            json.boolean_member("enable", enable)?;
            json.boolean_member("primary", primary)?;
            if let Some(failover) = failover {
                json.boolean_member("failover", failover)?;
            }
            json.boolean_member("force", force)?;
            text(json, "volume", volume)
        }
        Command::Checkpoint { force, volume } => {
            json.boolean_member("force", force)?;
            text(json, "volume", volume)
        }
        Command::QueryReplicationStatus { volume } => text(json, "volume", volume),
        Command::Attach { volume, uri, name, control, sync_full } => {
            text(json, "volume", volume)?;
            text(json, "uri", Some(uri))?;
            text(json, "name", name)?;
            text(json, "control", control)?;
            text(json, "sync", Some(if sync_full { "full" } else { "none" }))
        }
        Command::Detach { volume, name } => {
            text(json, "volume", volume)?;
            text(json, "name", Some(name))
        }
        Command::CheckpointPrepare { volume, epoch, claim, modifications } => {
            write_claim(json, volume, epoch, claim)?;
            json.number_member("modifications", modifications)
        }
        Command::CheckpointCommit { volume, epoch, claim, together } => {
            write_claim(json, volume, epoch, claim)?;
            json.number_member("together", together.into())
        }
        Command::CheckpointOutcome { volume } => text(json, "volume", Some(volume)),
    }
}

fn write_claim<W: Write>(
    json: &mut Emitter<'_, W>,
    volume: &str,
    epoch: u64,
    claim: Identity,
) -> fmt::Result {
    json.text_member("volume", volume)?;
    json.number_member("epoch", epoch)?;
    json.text_member("claim", format_args!("{:032x}", u128::from_be_bytes(claim.0)))
}
