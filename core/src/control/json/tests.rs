mod incoming;
mod outgoing;
mod parsing;
mod scanning;

use crate::Identity;
use crate::control::Command;
use proptest::prelude::*;
use serde_json::Value;
use std::string::{String, ToString};

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// Any text, with more of what must be escaped than chance would give.
fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z]{0,8}", "\\PC{0,12}", "[\"\\\\\u{0}-\u{1f}a\u{e9}\u{20ac}\u{1f600}]{0,40}"]
}

/// The strings that a command borrows.
type Texts = (String, String, String, String);

fn texts() -> impl Strategy<Value = Texts> {
    (text(), text(), text(), text())
}

/// One of each command, with these strings, numbers and flags.
fn commands(
    (a, b, c, d): &Texts,
    epoch: u64,
    modifications: u64,
    flag: bool,
    claim: [u8; 16],
) -> [Command<'_>; 13] {
    let claim = Identity(claim);
    let optional = flag.then_some(b.as_str());
    [
        Command::Capabilities,
        Command::Commands,
        Command::SetReplication {
            enable: !flag,
            primary: flag,
            failover: flag.then_some(epoch.is_multiple_of(2)),
            force: flag,
            volume: optional,
        },
        Command::Checkpoint { force: flag, volume: optional },
        Command::QueryReplicationStatus { volume: optional },
        Command::QueryReplication,
        Command::QueryMemory,
        Command::Attach {
            volume: optional,
            uri: a,
            name: Some(c),
            control: flag.then_some(d),
            sync_full: epoch.is_multiple_of(3),
        },
        Command::Detach { volume: optional, name: a },
        Command::Quit,
        Command::CheckpointPrepare { volume: a, epoch, claim, modifications },
        Command::CheckpointCommit { volume: a, epoch, claim, together: (modifications as u16).max(1) },
        Command::CheckpointOutcome { volume: a },
    ]
}

/// What a writer writes, as one line and as JSON.
fn written(write: impl FnOnce(&mut String) -> core::fmt::Result) -> (String, Value) {
    let mut line = String::new();
    write(&mut line).unwrap();
    let body = line.strip_suffix("\r\n").unwrap();
    assert!(!body.contains(['\r', '\n']), "{body}");
    let value = serde_json::from_str(body).unwrap();
    (body.to_string(), value)
}
