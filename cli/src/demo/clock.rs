//! One clock for the whole demo, so that moments of different threads can be compared.

use std::time::Instant;

/// Nanoseconds since the demo began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Moment(pub(crate) u64);

impl Moment {
    /// Before everything.
    pub(crate) const START: Self = Self(0);
    /// After everything.
    pub(crate) const NEVER: Self = Self(u64::MAX);
}

/// Tells the moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    /// Starts it.
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// Later than [`Moment::START`].
    pub(crate) fn now(self) -> Moment {
        Moment(u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX - 1).saturating_add(1))
    }
}
