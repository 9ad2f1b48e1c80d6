use super::*;

const SMALL: &str = "control = \"unix:c\"\n[[secondary]]\nexport = \"d\"\ndisk = \"d.img\"\nlisten = \"unix:l\"\n\
                     guest = \"unix:g\"\nbuffer = \"memory\"\nbuffer-size = \"1M\"\n";

fn refusal_of(text: &str) -> String {
    let refusal = parse(text, "pair.toml").unwrap_err();
    assert!(!refusal.contains('\n'), "not one line: {refusal}");
    refusal
}

#[test]
fn the_example_has_every_key_and_both_roles() {
    let spec = parse(EXAMPLE, "example").unwrap();
    assert_eq!(spec.checkpoint_every, Some(Span::from_ms(100)));
    let [VolumeSpec::Primary(primary), VolumeSpec::Secondary(secondary)] = spec.volumes.as_slice() else {
        panic!("{spec:?}")
    };
    assert_eq!(primary.replicas[0].name, "machine-b");
    assert_eq!(primary.replicas[0].control, Some("tcp:192.0.2.2:10810".parse().unwrap()));
    assert_eq!(secondary.buffer_size, Size(1 << 30));
    assert_eq!(secondary.guest_export(), "disk1");
}

#[test]
fn what_is_left_out_has_the_same_default_as_the_flag() {
    use clap::Parser;
    let command = "twinblock secondary --control unix:c --export d --disk d.img --listen unix:l --guest unix:g \
                   --buffer memory --buffer-size 1M";
    let cli = crate::args::Cli::parse_from(command.split_whitespace());
    let crate::args::Command::Secondary(flags) = cli.command else { panic!("{cli:?}") };
    assert_eq!(parse(SMALL, "small"), Ok(flags.into_spec()));

    let command =
        "twinblock primary --control unix:c --export d --disk d.img --listen unix:l --replica nbd://h/x";
    let cli = crate::args::Cli::parse_from(command.split_whitespace());
    let crate::args::Command::Primary(flags) = cli.command else { panic!("{cli:?}") };
    let text = "control = 'unix:c'\n[[primary]]\nexport = 'd'\ndisk = 'd.img'\nlisten = 'unix:l'\n\
                replica = [{ uri = 'nbd://h/x' }]\n";
    assert_eq!(parse(text, "small"), Ok(flags.into_spec()));
}

#[test]
fn a_mistake_is_named_with_its_line() {
    let refusal = refusal_of(&SMALL.replace("buffer-size = \"1M\"", "bufer-size = \"1M\""));
    assert!(refusal.starts_with("pair.toml:8: ") && refusal.contains("bufer-size"), "{refusal}");
    let refusal = refusal_of(&SMALL.replace("\"1M\"", "\"1X\""));
    assert!(refusal.starts_with("pair.toml:8: ") && refusal.contains("'1X' is no size"), "{refusal}");
    let refusal = refusal_of(&SMALL.replace("\"unix:l\"", "\"l\""));
    assert!(refusal.starts_with("pair.toml:5: ") && refusal.contains("unix:PATH"), "{refusal}");
    let refusal = refusal_of(&SMALL.replace("disk = \"d.img\"\n", ""));
    assert!(refusal.starts_with("pair.toml:2: ") && refusal.contains("disk"), "{refusal}");
    assert!(refusal_of("control = ").starts_with("pair.toml:1: "));
}

#[test]
fn the_rules_for_flags_hold_for_files() {
    let refusal = refusal_of(&SMALL.replace("\"1M\"", "\"4K\""));
    assert!(refusal.starts_with("pair.toml: volume 'd': buffer of 4K is too small"), "{refusal}");
}

#[test]
fn a_file_without_a_volume_is_for_a_daemon_that_is_given_them_by_managers() {
    let spec = parse("control = \"unix:c\"\ncheckpoint-every = \"1s\"\n", "empty").unwrap();
    assert_eq!((spec.volumes.len(), spec.checkpoint_every), (0, Some(Span::from_ms(1000))));
    let refusal = refusal_of("checkpoint-every = \"1s\"");
    assert!(refusal.contains("control"), "nobody could give it one: {refusal}");
}

#[test]
fn a_size_may_be_a_plain_number() {
    let spec = parse(&SMALL.replace("\"1M\"", "1048576"), "small").unwrap();
    assert_eq!(spec, parse(SMALL, "small").unwrap());
    assert!(refusal_of(&SMALL.replace("\"1M\"", "-1")).contains("negative"));
}

#[test]
fn a_missing_file_is_wrong_usage() {
    let failure = load(Path::new("/nonexistent/pair.toml")).unwrap_err();
    assert_eq!(failure.exit_code(), 2);
}
