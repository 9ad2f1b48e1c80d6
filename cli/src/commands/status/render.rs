//! The status for people: aligned, with units. Styles are written as ANSI sequences, which whoever prints strips
//! where no terminal is.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};

use super::{Buffer, Commit, Replica, Status, Times, Volume};
use crate::units;

/// Width of the column of labels.
const LABEL: usize = 12;

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const GOOD: Style = AnsiColor::Green.on_default();
const CARE: Style = AnsiColor::Yellow.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();

fn styled(style: Style, text: impl std::fmt::Display) -> String {
    format!("{style}{text}{style:#}")
}

/// All volumes, each line ended.
pub(crate) fn render(status: &Status) -> String {
    let mut out = String::new();
    for (index, volume) in status.volumes.iter().enumerate() {
        if index != 0 {
            out.push('\n');
        }
        render_volume(&mut out, volume);
    }
    if status.volumes.is_empty() {
        out.push_str("no volume\n");
    }
    if let Some(backend) = &status.backend {
        let _ = writeln!(out, "\n{DIM}{:width$}{DIM:#} {backend}", "backend", width = LABEL + 2);
    }
    out
}

fn line(out: &mut String, label: &str, text: impl std::fmt::Display) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "  {DIM}{label:LABEL$}{DIM:#} {text}");
}

fn render_volume(out: &mut String, volume: &Volume) {
    let stage = match volume.stage.as_str() {
        "running" => GOOD,
        "failover" => CARE,
        "failover-failed" => BAD,
        _ => Style::new(),
    };
    let _ = write!(out, "{}  {}  {}", styled(BOLD, &volume.name), volume.role, styled(stage, &volume.stage));
    if volume.behind {
        let _ = write!(out, "  {}", styled(BAD, "behind"));
    }
    out.push('\n');
    if let Some(size) = volume.size_bytes {
        let granule = volume
            .granule_bytes
            .map_or(String::new(), |granule| format!(", granules of {}", units::bytes(granule)));
        line(out, "size", format!("{}{granule}", units::bytes(size)));
    }
    line(out, "epoch", units::count(volume.epoch));
    if let Some(buffer) = &volume.buffer {
        line(out, "buffer", render_buffer(buffer));
    }
    if let Some(times) = volume.checkpoint_us {
        line(out, "checkpoints", render_times(times));
    }
    if let Some(commit) = &volume.commit {
        line(out, "commit", render_commit(commit));
    }
    render_replicas(out, &volume.replicas);
    if let Some(errors) = volume.errors {
        let met: Vec<String> =
            errors.met().into_iter().map(|(name, count)| format!("{name} {}", units::count(count))).collect();
        let text = if met.is_empty() { "none".into() } else { styled(BAD, met.join(", ")) };
        line(out, "errors", text);
    }
}

/// How much of the whole, in percent; nothing of nothing is everything.
fn percent(part: u64, whole: u64) -> u64 {
    u128::from(part).saturating_mul(100).checked_div(u128::from(whole)).map_or(100, |share| share as u64)
}

fn render_buffer(buffer: &Buffer) -> String {
    let share = percent(buffer.used_bytes, buffer.size_bytes);
    let style = if share >= 75 { CARE } else { Style::new() };
    let mut text = format!(
        "{} of {}, policy {}",
        styled(style, format!("{} ({share}%)", units::bytes(buffer.used_bytes))),
        units::bytes(buffer.size_bytes),
        buffer.policy
    );
    let view = if buffer.view == "whole" { GOOD } else { BAD };
    let _ = write!(text, ", view {}", styled(view, &buffer.view));
    if buffer.held != 0 {
        let _ = write!(text, ", {}", styled(CARE, format!("{} held", units::count(buffer.held))));
    }
    text
}

/// Count and percentiles of checkpoints.
pub(crate) fn render_times(times: Times) -> String {
    if times.count == 0 {
        return "none".into();
    }
    format!(
        "{}, half within {}, 99% within {}, longest {}",
        units::count(times.count),
        units::micros(times.p50),
        units::micros(times.p99),
        units::micros(times.max)
    )
}

fn render_commit(commit: &Commit) -> String {
    format!(
        "{} of {} ({}%)",
        units::bytes(commit.done_bytes),
        units::bytes(commit.total_bytes),
        percent(commit.done_bytes, commit.total_bytes)
    )
}

fn render_replicas(out: &mut String, replicas: &[Replica]) {
    let width = replicas.iter().map(|replica| replica.name.chars().count()).max().unwrap_or_default();
    for (index, replica) in replicas.iter().enumerate() {
        let (style, state) = match (replica.connected, replica.behind) {
            (true, false) => (GOOD, "current"),
            (true, true) => (BAD, "behind"),
            (false, false) => (CARE, "unreachable"),
            (false, true) => (BAD, "unreachable, behind"),
        };
        let mut text = format!("{:width$}  {}", replica.name, styled(style, state));
        if replica.behind || replica.dirty_bytes != 0 {
            let _ = write!(text, "  misses {}", units::bytes(replica.dirty_bytes));
        }
        let _ = write!(text, "  {} in flight", units::count(replica.in_flight));
        if replica.connected && replica.control_connected == Some(false) {
            let _ = write!(text, "  {}", styled(CARE, "no control connection: no checkpoint is taken"));
        }
        line(out, if index == 0 { "replicas" } else { "" }, text);
    }
}
