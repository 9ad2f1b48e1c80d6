use super::*;
use proptest::prelude::*;

/// A client with a read of 1000 bytes at 100 in flight, and its cookie.
fn reading(is_structured: bool) -> (Client, u64) {
    let mut client = ready(TransmissionFlags::SEND_FLUSH, is_structured, 1 << 20);
    client.submit(Action::Read(data(0, 1000)), extent(100, 1000));
    let (header, _) = client.request();
    (client, header.cookie)
}

#[test]
fn a_lying_server_is_found_out() {
    use ClientError::{BadMagic, Incomplete, OutOfRange, Overlap, UnknownCookie, WrongReply};
    type Lie = fn(u64) -> Vec<u8>;
    let lies: [(Lie, ClientError); 25] = [
        (|_| vec![0; 16], BadMagic),
        (|cookie| simple(0, cookie + (1 << 16)), UnknownCookie),
        (|cookie| simple(0, cookie + 1), UnknownCookie),
        (|cookie| simple(0, cookie | 1 << 63), UnknownCookie),
        (|cookie| data_chunk(true, cookie ^ 0xffff, 100, &[0; 1000]), UnknownCookie),
        (|cookie| simple(0, cookie), WrongReply),
        (|cookie| data_chunk(true, cookie, 100, &[0; 1001]), WrongReply),
        (|cookie| data_chunk(true, cookie, 100, &[]), WrongReply),
        (|cookie| data_chunk(true, cookie, 101, &[0; 1000]), OutOfRange),
        (|cookie| data_chunk(true, cookie, 99, &[0; 10]), OutOfRange),
        (|cookie| data_chunk(true, cookie, u64::MAX, &[0; 10]), OutOfRange),
        (|cookie| hole_chunk(true, cookie, 100, u32::MAX), OutOfRange),
        (|cookie| hole_chunk(true, cookie, 100, 0), WrongReply),
        (|cookie| hole_chunk(true, cookie, 0, 10), OutOfRange),
        (|cookie| chunk(true, wire::chunk::OFFSET_HOLE, cookie, &[&[0; 13]]), WrongReply),
        (|cookie| chunk(true, wire::chunk::NONE, cookie, &[&[0]]), WrongReply),
        (|cookie| chunk(false, wire::chunk::NONE, cookie, &[]), WrongReply),
        (|cookie| chunk(true, wire::chunk::NONE, cookie, &[]), Incomplete),
        (|cookie| data_chunk(true, cookie, 100, &[0; 999]), Incomplete),
        (|cookie| chunk(true, 3, cookie, &[&[0; 12]]), WrongReply),
        (
            |cookie| chunk(true, wire::chunk::BLOCK_STATUS, cookie, &[&[0, 0, 0, 9, 0, 0, 1, 0, 0, 0, 0, 0]]),
            WrongReply,
        ),
        (|cookie| chunk(true, wire::chunk::ERROR, cookie, &[&[0; 5]]), WrongReply),
        (|cookie| chunk(true, wire::chunk::ERROR, cookie, &[&[0, 0, 0, 5, 0, 1]]), WrongReply),
        (|cookie| chunk(true, wire::chunk::ERROR, cookie, &[&[0; 6]]), WrongReply),
        (
            |cookie| {
                [data_chunk(false, cookie, 100, &[0; 500]), data_chunk(true, cookie, 599, &[0; 501])].concat()
            },
            Overlap,
        ),
    ];
    for (number, (lie, error)) in lies.into_iter().enumerate() {
        let (mut client, cookie) = reading(true);
        client.receive(&lie(cookie));
        assert_eq!(client.session.error(), Some(error), "lie {number}");
        client.assert_failed(error);
        assert_eq!(client.result(), Some(Err(Errno::Io)));
        client.receive(&[1; 100]);
    }
}

#[test]
fn chunks_that_were_not_agreed_are_refused() {
    let (mut client, cookie) = reading(false);
    client.receive(&data_chunk(true, cookie, 100, &[0; 1000]));
    client.assert_failed(ClientError::WrongReply);
}

#[test]
fn data_in_too_many_scattered_parts_is_refused() {
    let (mut client, cookie) = reading(true);
    for at in 0..9 {
        client.receive(&data_chunk(false, cookie, 100 + at * 2, &[1]));
    }
    client.assert_failed(ClientError::Scattered);
}

#[test]
fn a_second_reply_is_a_reply_to_nothing() {
    let (mut client, cookie) = reading(true);
    let reply = data_chunk(true, cookie, 100, &[0; 1000]);
    client.receive(&reply);
    assert_eq!(client.result(), Some(Ok(Outcome::Done)));
    client.receive(&reply);
    client.assert_failed(ClientError::UnknownCookie);
}

#[test]
fn a_status_without_the_context_that_was_asked_for_is_refused() {
    for reply in [|cookie| chunk(true, wire::chunk::NONE, cookie, &[]), |cookie| simple(0, cookie)] {
        let mut client = ready(TransmissionFlags::empty(), true, 1 << 20);
        client.submit(Action::Status, extent(0, 512));
        let (header, _) = client.request();
        client.receive(&reply(header.cookie));
        client.assert_failed(ClientError::WrongReply);
    }
}

#[test]
fn a_buffer_that_does_not_exist_ends_the_connection_and_nothing_else() {
    let mut client = capable();
    client.submit(Action::Read(data(0, 512)), extent(0, 512));
    let (header, _) = client.request();
    let mut nothing = crate::Windows::new(&mut [], 512);
    client.session.receive(&data_chunk(true, header.cookie, 0, &[1; 512]), &mut nothing);
    client.assert_failed(ClientError::UnknownBuffer);
}

#[test]
fn a_reply_to_an_earlier_request_of_the_same_place_is_refused() {
    let mut client = capable();
    let mut first = None;
    for _ in 0..4 {
        client.submit(Action::Flush, extent(0, 0));
        let (header, _) = client.request();
        client.receive(&simple(0, header.cookie));
        assert_eq!(client.result(), Some(Ok(Outcome::Done)));
        first = first.or(Some(header.cookie));
    }
    client.submit(Action::Flush, extent(0, 0));
    client.request();
    client.receive(&simple(0, first.unwrap()));
    client.assert_failed(ClientError::UnknownCookie);
}

#[test]
fn chunks_of_no_length_or_of_an_unknown_kind_are_refused() {
    for (kind, bytes) in
        [(wire::chunk::OFFSET_DATA, &[0; 8][..]), (wire::chunk::OFFSET_DATA, &[0; 4]), (77, &[0; 10])]
    {
        let mut client = capable();
        client.submit(Action::Read(data(0, 512)), extent(0, 512));
        let (header, _) = client.request();
        client.receive(&chunk(true, kind, header.cookie, &[bytes]));
        client.assert_failed(ClientError::WrongReply);
    }
}

#[test]
fn the_status_of_another_context_says_nothing_of_holes() {
    let status = |cookie, context: u32| {
        chunk(
            true,
            wire::chunk::BLOCK_STATUS,
            cookie,
            &[&context.to_be_bytes(), &512_u32.to_be_bytes(), &[0, 0, 0, 3]],
        )
    };
    for (context, is_told) in [(9, true), (5, false)] {
        let mut client = capable();
        client.submit(Action::Status, extent(0, 1024));
        let (header, _) = client.request();
        client.receive(&status(header.cookie, context));
        let hole = Ok(Outcome::Status { is_hole: true, length: 512 });
        assert_eq!(client.result() == Some(hole), is_told);
    }
}

#[test]
fn a_status_of_more_than_a_million_extents_is_refused() {
    let most = 4 + (8 << 20);
    for (length, error) in [(most, None), (most + 8, Some(ClientError::WrongReply))] {
        let mut client = capable();
        client.submit(Action::Status, extent(0, 1024));
        let (request, _) = client.request();
        let (kind, cookie) = (wire::chunk::BLOCK_STATUS, request.cookie);
        client.receive(&wire::ChunkHeader { is_done: true, kind, cookie, length }.encode());
        assert_eq!(client.session.error(), error);
    }
}

/// A whole conversation as a server would have it, with a read, a write and a status.
fn script() -> Vec<u8> {
    let mut bytes = greeting().to_vec();
    bytes.extend(option_reply(option::STRUCTURED_REPLY, option_reply::ACK, &[]));
    let context = b"\0\0\0\x09base:allocation";
    bytes.extend(option_reply(option::SET_META_CONTEXT, option_reply::META_CONTEXT, context));
    bytes.extend(option_reply(option::SET_META_CONTEXT, option_reply::ACK, &[]));
    bytes.extend(info_export(SIZE, TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FUA));
    bytes.extend(info_blocks(1, 4096, 1 << 20));
    bytes.extend(option_reply(option::GO, option_reply::ACK, &[]));
    bytes
}

/// What a server might answer, most of it to requests that exist: the first of each slot.
fn replies() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let cookie = prop_oneof![9 => (1u64..3, 0u64..3).prop_map(|(generation, slot)| generation << 16 | slot), 1 => any::<u64>()];
    let offset = prop_oneof![9 => 0u64..2000, 1 => any::<u64>()];
    let reply = (0u8..6, cookie, offset, 1u32..1200, any::<bool>()).prop_map(
        |(what, cookie, offset, length, is_done)| match what {
            0 => simple(if is_done { 0 } else { length }, cookie),
            1 | 2 => data_chunk(is_done, cookie, offset, &vec![length as u8; length as usize]),
            3 => hole_chunk(is_done, cookie, offset, length),
            4 => error_chunk(is_done, cookie, length, b"text"),
            _ => chunk(
                is_done,
                wire::chunk::BLOCK_STATUS,
                cookie,
                &[&[0, 0, 0, 9], &length.to_be_bytes(), &[0; 4]],
            ),
        },
    );
    prop::collection::vec(reply, 0..30)
}

proptest! {
    #[test]
    fn nothing_a_server_sends_does_harm(replies in replies(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
                                        in_handshake in any::<bool>(), step in 1usize..500) {
        let mut opening = script();
        let mut rest = replies.concat();
        for (index, value) in changes {
            let bytes = if in_handshake { &mut opening } else { &mut rest };
            if !bytes.is_empty() {
                let at = index.index(bytes.len());
                bytes[at] = value;
            }
        }
        let mut client = Client::new(CONFIG);
        for bytes in opening.chunks(step) {
            client.talk(bytes);
        }
        let mut submitted = 0;
        for action in [Action::Read(data(0, 1000)), Action::Write { data: data(1, 500), fua: true }, Action::Status] {
            let length = match action { Action::Read(data) | Action::Write { data, .. } => data.length, _ => 2000 };
            let place = extent(100, u64::from(length));
            submitted += usize::from(client.session.submit(Transfer { tag: Tag::default(), action, extent: place }, Micros(0)).is_ok());
        }
        for bytes in rest.chunks(step) {
            client.talk(bytes);
        }
        // Everything completes once, at the latest when the connection is given up; buffer 2 belongs to nothing.
        client.session.fail_all(Errno::Io);
        prop_assert_eq!(core::iter::from_fn(|| client.result()).count(), submitted);
        prop_assert!(client.memory.bytes(data(2, 64 << 10)).unwrap().iter().all(|byte| *byte == 0xee));
        let beyond = Data { buffer: BufferIndex(0), offset: 1000, length: (64 << 10) - 1000 };
        prop_assert!(client.memory.bytes(beyond).unwrap().iter().all(|byte| *byte == 0xee));
        prop_assert_eq!(client.session.reset(), Ok(()));
    }

    #[test]
    fn noise_does_no_harm(noise in prop::collection::vec(any::<u8>(), 0..300), is_open in any::<bool>()) {
        let mut client = if is_open { reading(true).0 } else { going(true) };
        client.talk(&noise);
    }
}

#[test]
fn a_chunk_that_cannot_be_right_is_refused_before_its_data_comes() {
    use wire::chunk::{BLOCK_STATUS, ERROR, ERROR_BIT, NONE, OFFSET_DATA, OFFSET_HOLE};
    let wrong = [
        (NONE, 1),
        (OFFSET_DATA, 8),
        (OFFSET_DATA, 1009),
        (OFFSET_HOLE, 13),
        (BLOCK_STATUS, 12),
        (ERROR, 5),
        (ERROR, 8193),
        (77, 10),
        (77, 0),
        (ERROR_BIT | 77, 5),
    ];
    let right =
        [(OFFSET_DATA, 9), (OFFSET_DATA, 1008), (OFFSET_HOLE, 12), (ERROR, 6), (ERROR, 8192), (ERROR_BIT, 6)];
    let wrong = wrong.map(|chunk| (chunk, Some(ClientError::WrongReply)));
    for ((kind, length), error) in wrong.into_iter().chain(right.map(|chunk| (chunk, None))) {
        let (mut client, cookie) = reading(true);
        client.receive(&wire::ChunkHeader { is_done: true, kind, cookie, length }.encode());
        assert_eq!(client.session.error(), error, "kind {kind} of {length} bytes");
    }
}
