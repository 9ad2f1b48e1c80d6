use super::*;
use crate::nbd::testing::{Buffers, Chance};
use crate::{BufferIndex, Data, Memory, Pool};
use proptest::prelude::*;
use wire::{command, option as code};

/// A conversation with some sense in it.
fn script(seed: u64) -> Vec<u8> {
    let mut chance = Chance(seed);
    let mut bytes = FIXED.to_vec();
    if chance.below(2) == 0 {
        bytes.extend(option(code::LIST, &[]));
        bytes.extend(option(code::STRUCTURED_REPLY, &[]));
        bytes.extend(option(99, &[3; 700]));
        bytes.extend(option(code::SET_META_CONTEXT, &context_data("disk", &["base:allocation"])));
    }
    bytes.extend(option(code::GO, &info_data("disk", &[3, 1, 2])));
    for cookie in 0..30 {
        let command = chance.below(9) as u16;
        let command = if command == command::DISC { command::READ } else { command };
        let flags = CommandFlags::from_bits_retain(1 << chance.below(7));
        let flags = if chance.below(2) == 0 { CommandFlags::empty() } else { flags };
        let length = chance.below(6000) as u32;
        bytes.extend(request(command, flags, cookie, chance.below(64 << 10), length));
        if command == command::WRITE {
            bytes.extend((0..length).map(|at| (u64::from(at) + cookie) as u8));
        }
    }
    bytes.extend(request(command::DISC, CommandFlags::empty(), 0, 0, 0));
    bytes
}

fn server(sizes: Sizes) -> Server {
    let export = Export { payload_max: 5000, description: "for tests", ..Export::new("disk", 64 << 10) };
    Server::new(sizes, export)
}

proptest! {
    #[test]
    fn byte_by_byte_is_the_same_as_all_at_once(seed in any::<u64>(), step in 1usize..100) {
        let bytes = script(seed);
        let mut whole = server(Sizes::LARGE);
        let expected = whole.talk(&bytes);
        let mut parts = server(Sizes::LARGE);
        let (output, taken) = parts.talk_by(&bytes, step);
        prop_assert_eq!(taken, bytes.len());
        prop_assert!(output == expected);
        prop_assert_eq!(&parts.events, &whole.events);
        prop_assert_eq!(parts.events.last(), Some(&ServerEvent::Closed { clean: true }));
        prop_assert!(parts.ram.disk == whole.ram.disk);
        parts.assert_idle();
    }

    #[test]
    fn nothing_a_client_sends_does_harm(seed in any::<u64>(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..20),
                                        noise in prop::collection::vec(any::<u8>(), 0..100), step in 1usize..3000) {
        let mut bytes = script(seed);
        for (index, value) in changes {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        bytes.extend(noise);
        let mut server = server(Sizes::SMALL);
        server.talk_by(&bytes, step);
        server.session.abandon(&mut server.pool);
        server.assert_idle();
        prop_assert_eq!(server.session.reset(), Ok(()));
    }

    #[test]
    fn noise_does_no_harm(noise in prop::collection::vec(any::<u8>(), 0..500), is_open in any::<bool>()) {
        let mut server = if is_open {
            opened(Sizes::SMALL, Export::new("disk", 4096), true)
        } else {
            greeted(Sizes::SMALL, vec![Export::new("disk", 4096)])
        };
        server.talk_by(&noise, 7);
        server.session.abandon(&mut server.pool);
        server.assert_idle();
    }
}

#[test]
fn settings_that_cannot_work_are_refused() {
    use crate::nbd::testing::leak;
    let memory = |requests, pieces, option, output| ServerMemory {
        requests: leak(RequestSlot::EMPTY, requests),
        pieces: leak(PieceSlot::EMPTY, pieces),
        option_data: leak(0, option),
        output_bytes: leak(0, output),
        output_entries: leak(OutputEntry::EMPTY, 4),
    };
    let config = ServerConfig::new(4096, 0);
    let refusal = |config, memory| Session::new(config, memory).err();
    assert_eq!(refusal(config, memory(1, 1, 512, 512)), None);
    assert_eq!(refusal(config, memory(0, 1, 512, 512)), Some(BadSetup::Slots));
    assert_eq!(refusal(config, memory(1, 0, 512, 512)), Some(BadSetup::Slots));
    assert_eq!(refusal(config, memory(1, 1, 511, 512)), Some(BadSetup::Room));
    assert_eq!(refusal(config, memory(1, 1, 512, 511)), Some(BadSetup::Room));
    for window in [0, 3000] {
        assert_eq!(refusal(ServerConfig::new(window, 0), memory(1, 1, 512, 512)), Some(BadSetup::Window));
    }
    for zero_piece_bytes in [0, 2048, 4097, 3 * 4096] {
        let config = ServerConfig { zero_piece_bytes, ..config };
        assert_eq!(refusal(config, memory(1, 1, 512, 512)), Some(BadSetup::Window));
    }
}

/// A pool that forgets a byte of each of its buffers.
struct Forgetful(Buffers);

impl Memory for Forgetful {
    fn bytes(&mut self, data: Data) -> Option<&mut [u8]> {
        self.0.bytes(data)?.split_last_mut().map(|(_, rest)| rest)
    }
}

impl Pool for Forgetful {
    fn acquire(&mut self, length: u32) -> Option<BufferIndex> {
        self.0.acquire(length)
    }

    fn release(&mut self, buffer: BufferIndex) {
        self.0.release(buffer);
    }
}

#[test]
fn a_pool_that_gives_fewer_bytes_than_it_was_asked_for_ends_the_connection_and_nothing_else() {
    let mut server = server(Sizes::LARGE);
    server.talk(&[&FIXED[..], &option(code::GO, &info_data("disk", &[]))].concat());
    let mut pool = Forgetful(Buffers::new(1, 4096));
    let bytes = [request(command::WRITE, CommandFlags::empty(), 1, 0, 100), vec![1; 100]].concat();
    server.session.receive(&bytes, &server.exports, &mut pool);
    assert!(server.session.is_closed());
    assert_eq!((server.session.in_flight(), pool.0.taken()), (0, 0));
}
