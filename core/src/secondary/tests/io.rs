//! SEMANTICS.md, "Stages" and "Order and acknowledgement": requests of both ports in every stage.

use std::vec::Vec;
use std::{assert, assert_eq, vec};

use super::rig::{GRANULE, GUEST, NAME, PRIMARY, Rig, SIZE};
use crate::block::{Capabilities, Completion};
use crate::buffer::Spot;
use crate::secondary::{Command, Input, Port, WhenFull};
use crate::{
    ConnectionId, Device, Errno, ErrorKind, Extent, Op, Outcome, Refused, Request, RequestId, Stage,
};

const STAGES: [Stage; 5] = [Stage::None, Stage::Running, Stage::Failover, Stage::FailoverFailed, Stage::Done];
const DONE: super::rig::Result = Ok(Outcome::Done);

#[test]
fn the_primary_modifies_before_and_while_it_runs_and_never_again() {
    let outcome = |stage| Rig::in_stage(stage).written(PRIMARY, 2048, b"x");
    let shutdown = Err(Errno::Shutdown);
    let expected = [DONE, DONE, shutdown, shutdown, shutdown];
    assert_eq!(STAGES.map(outcome), expected);
}

#[test]
fn whoever_is_no_known_primary_reads_the_secondary_disk_in_every_stage() {
    for stage in STAGES {
        let mut rig = Rig::in_stage(stage);
        let anybody = ConnectionId(3);
        rig.open(anybody, Port::Replication, None);
        let disk = rig.disk[2048..2060].to_vec();
        assert_eq!(rig.read(anybody, 2048, 12), Ok(disk), "{stage:?}");
        let flush = rig.request(anybody, Op::Flush, 0, 0);
        rig.run();
        assert_eq!(rig.reply(flush), Some(DONE), "{stage:?}");
    }
}

#[test]
fn a_primary_that_is_followed_no_longer_can_neither_read_nor_flush() {
    for stage in STAGES {
        for connection in [PRIMARY, ConnectionId(3)] {
            let mut rig = Rig::in_stage(stage);
            if connection != PRIMARY {
                rig.open(connection, Port::Replication, Some(NAME));
            }
            let is_followed = matches!(stage, Stage::None | Stage::Running);
            let read = if is_followed { Ok(rig.disk[2048..2060].to_vec()) } else { Err(Errno::Shutdown) };
            assert_eq!(rig.read(connection, 2048, 12), read, "{stage:?}");
            let flush = rig.request(connection, Op::Flush, 0, 0);
            rig.run();
            let flushed = if is_followed { DONE } else { Err(Errno::Shutdown) };
            assert_eq!(rig.reply(flush), Some(flushed), "{stage:?}");
        }
    }
}

#[test]
fn a_read_that_waited_when_the_failover_began_is_refused_to_the_primary() {
    let mut rig = Rig::running();
    rig.write(PRIMARY, 600, b"new");
    let read = rig.request(PRIMARY, Op::Status, 512, 512);
    rig.command(Command::Stop { failover: true, force: false }).unwrap();
    rig.run();
    assert_eq!((rig.reply(read), rig.machine.stage()), (Some(Err(Errno::Shutdown)), Stage::Done));
}

#[test]
fn the_guest_is_served_in_every_stage_but_the_first() {
    for stage in STAGES {
        let mut rig = Rig::in_stage(stage);
        let (read, write) = (rig.read(GUEST, 0, 11), rig.written(GUEST, 4090, b"guest"));
        if stage == Stage::None {
            assert_eq!((read, write), (Err(Errno::Io), Err(Errno::Io)));
        } else {
            assert_eq!((read, write), (Ok(b"ddddddddddd".to_vec()), DONE), "{stage:?}");
            assert_eq!(rig.read(GUEST, 4089, 7).unwrap(), b"dguestd", "{stage:?}");
        }
    }
}

#[test]
fn before_the_start_the_primary_writes_straight_to_the_disk() {
    let mut rig = Rig::new();
    rig.write(PRIMARY, 100, b"copy");
    assert_eq!(rig.under_way(), [(Device::Disk, "write", 100, 4)]);
}

#[test]
fn old_content_is_read_and_stored_before_it_is_overwritten_and_that_before_the_reply() {
    let mut rig = Rig::running();
    let id = rig.write(PRIMARY, 600, b"new");
    assert_eq!(rig.under_way(), [(Device::Disk, "read", 512, 512)]);
    rig.complete(0, Ok(()));
    assert_eq!(rig.under_way(), [(Device::Buffer, "write", 0, 512)]);
    rig.complete(0, Ok(()));
    assert_eq!(rig.under_way(), [(Device::Disk, "write", 600, 3)]);
    assert_eq!(rig.reply(id), None);
    rig.complete(0, Ok(()));
    assert_eq!(rig.reply(id), Some(DONE));
    assert_eq!(rig.view(), vec![b'd'; SIZE as usize]);
}

#[test]
fn what_zeroes_and_trims_of_the_primary_replace_is_kept_too() {
    for may_unmap in [false, true] {
        let mut rig = Rig::running();
        let before = rig.view();
        let id = rig.request(PRIMARY, Op::WriteZeroes { may_unmap, fast: false, fua: false }, 100, 1000);
        rig.run();
        assert_eq!((rig.reply(id), &rig.disk[100..1100]), (Some(DONE), &[0; 1000][..]));
        assert_eq!(rig.view(), before);
    }
}

#[test]
fn a_granule_is_kept_once_in_an_epoch() {
    let mut rig = Rig::running();
    rig.written(PRIMARY, 600, b"first").unwrap();
    rig.write(PRIMARY, 512, b"second");
    assert_eq!(rig.under_way(), [(Device::Disk, "write", 512, 6)]);
}

#[test]
fn one_large_write_is_kept_by_one_read_and_one_store() {
    let mut rig = Rig::running();
    rig.write(PRIMARY, 100, &[b'n'; 1900]);
    assert_eq!(rig.under_way(), [(Device::Disk, "read", 0, 2048)]);
    rig.complete(0, Ok(()));
    assert_eq!(rig.under_way(), [(Device::Buffer, "write", 0, 2048)]);
    rig.complete(0, Ok(()));
    assert_eq!(rig.under_way(), [(Device::Disk, "write", 100, 1900)]);
}

#[test]
fn the_granule_at_the_end_of_the_disk_is_kept_as_far_as_it_goes() {
    let mut rig = Rig::running();
    rig.written(PRIMARY, SIZE - 3, b"end").unwrap();
    rig.written(GUEST, SIZE - 200, b"guest").unwrap();
    assert_eq!(rig.read(GUEST, SIZE - 200, 200).unwrap(), [&b"guest"[..], &[b'd'; 195]].concat());
    assert_eq!(&rig.disk[SIZE as usize - 3..], b"end");
}

#[test]
fn a_guest_write_that_covers_granules_reads_nothing_and_one_that_does_not_keeps_the_rest() {
    let mut rig = Rig::running();
    rig.write(GUEST, 512, &[b'g'; 1024]);
    assert_eq!(rig.under_way(), [(Device::Buffer, "write", 0, 1024)]);
    rig.run();
    rig.write(GUEST, 2048 + 10, b"part");
    assert_eq!(rig.under_way(), [(Device::Disk, "read", 2048, 512)]);
    rig.run();
    assert_eq!(rig.disk, vec![b'd'; SIZE as usize]);
    assert_eq!(rig.read(GUEST, 2048, 16).unwrap(), b"ddddddddddpartdd");
    assert_eq!(rig.read(GUEST, 500, 1050).unwrap(), [&[b'd'; 12][..], &[b'g'; 1024], &[b'd'; 14]].concat());
}

#[test]
fn zeroes_are_remembered_as_zeroes_and_take_no_slot() {
    let mut rig = Rig::running();
    let id = rig.zero(GUEST, 0, 2048);
    assert!(rig.queue.is_empty());
    assert_eq!(rig.reply(id), Some(DONE));
    assert_eq!(rig.machine.buffer().used_bytes(), 0);
    assert_eq!(rig.machine.buffer().find(Extent { offset: 0, length: 2048 }).spot, Spot::Zeroes);
    assert_eq!(rig.read(GUEST, 2032, 16).unwrap(), [0; 16]);
    rig.written(GUEST, 100, b"over").unwrap();
    assert_eq!(rig.read(GUEST, 98, 8).unwrap(), b"\0\0over\0\0");
}

#[test]
fn zeroes_that_the_guest_writes_over_a_slot_are_read_back() {
    let mut rig = Rig::running();
    rig.written(PRIMARY, 0, &[b'p'; 1024]).unwrap();
    rig.written(GUEST, 0, &[b'g'; 512]).unwrap();
    rig.zero(GUEST, 100, 800);
    rig.run();
    let expected = [&[b'g'; 100][..], &[0; 800], &[b'd'; 124]].concat();
    assert_eq!(rig.read(GUEST, 0, 1024).unwrap(), expected);
}

#[test]
fn holes_are_kept_as_holes_and_not_read() {
    let mut rig = Rig::with(WhenFull::Stall, Capabilities::STATUS);
    rig.disk[512..1536].fill(0);
    rig.start();
    let id = rig.write(PRIMARY, 512, &[b'n'; 1536]);
    assert_eq!(rig.under_way(), [(Device::Disk, "status", 512, 1536)]);
    rig.complete(0, Ok(()));
    assert_eq!(rig.under_way(), [(Device::Disk, "status", 1536, 512)]);
    rig.run();
    assert_eq!(rig.reply(id), Some(DONE));
    assert_eq!(rig.machine.buffer().used_bytes(), GRANULE);
    assert_eq!(rig.read(GUEST, 512, 1536).unwrap(), [&[0; 1024][..], &[b'd'; 512]].concat());
}

#[test]
fn a_hole_or_data_that_ends_within_a_granule_leaves_the_rest_of_it_right() {
    let mut rig = Rig::with(WhenFull::Stall, Capabilities::STATUS);
    rig.disk[512..1124].fill(0);
    rig.disk[1636..2048].fill(0);
    rig.disk[4096..].fill(0);
    let before = rig.disk.clone();
    rig.start();
    let id = rig.write(PRIMARY, 512, &[b'n'; 1536]);
    assert_eq!(rig.under_way(), [(Device::Disk, "status", 512, 1536)]);
    rig.complete(0, Ok(()));
    assert_eq!(rig.under_way(), [(Device::Disk, "status", 1024, 1024)], "one granule is a hole as a whole");
    rig.complete(0, Ok(()));
    assert_eq!(rig.under_way(), [(Device::Disk, "read", 1024, 512)], "the next one only at its start");
    rig.run();
    assert_eq!(rig.reply(id), Some(DONE));
    assert_eq!(rig.written(PRIMARY, 4096, b"end"), DONE);
    assert_eq!(
        rig.machine.buffer().used_bytes(),
        2 * GRANULE,
        "the end of the disk is a hole to its last byte"
    );
    assert_eq!(rig.view(), before);
}

#[test]
fn overlapping_requests_of_both_ports_go_one_after_the_other_and_others_side_by_side() {
    let mut rig = Rig::running();
    rig.written(GUEST, 0, &[b'g'; 512]).unwrap();
    let first = rig.write(PRIMARY, 0, b"aaaa");
    let second = rig.write(PRIMARY, 2, b"bbbb");
    let beside = rig.write(PRIMARY, 100, b"cccc");
    assert_eq!(rig.under_way(), [(Device::Disk, "write", 0, 4), (Device::Disk, "write", 100, 4)]);
    rig.complete(1, Ok(()));
    assert!(rig.reply(beside).is_some() && rig.reply(first).is_none() && rig.reply(second).is_none());
    rig.run();
    assert_eq!(&rig.disk[..6], b"aabbbb");
}

#[test]
fn two_writes_of_one_granule_that_do_not_overlap_keep_it_once() {
    let mut rig = Rig::running();
    rig.write(PRIMARY, 0, b"a");
    rig.write(PRIMARY, 10, b"b");
    rig.write(GUEST, 20, b"g");
    assert_eq!(rig.under_way(), [(Device::Disk, "read", 0, 512)], "one keeps, the others wait for it");
    rig.run();
    assert_eq!(rig.machine.buffer().used_bytes(), GRANULE);
    assert_eq!(rig.read(GUEST, 0, 21).unwrap(), b"ddddddddddddddddddddg");
}

#[test]
fn a_failed_keep_answers_the_primary_before_the_disk_is_written() {
    for step in 0..2 {
        let mut rig = Rig::running();
        let id = rig.write(PRIMARY, 0, b"new");
        for _ in 0..step {
            rig.complete(0, Ok(()));
        }
        rig.complete(0, Err(Errno::NoSpace));
        assert_eq!(rig.reply(id), Some(Err(Errno::NoSpace)));
        assert_eq!(rig.machine.errors().first(), Some(ErrorKind::CopyBeforeWrite));
        assert_eq!(rig.disk, vec![b'd'; SIZE as usize]);
        assert!(rig.queue.is_empty());
    }
}

#[test]
fn a_failed_write_through_leaves_the_view() {
    let mut rig = Rig::running();
    let id = rig.write(PRIMARY, 0, b"new");
    rig.complete(0, Ok(()));
    rig.complete(0, Ok(()));
    rig.complete(0, Err(Errno::Io));
    assert_eq!(rig.reply(id), Some(Err(Errno::Io)));
    assert_eq!(rig.machine.errors().first(), Some(ErrorKind::SecondaryDisk));
    assert_eq!(rig.view(), vec![b'd'; SIZE as usize]);
}

#[test]
fn a_failed_guest_write_leaves_the_view_and_is_no_fault_of_the_primary() {
    let mut rig = Rig::running();
    let id = rig.write(GUEST, 512, &[b'g'; 512]);
    rig.complete(0, Err(Errno::NoSpace));
    assert_eq!(
        rig.reply(id),
        Some(Err(Errno::Io)),
        "that the buffer's file system is full is not the guest's affair"
    );
    assert_eq!(rig.machine.errors().first(), Some(ErrorKind::Buffer));
    assert!(!rig.machine.is_behind());
    assert_eq!(rig.view(), vec![b'd'; SIZE as usize]);
}

#[test]
fn a_guest_that_finds_no_slot_gets_enospc_and_its_view_stays() {
    let mut rig = Rig::running();
    rig.written(GUEST, 0, &[b'g'; 1536]).unwrap();
    assert_eq!(rig.written(GUEST, 2048, &[b'h'; 1024]), Err(Errno::NoSpace));
    assert_eq!(rig.read(GUEST, 2048, 1024).unwrap(), [b'd'; 1024]);
    assert_eq!(rig.written(GUEST, 0, &[b'i'; 1536]), DONE, "what has slots can be written again");
}

#[test]
fn a_failed_flush_means_that_something_is_missing() {
    let mut rig = Rig::running();
    let id = rig.request(PRIMARY, Op::Flush, 0, 0);
    rig.complete(0, Err(Errno::Io));
    assert_eq!(rig.reply(id), Some(Err(Errno::Io)));
    assert!(rig.machine.is_behind());
}

#[test]
fn a_guest_flush_covers_the_buffer_and_once_it_may_be_there_the_disk() {
    let devices = |stage| {
        let mut rig = Rig::in_stage(stage);
        rig.queue.clear();
        rig.request(GUEST, Op::Flush, 0, 0);
        let mut devices: Vec<_> = rig.under_way().into_iter().map(|(device, ..)| device).collect();
        devices.dedup();
        devices
    };
    assert_eq!(devices(Stage::Running), [Device::Buffer]);
    assert_eq!(devices(Stage::FailoverFailed), [Device::Buffer, Device::Disk]);
    assert_eq!(devices(Stage::Done), [Device::Disk]);
}

#[test]
fn a_fast_zero_that_is_refused_is_no_error_of_the_disk() {
    let mut rig = Rig::new();
    let id = rig.request(PRIMARY, Op::WriteZeroes { may_unmap: false, fast: true, fua: false }, 0, 512);
    rig.complete(0, Err(Errno::Unsupported));
    assert_eq!(rig.reply(id), Some(Err(Errno::Unsupported)));
    assert_eq!(rig.machine.errors().first(), None);
}

#[test]
fn a_request_that_does_not_fit_is_refused_and_a_full_port_is_busy() {
    let mut rig = Rig::running();
    let zeroes = Op::WriteZeroes { may_unmap: true, fast: false, fua: false };
    let offer = |rig: &mut Rig, id, offset, length| {
        let request = Request::whole(RequestId(id), zeroes, Extent { offset, length });
        rig.offer(Input::Request(PRIMARY, request))
    };
    for (offset, length) in [(SIZE, 1), (SIZE - 1, 2), (u64::MAX, 1), (0, 0), (2047, 2), (0, 4096)] {
        assert_eq!(offer(&mut rig, 1, offset, length), Err(Refused::BadRequest), "{offset} {length}");
    }
    for id in 0..4 {
        assert_eq!(offer(&mut rig, id, 0, 512), Ok(()));
    }
    assert_eq!(offer(&mut rig, 5, 0, 512), Err(Refused::Busy));
    rig.zero(GUEST, 0, 512);
    rig.run();
    assert_eq!(offer(&mut rig, 6, 0, 512), Ok(()));
}

#[test]
fn a_promised_place_is_free_even_while_a_failover_commits() {
    let mut rig = Rig::running();
    for granule in 0..4 {
        rig.written(PRIMARY, granule * 1024, b"x").unwrap();
    }
    rig.command(Command::Stop { failover: true, force: false }).unwrap();
    for index in 0..4 {
        rig.write(GUEST, index, b"g");
        rig.request(PRIMARY, Op::Flush, 0, 0);
    }
    rig.run();
    assert_eq!(rig.machine.stage(), Stage::Done);
}

#[test]
fn zeroes_over_a_hole_are_in_the_order_of_granules_too() {
    let mut rig = Rig::with(WhenFull::Stall, Capabilities::STATUS);
    rig.disk[..512].fill(0);
    rig.start();
    rig.zero(PRIMARY, 0, 100);
    rig.complete(0, Ok(()));
    assert_eq!(rig.under_way(), [(Device::Disk, "zero", 0, 100)]);
    rig.write(GUEST, 200, b"g");
    let touched = rig.under_way().into_iter().filter(|(device, ..)| *device == Device::Disk).count();
    assert_eq!(touched, 1, "the granule is neither read nor asked about meanwhile");
    rig.run();
    assert_eq!(rig.read(GUEST, 199, 3).unwrap(), b"\0g\0");
}

#[test]
fn requests_are_whole_blocks_of_the_disk_and_of_the_buffer() {
    use crate::block::Geometry;
    use crate::buffer::index::{Index, Node};
    use crate::order::Slot;
    use crate::secondary::{Config, ConfigError, Connection, Port, Secondary, Storage};
    use crate::{BufferIndex, Data, Micros};

    let make = |disk_bytes| {
        let config = Config {
            granule_bytes: 4096,
            window_bytes: 4096,
            when_full: WhenFull::Stall,
            stall_max: Micros::from_ms(500),
            replication_requests: 1,
            guest_requests: 1,
            scratch_first: BufferIndex(0),
            scratch_count: 1,
        };
        let storage = Storage {
            table: vec![Slot::FREE; 3].leak(),
            nodes: vec![Node::EMPTY; Index::nodes_for(16)].leak(),
            connections: vec![Connection::FREE; 1].leak(),
        };
        let capabilities = Capabilities::FLUSH | Capabilities::WRITE_ZEROES;
        let disk = Geometry { size_bytes: disk_bytes, block_bytes: 1, capabilities };
        let buffer = Geometry { size_bytes: 65536, block_bytes: 512, capabilities };
        Secondary::new(config, disk, buffer, storage)
    };
    assert_eq!(make(8192 + 1).err(), Some(ConfigError::Disk), "its last block is none");
    let mut machine = make(8192).unwrap();
    assert_eq!(machine.block_bytes(), 512);
    let now = Micros(0);
    machine
        .handle_input(now, Input::Opened { connection: GUEST, port: Port::Guest, identity: None })
        .unwrap();
    let data = Data { buffer: BufferIndex(1), offset: 0, length: 100 };
    let read = Request::whole(RequestId(1), Op::Read(data), Extent { offset: 0, length: 100 });
    assert_eq!(machine.handle_input(now, Input::Request(GUEST, read)), Err(Refused::BadRequest));
}

#[test]
fn a_disk_that_says_nonsense_of_its_holes_is_not_believed() {
    for (said, told) in [(0, 1), (GRANULE, GRANULE), (u64::MAX, 2048)] {
        let mut rig = Rig::with(WhenFull::Stall, Capabilities::STATUS);
        rig.start();
        let id = rig.request(PRIMARY, Op::Status, 0, 2048);
        let (device, transfer) = rig.queue.pop_front().unwrap();
        let result = Ok(Outcome::Status { is_hole: true, length: said });
        rig.offer(Input::Completed(device, Completion { tag: transfer.tag, result })).unwrap();
        assert_eq!(rig.reply(id), Some(Ok(Outcome::Status { is_hole: true, length: told })), "{said}");
    }
}
