//! Kernel ridge regression: the posterior mean of a Gaussian process, Bayes' predictor of `fgd` for positive kernels.

use super::smoother::{LinearSmoother, examples};
use crate::linalg::Matrix;
use crate::{Error, Result};

/// ŷ = vᵀ (K̂ + λ I)⁻¹ y, of minimum norm where K̂ + λ I is singular.
///
/// Given the labels' covariance K₊ and λ = 0 (or the variance of the noise on the labels, if the matrix does not have it),
/// it is the posterior mean, and its risk is [`super::bayes_risk`].
#[derive(Clone, Debug, Default)]
pub struct KernelRidge {
    ridge: f64,
}

impl KernelRidge {
    /// With λ = `ridge`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a negative or non-finite ridge.
    pub fn new(ridge: f64) -> Result<Self> {
        if ridge.is_finite() && ridge >= 0.0 {
            Ok(KernelRidge { ridge })
        } else {
            Err(Error::invalid("ridge", ridge, "a finite number of at least 0"))
        }
    }
}

impl LinearSmoother for KernelRidge {
    fn name(&self) -> String {
        if self.ridge > 0.0 { format!("kernel ridge {}", self.ridge) } else { "posterior mean".to_owned() }
    }

    fn weights(&self, kernel: &Matrix, steps: usize) -> Result<Vec<Vec<f64>>> {
        let n = examples(kernel)?;
        let gram = Matrix::from_fn(n, n, |i, j| kernel[(i, j)]).plus(self.ridge, &Matrix::identity(n));
        let query: Vec<f64> = (0..n).map(|i| kernel[(i, n)]).collect();
        let smallest = 1e-12 * gram.trace();
        let inverse = gram.map_symmetric(|v| if v > smallest { 1.0 / v } else { 0.0 })?;
        Ok(vec![inverse.mul_vec(&query); steps + 1])
    }
}
