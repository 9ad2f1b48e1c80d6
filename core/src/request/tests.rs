use super::{Op, Request, RequestId};
use crate::{BufferIndex, Data, Extent, Refused};

const ZEROES: Op = Op::WriteZeroes { may_unmap: true, fast: false, fua: false };

fn check(op: Op, offset: u64, length: u64) -> bool {
    let request = Request::whole(RequestId(1), op, Extent { offset, length });
    assert!(request.is_first && request.is_last);
    let result = request.check(4096 + 512, 256, 1024);
    assert!(matches!(result, Ok(()) | Err(Refused::BadRequest)));
    result.is_ok()
}

const fn data(length: u32) -> Data {
    Data { buffer: BufferIndex(0), offset: 0, length }
}

#[test]
fn a_piece_lies_in_one_window_and_has_as_much_data_as_bytes() {
    for op in [Op::Read(data(512)), Op::Write { data: data(512), fua: false }, ZEROES] {
        for offset in [0, 256, 512, 1024, 4096] {
            assert!(check(op, offset, 512), "{op:?} {offset}");
        }
        assert!(!check(op, 768, 512), "over a multiple of the window");
        assert!(!check(op, 4352, 512), "past the end");
        assert!(!check(op, 4608, 512), "behind the end");
        assert!(!check(op, 128, 512), "not a block");
        assert!(!check(op, u64::MAX, 512));
        assert!(!check(op, 0, 0));
    }
    assert!(!check(Op::Read(data(256)), 0, 512));
    assert!(!check(Op::Write { data: data(513), fua: false }, 0, 512));
    assert!(check(ZEROES, 1024, 1024));
    assert!(!check(ZEROES, 0, 2048), "longer than the window");
    assert!(!check(ZEROES, 0, 200), "not a whole block");
}

#[test]
fn a_flush_has_no_bytes_and_a_status_any_number() {
    assert!(check(Op::Flush, 0, 0));
    assert!(!check(Op::Flush, 0, 256));
    assert!(check(Op::Status, 256, 4352));
    assert!(!check(Op::Status, 256, 4608));
    assert!(!check(Op::Status, 256, 0));
}

#[test]
fn only_writes_and_zeroes_modify() {
    assert!(Op::Write { data: data(1), fua: false }.is_modification() && ZEROES.is_modification());
    assert!(![Op::Read(data(1)), Op::Flush, Op::Status].iter().any(Op::is_modification));
}
