//! What Figures 6 and 7 share: the authors' baselines, with their off-by-one and without.

use super::distances::exact_engine;
use crate::Result;
use crate::linalg::Matrix;
use crate::ops::wishart::GramSamples;
use crate::tasks::LinearRegression;

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

/// The learning rates of the authors' grids for GD and PGD; the smaller ones of their lists are never the best.
const RATES: [f64; 6] = [0.008, 0.01, 0.02, 0.04, 0.08, 0.16];

/// GD and PGD with one rate from the authors' grid, each loss averaged over w⋆ and the query in closed form.
///
/// Their own 20,000 prompts cannot tell the larger rates apart: a rate that diverges on one context in a thousand has a
/// loss with a standard error of 7 % there (n = 7, rate 0.08).
pub struct Baselines {
    task: LinearRegression,
    used: Examples,
    engine: GramSamples,
}

impl Baselines {
    /// Over `samples` contexts of the task's length, of which `used` are seen.
    ///
    /// # Errors
    /// As [`LinearRegression::sample_gram`].
    pub fn new(task: &LinearRegression, used: Examples, samples: usize, seed: u64) -> Result<Self> {
        let engine = exact_engine(task.dim(), used.of(task.context()), samples, seed)?;
        Ok(Baselines { task: task.clone(), used, engine })
    }

    /// The loss of `steps` steps of gradient descent, preconditioned with Σ⁻¹ or not, at the best rate; and that rate.
    ///
    /// # Errors
    /// As [`GramSamples::losses`].
    pub fn tuned(&self, preconditioned: bool, steps: usize) -> Result<(f64, f64)> {
        let d = self.task.dim();
        let n = self.used.of(self.task.context()) as f64;
        // A step of GD in whitened coordinates is preconditioned with Σ, one of PGD with the identity.
        let direction = if preconditioned { Matrix::identity(d) } else { self.task.covariance().matrix().clone() };
        let mut best = (f64::INFINITY, RATES[0]);
        for rate in RATES {
            // The authors' rates multiply the sum over examples, a layer averages them.
            let a = direction.as_slice().iter().map(|v| -rate * n * v);
            let layer: Vec<f64> = std::iter::repeat_n(0.0, d * d).chain(a).collect();
            let loss = self.engine.loss(&layer.repeat(steps))?;
            if loss < best.0 {
                best = (loss, rate);
            }
        }
        Ok(best)
    }
}
