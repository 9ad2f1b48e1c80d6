use super::super::*;
use super::{cases, text, written};
use crate::control::{
    Answer, BufferReport, CheckpointReport, Command, CommitReport, EventReport, FullPolicy, MemoryReport,
    RefusalText, ReplicaReport, Role, StatusText, Trouble, VolumeReport,
};
use crate::{ErrorCounters, ErrorKind, Event, Micros, Refused, ReplicaState, Stage, View};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::string::{String, ToString};
use std::vec;

fn answer(answer: Answer<'_>) -> Value {
    written(|out| write_answer(out, &answer, None)).1["return"].take()
}

fn event(event: Event) -> (Value, Value) {
    let report =
        EventReport { volume: "vda", event, replica: "far", export: "", at: Micros(1_700_000_000_000_042) };
    let mut value = written(|out| write_event(out, &report)).1;
    assert_eq!(value["timestamp"], json!({"seconds": 1_700_000_000, "microseconds": 42}));
    assert_eq!(value.as_object().unwrap().len(), 3);
    (value["event"].take(), value["data"].take())
}

fn volume(role: Role) -> VolumeReport<'static> {
    let mut errors = ErrorCounters::default();
    errors.record(ErrorKind::Forward);
    errors.record(ErrorKind::Commit);
    errors.record(ErrorKind::Commit);
    VolumeReport {
        name: "v\"1\"",
        role,
        stage: Stage::FailoverFailed,
        epoch: u64::MAX,
        size_bytes: 1 << 40,
        granule_bytes: 65536,
        is_behind: true,
        buffer: None,
        commit: None,
        checkpoint: None,
        errors,
    }
}

const NO_REPLICAS: [ReplicaReport<'static>; 0] = [];

#[test]
fn the_greeting_is_that_of_qmp() {
    let value = written(write_greeting).1;
    assert_eq!(value["QMP"]["capabilities"], json!([]));
    assert!(value["QMP"]["version"]["qemu"]["major"].is_u64());
    assert!(value["QMP"]["version"]["package"].as_str().unwrap().starts_with("twinblock "));
}

#[test]
fn answers_have_the_shapes_that_qmp_gives_them() {
    assert_eq!(answer(Answer::Done), json!({}));
    assert_eq!(answer(Answer::Epoch(12)), json!({"epoch": 12}));
    let memory = MemoryReport {
        allocation_count: 7,
        deallocation_count: 5,
        allocated_bytes: 4096,
        resident_bytes: 8192,
    };
    assert_eq!(
        answer(Answer::Memory(memory)),
        json!({"allocations": 7, "deallocations": 5, "allocated_bytes": 4096, "resident_bytes": 8192})
    );
    assert_eq!(answer(Answer::Status(None)), json!({"error": false}));
    let status = answer(Answer::Status(Some(StatusText { volume: "vda", trouble: Trouble::NotRunning })));
    assert_eq!(
        status,
        json!({"error": true, "desc": "replication of volume 'vda' is not running; start it first"})
    );
    let names = Command::NAMES.map(|name| json!({"name": name}));
    assert_eq!(answer(Answer::Commands), json!(names));
    let (line, value) = written(|out| write_commands(out, &["quit"], Some(Id("1"))));
    assert_eq!(value, json!({"return": [{"name": "quit"}], "id": 1}), "{line}");
    assert_eq!(answer(Answer::Checkpoint { left_out: &[] }), json!({}));
    assert_eq!(answer(Answer::Checkpoint { left_out: &["a", "b"] }), json!({ "left-out": ["a", "b"] }));
}

#[test]
fn errors_carry_their_class_and_the_id() {
    let refusal = RefusalText { refused: Refused::Running, volume: "a\nb" };
    let id = Id("{\"x\": 1}");
    let value = written(|out| write_refusal(out, refusal, Some(id))).1;
    let desc = r"replication of volume 'a\nb' is already running; stop it first";
    assert_eq!(value, json!({"error": {"class": "GenericError", "desc": desc}, "id": {"x": 1}}));
    let value = written(|out| ParseError::UnknownCommand { name: "x" }.write(out, None)).1;
    assert_eq!(value["error"]["class"], "CommandNotFound");
    let value = written(|out| ParseError::NoCommand.write(out, None)).1;
    assert_eq!(value["error"]["class"], "GenericError");
}

#[test]
fn an_id_of_several_lines_comes_back_in_one() {
    let mut scratch = [0; 64];
    let parsed = parse(b"{\"execute\": \"quit\", \"id\": {\"a\": [1, null\r\n]}}", &mut scratch);
    let (line, value) = written(|out| write_answer(out, &Answer::Done, parsed.id));
    assert_eq!(line, r#"{"return": {}, "id": {"a": [1, null]}}"#);
    assert_eq!(value["id"], json!({"a": [1, null]}));
}

#[test]
fn events_have_the_shape_that_qmp_gives_them() {
    let expected = [
        (Event::Stage(Stage::Failover), "REPLICATION_STAGE", json!({"volume": "vda", "stage": "failover"})),
        (
            Event::Error(ErrorKind::CopyBeforeWrite),
            "REPLICATION_ERROR",
            json!({"volume": "vda", "error": "copy_before_write"}),
        ),
        (Event::BufferThreeQuarters, "BUFFER_FULL", json!({"volume": "vda", "level": "three-quarters"})),
        (Event::BufferFull, "BUFFER_FULL", json!({"volume": "vda", "level": "full"})),
        (Event::View(View::Broken), "VIEW", json!({"volume": "vda", "view": "broken"})),
        (
            Event::CommitProgress { total_bytes: 10, done_bytes: 5 },
            "COMMIT_PROGRESS",
            json!({"volume": "vda", "total_bytes": 10, "done_bytes": 5}),
        ),
        (
            Event::Replica(1, ReplicaState::Behind),
            "REPLICA_STATE",
            json!({"volume": "vda", "replica": "far", "state": "behind"}),
        ),
    ];
    for (report, name, data) in expected {
        assert_eq!(event(report), (json!(name), data));
    }
}

#[test]
fn the_report_has_exactly_the_members_that_apply() {
    let secondary = VolumeReport {
        buffer: Some(BufferReport {
            size_bytes: 100,
            used_bytes: 50,
            policy: FullPolicy::Break,
            view: View::Whole,
            held_count: 3,
        }),
        commit: Some(CommitReport { total_bytes: 8, done_bytes: 4 }),
        ..volume(Role::Secondary)
    };
    let primary = VolumeReport {
        checkpoint: Some(CheckpointReport { count: 9, p50: Micros(1), p99: Micros(2), max: Micros(3) }),
        ..volume(Role::Primary)
    };
    let replica = ReplicaReport {
        name: "far",
        is_connected: true,
        is_controlled: Some(false),
        is_behind: false,
        dirty_bytes: 65536,
        in_flight_count: 7,
    };
    let value = written(|out| {
        let mut report = ReportWriter::begin(out)?;
        report.volume(&secondary, [replica])?;
        report.volume(&primary, [replica, ReplicaReport { name: "near", is_controlled: None, ..replica }])?;
        report.volume(&volume(Role::Primary), NO_REPLICAS)?;
        report.end(Some(Id("5")))
    })
    .1;
    let errors = json!({
        "primary_disk": 0, "forward": 1, "copy_before_write": 0, "secondary_disk": 0, "buffer": 0, "empty": 0,
        "commit": 2,
    });
    let common = |role: &str, more: Value| {
        let mut volume = json!({
            "name": "v\"1\"", "role": role, "stage": "failover-failed", "epoch": u64::MAX,
            "size_bytes": 1_u64 << 40, "granule_bytes": 65536, "behind": true, "errors": errors,
        });
        volume.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        volume
    };
    let near =
        json!({"name": "near", "connected": true, "behind": false, "dirty_bytes": 65536, "in_flight": 7});
    let mut far = near.clone();
    far["name"] = json!("far");
    far["control_connected"] = json!(false);
    let expected = json!({"id": 5, "return": {"volumes": [
        common("secondary", json!({
            "buffer": {"size_bytes": 100, "used_bytes": 50, "policy": "break", "view": "whole", "held": 3},
            "commit": {"total_bytes": 8, "done_bytes": 4},
        })),
        common("primary", json!({
            "replicas": [far, near],
            "checkpoint_us": {"count": 9, "p50": 1, "p99": 2, "max": 3},
        })),
        common("primary", json!({"replicas": []})),
    ]}});
    assert_eq!(value, expected);
}

/// A sink that takes a few bytes at a time, as a UART does.
struct Narrow {
    line: String,
    longest: usize,
}

impl core::fmt::Write for Narrow {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        self.longest = self.longest.max(text.len());
        self.line.push_str(text);
        Ok(())
    }
}

#[test]
fn a_report_streams_in_short_parts_however_long_it_is() {
    let mut out = Narrow { line: String::new(), longest: 0 };
    let name = "\u{1}".repeat(1000);
    let volume = VolumeReport { name: &name, ..volume(Role::Secondary) };
    let mut report = ReportWriter::begin(&mut out).unwrap();
    for _ in 0..50 {
        report.volume(&volume, NO_REPLICAS).unwrap();
    }
    report.end(None).unwrap();
    let value: Value = serde_json::from_str(&out.line).unwrap();
    assert_eq!(value["return"]["volumes"][49]["name"], name);
    assert!(out.longest <= 100, "{}", out.longest);
}

#[test]
fn a_report_names_what_does_the_io_where_the_embedder_says_so() {
    let mut bytes = [0; 128];
    let mut out = TextBuffer::new(&mut bytes);
    ReportWriter::begin(&mut out).unwrap().end_with_backend("io-uring", Some(Id("1"))).unwrap();
    let value: Value = serde_json::from_str(out.text()).unwrap();
    assert_eq!(value["return"]["backend"], "io-uring");
    assert_eq!(value["id"], 1);
}

#[test]
fn a_buffer_that_is_too_small_is_an_error_and_never_a_panic() {
    let (line, _) = written(|out| write_answer(out, &Answer::Commands, Some(Id("1"))));
    for room in 0..line.len() + 2 {
        let mut bytes = vec![0; room];
        let mut out = TextBuffer::new(&mut bytes);
        assert!(write_answer(&mut out, &Answer::Commands, Some(Id("1"))).is_err());
        assert!(line.starts_with(out.text().trim_end()));
    }
    let mut bytes = vec![0; line.len() + 2];
    let mut out = TextBuffer::new(&mut bytes);
    write_answer(&mut out, &Answer::Commands, Some(Id("1"))).unwrap();
    assert_eq!(out.text().trim_end(), line);
    out.clear();
    assert_eq!(out.text(), "");
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn any_text_survives_being_written(desc in text()) {
        let (line, value) = written(|out| write_error(out, ErrorClass::GenericError, &desc, None));
        prop_assert_eq!(value["error"]["desc"].as_str(), Some(desc.as_str()));
        let mut scratch = vec![0; line.len()];
        let incoming = parse_incoming(line.as_bytes(), &mut scratch);
        prop_assert_eq!(incoming, Ok(Incoming::Error { id: None, desc: &desc, is_missing: false }));
    }

    #[test]
    fn numbers_are_written_in_full(epoch: u64) {
        let epoch_text = epoch.to_string();
        prop_assert_eq!(answer(Answer::Epoch(epoch))["epoch"].to_string(), epoch_text);
    }
}
