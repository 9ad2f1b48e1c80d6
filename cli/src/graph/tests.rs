use serde_json::{Map, Value, json};

use super::*;

fn spec(value: Value) -> Result<NodeSpec, String> {
    let Value::Object(members) = value else { panic!("{value}") };
    node(Fields::of_command(members))
}

fn add(graph: &mut Graph, value: Value) -> Result<Vec<String>, String> {
    let mut next = graph.clone();
    let added = next.add(spec(value)?)?;
    *graph = next;
    Ok(added)
}

fn disk(name: &str) -> Value {
    json!({"driver": "raw", "node-name": name, "file": {"driver": "file", "filename": format!("/{name}")}})
}

fn replica(name: &str) -> Value {
    json!({"driver": "replication", "mode": "primary", "node-name": name, "file": {
        "driver": "nbd", "server": {"type": "inet", "host": "localhost", "port": "10809"}, "export": "x"}})
}

fn quorum(name: &str, children: &Value) -> Value {
    json!({"driver": "quorum", "node-name": name, "vote-threshold": 1, "read-pattern": "fifo", "children": children})
}

fn standby(name: &str, disk: &str) -> Value {
    json!({"driver": "replication", "mode": "secondary", "node-name": name, "top-id": "top", "file": {
        "driver": "twinblock-buffer", "buffer": "memory", "buffer-size": "1M", "backing": disk}})
}

fn pair() -> Graph {
    let mut graph = Graph::default();
    for node in [
        disk("p"),
        quorum("primary", &json!(["p"])),
        replica("r"),
        disk("s"),
        standby("half", "s"),
        quorum("top", &json!(["half"])),
    ] {
        add(&mut graph, node).unwrap();
    }
    graph
}

#[test]
fn what_a_node_shows_depends_on_what_lies_above_it() {
    let graph = pair();
    for (node, volume, port) in [
        ("primary", "primary", Port::Guest),
        ("s", "half", Port::Replication),
        ("half", "half", Port::Guest),
        ("top", "half", Port::Guest),
    ] {
        assert_eq!(graph.seat(node), Ok(Seat { volume: volume.into(), port }), "{node}");
    }
    for node in ["p", "r", "nothing"] {
        assert!(graph.seat(node).is_err(), "{node}");
    }
    assert_eq!(graph.check_top("half"), Ok(()));
}

#[test]
fn a_refused_node_changes_nothing() {
    let mut graph = pair();
    let before = graph.nodes.clone();
    for (wrong, part) in [
        (disk("p"), "already"),
        (json!({"driver": "raw", "node-name": "x", "file": "p"}), "in use"),
        (json!({"driver": "raw", "node-name": "x", "file": "x"}), "twice"),
        (json!({"driver": "raw", "node-name": "x", "file": "none"}), "no node 'none'"),
        (json!({"driver": "qcow3", "node-name": "x"}), "no driver"),
        (json!({"driver": "qcow2", "node-name": "x"}), "twinblock-buffer"),
        (json!({"driver": 5}), "'driver' must be a string"),
        (json!({"node-name": "x"}), "'driver' is missing"),
        (json!({"driver": "file", "filename": "f", "color": 1}), "no parameter 'color'"),
        (json!({"driver": "file", "filename": "f", "node-name": "#x"}), "#"),
        (
            json!({"driver": "raw", "node-name": "x", "file": {"driver": "raw", "node-name": "y", "file": "x"}}),
            "twice",
        ),
        (quorum("x", &json!([])), "children"),
        (quorum("x", &json!([disk("y"), "y"])), "twice"),
        (quorum("x", &json!([disk("y"), disk("z")])), "must be replicas"),
        (quorum("x", &json!([replica("y")])), "first child"),
        (quorum("x", &json!(["half"])), "in use"),
        (json!({"driver": "replication", "mode": "primary", "top-id": "t", "file": disk("y")}), "top-id"),
        (json!({"driver": "replication", "mode": "primary", "file": disk("y")}), "no NBD export"),
        (json!({"driver": "replication", "mode": "secondary", "file": "r"}), "top-id"),
        (
            json!({"driver": "replication", "mode": "secondary", "top-id": "t", "file": "r"}),
            "twinblock-buffer",
        ),
    ] {
        let refusal = add(&mut graph, wrong.clone()).unwrap_err();
        assert!(refusal.contains(part), "{wrong}: {refusal}");
        assert_eq!(graph.nodes, before, "{wrong}");
    }
}

#[test]
fn replicas_come_and_go_by_the_number_of_their_place() {
    let mut graph = pair();
    assert_eq!(graph.attach("primary", "r"), Ok("children.1".into()));
    assert!(graph.attach("primary", "r").unwrap_err().contains("in use"));
    assert!(graph.attach("top", "r").unwrap_err().contains("takes no replicas"));
    assert!(graph.remove("r").unwrap_err().contains("in use by node 'primary'"));
    assert!(graph.replica_at("primary", "children.0").unwrap_err().contains("its disk"));
    assert!(graph.replica_at("primary", "children.7").unwrap_err().contains("no child"));
    assert_eq!(graph.replica_at("primary", "children.1"), Ok("r".into()));
    graph.detach("primary", "r");
    assert_eq!(graph.attach("primary", "r"), Ok("children.1".into()), "the last number is used again");
}

#[test]
fn what_was_made_for_a_node_goes_with_it_and_the_rest_stays() {
    let mut graph = pair();
    assert!(graph.remove("half").unwrap_err().contains("in use"));
    assert!(graph.remove("#block000").is_err());
    let gone = |taken: Vec<Node>| taken.into_iter().map(|node| node.kind.driver()).collect::<Vec<_>>();
    assert_eq!(gone(graph.remove("top").unwrap()), ["quorum"]);
    assert_eq!(gone(graph.remove("half").unwrap()), ["replication", "twinblock-buffer"]);
    assert_eq!(gone(graph.remove("s").unwrap()), ["raw", "file"]);
    assert!(graph.find("s").is_none() && graph.find("p").is_some());
}

#[test]
fn the_node_on_top_of_a_secondary_has_to_be_there_to_start() {
    let mut graph = Graph::default();
    add(&mut graph, disk("s")).unwrap();
    add(&mut graph, standby("half", "s")).unwrap();
    assert!(graph.check_top("half").unwrap_err().contains("no node 'top'"));
    add(&mut graph, quorum("top", &json!([disk("other")]))).unwrap();
    assert!(graph.check_top("half").unwrap_err().contains("does not lie over"));
}

#[test]
fn no_line_breaks_an_invariant() {
    let lines = [
        include_str!("../../../tests/fuzz/corpus/nodes/pair"),
        include_str!("../../../tests/fuzz/corpus/nodes/refused"),
    ];
    let refusals = lines.map(|lines| play(lines).unwrap());
    assert_eq!(refusals[0], Vec::<String>::new());
    assert_eq!(refusals[1].len(), 4, "{refusals:?}");
}

fn text(line: &str) -> Result<Map<String, Value>, String> {
    parse_text(line)
}

#[test]
fn options_as_text_become_objects_and_arrays() {
    let parsed =
        text("driver=quorum,children.0.driver=raw,children.0.file.filename=/a,,b=c,children.1=r,x=").unwrap();
    let expected = json!({"driver": "quorum", "children": [{"driver": "raw", "file": {"filename": "/a,b=c"}}, "r"], "x": ""});
    assert_eq!(Value::Object(parsed), expected);
    for (wrong, part) in [
        ("a", "KEY=VALUE"),
        ("a=1,a=2", "twice"),
        ("a=1,a.b=2", "a value and an object"),
        ("a..b=1", "no name"),
    ] {
        assert!(text(wrong).unwrap_err().contains(part), "{wrong}");
    }
}

#[test]
fn a_replica_as_text_is_the_replica_as_an_object() {
    let line = "driver=replication,mode=primary,node-name=r,file.driver=nbd,file.host=localhost,file.port=10809,file.export=x";
    assert_eq!(node(Fields::of_text(text(line).unwrap())), spec(replica("r")));
    let line = "driver=quorum,read-pattern=fifo,node-name=q,vote-threshold=1,children.0.driver=raw,children.0.file.filename=/f";
    assert!(node(Fields::of_text(text(line).unwrap())).is_ok());
}

#[test]
fn addresses_come_with_and_without_data() {
    let address = |value: Value| {
        let Value::Object(members) = value else { panic!() };
        socket_address(Fields::of_command(members)).map(|address| address.to_string())
    };
    let unix = Ok("unix:/s".to_owned());
    assert_eq!(address(json!({"type": "unix", "data": {"path": "/s"}})), unix);
    assert_eq!(address(json!({"type": "unix", "path": "/s"})), unix);
    assert_eq!(address(json!({"type": "inet", "host": "::1", "port": "5"})), Ok("tcp:[::1]:5".into()));
    for (wrong, part) in [
        (json!({}), "'type' is missing"),
        (json!({"type": "vsock"}), "one of: unix, inet"),
        (json!({"type": "unix", "data": 5}), "an object"),
        (json!({"type": "inet", "host": "h", "port": "70000"}), "65535"),
        (json!({"type": "inet", "host": "a b", "port": "1"}), "neither a name"),
        (json!({"type": "unix", "path": "/s", "more": 1}), "no parameter 'more'"),
    ] {
        assert!(address(wrong.clone()).unwrap_err().contains(part), "{wrong}");
    }
}
