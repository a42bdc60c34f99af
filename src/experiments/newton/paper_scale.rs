//! What the algorithms do at the paper's own size, d = 20 and n = 40: no network is needed.

use rayon::prelude::*;

use crate::Result;
use crate::algorithms::{
    Algorithm, Examples, GradientDescent, IterativeNewton, LeastSquares, Predictions, Prefix, Run, predictions,
};
use crate::compare::{Measure, Similarity};
use crate::experiments::Settings;
use crate::figure::Extremes;
use crate::linalg::{Matrix, dot};
use crate::rng::{Rng, stream};
use crate::tasks::{Covariance, IllConditioned, LinearRegression, Prompts, WeightPrior};

/// d.
pub const DIM: usize = 20;
/// n.
pub const CONTEXT: usize = 40;
/// Step size of gradient descent on the isotropic and the noisy task (the authors' code).
pub const RATE: f64 = 0.01;
/// … on the ill-conditioned task, where the paper does not state it (newton.md trap 6).
pub const SKEW_RATE: f64 = 0.002;

/// How many prompts, fewer in quick mode.
pub fn count(full: usize, settings: &Settings<'_>) -> usize {
    if settings.quick { (full / 16).max(8) } else { full }
}

/// Isotropic prompts with noise of this standard deviation.
///
/// # Errors
/// As [`LinearRegression::sample`].
pub fn isotropic(batch: usize, noise: f64, seed: u64) -> Result<Prompts> {
    let task = LinearRegression::new(Covariance::identity(DIM)?, CONTEXT, WeightPrior::Isotropic)?;
    task.with_noise(noise)?.sample(batch, seed)
}

/// Ill-conditioned prompts.
///
/// # Errors
/// As [`IllConditioned::sample`].
pub fn skew(batch: usize, kappa: f64, seed: u64) -> Result<Prompts> {
    IllConditioned::two_clusters(DIM, kappa, CONTEXT)?.sample(batch, seed)
}

/// Iterative Newton with the constant of the printed figures, c = 2.
///
/// # Errors
/// Never: 2 is allowed.
pub fn newton() -> Result<IterativeNewton> {
    IterativeNewton::new(2.0)
}

/// Gradient descent at the authors' step from w_0 with entries uniform in [0, 1] / √d, as the printed figures behave
/// (newton.md trap 5).
///
/// # Errors
/// Never: the step and the start are finite.
pub fn gradient_descent(seed: u64) -> Result<GradientDescent> {
    let mut rng = stream(seed, "start of gradient descent", 0);
    let start = (0..DIM).map(|_| rng.gen_range(0.0..1.0) / (DIM as f64).sqrt()).collect();
    GradientDescent::new(vec![RATE])?.starting_at(start)
}

/// An algorithm's predictions after these steps.
///
/// # Errors
/// As [`predictions`].
pub fn made_by(algorithm: &dyn Algorithm, at: &[usize], prompts: &Prompts) -> Result<Predictions> {
    Ok(predictions(&[Run { algorithm, at }], prompts)?.remove(0))
}

/// Mean squared error in units of d after each of these steps, `[steps][positions]`: 1 for a predictor of 0.
///
/// # Errors
/// As [`predictions`].
pub fn errors(algorithm: &dyn Algorithm, at: &[usize], prompts: &Prompts) -> Result<Vec<Vec<f64>>> {
    let made = made_by(algorithm, at, prompts)?;
    let scaled = |k| Ok(made.mse(k, prompts)?.iter().map(|e| e / prompts.dim() as f64).collect());
    (0..at.len()).map(scaled).collect()
}

/// Mean squared error in units of d with all examples of a prompt, `[runs][steps]`: [`errors`] at its last position, without
/// the work of the others.
///
/// # Errors
/// As [`Algorithm::at_prefix`].
pub fn last_errors(runs: &[Run<'_>], prompts: &Prompts) -> Result<Vec<Vec<f64>>> {
    let (d, n) = (prompts.dim(), prompts.context());
    let of = |i: usize| -> Result<Vec<Vec<f64>>> {
        let prefix = Prefix::new(Examples::of(prompts, i, n)?);
        let (x, y) = (&prompts.x(i)[n * d..], prompts.y(i)[n]);
        let squared = |w: &[f64]| (dot(w, x) - y).powi(2);
        let of_run = |run: &Run<'_>| Ok(run.algorithm.at_prefix(&prefix, run.at)?.chunks(d).map(squared).collect());
        runs.iter().map(of_run).collect()
    };
    let all: Vec<Vec<Vec<f64>>> = (0..prompts.len()).into_par_iter().map(of).collect::<Result<_>>()?;
    let mean = |r: usize, k: usize| all.iter().map(|errors| errors[r][k]).sum::<f64>() / (d * prompts.len()) as f64;
    Ok(runs.iter().enumerate().map(|(r, run)| (0..run.at.len()).map(|k| mean(r, k)).collect()).collect())
}

/// The expected squared error over d after each of these steps at t examples, `[batches][steps]` of `batch` contexts each:
/// for isotropic prompts the mean over w⋆ and the query is (1/d) Σ_i r_k(l_i)², with r_k the factor by which k steps shrink
/// the error along an eigenvector of S with eigenvalue l_i, so only the context is sampled.
///
/// # Errors
/// As [`LinearRegression::sample_gram`].
pub fn expected_errors(
    t: usize,
    steps: &[usize],
    batches: usize,
    batch: usize,
    seed: u64,
    factor: impl Fn(&[f64], f64, usize) -> f64 + Sync,
) -> Result<Vec<Vec<f64>>> {
    let task = LinearRegression::new(Covariance::identity(DIM)?, t, WeightPrior::Isotropic)?;
    let grams = task.sample_gram(batches * batch, seed)?;
    let of_batch = |grams: &[f64]| {
        let mut means = vec![0.0; steps.len()];
        for gram in grams.chunks(DIM * DIM) {
            let (values, _) = Matrix::from_vec(DIM, DIM, gram.to_vec())?.eigen_symmetric()?;
            let values: Vec<f64> = values.iter().map(|v| v * t as f64).collect();
            for (mean, k) in means.iter_mut().zip(steps) {
                let error: f64 = values.iter().map(|l| factor(&values, *l, *k).powi(2)).sum();
                *mean += error / (DIM * batch) as f64;
            }
        }
        Ok(means)
    };
    grams.par_chunks(batch * DIM * DIM).map(of_batch).collect()
}

/// The factor of Iterative Newton with c = 2 after k steps.
pub fn newton_factor(spectrum: &[f64], l: f64, k: usize) -> f64 {
    let alpha = 2.0 / spectrum.iter().map(|l| l.powi(4)).sum::<f64>().sqrt();
    (0..k).fold(1.0 - alpha * l * l, |r, _| r * r)
}

/// The factor of gradient descent at the authors' step after k steps.
pub fn descent_factor(_: &[f64], l: f64, k: usize) -> f64 {
    (1.0 - RATE * l).powi(k as i32)
}

/// SimE between two runs: rows are the steps of the first, columns those of the second. All positions count, from the one
/// without examples on, as in the authors' code.
///
/// # Errors
/// As [`predictions`].
pub fn similarity(a: Run<'_>, b: Run<'_>, prompts: &Prompts) -> Result<Similarity> {
    let made = predictions(&[a, b], prompts)?;
    let (a, b) = (made[0].residuals(prompts)?, made[1].residuals(prompts)?);
    Similarity::of_errors(Measure::Cosine, &a, &b, 0..prompts.context() + 1)
}

/// SimE between least squares with this ridge and an algorithm after these steps.
///
/// # Errors
/// As [`predictions`].
pub fn with_least_squares(ridge: f64, algorithm: &dyn Algorithm, at: &[usize], prompts: &Prompts) -> Result<Vec<f64>> {
    let solved = LeastSquares::ridge(ridge)?;
    Ok(similarity(Run { algorithm, at }, Run { algorithm: &solved, at: &[0] }, prompts)?.means())
}

/// The largest |measured − expected|.
pub fn largest_gap(measured: &[f64], expected: &[f64]) -> f64 {
    measured.iter().zip(expected).map(|(m, e)| (m - e).abs()).greatest()
}

/// The largest |measured / expected − 1|.
pub fn largest_ratio(measured: &[f64], expected: &[f64]) -> f64 {
    measured.iter().zip(expected).map(|(m, e)| (m / e - 1.0).abs()).greatest()
}
