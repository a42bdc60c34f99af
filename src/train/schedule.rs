//! Learning rates as functions of the step.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The factor on the base learning rate.
///
/// ```
/// use incontext::train::Schedule;
/// let halving = Schedule::Step { every: 2000, factor: 0.5 };
/// assert_eq!((halving.at(1999, 10_000), halving.at(4000, 10_000)), (1.0, 0.25));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Always 1.
    Constant,
    /// Multiplied by `factor` after every `every` steps, as the authors of `pgd` do.
    Step {
        /// Steps between two changes.
        every: u64,
        /// The factor, below 1.
        factor: f64,
    },
    /// Linear from 0 over `warmup` steps, then half a cosine down to 0 at the last step.
    Cosine {
        /// Steps of warm-up.
        warmup: u64,
    },
    /// Linear from 0 over `warmup` steps, then linear down to 0 at the last step.
    Linear {
        /// Steps of warm-up.
        warmup: u64,
    },
    /// Linear from 0 over `warmup` steps, 1 until step `hold`, half a cosine down to `floor` at step `until`, and
    /// `floor` from there on. `until` may lie behind the last step, as in `mesa`.
    Hold {
        /// Steps of warm-up.
        warmup: u64,
        /// The step at which the factor begins to fall.
        hold: u64,
        /// The step at which it has fallen.
        until: u64,
        /// What it falls to.
        floor: f64,
    },
}

impl Schedule {
    /// Whether it is a schedule: a period of at least one step, a positive factor.
    ///
    /// # Errors
    /// [`Error::Invalid`] if not.
    pub fn check(&self) -> Result<()> {
        match *self {
            Schedule::Step { every: 0, .. } => {
                Err(Error::invalid("steps between two changes of the rate", 0, "at least 1"))
            }
            Schedule::Step { factor, .. } if !(factor.is_finite() && factor > 0.0) => {
                Err(Error::invalid("factor on the rate", factor, "a positive finite number"))
            }
            Schedule::Hold { warmup, hold, until, .. } if hold < warmup || until < hold => {
                let given = format!("{warmup}, {hold}, {until}");
                Err(Error::invalid("ends of warm-up, of the plateau and of the fall", given, "ascending steps"))
            }
            Schedule::Hold { floor, .. } if !(floor.is_finite() && floor >= 0.0) => {
                Err(Error::invalid("least factor on the rate", floor, "a finite number of at least 0"))
            }
            _ => Ok(()),
        }
    }

    /// The factor at `step` (from 0) of `steps`.
    pub fn at(&self, step: u64, steps: u64) -> f64 {
        match *self {
            Schedule::Constant => 1.0,
            Schedule::Step { every, factor } => factor.powi((step / every.max(1)).min(i32::MAX as u64) as i32),
            Schedule::Cosine { warmup } | Schedule::Linear { warmup } | Schedule::Hold { warmup, .. }
                if step < warmup =>
            {
                (step + 1) as f64 / warmup as f64
            }
            Schedule::Cosine { warmup } => half_cosine(progress(step, warmup, steps)),
            Schedule::Linear { warmup } => 1.0 - progress(step, warmup, steps),
            Schedule::Hold { until, floor, .. } if step >= until => floor,
            Schedule::Hold { hold, until, floor, .. } => {
                floor + (1.0 - floor) * half_cosine(progress(step, hold, until))
            }
        }
    }
}

/// How much of the way from step `from` to step `until` is done, in [0, 1].
fn progress(step: u64, from: u64, until: u64) -> f64 {
    (step.saturating_sub(from) as f64 / until.saturating_sub(from).max(1) as f64).min(1.0)
}

/// From 1 down to 0.
fn half_cosine(progress: f64) -> f64 {
    0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
}
