//! What each leg is asked, and what is remembered of it.

use std::assert_eq;

use super::*;

/// What the transfers under way would do.
fn actions(bench: &Bench) -> Vec<Action> {
    bench.transfers.iter().map(|(_, transfer)| transfer.action).collect()
}

#[test]
fn every_leg_is_asked_for_exactly_what_the_guest_asked() {
    let mut bench = Bench::running();
    for fua in [false, true] {
        bench.request(Op::Write { data: data(512), fua }, 0, 512);
        assert_eq!(actions(&bench), [Action::Write { data: data(512), fua }; 3]);
        for device in [Device::Disk, FIRST, SECOND] {
            assert_eq!(bench.ok(device).extent, Extent { offset: 0, length: 512 });
        }
        for (may_unmap, fast) in [(false, false), (true, false), (false, true)] {
            bench.request(Op::WriteZeroes { may_unmap, fast, fua }, 4096, 8192);
            assert_eq!(actions(&bench), [Action::WriteZeroes { may_unmap, fast, fua }; 3]);
            for device in [Device::Disk, FIRST, SECOND] {
                assert_eq!(bench.ok(device).extent, Extent { offset: 4096, length: 8192 });
            }
        }
    }
}

#[test]
fn transfers_under_way_are_counted_for_each_replica() {
    let mut bench = Bench::running();
    let in_flight = |bench: &Bench| [0, 1].map(|replica| bench.machine.replica(replica).unwrap().in_flight);
    bench.write(0, 512);
    bench.write(4096, 512);
    assert_eq!((in_flight(&bench), bench.machine.in_flight()), ([2, 2], 2));
    bench.ok(FIRST);
    bench.end(SECOND, IO);
    bench.ok(FIRST);
    assert_eq!(in_flight(&bench), [0, 1]);
    assert_eq!(bench.machine.size_bytes(), SIZE);
}

#[test]
fn an_event_is_told_when_a_replica_changes_its_state_and_not_twice() {
    let mut bench = Bench::new();
    let mut told = vec![];
    let mut offer = |bench: &mut Bench, input| {
        bench.machine.handle_input(NOW, input).unwrap();
        while let Some(output) = bench.machine.poll_output() {
            if let Output::Notice(Notice::Event(event)) = output {
                told.push(event);
            }
        }
    };
    let attach = Command::Attach { replica: 1, is_empty: false, is_new: true };
    offer(&mut bench, Input::Command(CommandId(1), attach));
    for input in [
        Input::Connected(1, geometry()),
        Input::Connected(1, geometry()),
        Input::Missing(1),
        Input::Missing(1),
        Input::Disconnected(1),
        Input::Connected(1, geometry()),
    ] {
        offer(&mut bench, input);
    }
    use crate::ReplicaState::{Behind, Current, Disconnected};
    let states = [Disconnected, Current, Behind, Disconnected, Behind];
    assert_eq!(told, states.map(|state| crate::Event::Replica(1, state)));
}
