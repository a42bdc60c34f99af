//! The series of `mesa` Prop. 2: an approximate inverse of A_t = Σ z_i z_iᵀ + ridge I, then one step of gradient descent.
//!
//! What the authors' control computes, which no linear transformer can: A is divided by its Frobenius norm at every token.
//!
//! ```text
//! Ā = A_t / ‖A_t‖_F     x_0 = z     p_k = (I − α_k Ā) p_{k−1}, p_0 = z     x_k = x_{k−1} + p_k + β_k (x_{k−1} − x_{k−2})
//! s_{t+1} ≈ C x_K / ‖A_t‖_F
//! ```

use super::{Pairing, Pairs, SequenceAlgorithm, by_moments, sequence_losses};
use crate::algorithms::minimise;
use crate::linalg::Matrix;
use crate::tasks::Trajectories;
use crate::{Error, Result};

/// The series, its coefficients shared by all tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct InverseSeries {
    /// α_1 … α_K.
    pub alpha: Vec<f64>,
    /// β_1 … β_K; β_1 multiplies nothing.
    pub beta: Vec<f64>,
    /// The ridge of A_t: 0.001 in the authors' code, but 10 for Fig. 24B.
    pub ridge: f64,
    /// Which pairs it sees.
    pub pairing: Pairing,
}

impl InverseSeries {
    /// The coefficients that the authors learnt (Adam, on the task, newest pair dropped) for `setting`: `linear` (6 steps,
    /// n = 10), `linear2` (2 steps), `constructed` (Fig. 4D), `partial` (Fig. 7B), `nonlinear`.
    ///
    /// # Errors
    /// [`Error::Unknown`] for another setting.
    pub fn authors(setting: &str, pairing: Pairing) -> Result<Self> {
        let (alpha, beta, ridge): (&[f64], &[f64], f64) = match setting {
            "linear" => (&[1.029, 3.855, 3.747, 3.383, 2.988, 2.093], &[0.0, 0.640, 0.480, 0.814, 1.668, 2.420], 1e-3),
            "linear2" => (&[1.232, 8.200], &[0.0, 4.950], 1e-3),
            "constructed" => {
                (&[1.026, 3.251, 3.258, 3.212, 2.694, 1.273], &[0.0, 0.679, 0.307, 0.745, 1.836, 2.344], 1e-3)
            }
            "partial" => (&[1.093, 3.110, 3.163, 3.076, 1.903, 0.222], &[0.0, 0.738, 0.183, 0.757, 1.250, 2.292], 1e-3),
            "nonlinear" => {
                (&[1.003, 4.016, 3.866, 3.322, 2.757, 2.169], &[0.0, 0.563, 0.566, 0.935, 1.560, 2.426], 1e-3)
            }
            _ => {
                let known = ["linear", "linear2", "constructed", "partial", "nonlinear"];
                return Err(Error::unknown("setting of the authors", setting, known));
            }
        };
        Ok(InverseSeries { alpha: alpha.to_vec(), beta: beta.to_vec(), ridge, pairing })
    }

    /// The coefficients of `steps` steps that minimise the mean loss on `sequences`, by BFGS from the authors' first ones.
    ///
    /// # Errors
    /// [`Error::Invalid`] for no steps; as [`minimise`].
    pub fn fitted(
        steps: usize,
        ridge: f64,
        pairing: Pairing,
        sequences: &Trajectories,
        inputs: Option<&Trajectories>,
    ) -> Result<Self> {
        if steps == 0 {
            return Err(Error::invalid("steps of the series", 0, "at least 1"));
        }
        let of = |x: &[f64]| InverseSeries { alpha: x[..steps].to_vec(), beta: x[steps..].to_vec(), ridge, pairing };
        let loss = |x: &[f64]| -> Result<f64> {
            let losses = sequence_losses(&of(x), sequences, inputs)?;
            Ok(losses.iter().sum::<f64>() / losses.len() as f64)
        };
        let start: Vec<f64> = (0..2 * steps)
            .map(|k| match k {
                0 => 1.0,
                k if k < steps => 3.0,
                k if k == steps => 0.0,
                _ => 0.6,
            })
            .collect();
        let h = 1e-5;
        let objective = |x: &[f64]| {
            let slope = |k: usize| {
                let mut moved = x.to_vec();
                moved[k] += h;
                let up = loss(&moved).unwrap_or(f64::INFINITY);
                moved[k] -= 2.0 * h;
                (up - loss(&moved).unwrap_or(f64::INFINITY)) / (2.0 * h)
            };
            (loss(x).unwrap_or(f64::INFINITY), (0..x.len()).map(slope).collect())
        };
        Ok(of(&minimise(objective, &start, 60, 1e-9)?.x))
    }

    /// x_K / ‖A‖_F for A = `gram` + ridge I: the approximate (A)⁻¹ z, and after every step before it, `[K + 1]`. NaN where A is 0.
    ///
    /// # Panics
    /// Unless `gram` is square, of the size of `z`.
    pub fn iterates(&self, gram: &Matrix, z: &[f64]) -> Vec<Vec<f64>> {
        let a = gram.plus(self.ridge, &Matrix::identity(gram.rows()));
        let norm = a.norm();
        let mut power = z.to_vec();
        let mut iterates = vec![z.to_vec()];
        for (k, (alpha, beta)) in self.alpha.iter().zip(&self.beta).enumerate() {
            let image = a.mul_vec(&power);
            power.iter_mut().zip(image).for_each(|(p, v)| *p -= alpha * v / norm);
            let (now, before) = (&iterates[k], &iterates[k.saturating_sub(1)]);
            let next = now.iter().zip(before).zip(&power).map(|((x, y), p)| x + p + beta * (x - y)).collect();
            iterates.push(next);
        }
        iterates.iter_mut().flatten().for_each(|v| *v /= norm);
        iterates
    }
}

impl SequenceAlgorithm for InverseSeries {
    fn name(&self) -> String {
        format!("Prop. 2, {} steps{}", self.alpha.len(), self.pairing.label())
    }

    fn predict(&self, pairs: &Pairs<'_>) -> Result<Vec<f64>> {
        if !(self.ridge.is_finite() && self.ridge > 0.0) {
            // Before the first pair there is nothing else to scale by.
            return Err(Error::invalid("ridge of the series", self.ridge, "a positive finite number"));
        }
        by_moments(pairs, self.pairing, |a, c, z| {
            let last = self.iterates(a, z).pop();
            last.map(|x| c.mul_vec(&x)).ok_or_else(|| Error::numerical("series", "it has no iterate"))
        })
    }
}
