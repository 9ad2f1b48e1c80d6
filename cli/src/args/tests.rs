use clap::CommandFactory;

use super::*;
use crate::spec::{DaemonSpec, VolumeSpec, WhenFull};

fn parse(line: &str) -> Result<Command, String> {
    Cli::try_parse_from(line.split_whitespace()).map(|cli| cli.command).map_err(|error| one_line(&error))
}

fn spec(line: &str) -> Result<DaemonSpec, String> {
    match parse(line)? {
        Command::Secondary(flags) => Ok(flags.into_spec()),
        Command::Primary(flags) => Ok(flags.into_spec()),
        other => panic!("{other:?}"),
    }
}

const PRIMARY: &str = "twinblock primary --disk d --listen unix:l --export x --control unix:c";
const SECONDARY: &str = "twinblock secondary --disk d --listen unix:l --export x --guest unix:g --control unix:c \
                         --buffer memory --buffer-size 64M";

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
}

#[test]
fn the_documented_flags_of_a_secondary_are_understood() {
    let line = format!(
        "{SECONDARY} --guest-export view --guest-read-only --granule 64K --when-full break --stall-max 100ms \
         --backend posix --start"
    );
    let spec = spec(&line).unwrap();
    let [VolumeSpec::Secondary(secondary)] = spec.volumes.as_slice() else { panic!("{spec:?}") };
    assert!(spec.start && secondary.guest_read_only);
    assert_eq!(secondary.guest_export(), "view");
    assert_eq!((secondary.granule, secondary.when_full), (Size(65_536), WhenFull::Break));
    assert_eq!(spec.check(), Ok(()));
}

#[test]
fn a_control_address_belongs_to_the_replica_before_it() {
    let spec = spec(&format!(
        "{PRIMARY} --replica nbd://a/x --replica nbd://b/x --replica-control tcp:b:1 --replica nbd://c/x \
         --replica-control tcp:c:1 --checkpoint-every 100ms"
    ))
    .unwrap();
    let [VolumeSpec::Primary(primary)] = spec.volumes.as_slice() else { panic!("{spec:?}") };
    let controls: Vec<_> =
        primary.replicas.iter().map(|replica| replica.control.as_ref().map(ToString::to_string)).collect();
    assert_eq!(controls, [None, Some("tcp:b:1".into()), Some("tcp:c:1".into())]);
    assert_eq!(primary.replicas[2].name, "replica2");
    assert_eq!(spec.checkpoint_every, Some(Span::from_ms(100)));
}

#[test]
fn a_control_address_without_its_replica_is_refused() {
    let refusal = spec(&format!("{PRIMARY} --replica-control unix:r --replica nbd://a/x")).unwrap_err();
    assert!(refusal.contains("before any --replica"), "{refusal}");
    let line = format!("{PRIMARY} --replica nbd://a/x --replica-control unix:r --replica-control unix:s");
    assert!(spec(&line).unwrap_err().contains("two --replica-control"));
}

#[test]
fn refusals_are_one_line_and_say_what_to_do() {
    for (line, part) in [
        ("twinblock secondary --disk d", "--listen"),
        ("twinblock status", "--control"),
        ("twinblock stauts --control unix:c", "did you mean start, status?"),
        ("twinblock status --control 127.0.0.1:1", "unix:PATH"),
        ("twinblock stop --failover --force --control unix:c", "--force"),
        ("twinblock attach disk.img --control unix:c", "nbd://"),
        ("twinblock demo --size 10X", "64K"),
        ("twinblock demo --disk a --size 1M", "--size"),
        (&format!("{PRIMARY} --checkpoint-every often"), "100ms"),
        (&format!("{SECONDARY} --when-full panic"), "stall"),
    ] {
        let refusal = parse(line).unwrap_err();
        assert!(refusal.contains(part), "{line}: {refusal}");
        assert!(!refusal.contains('\n') && refusal.contains("--help"), "{line}: {refusal}");
    }
}

#[test]
fn control_commands_take_an_address_and_a_time() {
    let Ok(Command::Stop { failover: true, force: false, volume: None, control }) =
        parse("twinblock stop --failover --control tcp:localhost:4 --timeout 5s")
    else {
        panic!()
    };
    assert_eq!(
        (control.address.to_string().as_str(), control.timeout),
        ("tcp:localhost:4", Span::from_ms(5_000))
    );
    assert!(matches!(
        parse("twinblock status --watch --control unix:c"),
        Ok(Command::Status { watch: Some(Span(every)), .. }) if every.as_secs() == 1
    ));
}

#[test]
fn help_says_which_way_to_take_over_is_for_whom() {
    let mut command = Cli::command();
    let help = command.find_subcommand_mut("stop").unwrap().render_long_help().to_string();
    let stop = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in ["last checkpoint", "acknowledged to the primary's guest", "COLO", "power cut"] {
        assert!(stop.contains(part), "{part}: {stop}");
    }
}
