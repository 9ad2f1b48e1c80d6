//! Which of many have something to do: a list in which whatever is touched is awake until it is put to sleep again.
//!
//! A turn of the loop visits those that are awake, however many others there are. Nobody has to remember to wake
//! anything: who reaches an element to change it has woken it.
//!
//! # Invariants
//! * A1: an element that was reached for a change since it was last put to sleep is awake.

use std::ops::{Deref, Index, IndexMut};
use std::slice::SliceIndex;

use twinblock_core::Micros;

/// Of an element that has nothing to wait for.
const NEVER: Micros = Micros(u64::MAX);

/// See the module.
#[derive(Debug)]
pub(super) struct Awake<T> {
    all: Vec<T>,
    /// A bit for each element: it is awake.
    marks: Vec<u64>,
    /// When each element wants to be awake at the latest.
    dues: Vec<Micros>,
}

impl<T> Awake<T> {
    /// None, with room for so many.
    pub(super) fn with_capacity(count: usize) -> Self {
        let words = count.div_ceil(64);
        Self {
            all: Vec::with_capacity(count),
            marks: Vec::with_capacity(words),
            dues: Vec::with_capacity(count),
        }
    }

    /// Adds one, awake.
    pub(super) fn push(&mut self, element: T) {
        self.marks.resize(self.all.len() / 64 + 1, 0);
        self.dues.push(NEVER);
        self.all.push(element);
        self.wake(self.all.len() - 1);
    }

    /// Reaches one to change it, which wakes it.
    pub(super) fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        self.wake(index);
        self.all.get_mut(index)
    }

    fn wake(&mut self, index: usize) {
        if index < self.all.len() {
            self.marks[index / 64] |= 1 << (index % 64);
        }
    }

    /// Wakes those whose time has come.
    pub(super) fn wake_due(&mut self, now: Micros) {
        for index in 0..self.dues.len() {
            if self.dues[index] <= now {
                self.wake(index);
            }
        }
    }

    /// The first one from `index` on that is awake.
    pub(super) fn awake_from(&self, index: usize) -> Option<usize> {
        let mut word = index / 64;
        let mut marks = self.marks.get(word)? & (u64::MAX << (index % 64));
        while marks == 0 {
            word += 1;
            marks = *self.marks.get(word)?;
        }
        Some(word * 64 + marks.trailing_zeros() as usize)
    }

    /// The one that is awake and comes after `last` in a round over all of them that begins at `first`.
    pub(super) fn awake_after(&self, last: Option<usize>, first: usize) -> Option<usize> {
        let next = self.awake_from(last.map_or(first, |last| last + 1));
        match last {
            Some(last) if last < first => next.filter(|next| *next < first),
            _ => next.or_else(|| self.awake_from(0).filter(|next| *next < first)),
        }
    }

    /// Notes when one wants to be awake at the latest, and puts it to sleep until then or until it is touched, if that is
    /// wanted.
    pub(super) fn settle(&mut self, index: usize, sleeps: bool, due: Option<Micros>) {
        self.dues[index] = due.unwrap_or(NEVER);
        if sleeps {
            self.marks[index / 64] &= !(1 << (index % 64));
        }
    }

    /// When the first of them wants to be awake, as far as is noted.
    pub(super) fn next_due(&self) -> Option<Micros> {
        self.dues.iter().copied().min().filter(|due| *due != NEVER)
    }
}

impl<T> Deref for Awake<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.all
    }
}

impl<T, I: SliceIndex<[T]>> Index<I> for Awake<T> {
    type Output = I::Output;

    fn index(&self, index: I) -> &I::Output {
        &self.all[index]
    }
}

impl<T> IndexMut<usize> for Awake<T> {
    fn index_mut(&mut self, index: usize) -> &mut T {
        self.wake(index);
        &mut self.all[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeping(count: usize) -> Awake<u32> {
        let mut list = Awake::with_capacity(count);
        (0..count).for_each(|_| list.push(0));
        (0..count).for_each(|index| list.settle(index, true, None));
        list
    }

    fn awake(list: &Awake<u32>) -> Vec<usize> {
        let first = list.awake_from(0);
        std::iter::successors(first, |index| list.awake_from(index + 1)).collect()
    }

    #[test]
    fn whoever_is_touched_is_awake_until_it_is_put_to_sleep() {
        let mut list = sleeping(130);
        assert!(awake(&list).is_empty());
        list[129] += 1;
        *list.get_mut(63).unwrap() += 1;
        list[64] += 1;
        assert!(list.get_mut(130).is_none());
        let _ = list[5] + list.iter().sum::<u32>();
        assert_eq!(awake(&list), [63, 64, 129]);
        list.settle(64, true, None);
        list.settle(63, false, None);
        assert_eq!(awake(&list), [63, 129]);
        list.push(7);
        assert_eq!((awake(&list), list[128..].len()), (vec![63, 129, 130], 3));
    }

    #[test]
    fn a_round_visits_everyone_who_is_awake_once_wherever_it_begins() {
        let mut list = sleeping(70);
        [2, 3, 64, 69].iter().for_each(|index| list[*index] += 1);
        let round = |first| {
            let start = list.awake_after(None, first);
            std::iter::successors(start, |last| list.awake_after(Some(*last), first)).collect::<Vec<_>>()
        };
        assert_eq!(round(0), [2, 3, 64, 69]);
        assert_eq!(round(3), [3, 64, 69, 2]);
        assert_eq!(round(4), [64, 69, 2, 3]);
        assert_eq!(round(70), [2, 3, 64, 69]);
    }

    #[test]
    fn whoever_waits_for_a_time_is_awake_when_it_has_come() {
        let mut list = sleeping(3);
        assert_eq!(list.next_due(), None);
        list.settle(1, true, Some(Micros(5)));
        list.settle(2, true, Some(Micros(7)));
        assert_eq!(list.next_due(), Some(Micros(5)));
        list.wake_due(Micros(4));
        assert!(awake(&list).is_empty());
        list.wake_due(Micros(5));
        assert_eq!(awake(&list), [1]);
        list.settle(1, true, None);
        list.wake_due(Micros(6));
        assert_eq!((awake(&list).len(), list.next_due()), (0, Some(Micros(7))));
    }
}
