//! What a model may be running: algorithms that solve a prompt's regression. One file an algorithm, one trait.

pub mod accelerated;
pub mod bfgs;
pub mod conjugate_gradient;
pub mod functional_gradient_descent;
pub mod gd_plus_plus;
pub mod gradient_descent;
pub mod kernel_polynomial;
pub mod kernel_ridge;
pub mod least_squares;
mod line_search;
pub mod newton;
pub mod online_gradient_descent;
pub mod prefix;
pub mod sequences;
pub mod smoother;

pub use accelerated::{Chebyshev, Ends, HeavyBall};
pub use bfgs::{Bfgs, Lbfgs, Minimum, minimise};
pub use conjugate_gradient::ConjugateGradient;
pub use functional_gradient_descent::FunctionalGradientDescent;
pub use gd_plus_plus::{GdPlusPlus, SpectralMeasure};
pub use gradient_descent::GradientDescent;
pub use kernel_polynomial::KernelPolynomial;
pub use kernel_ridge::KernelRidge;
pub use least_squares::LeastSquares;
pub use newton::{IterativeNewton, Precision};
pub use online_gradient_descent::OnlineGradientDescent;
pub use prefix::{Predictions, Prefix, Run, Spectrum, predictions, weights};
pub use smoother::{LinearSmoother, bayes_risk, risk};

use crate::linalg::Matrix;
use crate::tasks::Prompts;
use crate::{Error, Result};

/// The examples of one prompt: covariates `[n, d]` row-major and labels `[n]`.
#[derive(Clone, Copy, Debug)]
pub struct Examples<'a> {
    /// Covariates, `[n, d]` row-major.
    pub x: &'a [f64],
    /// Labels, `[n]`.
    pub y: &'a [f64],
}

impl<'a> Examples<'a> {
    /// Examples from covariates `[n, d]` and labels `[n]`.
    ///
    /// # Errors
    /// [`Error::Shape`] unless there are d >= 1 covariates for each of at least one label; [`Error::Invalid`] for values
    /// that are not finite.
    pub fn new(x: &'a [f64], y: &'a [f64]) -> Result<Self> {
        if y.is_empty() || x.is_empty() || !x.len().is_multiple_of(y.len()) {
            return Err(Error::shape("examples", &[x.len(), y.len()], "[n, d] covariates and [n] labels, n, d >= 1"));
        }
        if let Some(bad) = x.iter().chain(y).find(|v| !v.is_finite()) {
            return Err(Error::invalid("examples", bad, "finite covariates and labels"));
        }
        Ok(Examples { x, y })
    }

    /// The first `n` examples of prompt `i`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a prompt that is not there, or `n` outside 1 to the context length.
    pub fn of(prompts: &'a Prompts, i: usize, n: usize) -> Result<Self> {
        if i >= prompts.len() {
            return Err(Error::invalid("prompt", i, format!("below {}", prompts.len())));
        }
        if n == 0 || n > prompts.context() {
            return Err(Error::invalid("examples", n, format!("1 to the context length {}", prompts.context())));
        }
        Examples::new(&prompts.x(i)[..n * prompts.dim()], &prompts.y(i)[..n])
    }

    /// Number of examples n.
    pub fn len(&self) -> usize {
        self.y.len()
    }

    /// Whether there are none (never, by construction).
    pub fn is_empty(&self) -> bool {
        self.y.is_empty()
    }

    /// Dimension d.
    pub fn dim(&self) -> usize {
        self.x.len() / self.y.len()
    }

    /// Covariates as a matrix, n x d.
    pub fn matrix(&self) -> Matrix {
        let d = self.dim();
        Matrix::from_fn(self.len(), d, |i, j| self.x[i * d + j])
    }

    /// XᵀX w − XᵀY: the gradient of half the sum of squared residuals.
    pub fn gradient(&self, w: &[f64]) -> Vec<f64> {
        let mut gradient = vec![0.0; w.len()];
        for (x, y) in self.x.chunks(self.dim()).zip(self.y) {
            let residual = x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>() - y;
            gradient.iter_mut().zip(x).for_each(|(g, x)| *g += residual * x);
        }
        gradient
    }
}

/// An algorithm that estimates a prompt's weight vector, step by step.
pub trait Algorithm: Sync {
    /// Its name, as legends show it.
    fn name(&self) -> String;

    /// The iterates w_0, …, w_steps, each of dimension d; an algorithm that solves in one go repeats its solution.
    ///
    /// # Errors
    /// [`Error::Shape`] if the algorithm is for another dimension; [`Error::Numerical`] where it breaks down.
    fn iterates(&self, examples: &Examples<'_>, steps: usize) -> Result<Vec<Vec<f64>>>;

    /// The iterates after `at` steps, `[at, d]`, at a prefix of a prompt; overridden where what prefixes and algorithms
    /// share (the Gram matrix, its spectrum) makes them cheaper.
    ///
    /// # Errors
    /// As [`Algorithm::iterates`].
    fn at_prefix(&self, prefix: &Prefix<'_>, at: &[usize]) -> Result<Vec<f64>> {
        chosen_steps(self, prefix, at)
    }
}

/// [`Algorithm::at_prefix`] by [`Algorithm::iterates`].
fn chosen_steps<A: Algorithm + ?Sized>(algorithm: &A, prefix: &Prefix<'_>, at: &[usize]) -> Result<Vec<f64>> {
    let all = algorithm.iterates(&prefix.examples, at.iter().copied().max().unwrap_or(0))?;
    Ok(at.iter().flat_map(|k| all[*k].iter().copied()).collect())
}

/// [`Algorithm::iterates`] by [`Algorithm::at_prefix`].
fn all_steps<A: Algorithm + ?Sized>(algorithm: &A, examples: &Examples<'_>, steps: usize) -> Result<Vec<Vec<f64>>> {
    let at: Vec<usize> = (0..=steps).collect();
    let all = algorithm.at_prefix(&Prefix::new(*examples), &at)?;
    Ok(all.chunks(examples.dim()).map(<[f64]>::to_vec).collect())
}

/// Mean squared error at the query after 0, …, `steps` steps, `[steps + 1]`, using the first `n` examples of each prompt.
///
/// # Errors
/// As [`Examples::of`] and [`Algorithm::iterates`].
pub fn losses(algorithm: &dyn Algorithm, prompts: &Prompts, n: usize, steps: usize) -> Result<Vec<f64>> {
    use rayon::prelude::*;
    let (d, context) = (prompts.dim(), prompts.context());
    let errors: Vec<Vec<f64>> = (0..prompts.len())
        .into_par_iter()
        .map(|i| {
            let iterates = algorithm.iterates(&Examples::of(prompts, i, n)?, steps)?;
            let (query, y) = (&prompts.x(i)[context * d..], prompts.y(i)[context]);
            let error = |w: &Vec<f64>| (query.iter().zip(w).map(|(x, w)| x * w).sum::<f64>() - y).powi(2);
            Ok(iterates.iter().map(error).collect())
        })
        .collect::<Result<_>>()?;
    Ok((0..=steps).map(|k| errors.iter().map(|e| e[k]).sum::<f64>() / errors.len() as f64).collect())
}
