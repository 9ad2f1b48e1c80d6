//! What managers say of nodes: objects, options as text, and their order.

/// Plays bytes as managers' commands, one a line.
///
/// # Panics
/// On a finding.
pub fn run(bytes: &[u8]) {
    let Ok(lines) = std::str::from_utf8(bytes) else { return };
    let refusals = twinblock::check_nodes(lines).unwrap_or_else(|broken| panic!("{broken}"));
    assert!(refusals.iter().all(|refusal| !refusal.is_empty()), "a refusal says something");
}
