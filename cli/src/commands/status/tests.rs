use super::*;

const SECONDARY: &str = r#"{"volumes":[{"name":"disk0","role":"secondary","stage":"running","epoch":1234,
    "size_bytes":1073741824,"granule_bytes":4096,"behind":false,
    "buffer":{"size_bytes":67108864,"used_bytes":13107200,"policy":"stall","view":"whole","held":0},
    "commit":{"total_bytes":1048576,"done_bytes":524288},
    "checkpoint_us":{"count":1233,"p50":850,"p99":4500,"max":7800},
    "errors":{"primary_disk":0,"forward":0,"copy_before_write":0,"secondary_disk":0,"buffer":0,"empty":0,"commit":0}}]}"#;

fn plain(text: &str) -> String {
    anstream::adapter::strip_str(&render(&serde_json::from_str(text).unwrap())).to_string()
}

#[test]
fn a_secondary_is_shown_aligned_with_units() {
    let expected = "\
disk0  secondary  running
  size         1.0 GiB, granules of 4.0 KiB
  epoch        1 234
  buffer       12.5 MiB (19%) of 64.0 MiB, policy stall, view whole
  checkpoints  1 233, half within 850 µs, 99% within 4.5 ms, longest 7.8 ms
  commit       512.0 KiB of 1.0 MiB (50%)
  errors       none
";
    assert_eq!(plain(SECONDARY), expected);
}

#[test]
fn a_primary_is_shown_with_its_replicas_in_columns() {
    let text = r#"{"volumes":[{"name":"disk0","role":"primary","stage":"running","epoch":3,"size_bytes":4096,
        "behind":true,"checkpoint_us":{"count":0,"p50":0,"p99":0,"max":0},"unknown":1,
        "replicas":[{"name":"b","connected":true,"control_connected":true,"behind":false,"dirty_bytes":0,"in_flight":32},
                    {"name":"c","connected":true,"control_connected":false,"behind":false,"dirty_bytes":0,"in_flight":0},
                    {"name":"far-away","connected":false,"control_connected":false,"behind":true,"dirty_bytes":65536,"in_flight":0}],
        "errors":{"forward":2,"primary_disk":0}}]}"#;
    let expected = "\
disk0  primary  running  behind
  size         4.0 KiB
  epoch        3
  checkpoints  none
  replicas     b         current  32 in flight
               c         current  0 in flight  no control connection: no checkpoint is taken
               far-away  unreachable, behind  misses 64.0 KiB  0 in flight
  errors       forward 2
";
    assert_eq!(plain(text), expected);
}

#[test]
fn what_is_wrong_is_coloured_and_what_is_right_is_green() {
    let status: Status = serde_json::from_str(&SECONDARY.replace("whole", "broken")).unwrap();
    let text = render(&status);
    assert!(text.contains("\x1b[32mrunning") && text.contains("\x1b[31mbroken"), "{text:?}");
}

#[test]
fn an_empty_commit_is_complete() {
    assert!(plain(&SECONDARY.replace("1048576", "0").replace("524288", "0")).contains("0 B of 0 B (100%)"));
}

#[test]
fn what_does_the_io_comes_last() {
    let text = plain(r#"{"volumes":[],"backend":"io-uring"}"#);
    assert_eq!(text, "no volume\n\nbackend        io-uring\n");
}
