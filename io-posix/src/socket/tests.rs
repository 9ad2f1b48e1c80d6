use std::fs;
use std::io::{self, IoSlice};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use rustix::net::sockopt;

use super::{BATCH_MAX, Batch, Connecting, ListenOptions, Listener, PeerTimeout, Stream, Target};
use crate::address::Address;
use crate::poller::{Interest, Poller};

fn bind(text: &str) -> io::Result<Listener> {
    Listener::bind(&text.parse::<Address>().unwrap(), ListenOptions::default())
}

fn connect(address: &Address) -> io::Result<Stream> {
    let mut target = Target::resolve(address)?;
    match Stream::connect(&mut target, PeerTimeout::default())? {
        Connecting::Connected(stream) => Ok(stream),
        Connecting::Pending(stream) => {
            wait(&stream, Interest::WRITE);
            stream.finish_connect()?;
            Ok(stream)
        }
    }
}

fn wait(fd: &impl std::os::fd::AsFd, interest: Interest) {
    let mut poller = Poller::new(1).unwrap();
    poller.register(fd, interest, 0).unwrap();
    poller.wait(Some(Duration::from_secs(5))).unwrap();
}

fn recv(stream: &Stream, bytes: &mut [u8]) -> usize {
    wait(stream, Interest::READ);
    stream.recv(bytes).unwrap().unwrap()
}

#[test]
fn streams_carry_bytes_over_unix_sockets_and_tcp() {
    let folder = tempfile::tempdir().unwrap();
    for text in
        [format!("unix:{}/s", folder.path().display()), "tcp:127.0.0.1:0".into(), "tcp:[::1]:0".into()]
    {
        let listener = match bind(&text) {
            Err(error) if text.contains("::1") => {
                eprintln!("skipped, no IPv6 here: {error}");
                continue;
            }
            listener => listener.unwrap(),
        };
        assert!(listener.accept().unwrap().is_none());
        let near = connect(listener.address()).unwrap();
        wait(&listener, Interest::READ);
        let far = listener.accept().unwrap().unwrap();
        let mut bytes = [0; 16];
        assert_eq!(far.recv(&mut bytes).unwrap(), None);
        assert_eq!(near.send(&[IoSlice::new(b"twin"), IoSlice::new(b"block")]).unwrap(), Some(9));
        assert_eq!((recv(&far, &mut bytes), &bytes[..9]), (9, b"twinblock".as_slice()));
        near.finish_sending();
        assert_eq!(recv(&far, &mut bytes), 0);
        assert_eq!(far.send(&[IoSlice::new(b"x")]).unwrap(), Some(1));
        assert_eq!(recv(&near, &mut bytes), 1);
        drop(near);
        // The first may still go out; one of the next fails, and no signal kills the process.
        let start = Instant::now();
        while far.send(&[IoSlice::new(b"x")]).is_ok() {
            assert!(start.elapsed() < Duration::from_secs(5));
        }
    }
}

#[test]
fn a_stream_without_room_says_so_and_sends_the_rest_later() {
    let (near, far) = Stream::pair().unwrap();
    let bytes = vec![7; 1 << 20];
    let mut sent = 0;
    while let Some(count) = near.send(&[IoSlice::new(&bytes)]).unwrap() {
        sent += count;
    }
    let mut received = 0;
    let mut buffer = vec![0; 1 << 16];
    while let Some(count) = far.recv(&mut buffer).unwrap() {
        assert!(buffer[..count].iter().all(|byte| *byte == 7));
        received += count;
    }
    assert_eq!(sent, received);
    assert!(near.send(&[IoSlice::new(&bytes)]).unwrap().is_some());
}

#[test]
fn a_unix_socket_holds_a_window_in_either_direction() {
    let folder = tempfile::tempdir().unwrap();
    let listener = bind(&format!("unix:{}/s", folder.path().display())).unwrap();
    let near = connect(listener.address()).unwrap();
    wait(&listener, Interest::READ);
    let far = listener.accept().unwrap().unwrap();
    let window = vec![1; crate::memory::WINDOW_BYTES as usize];
    for end in [&near, &far] {
        assert_eq!(end.send(&[IoSlice::new(&window)]).unwrap(), Some(window.len()));
    }
}

#[test]
fn a_stale_socket_file_is_replaced_and_a_live_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let text = format!("unix:{}", path.display());
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let listener = bind(&text).unwrap();
    let error = bind(&text).unwrap_err().to_string();
    assert!(error.contains("another process listens there") && error.contains(&text), "{error}");
    connect(listener.address()).unwrap();
    drop(listener);
    assert!(!path.exists());
    fs::write(&path, "precious").unwrap();
    assert!(bind(&text).unwrap_err().to_string().contains("not a socket"));
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[test]
fn a_socket_that_vanishes_while_it_is_tried_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    // As the system leaves that of a process which was killed, for a moment.
    let old = UnixListener::bind(&path).unwrap();
    let end = std::thread::spawn(move || {
        let taken = old.accept();
        drop(old);
        drop(taken);
    });
    let listener = bind(&format!("unix:{}", path.display())).unwrap();
    end.join().unwrap();
    connect(listener.address()).unwrap();
}

#[test]
fn a_listener_removes_only_its_own_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let listener = bind(&format!("unix:{}", path.display())).unwrap();
    fs::remove_file(&path).unwrap();
    let _successor = UnixListener::bind(&path).unwrap();
    drop(listener);
    assert!(path.exists());
}

#[test]
fn a_private_socket_is_for_its_user_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let options = ListenOptions { is_private: true, ..ListenOptions::default() };
    let _listener = Listener::bind(&Address::Unix(path.clone()), options).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn tcp_connections_send_at_once_and_notice_a_vanished_peer() {
    let options =
        ListenOptions { peer_timeout: PeerTimeout(Duration::from_secs(6)), ..ListenOptions::default() };
    let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap(), options).unwrap();
    let _near = connect(listener.address()).unwrap();
    wait(&listener, Interest::READ);
    let far = listener.accept().unwrap().unwrap();
    assert!(sockopt::tcp_nodelay(&far).unwrap());
    assert!(sockopt::socket_keepalive(&far).unwrap());
    assert_eq!(sockopt::tcp_keepidle(&far).unwrap(), Duration::from_secs(3));
    assert_eq!(sockopt::tcp_keepintvl(&far).unwrap(), Duration::from_secs(1));
    assert_eq!(sockopt::tcp_user_timeout(&far).unwrap(), 6000);
}

#[test]
fn connecting_where_nobody_listens_fails() {
    let folder = tempfile::tempdir().unwrap();
    assert!(connect(&Address::Unix(folder.path().join("none"))).is_err());
    let port = bind("tcp:127.0.0.1:0").unwrap().address().clone();
    assert_eq!(connect(&port).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_port_that_is_about_to_become_free_is_waited_for() {
    let is_waited_for = |_| {
        let old = bind("tcp:127.0.0.1:0").unwrap();
        let text = old.address().to_string();
        let ending = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            drop(old);
        });
        let new = bind(&text);
        ending.join().unwrap();
        new.is_ok_and(|new| new.address().to_string() == text)
    };
    // On a machine that has much else to do it may become free too late.
    assert!((0..5).any(is_waited_for));
}

#[test]
fn a_port_in_use_is_named() {
    let listener = bind("tcp:127.0.0.1:0").unwrap();
    let error = bind(&listener.address().to_string()).unwrap_err().to_string();
    assert!(error.contains(&listener.address().to_string()), "{error}");
    let long = format!("unix:/tmp/{}", "x".repeat(120));
    assert!(bind(&long).unwrap_err().to_string().contains("107"));
}

#[test]
fn segments_are_gathered_up_to_their_number() {
    let mut segments = Batch::default();
    assert!(segments.push(b""));
    for _ in 0..BATCH_MAX {
        assert!(segments.push(b"ab"));
    }
    assert!(!segments.push(b"c"));
    assert_eq!((segments.slices().len(), segments.byte_count()), (BATCH_MAX, 2 * BATCH_MAX));
}
