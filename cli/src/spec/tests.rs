use super::*;

pub(crate) fn secondary(export: &str) -> SecondarySpec {
    SecondarySpec {
        disk: format!("{export}.img").parse().unwrap(),
        direct: false,
        listen: format!("unix:{export}.sock").parse().unwrap(),
        export: export.into(),
        guest: format!("unix:{export}-guest.sock").parse().unwrap(),
        guest_export: None,
        guest_read_only: false,
        buffer: BufferPlace::Memory,
        buffer_size: Size(1 << 20),
        granule: Size(4096),
        when_full: WhenFull::Stall,
        stall_max: Span::from_ms(500),
    }
}

pub(crate) fn daemon(volumes: Vec<VolumeSpec>) -> DaemonSpec {
    DaemonSpec {
        control: "unix:control.sock".parse().unwrap(),
        allow_remote_control: false,
        backend: Backend::Auto,
        connections_max: 8,
        peer_timeout: Span::from_ms(10_000),
        handshake_timeout: Span::from_ms(10_000),
        replica_timeout: Span::from_ms(10_000),
        checkpoint_timeout: Span::from_ms(2_000),
        checkpoint_every: None,
        start: false,
        end_with_parent: false,
        volumes,
    }
}

fn refusal_of(change: impl FnOnce(&mut DaemonSpec, &mut SecondarySpec, &mut SecondarySpec)) -> String {
    let (mut first, mut second) = (secondary("a"), secondary("b"));
    let mut spec = daemon(Vec::new());
    change(&mut spec, &mut first, &mut second);
    spec.volumes = vec![VolumeSpec::Secondary(first), VolumeSpec::Secondary(second)];
    let refusal = spec.check().unwrap_err();
    assert!(!refusal.contains('\n'), "not one line: {refusal}");
    refusal
}

#[test]
fn a_plain_daemon_is_accepted() {
    let spec = daemon(vec![VolumeSpec::Secondary(secondary("a")), VolumeSpec::Secondary(secondary("b"))]);
    assert_eq!(spec.check(), Ok(()));
}

#[test]
fn a_daemon_without_volumes_waits_for_managers_to_add_some() {
    assert_eq!(daemon(Vec::new()).check(), Ok(()));
}

#[test]
fn the_granule_is_a_power_of_two_within_its_limits() {
    for granule in [0, 256, 511, 3 << 10, 512 << 10] {
        let refusal = refusal_of(|_, first, _| first.granule = Size(granule));
        assert!(refusal.contains("'a'") && refusal.contains("power of two"), "{refusal}");
    }
}

#[test]
fn a_buffer_of_few_granules_is_refused_with_the_least_size() {
    let refusal = refusal_of(|_, first, _| first.buffer_size = Size(63 * 4096));
    assert!(refusal.contains("256K or more"), "{refusal}");
}

#[test]
fn volumes_share_neither_name_nor_disk_nor_buffer() {
    let refusal = refusal_of(|_, _, second| second.export = "a".into());
    assert!(refusal.contains("two volumes are called 'a'"), "{refusal}");
    let refusal = refusal_of(|_, first, second| second.disk = first.disk.clone());
    assert!(refusal.contains("a.img is another volume's"), "{refusal}");
    let refusal = refusal_of(|_, first, second| {
        first.buffer = BufferPlace::Path("buffer".into());
        second.buffer = first.buffer.clone();
    });
    assert!(refusal.contains("buffer is another file of this daemon already"), "{refusal}");
}

#[test]
fn one_address_serves_both_ports_only_under_two_names() {
    let refusal = refusal_of(|_, first, _| first.guest = first.listen.clone());
    assert!(refusal.contains("serves an export 'a' already"), "{refusal}");
    let mut only = secondary("a");
    only.guest = only.listen.clone();
    only.guest_export = Some("a-view".into());
    assert_eq!(daemon(vec![VolumeSpec::Secondary(only)]).check(), Ok(()));
}

#[test]
fn the_control_address_serves_nothing_else_and_is_local_unless_allowed() {
    let refusal = refusal_of(|spec, first, _| first.guest = spec.control.clone());
    assert!(refusal.contains("is the control address"), "{refusal}");
    let refusal = refusal_of(|spec, _, _| spec.control = "tcp:192.0.2.1:1".parse().unwrap());
    assert!(refusal.contains("--allow-remote-control"), "{refusal}");
    for local in ["tcp:127.0.0.1:1", "tcp:[::1]:1", "tcp:localhost:1"] {
        let spec = DaemonSpec {
            control: local.parse().unwrap(),
            ..daemon(vec![VolumeSpec::Secondary(secondary("a"))])
        };
        assert_eq!(spec.check(), Ok(()));
    }
    let mut wide = daemon(vec![VolumeSpec::Secondary(secondary("a"))]);
    wide.control = "tcp:192.0.2.1:1".parse().unwrap();
    wide.allow_remote_control = true;
    assert_eq!(wide.check(), Ok(()));
}

#[test]
fn names_are_short_and_printable() {
    let long = "n".repeat(65);
    for (name, reason) in [("", "no name"), (long.as_str(), "too long"), ("a\nb", "control characters")] {
        let refusal = refusal_of(|_, first, _| first.export = name.into());
        assert!(refusal.contains(reason), "{refusal}");
    }
}

#[test]
fn checkpoints_by_itself_need_a_primary() {
    let refusal = refusal_of(|spec, _, _| spec.checkpoint_every = Some(Span::from_ms(100)));
    assert!(refusal.contains("checkpoint-every"), "{refusal}");
    let refusal = refusal_of(|spec, _, _| spec.peer_timeout = Span::from_ms(0));
    assert!(refusal.contains("peer-timeout"), "{refusal}");
}

#[test]
fn a_disk_is_a_path_unless_an_nbd_uri_is_meant() {
    let uri = "nbd+unix:///a%20b/c?socket=/run/%25.sock";
    assert!(matches!(uri.parse(), Ok(Disk::Nbd(found)) if found.to_string() == uri));
    for text in ["nbds://host/x", "nbd://host:x/", "nbd+unix:///x", ""] {
        assert!(text.parse::<Disk>().is_err(), "{text}");
    }
    assert_eq!("disk.img".parse::<Disk>().unwrap().to_string(), "disk.img");
}
