use super::super::scan::{Members, validate};
use super::super::*;
use super::cases;
use proptest::prelude::*;
use std::string::String;
use std::vec::Vec;

fn messages_of(stream: &[u8], chunk: usize) -> Vec<Vec<u8>> {
    let (mut framer, mut messages, mut message) = (Framer::new(), Vec::new(), Vec::new());
    for mut bytes in stream.chunks(chunk) {
        while let Some(end) = framer.find_end(bytes) {
            message.extend_from_slice(&bytes[..end]);
            messages.push(core::mem::take(&mut message));
            bytes = &bytes[end..];
        }
        message.extend_from_slice(bytes);
    }
    if !message.is_empty() {
        messages.push(message);
    }
    messages
}

proptest! {
    #![proptest_config(cases(2000))]

    #[test]
    fn what_is_json_is_judged_as_another_parser_does(
        tokens in proptest::collection::vec(prop_oneof![
            3 => prop::sample::select(&["{", "}", "[", "]", ",", ":", "\"a\"", "1"][..]),
            1 => prop::sample::select(&[
                " ", "\n", "true", "null", "fals", "-0", "01", "1.", "1.5e-3", ".5", "1e", "-", "+1", "\"\\u00e9\"",
                "\"\\u12g4\"", "\"\\x\"", "\"", "\\", "\"\u{1}\"", "\"\u{20ac}\"", "{}", "[]", "\"a\":", "\"b\":2",
                "\u{a0}",
            ][..]),
        ], 0..12)
    ) {
        let text: String = tokens.concat();
        let other = serde_json::from_str::<serde::de::IgnoredAny>(&text);
        prop_assert_eq!(validate(&text).is_ok(), other.is_ok(), "{}", text);
    }

    #[test]
    fn a_stream_gives_the_same_messages_however_it_is_cut(
        values in proptest::collection::vec(("\\PC{0,20}", 0_u32..100, any::<bool>()), 1..6),
        chunk in 1_usize..40,
    ) {
        let mut stream = String::new();
        for (text, number, is_pretty) in &values {
            let value = serde_json::json!({"execute": text, "arguments": {"a": [number, {}], "b\"}": text}});
            stream += &if *is_pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
            stream += if number % 2 == 0 { "\r\n" } else { "" };
        }
        let messages = messages_of(stream.as_bytes(), chunk);
        let is_space = |message: &Vec<u8>| message.trim_ascii().is_empty();
        let count = messages.iter().filter(|message| !is_space(message)).count();
        prop_assert_eq!(count, values.len());
        for (message, (text, number, _)) in messages.iter().zip(&values) {
            let value: serde_json::Value = serde_json::from_slice(message).unwrap();
            prop_assert_eq!(value["execute"].as_str(), Some(text.as_str()));
            prop_assert_eq!(&value["arguments"]["a"][0], number);
        }
    }

    #[test]
    fn framing_loses_no_byte(stream in proptest::collection::vec(prop_oneof![
        any::<u8>(), prop::sample::select(&b"{}[]\"\\\n\xff "[..]),
    ], 0..60), chunk in 1_usize..9) {
        prop_assert_eq!(messages_of(&stream, chunk).concat(), stream);
    }
}

#[test]
fn the_line_end_brings_a_stream_back_after_garbage() {
    let good = b"{\"execute\": \"quit\"}";
    for garbage in ["foo\n", "}]\n", "\"half a string\n", "{\"half a string\n", "\\\n", "{\"a\": [\u{ff}"] {
        let mut stream: Vec<u8> = garbage.chars().map(|c| c as u8).collect();
        stream.extend_from_slice(good);
        let messages = messages_of(&stream, 3);
        assert_eq!(messages.len(), 2, "{garbage}");
        assert_eq!(messages[1], good);
    }
}

#[test]
fn depth_is_bounded_and_costs_no_stack() {
    let nested = |depth: usize| {
        let mut text = "[".repeat(depth - 1);
        text.insert(0, '{');
        text.insert_str(1, "\"a\": ");
        text.push_str(&"]".repeat(depth - 1));
        text.push('}');
        text
    };
    assert_eq!(validate(&nested(DEPTH_MAX as usize)), Ok(()));
    assert!(matches!(validate(&nested(DEPTH_MAX as usize + 1)), Err(ParseError::TooDeep { offset: 69 })));
    assert!(matches!(validate(&nested(1_000_000)), Err(ParseError::TooDeep { .. })));
}

#[test]
fn malformed_text_is_told_by_its_byte() {
    for (text, offset) in [
        ("", 0),
        ("  ", 2),
        ("{\"a\" 1}", 5),
        ("{\"a\": tru}", 9),
        ("[1,]", 3),
        ("1 2", 2),
        ("[}", 1),
        ("\"\\q\"", 2),
        ("[1}", 2),
        ("{\"a\":1]", 6),
        ("\"\\u0zzz\"", 4),
        ("\"\\u01zz\"", 5),
        ("\"\\u012z\"", 6),
    ] {
        assert_eq!(validate(text), Err(ParseError::Malformed { offset }), "{text}");
    }
}

#[test]
fn members_are_found_whatever_their_order_and_spaces() {
    let text = " { \"a\" : { \"b\" : \"}\\\"\" } ,\n\"c\":[1,\"]\",{}],\"\\u0064\": null , \"e\":-1.5 } ";
    validate(text).unwrap();
    let members: Vec<_> = Members::of(text).unwrap().map(|member| (member.key, member.value)).collect();
    let expected =
        [("a", "{ \"b\" : \"}\\\"\" }"), ("c", "[1,\"]\",{}]"), ("\\u0064", "null"), ("e", "-1.5")];
    assert_eq!(members, expected);
    assert_eq!(Members::of(text).unwrap().value_of("d"), Some("null"));
    assert_eq!(Members::of("{ }").unwrap().count(), 0);
    assert!(Members::of("[]").is_none());
}
