//! Small worlds, walked through without a gap.
//!
//! `TWINBLOCK_WORLDS=large` makes them larger; `TWINBLOCK_WORLD` and `TWINBLOCK_PATH` play one path, as a failure says.

use twinblock_tests::worlds::{pair, primary, run, secondary};

/// Walks through the world of this name.
fn walk_secondary(name: &str) {
    let setting = secondary::Setting::named(name).expect("a world of this name");
    run(&setting, setting.states_min);
}

#[test]
fn what_the_primary_replaces_is_kept_in_every_order() {
    walk_secondary("keep");
}

#[test]
fn holes_stay_holes_in_every_order() {
    walk_secondary("holes");
}

#[test]
fn a_full_buffer_holds_writes_in_every_order() {
    walk_secondary("stall");
}

#[test]
fn a_full_buffer_breaks_the_view_in_every_order() {
    walk_secondary("break");
}

#[test]
fn a_prepare_and_its_commit_meet_everything_in_every_order() {
    walk_secondary("prepare");
}

#[test]
fn a_prepare_meets_long_requests_and_failures_in_every_order() {
    walk_secondary("long");
}

#[test]
fn the_claim_goes_from_one_to_the_next_in_every_order() {
    walk_secondary("claim");
}

#[test]
fn a_commit_fails_and_is_tried_again_in_every_order() {
    walk_secondary("commit");
}

#[test]
fn a_failover_begins_in_every_order() {
    walk_secondary("failover");
}

#[test]
fn a_start_meets_requests_in_every_order() {
    walk_secondary("start");
}

/// Walks through the world of this name.
fn walk_primary(name: &str) {
    let setting = primary::Setting::named(name).expect("a world of this name");
    run(&setting, setting.states_min);
}

#[test]
fn a_replica_fails_and_comes_back_in_every_order() {
    walk_primary("mirror");
}

#[test]
fn one_of_two_replicas_fails_in_every_order() {
    walk_primary("two");
}

#[test]
fn what_the_disk_has_lost_is_read_from_who_has_it_in_every_order() {
    walk_primary("lost");
}

#[test]
fn a_replica_crashes_and_is_started_anew_in_every_order() {
    walk_primary("crash");
}

#[test]
fn a_barrier_meets_writes_in_every_order() {
    walk_primary("barrier");
}

#[test]
fn a_replica_is_attached_in_every_order() {
    walk_primary("attach");
}

/// Walks through the world of this name.
fn walk_pair(name: &str) {
    let setting = pair::Setting::named(name).expect("a world of this name");
    run(&setting, setting.states_min);
}

#[test]
fn a_checkpoint_of_a_pair_meets_a_cut_in_every_order() {
    walk_pair("cut");
}

#[test]
fn a_checkpoint_of_a_pair_meets_a_full_buffer_in_every_order() {
    walk_pair("full");
}
