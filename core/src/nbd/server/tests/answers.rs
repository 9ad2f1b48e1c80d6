//! When a request is answered.

use super::*;

const NONE: CommandFlags = CommandFlags::empty();

#[test]
fn a_modification_is_answered_after_its_last_piece_whatever_their_order() {
    use wire::command as code;
    let modifications = [
        [request(code::WRITE, NONE, 7, 100, 9000), vec![7; 9000]].concat(),
        request(code::TRIM, NONE, 7, 100, 9000),
        request(code::WRITE_ZEROES, NONE, 7, 100, 9000),
    ];
    for is_structured in [false, true] {
        for bytes in &modifications {
            let mut server = opened(Sizes::LARGE, Export::new("disk", 64 << 10), is_structured);
            server.is_holding = true;
            assert_eq!(server.talk(bytes), b"");
            assert_eq!((server.held.len(), server.session.unanswered()), (3, 1));
            for which in [1, 1] {
                server.answer(which);
                assert_eq!(server.talk(&[]), b"", "another piece is with the machine");
            }
            server.answer(0);
            let answers = answers(&server.talk(&[]), &[]);
            assert_eq!(answers, [(7, Answer { is_done: true, ..Answer::default() })]);
            server.assert_idle();
        }
    }
}

#[test]
fn one_piece_that_failed_fails_the_request_once_all_have_ended() {
    let bytes = request(wire::command::WRITE_ZEROES, NONE, 7, 0, 3 * 4096);
    for failing in 0..3 {
        let mut server = opened(Sizes::LARGE, Export::new("disk", 64 << 10), false);
        server.is_holding = true;
        server.ram.bad = Some((failing * 4096, crate::Errno::NoSpace));
        server.talk(&bytes);
        server.answer(2);
        server.answer(0);
        assert_eq!(server.talk(&[]), b"");
        server.answer(0);
        let answers = answers(&server.talk(&[]), &[]);
        assert_eq!((answers[0].0, answers[0].1.error), (7, crate::Errno::NoSpace.number()));
        server.assert_idle();
    }
}
