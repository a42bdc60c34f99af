//! Every prefix of a prompt at once: what an algorithm predicts for x_{t+1} from the first t examples, for all t.
//!
//! An in-context learner predicts at every position, so an algorithm that is compared with it starts from scratch at
//! every prefix (`newton` section 3.1). What prefixes share is computed once, whatever the number of algorithms: the Gram
//! matrix grows by one outer product an example, and one eigendecomposition a prefix serves every algorithm whose
//! iterates are functions of the spectrum.

use std::cell::OnceCell;

use rayon::prelude::*;

use super::{Algorithm, Examples};
use crate::linalg::RANK;
use crate::linalg::{Matrix, dot};
use crate::tasks::Prompts;
use crate::{Error, Result};

/// The first t >= 1 examples of a prompt, with S = XᵀX, b = Xᵀy and, when an algorithm asks for it, the spectrum of S.
#[derive(Clone, Debug)]
pub struct Prefix<'a> {
    /// The examples.
    pub examples: Examples<'a>,
    gram: Matrix,
    cross: Vec<f64>,
    spectrum: OnceCell<Spectrum>,
}

impl<'a> Prefix<'a> {
    /// The prefix that is all of these examples.
    pub fn new(examples: Examples<'a>) -> Self {
        let d = examples.dim();
        let (mut gram, mut cross) = (Matrix::zeros(d, d), vec![0.0; d]);
        for (x, y) in examples.x.chunks(d).zip(examples.y) {
            add_example(&mut gram, &mut cross, x, *y);
        }
        Prefix { examples, gram, cross, spectrum: OnceCell::new() }
    }

    /// All prefixes of these examples, t = 1, …, n.
    pub fn all(examples: Examples<'a>) -> Vec<Self> {
        let d = examples.dim();
        let (mut gram, mut cross) = (Matrix::zeros(d, d), vec![0.0; d]);
        let prefix = |t: usize| {
            let (x, y) = (&examples.x[..t * d], &examples.y[..t]);
            add_example(&mut gram, &mut cross, &x[(t - 1) * d..], y[t - 1]);
            Prefix { examples: Examples { x, y }, gram: gram.clone(), cross: cross.clone(), spectrum: OnceCell::new() }
        };
        (1..=examples.len()).map(prefix).collect()
    }

    /// Dimension d.
    pub fn dim(&self) -> usize {
        self.cross.len()
    }

    /// S = XᵀX, d x d.
    pub fn gram(&self) -> &Matrix {
        &self.gram
    }

    /// b = Xᵀy, `[d]`.
    pub fn cross(&self) -> &[f64] {
        &self.cross
    }

    /// S w − b, the gradient of half the sum of squared residuals, `[d]`.
    pub fn gradient(&self, w: &[f64]) -> Vec<f64> {
        (0..w.len()).map(|i| dot(self.gram.row(i), w) - self.cross[i]).collect()
    }

    /// The spectrum of S off its null space.
    ///
    /// # Errors
    /// As [`Matrix::eigen_symmetric`].
    pub fn spectrum(&self) -> Result<&Spectrum> {
        if self.spectrum.get().is_none() {
            // A second thread cannot have come first: a cell is not shared between threads.
            let _ = self.spectrum.set(Spectrum::new(self)?);
        }
        self.spectrum.get().ok_or_else(|| Error::numerical("spectrum", "it was not computed"))
    }
}

fn add_example(gram: &mut Matrix, cross: &mut [f64], x: &[f64], y: f64) {
    for (i, xi) in x.iter().enumerate() {
        gram.row_mut(i).iter_mut().zip(x).for_each(|(s, xj)| *s += xi * xj);
        cross[i] += xi * y;
    }
}

/// S = Σ_i l_i v_i v_iᵀ over its r <= min(t, d) eigenvalues that are not zero.
///
/// b lies in the span of the v_i, so every polynomial p(S) b is a sum over i: algorithms that are functions of S run
/// exactly, without the round-off that grows in the null space of a recursion.
#[derive(Clone, Debug)]
pub struct Spectrum {
    /// The eigenvalues l_i, ascending, `[r]`.
    pub values: Vec<f64>,
    /// The eigenvectors v_i as rows, r x d.
    pub vectors: Matrix,
    /// v_iᵀ b, `[r]`.
    pub cross: Vec<f64>,
}

impl Spectrum {
    /// From the smaller of S (d x d) and XXᵀ (t x t), which have the same eigenvalues.
    fn new(prefix: &Prefix<'_>) -> Result<Self> {
        let (x, d) = (&prefix.examples, prefix.dim());
        let t = x.len();
        let dual = t < d;
        let row = |i: usize| &x.x[i * d..][..d];
        let gram = if dual { Matrix::from_fn(t, t, |i, j| dot(row(i), row(j))) } else { prefix.gram.clone() };
        let (all, basis) = gram.eigen_symmetric()?;
        let least = RANK * all.last().copied().unwrap_or(0.0).max(f64::MIN_POSITIVE);
        let first = all.partition_point(|v| *v <= least);
        let values = all[first..].to_vec();
        let mut vectors = Matrix::zeros(values.len(), d);
        for (i, value) in values.iter().enumerate() {
            let into = vectors.row_mut(i);
            if dual {
                for k in 0..t {
                    let weight = basis[(k, first + i)] / value.sqrt();
                    into.iter_mut().zip(row(k)).for_each(|(v, x)| *v += weight * x);
                }
            } else {
                into.iter_mut().enumerate().for_each(|(k, v)| *v = basis[(k, first + i)]);
            }
        }
        let cross = vectors.mul_vec(&prefix.cross);
        Ok(Spectrum { values, vectors, cross })
    }

    /// Σ_i f(l_i, v_iᵀb) v_i, `[d]`.
    pub fn sum(&self, f: impl Fn(f64, f64) -> f64) -> Vec<f64> {
        let mut sum = vec![0.0; self.vectors.cols()];
        for (i, (value, cross)) in self.values.iter().zip(&self.cross).enumerate() {
            let weight = f(*value, *cross);
            sum.iter_mut().zip(self.vectors.row(i)).for_each(|(s, v)| *s += weight * v);
        }
        sum
    }

    /// The least and the greatest eigenvalue that is not zero; `None` if all are.
    pub fn ends(&self) -> Option<(f64, f64)> {
        Some((*self.values.first()?, *self.values.last()?))
    }
}

/// An algorithm and the steps after which its iterates are wanted.
#[derive(Clone, Copy)]
pub struct Run<'a> {
    /// The algorithm.
    pub algorithm: &'a dyn Algorithm,
    /// The steps, in any order.
    pub at: &'a [usize],
}

/// Predictions at every position of a batch of prompts: position t, from 0, is the one for x_{t+1} from t examples.
#[derive(Clone, Debug, PartialEq)]
pub struct Predictions {
    /// Number of prompts.
    pub batch: usize,
    /// Positions of a prompt, n + 1.
    pub positions: usize,
    /// For every predictor (a step of an algorithm, a layer of a model) its predictions, `[batch, positions]`.
    pub values: Vec<Vec<f64>>,
}

impl Predictions {
    /// From predictors' values, `[batch, positions]` each.
    ///
    /// # Errors
    /// [`Error::Shape`] if one has another length, or there is none.
    pub fn new(batch: usize, positions: usize, values: Vec<Vec<f64>>) -> Result<Self> {
        let wrong = values.iter().map(Vec::len).find(|len| *len != batch * positions);
        if let Some(len) = wrong.or(values.is_empty().then_some(0)) {
            return Err(Error::shape("predictions", &[len], format!("[{batch}, {positions}] of each predictor")));
        }
        Ok(Predictions { batch, positions, values })
    }

    /// Mean squared error at each position of predictor `k`, `[positions]`.
    ///
    /// # Errors
    /// [`Error::Shape`] for prompts of another shape, [`Error::Invalid`] for a predictor that is not there.
    pub fn mse(&self, k: usize, prompts: &Prompts) -> Result<Vec<f64>> {
        let residuals = self.residuals_of(k, prompts)?;
        let mut mse = vec![0.0; self.positions];
        for row in residuals.chunks(self.positions) {
            mse.iter_mut().zip(row).for_each(|(m, r)| *m += r * r / self.batch as f64);
        }
        Ok(mse)
    }

    /// Prediction minus label of every predictor, in place of the predictions.
    ///
    /// # Errors
    /// [`Error::Shape`] for prompts of another shape.
    pub fn residuals(&self, prompts: &Prompts) -> Result<Predictions> {
        let values = (0..self.values.len()).map(|k| self.residuals_of(k, prompts)).collect::<Result<_>>()?;
        Ok(Predictions { values, ..*self })
    }

    fn residuals_of(&self, k: usize, prompts: &Prompts) -> Result<Vec<f64>> {
        if prompts.len() != self.batch || prompts.context() + 1 != self.positions {
            let given = [prompts.len(), prompts.context() + 1];
            return Err(Error::shape("prompts", &given, format!("[{}, {}]", self.batch, self.positions)));
        }
        let values =
            self.values.get(k).ok_or_else(|| Error::invalid("predictor", k, format!("below {}", self.values.len())))?;
        let labels = (0..prompts.len()).flat_map(|i| prompts.y(i));
        Ok(values.iter().zip(labels).map(|(p, y)| p - y).collect())
    }
}

/// What every run predicts at every position of every prompt: one [`Predictions`] a run, in it one predictor for each of
/// its steps. With no example the prediction is 0 (`newton`, the authors' code).
///
/// Prompts are worked on in parallel; what prefixes share is shared by all runs.
///
/// ```
/// use incontext::algorithms::{IterativeNewton, LeastSquares, Run, predictions};
/// use incontext::tasks::{Covariance, LinearRegression, WeightPrior};
/// let prompts = LinearRegression::new(Covariance::identity(5)?, 10, WeightPrior::Isotropic)?.sample(50, 0)?;
/// let (newton, ols) = (IterativeNewton::new(1.0)?, LeastSquares::default());
/// let made = predictions(&[Run { algorithm: &newton, at: &[0, 40] }, Run { algorithm: &ols, at: &[0] }], &prompts)?;
/// let (start, end) = (made[0].mse(0, &prompts)?, made[0].mse(1, &prompts)?);
/// assert!(start[10] > 1.0 && end[10] < 1e-9 && made[1].mse(0, &prompts)?[5] < 1e-9);
/// # Ok::<(), incontext::Error>(())
/// ```
///
/// # Errors
/// [`Error::Invalid`] for a run without steps; as [`Algorithm::at_prefix`].
pub fn predictions(runs: &[Run<'_>], prompts: &Prompts) -> Result<Vec<Predictions>> {
    let d = prompts.dim();
    let parts = over_prompts(runs, prompts, |x, weights| weights.chunks(d).map(|w| dot(w, x)).collect())?;
    regroup(runs, prompts, 1, &parts)
        .into_iter()
        .map(|values| Predictions::new(prompts.len(), prompts.context() + 1, values))
        .collect()
}

/// The weight vectors of every run at every prefix of every prompt: for each run and each of its steps
/// `[batch, positions, d]`; zeros with no example.
///
/// # Errors
/// As [`predictions`].
pub fn weights(runs: &[Run<'_>], prompts: &Prompts) -> Result<Vec<Vec<Vec<f64>>>> {
    let parts = over_prompts(runs, prompts, |_, weights| weights)?;
    Ok(regroup(runs, prompts, prompts.dim(), &parts))
}

/// For each prompt the numbers that `take` makes of the next covariate and a run's iterates, `[positions, runs, steps, …]`.
fn over_prompts(
    runs: &[Run<'_>],
    prompts: &Prompts,
    take: impl Fn(&[f64], Vec<f64>) -> Vec<f64> + Sync,
) -> Result<Vec<Vec<f64>>> {
    if let Some(run) = runs.iter().find(|run| run.at.is_empty()) {
        return Err(Error::invalid(format!("steps of {}", run.algorithm.name()), "none", "at least one"));
    }
    let (d, n) = (prompts.dim(), prompts.context());
    let of = |i: usize| {
        let mut out = Vec::new();
        let x = prompts.x(i);
        for run in runs {
            out.extend(take(&x[..d], vec![0.0; run.at.len() * d]));
        }
        for prefix in Prefix::all(Examples::of(prompts, i, n)?) {
            let next = &x[prefix.examples.len() * d..][..d];
            for run in runs {
                out.extend(take(next, run.algorithm.at_prefix(&prefix, run.at)?));
            }
        }
        Ok(out)
    };
    (0..prompts.len()).into_par_iter().map(of).collect()
}

/// `[batch][positions, runs, steps, width]` as `[runs][steps][batch, positions, width]`.
fn regroup(runs: &[Run<'_>], prompts: &Prompts, width: usize, parts: &[Vec<f64>]) -> Vec<Vec<Vec<f64>>> {
    let stride: usize = runs.iter().map(|run| run.at.len() * width).sum();
    let mut offset = 0;
    let mut all = Vec::with_capacity(runs.len());
    for run in runs {
        let steps = (0..run.at.len()).map(|k| {
            let mut values = Vec::with_capacity(prompts.len() * (prompts.context() + 1) * width);
            for part in parts {
                for position in part.chunks(stride) {
                    values.extend_from_slice(&position[offset + k * width..][..width]);
                }
            }
            values
        });
        all.push(steps.collect());
        offset += run.at.len() * width;
    }
    all
}
