use super::Micros;

#[test]
fn times_add_up_and_stop_at_their_bounds() {
    assert_eq!(Micros::from_ms(3), Micros(3000));
    assert_eq!(Micros(5).after(Micros(7)), Micros(12));
    assert_eq!(Micros(12).since(Micros(5)), Micros(7));
    assert_eq!(Micros(5).since(Micros(12)), Micros(0));
    assert_eq!(Micros(u64::MAX).after(Micros(1)), Micros::from_ms(u64::MAX));
}
