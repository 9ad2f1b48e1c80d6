use super::*;

const VERSION: Version = Version { connection: 3, index: 77 };

fn block(number: u64) -> Block {
    let mut block = [0; BLOCK_BYTES];
    Stamp::new(42).write(&mut block, number, VERSION);
    block
}

#[test]
fn a_block_is_recognised_at_its_place() {
    assert_eq!(Stamp::new(42).read(&block(9), 9), Content::Version(VERSION));
    assert_eq!(Stamp::new(42).read(&block(9), 8), Content::Misplaced);
    assert_eq!(Stamp::new(43).read(&block(9), 9), Content::Foreign);
    assert_eq!(Stamp::new(42).read(&[0; BLOCK_BYTES], 9), Content::Zero);
}

#[test]
fn every_flipped_bit_is_noticed() {
    let good = block(9);
    for bit in 0..BLOCK_BYTES * 8 {
        let mut bad = good;
        bad[bit / 8] ^= 1 << (bit % 8);
        let content = Stamp::new(42).read(&bad, 9);
        assert!(matches!(content, Content::Damaged | Content::Foreign), "bit {bit}: {content:?}");
    }
}

#[test]
fn the_checksum_alone_covers_the_block() {
    let mut bad = block(9);
    let before = checksum(&bad);
    bad[500] ^= 1;
    assert_ne!(checksum(&bad), before);
}

#[test]
fn half_of_one_write_and_half_of_another_is_damage() {
    let mut torn = block(9);
    let mut other = [0; BLOCK_BYTES];
    Stamp::new(42).write(&mut other, 9, Version { connection: 4, index: 1 });
    torn[256..].copy_from_slice(&other[256..]);
    assert_eq!(Stamp::new(42).read(&torn, 9), Content::Damaged);
}
