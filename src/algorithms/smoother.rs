//! Predictions that are linear in the labels, and their exact risk on a Gaussian process.

use crate::error::all_finite;
use crate::linalg::Matrix;
use crate::{Error, Result};

/// An algorithm whose prediction at the query is Σ_i w_i y_i, with weights that depend on the covariates alone.
pub trait LinearSmoother: Sync {
    /// Its name, as legends show it.
    fn name(&self) -> String;

    /// The weights after 0, …, `steps` steps, each `[n]`, for the kernel's matrix of n examples and the query, which is
    /// last, (n+1) x (n+1); an algorithm that solves in one go repeats its solution.
    ///
    /// # Errors
    /// [`Error::Shape`] for a matrix that is not square or of size 1; [`Error::Numerical`] where it breaks down.
    fn weights(&self, kernel: &Matrix, steps: usize) -> Result<Vec<Vec<f64>>>;
}

/// The number of examples n of a matrix of n examples and the query.
pub(super) fn examples(kernel: &Matrix) -> Result<usize> {
    if kernel.rows() == kernel.cols() && kernel.rows() >= 2 {
        Ok(kernel.rows() - 1)
    } else {
        Err(Error::shape("kernel matrix", &[kernel.rows(), kernel.cols()], "[n+1, n+1] with n >= 1"))
    }
}

/// E (Σ_i w_i y_i − y_{n+1})² over labels with this covariance, (n+1) x (n+1): gᵀ K₊ g with g = (−w, 1).
///
/// # Errors
/// [`Error::Shape`] unless there are n weights.
pub fn risk(weights: &[f64], covariance: &Matrix) -> Result<f64> {
    let n = examples(covariance)?;
    if weights.len() != n {
        return Err(Error::shape("weights", &[weights.len()], format!("[{n}]")));
    }
    let g: Vec<f64> = weights.iter().map(|w| -w).chain([1.0]).collect();
    Ok(g.iter().zip(covariance.mul_vec(&g)).map(|(g, v)| g * v).sum())
}

/// The least risk of any prediction: the variance of the last label given the others,
/// K_{n+1,n+1} − vᵀ K̂⁻¹ v, which is the square of the Cholesky factor's last pivot.
///
/// Singular covariances are fine: pivots below 1e-12 of their diagonal entry count as 0.
///
/// # Errors
/// [`Error::Shape`] for a matrix that is not square or of size 1, [`Error::Invalid`] for entries that are not finite.
pub fn bayes_risk(covariance: &Matrix) -> Result<f64> {
    let n = examples(covariance)?;
    all_finite("covariance", covariance.as_slice().iter().copied())?;
    let mut l = Matrix::zeros(n + 1, n + 1);
    for j in 0..=n {
        for i in j..=n {
            let rest = covariance[(i, j)] - (0..j).map(|k| l[(i, k)] * l[(j, k)]).sum::<f64>();
            l[(i, j)] = if i == j {
                if rest > 1e-12 * covariance[(j, j)] { rest.sqrt() } else { 0.0 }
            } else if l[(j, j)] > 0.0 {
                rest / l[(j, j)]
            } else {
                0.0
            };
        }
    }
    Ok(l[(n, n)].powi(2))
}
