//! NBD sessions of both sides, byte by byte.

use twinblock_core::nbd::Segments;
use twinblock_core::nbd::client::{self, ClientConfig, ClientMemory};
use twinblock_core::nbd::server::{self, Export, Exports, ServerConfig, ServerMemory};
use twinblock_core::nbd::wire::{
    ChunkHeader, Fields, Greeting, OptionHeader, OptionReply, RequestHeader, SimpleReply,
};
use twinblock_core::{Errno, Identity, Micros, Outcome, Reply, RequestId, Windows};

use crate::devices::any_transfer;
use crate::{any, lent, see};

struct AnyExports;

impl Exports for AnyExports {
    fn count(&self) -> usize {
        any(0)
    }

    fn export(&self, index: usize) -> Option<Export<'_>> {
        see(index);
        any(Some(Export::new("", 0)))
    }
}

fn show(mut segments: Segments<'_>) {
    while let Some(segment) = any(&mut segments).next() {
        see(segment.length());
        see(segment);
    }
}

/// A server's session, in any state.
pub(crate) fn server() {
    let memory = ServerMemory {
        requests: lent(),
        pieces: lent(),
        option_data: lent(),
        output_bytes: lent(),
        output_entries: lent(),
    };
    let Ok(mut session) = server::Session::new(any(ServerConfig::new(0, 0)), memory) else { return };
    let mut pool = Windows::new(lent(), any(0));
    let pool = any(&mut pool);
    see(any(&mut session).receive(any(&[]), &AnyExports, pool));
    see(any(&mut session).receive_into());
    any(&mut session).received_into(any(0));
    see(any(&mut session).poll_event(pool));
    let reply = Reply { id: RequestId(0), result: Ok(Outcome::Done) };
    any(&mut session).handle_reply(any(reply), pool);
    show(any(&session).segments());
    any(&mut session).sent(any(0), pool);
    any(&mut session).abandon(pool);
    see(any(&mut session).reset());
}

/// A client's session, in any state.
pub(crate) fn client() {
    let memory = ClientMemory { transfers: lent(), output_bytes: lent(), output_entries: lent() };
    let config = any(ClientConfig { export: "", identity: Some(Identity([0; 16])), want_allocation: false });
    let Ok(mut session) = client::Session::new(config, memory) else { return };
    let mut windows = Windows::new(lent(), any(0));
    let windows = any(&mut windows);
    any(&mut session).receive(any(&[]), windows);
    see(any(&mut session).receive_into());
    any(&mut session).received_into(any(0));
    see(any(&mut session).poll_event());
    see(any(&mut session).submit(any_transfer(), any(Micros(0))));
    see(any(&mut session).poll());
    see(any(&mut session).oldest_in_flight());
    see(any(&session).error_text());
    show(any(&session).segments());
    any(&mut session).sent(any(0));
    any(&mut session).disconnect();
    any(&mut session).fail_all(any(Errno::Io));
    see(any(&mut session).reset_for(config));
}

/// The headers by themselves, both ways.
pub(crate) fn headers() {
    macro_rules! both_ways {
        ($($header:ty, $bytes:expr;)*) => {
            $(if let Some(header) = any(<$header>::decode(any(&[0; $bytes]))) {
                see(header.encode());
            })*
        };
    }
    use twinblock_core::nbd::wire;
    both_ways! {
        Greeting, wire::GREETING_BYTES;
        OptionHeader, wire::OPTION_BYTES;
        OptionReply, wire::OPTION_REPLY_BYTES;
        RequestHeader, wire::REQUEST_BYTES;
        SimpleReply, wire::SIMPLE_REPLY_BYTES;
        ChunkHeader, wire::CHUNK_BYTES;
    }
    let mut fields = Fields(any(&[]));
    see(any(&mut fields).string());
    see(any(&mut fields).bytes(any(0)));
}
