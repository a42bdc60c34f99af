//! Ordinary least squares, of minimum norm where it is not unique, and ridge regression.

use super::{Algorithm, Examples, Prefix};
use crate::linalg::Matrix;
use crate::{Error, Result};

/// argmin ‖Xw − Y‖² + ridge ‖w‖²_M, of minimum M-norm; without a metric M = I.
///
/// With n < d the solution of least norm in the metric Σ is the Bayes estimator for w⋆ ~ N(0, Σ⁻¹); for n >= d and no
/// ridge the metric is irrelevant.
#[derive(Clone, Debug, Default)]
pub struct LeastSquares {
    ridge: f64,
    whitening: Option<Matrix>,
}

impl LeastSquares {
    /// With a ridge of at least 0 (σ²/τ² is Bayes for noise σ² and prior variance τ²).
    ///
    /// # Errors
    /// [`Error::Invalid`] for a negative or non-finite ridge.
    pub fn ridge(ridge: f64) -> Result<Self> {
        if ridge.is_finite() && ridge >= 0.0 {
            Ok(LeastSquares { ridge, whitening: None })
        } else {
            Err(Error::invalid("ridge", ridge, "a finite number of at least 0"))
        }
    }

    /// The same with norms in whitened coordinates: x is replaced by Wx and the solution by its image.
    pub fn whitened(self, whitening: Matrix) -> Self {
        LeastSquares { whitening: Some(whitening), ..self }
    }
}

impl Algorithm for LeastSquares {
    fn name(&self) -> String {
        if self.ridge > 0.0 { format!("ridge {}", self.ridge) } else { "OLS".to_owned() }
    }

    fn iterates(&self, examples: &Examples<'_>, steps: usize) -> Result<Vec<Vec<f64>>> {
        let d = examples.dim();
        let mut x = examples.matrix();
        if let Some(w) = &self.whitening {
            if w.rows() != d || w.cols() != d {
                return Err(Error::shape("whitening", &[w.rows(), w.cols()], format!("[{d}, {d}]")));
            }
            x = x.mul(&w.transpose());
        }
        let solution = if self.ridge > 0.0 {
            let t = x.transpose();
            t.mul(&x).plus(self.ridge, &Matrix::identity(d)).solve_spd(&t.mul_vec(examples.y))?
        } else {
            x.least_squares(examples.y)?
        };
        let solution = match &self.whitening {
            Some(w) => w.transpose().mul_vec(&solution),
            None => solution,
        };
        Ok(vec![solution; steps + 1])
    }

    fn at_prefix(&self, prefix: &Prefix<'_>, at: &[usize]) -> Result<Vec<f64>> {
        if self.whitening.is_some() {
            return super::chosen_steps(self, prefix, at);
        }
        Ok(prefix.spectrum()?.sum(|l, cross| cross / (l + self.ridge)).repeat(at.len()))
    }
}
