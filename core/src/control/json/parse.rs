//! Commands out of their text.

use super::error::{Expected, ParseError};
use super::scan::{Members, validate};
use super::value::{self, NoText, Scratch};
use super::{ID_BYTES_MAX, Id};
use crate::Identity;
use crate::control::Command;

/// What a message of a client says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed<'a> {
    /// The command's `id`, also of a wrong command if it could be made out.
    pub id: Option<Id<'a>>,
    /// The command, or what is wrong with it.
    pub command: Result<Command<'a>, ParseError<'a>>,
}

/// Whether a session has got past `qmp_capabilities`, with which it must begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Negotiation {
    is_done: bool,
}

impl Negotiation {
    /// At the beginning of a session.
    #[must_use]
    pub const fn new() -> Self {
        Self { is_done: false }
    }

    /// Whether events may be sent.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        self.is_done
    }

    /// Notes one command, before it is executed.
    ///
    /// # Errors
    /// It is not its turn: [`ParseError::NotNegotiated`] or [`ParseError::NegotiatedBefore`].
    pub const fn admit(&mut self, command: &Command<'_>) -> Result<(), ParseError<'static>> {
        match (command, self.is_done) {
            (Command::Capabilities, true) => Err(ParseError::NegotiatedBefore),
            (Command::Capabilities, false) => {
                self.is_done = true;
                Ok(())
            }
            (_, true) => Ok(()),
            (_, false) => Err(ParseError::NotNegotiated),
        }
    }
}

/// Reads one message. Names are borrowed from it, or from `scratch` where they have escapes; as much scratch as the
/// message is long is always enough. Takes time proportional to the message.
#[must_use]
pub fn parse<'a>(message: &'a [u8], scratch: &'a mut [u8]) -> Parsed<'a> {
    let members = match object(message) {
        Ok(members) => members,
        Err(error) => return Parsed { id: None, command: Err(error) },
    };
    let id = members.value_of("id");
    if id.is_some_and(|id| id.len() > ID_BYTES_MAX) {
        return Parsed { id: None, command: Err(ParseError::IdTooLong) };
    }
    Parsed { id: id.map(Id), command: command(members, Scratch::new(scratch)) }
}

/// The members of a message that is an object.
pub(super) fn object(message: &[u8]) -> Result<Members<'_>, ParseError<'_>> {
    let text = core::str::from_utf8(message)
        .map_err(|error| ParseError::Malformed { offset: error.valid_up_to() })?;
    validate(text)?;
    Members::of(text).ok_or(ParseError::NotAnObject)
}

fn command<'a>(members: Members<'a>, scratch: Scratch<'a>) -> Result<Command<'a>, ParseError<'a>> {
    check_names(members, &["execute", "arguments", "id"], |name| ParseError::UnexpectedMember { name })?;
    let name = members.value_of("execute").and_then(value::escaped).ok_or(ParseError::NoCommand)?;
    let command = Command::NAMES
        .into_iter()
        .find(|known| value::is_text(name, known))
        .ok_or(ParseError::UnknownCommand { name })?;
    let given = match members.value_of("arguments") {
        None => Members::none(),
        Some(arguments) => Members::of(arguments).ok_or(ParseError::WrongType {
            command,
            name: "arguments",
            expected: Expected::Object,
        })?,
    };
    check_names(given, names_of(command), |name| ParseError::UnexpectedArgument { command, name })?;
    Arguments { command, given, scratch }.build()
}

/// Refuses members that are not in `names`, or there twice.
fn check_names<'a>(
    members: Members<'a>,
    names: &[&str],
    unexpected: impl Fn(&'a str) -> ParseError<'a>,
) -> Result<(), ParseError<'a>> {
    let mut seen = 0_u32;
    for member in members {
        let index = names.iter().position(|name| member.is_named(name));
        let bit = 1 << index.ok_or_else(|| unexpected(member.key))?;
        if seen & bit != 0 {
            return Err(ParseError::Repeated { name: member.key });
        }
        seen |= bit;
    }
    Ok(())
}

/// The names of a command's arguments.
fn names_of(command: &str) -> &'static [&'static str] {
    match command {
        "qmp_capabilities" => &["enable"],
        "xen-set-replication" => &["enable", "primary", "failover", "force", "volume"],
        "xen-colo-do-checkpoint" => &["force", "volume"],
        "query-xen-replication-status" | "checkpoint-outcome" => &["volume"],
        "attach" => &["volume", "uri", "name", "control", "sync"],
        "detach" => &["volume", "name"],
        "checkpoint-prepare" => &["volume", "epoch", "claim", "modifications"],
        "checkpoint-commit" => &["volume", "epoch", "claim", "together"],
        _ => &[],
    }
}

/// The arguments of one command, whose names have been checked.
struct Arguments<'a> {
    command: &'static str,
    given: Members<'a>,
    scratch: Scratch<'a>,
}

impl<'a> Arguments<'a> {
    fn build(mut self) -> Result<Command<'a>, ParseError<'a>> {
        Ok(match self.command {
            "qmp_capabilities" => self.capabilities()?,
            "query-commands" => Command::Commands,
            "xen-set-replication" => self.set_replication()?,
            "xen-colo-do-checkpoint" => Command::Checkpoint {
                force: self.boolean("force")?.unwrap_or(false),
                volume: self.text("volume")?,
            },
            "query-xen-replication-status" => {
                Command::QueryReplicationStatus { volume: self.text("volume")? }
            }
            "query-replication" => Command::QueryReplication,
            "x-query-memory" => Command::QueryMemory,
            "attach" => Command::Attach {
                volume: self.text("volume")?,
                uri: self.needed_text("uri")?,
                name: self.text("name")?,
                control: self.text("control")?,
                sync_full: self.sync()?,
            },
            "detach" => Command::Detach { volume: self.text("volume")?, name: self.needed_text("name")? },
            "quit" => Command::Quit,
            "checkpoint-prepare" => Command::CheckpointPrepare {
                volume: self.needed_text("volume")?,
                epoch: self.number("epoch")?,
                claim: self.claim()?,
                modifications: self.number("modifications")?,
            },
            "checkpoint-commit" => Command::CheckpointCommit {
                volume: self.needed_text("volume")?,
                epoch: self.number("epoch")?,
                claim: self.claim()?,
                together: self.together()?,
            },
            "checkpoint-outcome" => Command::CheckpointOutcome { volume: self.needed_text("volume")? },
            name => return Err(ParseError::UnknownCommand { name }),
        })
    }

    fn capabilities(&self) -> Result<Command<'a>, ParseError<'a>> {
        let is_empty =
            |list: &str| list.strip_prefix('[').is_some_and(|rest| rest.trim_ascii_start().starts_with(']'));
        match self.given.value_of("enable") {
            Some(list) if !is_empty(list) => Err(self.wrong_type("enable", Expected::EmptyList)),
            _ => Ok(Command::Capabilities),
        }
    }

    fn set_replication(&mut self) -> Result<Command<'a>, ParseError<'a>> {
        let enable = self.boolean("enable")?.ok_or(self.missing("enable"))?;
        let primary = self.boolean("primary")?.ok_or(self.missing("primary"))?;
        let failover = self.boolean("failover")?;
        if enable && failover.is_some() {
            return Err(ParseError::FailoverWithStart);
        }
        let force = self.boolean("force")?.unwrap_or(false);
        Ok(Command::SetReplication { enable, primary, failover, force, volume: self.text("volume")? })
    }

    fn sync(&self) -> Result<bool, ParseError<'a>> {
        let wrong = self.wrong_type("sync", Expected::FullOrNone);
        let Some(sync) = self.given.value_of("sync") else { return Ok(false) };
        let sync = value::escaped(sync).ok_or(wrong)?;
        match () {
            () if value::is_text(sync, "full") => Ok(true),
            () if value::is_text(sync, "none") => Ok(false),
            () => Err(wrong),
        }
    }

    fn boolean(&self, name: &'static str) -> Result<Option<bool>, ParseError<'a>> {
        let value = self.given.value_of(name);
        value.map(|value| value::boolean(value).ok_or(self.wrong_type(name, Expected::Boolean))).transpose()
    }

    fn number(&self, name: &'static str) -> Result<u64, ParseError<'a>> {
        let value = self.given.value_of(name).ok_or(self.missing(name))?;
        value::number(value).ok_or(self.wrong_type(name, Expected::Number))
    }

    fn together(&self) -> Result<u16, ParseError<'a>> {
        let Some(value) = self.given.value_of("together") else { return Ok(1) };
        let count = value::number(value).and_then(|count| u16::try_from(count).ok());
        count.filter(|count| *count != 0).ok_or(self.wrong_type("together", Expected::Count))
    }

    fn claim(&self) -> Result<Identity, ParseError<'a>> {
        let value = self.given.value_of("claim").ok_or(self.missing("claim"))?;
        value::identity(value).ok_or(self.wrong_type("claim", Expected::Identity))
    }

    fn text(&mut self, name: &'static str) -> Result<Option<&'a str>, ParseError<'a>> {
        let Some(value) = self.given.value_of(name) else { return Ok(None) };
        match self.scratch.text(value) {
            Ok(text) => Ok(Some(text)),
            Err(NoText::Wrong) => Err(self.wrong_type(name, Expected::Text)),
            Err(NoText::TooLong) => Err(ParseError::TooLong),
        }
    }

    fn needed_text(&mut self, name: &'static str) -> Result<&'a str, ParseError<'a>> {
        self.text(name)?.ok_or(self.missing(name))
    }

    const fn missing(&self, name: &'static str) -> ParseError<'a> {
        ParseError::MissingArgument { command: self.command, name }
    }

    const fn wrong_type(&self, name: &'static str, expected: Expected) -> ParseError<'a> {
        ParseError::WrongType { command: self.command, name, expected }
    }
}
