use super::Address;

fn parse(text: &str) -> Result<Address, &'static str> {
    text.parse::<Address>().map_err(|error| error.reason)
}

#[test]
fn addresses_are_written_as_they_are_read() {
    for text in
        ["unix:/run/a b.sock", "unix:relative", "tcp:localhost:0", "tcp:192.0.2.1:10809", "tcp:[::1]:1"]
    {
        assert_eq!(parse(text).unwrap().to_string(), text);
    }
    assert_eq!(parse("tcp:[host]:1"), parse("tcp:host:1"));
}

#[test]
fn what_is_no_address_is_refused_with_the_reason() {
    let table = [
        ("", "it begins neither with unix: nor with tcp:"),
        ("/run/socket", "it begins neither with unix: nor with tcp:"),
        ("unix:", "the path is missing"),
        ("tcp:host", "the port is missing"),
        ("tcp:host:", "the port is not a number up to 65535"),
        ("tcp:host:65536", "the port is not a number up to 65535"),
        ("tcp::1", "the host is missing"),
        ("tcp:::1:1", "an IPv6 address needs brackets"),
        ("tcp:[::1:1", "a bracket is not closed"),
        ("tcp:[]:1", "the host is missing"),
        ("tcp:a b:1", "the host is neither a name nor an IP address"),
        ("tcp:[[x]:1", "the host is neither a name nor an IP address"),
    ];
    for (text, reason) in table {
        assert_eq!(parse(text), Err(reason), "{text}");
    }
}

#[test]
fn only_unix_sockets_and_loopback_are_local() {
    for (text, is_local) in [
        ("unix:/x", true),
        ("tcp:127.0.0.2:1", true),
        ("tcp:[::1]:1", true),
        ("tcp:localhost:1", true),
        ("tcp:0.0.0.0:1", false),
        ("tcp:[::]:1", false),
        ("tcp:localhost.example:1", false),
    ] {
        assert_eq!(parse(text).unwrap().is_local(), is_local, "{text}");
    }
}
