//! What can be wrong with a message.

use core::fmt;

/// The `class` of QMP's error object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// Almost everything.
    GenericError,
    /// There is no such command, or not now.
    CommandNotFound,
}

impl ErrorClass {
    /// As it is on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::GenericError => "GenericError",
            Self::CommandNotFound => "CommandNotFound",
        }
    }
}

/// What an argument has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// `true` or `false`.
    Boolean,
    /// A whole number from 0 to 2^64 - 1.
    Number,
    /// A whole number from 1 to 65535.
    Count,
    /// A string of Unicode characters.
    Text,
    /// A string of 32 hexadecimal digits.
    Identity,
    /// An object.
    Object,
    /// An empty array: no capability is offered.
    EmptyList,
    /// `"full"` or `"none"`.
    FullOrNone,
}

impl Expected {
    const fn text(self) -> &'static str {
        match self {
            Self::Boolean => "true or false",
            Self::Number => "a whole number from 0 to 18446744073709551615",
            Self::Count => "a whole number from 1 to 65535",
            Self::Text => "a string",
            Self::Identity => "a string of 32 hexadecimal digits",
            Self::Object => "an object",
            Self::EmptyList => "an empty array, as no capability is offered",
            Self::FullOrNone => "\"full\" or \"none\"",
        }
    }
}

/// Why a message is no command. All but the last four: the client's mistake, to be mended there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseError<'a> {
    /// It is not JSON, or not UTF-8, from this byte on.
    Malformed {
        /// Counted from the start of the message.
        offset: usize,
    },
    /// More than [`DEPTH_MAX`](super::DEPTH_MAX) arrays and objects lie within each other.
    TooDeep {
        /// Where the first one too many begins.
        offset: usize,
    },
    /// It is JSON, but no object.
    NotAnObject,
    /// There is no `execute`, or it is no string.
    NoCommand,
    /// A member that no command has.
    UnexpectedMember {
        /// Its name, as in the text.
        name: &'a str,
    },
    /// A member or argument is there twice.
    Repeated {
        /// Its name, as in the text.
        name: &'a str,
    },
    /// An argument that this command has not got.
    UnexpectedArgument {
        /// The command.
        command: &'static str,
        /// Its name, as in the text.
        name: &'a str,
    },
    /// An argument that this command needs.
    MissingArgument {
        /// The command.
        command: &'static str,
        /// The argument.
        name: &'static str,
    },
    /// An argument, or `arguments` itself, is of another type than it must be.
    WrongType {
        /// The command.
        command: &'static str,
        /// The argument.
        name: &'static str,
        /// What it has to be.
        expected: Expected,
    },
    /// `failover` together with a start.
    FailoverWithStart,
    /// The `id` is longer than [`ID_BYTES_MAX`](super::ID_BYTES_MAX).
    IdTooLong,
    /// The message is longer than there is room for, or its escaped strings are.
    TooLong,
    /// There is no such command.
    UnknownCommand {
        /// Its name, as in the text.
        name: &'a str,
    },
    /// The session must begin with `qmp_capabilities`.
    NotNegotiated,
    /// `qmp_capabilities` was sent before.
    NegotiatedBefore,
}

impl ParseError<'_> {
    /// QMP's class of it.
    #[must_use]
    pub const fn class(&self) -> ErrorClass {
        match self {
            Self::UnknownCommand { .. } | Self::NotNegotiated | Self::NegotiatedBefore => {
                ErrorClass::CommandNotFound
            }
            _ => ErrorClass::GenericError,
        }
    }
}

impl fmt::Display for ParseError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed { offset } => write!(f, "the message is not JSON from byte {offset} on"),
            Self::TooDeep { offset } => {
                write!(f, "the message is nested deeper than {} levels at byte {offset}", super::DEPTH_MAX)
            }
            Self::NotAnObject => f.write_str("the message is not an object"),
            Self::NoCommand => f.write_str("the message has no 'execute' that names a command"),
            Self::UnexpectedMember { name } => write!(f, "a command has no member '{name:.64}'"),
            Self::Repeated { name } => write!(f, "'{name:.64}' is given twice"),
            Self::UnexpectedArgument { command, name } => {
                write!(f, "'{command}' has no argument '{name:.64}'")
            }
            Self::MissingArgument { command, name } => write!(f, "'{command}' needs the argument '{name}'"),
            Self::WrongType { command, name, expected } => {
                write!(f, "'{name}' of '{command}' must be {}", expected.text())
            }
            Self::FailoverWithStart => {
                f.write_str("'failover' chooses how a stop ends; leave it out with enable=true")
            }
            Self::IdTooLong => write!(f, "the 'id' is longer than {} bytes", super::ID_BYTES_MAX),
            Self::TooLong => f.write_str("the message is too long"),
            Self::UnknownCommand { name } => {
                write!(f, "there is no command '{name:.64}'; see query-commands")
            }
            Self::NotNegotiated => f.write_str("the session must begin with qmp_capabilities"),
            Self::NegotiatedBefore => f.write_str("qmp_capabilities was sent before; it has no effect again"),
        }
    }
}
