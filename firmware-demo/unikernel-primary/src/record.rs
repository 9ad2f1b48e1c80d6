//! What a record is, byte by byte.
//!
//! | bytes | what |
//! |---|---|
//! | 0..4 | `TbR1` |
//! | 4..8 | bytes of the payload |
//! | 8..16 | sequence number; the first record has 1 |
//! | 16..20 | CRC-32 of bytes 4..16 and of the payload |
//! | 20..24 | zero |
//! | 24.. | payload |
//!
//! Numbers are little-endian. Records begin at the start of a block of 512 bytes and lie one after the other from the start
//! of the disk on; the first that is not what it should be is the end. `records.py` reads the same.

/// Bytes of a block.
pub(crate) const BLOCK: usize = 512;
/// Bytes of the longest record, header included.
pub(crate) const RECORD_BYTES_MAX: usize = 8192;
const MAGIC: [u8; 4] = *b"TbR1";
const HEADER_BYTES: usize = 24;

/// A header that may be one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    pub(crate) sequence: u64,
    /// Bytes of the record on the disk.
    pub(crate) bytes: usize,
}

fn place(bytes: &[u8], at: usize) -> [u8; 4] {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default()
}

fn checksum(numbers: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(numbers);
    hasher.update(payload);
    hasher.finalize()
}

impl Head {
    /// Reads a header; `None` if it is none.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let length = u32::from_le_bytes(place(bytes, 4)) as usize;
        if place(bytes, 0) != MAGIC || length == 0 || length > RECORD_BYTES_MAX - HEADER_BYTES {
            return None;
        }
        let sequence = u64::from_le_bytes(bytes.get(8..16)?.try_into().ok()?);
        Some(Self { sequence, bytes: (HEADER_BYTES + length).next_multiple_of(BLOCK) })
    }

    /// Whether the record that these bytes begin with is whole.
    pub(crate) fn is_whole(bytes: &[u8]) -> bool {
        let length = u32::from_le_bytes(place(bytes, 4)) as usize;
        let parts = bytes.get(4..16).zip(bytes.get(HEADER_BYTES..HEADER_BYTES + length));
        parts.is_some_and(|(numbers, payload)| {
            checksum(numbers, payload) == u32::from_le_bytes(place(bytes, 16))
        })
    }
}

/// Steps of a sequence that looks like chance (SplitMix64; Steele, Lea, Flood: "Fast splittable pseudorandom number
/// generators").
pub(crate) const fn mixed(mut seed: u64) -> u64 {
    seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    seed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    seed = (seed ^ (seed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    seed ^ (seed >> 31)
}

/// Makes the record with this number: how many bytes of `bytes` it takes. Its length and its payload follow from the number.
pub(crate) fn make(sequence: u64, bytes: &mut [u8; RECORD_BYTES_MAX]) -> usize {
    let length = 1 + (mixed(sequence) % (RECORD_BYTES_MAX - HEADER_BYTES) as u64) as usize;
    let (head, payload) = bytes.split_at_mut(HEADER_BYTES);
    head.fill(0);
    head[..4].copy_from_slice(&MAGIC);
    head[4..8].copy_from_slice(&(length as u32).to_le_bytes());
    head[8..16].copy_from_slice(&sequence.to_le_bytes());
    for (word, place) in (1..).zip(payload.chunks_mut(8)) {
        let content = mixed(sequence.wrapping_mul(1 << 20).wrapping_add(word)).to_le_bytes();
        place.iter_mut().zip(content).for_each(|(place, byte)| *place = byte);
    }
    payload[length..].fill(0);
    let checksum = checksum(&head[4..16], &payload[..length]);
    head[16..20].copy_from_slice(&checksum.to_le_bytes());
    (HEADER_BYTES + length).next_multiple_of(BLOCK)
}
