use super::*;
use crate::nbd::testing::{Chance, Ram};
use crate::{Errno, Op, Outcome, RequestId};
use wire::command as code;

const NONE: CommandFlags = CommandFlags::empty();
const SIZE: u64 = 64 << 10;

fn disk() -> Export<'static> {
    Export { payload_max: 16 << 10, ..Export::new("disk", SIZE) }
}

fn write(cookie: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    let mut bytes = request(code::WRITE, NONE, cookie, offset, data.len() as u32);
    bytes.extend_from_slice(data);
    bytes
}

#[test]
fn every_command_is_answered_with_success() {
    for is_structured in [false, true] {
        let mut server = opened(Sizes::LARGE, disk(), is_structured);
        let fua = CommandFlags::FUA;
        let all = [
            write(1, 100, &[7; 9000]),
            request(code::FLUSH, NONE, 2, 0, 0),
            request(code::TRIM, fua, 3, 512, 1024),
            request(code::CACHE, NONE, 4, 0, 4096),
            request(code::WRITE_ZEROES, fua | CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO, 5, 0, 64),
            request(code::WRITE, fua, 6, 0, 0),
            request(code::TRIM, NONE, 7, SIZE, 0),
            request(code::READ, fua, 8, 5, 0),
        ];
        for (bytes, cookie) in all.iter().zip(1..) {
            let answers = answers(&server.talk(bytes), &[]);
            assert_eq!(answers.len(), 1);
            assert_eq!((answers[0].0, answers[0].1.error, answers[0].1.is_done), (cookie, 0, true));
        }
        assert_eq!(&server.ram.disk[100..512], [7; 412]);
        assert_eq!(&server.ram.disk[512..1536], [0; 1024]);
        let ops: Vec<Op> = server.ram.ran.iter().map(|request| request.op).skip(3).collect();
        let trim = Op::WriteZeroes { may_unmap: true, fast: false, fua: true };
        let zeroes = Op::WriteZeroes { may_unmap: false, fast: true, fua: true };
        assert_eq!(ops, [Op::Flush, trim, zeroes]);
        server.assert_idle();
    }
}

#[test]
fn a_read_is_answered_with_its_data() {
    for (is_structured, flags) in [(false, NONE), (true, NONE), (true, CommandFlags::DF)] {
        for sizes in [Sizes::SMALL, Sizes::LARGE] {
            let mut server = opened(sizes, disk(), is_structured);
            let bytes = server.talk(&request(code::READ, flags, 9, 300, 10_000));
            let answers = answers(&bytes, &[(9, 300, 10_000)]);
            assert_eq!(answers[0].1.whole(), server.ram.disk[300..10_300]);
            assert!(answers[0].1.is_done);
            let pieces = if sizes.window == 512 { 21 } else { 3 };
            let chunks = if is_structured && flags == NONE { pieces } else { usize::from(is_structured) };
            assert_eq!(answers[0].1.chunks, chunks);
            server.assert_idle();
        }
    }
}

#[test]
fn every_piece_of_a_write_is_forced_if_the_write_is() {
    for fua in [false, true] {
        let mut server = opened(Sizes::LARGE, disk(), true);
        let flags = if fua { CommandFlags::FUA } else { NONE };
        server.talk(&[request(code::WRITE, flags, 1, 0, 9000), vec![7; 9000]].concat());
        let forced = server.ram.ran.iter().map(|piece| matches!(piece.op, Op::Write { fua: true, .. }));
        assert_eq!(forced.collect::<Vec<_>>(), [fua; 3]);
    }
}

#[test]
fn a_long_request_is_cut_at_multiples_of_the_window() {
    let mut server = opened(Sizes::LARGE, disk(), true);
    for bytes in [request(code::READ, NONE, 1, 4000, 9000), write(1, 4000, &[1; 9000])] {
        server.ram.ran.clear();
        server.talk(&bytes);
        let pieces: Vec<_> =
            server.ram.ran.iter().map(|piece| (piece.extent, piece.is_first, piece.is_last)).collect();
        let expected = [
            (4000, 96, true, false),
            (4096, 4096, false, false),
            (8192, 4096, false, false),
            (12288, 712, false, true),
        ];
        let expected = expected.map(|(offset, length, first, last)| (Extent { offset, length }, first, last));
        assert_eq!(pieces, expected);
        let ids: Vec<u32> = server.ram.ran.iter().map(|piece| piece.id.0 >> 16).collect();
        assert_eq!(ids, [5; 4]);
    }
}

#[test]
fn what_is_wrong_is_answered_and_never_ends_the_connection() {
    use Errno::{Invalid, NoSpace, NotPermitted};
    let cases = |is_read_only: bool| {
        let denied = |errno| if is_read_only { NotPermitted } else { errno };
        [
            (code::READ, NONE, SIZE, 1, Invalid),
            (code::READ, NONE, SIZE - 512, 1024, Invalid),
            (code::READ, NONE, u64::MAX - 511, 1024, Invalid),
            (code::READ, NONE, 0, 17 << 10, Invalid),
            (code::READ, NONE, 1, 512, Invalid),
            (code::READ, NONE, 512, 511, Invalid),
            (code::READ, CommandFlags::NO_HOLE, 0, 512, Invalid),
            (code::READ, CommandFlags::from_bits_retain(0x8000), 0, 512, Invalid),
            (code::WRITE, NONE, SIZE, 512, denied(NoSpace)),
            (code::WRITE, NONE, u64::MAX, 512, denied(NoSpace)),
            (code::WRITE, NONE, 0, 17 << 10, denied(Invalid)),
            (code::WRITE, NONE, 3, 1, denied(Invalid)),
            (code::WRITE, CommandFlags::DF, 0, 512, Invalid),
            (code::WRITE, CommandFlags::from_bits_retain(0x20), 0, 512, Invalid),
            (code::WRITE_ZEROES, NONE, SIZE - 512, 1024, denied(NoSpace)),
            (code::WRITE_ZEROES, NONE, 0, u32::MAX, denied(NoSpace)),
            (code::TRIM, NONE, SIZE - 512, 1024, denied(Invalid)),
            (code::TRIM, CommandFlags::FAST_ZERO, 0, 512, Invalid),
            (code::CACHE, NONE, SIZE, 512, Invalid),
            (code::FLUSH, CommandFlags::REQ_ONE, 0, 0, Invalid),
            (8, NONE, 0, 0, Invalid),
            (u16::MAX, CommandFlags::all(), 0, u32::MAX, Invalid),
        ]
    };
    for is_structured in [false, true] {
        for is_read_only in [false, true] {
            let mut export = Export { block_min: 512, ..disk() };
            export.flags.set(TransmissionFlags::READ_ONLY, is_read_only);
            let mut server = opened(Sizes::SMALL, export, is_structured);
            for (command, flags, offset, length, errno) in cases(is_read_only) {
                let mut bytes = request(command, flags, 3, offset, length);
                if command == code::WRITE {
                    bytes.extend(vec![0x25; length as usize]);
                }
                let answer = answer(&server.talk(&bytes));
                assert_eq!(answer.error, errno.number(), "{command} {flags:?} {offset} {length}");
                assert_eq!(answer.text.is_empty(), !is_structured);
                server.assert_idle();
            }
            assert!(server.ram.ran.is_empty());
            assert_eq!(answer(&server.talk(&request(code::FLUSH, NONE, 1, 0, 0))).error, 0);
        }
    }
}

#[test]
fn what_was_not_offered_is_refused() {
    let export = Export { flags: TransmissionFlags::empty(), ..disk() };
    let mut server = opened(Sizes::SMALL, export, false);
    for (command, flags) in [
        (code::FLUSH, NONE),
        (code::TRIM, NONE),
        (code::CACHE, NONE),
        (code::WRITE_ZEROES, NONE),
        (code::BLOCK_STATUS, NONE),
        (code::READ, CommandFlags::FUA),
        (code::READ, CommandFlags::DF),
    ] {
        assert_eq!(answer(&server.talk(&request(command, flags, 1, 0, 0))).error, 22, "{command} {flags:?}");
    }
    assert!(server.ram.ran.is_empty());
}

#[test]
fn a_write_of_any_length_is_drained_before_it_is_refused() {
    let mut server = opened(Sizes::SMALL, Export::new("disk", 1 << 40), true);
    let length = (40 << 20) + 5;
    assert_eq!(server.talk(&request(code::WRITE, NONE, 1, 0, length)), b"");
    let payload = vec![0x25; 1 << 20];
    for _ in 0..40 {
        assert_eq!(server.talk(&payload), b"");
    }
    let mut bytes = vec![1; 5];
    bytes.extend(request(code::FLUSH, NONE, 2, 0, 0));
    let answers = answers(&server.talk(&bytes), &[]);
    assert_eq!((answers[0].0, answers[0].1.error, answers[1].0), (1, 22, 2));
}

#[test]
fn the_first_error_of_a_piece_is_the_error_of_its_request() {
    for is_structured in [false, true] {
        for command in [code::READ, code::WRITE, code::WRITE_ZEROES, code::TRIM] {
            for errno in [Errno::Io, Errno::NotPermitted, Errno::NoSpace, Errno::Shutdown] {
                let mut server = opened(Sizes::LARGE, disk(), is_structured);
                server.is_holding = true;
                let bytes = match command {
                    code::WRITE => write(1, 0, &[1; 16 << 10]),
                    _ => request(command, NONE, 1, 0, 16 << 10),
                };
                assert_eq!(server.talk(&bytes), b"");
                assert_eq!(server.held.len(), 4);
                server.ram.bad = Some((0, errno));
                server.answer(0);
                server.ram.bad = Some((5000, Errno::NoMemory));
                server.is_holding = false;
                let answer = answer(&server.talk(&[]));
                assert_eq!((answer.error, answer.is_done), (errno.number(), true));
                assert_eq!(!answer.text.is_empty(), is_structured);
                server.assert_idle();
            }
        }
    }
}

#[test]
fn a_read_that_fails_late_ends_the_connection_only_if_it_must() {
    for (is_structured, flags) in [(false, NONE), (true, NONE), (true, CommandFlags::DF)] {
        let mut server = opened(Sizes::LARGE, disk(), is_structured);
        server.ram.bad = Some((8192, Errno::Io));
        let bytes = server.talk(&request(code::READ, flags, 1, 0, 16 << 10));
        if is_structured && flags == NONE {
            let answer = answer(&bytes);
            assert_eq!((answer.error, answer.is_done), (5, true));
            assert_eq!(answer.whole(), server.ram.disk[..8192], "the rest was not sent");
        } else {
            assert_eq!(server.events.last(), Some(&ServerEvent::Closed { clean: false }));
        }
        server.session.abandon(&mut server.pool);
        server.assert_idle();
    }
}

#[test]
fn a_read_that_fails_before_anything_was_sent_is_answered() {
    for (is_structured, flags) in [(false, NONE), (true, NONE), (true, CommandFlags::DF)] {
        let mut server = opened(Sizes::LARGE, disk(), is_structured);
        server.is_holding = true;
        server.talk(&request(code::READ, flags, 1, 0, 16 << 10));
        server.ram.bad = Some((5000, Errno::Io));
        for which in [3, 1, 1, 0] {
            server.answer(which);
        }
        assert_eq!(answers(&server.talk(&[]), &[])[0].1.error, 5);
        server.assert_idle();
    }
}

#[test]
fn nothing_is_put_between_the_parts_of_a_reply_in_order() {
    let mut server = opened(Sizes::LARGE, disk(), false);
    server.is_holding = true;
    let mut bytes = request(code::READ, NONE, 1, 0, 8192);
    bytes.extend(request(code::FLUSH, NONE, 2, 0, 0));
    bytes.extend(request(code::READ, NONE, 3, 100, 10));
    bytes.extend(request(77, NONE, 4, 0, 0));
    let mut output = server.talk(&bytes);
    for which in [0, 1, 1, 0] {
        server.answer(which);
        output.extend(server.talk(&[]));
    }
    let answers = answers(&output, &[(1, 0, 8192), (3, 100, 10)]);
    let cookies: Vec<u64> = answers.iter().map(|answer| answer.0).collect();
    assert_eq!((&cookies[..2], cookies.len()), (&[4, 1][..], 4));
    assert_eq!(answers[1].1.whole(), server.ram.disk[..8192]);
    server.assert_idle();
}

#[test]
fn zeroes_of_four_gibibytes_go_in_bounded_pieces() {
    let export = Export { payload_max: 16 << 10, ..Export::new("disk", 1 << 40) };
    let sizes = Sizes::LARGE;
    let config = ServerConfig {
        zero_piece_bytes: 1 << 26,
        request_pieces_max: 3,
        ..ServerConfig::new(sizes.window, 5)
    };
    let mut server = Server::with(sizes, config, vec![export]);
    server.talk(&[]);
    server.talk(&FIXED);
    open(&mut server, true);
    server.is_holding = true;
    assert_eq!(server.talk(&request(code::WRITE_ZEROES, NONE, 1, 5, u32::MAX)), b"");
    let (mut pieces, mut at) = (0, 5);
    while let Some(piece) = (!server.held.is_empty()).then(|| server.held.remove(0)) {
        assert!(server.session.in_flight() <= 3);
        assert_eq!((piece.extent.offset, piece.is_first, piece.is_last), (at, pieces == 0, pieces == 64));
        assert!(piece.extent.length <= 1 << 26);
        (pieces, at) = (pieces + 1, piece.extent.end());
        server.session.handle_reply(Reply { id: piece.id, result: Ok(Outcome::Done) }, &mut server.pool);
        server.receive(&[]);
    }
    assert_eq!((pieces, at), (65, 5 + u64::from(u32::MAX)));
    assert_eq!(answer(&server.talk(&[])).error, 0);
}

#[test]
fn after_an_error_only_the_last_piece_follows() {
    let mut server = opened(Sizes::SMALL, disk(), true);
    server.ram.bad = Some((512, Errno::Unsupported));
    let bytes = request(code::WRITE_ZEROES, CommandFlags::FAST_ZERO, 1, 0, 32 << 10);
    assert_eq!(answer(&server.talk(&bytes)).error, 95);
    let pieces: Vec<_> = server.ram.ran.iter().map(|piece| (piece.extent.offset, piece.is_last)).collect();
    assert_eq!(pieces, [(0, false), (512, false), ((32 << 10) - 512, true)]);
}

#[test]
fn holes_are_told_from_data() {
    let mut server = opened(Sizes::SMALL, disk(), true);
    server.ram.disk.fill(1);
    server.ram.disk[700..3000].fill(0);
    let all = answer(&server.talk(&request(code::BLOCK_STATUS, NONE, 1, 100, 8000)));
    assert_eq!(all.extents, [(600, 0), (2300, 3), (5100, 0)]);
    let one = answer(&server.talk(&request(code::BLOCK_STATUS, CommandFlags::REQ_ONE, 1, 700, 8000)));
    assert_eq!(one.extents, [(2300, 3)]);
    assert!(server.ram.ran.iter().all(|piece| piece.is_first && piece.is_last && piece.op == Op::Status));
    for index in 0..100 {
        server.ram.disk[index * 2] = 0;
    }
    let many = answer(&server.talk(&request(code::BLOCK_STATUS, NONE, 1, 0, 8000)));
    assert_eq!(many.extents, [[(1, 3), (1, 0)]; 8].as_flattened());
    server.assert_idle();
}

#[test]
fn a_disk_that_cannot_tell_holes_is_all_data() {
    let mut server = opened(Sizes::SMALL, disk(), true);
    server.ram.has_status = false;
    let all = answer(&server.talk(&request(code::BLOCK_STATUS, NONE, 1, 100, 8000)));
    assert_eq!(all.extents, [(8000, 0)]);
}

#[test]
fn an_error_of_a_status_is_told_only_if_nothing_else_is_known() {
    let mut server = opened(Sizes::SMALL, disk(), true);
    server.ram.disk.fill(1);
    server.ram.bad = Some((1024, Errno::Io));
    let all = answer(&server.talk(&request(code::BLOCK_STATUS, NONE, 1, 0, 8000)));
    assert_eq!((all.error, all.extents), (0, vec![(1024, 0)]));
    assert_eq!(answer(&server.talk(&request(code::BLOCK_STATUS, NONE, 1, 1024, 8000))).error, 5);
}

#[test]
fn a_status_needs_its_context() {
    for contexts in [None, Some(context_data("disk", &["x:y"]))] {
        let mut server = greeted(Sizes::SMALL, vec![disk()]);
        server.talk(&option(wire::option::STRUCTURED_REPLY, &[]));
        if let Some(contexts) = contexts {
            server.talk(&option(wire::option::SET_META_CONTEXT, &contexts));
        }
        server.talk(&option(wire::option::GO, &info_data("disk", &[])));
        assert_eq!(answer(&server.talk(&request(code::BLOCK_STATUS, NONE, 1, 0, 512))).error, 22);
    }
}

#[test]
fn a_goodbye_is_clean_if_everything_was_answered() {
    let mut server = opened(Sizes::SMALL, disk(), true);
    server.talk(&write(1, 0, &[1; 512]));
    server.talk(&request(code::DISC, NONE, 0, 0, 0));
    assert_eq!(server.events.last(), Some(&ServerEvent::Closed { clean: true }));
}

#[test]
fn a_goodbye_answers_what_is_in_flight_first() {
    let mut server = opened(Sizes::SMALL, disk(), true);
    server.is_holding = true;
    server.talk(&write(1, 0, &[1; 512]));
    server.talk(&request(code::DISC, NONE, 0, 0, 0));
    assert!(server.session.is_leaving());
    assert!(!server.events.iter().any(|event| matches!(event, ServerEvent::Closed { .. })));
    server.answer(0);
    assert_eq!(answer(&server.talk(&[])).error, 0);
    assert_eq!(server.events.last(), Some(&ServerEvent::Closed { clean: false }));
    server.assert_idle();
}

#[test]
fn an_option_of_absurd_length_ends_the_connection() {
    let mut server = greeted(Sizes::SMALL, vec![disk()]);
    let mut header = option(wire::option::GO, &[]);
    header[12..].copy_from_slice(&u32::MAX.to_be_bytes());
    server.talk(&header);
    assert_eq!(server.events.last(), Some(&ServerEvent::Closed { clean: false }));
}

#[test]
fn a_session_lingers_until_its_pieces_are_replied() {
    let mut server = opened(Sizes::SMALL, disk(), true);
    server.is_holding = true;
    server.talk(&request(code::READ, NONE, 1, 0, 512));
    server.talk(&write(2, 0, &[1; 512]));
    server.receive(&write(3, 512, &[2; 512])[..300]);
    assert_eq!(server.pool.taken(), 3);
    server.session.abandon(&mut server.pool);
    assert_eq!((server.pool.taken(), server.session.in_flight()), (2, 2));
    assert_eq!(server.session.reset(), Err(Refused::Busy));
    assert_eq!(server.receive(&[1]), 0);
    let stale = server.held[0];
    server.answer(0);
    server.answer(0);
    server.assert_idle();
    assert!(!server.session.has_output());
    assert_eq!(server.session.reset(), Ok(()));
    server.session.handle_reply(Reply { id: stale.id, result: Ok(Outcome::Done) }, &mut server.pool);
    server.events.clear();
    assert_eq!(server.talk(&[]), b"NBDMAGICIHAVEOPT\0\x03");
    server.talk(&FIXED);
    open(&mut server, false);
    server.is_holding = false;
    assert_eq!(answer(&server.talk(&write(1, 0, &[1; 512]))).error, 0);
}

#[test]
fn a_reply_to_what_is_not_with_the_machine_does_nothing() {
    let mut server = opened(Sizes::SMALL, disk(), true);
    server.is_holding = true;
    server.talk(&write(1, 0, &[1; 512]));
    let id = server.held[0].id;
    for other in [id.0 + 1, id.0 ^ 1 << 16, 0, u32::MAX] {
        let reply = Reply { id: RequestId(other), result: Ok(Outcome::Done) };
        server.session.handle_reply(reply, &mut server.pool);
    }
    assert_eq!((server.session.in_flight(), server.session.has_output()), (1, false));
    server.answer(0);
    assert_eq!(answer(&server.talk(&[])).error, 0);
}

#[test]
fn a_payload_can_be_received_where_it_belongs() {
    let mut server = opened(Sizes::LARGE, disk(), true);
    server.receive(&request(code::WRITE, NONE, 1, 100, 5000));
    for (length, value) in [(3996, 1), (1004, 2)] {
        let data = server.session.receive_into().unwrap();
        assert_eq!(data.length, length);
        let half = data.part(0, length / 2);
        crate::Memory::bytes(&mut server.pool, half).unwrap().fill(value);
        server.session.received_into(length / 2);
        let rest = server.session.receive_into().unwrap();
        assert_eq!(rest, data.part(length / 2, length - length / 2));
        crate::Memory::bytes(&mut server.pool, rest).unwrap().fill(value);
        server.session.received_into(u32::MAX);
        assert_eq!(server.session.receive_into(), None, "the piece waits to be polled");
        server.receive(&[]);
    }
    assert_eq!(answer(&server.talk(&[])).error, 0);
    assert_eq!(server.ram.disk[100..4096], [1; 3996]);
    assert_eq!(server.ram.disk[4096..5100], [2; 1004]);
}

#[test]
fn many_small_replies_are_one_segment() {
    let mut server = opened(Sizes::LARGE, disk(), false);
    let bytes: Vec<u8> = (0..10).flat_map(|cookie| write(cookie, cookie * 100, &[1; 100])).collect();
    assert_eq!(server.receive(&bytes[..]), 128);
    let mut at = 128;
    while at < bytes.len() {
        at += server.receive(&bytes[at..]);
    }
    assert_eq!(server.session.segments().count(), 1);
    assert_eq!(server.session.segments().map(|segment| segment.length()).sum::<usize>(), 160);
}

/// Random requests in small memory, the machine answering in any order.
#[test]
fn every_request_is_answered_once_and_rightly_whatever_the_order() {
    for seed in 0..300 {
        let mut chance = Chance(seed);
        let is_structured = seed % 2 == 0;
        let sizes = if seed % 3 == 0 { Sizes::LARGE } else { Sizes::SMALL };
        let mut server = opened(sizes, disk(), is_structured);
        let (mut bytes, mut reads, mut expected) = (Vec::new(), Vec::new(), Vec::new());
        let mut model = Ram::new(SIZE as usize, 1).disk;
        // Each request has a region of its own, so that their order does not matter.
        for cookie in 1..40u64 {
            let offset = cookie * 1600 + chance.below(100);
            let length = 1 + chance.below(1500) as u32;
            let range = offset as usize..(offset + u64::from(length)) as usize;
            match chance.below(5) {
                0 | 1 => {
                    let flags = if is_structured && chance.below(2) == 0 { CommandFlags::DF } else { NONE };
                    bytes.extend(request(code::READ, flags, cookie, offset, length));
                    reads.push((cookie, offset, length));
                    expected.push((cookie, model[range].to_vec()));
                }
                2 => {
                    bytes.extend(write(cookie, offset, &vec![cookie as u8; length as usize]));
                    model[range].fill(cookie as u8);
                    expected.push((cookie, vec![]));
                }
                3 => {
                    bytes.extend(request(code::WRITE_ZEROES, NONE, cookie, offset, length));
                    model[range].fill(0);
                    expected.push((cookie, vec![]));
                }
                _ => {
                    bytes.extend(request(code::FLUSH, NONE, cookie, 0, 0));
                    expected.push((cookie, vec![]));
                }
            }
        }
        server.is_holding = true;
        let (mut output, mut at) = (Vec::new(), 0);
        for _ in 0..100_000 {
            let end = bytes.len().min(at + chance.below(2000) as usize);
            at += server.receive(&bytes[at..end]);
            if chance.below(2) == 0 && !server.held.is_empty() {
                server.answer(chance.below(server.held.len() as u64) as usize);
            }
            if chance.below(3) == 0 {
                output.extend(server.send(chance.below(3000) as usize));
            }
            if at == bytes.len() && server.session.unanswered() == 0 && !server.session.has_output() {
                break;
            }
        }
        let mut got: Vec<_> = answers(&output, &reads);
        assert!(got.iter().all(|(_, answer)| answer.is_done && answer.error == 0), "seed {seed}");
        got.sort_by_key(|answer| answer.0);
        let got: Vec<_> = got.into_iter().map(|(cookie, answer)| (cookie, answer.whole())).collect();
        assert_eq!(got, expected, "seed {seed}");
        assert!(server.ram.disk == model, "seed {seed}");
        server.assert_idle();
    }
}

#[test]
fn a_reply_in_order_is_begun_only_when_nothing_older_can_hold_it_up() {
    let mut server = opened(Sizes { buffers: 2, ..Sizes::LARGE }, disk(), false);
    server.is_holding = true;
    let mut bytes = request(code::READ, NONE, 1, 0, 10);
    bytes.extend(request(code::READ, NONE, 2, 4096, 3 * 4096));
    server.receive(&bytes);
    server.receive(&bytes[wire::REQUEST_BYTES..]);
    assert_eq!(server.held.len(), 2, "no third buffer");
    server.answer(1);
    assert!(!server.session.has_output(), "the older read may need its buffer longer than the pool can wait");
    server.answer(0);
    server.is_holding = false;
    let answers = answers(&server.talk(&[]), &[(1, 0, 10), (2, 4096, 3 * 4096)]);
    assert_eq!((answers[0].0, answers[1].0), (1, 2));
    assert_eq!(answers[1].1.whole(), server.ram.disk[4096..4 * 4096]);
    server.assert_idle();
}

#[test]
fn a_reply_to_a_piece_that_was_not_handed_out_does_nothing() {
    let mut server = opened(Sizes::SMALL, disk(), true);
    let bytes = write(1, 0, &[7; 512]);
    assert_eq!(server.receive(&bytes[..300]), 300);
    assert_eq!(server.pool.taken(), 1);
    for slot in 0..4 {
        let reply = Reply { id: RequestId(5 << 16 | slot), result: Ok(Outcome::Done) };
        server.session.handle_reply(reply, &mut server.pool);
    }
    assert_eq!(server.pool.taken(), 1);
    assert_eq!(answer(&server.talk(&bytes[300..])).error, 0);
    assert_eq!(server.ram.disk[..512], [7; 512]);
}

#[test]
fn a_second_status_waits_until_the_first_is_answered() {
    let mut server = opened(Sizes::LARGE, disk(), true);
    server.ram.disk.fill(1);
    server.ram.disk[..4096].fill(0);
    server.is_holding = true;
    // A read that must leave in one chunk keeps the way blocked.
    let mut bytes = request(code::READ, CommandFlags::DF, 9, 0, 8192);
    bytes.extend(request(code::BLOCK_STATUS, NONE, 1, 0, 4096));
    bytes.extend(request(code::BLOCK_STATUS, NONE, 2, 4096, 4096));
    let (mut output, mut at) = (Vec::new(), 0);
    for _ in 0..9 {
        at += server.receive(&bytes[at..]);
        if server.held.len() > 2 {
            server.answer(0);
            server.answer(1);
        }
        output.extend(server.send(usize::MAX));
    }
    server.is_holding = false;
    at += server.receive(&bytes[at..]);
    output.extend(server.talk(&bytes[at..]));
    let answers = answers(&output, &[]);
    assert_eq!(answers.len(), 3);
    for (cookie, answer) in answers.into_iter().filter(|answer| answer.0 != 9) {
        assert_eq!(answer.extents, [(4096, if cookie == 1 { 3 } else { 0 })]);
    }
}

#[test]
fn data_that_was_not_sent_is_released_with_the_connection() {
    for is_structured in [false, true] {
        let mut server = opened(Sizes::LARGE, disk(), is_structured);
        server.receive(&request(code::READ, NONE, 1, 0, 8192));
        server.send(100);
        assert_eq!(server.pool.taken(), 2);
        server.session.abandon(&mut server.pool);
        server.assert_idle();
        assert_eq!(server.session.reset(), Ok(()));
    }
}
