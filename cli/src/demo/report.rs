//! What the demo tells people and machines.

use std::fmt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anstream::adapter::strip_str;
use anstyle::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressStyle};
use rustix::termios::tcgetwinsize;
use serde_json::{Value, json};

use super::verify::{Evidence, Verdict};
use super::watch;
use super::workload::Counters;
use crate::commands::status::{Times, render_times};
use crate::units;

/// Most findings that are shown one by one.
const FINDINGS_MAX: usize = 10;
/// Columns that are used at least, and at most.
const WIDTH_MIN: u16 = 40;
const WIDTH_MAX: u16 = 110;
/// Width of the column of labels.
const LABEL: usize = 12;

/// Everything worth telling about one run.
#[derive(Debug)]
pub(crate) struct Report {
    seed: u64,
    size_bytes: u64,
    /// How long the workload ran.
    pub(crate) elapsed: Duration,
    writes: u64,
    written_bytes: u64,
    reads: u64,
    /// Checkpoints while the workload ran.
    pub(crate) checkpoints: u64,
    /// How long they took, by the primary's account.
    pub(crate) checkpoint_us: Times,
    /// The replica missed something.
    pub(crate) is_behind: bool,
    /// Requests of the primary's guest without an answer just before the kill.
    pub(crate) in_flight_at_kill: usize,
    /// From the command to its answer.
    pub(crate) failover_answered: Duration,
    /// From the command to the answer of the first write that was sent after it.
    pub(crate) failover_first_write: Duration,
    /// From the command to the end of the commit, as far as was looked.
    pub(crate) failover_done: Duration,
    /// Writes of the secondary's guest.
    pub(crate) guest_writes: u64,
    /// Those that found no room in the buffer.
    pub(crate) guest_refused: u64,
    buffer_bytes_max: u64,
    held_max: u64,
    commit_bytes: u64,
    /// What came out.
    pub(crate) verdict: Verdict,
}

impl Report {
    /// Nothing has happened yet.
    pub(crate) fn new(seed: u64, size_bytes: u64) -> Self {
        Self {
            seed,
            size_bytes,
            elapsed: Duration::ZERO,
            writes: 0,
            written_bytes: 0,
            reads: 0,
            checkpoints: 0,
            checkpoint_us: Times::default(),
            is_behind: false,
            in_flight_at_kill: 0,
            failover_answered: Duration::ZERO,
            failover_first_write: Duration::ZERO,
            failover_done: Duration::ZERO,
            guest_writes: 0,
            guest_refused: 0,
            buffer_bytes_max: 0,
            held_max: 0,
            commit_bytes: 0,
            verdict: Verdict::default(),
        }
    }

    /// What the primary's guest has done.
    pub(crate) fn take_counters(&mut self, counters: &Counters) {
        self.writes = counters.writes.load(Ordering::Relaxed);
        self.written_bytes = counters.written_bytes.load(Ordering::Relaxed);
        self.reads = counters.reads.load(Ordering::Relaxed);
    }

    /// What the secondary has shown.
    pub(crate) fn take_watch(&mut self, seen: &watch::Seen) {
        self.buffer_bytes_max = seen.buffer_bytes_max;
        self.held_max = seen.held_max;
        self.commit_bytes = seen.commit_bytes;
    }

    fn mib_per_second(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds == 0.0 { 0.0 } else { self.written_bytes as f64 / seconds / f64::from(1 << 20) }
    }

    /// Whether every byte is right.
    pub(crate) fn is_ok(&self) -> bool {
        self.verdict.findings.is_empty()
    }

    /// As one object.
    pub(crate) fn to_json(&self) -> Value {
        let shown: Vec<&String> = self.verdict.findings.iter().take(FINDINGS_MAX).collect();
        json!({
            "verdict": if self.is_ok() { "ok" } else { "wrong" },
            "seed": self.seed,
            "size_bytes": self.size_bytes,
            "seconds": self.elapsed.as_secs_f64(),
            "writes": self.writes,
            "written_bytes": self.written_bytes,
            "mib_per_second": self.mib_per_second(),
            "reads": self.reads,
            "guest_writes": self.guest_writes,
            "guest_writes_refused": self.guest_refused,
            "checkpoints": self.checkpoints,
            "checkpoint_us": {
                "count": self.checkpoint_us.count, "p50": self.checkpoint_us.p50,
                "p99": self.checkpoint_us.p99, "max": self.checkpoint_us.max,
            },
            "behind": self.is_behind,
            "buffer_bytes_max": self.buffer_bytes_max,
            "held_max": self.held_max,
            "in_flight_at_kill": self.in_flight_at_kill,
            "failover_us": {
                "answered": self.failover_answered.as_micros() as u64,
                "first_write": self.failover_first_write.as_micros() as u64,
                "done": self.failover_done.as_micros() as u64,
            },
            "commit_bytes": self.commit_bytes,
            "checked_bytes": self.verdict.checked_bytes,
            "findings_count": self.verdict.findings.len(),
            "findings": shown,
        })
    }
}

/// Tells the story, on standard output, or on standard error where standard output is for machines.
#[derive(Debug)]
pub(crate) struct Teller {
    /// Standard output is for machines.
    is_json: bool,
    /// Columns.
    width: u16,
}

impl Teller {
    /// Looks how wide the terminal is.
    pub(crate) fn new(is_json: bool) -> Self {
        let size = if is_json { tcgetwinsize(std::io::stderr()) } else { tcgetwinsize(std::io::stdout()) };
        let width = size.map_or(WIDTH_MAX, |size| size.ws_col).clamp(WIDTH_MIN, WIDTH_MAX);
        Self { is_json, width }
    }

    /// One line of the story, or several if it is longer than the terminal is wide.
    pub(crate) fn line(&self, label: &str, text: fmt::Arguments<'_>) {
        let bold = Style::new().bold();
        let room = usize::from(self.width).saturating_sub(LABEL + 1);
        for (number, part) in wrapped(&text.to_string(), room).iter().enumerate() {
            let label = if number == 0 { label } else { "" };
            if self.is_json {
                anstream::eprintln!("{bold}{label:LABEL$}{bold:#} {part}");
            } else {
                anstream::println!("{bold}{label:LABEL$}{bold:#} {part}");
            }
        }
    }

    /// Shows how far something has come, on standard error and only if that is a terminal.
    pub(crate) fn bar(&self, length: u64) -> ProgressBar {
        let indent = " ".repeat(LABEL + 1);
        let style = ProgressStyle::with_template(&format!("{indent}{{bar:24.green/dim}} {{msg}}"));
        let style = style.unwrap_or(ProgressStyle::default_bar()).progress_chars("━━─");
        ProgressBar::new(length).with_style(style)
    }

    /// Shows that something goes on, on standard error and only if that is a terminal.
    pub(crate) fn spinner(&self, what: &'static str) -> ProgressBar {
        let indent = " ".repeat(LABEL + 1);
        let style = ProgressStyle::with_template(&format!("{indent}{{spinner}} {{msg}}"));
        let style = style.unwrap_or(ProgressStyle::default_spinner());
        let spinner = ProgressBar::new_spinner().with_style(style).with_message(what);
        spinner.enable_steady_tick(Duration::from_millis(100));
        spinner
    }

    /// After the workload.
    pub(crate) fn told_run(&self, report: &Report) {
        self.line(
            "",
            format_args!(
                "{} writes, {} in {:.1} s ({:.0} MiB/s), {} reads",
                units::count(report.writes),
                units::bytes(report.written_bytes),
                report.elapsed.as_secs_f64(),
                report.mib_per_second(),
                units::count(report.reads)
            ),
        );
        self.line("checkpoints", format_args!("{}", render_times(report.checkpoint_us)));
        if report.is_behind {
            self.line("", format_args!("the replica is behind: no checkpoint since"));
        }
    }

    /// After the failover.
    pub(crate) fn told_failover(&self, report: &Report, commit_bytes: u64) {
        let micros = |span: Duration| units::micros(span.as_micros() as u64);
        self.line(
            "failover",
            format_args!(
                "first guest write done {} after the command; the buffer's {} committed in {} while the guest went on",
                micros(report.failover_first_write),
                units::bytes(commit_bytes),
                micros(report.failover_done)
            ),
        );
    }

    /// After the guest has come to rest.
    pub(crate) fn told_guest(&self, report: &Report) {
        let refused = match report.guest_refused {
            0 => String::new(),
            count => format!(", {} more found the buffer full", units::count(count)),
        };
        self.line(
            "guest",
            format_args!(
                "{} writes to the secondary's guest view{refused}",
                units::count(report.guest_writes),
            ),
        );
    }

    /// The end.
    pub(crate) fn told_verdict(&self, report: &Report, evidence: &Evidence) {
        self.line("checked", format_args!(
            "{} against the history of {} writes: both disks after the kill, the guest view during and after the \
             commit, the secondary disk at the end, and every read",
            units::bytes(report.verdict.checked_bytes),
            units::count((evidence.primary.count() + evidence.guest.count()) as u64)
        ));
        let findings = &report.verdict.findings;
        if findings.is_empty() {
            let good = AnsiColor::Green.on_default().bold();
            self.line("verdict", format_args!("{good}ok{good:#}: every byte is what the semantics promise"));
            return;
        }
        let bad = AnsiColor::Red.on_default().bold();
        self.line(
            "verdict",
            format_args!("{bad}wrong{bad:#}: {} findings", units::count(findings.len() as u64)),
        );
        for finding in findings.iter().take(FINDINGS_MAX) {
            self.line("", format_args!("{finding}"));
        }
        if findings.len() > FINDINGS_MAX {
            self.line("", format_args!("and {} more", findings.len() - FINDINGS_MAX));
        }
    }
}

/// Lines of at most `room` visible characters, broken between words.
fn wrapped(text: &str, room: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split(' ') {
        let length = strip_str(word).to_string().chars().count();
        match lines.last_mut() {
            Some(line) if used + 1 + length <= room || line.is_empty() => {
                used += length + usize::from(!line.is_empty());
                line.push_str(if line.is_empty() { "" } else { " " });
                line.push_str(word);
            }
            _ => {
                used = length;
                lines.push(word.to_owned());
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::wrapped;

    #[test]
    fn long_lines_break_between_words_and_colours_take_no_room() {
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
        assert_eq!(wrapped("\u{1b}[1mone\u{1b}[0m two three", 7), ["\u{1b}[1mone\u{1b}[0m two", "three"]);
        assert_eq!(wrapped("unbreakable", 3), ["unbreakable"]);
        assert_eq!(wrapped("", 3), [""]);
    }
}
