use super::{CommandId, ErrorCounters, ErrorKind, Event, Notice, Notices, Stage};
use crate::ConnectionId;

#[test]
fn every_stage_has_the_name_that_managers_read() {
    let stages = [Stage::None, Stage::Running, Stage::Failover, Stage::FailoverFailed, Stage::Done];
    assert_eq!(stages.map(Stage::name), ["none", "running", "failover", "failover-failed", "done"]);
}

#[test]
fn failures_are_counted_by_kind_and_told_in_their_order() {
    use ErrorKind::{Buffer, Commit, CopyBeforeWrite, Empty, Forward, PrimaryDisk, SecondaryDisk};
    let kinds = [PrimaryDisk, Forward, CopyBeforeWrite, SecondaryDisk, Buffer, Empty, Commit];
    let mut counters = ErrorCounters::default();
    assert_eq!(counters.first(), None);
    for (place, kind) in kinds.into_iter().enumerate().rev() {
        for _ in 0..=place {
            counters.record(kind);
        }
        assert_eq!(counters.first(), Some(kind));
    }
    assert_eq!(kinds.map(|kind| counters.count(kind)), [1, 2, 3, 4, 5, 6, 7]);
    counters.clear();
    assert_eq!(counters, ErrorCounters::default());
}

#[test]
fn events_leave_room_for_answers_and_closings() {
    let mut notices = Notices::default();
    let event = Notice::Event(Event::BufferFull);
    for _ in 0..100 {
        notices.event(Event::BufferFull);
    }
    assert!(notices.has_room());
    for command in 0..12 {
        assert!(notices.has_room());
        notices.answer(CommandId(command), Ok(()));
    }
    assert!(!notices.has_room(), "no operation is taken while so many answers wait");
    notices.close(ConnectionId(1));
    let told = core::iter::from_fn(|| notices.pop()).collect::<std::vec::Vec<_>>();
    assert_eq!(told[..16], [event; 16]);
    assert_eq!(told[16], Notice::Answer(CommandId(0), Ok(())));
    assert_eq!(told[27..], [Notice::Answer(CommandId(11), Ok(())), Notice::Close(ConnectionId(1))]);
}
