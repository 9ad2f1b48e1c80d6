use super::super::*;
use super::{cases, text, written};
use crate::control::RefusalText;
use crate::control::{Answer, BufferLevel, EventReport};
use crate::{Event, Micros, Refused, Stage};
use proptest::prelude::*;
use std::vec;

fn assert_incoming(message: &str, expected: &Result<Incoming<'_>, ParseError<'_>>) {
    let mut scratch = vec![0; message.len()];
    assert_eq!(&parse_incoming(message.as_bytes(), &mut scratch), expected, "{message}");
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn a_full_buffer_is_heard_of_on_the_other_side(volume in text(), export in text(), is_full: bool) {
        let (event, level) = if is_full {
            (Event::BufferFull, BufferLevel::Full)
        } else {
            (Event::BufferThreeQuarters, BufferLevel::ThreeQuarters)
        };
        let report = EventReport { volume: &volume, event, replica: "", export: &export, at: Micros(5) };
        let (line, _) = written(|out| write_event(out, &report));
        let export = Some(export.as_str()).filter(|export| !export.is_empty());
        let heard = Incoming::Event(IncomingEvent::BufferFull { volume: &volume, export, level });
        assert_incoming(&line, &Ok(heard));
    }

    #[test]
    fn an_answer_is_known_by_its_id_and_epoch(id: u64, epoch: u64) {
        let id = std::string::ToString::to_string(&id);
        let (line, _) = written(|out| write_answer(out, &Answer::Epoch(epoch), Some(Id(&id))));
        assert_incoming(&line, &Ok(Incoming::Return { id: Some(Id(&id)), epoch: Some(epoch) }));
        let (line, _) = written(|out| write_answer(out, &Answer::Done, Some(Id(&id))));
        assert_incoming(&line, &Ok(Incoming::Return { id: Some(Id(&id)), epoch: None }));
    }
}

#[test]
fn messages_that_a_client_need_not_understand_are_passed_over() {
    let (greeting, _) = written(write_greeting);
    assert_incoming(&greeting, &Ok(Incoming::Greeting));
    let report = EventReport {
        volume: "v",
        event: Event::Stage(Stage::Done),
        replica: "",
        export: "e",
        at: Micros(0),
    };
    let (stage, _) = written(|out| write_event(out, &report));
    let other = Ok(Incoming::Event(IncomingEvent::Other));
    assert_incoming(&stage, &other);
    for message in [
        r#"{"event": "SHUTDOWN", "timestamp": {"seconds": 1}}"#,
        r#"{"event": "BUFFER_FULL"}"#,
        r#"{"event": "BUFFER", "data": {"volume": "v", "level": "full"}}"#,
        r#"{"event": "BUFFER_FULL", "data": {"volume": "v", "level": "half"}}"#,
        r#"{"event": "BUFFER_FULL", "data": {"volume": 1, "level": "full"}}"#,
        r#"{"event": "BUFFER_FULL", "data": {"volume": "v", "export": 1, "level": "full"}}"#,
        r#"{"event": 5}"#,
    ] {
        assert_incoming(message, &other);
    }
    let full = BufferLevel::Full;
    let unnamed = Incoming::Event(IncomingEvent::BufferFull { volume: "v", export: None, level: full });
    for message in [
        r#"{"event": "BUFFER_FULL", "data": {"volume": "v", "level": "full"}}"#,
        r#"{"event": "BUFFER_FULL", "data": {"volume": "v", "export": "", "level": "full"}}"#,
    ] {
        assert_incoming(message, &Ok(unnamed));
    }
    let returned = Incoming::Return { id: None, epoch: None };
    for message in [r#"{"return": []}"#, r#"{"return": {"epoch": -1}, "more": 1}"#, r#"{"return": 5}"#] {
        assert_incoming(message, &Ok(returned));
    }
}

#[test]
fn an_error_is_an_error_whatever_its_form() {
    assert_incoming(
        r#"{"id": "a", "error": {"class": "GenericError", "desc": "no \"x\""}}"#,
        &Ok(Incoming::Error { id: Some(Id("\"a\"")), desc: "no \"x\"", is_missing: false }),
    );
    for message in [r#"{"error": {}}"#, r#"{"error": 1}"#, r#"{"error": {"desc": 1}}"#] {
        assert_incoming(message, &Ok(Incoming::Error { id: None, desc: "", is_missing: false }));
    }
    let without_room = parse_incoming(br#"{"error": {"desc": "a\nb"}}"#, &mut []);
    assert_eq!(without_room, Ok(Incoming::Error { id: None, desc: "a\\nb", is_missing: false }));
}

#[test]
fn what_no_server_sends_is_refused() {
    assert_incoming("{}", &Err(ParseError::NoCommand));
    assert_incoming("[]", &Err(ParseError::NotAnObject));
    assert_incoming("{", &Err(ParseError::Malformed { offset: 1 }));
}

#[test]
fn a_secondary_that_misses_something_says_so_where_no_prose_need_be_read() {
    let mut text = [0; 512];
    let mut out = TextBuffer::new(&mut text);
    let refusal = RefusalText { refused: Refused::Missing, volume: "vda" };
    write_refusal(&mut out, refusal, None).unwrap();
    let mut scratch = [0; 512];
    let incoming = parse_incoming(out.bytes(), &mut scratch);
    assert!(matches!(incoming, Ok(Incoming::Error { is_missing: true, .. })), "{incoming:?}");
}
