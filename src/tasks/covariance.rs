//! Covariances of covariates, with the square roots that sampling and whitening need.

use rand_distr::{Distribution, StandardNormal};

use crate::error::array_len;
use crate::linalg::Matrix;
use crate::rng::stream;
use crate::{Error, Result};

/// A positive definite covariance Σ with Σ^{1/2} and Σ^{-1/2}.
///
/// ```
/// use incontext::tasks::Covariance;
/// let sigma = Covariance::rotated(&[1.0, 1.0, 0.25, 0.0625, 1.0], 0)?;
/// assert!((sigma.condition_number() - 16.0).abs() < 1e-9);
/// # Ok::<(), incontext::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Covariance {
    sigma: Matrix,
    sqrt: Matrix,
    inv_sqrt: Matrix,
    scales: Option<Vec<f64>>,
    condition_number: f64,
}

impl Covariance {
    /// Σ = I of dimension `d`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for d = 0, or if the matrix does not fit in memory.
    pub fn identity(d: usize) -> Result<Self> {
        array_len::<f64>("covariance", &[d, d])?;
        Covariance::diagonal(&vec![1.0; d])
    }

    /// Σ = diag(λ).
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is no eigenvalue, or one is not positive and finite.
    pub fn diagonal(eigenvalues: &[f64]) -> Result<Self> {
        Covariance::with_basis(eigenvalues, &Matrix::identity(eigenvalues.len()))
    }

    /// Σ = U diag(λ) Uᵀ with U uniform over the orthogonal group (Haar), drawn from `seed`.
    ///
    /// # Errors
    /// As [`Covariance::diagonal`].
    pub fn rotated(eigenvalues: &[f64], seed: u64) -> Result<Self> {
        let d = eigenvalues.len();
        let mut rng = stream(seed, "rotation", 0);
        // Gram-Schmidt of a Gaussian matrix's rows: the law is invariant under rotations, hence Haar.
        let mut rows: Vec<Vec<f64>> = Vec::with_capacity(d);
        while rows.len() < d {
            let mut v: Vec<f64> = (0..d).map(|_| StandardNormal.sample(&mut rng)).collect();
            // Twice, since one pass loses digits when v is nearly in the span of the rows before it.
            for _ in 0..2 {
                for row in &rows {
                    let c: f64 = row.iter().zip(&v).map(|(a, b)| a * b).sum();
                    v.iter_mut().zip(row).for_each(|(x, r)| *x -= c * r);
                }
            }
            let norm = v.iter().map(|x| x * x).sum::<f64>().sqrt();
            if norm > 1e-8 {
                rows.push(v.iter().map(|x| x / norm).collect());
            }
        }
        Covariance::with_basis(eigenvalues, &Matrix::from_fn(d, d, |i, j| rows[j][i]))
    }

    /// A covariance given as a matrix.
    ///
    /// # Errors
    /// [`Error::Shape`] if it is not square, [`Error::Invalid`] if it is not symmetric and positive definite.
    pub fn from_matrix(sigma: &Matrix) -> Result<Self> {
        if sigma.rows() != sigma.cols() {
            return Err(Error::shape("covariance", &[sigma.rows(), sigma.cols()], "a square matrix"));
        }
        let asymmetry = sigma.plus(-1.0, &sigma.transpose()).norm();
        if asymmetry > 1e-9 * sigma.norm() {
            return Err(Error::invalid("covariance", "an asymmetric matrix", "a symmetric one"));
        }
        let (values, basis) = sigma.eigen_symmetric()?;
        Covariance::with_basis(&values, &basis)
    }

    fn with_basis(eigenvalues: &[f64], u: &Matrix) -> Result<Self> {
        if eigenvalues.is_empty() {
            return Err(Error::invalid("dimension", 0, "at least 1"));
        }
        if let Some(bad) = eigenvalues.iter().find(|v| !(v.is_finite() && **v > 0.0)) {
            return Err(Error::invalid("eigenvalue of the covariance", bad, "a positive finite number"));
        }
        let map = |f: fn(f64) -> f64| {
            let values: Vec<f64> = eigenvalues.iter().map(|&v| f(v)).collect();
            u.mul(&Matrix::diagonal(&values)).mul(&u.transpose())
        };
        let largest = eigenvalues.iter().copied().fold(f64::MIN, f64::max);
        let smallest = eigenvalues.iter().copied().fold(f64::MAX, f64::min);
        let sqrt = map(f64::sqrt);
        let d = sqrt.rows();
        let diagonal = (0..d * d).all(|k| k / d == k % d || sqrt.as_slice()[k] == 0.0);
        Ok(Covariance {
            sigma: map(|v| v),
            scales: diagonal.then(|| sqrt.as_slice().iter().step_by(d + 1).copied().collect()),
            sqrt,
            inv_sqrt: map(|v| 1.0 / v.sqrt()),
            condition_number: largest / smallest,
        })
    }

    /// Dimension d.
    pub fn dim(&self) -> usize {
        self.sigma.rows()
    }

    /// Σ, d x d.
    pub fn matrix(&self) -> &Matrix {
        &self.sigma
    }

    /// The symmetric Σ^{1/2}.
    pub fn sqrt(&self) -> &Matrix {
        &self.sqrt
    }

    /// The symmetric Σ^{-1/2}.
    pub fn inv_sqrt(&self) -> &Matrix {
        &self.inv_sqrt
    }

    /// Σ^{1/2} x, into `to`: entry by entry where Σ is diagonal, which changes nothing but the time it takes.
    pub(super) fn color(&self, x: &[f64], to: &mut [f64]) {
        if let Some(scales) = &self.scales {
            to.iter_mut().zip(scales).zip(x).for_each(|((to, s), x)| *to = s * x);
            return;
        }
        for (to, row) in to.iter_mut().zip(self.sqrt.as_slice().chunks(x.len())) {
            *to = row.iter().zip(x).map(|(s, x)| s * x).sum();
        }
    }

    /// Σ^{-1}.
    pub fn inverse(&self) -> Matrix {
        self.inv_sqrt.mul(&self.inv_sqrt)
    }

    /// κ, the largest eigenvalue over the smallest.
    pub fn condition_number(&self) -> f64 {
        self.condition_number
    }
}
