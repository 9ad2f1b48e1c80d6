//! What managers send, and what they are told.

use core::fmt::Write;

use twinblock_core::control::json::{Framer, Negotiation, TextBuffer};
use twinblock_core::control::{CheckpointReport, Command, Histogram, RefusalText, StatusText, Trouble};
use twinblock_core::{Micros, Refused};

use crate::{any, lent, see};

fn sink() -> TextBuffer<'static> {
    let mut out = TextBuffer::new(lent());
    any(&mut out).clear();
    out
}

/// What is said without JSON: where messages end, times, and lines for people.
pub(crate) fn words() {
    let mut framer = Framer::new();
    see(any(&mut framer).find_end(any(&[])));
    see(any(&mut Negotiation::new()).admit(&any(Command::Quit)));
    let mut times = Histogram::new();
    any(&mut times).record(any(Micros(0)));
    see(any(&times).percentile(any(0)));
    see(CheckpointReport::from(any(&times)));
    let mut out = sink();
    let refusal = RefusalText { refused: any(Refused::Busy), volume: any("") };
    see(write!(any(&mut out), "{refusal}"));
    let status = StatusText { volume: any(""), trouble: any(Trouble::NotRunning) };
    see(write!(any(&mut out), "{status}"));
    see(any(&out).text().len());
}

/// Text of a manager or of another node.
#[cfg(feature = "json")]
pub(crate) fn incoming() {
    use twinblock_core::control::json;

    let parsed = json::parse(any(&[]), lent());
    see(parsed.id.map(|id| (id.number(), id.held())));
    see(parsed.command);
    see(json::parse_incoming(any(&[]), lent()));
}

/// Answers, events and commands.
#[cfg(feature = "json")]
pub(crate) fn outgoing() {
    use twinblock_core::control::json::{self, ErrorClass, ParseError, ReportWriter};
    use twinblock_core::control::{Answer, EventReport, ReplicaReport, Role, VolumeReport};
    use twinblock_core::{ErrorCounters, Event, Stage};

    let mut out = sink();
    see(json::write_greeting(any(&mut out)));
    see(json::write_answer(any(&mut out), &any(Answer::Done), any(None)));
    see(json::write_commands(any(&mut out), any(&[]), any(None)));
    see(json::write_error(any(&mut out), any(ErrorClass::GenericError), any(""), any(None)));
    let refusal = RefusalText { refused: any(Refused::Busy), volume: any("") };
    see(json::write_refusal(any(&mut out), refusal, any(None)));
    see(any(ParseError::TooDeep { offset: 0 }).write(any(&mut out), any(None)));
    let event = EventReport { volume: "", event: Event::BufferFull, replica: "", export: "", at: Micros(0) };
    see(json::write_event(any(&mut out), &any(event)));
    see(json::write_command(any(&mut out), &any(Command::Quit), any(0)));
    let volume = VolumeReport {
        name: "",
        role: Role::Primary,
        stage: Stage::None,
        epoch: 0,
        size_bytes: 0,
        granule_bytes: 0,
        is_behind: false,
        buffer: None,
        commit: None,
        checkpoint: None,
        errors: ErrorCounters::default(),
    };
    let replica = ReplicaReport {
        name: "",
        is_connected: false,
        is_controlled: Some(false),
        is_behind: false,
        dirty_bytes: 0,
        in_flight_count: 0,
    };
    if let Ok(mut report) = ReportWriter::begin(any(&mut out)) {
        see(report.volume(&any(volume), any([replica])));
        see(report.end(any(None)));
    }
}
