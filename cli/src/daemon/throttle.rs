//! Lines of the log that others can cause as often as they like: one in a while, with how many were left out.

use twinblock_core::Micros;

/// So much lies between two lines of one kind.
const PAUSE: Micros = Micros::from_ms(10_000);

/// One kind of line.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Throttle {
    next_at: Option<Micros>,
    left_out: u64,
}

impl Throttle {
    /// Whether the line is to be written now; then also how many were not since the last one.
    pub(super) fn pass(&mut self, now: Micros) -> Option<u64> {
        if self.next_at.is_some_and(|at| now < at) {
            self.left_out += 1;
            return None;
        }
        self.next_at = Some(now.after(PAUSE));
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_in_a_while_tells_how_many_were_left_out() {
        let mut throttle = Throttle::default();
        assert_eq!(throttle.pass(Micros(5)), Some(0));
        for now in 6..106 {
            assert_eq!(throttle.pass(Micros(now)), None);
        }
        assert_eq!(throttle.pass(Micros(5).after(PAUSE)), Some(100));
        assert_eq!(throttle.pass(Micros(6).after(PAUSE)), None);
    }
}
