//! What a model may be running on a sequence: regression of what follows on what is there, anew at every token.
//!
//! At token t the pairs (z_i → s_{i+1}), i < t, are known and s_{t+1} is predicted from z_t. z is s itself, or features of
//! it. One file an algorithm, one trait.

pub mod few_shot;
pub mod gradient;
pub mod kernel;
pub mod least_squares;
pub mod posterior;
pub mod series;

pub use few_shot::{FewShotPairs, few_shot_losses};
pub use gradient::SequenceGradient;
pub use kernel::SoftmaxKernel;
pub use least_squares::{RecursiveLeastSquares, SequenceLeastSquares};
pub use posterior::TeacherPosterior;
pub use series::InverseSeries;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::linalg::Matrix;
use crate::tasks::Trajectories;
use crate::{Error, Result};

/// Which pairs an algorithm sees at token t.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pairing {
    /// All t − 1 of them, as the paper's L_t.
    All,
    /// All but the newest, (z_{t−1} → s_t): the authors' code for least squares and the series, which loses it by an
    /// off-by-one.
    Dropped,
}

impl Pairing {
    /// How legends call it.
    pub fn label(self) -> &'static str {
        match self {
            Pairing::All => "",
            Pairing::Dropped => ", newest pair dropped",
        }
    }
}

/// One sequence as a regression: inputs z_1 … z_T `[T, m]` and states s_1 … s_{T+1} `[T + 1, n]`.
#[derive(Clone, Copy, Debug)]
pub struct Pairs<'a> {
    /// z_1 … z_T, `[T, m]` row-major.
    pub inputs: &'a [f64],
    /// m.
    pub input_dim: usize,
    /// s_1 … s_{T+1}, `[T + 1, n]` row-major.
    pub states: &'a [f64],
    /// n.
    pub dim: usize,
}

impl Pairs<'_> {
    /// Number of tokens T.
    pub fn tokens(&self) -> usize {
        self.inputs.len() / self.input_dim
    }

    /// z_{t+1}, t from 0.
    pub fn input(&self, t: usize) -> &[f64] {
        &self.inputs[t * self.input_dim..][..self.input_dim]
    }

    /// s_{t+1}, t from 0.
    pub fn state(&self, t: usize) -> &[f64] {
        &self.states[t * self.dim..][..self.dim]
    }
}

/// An algorithm that predicts the next state at every token.
pub trait SequenceAlgorithm: Sync {
    /// How legends call it.
    fn name(&self) -> String;

    /// The predictions of s_2 … s_{T+1}, `[T, n]`.
    ///
    /// # Errors
    /// [`Error::Numerical`] for a system without a solution.
    fn predict(&self, pairs: &Pairs<'_>) -> Result<Vec<f64>>;
}

/// Predictions by an algorithm that sees the pairs through A = Σ z_i z_iᵀ `[m, m]` and C = Σ s_{i+1} z_iᵀ `[n, m]`: `solve` gets
/// them and z_t.
pub(super) fn by_moments(
    pairs: &Pairs<'_>,
    pairing: Pairing,
    mut solve: impl FnMut(&Matrix, &Matrix, &[f64]) -> Result<Vec<f64>>,
) -> Result<Vec<f64>> {
    let (m, n) = (pairs.input_dim, pairs.dim);
    let (mut a, mut c) = (Matrix::zeros(m, m), Matrix::zeros(n, m));
    let mut out = Vec::with_capacity(pairs.tokens() * n);
    let lag = if pairing == Pairing::All { 1 } else { 2 };
    for t in 0..pairs.tokens() {
        if t >= lag {
            let (z, s) = (pairs.input(t - lag), pairs.state(t - lag + 1));
            for j in 0..m {
                for i in 0..m {
                    a[(i, j)] += z[i] * z[j];
                }
                for i in 0..n {
                    c[(i, j)] += s[i] * z[j];
                }
            }
        }
        out.extend(solve(&a, &c, pairs.input(t))?);
    }
    Ok(out)
}

/// The predictions of `algorithm` on every sequence, `[batch, T, n]`, from the states themselves, or from `inputs` (states
/// stacked, or features) in their place.
///
/// # Errors
/// [`Error::Shape`] if the inputs are of other sequences; those of the algorithm.
pub fn predictions(
    algorithm: &dyn SequenceAlgorithm,
    sequences: &Trajectories,
    inputs: Option<&Trajectories>,
) -> Result<Vec<f64>> {
    let inputs = inputs.unwrap_or(sequences);
    if (inputs.len(), inputs.tokens()) != (sequences.len(), sequences.tokens()) {
        let expected = format!("[{}, {}]", sequences.len(), sequences.tokens());
        return Err(Error::shape("inputs of the regression", &[inputs.len(), inputs.tokens()], expected));
    }
    let (tokens, m) = (sequences.tokens(), inputs.dim());
    let each: Vec<Vec<f64>> = (0..sequences.len())
        .into_par_iter()
        .map(|i| {
            algorithm.predict(&Pairs {
                inputs: &inputs.states(i)[..tokens * m],
                input_dim: m,
                states: sequences.states(i),
                dim: sequences.dim(),
            })
        })
        .collect::<Result<_>>()?;
    Ok(each.concat())
}

/// The per-token loss of `algorithm`, `[T]` (see [`Trajectories::losses`]).
///
/// # Errors
/// As [`predictions`].
pub fn sequence_losses(
    algorithm: &dyn SequenceAlgorithm,
    sequences: &Trajectories,
    inputs: Option<&Trajectories>,
) -> Result<Vec<f64>> {
    sequences.losses(&predictions(algorithm, sequences, inputs)?)
}

/// The loss that nothing can beat on noiseless orthogonal dynamics from U(−1, 1): at token t the component of s_t outside the
/// t − 1 states before it stays unknown, ½ E‖P⊥ s_t‖² = (n/6)(n + 1 − t)/n for t <= n and 0 after, plus n σ²/2.
pub fn orthogonal_floor(dim: usize, tokens: usize, noise: f64) -> Vec<f64> {
    let unknown = |t: usize| (dim + 1).saturating_sub(t) as f64 / 6.0;
    (1..=tokens).map(|t| unknown(t) + 0.5 * dim as f64 * noise * noise).collect()
}
