use std::io::Write;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use super::{Interest, Poller, Ready};
use crate::edge;

const SHORT: Option<Duration> = Some(Duration::from_millis(20));

fn wait(poller: &mut Poller) -> Vec<Ready> {
    poller.wait(SHORT).unwrap();
    poller.ready().collect()
}

#[test]
fn what_is_ready_is_reported_under_its_token() {
    let mut poller = edge::poller(4);
    let (mut near, far) = UnixStream::pair().unwrap();
    let (_other_near, other_far) = UnixStream::pair().unwrap();
    let registration = poller.register(&far, Interest::READ, 5).unwrap();
    poller.register(&other_far, Interest::READ, 6).unwrap();
    assert_eq!(wait(&mut poller), []);
    near.write_all(b"x").unwrap();
    assert_eq!(wait(&mut poller), [Ready { token: 5, read: true, write: false }]);
    poller.set_interest(registration, Interest::WRITE);
    assert_eq!(wait(&mut poller), [Ready { token: 5, read: false, write: true }]);
    poller.set_interest(registration, Interest { read: true, write: true });
    assert_eq!(wait(&mut poller), [Ready { token: 5, read: true, write: true }]);
    poller.deregister(registration);
    assert_eq!(wait(&mut poller), []);
}

#[test]
fn a_hang_up_is_reported_unless_nothing_is_waited_for() {
    let mut poller = edge::poller(4);
    let (near, far) = UnixStream::pair().unwrap();
    let registration = poller.register(&far, Interest::READ, 1).unwrap();
    drop(near);
    assert_eq!(wait(&mut poller), [Ready { token: 1, read: true, write: true }]);
    poller.set_interest(registration, Interest::NONE);
    assert_eq!(wait(&mut poller), []);
}

#[test]
fn a_full_set_refuses_and_places_are_used_again() {
    let mut poller = edge::poller(2);
    let (near, far) = UnixStream::pair().unwrap();
    let first = poller.register(&near, Interest::WRITE, 1).unwrap();
    poller.register(&far, Interest::WRITE, 2).unwrap();
    assert!(poller.register(&far, Interest::WRITE, 3).is_none());
    poller.deregister(first);
    poller.register(&near, Interest::WRITE, 4).unwrap();
    let mut tokens: Vec<u32> = wait(&mut poller).iter().map(|ready| ready.token).collect();
    tokens.sort_unstable();
    assert_eq!(tokens, [2, 4]);
}

#[test]
fn what_is_no_longer_waited_for_is_not_reported_and_comes_back_when_it_is() {
    let mut poller = edge::poller(4);
    let (mut near, far) = UnixStream::pair().unwrap();
    let registration = poller.register(&far, Interest::READ, 1).unwrap();
    near.write_all(b"x").unwrap();
    assert_eq!(wait(&mut poller), [Ready { token: 1, read: true, write: false }]);
    // Wanted or not, in any order, with and without a wait between.
    for interest in [Interest::NONE, Interest::WRITE, Interest::NONE, Interest::READ, Interest::NONE] {
        poller.set_interest(registration, interest);
        let expected = Ready { token: 1, read: interest.read, write: interest.write };
        let expected = if interest == Interest::NONE { vec![] } else { vec![expected] };
        assert_eq!(wait(&mut poller), expected);
        assert_eq!(wait(&mut poller), expected);
        poller.set_interest(registration, Interest::READ);
        poller.set_interest(registration, interest);
        assert_eq!(wait(&mut poller), expected);
    }
    drop(near);
    assert_eq!(wait(&mut poller), []);
    poller.set_interest(registration, Interest::READ);
    assert!(wait(&mut poller)[0].read);
}

#[test]
fn a_bell_rung_by_another_thread_ends_a_wait_once() {
    let mut poller = edge::poller(1);
    let waker = poller.waker();
    let ringer = thread::spawn(move || {
        thread::sleep(Duration::from_millis(10));
        waker.wake();
        waker.wake();
    });
    let start = Instant::now();
    poller.wait(Some(Duration::from_secs(10))).unwrap();
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(poller.ready().count(), 0);
    ringer.join().unwrap();
    // The second ring may have come after the first was heard.
    poller.wait(Some(Duration::ZERO)).unwrap();
    let start = Instant::now();
    poller.wait(SHORT).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(15));
}

#[test]
fn a_bell_rung_before_the_wait_is_not_lost() {
    let mut poller = edge::poller(1);
    for _ in 0..3 {
        poller.waker().wake();
        let start = Instant::now();
        poller.wait(Some(Duration::from_secs(10))).unwrap();
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}

#[test]
fn a_descriptor_that_the_system_refuses_to_watch_is_told_by_a_wait_and_hinders_no_other() {
    // A file can be given but not watched.
    let file = tempfile::tempfile().unwrap();
    let mut poller = Poller::new(4).unwrap();
    let (mut near, far) = UnixStream::pair().unwrap();
    assert!(poller.register(&file, Interest::READ, 1).is_none());
    assert_eq!(wait(&mut poller), [], "whoever registered it was told");
    let refused = [2, 3].map(|token| poller.register(&file, Interest::NONE, token).unwrap());
    for registration in refused {
        poller.set_interest(registration, Interest::READ);
    }
    poller.register(&far, Interest::READ, 4).unwrap();
    for _ in refused {
        let error = poller.wait(SHORT).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
    }
    near.write_all(b"x").unwrap();
    assert_eq!(wait(&mut poller), [Ready { token: 4, read: true, write: false }]);
    poller.set_interest(refused[0], Interest::WRITE);
    poller.deregister(refused[0]);
    assert_eq!(wait(&mut poller).len(), 1, "of what was taken out nothing is told");
}
