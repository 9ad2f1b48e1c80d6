mod bounds;
mod managed;
mod nodes;

use std::vec::Vec;

use super::{
    Coordinator, Failure, HURRY_SHARE, Input, Member, MemberIndex, NodeIndex, Output, Volume, VolumeIndex,
};
use crate::{CommandId, Micros, Refused, ReplicaState};

const NOW: Micros = Micros(0);
const COMMAND: CommandId = CommandId(9);

struct Fixture<'m>(Coordinator<'m>);

impl Fixture<'_> {
    fn offer(&mut self, input: Input) -> Vec<Output> {
        self.0.handle_input(NOW, input).unwrap();
        self.outputs()
    }

    fn outputs(&mut self) -> Vec<Output> {
        core::iter::from_fn(|| self.0.poll_output()).collect()
    }
}

/// Two volumes, each with a replica on the same node.
fn with_two_volumes(test: impl FnOnce(Fixture<'_>, MemberIndex, MemberIndex)) {
    let (mut volumes, mut members) = ([Volume::FREE; 2], [Member::FREE; 2]);
    let mut coordinator = Coordinator::new(&mut volumes, &mut members, Micros::from_ms(100));
    let first = coordinator.add_member(VolumeIndex(0), NodeIndex(0)).unwrap();
    let second = coordinator.add_member(VolumeIndex(1), NodeIndex(0)).unwrap();
    for volume in [VolumeIndex(0), VolumeIndex(1)] {
        coordinator.enrol(volume, true).unwrap();
    }
    for member in [first, second] {
        coordinator.handle_input(NOW, Input::Replica(member, ReplicaState::Current)).unwrap();
    }
    test(Fixture(coordinator), first, second);
}

/// Up to the point where both replicas have been asked to prepare their epoch 5.
fn prepare_both(fixture: &mut Fixture<'_>, first: MemberIndex, second: MemberIndex) {
    let begin = Input::Begin { command: COMMAND, is_urgent: false };
    assert_eq!(fixture.offer(begin).len(), 2);
    assert_eq!(fixture.offer(Input::Barrier(VolumeIndex(0), Ok(()))), []);
    let asked = fixture.offer(Input::Barrier(VolumeIndex(1), Ok(())));
    assert_eq!(asked, [Output::AskEpoch(first), Output::AskEpoch(second)]);
    assert_eq!(fixture.offer(Input::Epoch(first, Ok(5))), []);
    let asked = fixture.offer(Input::Epoch(second, Ok(5)));
    let prepare = |member| Output::Prepare { member, epoch: 5 };
    assert_eq!(asked, [prepare(first), prepare(second)]);
}

fn released(is_checkpoint: bool) -> [Output; 2] {
    [0, 1].map(|volume| Output::Release { volume: VolumeIndex(volume), is_checkpoint })
}

#[test]
fn nobody_commits_before_all_have_prepared_and_the_epoch_is_known_afterwards() {
    with_two_volumes(|mut fixture, first, second| {
        prepare_both(&mut fixture, first, second);
        assert_eq!(fixture.offer(Input::Prepared(first, Ok(()))), []);
        let commit = |member| Output::Commit { member, epoch: 5, together: 2 };
        assert_eq!(fixture.offer(Input::Prepared(second, Ok(()))), [commit(first), commit(second)]);
        assert_eq!(fixture.offer(Input::Committed(second, Ok(()))), []);
        let outputs = fixture.offer(Input::Committed(first, Ok(())));
        assert_eq!(outputs[..2], released(true));
        assert_eq!(outputs[2..], [Output::Answer(COMMAND, Ok(()))]);

        for volume in [VolumeIndex(0), VolumeIndex(1)] {
            fixture.0.enrol(volume, true).unwrap();
        }
        fixture.offer(Input::Begin { command: COMMAND, is_urgent: true });
        fixture.offer(Input::Barrier(VolumeIndex(0), Ok(())));
        let asked = fixture.offer(Input::Barrier(VolumeIndex(1), Ok(())));
        assert!(matches!(asked[0], Output::Prepare { epoch: 6, .. }), "{asked:?}");
    });
}

#[test]
fn a_refused_prepare_releases_every_barrier_and_names_the_replica() {
    with_two_volumes(|mut fixture, first, second| {
        prepare_both(&mut fixture, first, second);
        fixture.offer(Input::Prepared(first, Ok(())));
        let outputs = fixture.offer(Input::Prepared(second, Err(Refused::Missing)));
        let failure = Failure { refused: Refused::Missing, member: Some(second), volume: None };
        assert_eq!(outputs[0], Output::Missing(second));
        assert_eq!(outputs[1..3], released(false));
        assert_eq!(outputs[3..], [Output::Answer(COMMAND, Err(failure))]);
        assert_eq!(fixture.0.handle_input(NOW, Input::Prepared(first, Ok(()))), Err(Refused::Stale));
    });
}

#[test]
fn one_that_has_taken_over_is_behind_from_its_refusal_on() {
    with_two_volumes(|mut fixture, first, second| {
        prepare_both(&mut fixture, first, second);
        let outputs = fixture.offer(Input::Prepared(first, Err(Refused::TakenOver)));
        assert_eq!(outputs[0], Output::Missing(first));
    });
}

#[test]
fn after_any_refusal_the_epoch_is_asked_for_anew() {
    with_two_volumes(|mut fixture, first, second| {
        prepare_both(&mut fixture, first, second);
        fixture.offer(Input::Prepared(first, Err(Refused::Failed)));
        for volume in [VolumeIndex(0), VolumeIndex(1)] {
            fixture.0.enrol(volume, true).unwrap();
        }
        fixture.offer(Input::Begin { command: COMMAND, is_urgent: false });
        fixture.offer(Input::Barrier(VolumeIndex(0), Ok(())));
        let asked = fixture.offer(Input::Barrier(VolumeIndex(1), Ok(())));
        assert_eq!(asked, [Output::AskEpoch(first), Output::AskEpoch(second)]);
    });
}

#[test]
fn a_commit_without_an_answer_is_asked_about_before_the_next_checkpoint() {
    with_two_volumes(|mut fixture, first, second| {
        prepare_both(&mut fixture, first, second);
        fixture.offer(Input::Prepared(first, Ok(())));
        fixture.offer(Input::Prepared(second, Ok(())));
        fixture.offer(Input::Committed(first, Ok(())));
        assert_eq!(fixture.0.poll_timeout(), Some(Micros::from_ms(100)));
        fixture.0.handle_timeout(Micros::from_ms(100));
        let outputs = fixture.outputs();
        assert_eq!(outputs[..2], released(false));
        assert!(matches!(outputs[2], Output::Answer(_, Err(Failure { refused: Refused::TimedOut, .. }))));

        for volume in [VolumeIndex(0), VolumeIndex(1)] {
            fixture.0.enrol(volume, true).unwrap();
        }
        fixture.offer(Input::Begin { command: COMMAND, is_urgent: false });
        fixture.offer(Input::Barrier(VolumeIndex(0), Ok(())));
        assert_eq!(fixture.offer(Input::Barrier(VolumeIndex(1), Ok(()))), [Output::AskEpoch(second)]);
    });
}

#[test]
fn a_replica_that_stays_current_or_falls_behind_after_the_decision_is_not_left_out() {
    with_two_volumes(|mut fixture, first, second| {
        prepare_both(&mut fixture, first, second);
        assert_eq!(fixture.offer(Input::Replica(first, ReplicaState::Current)), []);
        fixture.offer(Input::Prepared(first, Ok(())));
        let commit = |member| Output::Commit { member, epoch: 5, together: 2 };
        assert_eq!(fixture.offer(Input::Prepared(second, Ok(()))), [commit(first), commit(second)]);
        assert_eq!(
            fixture.offer(Input::Replica(first, ReplicaState::Behind)),
            [],
            "it has been told to commit"
        );
        assert_eq!(fixture.offer(Input::Committed(first, Ok(()))), []);
        assert_eq!(fixture.offer(Input::Committed(second, Ok(())))[2], Output::Answer(COMMAND, Ok(())));
    });
}

#[test]
fn a_late_answer_to_a_prepare_is_not_taken_for_that_to_the_next_one() {
    with_two_volumes(|mut fixture, first, second| {
        prepare_both(&mut fixture, first, second);
        fixture.offer(Input::Prepared(first, Err(Refused::Failed)));
        for volume in [VolumeIndex(0), VolumeIndex(1)] {
            fixture.0.enrol(volume, true).unwrap();
        }
        fixture.offer(Input::Begin { command: COMMAND, is_urgent: false });
        fixture.offer(Input::Barrier(VolumeIndex(0), Ok(())));
        let asked = fixture.offer(Input::Barrier(VolumeIndex(1), Ok(())));
        assert_eq!(asked, [Output::AskEpoch(first), Output::AskEpoch(second)]);
        let late = fixture.0.handle_input(NOW, Input::Prepared(second, Ok(())));
        assert_eq!(late, Err(Refused::Stale));
    });
}

#[test]
fn a_control_link_that_is_lost_after_the_prepare_leaves_the_epoch_that_is_committed() {
    with_two_volumes(|mut fixture, first, second| {
        prepare_both(&mut fixture, first, second);
        fixture.offer(Input::Prepared(first, Ok(())));
        fixture.0.forget_epoch(first);
        let commits = fixture.offer(Input::Prepared(second, Ok(())));
        assert_eq!(commits, [first, second].map(|member| Output::Commit { member, epoch: 5, together: 2 }));
        fixture.offer(Input::Committed(first, Ok(())));
        fixture.offer(Input::Committed(second, Ok(())));
        for volume in [VolumeIndex(0), VolumeIndex(1)] {
            fixture.0.enrol(volume, true).unwrap();
        }
        fixture.offer(Input::Begin { command: COMMAND, is_urgent: false });
        fixture.offer(Input::Barrier(VolumeIndex(0), Ok(())));
        assert_eq!(fixture.offer(Input::Barrier(VolumeIndex(1), Ok(())))[0], Output::AskEpoch(first));
    });
}

#[test]
fn a_barrier_that_waits_too_long_is_hurried_once_and_only_where_it_is_not_reached() {
    with_two_volumes(|mut fixture, first, second| {
        let outputs = fixture.offer(Input::Begin { command: COMMAND, is_urgent: false });
        assert_eq!(outputs.len(), 2);
        assert_eq!(fixture.offer(Input::Barrier(VolumeIndex(0), Ok(()))), []);
        let hurry_at = NOW.after(Micros(Micros::from_ms(100).0 / HURRY_SHARE));
        assert_eq!(fixture.0.poll_timeout(), Some(hurry_at));
        fixture.0.handle_timeout(hurry_at);
        assert_eq!(fixture.outputs(), [Output::Hurry(VolumeIndex(1))]);
        assert_eq!(fixture.0.poll_timeout(), Some(NOW.after(Micros::from_ms(100))), "then it fails");
        fixture.0.handle_timeout(hurry_at);
        assert_eq!(fixture.outputs(), []);
        let asked = fixture.offer(Input::Barrier(VolumeIndex(1), Ok(())));
        assert_eq!(asked, [Output::AskEpoch(first), Output::AskEpoch(second)]);
    });
}

#[test]
fn a_barrier_that_is_reached_before_the_hurry_is_passed_on_goes_on() {
    with_two_volumes(|mut fixture, first, second| {
        fixture.offer(Input::Begin { command: COMMAND, is_urgent: false });
        fixture.offer(Input::Barrier(VolumeIndex(0), Ok(())));
        fixture.0.handle_timeout(NOW.after(Micros::from_ms(50)));
        let asked = fixture.offer(Input::Barrier(VolumeIndex(1), Ok(())));
        assert_eq!(asked, [Output::AskEpoch(first), Output::AskEpoch(second)]);
    });
    with_two_volumes(|mut fixture, _, _| {
        fixture.offer(Input::Begin { command: COMMAND, is_urgent: false });
        fixture.0.handle_timeout(NOW.after(Micros::from_ms(100)));
        assert_eq!(fixture.outputs()[..2], released(false), "all of the time at once: it fails");
    });
}
