use super::*;

#[test]
fn sizes_are_powers_of_1024() {
    for (text, number) in [
        ("0", 0),
        ("512", 512),
        ("64K", 65_536),
        ("64k", 65_536),
        ("3M", 3 << 20),
        ("1G", 1 << 30),
        ("2T", 2 << 40),
    ] {
        assert_eq!(text.parse(), Ok(Size(number)), "{text}");
    }
}

#[test]
fn what_is_no_size_is_refused_with_the_form_that_is() {
    for text in ["", "K", "-1", "1.5G", "64KB", "64 K", "1E", "0x10", "１K", "K1"] {
        let refusal = text.parse::<Size>().unwrap_err();
        assert!(refusal.contains(&format!("'{text}'")) && refusal.contains("64K"), "{refusal}");
    }
    assert!("16384P".parse::<Size>().unwrap_err().contains("too large"));
    assert!("99999999999999999999".parse::<Size>().unwrap_err().contains("too large"));
}

#[test]
fn a_size_is_shown_as_it_would_be_written() {
    for text in ["0", "1", "1000", "64K", "65K", "1G", "1025M", "3P"] {
        assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
    }
}

#[test]
fn spans_are_read_with_their_unit() {
    assert_eq!("100ms".parse(), Ok(Span::from_ms(100)));
    assert_eq!("10s".parse(), Ok(Span::from_ms(10_000)));
    assert_eq!("1m 30s".parse(), Ok(Span::from_ms(90_000)));
    for text in ["", "10", "fast", "-1s"] {
        assert!(text.parse::<Span>().unwrap_err().contains("100ms"), "{text}");
    }
}

#[test]
fn numbers_are_shown_for_people() {
    assert_eq!(
        [bytes(0), bytes(1023), bytes(65_536), bytes(3 << 29)],
        ["0 B", "1023 B", "64.0 KiB", "1.5 GiB"]
    );
    assert_eq!([micros(850), micros(12_340), micros(2_500_000)], ["850 µs", "12.3 ms", "2.50 s"]);
    assert_eq!([count(7), count(1_000), count(1_234_567)], ["7", "1 000", "1 234 567"]);
}
