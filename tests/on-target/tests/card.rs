//! The SD card as a disk of the core, on the target: bytes, blocks, the end of a partition, and how fast it is.
#![no_std]
#![no_main]

use twinblock_on_target as _;

#[embedded_test::tests]
mod tests {
    use embedded_sdmmc::SdCard;
    use static_cell::StaticCell;
    use twinblock_core::block::{Action, BlockDevice, Blocking, BlockingDisk, Tag, Transfer};
    use twinblock_core::{BufferIndex, Data, Errno, Extent, Memory, Outcome, Windows};
    use twinblock_lm3s6965::Board;
    use twinblock_lm3s6965::card::{Card, CardDevice, Spin};
    use twinblock_sd::{Partition, Region};

    type Disk = Region<'static, SdCard<Card, Spin>>;

    static CARD: StaticCell<SdCard<Card, Spin>> = StaticCell::new();
    /// The first block of the partition, and how many it has: the runner makes the card.
    const FIRST_BLOCK: u32 = 1024;
    const BLOCKS: u32 = 1024;

    #[init]
    fn init() -> Disk {
        twinblock_on_target::guard_stack();
        let board = Board::take().expect("nobody has it");
        let card = CARD.init_with(|| SdCard::new(board.card.open(), Spin));
        card.get_card_type().expect("there is a card");
        card.spi(CardDevice::speed_up);
        let [Some(partition), None, None, None] = Partition::table(card).unwrap() else {
            panic!("the card has one partition");
        };
        assert_eq!((partition.first_block, partition.block_count), (FIRST_BLOCK, BLOCKS));
        Region::new(card, partition)
    }

    #[test]
    fn each_block_is_read_from_where_it_is(mut disk: Disk) {
        for block in [0, 1, 255, 256, BLOCKS - 1] {
            let mut bytes = [0; 512];
            disk.read(u64::from(block) * 512, &mut bytes).unwrap();
            assert!(bytes.iter().all(|byte| *byte == (FIRST_BLOCK + block) as u8), "block {block}");
        }
    }

    #[test]
    fn what_was_written_is_read_and_nothing_beside_it_has_changed(mut disk: Disk) {
        let mut bytes = [0; 1400];
        disk.write(700, &[0xab; 1000]).unwrap();
        disk.read(500, &mut bytes).unwrap();
        let expected = |at: usize| match at + 500 {
            700..1700 => 0xab,
            at => (at / 512) as u8,
        };
        assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == expected(at)));
        disk.write_zeroes(Extent { offset: 800, length: 600 }).unwrap();
        disk.read(500, &mut bytes).unwrap();
        assert!(bytes.iter().enumerate().all(|(at, byte)| match at + 500 {
            800..1400 => *byte == 0,
            _ => *byte == expected(at),
        }));
    }

    #[test]
    fn as_a_queue_pair_it_completes_under_the_tag_and_refuses_what_is_out_of_range(disk: Disk) {
        let mut disk = Blocking::new(disk);
        let mut bytes = [0; 512];
        let mut memory = Windows::new(&mut bytes, 512);
        let data = Data { buffer: BufferIndex(0), offset: 0, length: 512 };
        for (offset, expected) in
            [(512, Ok(Outcome::Done)), (u64::from(BLOCKS) * 512 - 511, Err(Errno::Invalid))]
        {
            let tag = Tag { entry: 3, generation: 9 };
            let extent = Extent { offset, length: 512 };
            disk.submit(Transfer { tag, action: Action::Read(data), extent }, &mut memory).unwrap();
            let completion = BlockDevice::<Windows<'_>>::poll(&mut disk, &mut memory).unwrap();
            assert_eq!((completion.tag, completion.result), (tag, expected));
        }
        assert!(memory.bytes(data).unwrap().iter().all(|byte| *byte == 1));
    }
}
