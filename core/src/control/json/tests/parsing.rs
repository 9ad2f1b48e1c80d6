use super::super::*;
use super::{cases, commands, text, texts, written};
use crate::control::Command;
use proptest::prelude::*;
use std::format;
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

fn with_parsed<R>(message: &str, check: impl FnOnce(Parsed<'_>) -> R) -> R {
    let mut scratch = vec![0; message.len()];
    check(parse(message.as_bytes(), &mut scratch))
}

fn assert_error(message: &str, error: ParseError<'_>) {
    with_parsed(message, |parsed| assert_eq!(parsed.command, Err(error), "{message}"));
}

/// Each UTF-16 unit as an escape.
fn escaped(text: &str) -> String {
    text.encode_utf16().map(|unit| format!("\\u{unit:04X}")).collect()
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn every_command_is_read_as_it_was_written(
        texts in texts(), epoch: u64, modifications: u64, flag: bool, claim: [u8; 16], id: u64,
    ) {
        for command in commands(&texts, epoch, modifications, flag, claim) {
            let (line, value) = written(|out| write_command(out, &command, id));
            prop_assert_eq!(value["execute"].as_str(), Some(command.name()));
            prop_assert_eq!(value["id"].as_u64(), Some(id));
            let parsed = with_parsed(&line, |parsed| {
                assert_eq!(parsed.command, Ok(command));
                parsed.id.and_then(|id| id.number())
            });
            prop_assert_eq!(parsed, Some(id));
        }
    }

    #[test]
    fn names_mean_the_same_however_they_are_escaped(name in text()) {
        let quoted = serde_json::to_string(&name).unwrap();
        let message = format!("{{\"arguments\": {{\"volume\": {quoted}}}, \"execute\": \"checkpoint-outcome\"}}");
        with_parsed(&message, |parsed| {
            assert_eq!(parsed.command, Ok(Command::CheckpointOutcome { volume: &name }));
        });
        let (command, key, volume) = (escaped("checkpoint-outcome"), escaped("volume"), escaped(&name));
        let message = format!("{{\"execute\": \"{command}\", \"arguments\": {{\"{key}\": \"{volume}\"}}}}");
        with_parsed(&message, |parsed| {
            assert_eq!(parsed.command, Ok(Command::CheckpointOutcome { volume: &name }));
        });
    }

    #[test]
    fn little_scratch_is_refused_and_nothing_else(name in text(), scratch in 0_usize..20) {
        let quoted = serde_json::to_string(&name).unwrap();
        let message = format!("{{\"execute\": \"checkpoint-outcome\", \"arguments\": {{\"volume\": {quoted}}}}}");
        let mut scratch = vec![0; scratch];
        let room = scratch.len();
        match parse(message.as_bytes(), &mut scratch).command {
            Ok(command) => prop_assert_eq!(command, Command::CheckpointOutcome { volume: &name }),
            Err(error) => prop_assert!(error == ParseError::TooLong && name.len() > room),
        }
    }

    #[test]
    fn an_id_of_any_kind_comes_back_unchanged(id in prop_oneof![
        any::<i64>().prop_map(|id| id.to_string()),
        "[a-z\\\\\"\u{1f600}]{0,20}".prop_map(|id| serde_json::to_string(&id).unwrap()),
        Just("{\"a\": [1, null, {\"id\": 2}]}".to_string()),
        Just("1.50e+1".to_string()),
    ]) {
        for message in [
            format!("{{\"id\": {id}, \"execute\": \"quit\"}}"),
            format!("{{\"execute\": \"quit\" ,\"id\" :{id} }}"),
            format!("{{\"execute\": \"unheard-of\", \"id\": {id}}}"),
        ] {
            with_parsed(&message, |parsed| {
                assert_eq!(parsed.id.unwrap().text(), id);
                assert_eq!(parsed.id.unwrap().held().id(), parsed.id.unwrap());
            });
        }
    }
}

proptest! {
    #![proptest_config(cases(3000))]

    #[test]
    fn no_bytes_can_cause_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        let mut scratch = [0; 16];
        let parsed = parse(&bytes, &mut scratch);
        let _ = format!("{parsed:?}");
        let _ = parse_incoming(&bytes, &mut [0; 16]);
    }

    #[test]
    fn no_damaged_message_can_cause_a_panic(
        texts in texts(), which in 0_usize..12, flag: bool, at: prop::sample::Index, byte: u8, cut: bool,
    ) {
        let command = commands(&texts, 3, 4, flag, [0xa5; 16])[which];
        let mut line = written(|out| write_command(out, &command, 9)).0.into_bytes();
        let at = at.index(line.len());
        line[at] = byte;
        if cut {
            line.remove(at);
        }
        let mut scratch = [0; 64];
        if let Err(error) = parse(&line, &mut scratch).command {
            prop_assert!(!error.to_string().is_empty());
        }
        let _ = parse_incoming(&line, &mut [0; 64]);
    }
}

#[test]
fn commands_as_managers_of_qemu_send_them() {
    let set = |enable, primary, failover| Command::SetReplication {
        enable,
        primary,
        failover,
        force: false,
        volume: None,
    };
    for (message, command) in [
        (r#"{"execute":"qmp_capabilities"}"#, Command::Capabilities),
        (r#"{"execute":"qmp_capabilities","arguments":{"enable":[ ]}}"#, Command::Capabilities),
        (
            r#"{"execute":"xen-set-replication","arguments":{"enable":true,"primary":true}}"#,
            set(true, true, None),
        ),
        (
            r#"{"execute":"xen-set-replication","arguments":{"failover":true,"enable":false,"primary":false}}"#,
            set(false, false, Some(true)),
        ),
        (r#"{"execute":"xen-colo-do-checkpoint"}"#, Command::Checkpoint { force: false, volume: None }),
        (
            r#"{"execute":"query-xen-replication-status","arguments":{}}"#,
            Command::QueryReplicationStatus { volume: None },
        ),
        (" {\"execute\"\r\n:\t\"quit\"} \r\n", Command::Quit),
    ] {
        with_parsed(message, |parsed| assert_eq!(parsed, Parsed { id: None, command: Ok(command) }));
    }
}

#[test]
fn what_is_wrong_with_a_message_is_named() {
    use Expected::*;
    let set = "xen-set-replication";
    assert_error("", ParseError::Malformed { offset: 0 });
    assert_error("{\"execute\": \"quit\"} x", ParseError::Malformed { offset: 20 });
    assert_error("[]", ParseError::NotAnObject);
    assert_error("{}", ParseError::NoCommand);
    assert_error("{\"execute\": 1}", ParseError::NoCommand);
    assert_error(r#"{"execute": "quit", "exec-oob": 1}"#, ParseError::UnexpectedMember { name: "exec-oob" });
    assert_error(r#"{"execute": "quit", "execute": "quit"}"#, ParseError::Repeated { name: "execute" });
    for name in ["qui", "\\u0071ui", "\\u0071uitt", "\\u0071"] {
        assert_error(&format!("{{\"execute\": \"{name}\"}}"), ParseError::UnknownCommand { name });
    }
    assert_error(
        r#"{"execute": "quit", "arguments": []}"#,
        ParseError::WrongType { command: "quit", name: "arguments", expected: Object },
    );
    for (arguments, error) in [
        ("", ParseError::MissingArgument { command: set, name: "enable" }),
        (r#""enable": true"#, ParseError::MissingArgument { command: set, name: "primary" }),
        (r#""enable": 1"#, ParseError::WrongType { command: set, name: "enable", expected: Boolean }),
        (r#""enabled": true"#, ParseError::UnexpectedArgument { command: set, name: "enabled" }),
        (r#""enable": true, "\u0065nable": true"#, ParseError::Repeated { name: "\\u0065nable" }),
        (r#""enable": true, "primary": true, "failover": false"#, ParseError::FailoverWithStart),
        (
            r#""enable": true, "primary": true, "volume": 1"#,
            ParseError::WrongType { command: set, name: "volume", expected: Text },
        ),
        (
            r#""enable": true, "primary": true, "volume": "\ud800""#,
            ParseError::WrongType { command: set, name: "volume", expected: Text },
        ),
    ] {
        assert_error(&format!("{{\"execute\": \"{set}\", \"arguments\": {{{arguments}}}}}"), error);
    }
}

#[test]
fn what_a_value_must_be_is_said() {
    use Expected::*;
    for (expected, said) in [
        (Boolean, "true or false"),
        (Number, "number"),
        (Text, "a string"),
        (Identity, "32 hexadecimal digits"),
        (Object, "an object"),
        (EmptyList, "an empty array"),
        (FullOrNone, "\"full\" or \"none\""),
    ] {
        let error = ParseError::WrongType { command: "quit", name: "x", expected }.to_string();
        assert!(error.starts_with("'x' of 'quit' must be ") && error.contains(said), "{error}");
    }
}

#[test]
fn only_the_empty_list_of_capabilities_is_taken() {
    let wrong =
        ParseError::WrongType { command: "qmp_capabilities", name: "enable", expected: Expected::EmptyList };
    for (list, is_right) in [("[]", true), ("[ ]", true), ("[\"oob\"]", false), ("{}", false), ("1", false)] {
        let message = format!("{{\"execute\": \"qmp_capabilities\", \"arguments\": {{\"enable\": {list}}}}}");
        let expected = if is_right { Ok(Command::Capabilities) } else { Err(wrong) };
        with_parsed(&message, |parsed| assert_eq!(parsed.command, expected, "{message}"));
    }
}

#[test]
fn a_replica_is_synchronised_in_full_or_not_and_nothing_else() {
    let wrong = ParseError::WrongType { command: "attach", name: "sync", expected: Expected::FullOrNone };
    for (sync, expected) in [
        ("\"full\"", Ok(true)),
        ("\"f\\u0075ll\"", Ok(true)),
        ("\"none\"", Ok(false)),
        ("\"fast\"", Err(wrong)),
        ("true", Err(wrong)),
    ] {
        let message =
            format!("{{\"execute\": \"attach\", \"arguments\": {{\"uri\": \"nbd://a\", \"sync\": {sync}}}}}");
        let told = |parsed: Parsed<'_>| match (parsed.command, expected) {
            (Ok(Command::Attach { sync_full, .. }), expected) => {
                assert_eq!(Ok(sync_full), expected, "{message}");
            }
            (other, expected) => assert_eq!(other.err(), expected.err(), "{message}"),
        };
        with_parsed(&message, told);
    }
}

#[test]
fn a_quote_that_is_escaped_ends_no_text() {
    for name in ["a\\\"b", "\\\"", "a\\\\", "\\\\\\\""] {
        let message = format!("{{\"id\": \"{name}\", \"execute\": \"quit\"}}");
        with_parsed(&message, |parsed| assert_eq!(parsed.command, Ok(Command::Quit), "{message}"));
    }
}

#[test]
fn numbers_and_identities_out_of_range_are_refused() {
    let prepare = "checkpoint-prepare";
    let digits = "0123456789abcdefABCDEF0123456789";
    for (epoch, claim, name, expected) in [
        ("18446744073709551616", digits, "epoch", Expected::Number),
        ("-1", digits, "epoch", Expected::Number),
        ("1.0", digits, "epoch", Expected::Number),
        ("\"1\"", digits, "epoch", Expected::Number),
        ("1", "0123456789abcdef", "claim", Expected::Identity),
        ("1", "0123456789abcdefABCDEF012345678g", "claim", Expected::Identity),
        ("1", "+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1", "claim", Expected::Identity),
    ] {
        let message = format!(
            "{{\"execute\": \"{prepare}\", \"arguments\": {{\"volume\": \"v\", \"epoch\": {epoch}, \
             \"claim\": \"{claim}\", \"modifications\": 0}}}}"
        );
        assert_error(&message, ParseError::WrongType { command: prepare, name, expected });
    }
}

#[test]
fn an_id_that_is_too_long_is_refused_and_one_that_fits_is_kept() {
    let message =
        |length: usize| format!("{{\"execute\": \"quit\", \"id\": \"{}\"}}", "x".repeat(length - 2));
    with_parsed(&message(ID_BYTES_MAX), |parsed| {
        assert_eq!(parsed.command, Ok(Command::Quit));
        assert_eq!(parsed.id.unwrap().held().id(), parsed.id.unwrap());
    });
    with_parsed(&message(ID_BYTES_MAX + 1), |parsed| {
        assert_eq!(parsed, Parsed { id: None, command: Err(ParseError::IdTooLong) });
    });
}

#[test]
fn bytes_that_are_no_text_are_told_by_their_place() {
    let parsed = parse(b"{\"execute\": \"\xc3\x28\"}", &mut []).command;
    assert_eq!(parsed, Err(ParseError::Malformed { offset: 13 }));
}

#[test]
fn a_session_begins_with_the_negotiation_and_has_one() {
    let mut session = Negotiation::new();
    assert_eq!(session.admit(&Command::Quit), Err(ParseError::NotNegotiated));
    assert!(!session.is_done());
    assert_eq!(session.admit(&Command::Capabilities), Ok(()));
    assert!(session.is_done());
    assert_eq!(session.admit(&Command::Quit), Ok(()));
    assert_eq!(session.admit(&Command::Capabilities), Err(ParseError::NegotiatedBefore));
}

#[test]
fn every_name_that_query_commands_tells_is_a_command() {
    for name in Command::NAMES {
        with_parsed(&format!("{{\"execute\": \"{name}\"}}"), |parsed| match parsed.command {
            Ok(command) => assert_eq!(command.name(), name),
            Err(error) => {
                assert!(matches!(error, ParseError::MissingArgument { command, .. } if command == name));
            }
        });
    }
    let distinct: std::collections::BTreeSet<_> = Command::NAMES.into_iter().collect();
    assert_eq!(distinct.into_iter().collect::<Vec<_>>().len(), Command::NAMES.len());
}

#[test]
fn every_member_that_is_there_twice_or_not_known_is_named_however_its_name_is_written() {
    assert_error(r#"{"execute": "quit", "id": 1, "id": 1}"#, ParseError::Repeated { name: "id" });
    let twice = r#"{"execute": "quit", "arguments": {}, "arguments": {}}"#;
    assert_error(twice, ParseError::Repeated { name: "arguments" });
    let twice = r#"{"execute": "xen-colo-do-checkpoint", "arguments": {"volume": "a", "volume": "a"}}"#;
    assert_error(twice, ParseError::Repeated { name: "volume" });
    for name in [r#"a\"b"#, r#"\""#, r#"\\\""#] {
        let message = format!("{{\"execute\": \"quit\", \"{name}\": 1}}");
        assert_error(&message, ParseError::UnexpectedMember { name });
    }
}
