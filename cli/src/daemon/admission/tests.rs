use super::*;

const LATER: Micros = Micros(1_000_000);

fn owing(address: usize, since: u64, is_silent: bool) -> Standing {
    Standing::Owing { address, since: Micros(since), is_silent }
}

const fn settled(address: usize) -> Standing {
    Standing::Settled { address }
}

fn verdict(address: usize, addresses: usize, places_max: usize, places: &[Standing]) -> Verdict {
    admit(address, addresses, places_max, &places.iter().copied(), LATER)
}

#[test]
fn there_is_a_place_while_one_is_free() {
    assert_eq!(verdict(0, 1, 2, &[]), Verdict::Welcome);
    assert_eq!(verdict(0, 1, 2, &[settled(0), Standing::Free]), Verdict::Welcome);
    assert_eq!(verdict(0, 1, 2, &[settled(0), settled(0)]), Verdict::Wait(None));
}

#[test]
fn the_silent_one_that_came_first_makes_room_then_whoever_owes_its_handshake() {
    let places = [settled(0), owing(0, 5, false), owing(0, 30, true), owing(0, 20, true)];
    assert_eq!(verdict(0, 1, 4, &places), Verdict::Replace(3));
    assert_eq!(verdict(0, 1, 3, &places[..3]), Verdict::Replace(2));
    assert_eq!(verdict(0, 1, 2, &places[..2]), Verdict::Replace(1));
    assert_eq!(verdict(0, 1, 1, &places[..1]), Verdict::Wait(None));
}

#[test]
fn nobody_is_dropped_before_it_had_time_to_answer() {
    let places = [owing(0, 100, true), owing(0, 50, false)];
    let now = Micros(50 + GRACE.0);
    assert_eq!(admit(0, 1, 2, &places.into_iter(), Micros(now.0 - 1)), Verdict::Wait(Some(now)));
    assert_eq!(admit(0, 1, 2, &places.into_iter(), now), Verdict::Replace(1));
    assert_eq!(admit(0, 1, 2, &places.into_iter(), Micros(now.0 + 50)), Verdict::Replace(0));
}

#[test]
fn clients_of_one_address_leave_places_to_those_of_another() {
    let guests = [settled(0); 28];
    assert_eq!(verdict(0, 2, 32, &guests), Verdict::Wait(None));
    assert_eq!(verdict(1, 2, 32, &guests), Verdict::Welcome);
    // Once the other has what was left to it, there is nothing to leave.
    let mut both = [settled(0); 31];
    both[..4].fill(settled(1));
    assert_eq!(verdict(0, 2, 32, &both), Verdict::Welcome);
}

#[test]
fn one_that_owes_its_handshake_to_another_address_makes_room_unless_its_place_was_left_to_it() {
    let mut places = [settled(0); 32];
    places[..5].fill(owing(1, 3, true));
    assert_eq!(verdict(0, 2, 32, &places), Verdict::Replace(0));
    places[0] = settled(0);
    assert_eq!(verdict(0, 2, 32, &places), Verdict::Wait(None));
}

#[test]
fn with_few_places_nothing_is_left_to_others_that_would_keep_the_first_one_out() {
    assert_eq!(verdict(0, 2, 1, &[]), Verdict::Welcome);
    assert_eq!(verdict(0, 3, 2, &[]), Verdict::Welcome);
    assert_eq!(verdict(0, 2, 4, &[settled(0), settled(0)]), Verdict::Welcome);
    assert_eq!(verdict(0, 2, 4, &[settled(0); 3]), Verdict::Wait(None));
}
