use super::*;
use wire::command as code;

/// Command, flags, offset and length.
type Asked = (u16, CommandFlags, u64, u32);

const NONE: CommandFlags = CommandFlags::empty();

fn fill(client: &mut Client, buffer: u16, length: u32, value: u8) {
    client.memory.bytes(data(buffer, length)).unwrap().fill(value);
}

/// Answers requests with success until the transfer completes; tells what was asked.
fn run(client: &mut Client, action: Action, place: Extent) -> (Vec<Asked>, Result<Outcome, Errno>) {
    client.submit(action, place);
    let mut asked = Vec::new();
    loop {
        if let Some(result) = client.result() {
            return (asked, result);
        }
        let (RequestHeader { command, flags, cookie, offset, length }, _) = client.request();
        asked.push((command, flags, offset, length));
        let mut reply = simple(0, cookie);
        if command == code::READ {
            reply.extend(vec![asked.len() as u8; length as usize]);
        }
        client.receive(&reply);
    }
}

#[test]
fn a_server_that_can_do_everything_is_asked_for_it() {
    let done = Ok(Outcome::Done);
    let fua = CommandFlags::FUA;
    let mut client = capable();
    let write = Action::Write { data: data(0, 512), fua: true };
    assert_eq!(run(&mut client, write, extent(7, 512)), (vec![(code::WRITE, fua, 7, 512)], done));
    let zeroes = Action::WriteZeroes { may_unmap: false, fast: true, fua: false };
    let flags = CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO;
    assert_eq!(
        run(&mut client, zeroes, extent(0, SIZE)),
        (vec![(code::WRITE_ZEROES, flags, 0, 1 << 20)], done)
    );
    let zeroes = Action::WriteZeroes { may_unmap: true, fast: false, fua: true };
    assert_eq!(run(&mut client, zeroes, extent(5, 6)), (vec![(code::WRITE_ZEROES, fua, 5, 6)], done));
    assert_eq!(run(&mut client, Action::Flush, extent(0, 0)), (vec![(code::FLUSH, NONE, 0, 0)], done));
    assert_eq!(client.session.modifications_sent(), 3);
}

#[test]
fn without_fua_a_flush_follows() {
    let mut client = ready(TransmissionFlags::SEND_FLUSH, false, 300);
    let write = Action::Write { data: data(0, 500), fua: true };
    let expected = [(code::WRITE, NONE, 0, 300), (code::WRITE, NONE, 300, 200), (code::FLUSH, NONE, 0, 0)];
    assert_eq!(run(&mut client, write, extent(0, 500)).0, expected);
    let write = Action::Write { data: data(0, 100), fua: false };
    assert_eq!(run(&mut client, write, extent(0, 100)).0, [(code::WRITE, NONE, 0, 100)]);
}

#[test]
fn without_flush_there_is_nothing_to_flush() {
    let mut client = ready(TransmissionFlags::empty(), false, 1 << 20);
    assert_eq!(run(&mut client, Action::Flush, extent(0, 0)), (vec![], Ok(Outcome::Done)));
    let write = Action::Write { data: data(0, 100), fua: true };
    assert_eq!(run(&mut client, write, extent(0, 100)).0, [(code::WRITE, NONE, 0, 100)]);
}

#[test]
fn without_write_zeroes_they_are_sent() {
    let mut client = ready(TransmissionFlags::SEND_FUA, false, 10_000);
    let zeroes = Action::WriteZeroes { may_unmap: true, fast: false, fua: true };
    let fua = CommandFlags::FUA;
    let expected =
        [(code::WRITE, fua, 9, 10_000), (code::WRITE, fua, 10_009, 10_000), (code::WRITE, fua, 20_009, 5)];
    assert_eq!(run(&mut client, zeroes, extent(9, 20_005)).0, expected);
    client.submit(zeroes, extent(0, 5000));
    assert_eq!(client.request().1, vec![0; 5000]);
}

#[test]
fn what_cannot_be_done_is_not_asked_for() {
    let fast = Action::WriteZeroes { may_unmap: true, fast: true, fua: false };
    let unsupported = (vec![], Err(Errno::Unsupported));
    for flags in
        [TransmissionFlags::empty(), TransmissionFlags::SEND_WRITE_ZEROES, TransmissionFlags::SEND_FAST_ZERO]
    {
        let mut client = ready(flags, false, 1 << 20);
        assert_eq!(run(&mut client, fast, extent(0, 512)), unsupported);
        assert_eq!(run(&mut client, Action::Status, extent(0, 512)), unsupported);
    }
    let invalid = (vec![], Err(Errno::Invalid));
    let mut client = capable();
    let read = |length| Action::Read(data(0, length));
    assert_eq!(run(&mut client, read(512), extent(SIZE - 511, 512)), invalid);
    assert_eq!(run(&mut client, read(512), extent(u64::MAX, 512)), invalid);
    assert_eq!(run(&mut client, read(511), extent(0, 512)), invalid);
    assert_eq!(run(&mut client, read(0), extent(5, 0)), (vec![], Ok(Outcome::Done)));
    let mut client = ready(TransmissionFlags::READ_ONLY, false, 1 << 20);
    let write = Action::Write { data: data(0, 512), fua: false };
    assert_eq!(run(&mut client, write, extent(0, 512)), (vec![], Err(Errno::NotPermitted)));
    let zeroes = Action::WriteZeroes { may_unmap: true, fast: false, fua: false };
    assert_eq!(run(&mut client, zeroes, extent(0, 512)), (vec![], Err(Errno::NotPermitted)));
}

#[test]
fn what_is_empty_is_done_at_once_and_what_does_not_fit_is_refused() {
    let mut client = capable();
    let mut at_once = |action, place| {
        client.submit(action, place);
        assert!(!client.session.has_output());
        client.result()
    };
    let done = Some(Ok(Outcome::Done));
    assert_eq!(at_once(Action::Read(data(0, 0)), extent(512, 0)), done);
    assert_eq!(at_once(Action::Write { data: data(0, 0), fua: false }, extent(512, 0)), done);
    let zeroes = Action::WriteZeroes { may_unmap: true, fast: false, fua: false };
    assert_eq!(at_once(zeroes, extent(512, 0)), done);
    let invalid = Some(Err(Errno::Invalid));
    assert_eq!(at_once(Action::Status, extent(512, 0)), invalid);
    assert_eq!(at_once(zeroes, extent(SIZE - 512, 1024)), invalid);
    assert_eq!(at_once(Action::Read(data(0, 511)), extent(0, 512)), invalid);
}

#[test]
fn blocks_that_are_cut_at_either_end_are_refused() {
    let mut client = going(true);
    client.talk(&info_export(SIZE, TransmissionFlags::HAS_FLAGS));
    client.talk(&info_blocks(512, 4096, 1 << 20));
    client.talk(&option_reply(option::GO, option_reply::ACK, &[]));
    for (offset, length) in [(256, 512), (512, 256), (256, 256)] {
        client.submit(Action::Read(data(0, length as u32)), extent(offset, length));
        assert_eq!(client.result(), Some(Err(Errno::Invalid)), "{offset} {length}");
    }
    // A flush names no bytes.
    client.submit(Action::Flush, extent(1, 1));
    assert_eq!(client.result(), Some(Ok(Outcome::Done)), "the server has none");
}

#[test]
fn zeroes_beyond_the_fields_width_are_split() {
    let mut client = going(true);
    let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_WRITE_ZEROES;
    client.talk(&info_export(1 << 40, flags));
    client.talk(&option_reply(option::GO, option_reply::ACK, &[]));
    let zeroes = Action::WriteZeroes { may_unmap: true, fast: false, fua: false };
    let (asked, _) = run(&mut client, zeroes, extent(512, (5 << 30) + 512));
    let expected = [
        (code::WRITE_ZEROES, NONE, 512, 1 << 31),
        (code::WRITE_ZEROES, NONE, 512 + (1 << 31), 1 << 31),
        (code::WRITE_ZEROES, NONE, 512 + (1 << 32), (1 << 30) + 512),
    ];
    assert_eq!(asked, expected);
}

#[test]
fn a_read_longer_than_the_servers_payload_is_split() {
    let mut client = ready(TransmissionFlags::empty(), false, 1000);
    let (asked, result) = run(&mut client, Action::Read(data(1, 2500)), extent(10, 2500));
    let expected =
        [(code::READ, NONE, 10, 1000), (code::READ, NONE, 1010, 1000), (code::READ, NONE, 2010, 500)];
    assert_eq!((asked, result), (expected.to_vec(), Ok(Outcome::Done)));
    let bytes = client.memory.bytes(data(1, 2500)).unwrap();
    assert_eq!((bytes[999], bytes[1000], bytes[2000], bytes[2499]), (1, 2, 3, 3));
}

#[test]
fn chunks_come_in_any_order_and_between_each_other() {
    let mut client = capable();
    fill(&mut client, 0, 1000, 9);
    client.submit(Action::Read(data(0, 1000)), extent(100, 1000));
    let (first, _) = client.request();
    client.submit(Action::Read(data(1, 10)), extent(0, 10));
    let (second, _) = client.request();
    client.receive(&data_chunk(false, first.cookie, 600, &[3; 500]));
    client.receive(&data_chunk(false, second.cookie, 4, &[5; 6]));
    client.receive(&hole_chunk(false, first.cookie, 300, 300));
    client.receive(&data_chunk(true, second.cookie, 0, &[4; 4]));
    assert_eq!(client.result(), Some(Ok(Outcome::Done)));
    client.receive(&data_chunk(false, first.cookie, 100, &[1; 200]));
    assert_eq!(client.result(), None);
    client.receive(&chunk(true, wire::chunk::NONE, first.cookie, &[]));
    assert_eq!(client.result(), Some(Ok(Outcome::Done)));
    let expected = [vec![1; 200], vec![0; 300], vec![3; 500]].concat();
    assert_eq!(client.memory.bytes(data(0, 1000)).unwrap(), expected);
    assert_eq!(client.memory.bytes(data(1, 10)).unwrap(), [4, 4, 4, 4, 5, 5, 5, 5, 5, 5]);
}

#[test]
fn a_payload_can_be_received_where_it_belongs() {
    let mut client = capable();
    client.submit(Action::Read(data(0, 1000)), extent(0, 1000));
    let (header, _) = client.request();
    let bytes = data_chunk(true, header.cookie, 0, &[1; 1000]);
    client.receive(&bytes[..28]);
    assert_eq!(client.session.receive_into(), Some(data(0, 1000)));
    client.memory.bytes(data(0, 600)).unwrap().fill(1);
    client.session.received_into(600);
    assert_eq!(client.session.receive_into(), Some(data(0, 1000).part(600, 400)));
    client.session.received_into(u32::MAX);
    assert_eq!((client.session.receive_into(), client.result()), (None, Some(Ok(Outcome::Done))));
}

#[test]
fn the_first_error_of_a_reply_is_the_transfers() {
    let mut client = capable();
    client.submit(Action::Read(data(0, 1000)), extent(0, 1000));
    let (header, _) = client.request();
    client.receive(&data_chunk(false, header.cookie, 0, &[1; 100]));
    client.receive(&error_chunk(false, header.cookie, 28, b"full"));
    let at = chunk(true, wire::chunk::ERROR_OFFSET, header.cookie, &[&[0, 0, 0, 5, 0, 2], b"no", &[0; 8]]);
    client.receive(&at);
    assert_eq!(client.result(), Some(Err(Errno::NoSpace)));
    client.submit(Action::Flush, extent(0, 0));
    let (header, _) = client.request();
    client.receive(&simple(4242, header.cookie));
    assert_eq!(client.result(), Some(Err(Errno::Invalid)));
    client.submit(Action::Flush, extent(0, 0));
    let (header, _) = client.request();
    client.receive(&chunk(true, 0x8123, header.cookie, &[&[0, 0, 0, 5, 0, 0, 7, 7]]));
    assert_eq!(client.result(), Some(Err(Errno::Io)), "an unknown error is an error");
}

#[test]
fn the_first_extent_of_the_allocation_is_the_status() {
    let mut client = capable();
    let status = |parts: &[u32]| parts.iter().flat_map(|part| part.to_be_bytes()).collect::<Vec<u8>>();
    for (flags, is_hole) in [(0, false), (1, false), (2, false), (3, true), (7, true)] {
        client.submit(Action::Status, extent(0, 1000));
        let (header, _) = client.request();
        assert_eq!((header.command, header.flags), (code::BLOCK_STATUS, CommandFlags::REQ_ONE));
        let other = status(&[8, 5, 1]);
        client.receive(&chunk(false, wire::chunk::BLOCK_STATUS, header.cookie, &[&other]));
        let ours = status(&[9, 600, flags, 400, 0]);
        client.receive(&chunk(true, wire::chunk::BLOCK_STATUS, header.cookie, &[&ours]));
        assert_eq!(client.result(), Some(Ok(Outcome::Status { is_hole, length: 600 })));
    }
    client.submit(Action::Status, extent(0, 1000));
    let (header, _) = client.request();
    client.receive(&chunk(true, wire::chunk::BLOCK_STATUS, header.cookie, &[&status(&[9, 1 << 30, 3])]));
    assert_eq!(client.result(), Some(Ok(Outcome::Status { is_hole: true, length: 1000 })));
}

#[test]
fn a_full_queue_takes_nothing_and_loses_nothing() {
    let mut client = capable();
    for number in 0..4 {
        let tag = Tag { entry: 7, generation: number };
        let transfer = Transfer { tag, action: Action::Flush, extent: extent(0, 0) };
        client.session.submit(transfer, Micros(u64::from(number) + 10)).unwrap();
        assert_eq!(client.session.submit(transfer, Micros(1)).is_err(), number == 3);
        if number == 3 {
            break;
        }
        // The second of each pair fits, so it is given up again by answering it.
        let bytes = client.output();
        let last = RequestHeader::decode(bytes[bytes.len() - 28..].first_chunk().unwrap()).unwrap();
        client.receive(&simple(0, last.cookie));
        assert_eq!(client.session.poll().unwrap().tag, tag);
    }
    assert_eq!((client.session.in_flight(), client.session.oldest_in_flight()), (4, Some(Micros(10))));
}

#[test]
fn transfers_wait_for_room_in_the_output() {
    let mut client = capable();
    client.session.fail_all(Errno::Io);
    let memory = ClientMemory {
        transfers: leak(TransferSlot::EMPTY, 40),
        output_bytes: leak(0, 264),
        output_entries: leak(OutputEntry::EMPTY, 4),
    };
    let small = Session::new(CONFIG, memory).unwrap();
    let mut client = Client { session: small, memory: client.memory };
    client.talk(&greeting());
    client.talk(&option_reply(option::STRUCTURED_REPLY, option_reply::ERR_UNSUP, &[]));
    client.talk(&info_export(SIZE, TransmissionFlags::HAS_FLAGS));
    client.talk(&option_reply(option::GO, option_reply::ACK, &[]));
    for number in 0..40 {
        client.submit(Action::Read(data(0, 1)), extent(number, 1));
    }
    let mut count = 0;
    while client.session.has_output() {
        count += client.output().len() / wire::REQUEST_BYTES;
    }
    assert_eq!(count, 40);
}

#[test]
fn an_answer_before_the_payload_was_sent_waits_for_it() {
    let mut client = capable();
    client.submit(Action::Write { data: data(0, 1000), fua: false }, extent(0, 1000));
    let bytes = take(client.session.segments(), 100, &mut client.memory);
    client.session.sent(100);
    let header = RequestHeader::decode(bytes.first_chunk().unwrap()).unwrap();
    client.receive(&simple(1, header.cookie));
    assert_eq!(client.result(), None, "the buffer is still to be sent from");
    client.output();
    assert_eq!(client.result(), Some(Err(Errno::NotPermitted)));
}

#[test]
fn goodbye_is_said_when_nothing_is_in_flight() {
    let mut client = capable();
    client.submit(Action::Flush, extent(0, 0));
    let (header, _) = client.request();
    client.session.disconnect();
    assert!(!client.session.has_output() && !client.session.is_ready());
    client.submit(Action::Flush, extent(0, 0));
    assert_eq!(client.result(), Some(Err(Errno::Io)), "too late");
    let (goodbye, _) = {
        client.receive(&simple(0, header.cookie));
        client.request()
    };
    assert_eq!((goodbye.command, goodbye.cookie, client.session.is_closed()), (code::DISC, 0, true));
    assert_eq!(client.result(), Some(Ok(Outcome::Done)));
    assert_eq!(client.session.reset(), Ok(()));
}

#[test]
fn goodbye_in_the_handshake_gives_the_option_up_once_there_is_one() {
    let mut client = Client::new(CONFIG);
    client.session.disconnect();
    assert!(client.session.is_closed() && !client.session.has_output(), "the server has not greeted");
    let mut client = going(true);
    client.session.disconnect();
    let abort = wire::OptionHeader { option: wire::option::ABORT, length: 0 };
    assert_eq!(client.output(), abort.encode());
    assert!(client.session.is_closed());
    client.session.disconnect();
    assert!(!client.session.has_output(), "once");
}

#[test]
fn a_lost_connection_completes_everything_once() {
    let mut client = capable();
    client.submit(Action::Write { data: data(0, 1000), fua: false }, extent(0, 1000));
    client.submit(Action::Read(data(1, 1000)), extent(0, 1000));
    client.session.fail_all(Errno::Shutdown);
    client.submit(Action::Flush, extent(0, 0));
    let mut results: Vec<_> = core::iter::from_fn(|| client.result()).collect();
    results.sort_by_key(|result| result.map_err(Errno::number).err());
    assert_eq!(results, [Err(Errno::Io), Err(Errno::Shutdown), Err(Errno::Shutdown)]);
    assert_eq!((client.session.in_flight(), client.session.oldest_in_flight()), (0, None));
    assert!(!client.session.has_output());
}

#[test]
fn a_split_write_waits_for_each_payload_to_be_sent() {
    let mut client = ready(TransmissionFlags::empty(), false, 300);
    client.submit(Action::Write { data: data(0, 500), fua: false }, extent(0, 500));
    for (length, is_last) in [(300, false), (200, true)] {
        let bytes = take(client.session.segments(), 100, &mut client.memory);
        client.session.sent(100);
        let header = RequestHeader::decode(bytes.first_chunk().unwrap()).unwrap();
        assert_eq!(header.length, length);
        client.receive(&simple(0, header.cookie));
        let left: usize = client.session.segments().map(|segment| segment.length()).sum();
        assert_eq!(left, wire::REQUEST_BYTES + length as usize - 100, "nothing else of it is queued");
        assert_eq!(client.result(), None);
        client.session.sent(left);
        assert_eq!(client.result().is_some(), is_last);
    }
}

#[test]
fn parts_of_a_read_are_told_apart() {
    use super::super::transfers::{BadPart, Parts};
    let mut parts = Parts::default();
    for (start, end) in [(10, 20), (40, 50), (20, 30), (35, 40)] {
        assert_eq!(parts.add(start, end), Ok(()));
    }
    for (start, end) in [(29, 31), (31, 36), (0, 11), (45, 46), (0, 100), (10, 20)] {
        assert_eq!(parts.add(start, end), Err(BadPart::Overlaps), "{start}..{end}");
    }
    assert_eq!((parts.add(30, 35), parts.add(0, 10), parts.is_whole(50)), (Ok(()), Ok(()), true));
    assert!(!parts.is_whole(51));
}
