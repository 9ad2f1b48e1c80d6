use super::*;
use crate::Identity;
use wire::option as code;

const ACK: (u32, Vec<u8>) = (option_reply::ACK, Vec::new());

fn two() -> Server {
    greeted(Sizes::SMALL, vec![Export::new("disk", 1 << 20), Export::new("other", 4096)])
}

fn kinds(server: &mut Server, number: u32, data: &[u8]) -> Vec<u32> {
    let replies = option_replies(number, &server.talk(&option(number, data)));
    replies.into_iter().map(|(kind, _)| kind).collect()
}

#[test]
fn a_list_names_every_export() {
    let replies = option_replies(code::LIST, &two().talk(&option(code::LIST, &[])));
    assert_eq!(
        replies,
        [(option_reply::SERVER, string(b"disk")), (option_reply::SERVER, string(b"other")), ACK]
    );
}

#[test]
fn go_tells_size_and_flags_and_what_was_asked_for() {
    let mut server = two();
    let asked = info_data("disk", &[wire::info::BLOCK_SIZE, wire::info::NAME, wire::info::DESCRIPTION, 77]);
    let replies = option_replies(code::GO, &server.talk(&option(code::GO, &asked)));
    let mut export = vec![0, 0];
    export.extend((1u64 << 20).to_be_bytes());
    export.extend(0x0d6d_u16.to_be_bytes());
    let blocks = [0, 3, 0, 0, 0, 1, 0, 0, 16, 0, 2, 0, 0, 0];
    let name = b"\0\x01disk";
    let expected = [(option_reply::INFO, export), (option_reply::INFO, blocks.to_vec())];
    assert_eq!(replies[..2], expected);
    assert_eq!(replies[2..], [(option_reply::INFO, name.to_vec()), ACK], "there is no description");
    assert_eq!(server.events, [ServerEvent::Opened { export: 0, identity: None }]);
}

#[test]
fn df_is_offered_only_with_structured_replies() {
    let mut server = two();
    server.talk(&option(code::STRUCTURED_REPLY, &[]));
    let replies = option_replies(code::INFO, &server.talk(&option(code::INFO, &info_data("disk", &[]))));
    assert_eq!(replies[0].1[10..], 0x0ded_u16.to_be_bytes());
}

#[test]
fn a_description_is_told_if_there_is_one_and_a_name_that_is_too_long_is_not() {
    let asked = |name: &str| info_data(name, &[wire::info::NAME, wire::info::DESCRIPTION]);
    let told = |export: Export<'static>| -> Vec<Vec<u8>> {
        let mut server = greeted(Sizes::SMALL, vec![export]);
        let replies = option_replies(code::INFO, &server.talk(&option(code::INFO, &asked(export.name))));
        replies
            .into_iter()
            .filter(|(kind, data)| *kind == option_reply::INFO && data[1] != 0)
            .map(|reply| reply.1)
            .collect()
    };
    let disk = Export::new("disk", 4096);
    assert_eq!(told(disk), [b"\0\x01disk"]);
    assert_eq!(
        told(Export { description: "of the mail", ..disk }),
        [&b"\0\x01disk"[..], b"\0\x02of the mail"]
    );
    let longest: &'static str =
        core::str::from_utf8(crate::nbd::testing::leak(b'x', EXPORT_TEXT_MAX + 1)).unwrap();
    assert_eq!(told(Export { description: longest, ..disk }), [b"\0\x01disk"]);
    assert_eq!(told(Export { description: &longest[1..], ..disk }).len(), 2);
}

#[test]
fn what_a_session_is_doing_is_told() {
    let mut server = Server::new(Sizes::SMALL, Export::new("disk", 1 << 20));
    let told = |server: &Server| (server.session.is_greeting(), server.session.is_handshake());
    assert_eq!((server.session.connection(), told(&server)), (5, (true, true)));
    server.talk(&FIXED);
    assert_eq!(told(&server), (false, true));
    open(&mut server, false);
    assert_eq!(told(&server), (false, false));
    assert!(!server.session.is_waiting() && !server.session.has_event());
    server.is_holding = true;
    let read = request(wire::command::READ, wire::CommandFlags::empty(), 1, 0, 2048);
    server.receive(&read);
    assert!(server.session.is_waiting(), "there are three buffers for its four pieces");
    server.is_holding = false;
    server.talk(&[]);
    assert!(!server.session.is_waiting());
    let mut server = two();
    let go = option(code::GO, &info_data("disk", &[]));
    server.session.receive(&go, &server.exports, &mut server.pool);
    while server.session.is_handshake() {
        server.send(usize::MAX);
        server.session.receive(&[], &server.exports, &mut server.pool);
    }
    assert!(server.session.has_event(), "it has been opened");
}

#[test]
fn info_opens_nothing() {
    let mut server = two();
    assert_eq!(
        kinds(&mut server, code::INFO, &info_data("disk", &[])),
        [option_reply::INFO, option_reply::ACK]
    );
    assert_eq!(server.events, []);
    assert!(server.session.is_handshake());
}

#[test]
fn a_block_size_that_is_not_one_is_told_unasked() {
    let export = Export { block_min: 512, ..Export::new("disk", 1 << 20) };
    let mut server = greeted(Sizes::SMALL, vec![export]);
    let replies = option_replies(code::GO, &server.talk(&option(code::GO, &info_data("disk", &[]))));
    assert_eq!(replies[1].1[..6], [0, 3, 0, 0, 2, 0]);
}

#[test]
fn an_unknown_export_can_be_asked_for_and_another_one_then() {
    let mut server = two();
    for number in [code::INFO, code::GO] {
        assert_eq!(kinds(&mut server, number, &info_data("none", &[])), [option_reply::ERR_UNKNOWN]);
    }
    let contexts = context_data("none", &["base:allocation"]);
    server.talk(&option(code::STRUCTURED_REPLY, &[]));
    assert_eq!(kinds(&mut server, code::SET_META_CONTEXT, &contexts), [option_reply::ERR_UNKNOWN]);
    assert_eq!(kinds(&mut server, code::GO, &info_data("other", &[])).last(), Some(&option_reply::ACK));
    assert_eq!(server.events, [ServerEvent::Opened { export: 1, identity: None }]);
}

#[test]
fn no_name_means_the_only_export() {
    let mut server = greeted(Sizes::SMALL, vec![Export::new("disk", 4096)]);
    assert_eq!(kinds(&mut server, code::GO, &info_data("", &[])).last(), Some(&option_reply::ACK));
    assert_eq!(kinds(&mut two(), code::GO, &info_data("", &[])), [option_reply::ERR_UNKNOWN]);
    let mut server = greeted(Sizes::SMALL, vec![Export::new("a", 1), Export::new("", 2)]);
    server.talk(&option(code::GO, &info_data("", &[])));
    assert_eq!(server.events, [ServerEvent::Opened { export: 1, identity: None }]);
}

#[test]
fn export_name_is_answered_with_or_without_padding() {
    for (flags, padding) in [([0, 0, 0, 1], 124), ([0, 0, 0, 3], 0)] {
        let mut server = Server::new(Sizes::SMALL, Export::new("disk", 4096));
        server.talk(&[]);
        server.talk(&flags);
        let answer = server.talk(&option(code::EXPORT_NAME, b"disk"));
        assert_eq!(answer[..8], 4096u64.to_be_bytes());
        assert_eq!(answer[10..], vec![0; padding]);
        assert_eq!(server.events, [ServerEvent::Opened { export: 0, identity: None }]);
    }
}

#[test]
fn export_name_of_an_unknown_export_closes() {
    let mut server = two();
    assert_eq!(server.talk(&option(code::EXPORT_NAME, b"none")), b"");
    assert_eq!(server.events, [ServerEvent::Closed { clean: false }]);
    let mut server = two();
    server.talk(&option(code::EXPORT_NAME, &[b'x'; 513]));
    assert_eq!(server.events, [ServerEvent::Closed { clean: false }]);
}

#[test]
fn options_that_are_not_known_are_unsupported() {
    let mut server = two();
    for number in [4, 5, 11, 0, u32::MAX] {
        assert_eq!(kinds(&mut server, number, &[]), [option_reply::ERR_UNSUP]);
        assert_eq!(kinds(&mut server, number, &[1; 600]), [option_reply::ERR_UNSUP]);
    }
}

#[test]
fn lengths_that_do_not_add_up_are_invalid() {
    let mut server = two();
    assert_eq!(kinds(&mut server, code::LIST, &[0]), [option_reply::ERR_INVALID]);
    assert_eq!(kinds(&mut server, code::STRUCTURED_REPLY, &[0]), [option_reply::ERR_INVALID]);
    server.talk(&option(code::STRUCTURED_REPLY, &[]));
    for number in [code::INFO, code::GO, code::LIST_META_CONTEXT, code::SET_META_CONTEXT] {
        let whole = match number {
            code::INFO | code::GO => info_data("disk", &[3]),
            _ => context_data("disk", &["base:allocation"]),
        };
        for length in 0..whole.len() {
            assert_eq!(kinds(&mut server, number, &whole[..length]), [option_reply::ERR_INVALID], "{length}");
        }
        let mut longer = whole.clone();
        longer.push(0);
        assert_eq!(kinds(&mut server, number, &longer), [option_reply::ERR_INVALID]);
    }
    assert_eq!(server.events, []);
}

#[test]
fn too_much_data_is_dropped_and_refused() {
    let mut server = two();
    for number in [code::LIST, code::INFO, code::GO, code::LIST_META_CONTEXT, code::SET_META_CONTEXT] {
        assert_eq!(kinds(&mut server, number, &[0; 5000]), [option_reply::ERR_TOO_BIG]);
    }
    assert_eq!(kinds(&mut server, code::GO, &info_data("disk", &[])).last(), Some(&option_reply::ACK));
}

#[test]
fn abort_is_acknowledged_and_ends_the_session() {
    let mut server = two();
    assert_eq!(kinds(&mut server, code::ABORT, &[]), [option_reply::ACK]);
    assert_eq!(server.events, [ServerEvent::Closed { clean: true }]);
    assert!(server.session.is_closed());
}

#[test]
fn what_is_no_option_closes() {
    let mut server = two();
    server.talk(&[7; 16]);
    assert_eq!(server.events, [ServerEvent::Closed { clean: false }]);
    let mut server = Server::new(Sizes::SMALL, Export::new("disk", 4096));
    server.talk(&[0x80, 0, 0, 1]);
    assert_eq!(server.events, [ServerEvent::Closed { clean: false }]);
}

#[test]
fn contexts_are_listed_and_chosen() {
    let mut server = two();
    let all = context_data("disk", &[]);
    let listed = [(option_reply::META_CONTEXT, b"\0\0\0\0base:allocation".to_vec()), ACK];
    for queries in [&[][..], &["base:"], &["x:y", "base:allocation"]] {
        let list = option(code::LIST_META_CONTEXT, &context_data("disk", queries));
        assert_eq!(option_replies(code::LIST_META_CONTEXT, &server.talk(&list)), listed);
    }
    assert_eq!(
        kinds(&mut server, code::SET_META_CONTEXT, &all),
        [option_reply::ERR_INVALID],
        "not structured"
    );
    server.talk(&option(code::STRUCTURED_REPLY, &[]));
    assert_eq!(kinds(&mut server, code::SET_META_CONTEXT, &all), [option_reply::ACK], "none was asked for");
    let set =
        option(code::SET_META_CONTEXT, &context_data("disk", &["x:y", "base:allocation", "base:allocation"]));
    let chosen = [(option_reply::META_CONTEXT, b"\0\0\0\x01base:allocation".to_vec()), ACK];
    assert_eq!(option_replies(code::SET_META_CONTEXT, &server.talk(&set)), chosen);
}

#[test]
fn a_primary_says_who_it_is() {
    let name = "twinblock:primary=000102030405060708090a0b0c0d0e0f";
    let identity = Identity(core::array::from_fn(|at| at as u8));
    let mut server = two();
    server.talk(&option(code::STRUCTURED_REPLY, &[]));
    let set = option(code::SET_META_CONTEXT, &context_data("disk", &["base:allocation", name]));
    let replies = option_replies(code::SET_META_CONTEXT, &server.talk(&set));
    assert_eq!(replies[1].1[..4], [0, 0, 0, 2]);
    assert_eq!(&replies[1].1[4..], name.as_bytes());
    server.talk(&option(code::GO, &info_data("disk", &[])));
    assert_eq!(server.events, [ServerEvent::Opened { export: 0, identity: Some(identity) }]);
}

#[test]
fn contexts_hold_for_their_export_only_and_until_they_are_chosen_anew() {
    let name = "twinblock:primary=ffffffffffffffffffffffffffffffff";
    for then in [info_data("other", &[]), info_data("disk", &[])] {
        let mut server = two();
        server.talk(&option(code::STRUCTURED_REPLY, &[]));
        server.talk(&option(code::SET_META_CONTEXT, &context_data("disk", &[name])));
        if then == info_data("disk", &[]) {
            server.talk(&option(code::SET_META_CONTEXT, &[9; 600]));
        }
        server.talk(&option(code::GO, &then));
        assert!(matches!(server.events[..], [ServerEvent::Opened { identity: None, .. }]));
    }
}

#[test]
fn what_only_looks_like_an_identity_is_ignored() {
    let mut server = two();
    server.talk(&option(code::STRUCTURED_REPLY, &[]));
    for name in [
        "twinblock:primary=",
        "twinblock:primary=00",
        "twinblock:primary=ffffffffffffffffffffffffffffffff0",
        "twinblock:primary=ffffffffffffffffffffffffffffffff00",
        "twinblock:primary=FFffffffffffffffffffffffffffffff",
        "twinblock:primary=gfffffffffffffffffffffffffffffff",
        "twinblock:Primary=ffffffffffffffffffffffffffffffff",
    ] {
        let data = context_data("disk", &[name]);
        assert_eq!(kinds(&mut server, code::SET_META_CONTEXT, &data), [option_reply::ACK], "{name}");
    }
}
