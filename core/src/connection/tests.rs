use std::vec::Vec;

use super::{Connection, Connections};
use crate::{ConnectionId, Extent, Op, Refused, Request, RequestId};

const A: ConnectionId = ConnectionId(1);
const B: ConnectionId = ConnectionId(2);

fn piece(is_first: bool, is_last: bool) -> Request {
    let op = Op::WriteZeroes { may_unmap: false, fast: false, fua: false };
    Request { id: RequestId(0), op, extent: Extent { offset: 0, length: 1 }, is_first, is_last }
}

fn unfinished(connections: &Connections<'_, u8>) -> Vec<ConnectionId> {
    connections.unfinished().collect()
}

#[test]
fn a_connection_is_known_from_its_opening_to_its_end() {
    let mut places = [Connection::FREE; 2];
    let mut connections = Connections::new(&mut places);
    assert_eq!(connections.open(A, 7), Ok(()));
    assert_eq!(connections.open(A, 8), Err(Refused::Stale));
    assert_eq!(connections.open(B, 9), Ok(()));
    assert_eq!(connections.open(ConnectionId(3), 0), Err(Refused::NoRoom));
    assert_eq!(connections.find(B).map(|open| open.about), Some(9));
    assert_eq!(connections.remove(A).map(|open| open.about), Some(7));
    assert!(connections.remove(A).is_none() && connections.find(A).is_none());
    assert_eq!(connections.iter().count(), 1);
    assert_eq!(connections.open(ConnectionId(3), 0), Ok(()));
}

#[test]
fn a_modification_counts_once_whatever_its_pieces() {
    let mut places = [Connection::FREE; 2];
    let mut connections = Connections::new(&mut places);
    connections.open(A, 0).unwrap();
    connections.open(B, 0).unwrap();
    for (is_first, is_last) in [(true, true), (true, false), (false, false), (false, true), (true, false)] {
        connections.count(B, &piece(is_first, is_last), false);
    }
    assert_eq!(connections.find(B).unwrap().modifications, 3);
    assert_eq!(connections.find(A).unwrap().modifications, 0);
    assert_eq!(unfinished(&connections), [B]);
    connections.count(B, &piece(false, true), false);
    assert_eq!(unfinished(&connections), []);
}

#[test]
fn a_barrier_waits_for_the_rest_of_what_began_before_it_and_for_nothing_else() {
    let mut places = [Connection::FREE; 2];
    let mut connections = Connections::new(&mut places);
    connections.open(A, 0).unwrap();
    connections.open(B, 0).unwrap();
    connections.count(A, &piece(true, false), false);
    connections.count(B, &piece(true, false), true);
    assert_eq!(unfinished(&connections), [A]);
    assert!(connections.is_awaited(A, &piece(false, false)));
    assert!(!connections.is_awaited(A, &piece(true, false)), "another one begins now");
    assert!(!connections.is_awaited(B, &piece(false, true)), "it began after the barrier");
    assert!(!connections.is_awaited(ConnectionId(3), &piece(false, true)));
    connections.count(A, &piece(false, false), true);
    assert_eq!(unfinished(&connections), [A], "its later pieces belong to it");
    connections.count(A, &piece(false, true), true);
    assert!(!connections.is_awaited(A, &piece(false, true)));
    connections.lower_barrier();
    assert_eq!(unfinished(&connections), [B]);
}
