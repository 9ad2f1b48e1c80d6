use super::*;
use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

const ALL: [Refused; 23] = [
    Refused::Busy,
    Refused::BadRequest,
    Refused::Stale,
    Refused::Running,
    Refused::NotRunning,
    Refused::WrongMode { primary_wanted: true },
    Refused::WrongMode { primary_wanted: false },
    Refused::InProgress,
    Refused::Missing,
    Refused::ViewBroken,
    Refused::CommitPending,
    Refused::NoReplica,
    Refused::TakenOver,
    Refused::StaleEpoch { epoch: 8 },
    Refused::OtherClaim,
    Refused::WrongCount,
    Refused::SizeDiffers { here_bytes: 1, there_bytes: 2 },
    Refused::NoRoom,
    Refused::Unknown,
    Refused::NoControl,
    Refused::TimedOut,
    Refused::Failed,
    Refused::Unsuitable,
];

#[test]
fn each_refusal_is_one_line_of_its_own_that_names_the_volume_and_a_remedy() {
    let texts: Vec<String> =
        ALL.iter().map(|&refused| RefusalText { refused, volume: "vda" }.to_string()).collect();
    for (index, text) in texts.iter().enumerate() {
        assert!(text.contains("'vda'") && text.contains("; ") && !text.contains('\n'), "{text}");
        assert!(!texts[index + 1..].contains(text), "{text}");
    }
}

#[test]
fn a_wrong_mode_names_both_modes() {
    let text = |primary_wanted| {
        RefusalText { refused: Refused::WrongMode { primary_wanted }, volume: "v" }.to_string()
    };
    assert_eq!(text(true), "volume 'v' is a secondary and not a primary; use primary=false for it");
    assert_eq!(text(false), "volume 'v' is a primary and not a secondary; use primary=true for it");
}

#[test]
fn managers_find_the_words_that_they_look_for() {
    let status = |trouble| StatusText { volume: "v", trouble }.to_string();
    assert!(status(Trouble::NotRunning).contains("not running"));
    assert!(status(Trouble::Error(ErrorKind::Forward)).contains("I/O error"));
    assert!(status(Trouble::Behind("far")).contains("'far' of volume 'v' is behind"));
}

#[test]
fn a_name_that_a_manager_made_up_is_cut_and_moves_no_cursor() {
    let text = |volume| RefusalText { refused: Refused::Unknown, volume }.to_string();
    assert!(text("a\nb\u{1b}").contains(r"'a\nb\u{1b}'"), "{}", text("a\nb\u{1b}"));
    let long = "ä".repeat(100_000);
    assert!(text(&long).contains(&format!("'{}...'", "ä".repeat(64))));
    assert!(text(&"x".repeat(64)).contains(&format!("'{}'", "x".repeat(64))));
}
