//! Links to secondaries that this program plays itself.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use super::*;
use crate::daemon::token;

const IDENTITY: Identity = Identity([7; 16]);
const FIRST: MemberIndex = MemberIndex(0);
const SECOND: MemberIndex = MemberIndex(1);

/// A primary's links, and the far end of each.
struct Bench {
    links: Links,
    poller: Poller,
    directory: PathBuf,
    secondaries: Vec<BufReader<UnixStream>>,
}

impl Bench {
    /// Two nodes, and on each a replica of the export "disk".
    fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("twinblock-links-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let mut links = Links::new(IDENTITY, Duration::from_secs(1));
        let mut poller = Poller::new(8).unwrap();
        let mut secondaries = Vec::new();
        for (number, member) in [FIRST, SECOND].into_iter().enumerate() {
            let path = directory.join(number.to_string());
            let listener = UnixListener::bind(&path).unwrap();
            let address = format!("unix:{}", path.display()).parse().unwrap();
            let node = links.node(&address, resolve).unwrap();
            assert_eq!(
                (node, links.node(&address, resolve)),
                (NodeIndex(number as u16), Ok(node)),
                "an address is a node"
            );
            links.add(node, member, "disk");
            links.tick(Micros(0), &mut poller);
            secondaries.push(BufReader::new(listener.accept().unwrap().0));
        }
        let mut bench = Self { links, poller, directory, secondaries };
        for node in 0..2 {
            bench.say(node, r#"{"QMP": {"version": {}, "capabilities": []}}"#);
            assert!(bench.hear(node).contains("qmp_capabilities"));
            bench.say(node, r#"{"return": {}, "id": 0}"#);
        }
        bench
    }

    /// A secondary says something, and the primary reads it.
    fn say(&mut self, node: usize, line: &str) {
        self.secondaries[node].get_mut().write_all(format!("{line}\r\n").as_bytes()).unwrap();
        let is_it = |ready: &Ready| token::split(ready.token) == Some((Kind::Link, node));
        loop {
            self.poller.wait(None).unwrap();
            let found = self.poller.ready().find(|ready| is_it(ready) && ready.read);
            if let Some(ready) = found {
                return self.links.on_ready(node, ready, Micros(0), &mut self.poller);
            }
        }
    }

    /// What a secondary is asked next.
    fn hear(&mut self, node: usize) -> String {
        self.links.flush(Micros(0), &mut self.poller);
        let mut line = String::new();
        self.secondaries[node].read_line(&mut line).unwrap();
        line
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn resolve(address: &Address) -> Result<Target, String> {
    Target::resolve(address).map_err(|error| error.to_string())
}

#[test]
fn two_spellings_of_an_address_are_one_node() {
    let mut bench = Bench::new("spellings");
    let folder = bench.directory.display().to_string();
    let (parent, name) = folder.rsplit_once('/').unwrap();
    std::os::unix::fs::symlink(bench.directory.join("1"), bench.directory.join("linked")).unwrap();
    for (spelled, node) in [
        (format!("unix:{folder}/0"), 0),
        (format!("unix:{parent}/./{name}/../{name}/0"), 0),
        (format!("unix:{folder}/linked"), 1),
        (format!("unix:{folder}/2"), 2),
        (format!("unix:{folder}/./2"), 2),
        ("tcp:127.0.0.1:9".into(), 3),
        ("tcp:localhost:9".into(), 3),
        ("tcp:localhost:10".into(), 4),
    ] {
        let found = bench.links.node(&spelled.parse().unwrap(), resolve);
        assert_eq!(found, Ok(NodeIndex(node)), "{spelled}");
    }
}

#[test]
fn an_answer_is_that_to_its_question_while_the_checkpoint_lasts() {
    let mut bench = Bench::new("answer");
    bench.links.ask_prepare(SECOND, 5, 3);
    assert!(bench.hear(1).contains(r#""checkpoint-prepare""#));
    bench.say(1, r#"{"return": {"epoch": 5}, "id": 1}"#);
    let event = bench.links.next_event();
    assert!(matches!(event, Some(LinkEvent::Answer(Question::Prepare(SECOND), Ok(Some(5))))), "{event:?}");
}

#[test]
fn a_late_answer_to_a_checkpoint_that_has_ended_is_none_to_the_next_one() {
    let mut bench = Bench::new("late");
    bench.links.ask_prepare(FIRST, 5, 3);
    bench.hear(0);
    bench.links.forget_questions();
    bench.links.ask_prepare(FIRST, 5, 4);
    bench.hear(0);
    bench.say(0, r#"{"return": {"epoch": 5}, "id": 1}"#);
    let event = bench.links.next_event();
    assert!(event.is_none(), "{event:?}");
    bench.say(0, r#"{"error": {"class": "GenericError", "desc": "no"}, "id": 2}"#);
    let event = bench.links.next_event();
    assert!(matches!(event, Some(LinkEvent::Answer(Question::Prepare(FIRST), Err(_)))), "{event:?}");
}

#[test]
fn a_buffer_that_fills_up_is_that_of_the_replica_on_the_node_that_tells() {
    let mut bench = Bench::new("full");
    for (node, replica) in [(1, SECOND), (0, FIRST)] {
        bench.say(
            node,
            r#"{"event": "BUFFER_FULL", "data": {"volume": "disk", "level": "full"}, "timestamp": {"seconds": 1, "microseconds": 2}}"#,
        );
        let event = bench.links.next_event();
        let is_it = matches!(
            event,
            Some(LinkEvent::BufferFull { member, level: BufferLevel::Full }) if member == replica
        );
        assert!(is_it, "{event:?}");
    }
    bench.say(
        0,
        r#"{"event": "BUFFER_FULL", "data": {"volume": "node7", "level": "full", "export": "disk"}}"#,
    );
    assert!(matches!(bench.links.next_event(), Some(LinkEvent::BufferFull { member: FIRST, .. })));
    bench.say(
        0,
        r#"{"event": "BUFFER_FULL", "data": {"volume": "disk", "level": "full", "export": "other"}}"#,
    );
    assert!(bench.links.next_event().is_none(), "its primary calls it otherwise");
    bench.say(0, r#"{"event": "BUFFER_FULL", "data": {"volume": "other", "level": "full"}}"#);
    assert!(bench.links.next_event().is_none(), "of no replica here");
}

#[test]
fn every_commit_of_a_node_says_how_many_there_are() {
    let mut bench = Bench::new("together");
    bench.links.ask_commit(FIRST, 5, 2);
    let line = bench.hear(0);
    assert!(line.contains(r#""checkpoint-commit""#) && line.contains(r#""together": 2"#), "{line}");
}
