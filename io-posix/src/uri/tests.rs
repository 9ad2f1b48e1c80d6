use super::NbdUri;
use crate::address::Address;

fn tcp(host: &str, port: u16, export: &str) -> NbdUri {
    NbdUri { address: Address::Tcp { host: host.into(), port }, export: export.into() }
}

fn unix(path: &str, export: &str) -> NbdUri {
    NbdUri { address: Address::Unix(path.into()), export: export.into() }
}

#[test]
fn uris_name_an_address_and_an_export() {
    let table = [
        ("nbd://example.com", tcp("example.com", 10809, "")),
        ("nbd://example.com/", tcp("example.com", 10809, "")),
        ("nbd://example.com:1234/disk", tcp("example.com", 1234, "disk")),
        ("nbd://example.com//disk", tcp("example.com", 10809, "/disk")),
        ("nbd://192.0.2.7/a/b", tcp("192.0.2.7", 10809, "a/b")),
        ("nbd://[2001:db8::1]:7/x", tcp("2001:db8::1", 7, "x")),
        ("nbd://h/with%20space%2Fslash%23%C3%A4", tcp("h", 10809, "with space/slash#ä")),
        ("nbd://h/a%2F..%2Fb", tcp("h", 10809, "a/../b")),
        ("nbd+unix:///?socket=/run/s", unix("/run/s", "")),
        ("nbd+unix:///disk?socket=/run/a%20b+c", unix("/run/a b+c", "disk")),
        ("NBD+UNIX:///disk?socket=relative", unix("relative", "disk")),
    ];
    for (text, uri) in table {
        assert_eq!(text.parse::<NbdUri>().as_ref(), Ok(&uri), "{text}");
        assert_eq!(uri.to_string().parse::<NbdUri>(), Ok(uri), "{text} written and read");
    }
}

#[test]
fn what_cannot_be_used_is_refused_with_the_reason() {
    let table = [
        ("nbds://h/x", "TLS"),
        ("nbds+unix:///x?socket=/s", "TLS"),
        ("http://h/x", "scheme"),
        ("nbd:h:10809", "no //"),
        ("nbd+unix:.///disk?socket=nbd://s", "no //"),
        ("/dev/sda", "relative URL"),
        ("nbd:///x", "host is missing"),
        ("nbd://h:99999/x", "port"),
        ("nbd://user@h/x", "user name"),
        ("nbd://h/x#y", "%23"),
        ("nbd://h/x?socket=/s", "nbd+unix"),
        ("nbd://h/x?tls-certificates=/c", "'tls-certificates' is not known"),
        ("nbd+unix:///x", "?socket=PATH is missing"),
        ("nbd+unix:///x?socket=", "one path"),
        ("nbd+unix:///x?socket=/a&socket=/b", "one path"),
        ("nbd+unix://host/x?socket=/a", "no host"),
        ("nbd://h/%ff", "UTF-8"),
        ("nbd://h/a%00b", "zero byte"),
        ("nbd://\"memory\"%20b", "is no host"),
        ("nbd://a%3ab/x", "'a:b' is no host"),
    ];
    for (text, part) in table {
        let error = text.parse::<NbdUri>().expect_err(text).to_string();
        assert!(error.contains(part), "{text}: {error}");
        assert!(error.contains(text) && error.contains("nbd://HOST"), "{error}");
    }
}

#[test]
fn paths_are_told_from_uris() {
    for (text, is_uri) in [
        ("nbd://h", true),
        ("nbd+unix:///", true),
        ("nbdsomething://", true),
        ("/a/nbd://b", false),
        ("nbd.img", false),
    ] {
        assert_eq!(NbdUri::is_meant(text), is_uri, "{text}");
    }
}
