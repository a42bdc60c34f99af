//! Gradient descent on a prompt's squared error, plain or preconditioned.

use super::{Algorithm, Examples, Prefix};
use crate::linalg::{Matrix, dot};
use crate::{Error, Result};

/// w_{k+1} = w_k − η_k P (XᵀX w_k − XᵀY), w_0 = 0 unless [`GradientDescent::starting_at`] says otherwise.
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
    start: Option<Vec<f64>>,
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
            None => Ok(GradientDescent { rates, preconditioner: None, start: None }),
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

    /// The same from w_0 = `start`, `[d]`: the figures of `newton` behave as with entries uniform in [0, 1] / √d.
    ///
    /// # Errors
    /// [`Error::Invalid`] for entries that are not finite.
    pub fn starting_at(self, start: Vec<f64>) -> Result<Self> {
        crate::error::all_finite("start of gradient descent", start.iter().copied())?;
        Ok(GradientDescent { start: Some(start), ..self })
    }

    /// w_0 in dimension d.
    fn start(&self, d: usize) -> Result<Vec<f64>> {
        match &self.start {
            Some(start) if start.len() != d => {
                Err(Error::shape("start of gradient descent", &[start.len()], format!("[{d}]")))
            }
            Some(start) => Ok(start.clone()),
            None => Ok(vec![0.0; d]),
        }
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
        let mut iterates = vec![self.start(d)?];
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

    /// One rate without a preconditioner has a closed form in the eigenbasis of S, whatever the number of steps:
    /// w_k = w_0 + Σ_i (1 − (1 − η l_i)^k) / l_i (b_i − l_i w_{0,i}) v_i.
    fn at_prefix(&self, prefix: &Prefix<'_>, at: &[usize]) -> Result<Vec<f64>> {
        let (&[rate], None) = (self.rates.as_slice(), &self.preconditioner) else {
            return super::chosen_steps(self, prefix, at);
        };
        let start = self.start(prefix.dim())?;
        let spectrum = prefix.spectrum()?;
        let mut iterates = Vec::with_capacity(at.len() * start.len());
        let along: Vec<f64> = (0..spectrum.values.len()).map(|i| dot(spectrum.vectors.row(i), &start)).collect();
        for k in at {
            let mut w = start.clone();
            for (i, (l, b)) in spectrum.values.iter().zip(&spectrum.cross).enumerate() {
                let k = i32::try_from(*k).unwrap_or(i32::MAX);
                let weight = (1.0 - (1.0 - rate * l).powi(k)) / l * (b - l * along[i]);
                w.iter_mut().zip(spectrum.vectors.row(i)).for_each(|(w, v)| *w += weight * v);
            }
            iterates.extend(w);
        }
        Ok(iterates)
    }
}
