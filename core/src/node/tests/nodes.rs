//! Nodes take part whole or not at all.

use super::*;

/// Two volumes, each with a replica on either of two nodes: by node, then by volume.
fn with_two_nodes(test: impl FnOnce(Fixture<'_>, [[MemberIndex; 2]; 2])) {
    let (mut volumes, mut members) = ([Volume::FREE; 2], [Member::FREE; 4]);
    let mut coordinator = Coordinator::new(&mut volumes, &mut members, Micros::from_ms(100));
    let nodes = [0, 1].map(|node| {
        [0, 1].map(|volume| coordinator.add_member(VolumeIndex(volume), NodeIndex(node)).unwrap())
    });
    let mut fixture = Fixture(coordinator);
    for member in nodes.into_iter().flatten() {
        fixture.offer(Input::Replica(member, ReplicaState::Current));
    }
    test(fixture, nodes);
}

impl Fixture<'_> {
    /// Both volumes stand still.
    fn begin_both(&mut self) -> Vec<Output> {
        for volume in [VolumeIndex(0), VolumeIndex(1)] {
            self.0.enrol(volume, true).unwrap();
        }
        self.offer(Input::Begin { command: COMMAND, is_urgent: false });
        self.offer(Input::Barrier(VolumeIndex(0), Ok(())));
        self.offer(Input::Barrier(VolumeIndex(1), Ok(())))
    }

    /// What comes of it when these have been asked for their epoch, and it is 5 everywhere.
    fn tell_epochs(&mut self, members: &[MemberIndex]) -> Vec<Output> {
        let answers = members.iter().map(|member| Input::Epoch(*member, Ok(5)));
        answers.flat_map(|answer| self.offer(answer)).collect()
    }
}

fn left_out(node: [MemberIndex; 2]) -> [Output; 2] {
    node.map(Output::LeftOut)
}

fn prepares(node: [MemberIndex; 2]) -> [Output; 2] {
    node.map(|member| Output::Prepare { member, epoch: 5 })
}

fn commits(node: [MemberIndex; 2]) -> [Output; 2] {
    node.map(|member| Output::Commit { member, epoch: 5, together: 2 })
}

fn no_replica_of(volume: u16) -> Output {
    let volume = Some(VolumeIndex(volume));
    Output::Answer(COMMAND, Err(Failure { refused: Refused::NoReplica, member: None, volume }))
}

#[test]
fn a_replica_that_is_behind_is_left_out_and_with_none_left_there_is_no_checkpoint() {
    with_two_nodes(|mut fixture, [here, there]| {
        fixture.offer(Input::Replica(here[1], ReplicaState::Behind));
        let outputs = fixture.begin_both();
        assert_eq!(outputs[..2], left_out(here), "its whole node");
        assert_eq!(outputs[2..], there.map(Output::AskEpoch));
        assert_eq!(fixture.tell_epochs(&there), prepares(there));
        fixture.offer(Input::Prepared(there[0], Ok(())));
        assert_eq!(fixture.offer(Input::Prepared(there[1], Ok(()))), commits(there));
        fixture.offer(Input::Committed(there[0], Ok(())));
        let outputs = fixture.offer(Input::Committed(there[1], Ok(())));
        assert_eq!(outputs[2], Output::Answer(COMMAND, Ok(())));

        // Each volume has one that is current, and no node has both.
        fixture.offer(Input::Replica(there[0], ReplicaState::Disconnected));
        let outputs = fixture.begin_both();
        assert_eq!((&outputs[..2], &outputs[2..4]), (&left_out(here)[..], &left_out(there)[..]));
        assert_eq!((&outputs[4..6], outputs[6]), (&released(false)[..], no_replica_of(0)));
    });
}

#[test]
fn while_one_volumes_only_replica_is_behind_no_other_volume_takes_a_checkpoint() {
    for gone in [ReplicaState::Behind, ReplicaState::Disconnected] {
        with_two_volumes(|mut fixture, first, second| {
            fixture.offer(Input::Replica(second, gone));
            let outputs = fixture.begin_both();
            assert_eq!(outputs[..2], left_out([first, second]));
            assert_eq!((&outputs[2..4], outputs[4]), (&released(false)[..], no_replica_of(1)));
        });
    }
}

#[test]
fn a_volume_without_a_replica_left_ends_it_though_others_are_on_another_node() {
    with_two_nodes(|mut fixture, [here, there]| {
        fixture.0.remove_member(here[1]);
        fixture.0.remove_member(there[0]);
        fixture.offer(Input::Replica(there[1], ReplicaState::Behind));
        let outputs = fixture.begin_both();
        assert_eq!(outputs[0], Output::LeftOut(there[1]));
        assert_eq!((&outputs[1..3], outputs[3]), (&released(false)[..], no_replica_of(1)));
    });
}

#[test]
fn a_volume_that_takes_no_part_keeps_nobody_out() {
    with_two_volumes(|mut fixture, first, second| {
        fixture.offer(Input::Replica(second, ReplicaState::Behind));
        fixture.0.enrol(VolumeIndex(1), false).unwrap();
        fixture.offer(Input::Begin { command: COMMAND, is_urgent: false });
        assert_eq!(fixture.offer(Input::Barrier(VolumeIndex(0), Ok(()))), [Output::AskEpoch(first)]);
    });
}

#[test]
fn a_volume_without_replicas_is_in_nobodys_way() {
    with_two_volumes(|mut fixture, first, second| {
        fixture.0.remove_member(second);
        assert_eq!(fixture.begin_both(), [Output::AskEpoch(first)]);
    });
}

#[test]
fn a_replica_that_falls_behind_before_the_commit_is_left_out_of_the_checkpoint() {
    for gone in [ReplicaState::Behind, ReplicaState::Disconnected] {
        with_two_nodes(|mut fixture, [here, there]| {
            fixture.begin_both();
            fixture.tell_epochs(&[here, there].concat());
            for member in [here[0], here[1], there[0]] {
                assert_eq!(fixture.offer(Input::Prepared(member, Ok(()))), []);
            }
            let left = fixture.offer(Input::Replica(here[0], gone));
            assert_eq!(left, left_out(here), "also those that have prepared");
            assert_eq!(fixture.offer(Input::Prepared(there[1], Ok(()))), commits(there));
            fixture.offer(Input::Committed(there[0], Ok(())));
            let outputs = fixture.offer(Input::Committed(there[1], Ok(())));
            assert_eq!(outputs[2], Output::Answer(COMMAND, Ok(())));
        });
    }
}

#[test]
fn a_replica_that_falls_behind_while_its_epoch_is_asked_for_is_not_asked_to_prepare() {
    with_two_nodes(|mut fixture, [here, there]| {
        fixture.begin_both();
        assert_eq!(fixture.offer(Input::Replica(here[0], ReplicaState::Behind)), left_out(here));
        // It is back on a new connection, which says nothing of the old one.
        assert_eq!(fixture.offer(Input::Replica(here[0], ReplicaState::Current)), []);
        let late = fixture.0.handle_input(NOW, Input::Epoch(here[1], Ok(5)));
        assert_eq!(late, Err(Refused::Stale), "its node is out");
        assert_eq!(fixture.tell_epochs(&there), prepares(there));
    });
}

#[test]
fn who_was_asked_in_vain_as_its_node_left_is_asked_for_its_epoch_the_next_time() {
    with_two_nodes(|mut fixture, [here, there]| {
        fixture.begin_both();
        fixture.tell_epochs(&[here, there].concat());
        fixture.offer(Input::Prepared(here[0], Ok(())));
        fixture.offer(Input::Replica(here[0], ReplicaState::Behind));
        fixture.offer(Input::Prepared(there[0], Err(Refused::Failed)));
        fixture.offer(Input::Replica(here[0], ReplicaState::Current));
        let asked = fixture.begin_both();
        assert_eq!(asked, [here[1], there[0], there[1]].map(Output::AskEpoch), "the first has answered");
    });
}

#[test]
fn of_a_node_of_which_one_volume_has_not_prepared_none_commits() {
    for refused in [Refused::Missing, Refused::OtherClaim, Refused::TimedOut] {
        with_two_nodes(|mut fixture, [here, there]| {
            fixture.begin_both();
            fixture.tell_epochs(&[here, there].concat());
            for member in [here[0], there[0], there[1]] {
                fixture.offer(Input::Prepared(member, Ok(())));
            }
            let outputs = fixture.offer(Input::Prepared(here[1], Err(refused)));
            assert!(!outputs.iter().any(|output| matches!(output, Output::Commit { .. })), "{outputs:?}");
            let failure = Failure { refused, member: Some(here[1]), volume: None };
            assert_eq!(outputs.last(), Some(&Output::Answer(COMMAND, Err(failure))));
        });
    }
}

#[test]
fn a_checkpoint_that_everybody_has_left_fails() {
    with_two_volumes(|mut fixture, first, second| {
        prepare_both(&mut fixture, first, second);
        fixture.0.remove_member(second);
        let outputs = fixture.outputs();
        assert_eq!(outputs[..2], released(false));
        assert_eq!(outputs[2..], [no_replica_of(1)], "the first would go on alone");
    });
    with_two_volumes(|mut fixture, first, second| {
        prepare_both(&mut fixture, first, second);
        let outputs = fixture.offer(Input::Replica(first, ReplicaState::Disconnected));
        assert_eq!(outputs[..2], left_out([first, second]));
        assert_eq!((&outputs[2..4], outputs[4]), (&released(false)[..], no_replica_of(0)));
    });
}

#[test]
fn a_replica_that_is_detached_among_commits_does_not_end_them() {
    with_two_volumes(|mut fixture, first, second| {
        prepare_both(&mut fixture, first, second);
        fixture.offer(Input::Prepared(first, Ok(())));
        assert_eq!(fixture.offer(Input::Prepared(second, Ok(()))), commits([first, second]));
        fixture.0.remove_member(second);
        assert_eq!(fixture.outputs(), []);
        let outputs = fixture.offer(Input::Committed(first, Ok(())));
        assert_eq!(outputs[2], Output::Answer(COMMAND, Ok(())));
    });
}
