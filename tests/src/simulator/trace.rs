//! The last steps of a run.

use std::cell::RefCell;
use std::collections::VecDeque;

/// How many lines are kept.
const LINES_MAX: usize = 400;

thread_local! {
    static LINES: RefCell<VecDeque<String>> = const { RefCell::new(VecDeque::new()) };
}

/// Forgets everything.
pub fn clear() {
    LINES.with_borrow_mut(VecDeque::clear);
}

/// Adds a line.
pub fn push(line: String) {
    LINES.with_borrow_mut(|lines| {
        if lines.len() == LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(line);
    });
}

/// All lines, oldest first.
#[must_use]
pub fn take() -> Vec<String> {
    LINES.with_borrow_mut(|lines| lines.drain(..).collect())
}
