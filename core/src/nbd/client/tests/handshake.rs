use super::*;
use crate::nbd::wire::OptionHeader;

fn asked(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OptionHeader { option, length: data.len() as u32 }.encode().to_vec();
    bytes.extend_from_slice(data);
    bytes
}

const GO_DATA: &[u8] = b"\0\0\0\x04disk\0\x01\0\x03";

#[test]
fn options_are_asked_one_after_the_other() {
    let identity = Some(Identity([0xa5; 16]));
    let mut client = Client::new(ClientConfig { identity, ..CONFIG });
    let mut expected = vec![0, 0, 0, 3];
    expected.extend(asked(option::STRUCTURED_REPLY, &[]));
    assert_eq!(client.talk(&greeting()), expected);
    let mut contexts =
        b"\0\0\0\x04disk\0\0\0\x02\0\0\0\x0fbase:allocation\0\0\0\x32twinblock:primary=".to_vec();
    contexts.extend([b'a', b'5'].repeat(16));
    let ack = option_reply(option::STRUCTURED_REPLY, option_reply::ACK, &[]);
    assert_eq!(client.talk(&ack), asked(option::SET_META_CONTEXT, &contexts));
    let context =
        option_reply(option::SET_META_CONTEXT, option_reply::META_CONTEXT, b"\0\0\0\x01base:allocation");
    assert_eq!(client.talk(&context), b"");
    let ack = option_reply(option::SET_META_CONTEXT, option_reply::ACK, &[]);
    assert_eq!(client.talk(&ack), asked(option::GO, GO_DATA));
    let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH | TransmissionFlags::SEND_FUA;
    client.talk(&info_export(SIZE, flags));
    client.talk(&info_blocks(512, 4096, (1 << 20) + 3));
    assert_eq!(
        client
            .session
            .submit(Transfer { tag: Tag::default(), action: Action::Flush, extent: extent(0, 0) }, Micros(0)),
        Err(QueueFull)
    );
    client.talk(&option_reply(option::GO, option_reply::ACK, &[]));
    let info = ServerInfo {
        size_bytes: SIZE,
        flags,
        block_min: 512,
        block_preferred: 4096,
        payload_max: 1 << 20,
        has_allocation: true,
        is_structured: true,
        run: None,
    };
    assert_eq!(client.session.poll_event(), Some(ClientEvent::Ready(info)));
    let capabilities = Capabilities::FLUSH | Capabilities::STATUS;
    assert_eq!(info.geometry(), Geometry { size_bytes: SIZE, block_bytes: 512, capabilities });
}

#[test]
fn what_is_not_wanted_is_not_asked_for() {
    let mut client = Client::new(ClientConfig { want_allocation: false, ..CONFIG });
    client.talk(&greeting());
    let ack = option_reply(option::STRUCTURED_REPLY, option_reply::ACK, &[]);
    assert_eq!(client.talk(&ack), asked(option::GO, GO_DATA));
}

#[test]
fn refused_options_are_done_without() {
    let mut client = Client::new(CONFIG);
    client.talk(&greeting());
    let unsupported = option_reply(option::STRUCTURED_REPLY, option_reply::ERR_UNSUP, b"what?");
    assert_eq!(client.talk(&unsupported), asked(option::GO, GO_DATA));
    let mut client = Client::new(CONFIG);
    client.talk(&greeting());
    client.talk(&option_reply(option::STRUCTURED_REPLY, option_reply::ACK, &[]));
    let invalid = option_reply(option::SET_META_CONTEXT, option_reply::ERR_INVALID, &[]);
    assert_eq!(client.talk(&invalid), asked(option::GO, GO_DATA));
}

#[test]
fn a_server_without_go_is_asked_by_name() {
    let mut client = going(false);
    let unsupported = option_reply(option::GO, option_reply::ERR_UNSUP, &[]);
    assert_eq!(client.talk(&unsupported), asked(option::EXPORT_NAME, b"disk"));
    let mut answer = SIZE.to_be_bytes().to_vec();
    answer.extend(0x7_u16.to_be_bytes());
    client.talk(&answer);
    let info = *client.session.info().unwrap();
    assert_eq!((info.size_bytes, info.block_min, info.payload_max), (SIZE, 1, 32 << 20));
    assert!(info.geometry().capabilities.contains(Capabilities::READ_ONLY | Capabilities::FLUSH));
}

#[test]
fn a_server_that_is_not_fixed_is_asked_by_name_and_pads_its_answer() {
    let mut client = Client::new(CONFIG);
    let mut expected = vec![0; 4];
    expected.extend(asked(option::EXPORT_NAME, b"disk"));
    assert_eq!(client.talk(&Greeting { flags: HandshakeFlags::empty() }.encode()), expected);
    let mut answer = SIZE.to_be_bytes().to_vec();
    answer.extend([0, 1]);
    answer.extend([0; 124]);
    client.receive(&answer[..133]);
    assert!(!client.session.is_ready());
    client.receive(&answer[133..]);
    assert!(client.session.is_ready());
}

#[test]
fn a_refusal_has_a_type_and_the_servers_words() {
    for (kind, error) in [
        (option_reply::ERR_UNKNOWN, ClientError::UnknownExport),
        (option_reply::ERR_POLICY, ClientError::Forbidden),
        (option_reply::ERR_TLS_REQD, ClientError::TlsRequired),
        (option_reply::ERR_SHUTDOWN, ClientError::ShuttingDown),
        (option_reply::ERR_INVALID, ClientError::Refused(option_reply::ERR_INVALID)),
    ] {
        let mut client = going(true);
        let mut text = b"no\x1b[31m here".to_vec();
        text.extend([b'x'; 1000]);
        client.receive(&option_reply(option::GO, kind, &text));
        client.assert_failed(error);
        assert!(client.session.error_text().starts_with("no?[31m herexxx"));
        assert_eq!(client.session.error_text().len(), TEXT_MAX);
    }
}

#[test]
fn a_refusal_that_comes_in_parts_is_read_as_one() {
    let mut client = going(true);
    let text = [b'x'; 1000];
    let bytes = option_reply(option::GO, option_reply::ERR_UNKNOWN, &text);
    client.receive(&bytes[..40]);
    client.receive(&bytes[40..]);
    client.assert_failed(ClientError::UnknownExport);
    assert_eq!(client.session.error_text().len(), TEXT_MAX);
}

#[test]
fn as_many_replies_and_as_long_ones_as_are_allowed_are_understood() {
    let unknown = |data: &[u8]| option_reply(option::GO, option_reply::INFO, data);
    let mut longest = vec![0; 8192];
    longest[1] = 77;
    let mut client = going(true);
    client.receive(&unknown(&longest));
    for _ in 0..61 {
        client.receive(&unknown(&[0, 77, 1]));
    }
    client.receive(&info_export(SIZE, TransmissionFlags::HAS_FLAGS));
    assert_eq!(client.session.error(), None);
    client.receive(&option_reply(option::GO, option_reply::ACK, &[]));
    assert!(client.session.is_ready(), "with the 64th");
}

#[test]
fn a_reply_that_is_neither_an_answer_nor_an_error_is_refused() {
    for option in [option::STRUCTURED_REPLY, option::SET_META_CONTEXT] {
        let mut client = Client::new(CONFIG);
        client.talk(&greeting());
        if option == option::SET_META_CONTEXT {
            client.talk(&option_reply(option::STRUCTURED_REPLY, option_reply::ACK, &[]));
        }
        client.receive(&option_reply(option, option_reply::SERVER, &[]));
        client.assert_failed(ClientError::BadOptionReply);
    }
}

#[test]
fn a_context_that_was_not_asked_for_is_no_allocation() {
    let identity = Some(Identity([1; 16]));
    for (want_allocation, name) in
        [(true, &b"\0\0\0\x05base:other"[..]), (false, b"\0\0\0\x05base:allocation")]
    {
        let mut client = Client::new(ClientConfig { want_allocation, identity, ..CONFIG });
        client.talk(&greeting());
        client.talk(&option_reply(option::STRUCTURED_REPLY, option_reply::ACK, &[]));
        client.talk(&option_reply(option::SET_META_CONTEXT, option_reply::META_CONTEXT, name));
        client.talk(&option_reply(option::SET_META_CONTEXT, option_reply::ACK, &[]));
        client.talk(&info_export(SIZE, TransmissionFlags::HAS_FLAGS));
        client.talk(&option_reply(option::GO, option_reply::ACK, &[]));
        assert!(!client.session.info().unwrap().has_allocation);
    }
}

#[test]
fn what_is_no_greeting_is_refused() {
    for (bytes, error) in [
        (*b"HTTP/1.1 400 Bad R", ClientError::NotNbd),
        (*b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53\0\0", ClientError::OldServer),
    ] {
        let mut client = Client::new(CONFIG);
        client.receive(&bytes);
        client.assert_failed(error);
    }
}

#[test]
fn replies_that_no_server_may_give_are_refused() {
    let go = |kind, data: &[u8]| option_reply(option::GO, kind, data);
    for (bytes, error) in [
        (vec![0; 20], ClientError::BadOptionReply),
        (option_reply(option::LIST, option_reply::ACK, &[]), ClientError::BadOptionReply),
        (go(option_reply::ACK, &[]), ClientError::BadOptionReply),
        (go(option_reply::SERVER, &[]), ClientError::BadOptionReply),
        (go(option_reply::INFO, &[0]), ClientError::BadOptionReply),
        (go(option_reply::INFO, &[0; 11]), ClientError::BadOptionReply),
        (go(option_reply::INFO, &[0, 3, 0, 0]), ClientError::BadOptionReply),
        (go(option_reply::INFO, &[7; 9000]), ClientError::BadOptionReply),
        (go(option_reply::INFO, &[0, 77, 1]).repeat(65), ClientError::EndlessReplies),
    ] {
        let mut client = going(true);
        client.receive(&bytes);
        client.assert_failed(error);
    }
}

#[test]
fn a_geometry_that_no_server_may_have_is_refused() {
    for (size, min, payload_max) in [
        (SIZE, 0, 1 << 20),
        (SIZE, 3, 1 << 20),
        (SIZE, 1 << 17, 1 << 20),
        (SIZE, 512, 511),
        (u64::MAX, 1, 1 << 20),
    ] {
        let mut client = going(true);
        client.talk(&info_export(size, TransmissionFlags::HAS_FLAGS));
        client.talk(&info_blocks(min, 4096, payload_max));
        client.receive(&option_reply(option::GO, option_reply::ACK, &[]));
        client.assert_failed(ClientError::BadGeometry);
    }
}

#[test]
fn the_largest_blocks_that_a_server_may_have_are_taken() {
    let mut client = going(true);
    client.talk(&info_export(SIZE, TransmissionFlags::HAS_FLAGS));
    client.talk(&info_blocks(1 << 16, 1 << 16, 1 << 20));
    client.receive(&option_reply(option::GO, option_reply::ACK, &[]));
    assert_eq!(client.session.info().map(|info| info.block_min), Some(1 << 16));
}

#[test]
fn a_session_is_used_again_for_another_export_whose_name_fits() {
    let longest = (300 - OUTPUT_BYTES_MIN) / 2;
    let mut client = capable();
    let name = |length| ClientConfig { export: core::str::from_utf8(leak(b'y', length)).unwrap(), ..CONFIG };
    assert_eq!(client.session.reset_for(name(longest + 1)), Err(Refused::NoRoom));
    assert!(client.session.is_ready(), "nothing was changed");
    assert_eq!(client.session.reset_for(name(STRING_MAX + 1)), Err(Refused::NoRoom));
    client.submit(Action::Read(data(0, 512)), extent(0, 512));
    assert_eq!(client.session.reset_for(name(longest)), Err(Refused::Busy));
    client.session.fail_all(Errno::Shutdown);
    client.result();
    assert_eq!(client.session.reset_for(name(longest)), Ok(()));
    client.talk(&greeting());
    let unsupported = option_reply(option::STRUCTURED_REPLY, option_reply::ERR_UNSUP, &[]);
    let asked_for = client.talk(&unsupported);
    assert!(asked_for.windows(longest).any(|bytes| bytes.iter().all(|byte| *byte == b'y')));
    let memory = ClientMemory {
        transfers: leak(TransferSlot::EMPTY, 1),
        output_bytes: leak(0, OUTPUT_BYTES_MIN + 3 * STRING_MAX),
        output_entries: leak(OutputEntry::EMPTY, OUTPUT_ENTRIES_MIN),
    };
    let mut roomy = Session::new(CONFIG, memory).unwrap();
    roomy.fail_all(Errno::Shutdown);
    assert_eq!(roomy.reset_for(name(STRING_MAX)), Ok(()));
    assert_eq!(roomy.reset_for(name(STRING_MAX + 1)), Err(Refused::NoRoom), "longer than names are");
}

#[test]
fn a_session_is_used_again_for_the_next_connection() {
    let mut client = capable();
    client.submit(Action::Read(data(0, 512)), extent(0, 512));
    assert_eq!(client.session.reset(), Err(Refused::Busy));
    client.session.fail_all(Errno::Shutdown);
    assert_eq!(client.session.reset(), Err(Refused::Busy), "a completion waits");
    assert_eq!(client.result(), Some(Err(Errno::Shutdown)));
    assert_eq!(client.session.reset(), Ok(()));
    assert_eq!((client.session.info(), client.session.modifications_sent()), (None, 0));
    assert_eq!(client.talk(&greeting())[..4], [0, 0, 0, 3]);
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let refusal = |transfers, output, entries, export| {
        let memory = ClientMemory {
            transfers: leak(TransferSlot::EMPTY, transfers),
            output_bytes: leak(0, output),
            output_entries: leak(OutputEntry::EMPTY, entries),
        };
        Session::new(ClientConfig { export, ..CONFIG }, memory).err()
    };
    let long: &'static str = core::str::from_utf8(leak(b'x', 5000)).unwrap();
    assert_eq!(refusal(1, 256 + 8192, 4, &long[..4096]), None);
    assert_eq!(refusal(1, 20_000, 4, long), Some(BadSetup::Name));
    assert_eq!(refusal(1, 263, 4, "disk"), Some(BadSetup::Name));
    assert_eq!(refusal(0, 264, 4, "disk"), Some(BadSetup::Slots));
    assert_eq!(refusal(1, 264, 3, "disk"), Some(BadSetup::Room));
}

#[test]
fn the_longest_name_fits_every_option() {
    let memory = ClientMemory {
        transfers: leak(TransferSlot::EMPTY, 1),
        output_bytes: leak(0, OUTPUT_BYTES_MIN + 2 * STRING_MAX),
        output_entries: leak(OutputEntry::EMPTY, OUTPUT_ENTRIES_MIN),
    };
    let export: &'static str = core::str::from_utf8(leak(b'x', STRING_MAX)).unwrap();
    let identity = Some(Identity([1; 16]));
    let mut client = Client::new(CONFIG);
    client.session = Session::new(ClientConfig { export, identity, want_allocation: true }, memory).unwrap();
    client.receive(&greeting());
    client.receive(&option_reply(option::STRUCTURED_REPLY, option_reply::ACK, &[]));
    client.receive(&option_reply(option::SET_META_CONTEXT, option_reply::ACK, &[]));
    assert_eq!(client.session.error(), None, "nothing was sent in between");
}
