//! What Figures 6 and 7 share: the authors' baselines, with their off-by-one and without.

use crate::Result;
use crate::algorithms::{Algorithm, GradientDescent, LeastSquares, losses};
use crate::tasks::{LinearRegression, Prompts};

/// Whether a baseline sees all n examples, or n − 1 as in the authors' code, which drops the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Examples {
    /// All n.
    All,
    /// The first n − 1.
    ButLast,
}

impl Examples {
    /// How many of `n` examples are used.
    pub fn of(self, n: usize) -> usize {
        match self {
            Examples::All => n,
            Examples::ButLast => n - 1,
        }
    }

    /// How legends call it.
    pub fn name(self) -> &'static str {
        match self {
            Examples::All => "",
            Examples::ButLast => " (n − 1 examples, as the code)",
        }
    }
}

/// The learning rates of the authors' grids.
pub const GD_RATES: [f64; 8] = [0.001, 0.002, 0.004, 0.008, 0.01, 0.02, 0.04, 0.08];
/// The largest rate, which GD and PGD share.
pub const LARGEST_RATE: f64 = 0.16;

/// Prompts of the test and of the validation batch (on which the rate is chosen).
pub struct Batches {
    test: Prompts,
    validation: Prompts,
}

impl Batches {
    /// `size` prompts each, under the authors' seeds 99 and 999, moved by `seed`.
    ///
    /// # Errors
    /// As [`LinearRegression::sample`].
    pub fn new(task: &LinearRegression, size: usize, seed: u64) -> Result<Self> {
        let sample = |own: u64| task.sample(size, seed.wrapping_mul(1000).wrapping_add(own));
        Ok(Batches { test: sample(99)?, validation: sample(999)? })
    }

    /// The test loss of `algorithm` after `steps` steps.
    ///
    /// # Errors
    /// As [`losses`].
    pub fn test(&self, algorithm: &dyn Algorithm, used: Examples, steps: usize) -> Result<f64> {
        let n = used.of(self.test.context());
        Ok(losses(algorithm, &self.test, n, steps)?[steps])
    }

    /// The test loss of gradient descent, preconditioned with Σ⁻¹ or not, at the rate of the authors' grid that is best
    /// on the validation batch; and that rate.
    ///
    /// # Errors
    /// As [`losses`].
    pub fn tuned(
        &self,
        task: &LinearRegression,
        preconditioned: bool,
        used: Examples,
        steps: usize,
    ) -> Result<(f64, f64)> {
        let at = |rate: f64| {
            if preconditioned {
                GradientDescent::preconditioned(vec![rate], task.covariance().inverse())
            } else {
                GradientDescent::new(vec![rate])
            }
        };
        let n = used.of(self.validation.context());
        let mut best = (f64::INFINITY, LARGEST_RATE);
        for rate in GD_RATES.into_iter().chain([LARGEST_RATE]) {
            let loss = losses(&at(rate)?, &self.validation, n, steps)?[steps];
            if loss < best.0 {
                best = (loss, rate);
            }
        }
        Ok((self.test(&at(best.1)?, used, steps)?, best.1))
    }

    /// The test loss of ordinary least squares, of minimum norm in whitened coordinates.
    ///
    /// # Errors
    /// As [`losses`].
    pub fn ols(&self, task: &LinearRegression, used: Examples) -> Result<f64> {
        self.test(&LeastSquares::default().whitened(task.covariance().inv_sqrt().clone()), used, 0)
    }
}
