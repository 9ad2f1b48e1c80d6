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
fn a_flush_asks_the_replicas_that_are_reachable_while_it_runs() {
    let mut bench = Bench::running();
    bench.offer(Input::Disconnected(1)).unwrap();
    bench.request(Op::Flush, 0, 0);
    assert_eq!(bench.devices(), [Device::Disk, FIRST]);
    bench.ok(Device::Disk);
    bench.ok(FIRST);
    bench.command(Command::Stop).unwrap();
    bench.request(Op::Flush, 0, 0);
    assert_eq!(bench.devices(), [Device::Disk]);
}

#[test]
fn a_completion_of_a_device_that_there_is_not_is_refused_and_changes_nothing() {
    let mut bench = Bench::running();
    let id = bench.write(0, 512);
    let tag = bench.transfers[0].1.tag;
    for device in [Device::Buffer, Device::Replica(2), Device::Replica(32), Device::Replica(u8::MAX)] {
        let completion = Completion { tag, result: Ok(Outcome::Done) };
        assert_eq!(bench.offer(Input::Completed(device, completion)), Err(Refused::Stale), "{device:?}");
    }
    for device in [Device::Disk, FIRST, SECOND] {
        assert_eq!(bench.reply(id), None);
        bench.ok(device);
    }
    assert_eq!(bench.reply(id), DONE);
}

#[test]
fn a_place_keeps_what_it_misses_unless_it_was_never_used_or_another_replica_takes_it() {
    let granule = u64::from(GRANULE);
    let attach = |bench: &mut Bench, is_new| {
        bench.command(Command::Attach { replica: 0, is_empty: false, is_new }).unwrap();
        bench.dirty_bytes(0)
    };
    for is_new in [false, true] {
        let mut bench = Bench::new();
        bench.write(0, granule);
        assert_eq!(
            attach(&mut bench, is_new),
            granule,
            "it misses what was written since the disk was opened"
        );
        assert!(bench.is_behind(0));
    }
    let mut bench = Bench::new();
    assert_eq!(attach(&mut bench, false), 0);
    bench.command(Command::Detach { replica: 0 }).unwrap();
    bench.command(Command::Attach { replica: 0, is_empty: true, is_new: false }).unwrap();
    bench.command(Command::Detach { replica: 0 }).unwrap();
    assert_eq!(attach(&mut bench, false), SIZE, "it is the same, and still misses all");
    bench.command(Command::Detach { replica: 0 }).unwrap();
    assert_eq!(
        (attach(&mut bench, true), bench.is_behind(0)),
        (0, false),
        "another one, with the disk's content"
    );
}

#[test]
fn a_link_that_is_up_is_told_as_such() {
    let mut bench = Bench::running();
    let told = |bench: &Bench| [0, 1].map(|replica| bench.machine.replica(replica).unwrap().is_connected);
    assert_eq!(told(&bench), [true, true]);
    bench.offer(Input::Disconnected(0)).unwrap();
    assert_eq!(told(&bench), [false, true]);
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
fn the_first_error_of_a_kind_is_told_and_all_are_counted_until_the_next_start() {
    let mut bench = Bench::running();
    let told = |bench: &Bench| bench.events.iter().filter(|event| matches!(event, Event::Error(_))).count();
    for round in 1..=3 {
        bench.write(0, 512);
        bench.end(Device::Disk, IO);
        bench.ok(FIRST);
        bench.ok(SECOND);
        assert_eq!((bench.machine.errors().count(ErrorKind::PrimaryDisk), told(&bench)), (round, 1));
    }
    bench.command(Command::Stop).unwrap();
    bench.command(Command::Start { primary: true }).unwrap();
    assert_eq!(bench.machine.errors().count(ErrorKind::PrimaryDisk), 0);
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
