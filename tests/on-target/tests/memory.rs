//! Borrowed memory on the target.
#![no_std]
#![no_main]

use twinblock_on_target as _;

#[embedded_test::tests]
mod tests {
    use static_cell::ConstStaticCell;
    use twinblock_core::{BufferIndex, Data, Memory, Pool, Windows};

    const WINDOW: u32 = 512;
    const MEMORY_BYTES: usize = 4 * WINDOW as usize + 100;
    static BYTES: ConstStaticCell<[u8; MEMORY_BYTES]> = ConstStaticCell::new([0; MEMORY_BYTES]);

    #[init]
    fn init() -> Windows<'static> {
        twinblock_on_target::guard_stack();
        Windows::new(BYTES.take(), WINDOW)
    }

    fn whole(buffer: u16) -> Data {
        Data { buffer: BufferIndex(buffer), offset: 0, length: WINDOW }
    }

    #[test]
    fn a_remainder_that_holds_no_window_is_left_unused(mut pool: Windows<'static>) {
        assert_eq!(pool.count(), 4);
        assert!(pool.bytes(whole(3)).is_some());
        assert!(pool.bytes(whole(4)).is_none());
    }

    #[test]
    fn each_buffer_is_given_once_until_it_is_released(mut pool: Windows<'static>) {
        let mut given = 0u8;
        while let Some(buffer) = pool.acquire(WINDOW) {
            assert_eq!(given & 1 << buffer.0, 0, "buffer {} was given twice", buffer.0);
            given |= 1 << buffer.0;
        }
        assert_eq!(given, 0b1111);
        pool.release(BufferIndex(2));
        assert_eq!(pool.acquire(1), Some(BufferIndex(2)));
        assert_eq!(pool.acquire(1), None);
    }

    #[test]
    fn more_than_a_window_is_never_given(mut pool: Windows<'static>) {
        assert_eq!(pool.acquire(WINDOW + 1), None);
    }

    #[test]
    fn a_name_that_leaves_its_window_has_no_bytes(mut pool: Windows<'static>) {
        let data = Data { buffer: BufferIndex(0), offset: 1, length: WINDOW };
        assert!(pool.bytes(data).is_none());
        let overflow = Data { buffer: BufferIndex(u16::MAX), offset: u32::MAX, length: u32::MAX };
        assert!(pool.bytes(overflow).is_none());
    }

    #[test]
    fn buffers_do_not_share_a_byte(mut pool: Windows<'static>) {
        for buffer in 0..4u8 {
            pool.bytes(whole(buffer.into())).unwrap().fill(buffer + 1);
        }
        for buffer in 0..4u8 {
            assert!(pool.bytes(whole(buffer.into())).unwrap().iter().all(|byte| *byte == buffer + 1));
        }
    }

    /// The guard is what turns an overflow of the stack into a failed test, where memory is short.
    #[cfg(target_arch = "arm")]
    #[test]
    #[should_panic]
    fn a_stack_overflow_is_noticed(_pool: Windows<'static>) {
        fn grow(depth: u32) -> u32 {
            let block = core::hint::black_box([depth; 64]);
            if depth == 0 { block[0] } else { grow(depth - 1).wrapping_add(block[1]) }
        }
        core::hint::black_box(grow(1000));
    }
}
