//! What a session has to send, put on the wire.

use std::io;
use std::os::fd::BorrowedFd;

use twinblock_core::nbd::{Segment, Segments};

use crate::memory::HostPool;
use crate::socket::{Batch, send_on};

/// Sends what fits into one call; how many bytes went.
pub(crate) fn send_segments(
    socket: BorrowedFd<'_>,
    segments: Segments<'_>,
    memory: &HostPool,
) -> io::Result<Option<usize>> {
    let mut batch = Batch::default();
    for segment in segments {
        let bytes = match segment {
            Segment::Bytes(bytes) => bytes,
            Segment::Pool(data) => {
                memory.shared(data).ok_or_else(|| io::Error::other("a buffer to send is not there"))?
            }
        };
        if !batch.push(bytes) {
            break;
        }
    }
    if batch.byte_count() == 0 {
        return Err(io::Error::other("nothing to send where something should be"));
    }
    send_on(socket, batch.slices())
}
