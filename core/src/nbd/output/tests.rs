use std::{vec, vec::Vec};

use super::*;
use crate::BufferIndex;
use proptest::prelude::*;

/// A payload byte that tells where it comes from.
fn byte_of(data: Data, at: u32) -> u8 {
    (u32::from(data.buffer.0) * 31 + data.offset + at) as u8
}

fn flat(output: &Output<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for segment in output.segments() {
        assert_ne!(segment.length(), 0);
        match segment {
            Segment::Bytes(some) => bytes.extend_from_slice(some),
            Segment::Pool(data) => bytes.extend((0..data.length).map(|at| byte_of(data, at))),
        }
    }
    bytes
}

proptest! {
    #[test]
    fn bytes_leave_in_the_order_in_which_they_came(steps in prop::collection::vec((0u8..4, 0u32..40), 1..200)) {
        let (mut ring, mut entries) = ([0; 64], [OutputEntry::EMPTY; 5]);
        let mut output = Output::new(&mut ring, &mut entries);
        let mut model = Vec::new();
        let (mut pushed, mut finished) = (Vec::new(), Vec::new());
        for (number, (what, length)) in steps.into_iter().enumerate() {
            let room = output.has_room(length as usize, 1);
            match what {
                0 if room => {
                    let bytes = vec![number as u8; length as usize];
                    output.push_bytes(&bytes);
                    model.extend(bytes);
                }
                1 if room => {
                    output.push_zeroes(length * 200);
                    model.extend(vec![0; length as usize * 200]);
                }
                2 if room => {
                    let data = Data { buffer: BufferIndex(number as u16), offset: length, length };
                    output.push_data(data, number as u16);
                    model.extend((0..length).map(|at| byte_of(data, at)));
                    pushed.push(number as u16);
                }
                _ => {
                    let count = model.len().min(length as usize * 50);
                    output.sent(count, |_, owner| finished.push(owner));
                    model.drain(..count);
                }
            }
            prop_assert_eq!(&flat(&output), &model);
        }
        let count = flat(&output).len();
        output.sent(count, |_, owner| finished.push(owner));
        prop_assert_eq!(finished, pushed);
        prop_assert!(output.is_empty());
    }
}

#[test]
fn many_headers_are_one_run_of_bytes() {
    let (mut ring, mut entries) = ([0; 64], [OutputEntry::EMPTY; 2]);
    let mut output = Output::new(&mut ring, &mut entries);
    for _ in 0..4 {
        output.push_bytes(&[1; 16]);
    }
    assert_eq!(output.segments().count(), 1);
    assert!(!output.has_room(1, 0));
}

#[test]
fn what_is_dropped_is_heard_of_once() {
    let (mut ring, mut entries) = ([0; 64], [OutputEntry::EMPTY; 4]);
    let mut output = Output::new(&mut ring, &mut entries);
    let data = Data { buffer: BufferIndex(3), offset: 0, length: 9 };
    output.push_bytes(&[1; 16]);
    output.push_data(data, 7);
    output.sent(20, |_, _| panic!("not sent whole"));
    let mut dropped = Vec::new();
    output.clear(|data, owner| dropped.push((data, owner)));
    assert_eq!(dropped, [(data, 7)]);
    assert!(output.is_empty() && output.has_room(64, 4));
}
