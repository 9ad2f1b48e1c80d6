//! When there is little room, and what is free again afterwards.

use super::*;
use crate::{Errno, RequestId};
use wire::command as code;

const NONE: CommandFlags = CommandFlags::empty();

fn disk() -> Export<'static> {
    Export { payload_max: 16 << 10, ..Export::new("disk", 64 << 10) }
}

/// What the client has left to take.
fn waiting_bytes(server: &Server) -> usize {
    server.session.segments().map(|segment| segment.length()).sum()
}

/// How many pieces the machine can get at a time.
fn pieces_at_a_time(server: &mut Server) -> usize {
    server.is_holding = true;
    let bytes: Vec<u8> = (0..9).flat_map(|at| request(code::TRIM, NONE, at, at * 512, 512)).collect();
    let mut taken = 0;
    for _ in 0..9 {
        taken += server.receive(&bytes[taken..]);
    }
    server.held.len()
}

#[test]
fn what_was_being_received_takes_no_room_from_the_next_connection() {
    let sizes = Sizes { requests: 8, ..Sizes::SMALL };
    let mut server = opened(sizes, disk(), true);
    for _ in 0..5 {
        server.receive(&request(code::WRITE, NONE, 1, 0, 512));
        assert_eq!(server.receive(&[1; 300]), 300);
        server.session.abandon(&mut server.pool);
        assert_eq!(server.session.reset(), Ok(()));
        server.events.clear();
        server.talk(&[]);
        server.talk(&FIXED);
        open(&mut server, true);
    }
    assert_eq!(pieces_at_a_time(&mut server), sizes.pieces);
}

#[test]
fn data_that_waited_when_its_read_failed_takes_no_room_any_more() {
    let sizes = Sizes { requests: 8, buffers: 8, ..Sizes::SMALL };
    for flags in [NONE, CommandFlags::DF] {
        let mut server = opened(sizes, disk(), true);
        server.is_holding = true;
        // Two answers fill the output, so that the first piece of the third read waits there.
        let reads = [(1, 0, 512), (2, 512, 512), (3, 1024, 1024)];
        let bytes: Vec<u8> = reads
            .iter()
            .flat_map(|(cookie, at, length)| request(code::READ, flags, *cookie, *at, *length))
            .collect();
        let mut taken = 0;
        for _ in 0..4 {
            taken += server.receive(&bytes[taken..]);
        }
        server.answer(0);
        server.answer(0);
        server.receive(&[]);
        server.answer(0);
        server.receive(&[]);
        server.ram.bad = Some((1536, Errno::Io));
        assert_eq!(server.held.len(), 1);
        server.answer(0);
        let heard = answers(&server.talk(&[]), &[]);
        assert_eq!(
            heard.iter().map(|answer| (answer.0, answer.1.error)).collect::<Vec<_>>(),
            [(1, 0), (2, 0), (3, 5)]
        );
        server.assert_idle();
        assert_eq!(pieces_at_a_time(&mut server), sizes.pieces);
    }
}

#[test]
fn data_goes_into_what_room_there_is_for_its_header_and_into_no_less() {
    for flags in [NONE, CommandFlags::DF] {
        let sizes = Sizes { output_bytes: 512, window: 512, ..Sizes::LARGE };
        let mut server = opened(sizes, disk(), true);
        // Of 512 bytes these leave 160: five headers of 28, and 20 that are too few for another.
        for cookie in 0..22 {
            server.receive(&request(code::FLUSH, NONE, cookie, 0, 0));
        }
        assert_eq!(waiting_bytes(&server), 22 * 16);
        for cookie in 22..29 {
            server.receive(&request(code::READ, flags, cookie, cookie * 512, 512));
        }
        assert_eq!(waiting_bytes(&server), 22 * 16 + 5 * (28 + 512));
        let heard = answers(&server.talk(&[]), &[]);
        assert_eq!(heard.len(), 29);
        for (cookie, answer) in heard.into_iter().filter(|answer| answer.0 >= 22) {
            assert_eq!(
                answer.data,
                [(cookie * 512, server.ram.disk[cookie as usize * 512..][..512].to_vec())]
            );
        }
        server.assert_idle();
    }
}

#[test]
fn a_status_looks_at_so_many_windows_and_no_further() {
    let mut server = opened(Sizes::SMALL, Export::new("disk", 1 << 20), true);
    server.ram.disk.fill(1);
    let status = request(code::BLOCK_STATUS, NONE, 1, 0, 1 << 20);
    assert_eq!(answer(&server.talk(&status)).extents, [(256 * 512, 0)]);
    server.ram.disk[255 * 512..].fill(0);
    assert_eq!(answer(&server.talk(&status)).extents, [(255 * 512, 0), (512, 3)]);
}

#[test]
fn a_flush_has_no_place() {
    let mut server = opened(Sizes::SMALL, disk(), true);
    assert_eq!(answer(&server.talk(&request(code::FLUSH, NONE, 1, 1 << 40, 5))).error, 0);
    assert_eq!((server.ram.ran.len(), server.ram.ran[0].extent), (1, Extent::default()));
    assert!(server.ram.ran[0].is_first && server.ram.ran[0].is_last);
}

#[test]
fn an_empty_read_is_answered_in_the_form_that_was_agreed() {
    for is_structured in [false, true] {
        let mut server = opened(Sizes::SMALL, disk(), is_structured);
        let answer = answer(&server.talk(&request(code::READ, NONE, 1, 512, 0)));
        assert_eq!((answer.chunks, answer.is_done, answer.data), (usize::from(is_structured), true, vec![]));
    }
}

#[test]
fn an_error_says_in_words_what_it_means_for_the_command() {
    use Errno::{Invalid, Io, NoMemory, NoSpace, NotPermitted, Overflow, Shutdown, Unsupported};
    for (command, errno, words) in [
        (code::READ, NotPermitted, "not permitted now"),
        (code::FLUSH, NotPermitted, "not permitted now"),
        (code::WRITE, NotPermitted, "another primary holds the claim"),
        (code::TRIM, NotPermitted, "another primary holds the claim"),
        (code::READ, Io, "the disk could not be read"),
        (code::BLOCK_STATUS, Io, "the disk could not be read"),
        (code::FLUSH, Io, "the disk could not be flushed"),
        (code::WRITE, Io, "the disk could not be written"),
        (code::WRITE_ZEROES, Io, "the disk could not be written"),
        (code::WRITE, NoMemory, "no memory for this request now"),
        (code::READ, Invalid, "the request does not fit the disk"),
        (code::WRITE, NoSpace, "no space is left in the disk buffer or on the disk"),
        (code::READ, Overflow, "the length is too large"),
        (code::WRITE_ZEROES, Unsupported, "zeroes cannot be written fast here"),
        (code::TRIM, Unsupported, "the disk cannot do this"),
        (code::WRITE, Shutdown, "the export takes no such requests any more"),
    ] {
        let mut server = opened(Sizes::SMALL, disk(), true);
        server.is_holding = true;
        let length = if command == code::FLUSH { 0 } else { 512 };
        let mut bytes = request(command, NONE, 1, 0, length);
        if command == code::WRITE {
            bytes.extend([1; 512]);
        }
        server.talk(&bytes);
        let id: RequestId = server.held.remove(0).id;
        server.session.handle_reply(Reply { id, result: Err(errno) }, &mut server.pool);
        let answer = answer(&server.talk(&[]));
        assert_eq!((answer.error, answer.text.as_str()), (errno.number(), words));
        server.assert_idle();
    }
}

/// Exports that go on past their count.
struct Endless;

impl Exports for Endless {
    fn count(&self) -> usize {
        2
    }

    fn export(&self, index: usize) -> Option<Export<'_>> {
        Some(Export::new(["one", "two", "three"].get(index)?, 4096))
    }
}

#[test]
fn no_more_exports_are_listed_than_there_are() {
    let mut server = greeted(Sizes::SMALL, vec![disk()]);
    let list = option(wire::option::LIST, &[]);
    assert_eq!(server.session.receive(&list, &Endless, &mut server.pool), 16);
    let mut output = Vec::new();
    for _ in 0..9 {
        output.extend(server.send(usize::MAX));
        server.session.receive(&[], &Endless, &mut server.pool);
    }
    let replies = option_replies(wire::option::LIST, &output);
    let kinds: Vec<u32> = replies.iter().map(|reply| reply.0).collect();
    assert_eq!(kinds, [option_reply::SERVER, option_reply::SERVER, option_reply::ACK]);
}

#[test]
fn only_whole_names_of_contexts_are_chosen_and_only_known_ones_are_listed() {
    let mut server = greeted(Sizes::SMALL, vec![disk()]);
    server.talk(&option(wire::option::STRUCTURED_REPLY, &[]));
    for (number, query) in
        [(wire::option::SET_META_CONTEXT, "base:"), (wire::option::LIST_META_CONTEXT, "x:y")]
    {
        let replies = option_replies(number, &server.talk(&option(number, &context_data("disk", &[query]))));
        assert_eq!(replies, [(option_reply::ACK, vec![])], "{query}");
    }
}

#[test]
fn the_longest_status_waits_until_there_is_room_for_all_of_it() {
    let mut server = opened(Sizes::SMALL, disk(), true);
    server.ram.disk.chunks_mut(64).enumerate().for_each(|(at, part)| part.fill((at % 2) as u8));
    for cookie in 0..23 {
        server.receive(&request(code::FLUSH, NONE, cookie, 0, 0));
    }
    let before = 23 * 16;
    assert_eq!(waiting_bytes(&server), before);
    server.receive(&request(code::BLOCK_STATUS, NONE, 99, 0, 4096));
    assert_eq!(waiting_bytes(&server), before, "eight bytes too few are left");
    let heard = answers(&server.talk(&[]), &[]);
    assert_eq!(heard.last().map(|(cookie, answer)| (*cookie, answer.extents.len())), Some((99, 16)));
    server.assert_idle();
}
