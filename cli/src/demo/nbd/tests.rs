use super::*;
use crate::demo::server::Server;

const TIMEOUT: Duration = Duration::from_secs(5);

#[test]
fn what_is_written_is_read_back() {
    let server = Server::start(vec![0; 8192]);
    let mut export = Export::connect(&server.path, "x", TIMEOUT).unwrap();
    assert_eq!(export.size_bytes, 8192);
    let head = Head { command: Command::Write, flags: FUA, cookie: 5, offset: 512, length: 4 };
    assert_eq!(export.call(head, b"twin").unwrap(), Answer { cookie: 5, error: 0 });
    let head = Head { command: Command::Read, flags: 0, ..head };
    assert_eq!(export.call(head, b"").unwrap().error, 0);
    let mut data = [0; 4];
    export.stream.read_exact(&mut data).unwrap();
    assert_eq!(&data, b"twin");
    export.disconnect();
}

#[test]
fn an_export_that_is_refused_is_an_error_with_the_servers_text() {
    let server = Server::start(vec![0; 8192]);
    let error = Export::connect(&server.path, "y", TIMEOUT).unwrap_err();
    assert!(format!("{error:#}").contains("no such export"), "{error:#}");
    assert!(Export::connect(Path::new("/nonexistent"), "x", TIMEOUT).is_err());
}

#[test]
fn what_is_no_reply_is_an_error() {
    assert!(Answer::read(&mut [0; 16].as_slice()).is_err());
    assert!(Answer::read(&mut [0; 15].as_slice()).is_err());
}
