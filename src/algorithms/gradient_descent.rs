//! Gradient descent on a prompt's squared error, plain or preconditioned.

use super::{Algorithm, Examples};
use crate::linalg::Matrix;
use crate::{Error, Result};

/// w_{k+1} = w_k − η_k P (XᵀX w_k − XᵀY), w_0 = 0.
///
/// The gradient is of the sum over examples, without a factor 1/n, as in the authors' baselines of `pgd`. Step k uses
/// rate k, and the last rate from there on.
///
/// ```
/// use incontext::algorithms::{Algorithm, Examples, GradientDescent};
/// let gd = GradientDescent::new(vec![0.5])?;
/// let iterates = gd.iterates(&Examples::new(&[1.0], &[2.0])?, 2)?;
/// assert_eq!(iterates, [[0.0], [1.0], [1.5]]);
/// # Ok::<(), incontext::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct GradientDescent {
    rates: Vec<f64>,
    preconditioner: Option<Matrix>,
}

impl GradientDescent {
    /// Plain gradient descent with these rates.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is none or one is not finite.
    pub fn new(rates: Vec<f64>) -> Result<Self> {
        match rates.iter().find(|r| !r.is_finite()) {
            Some(bad) => Err(Error::invalid("rate", bad, "a finite number")),
            None if rates.is_empty() => Err(Error::invalid("rates", "none", "at least one")),
            None => Ok(GradientDescent { rates, preconditioner: None }),
        }
    }

    /// The same with the gradient multiplied by `preconditioner`, d x d; Σ⁻¹ is the one of `pgd` Figures 6 and 7.
    ///
    /// # Errors
    /// [`Error::Shape`] if it is not square.
    pub fn preconditioned(rates: Vec<f64>, preconditioner: Matrix) -> Result<Self> {
        if preconditioner.rows() != preconditioner.cols() {
            let given = [preconditioner.rows(), preconditioner.cols()];
            return Err(Error::shape("preconditioner", &given, "a square matrix"));
        }
        Ok(GradientDescent { preconditioner: Some(preconditioner), ..GradientDescent::new(rates)? })
    }
}

impl Algorithm for GradientDescent {
    fn name(&self) -> String {
        if self.preconditioner.is_some() { "preconditioned GD".to_owned() } else { "GD".to_owned() }
    }

    fn iterates(&self, examples: &Examples<'_>, steps: usize) -> Result<Vec<Vec<f64>>> {
        let d = examples.dim();
        if let Some(p) = self.preconditioner.as_ref().filter(|p| p.rows() != d) {
            return Err(Error::shape("preconditioner", &[p.rows(), p.cols()], format!("[{d}, {d}]")));
        }
        let mut iterates = vec![vec![0.0; d]];
        for k in 0..steps {
            let rate = self.rates[k.min(self.rates.len() - 1)];
            let gradient = examples.gradient(&iterates[k]);
            let direction = match &self.preconditioner {
                Some(p) => p.mul_vec(&gradient),
                None => gradient,
            };
            iterates.push(iterates[k].iter().zip(direction).map(|(w, g)| w - rate * g).collect());
        }
        Ok(iterates)
    }
}
