//! Curricula: tasks that grow while a model trains.

use serde::{Deserialize, Serialize};

/// A number that grows in equal steps: the active dimensions, or the points of a prompt (`newton` section 1).
///
/// ```
/// use incontext::train::Ramp;
/// // Garg et al.: dimensions 5 to 20, one more every 2000 steps.
/// let dims = Ramp { start: 5, end: 20, increment: 1, every: 2000 };
/// assert_eq!((dims.at(1999), dims.at(2000), dims.at(500_000)), (5, 6, 20));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ramp {
    /// The number at the start.
    pub start: usize,
    /// The number that it grows to.
    pub end: usize,
    /// By how much it grows.
    pub increment: usize,
    /// After how many steps it grows.
    pub every: u64,
}

impl Ramp {
    /// Always `value`.
    pub fn constant(value: usize) -> Ramp {
        Ramp { start: value, end: value, increment: 0, every: 1 }
    }

    /// The number at `step`.
    pub fn at(&self, step: u64) -> usize {
        let times = usize::try_from(step / self.every.max(1)).unwrap_or(usize::MAX);
        self.start.saturating_add(self.increment.saturating_mul(times)).min(self.end.max(self.start))
    }
}

/// A curriculum over dimensions and points, for [`crate::tasks::LinearRegression::sample_truncated`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Curriculum {
    /// Active dimensions; the other coordinates are 0.
    pub dims: Ramp,
    /// Points of a prompt, the last one included.
    pub points: Ramp,
}

impl Curriculum {
    /// The full task from the start.
    pub fn none(dims: usize, points: usize) -> Curriculum {
        Curriculum { dims: Ramp::constant(dims), points: Ramp::constant(points) }
    }
}
