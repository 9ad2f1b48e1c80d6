use super::*;
use proptest::prelude::*;

proptest! {
    #[test]
    fn headers_come_back_as_they_were(a in any::<u32>(), b in any::<u32>(), c in any::<u64>(), d in any::<u64>(),
                                      e in any::<u16>(), f in any::<u16>(), g in any::<bool>()) {
        let header = OptionHeader { option: a, length: b };
        prop_assert_eq!(OptionHeader::decode(&header.encode()), Some(header));
        let reply = OptionReply { option: a, kind: b, length: e.into() };
        prop_assert_eq!(OptionReply::decode(&reply.encode()), Some(reply));
        let flags = CommandFlags::from_bits_retain(e);
        let request = RequestHeader { flags, command: f, cookie: c, offset: d, length: a };
        prop_assert_eq!(RequestHeader::decode(&request.encode()), Some(request));
        let simple = SimpleReply { error: a, cookie: c };
        prop_assert_eq!(SimpleReply::decode(&simple.encode()), Some(simple));
        let chunk = ChunkHeader { is_done: g, kind: e, cookie: c, length: a };
        prop_assert_eq!(ChunkHeader::decode(&chunk.encode()), Some(chunk));
    }

    #[test]
    fn another_magic_is_no_header(bytes in any::<[u8; 28]>()) {
        let magic = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        prop_assume!(![REQUEST_MAGIC, SIMPLE_REPLY_MAGIC, CHUNK_MAGIC].contains(&magic));
        prop_assert_eq!(RequestHeader::decode(&bytes), None);
        prop_assert_eq!(bytes.first_chunk().and_then(SimpleReply::decode), None);
        prop_assert_eq!(bytes.first_chunk().and_then(ChunkHeader::decode), None);
        let is_option = bytes.starts_with(&OPTION_MAGIC.to_be_bytes());
        prop_assert_eq!(bytes.first_chunk().and_then(OptionHeader::decode).is_some(), is_option);
    }
}

#[test]
fn a_request_is_on_the_wire_as_the_document_lays_it_out() {
    let flags = CommandFlags::FUA;
    let header = RequestHeader {
        flags,
        command: command::WRITE,
        cookie: 0x0102_0304_0506_0708,
        offset: 512,
        length: 4096,
    };
    let expected =
        [0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 16, 0];
    assert_eq!(header.encode(), expected);
}

#[test]
fn a_greeting_says_newstyle_and_its_flags() {
    let flags = HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES;
    assert_eq!(&Greeting { flags }.encode(), b"NBDMAGICIHAVEOPT\0\x03");
    let mut unknown = Greeting { flags }.encode();
    unknown[16] = 0x80;
    assert_eq!(Greeting::decode(&unknown), Some(Greeting { flags }));
    unknown[0] = 0;
    assert_eq!(Greeting::decode(&unknown), None);
}

#[test]
fn fields_run_out_without_taking_anything() {
    let mut fields = Fields(&[0, 0, 0, 3, b'a', b'b']);
    assert_eq!(fields.u64(), None);
    assert_eq!(fields.string(), None);
    let mut fields = Fields(&[0, 0, 0, 2, b'a', b'b', 9]);
    assert_eq!(fields.string(), Some(&b"ab"[..]));
    assert_eq!(fields.u16(), None);
    assert_eq!(fields.0, [9]);
}

/// Both sides of this project share the numbers, so that only a peer would notice a wrong one.
#[test]
fn numbers_are_those_of_the_protocol() {
    let refusals = [
        option_reply::ERR_UNSUP,
        option_reply::ERR_POLICY,
        option_reply::ERR_INVALID,
        option_reply::ERR_TLS_REQD,
        option_reply::ERR_UNKNOWN,
        option_reply::ERR_SHUTDOWN,
        option_reply::ERR_BLOCK_SIZE_REQD,
        option_reply::ERR_TOO_BIG,
    ];
    assert_eq!(refusals, [1, 2, 3, 5, 6, 7, 8, 9].map(|number| 0x8000_0000 + number));
    assert_eq!((option_reply::ERROR_BIT, chunk::ERROR_BIT), (0x8000_0000, 0x8000));
    assert_eq!((chunk::ERROR, chunk::ERROR_OFFSET), (0x8001, 0x8002));
    assert_eq!((DEFAULT_PAYLOAD_MAX, BLOCK_MIN_MAX), (33_554_432, 65_536));
}
