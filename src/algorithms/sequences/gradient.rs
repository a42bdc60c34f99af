//! Gradient descent on the sequence's squared error, from zero, anew at every token (`mesa` Prop. 1).

use super::{Pairing, Pairs, SequenceAlgorithm, by_moments, predictions};
use crate::linalg::Matrix;
use crate::tasks::Trajectories;
use crate::{Error, Result};

/// K steps of Φ ← Φ − η ∇L_t(Φ) = Φ + η (C − Φ A) from Φ = 0, L_t(Φ) = ½ Σ_{i<t} ‖s_{i+1} − Φ s_i‖².
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SequenceGradient {
    /// η.
    pub rate: f64,
    /// K.
    pub steps: usize,
}

impl SequenceGradient {
    /// One step with the rate that is best on `sequences`: the loss is quadratic in η, and its minimum Σ⟨y, p⟩ / Σ⟨p, p⟩ with
    /// the predictions p at η = 1.
    ///
    /// # Errors
    /// As [`predictions`]; [`Error::Numerical`] if the step is zero for all sequences.
    pub fn line_searched(sequences: &Trajectories) -> Result<Self> {
        let unit = predictions(&SequenceGradient { rate: 1.0, steps: 1 }, sequences, None)?;
        let n = sequences.dim();
        let targets = (0..sequences.len()).flat_map(|i| sequences.states(i)[n..].iter());
        let (mut cross, mut square) = (0.0, 0.0);
        for (y, p) in targets.zip(&unit) {
            cross += y * p;
            square += p * p;
        }
        if square > 0.0 {
            Ok(SequenceGradient { rate: cross / square, steps: 1 })
        } else {
            Err(Error::numerical("line search", "one step predicts zero throughout: every rate gives the same loss"))
        }
    }

    /// K steps with the rate of a geometric grid (ratio 1.1) that is best on `sequences`; predictions that diverge count as
    /// infinitely bad.
    ///
    /// # Errors
    /// As [`predictions`]; [`Error::Numerical`] if every rate diverges.
    pub fn searched(sequences: &Trajectories, steps: usize) -> Result<Self> {
        let mut best: Option<(f64, SequenceGradient)> = None;
        for k in 0..60 {
            let candidate = SequenceGradient { rate: 1e-3 * 1.1f64.powi(k), steps };
            let losses = sequences.losses(&predictions(&candidate, sequences, None)?)?;
            let loss = losses.iter().sum::<f64>();
            if loss.is_finite() && best.is_none_or(|(least, _)| loss < least) {
                best = Some((loss, candidate));
            }
        }
        best.map(|(_, g)| g).ok_or_else(|| Error::numerical("gradient descent", "it diverges at every rate"))
    }
}

impl SequenceAlgorithm for SequenceGradient {
    fn name(&self) -> String {
        let steps = if self.steps == 1 { "1 step".to_owned() } else { format!("{} steps", self.steps) };
        format!("GD, {steps}, η = {:.3}", self.rate)
    }

    fn predict(&self, pairs: &Pairs<'_>) -> Result<Vec<f64>> {
        by_moments(pairs, Pairing::All, |a, c, z| {
            if self.steps == 1 {
                return Ok(c.mul_vec(z).into_iter().map(|v| self.rate * v).collect());
            }
            let mut phi = Matrix::zeros(c.rows(), c.cols());
            for _ in 0..self.steps {
                phi = phi.plus(self.rate, &c.plus(-1.0, &phi.mul(a)));
            }
            Ok(phi.mul_vec(z))
        })
    }
}
