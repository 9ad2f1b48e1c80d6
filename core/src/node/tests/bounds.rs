//! Time-outs, answers that nothing was asked for, and who takes no part.

use super::*;

#[test]
fn a_checkpoint_is_given_up_when_its_time_has_come_and_not_before() {
    with_two_volumes(|mut fixture, first, second| {
        assert_eq!((fixture.0.is_busy(), fixture.0.poll_timeout()), (false, None));
        fixture.0.handle_timeout(Micros(u64::MAX));
        assert_eq!(fixture.outputs(), []);
        prepare_both(&mut fixture, first, second);
        assert!(fixture.0.is_busy());
        fixture.0.handle_timeout(Micros(99_999));
        assert_eq!(fixture.outputs(), []);
        fixture.0.handle_timeout(Micros(100_001));
        let failure = Failure { refused: Refused::TimedOut, member: None, volume: None };
        assert_eq!(fixture.outputs()[2..], [Output::Answer(COMMAND, Err(failure))]);
        assert_eq!((fixture.0.is_busy(), fixture.0.poll_timeout()), (false, None));
    });
}

#[test]
fn while_one_checkpoint_is_under_way_no_other_begins_and_no_volume_joins() {
    with_two_volumes(|mut fixture, first, second| {
        prepare_both(&mut fixture, first, second);
        let again = Input::Begin { command: CommandId(10), is_urgent: false };
        assert_eq!(fixture.0.handle_input(NOW, again), Err(Refused::InProgress));
        assert_eq!(fixture.0.enrol(VolumeIndex(0), false), Err(Refused::InProgress));
        for stale in [
            Input::Barrier(VolumeIndex(0), Ok(())),
            Input::Epoch(first, Ok(5)),
            Input::Committed(first, Ok(())),
            Input::Prepared(MemberIndex(9), Ok(())),
            Input::Replica(MemberIndex(9), ReplicaState::Behind),
        ] {
            assert_eq!(fixture.0.handle_input(NOW, stale), Err(Refused::Stale), "{stale:?}");
        }
        assert_eq!(fixture.offer(Input::Prepared(first, Ok(()))), []);
        let twice = fixture.0.handle_input(NOW, Input::Prepared(first, Ok(())));
        assert_eq!(twice, Err(Refused::Stale));
    });
}

#[test]
fn a_barrier_that_is_refused_ends_it_and_the_other_one_is_released() {
    with_two_volumes(|mut fixture, _, _| {
        let asked = fixture.offer(Input::Begin { command: COMMAND, is_urgent: true });
        let barrier = |volume| Output::Barrier { volume: VolumeIndex(volume), is_urgent: true };
        assert_eq!(asked, [barrier(0), barrier(1)]);
        assert_eq!(fixture.offer(Input::Barrier(VolumeIndex(0), Ok(()))), []);
        let twice = fixture.0.handle_input(NOW, Input::Barrier(VolumeIndex(0), Ok(())));
        assert_eq!(twice, Err(Refused::Stale));
        let outputs = fixture.offer(Input::Barrier(VolumeIndex(1), Err(Refused::NotRunning)));
        let volume = Some(VolumeIndex(1));
        let failure = Failure { refused: Refused::NotRunning, member: None, volume };
        assert_eq!(outputs, [released(false)[0], Output::Answer(COMMAND, Err(failure))]);
    });
}

#[test]
fn a_volume_that_takes_no_part_is_left_alone_and_so_are_its_replicas() {
    with_two_volumes(|mut fixture, first, _| {
        fixture.0.enrol(VolumeIndex(1), false).unwrap();
        assert_eq!(fixture.0.enrol(VolumeIndex(2), true), Err(Refused::NoRoom));
        let barrier = Output::Barrier { volume: VolumeIndex(0), is_urgent: false };
        assert_eq!(fixture.offer(Input::Begin { command: COMMAND, is_urgent: false }), [barrier]);
        assert_eq!(fixture.offer(Input::Barrier(VolumeIndex(0), Ok(()))), [Output::AskEpoch(first)]);
        assert_eq!(fixture.offer(Input::Epoch(first, Ok(5))), [Output::Prepare { member: first, epoch: 5 }]);
        assert_eq!(
            fixture.offer(Input::Prepared(first, Ok(()))),
            [Output::Commit { member: first, epoch: 5, together: 1 }]
        );
        let outputs = fixture.offer(Input::Committed(first, Ok(())));
        assert_eq!(outputs, [released(true)[0], Output::Answer(COMMAND, Ok(()))]);
    });
}

#[test]
fn without_known_replicas_the_barrier_is_all_there_is_to_do() {
    with_two_volumes(|mut fixture, first, second| {
        assert_eq!(fixture.0.add_member(VolumeIndex(0), NodeIndex(0)), Err(Refused::NoRoom));
        fixture.0.remove_member(first);
        fixture.0.remove_member(second);
        fixture.0.remove_member(MemberIndex(9));
        fixture.offer(Input::Begin { command: COMMAND, is_urgent: false });
        fixture.offer(Input::Barrier(VolumeIndex(0), Ok(())));
        let outputs = fixture.offer(Input::Barrier(VolumeIndex(1), Ok(())));
        assert_eq!(outputs[..2], released(true));
        assert_eq!(outputs[2..], [Output::Answer(COMMAND, Ok(()))]);
        assert_eq!(fixture.0.add_member(VolumeIndex(0), NodeIndex(0)), Ok(first), "its place is free again");
    });
}

#[test]
fn the_epoch_of_a_replica_whose_control_link_was_lost_is_asked_for_anew() {
    with_two_volumes(|mut fixture, first, second| {
        prepare_both(&mut fixture, first, second);
        for member in [first, second] {
            fixture.offer(Input::Prepared(member, Ok(())));
        }
        fixture.offer(Input::Committed(first, Ok(())));
        let outputs = fixture.offer(Input::Committed(second, Err(Refused::Missing)));
        assert_eq!(outputs[0], Output::Missing(second));
        let failure = Failure { refused: Refused::Missing, member: Some(second), volume: None };
        assert_eq!(outputs[3..], [Output::Answer(COMMAND, Err(failure))]);
        fixture.0.forget_epoch(first);
        for volume in [VolumeIndex(0), VolumeIndex(1)] {
            fixture.0.enrol(volume, true).unwrap();
        }
        fixture.offer(Input::Begin { command: COMMAND, is_urgent: false });
        fixture.offer(Input::Barrier(VolumeIndex(0), Ok(())));
        let asked = fixture.offer(Input::Barrier(VolumeIndex(1), Ok(())));
        assert_eq!(asked, [Output::AskEpoch(first), Output::AskEpoch(second)]);
    });
}
