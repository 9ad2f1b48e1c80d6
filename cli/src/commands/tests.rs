//! The commands against a daemon that plays a script.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::thread::{self, JoinHandle};

use super::*;
use crate::units::Span;

const GREETING: &str = r#"{"QMP":{"version":{},"capabilities":[]}}"#;
const ROLE: &str = r#"{"volumes":[{"name":"d","role":"ROLE","stage":"running","epoch":1}]}"#;

/// A daemon that answers each command with the next line and tells which commands came.
struct Daemon {
    control: Control,
    received: JoinHandle<Vec<Value>>,
    _directory: tempfile::TempDir,
}

impl Daemon {
    fn new(answers: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let answers: Vec<String> = answers.iter().map(ToString::to_string).collect();
        let received = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let mut stream = stream;
            let mut received = Vec::new();
            writeln!(stream, "{GREETING}").unwrap();
            lines.next().unwrap().unwrap();
            writeln!(stream, r#"{{"return":{{}},"id":1}}"#).unwrap();
            for answer in answers {
                let Some(Ok(line)) = lines.next() else { break };
                received.push(serde_json::from_str(&line).unwrap());
                writeln!(stream, "{answer}").unwrap();
            }
            received
        });
        let control = Control { address: Address::Unix(path), timeout: Span::from_ms(300) };
        Self { control, received, _directory: directory }
    }

    fn commands(self) -> Vec<Value> {
        self.received.join().unwrap()
    }
}

fn roles(role: &str) -> String {
    format!(r#"{{"return":{},"id":2}}"#, ROLE.replace("ROLE", role))
}

#[test]
fn start_names_the_role_that_the_daemon_has() {
    for (role, primary) in [("primary", true), ("secondary", false)] {
        let daemon = Daemon::new(&[&roles(role), r#"{"return":{},"id":3}"#]);
        assert_eq!(start(&daemon.control, None), Ok(()));
        let commands = daemon.commands();
        assert_eq!(commands[1]["execute"], "xen-set-replication");
        assert_eq!(commands[1]["arguments"], json!({ "enable": true, "primary": primary }));
    }
}

#[test]
fn a_daemon_of_both_roles_is_not_started_by_halves() {
    let both = r#"{"return":{"volumes":[{"name":"a","role":"primary","stage":"none","epoch":0},
        {"name":"b","role":"secondary","stage":"none","epoch":0}]},"id":2}"#
        .replace('\n', " ");
    let daemon = Daemon::new(&[&both]);
    assert!(matches!(start(&daemon.control, None), Err(Failure::Refused(text)) if text.contains("--volume")));
    let daemon = Daemon::new(&[&both]);
    assert!(matches!(start(&daemon.control, Some("c")), Err(Failure::Refused(text)) if text.contains("'c'")));
    let daemon = Daemon::new(&[&both, r#"{"return":{},"id":3}"#]);
    assert_eq!(start(&daemon.control, Some("b")), Ok(()));
    let expected = json!({ "enable": true, "primary": false, "volume": "b" });
    assert_eq!(daemon.commands()[1]["arguments"], expected);
}

#[test]
fn stop_says_which_way_to_take_over() {
    let daemon = Daemon::new(&[&roles("secondary"), r#"{"return":{},"id":3}"#]);
    assert_eq!(stop(&daemon.control, true, false, None), Ok(()));
    let arguments = &daemon.commands()[1]["arguments"];
    assert_eq!(*arguments, json!({ "enable": false, "primary": false, "failover": true }));
    let daemon = Daemon::new(&[&roles("secondary"), r#"{"return":{},"id":3}"#]);
    assert_eq!(stop(&daemon.control, false, true, None), Ok(()));
    assert_eq!(daemon.commands()[1]["arguments"]["force"], true);
}

#[test]
fn the_daemons_refusal_is_what_the_user_reads() {
    let daemon = Daemon::new(&[r#"{"error":{"class":"GenericError","desc":"not running"},"id":2}"#]);
    assert_eq!(checkpoint(&daemon.control, false, None), Err(Failure::Refused("not running".into())));
}

#[test]
fn events_and_stale_answers_are_passed_over() {
    let daemon = Daemon::new(&[
        "{\"event\":\"X\",\"data\":{}}\n{\"return\":{},\"id\":1}\n{\"return\":{\"ok\":1},\"id\":2}",
    ]);
    let mut qmp = daemon.control.connect().unwrap();
    assert_eq!(qmp.execute("query", &json!({})).unwrap().get(), r#"{"ok":1}"#);
}

#[test]
fn a_silent_daemon_is_given_up_after_the_time() {
    let daemon = Daemon::new(&["", ""]);
    let failure = checkpoint(&daemon.control, false, None).unwrap_err();
    assert_eq!(failure.exit_code(), 1);
    let daemon = Daemon::new(&[r#"{"event":"X"}"#, ""]);
    let mut qmp = daemon.control.connect().unwrap();
    let failure = qmp.execute("query", &json!({})).unwrap_err();
    assert!(failure.to_string().contains("whether it was done is not known"), "{failure}");
}

#[test]
fn nobody_there_is_unreachable() {
    let control = Control { address: "unix:/nonexistent/c".parse().unwrap(), timeout: Span::from_ms(100) };
    let failure = start(&control, None).unwrap_err();
    assert_eq!(failure.exit_code(), 3);
    assert!(failure.to_string().contains("unix:/nonexistent/c"), "{failure}");
}

#[test]
fn what_does_not_speak_qmp_is_unreachable() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let server = thread::spawn(move || listener.accept().unwrap().0.write_all(b"NBDMAGIC\n{}\n").unwrap());
    let control = Control { address: Address::Unix(path), timeout: Span::from_ms(300) };
    assert_eq!(start(&control, None).unwrap_err().exit_code(), 3);
    server.join().unwrap();
}

#[test]
fn attach_and_detach_send_only_what_was_given() {
    let replica = NewReplica {
        uri: "nbd://b:1/x".parse().unwrap(),
        name: Some("b".into()),
        volume: None,
        control: Some("tcp:b:2".parse().unwrap()),
        sync: Sync::Full,
    };
    let daemon = Daemon::new(&[r#"{"return":{},"id":2}"#]);
    assert_eq!(attach(&daemon.control, replica), Ok(()));
    let expected = json!({ "uri": "nbd://b:1/x", "name": "b", "control": "tcp:b:2", "sync": "full" });
    assert_eq!(daemon.commands()[0]["arguments"], expected);
    let daemon = Daemon::new(&[r#"{"return":{},"id":2}"#]);
    assert_eq!(detach(&daemon.control, "b", None), Ok(()));
    assert_eq!(daemon.commands()[0]["arguments"], json!({ "name": "b" }));
}
