//! SEMANTICS.md, "Failover".

use std::{assert, assert_eq, vec};

use super::rig::{GUEST, PRIMARY, Rig, SIZE};
use crate::block::Capabilities;
use crate::secondary::{Command, Port, Progress, WhenFull};
use crate::{ConnectionId, Device, Errno, ErrorKind, Event, Op, Outcome, Stage};

const DONE: super::rig::Result = Ok(Outcome::Done);
const FAILOVER: Command = Command::Stop { failover: true, force: false };

/// The primary has overwritten three granules, the guest has written into one and zeroed another.
fn speculative() -> Rig {
    let mut rig = Rig::running();
    rig.written(PRIMARY, 0, &[b'p'; 1024]).unwrap();
    rig.written(PRIMARY, SIZE - 200, &[b'p'; 200]).unwrap();
    rig.written(GUEST, 520, b"guest").unwrap();
    rig.zero(GUEST, 2048, 512);
    rig
}

fn expected() -> std::vec::Vec<u8> {
    let mut view = vec![b'd'; SIZE as usize];
    view[520..525].copy_from_slice(b"guest");
    view[2048..2560].fill(0);
    view
}

#[test]
fn the_buffer_goes_to_the_disk_in_disk_order_and_neighbours_go_together() {
    let mut rig = speculative();
    rig.command(FAILOVER).unwrap();
    assert_eq!(rig.answers, [Ok(())]);
    let mut written = vec![];
    while !rig.queue.is_empty() {
        let (device, name, offset, length) = rig.under_way()[0];
        if device == Device::Disk {
            written.push((name, offset, length));
        }
        rig.complete(0, Ok(()));
    }
    assert_eq!(written, [("write", 0, 1024), ("zero", 2048, 512), ("write", 4096, 200), ("flush", 0, 0)]);
    assert_eq!(rig.machine.stage(), Stage::Done);
    assert_eq!(rig.disk, expected());
    assert_eq!(rig.view(), expected());
}

#[test]
fn the_view_is_the_same_at_every_moment_of_the_commit() {
    let mut rig = speculative();
    rig.command(FAILOVER).unwrap();
    for _ in 0..6 {
        rig.complete(0, Ok(()));
        let mut view = rig.disk.clone();
        for granule in 0..9 {
            let extent = crate::Extent::between(granule * 512, (granule * 512 + 512).min(SIZE));
            let place = extent.offset as usize..extent.end() as usize;
            match rig.machine.buffer().find(extent).spot {
                crate::buffer::Spot::Slot(at) => {
                    view[place].copy_from_slice(&rig.slots[at as usize..][..extent.length as usize]);
                }
                crate::buffer::Spot::Zeroes => view[place].fill(0),
                crate::buffer::Spot::Absent => {}
            }
        }
        assert_eq!(view, expected());
    }
}

#[test]
fn done_follows_the_flush_and_the_last_granule_of_an_uneven_disk() {
    let mut rig = speculative();
    rig.command(FAILOVER).unwrap();
    while rig.under_way() != [(Device::Disk, "flush", 0, 0)] {
        assert_eq!(rig.machine.stage(), Stage::Failover);
        rig.complete(0, Ok(()));
    }
    assert_eq!(rig.disk, expected());
    assert_eq!(rig.machine.stage(), Stage::Failover);
    rig.complete(0, Ok(()));
    assert_eq!(rig.machine.stage(), Stage::Done);
    let done = rig.events.iter().filter(|event| **event == Event::Stage(Stage::Done)).count();
    assert_eq!(done, 1);
}

#[test]
fn progress_is_counted_in_bytes_of_the_buffer() {
    let mut rig = speculative();
    rig.command(FAILOVER).unwrap();
    let total_bytes = 4 * 512;
    assert_eq!(rig.machine.progress(), Progress { total_bytes, done_bytes: 0 });
    rig.run();
    assert_eq!(rig.machine.progress(), Progress { total_bytes, done_bytes: total_bytes });
    assert!(rig.events.iter().any(|event| matches!(event, Event::CommitProgress { .. })));
}

#[test]
fn a_commit_that_failed_goes_on_from_where_it_stopped() {
    let mut rig = speculative();
    rig.command(FAILOVER).unwrap();
    // The first step reads what it can; its write fails.
    while rig.under_way()[0].1 != "write" {
        rig.complete(0, Ok(()));
    }
    rig.complete(0, Err(Errno::Io));
    rig.run();
    assert_eq!(rig.machine.stage(), Stage::FailoverFailed);
    assert_eq!(rig.machine.errors().first(), Some(ErrorKind::Commit));
    assert_eq!(rig.view(), expected());
    assert_eq!(rig.written(GUEST, 0, b"slot"), DONE);
    assert_eq!(rig.written(GUEST, 3000, b"disk"), DONE);
    assert_eq!(&rig.disk[3000..3004], b"disk");
    assert_eq!(rig.written(GUEST, 2100, b"over zeroes"), DONE);
    rig.answers.clear();
    assert_eq!(rig.outcome(FAILOVER), Ok(()));
    assert_eq!(rig.machine.stage(), Stage::Done);
    let mut expected = expected();
    expected[..4].copy_from_slice(b"slot");
    expected[3000..3004].copy_from_slice(b"disk");
    expected[2100..2111].copy_from_slice(b"over zeroes");
    assert_eq!(rig.disk, expected);
}

#[test]
fn a_flush_that_failed_is_tried_again() {
    let mut rig = speculative();
    rig.command(FAILOVER).unwrap();
    while rig.under_way()[0].1 != "flush" {
        rig.complete(0, Ok(()));
    }
    rig.complete(0, Err(Errno::Io));
    assert_eq!(rig.machine.stage(), Stage::FailoverFailed);
    rig.command(FAILOVER).unwrap();
    assert_eq!(rig.under_way(), [(Device::Disk, "flush", 0, 0)]);
    rig.run();
    assert_eq!((rig.machine.stage(), &rig.disk), (Stage::Done, &expected()));
}

#[test]
fn a_write_of_the_primary_in_flight_ends_first_and_is_rolled_back() {
    let mut rig = Rig::running();
    let keeping = rig.write(PRIMARY, 0, b"keeping");
    let through = rig.write(PRIMARY, 1024, b"through");
    rig.complete(1, Ok(()));
    rig.complete(1, Ok(()));
    assert_eq!(rig.under_way()[1], (Device::Disk, "write", 1024, 7));
    rig.command(FAILOVER).unwrap();
    rig.run();
    assert_eq!(rig.reply(keeping), Some(Err(Errno::Shutdown)));
    assert_eq!(rig.reply(through), Some(DONE));
    assert_eq!(rig.machine.stage(), Stage::Done);
    assert_eq!(rig.disk, vec![b'd'; SIZE as usize]);
}

#[test]
fn a_guest_write_in_flight_when_the_failover_begins_is_not_lost() {
    let mut rig = Rig::running();
    let id = rig.write(GUEST, 512, &[b'g'; 1024]);
    rig.command(FAILOVER).unwrap();
    rig.run();
    assert_eq!(rig.reply(id), Some(DONE));
    assert_eq!(rig.machine.stage(), Stage::Done);
    assert_eq!(&rig.disk[512..1536], [b'g'; 1024]);
}

#[test]
fn zeroes_are_written_out_for_the_guest_only_while_nobody_reads_beside_them_on_the_other_port() {
    let mut rig = Rig::running();
    rig.zero(GUEST, 2048, 512);
    rig.command(FAILOVER).unwrap();
    rig.complete(0, Err(Errno::Io));
    assert_eq!(rig.machine.stage(), Stage::FailoverFailed);
    let anybody = ConnectionId(3);
    rig.open(anybody, Port::Replication, None);
    let data = rig.place(4);
    rig.request(anybody, Op::Read(data), 2500, 4);
    rig.write(GUEST, 2048, b"g");
    assert_eq!(rig.under_way(), [(Device::Disk, "read", 2500, 4)]);
    rig.complete(0, Ok(()));
    assert_eq!(rig.under_way(), [(Device::Disk, "zero", 2048, 512)]);
    let data = rig.place(4);
    rig.request(anybody, Op::Read(data), 2500, 4);
    assert_eq!(rig.queue.len(), 1);
    rig.run();
    assert_eq!(rig.read(GUEST, 2048, 2).unwrap(), b"g\0");
}

#[test]
fn a_guest_request_and_a_step_of_the_commit_over_the_same_bytes_go_one_after_the_other() {
    let mut rig = speculative();
    rig.command(FAILOVER).unwrap();
    let copying = rig.under_way();
    assert_eq!(copying[0], (Device::Buffer, "read", 0, 1024));
    let write = rig.write(GUEST, 100, b"later");
    let data = rig.place(1024);
    let read = rig.request(GUEST, Op::Read(data), 0, 1024);
    assert_eq!(rig.under_way(), copying, "both wait for the copy");
    rig.run();
    assert_eq!((rig.reply(write), rig.reply(read)), (Some(DONE), Some(DONE)));
    assert_eq!(&rig.disk[100..105], b"later");
}

#[test]
fn a_guest_write_that_lands_behind_the_commit_is_committed_too() {
    let mut rig = Rig::running();
    rig.zero(GUEST, 4096, 200);
    let id = rig.write(GUEST, 512, &[b'g'; 512]);
    rig.command(FAILOVER).unwrap();
    while rig.queue.len() > 1 {
        rig.complete(1, Ok(()));
    }
    assert_eq!(rig.under_way()[0].0, Device::Buffer, "everything but the guest's write has ended");
    assert_eq!(rig.machine.stage(), Stage::Failover);
    rig.run();
    assert_eq!((rig.reply(id), rig.machine.stage()), (Some(DONE), Stage::Done));
    assert_eq!(&rig.disk[512..1024], [b'g'; 512]);
}

#[test]
fn a_step_of_the_commit_ends_with_its_window_and_the_flush_follows_the_last() {
    let mut rig = Rig::with_places(WhenFull::Stall, Capabilities::empty(), 12);
    rig.start();
    rig.zero(GUEST, 2048, 2048);
    rig.zero(GUEST, 4096, 200);
    rig.command(FAILOVER).unwrap();
    let steps = [(Device::Disk, "zero", 2048, 2048), (Device::Disk, "zero", 4096, 200)];
    assert_eq!(rig.under_way(), steps);
    rig.complete(0, Ok(()));
    assert_eq!(rig.under_way(), steps[1..], "nothing is flushed while a step is in flight");
    rig.complete(0, Ok(()));
    assert_eq!(rig.under_way(), [(Device::Disk, "flush", 0, 0)]);
}

#[test]
fn with_a_request_of_the_guest_in_flight_the_commit_goes_step_by_step() {
    let mut rig = Rig::with_places(WhenFull::Stall, Capabilities::empty(), 12);
    rig.start();
    rig.zero(GUEST, 2048, 2048);
    rig.zero(GUEST, 4096, 200);
    let data = rig.place(8);
    rig.request(GUEST, Op::Read(data), 0, 8);
    rig.command(FAILOVER).unwrap();
    let paced = [(Device::Disk, "read", 0, 8), (Device::Disk, "zero", 2048, 2048)];
    assert_eq!(rig.under_way(), paced);
}

#[test]
fn progress_is_told_once_for_each_step_on_even_if_what_a_guest_writes_takes_it_back() {
    let mut rig = Rig::running();
    rig.zero(GUEST, 0, 512);
    rig.zero(GUEST, 4096, 200);
    let id = rig.write(GUEST, 512, &[b'g'; 512]);
    rig.command(FAILOVER).unwrap();
    rig.events.clear();
    rig.run();
    assert_eq!((rig.reply(id), rig.machine.stage()), (Some(DONE), Stage::Done));
    let told: std::vec::Vec<_> =
        rig.events.iter().filter(|event| matches!(event, Event::CommitProgress { .. })).collect();
    let progress = |done_bytes| Event::CommitProgress { total_bytes: 1024, done_bytes };
    assert_eq!(told, [&progress(512), &progress(1024)]);
}

#[test]
fn a_write_of_the_primary_whose_keep_a_failover_ends_does_nothing_more() {
    let mut rig = Rig::running();
    rig.zero(GUEST, 512, 512);
    let keeping = rig.write(PRIMARY, 0, &[b'p'; 1024]);
    assert_eq!(rig.under_way(), [(Device::Disk, "read", 0, 512)]);
    rig.command(FAILOVER).unwrap();
    rig.complete(0, Ok(()));
    assert_eq!(rig.reply(keeping), Some(Err(Errno::Shutdown)));
}

#[test]
fn a_guest_write_over_zeroes_whose_edge_is_stored_when_the_failover_begins_is_not_lost() {
    let mut rig = Rig::running();
    rig.zero(GUEST, 0, 1024);
    let id = rig.write(GUEST, 0, &[b'g'; 1030]);
    rig.complete(0, Ok(()));
    assert_eq!(rig.under_way(), [(Device::Buffer, "write", 0, 512)], "the edge behind the zeroes");
    rig.command(FAILOVER).unwrap();
    rig.run();
    assert_eq!((rig.reply(id), rig.machine.stage()), (Some(DONE), Stage::Done));
    let mut expected = vec![b'd'; SIZE as usize];
    expected[..1030].fill(b'g');
    assert_eq!(rig.disk, expected);
}
