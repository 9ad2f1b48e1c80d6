//! Managers' lines played on a graph alone, and its invariants looked at after each.

use serde_json::Value;

use super::{Fields, Graph, node, parse_strict, parse_text};

/// Plays lines: an object is the arguments of `blockdev-add`, `+PARENT CHILD` attaches a replica, `-PARENT CHILD` detaches the
/// child of that role, `!NODE` deletes, anything else is options as `drive_add` has them. Gives what was refused.
///
/// # Errors
/// An invariant was broken, or a refusal has changed something.
pub(crate) fn play(lines: &str) -> Result<Vec<String>, String> {
    let mut graph = Graph::default();
    let mut refusals = Vec::new();
    for line in lines.lines() {
        let mut next = graph.clone();
        match step(&mut next, line) {
            Ok(()) => graph = next,
            Err(refusal) => refusals.push(refusal),
        }
        graph.check_invariants().map_err(|broken| format!("{broken} after {line}"))?;
    }
    Ok(refusals)
}

fn step(graph: &mut Graph, line: &str) -> Result<(), String> {
    let pair = |rest: &str| rest.split_once(' ').map(|(one, other)| (one.to_owned(), other.to_owned()));
    if let Some((parent, child)) = line.strip_prefix('+').and_then(pair) {
        return graph.attach(&parent, &child).map(|_| ());
    }
    if let Some((parent, role)) = line.strip_prefix('-').and_then(pair) {
        let child = graph.replica_at(&parent, &role)?;
        graph.detach(&parent, &child);
        return Ok(());
    }
    if let Some(name) = line.strip_prefix('!') {
        return graph.remove(name).map(|_| ());
    }
    let options = if line.starts_with('{') {
        let Value::Object(members) = parse_strict(line.as_bytes())? else { return Err("no object".into()) };
        Fields::of_command(members)
    } else {
        Fields::of_text(parse_text(line)?)
    };
    let added = graph.add(node(options)?)?;
    for name in &added {
        // Whatever is there can be asked for, exported or not.
        let _ = (graph.seat(name), graph.check_top(name), graph.disk_below(name));
    }
    Ok(())
}

impl Graph {
    fn check_invariants(&self) -> Result<(), String> {
        for node in &self.nodes {
            let name = &node.name;
            if self.nodes.iter().filter(|other| other.name == *name).count() != 1 {
                return Err(format!("G1: two nodes are called '{name}'"));
            }
            let parents =
                self.nodes.iter().flat_map(|other| &other.children).filter(|edge| edge.node == *name).count();
            if parents > 1 || self.is_above(name, name) {
                return Err(format!("G2: node '{name}' has {parents} parents, or lies above itself"));
            }
            if !node.is_managers && parents == 0 {
                return Err(format!("G3: node '{name}' belongs to nobody"));
            }
            if node.children.iter().any(|edge| self.find(&edge.node).is_none()) {
                return Err(format!("node '{name}' lies on one that is not there"));
            }
        }
        Ok(())
    }
}
