//! The Bayes-optimal prediction when the teacher is one of a few that are known.

use super::{Pairs, SequenceAlgorithm};
use crate::linalg::Matrix;
use crate::{Error, Result};

/// s_{t+1} ≈ Σ_j w_j W_j s_t with the posterior weights w_j ∝ exp(−Σ_{i<t} ‖s_{i+1} − W_j s_i‖² / 2σ²) of the teachers W_j, equally
/// likely a priori: what a network does best that has memorised them (the discrete counterpart of ridge regression;
/// Raventós et al., arXiv 2306.15063, for regression).
#[derive(Clone, Debug, PartialEq)]
pub struct TeacherPosterior {
    /// W_j, `[n, n]` each.
    pub teachers: Vec<Matrix>,
    /// σ, above 0.
    pub noise: f64,
}

impl SequenceAlgorithm for TeacherPosterior {
    fn name(&self) -> String {
        format!("posterior of {} teachers", self.teachers.len())
    }

    fn predict(&self, pairs: &Pairs<'_>) -> Result<Vec<f64>> {
        let n = pairs.dim;
        let fits = |w: &Matrix| (w.rows(), w.cols()) == (n, pairs.input_dim);
        if self.teachers.is_empty() || !self.teachers.iter().all(fits) {
            let given = self.teachers.first().map_or([0, 0], |w| [w.rows(), w.cols()]);
            return Err(Error::shape("teachers", &given, format!("at least one, [{n}, {}] each", pairs.input_dim)));
        }
        if !(self.noise.is_finite() && self.noise > 0.0) {
            return Err(Error::invalid("noise of the posterior", self.noise, "a positive finite number"));
        }
        // One product for all teachers: their rows, one below the other.
        let rows = self.teachers.iter().flat_map(|w| w.as_slice()).copied().collect();
        let stacked = Matrix::from_vec(self.teachers.len() * n, pairs.input_dim, rows)?;
        let mut energy = vec![0.0_f64; self.teachers.len()];
        let mut out = Vec::with_capacity(pairs.tokens() * n);
        for t in 0..pairs.tokens() {
            let images = stacked.mul_vec(pairs.input(t));
            let least = energy.iter().copied().fold(f64::INFINITY, f64::min);
            let (mut sum, mut prediction) = (0.0, vec![0.0; n]);
            for (image, e) in images.chunks(n).zip(&mut energy) {
                let weight = (least - *e).exp();
                sum += weight;
                prediction.iter_mut().zip(image).for_each(|(p, v)| *p += weight * v);
                let square: f64 = image.iter().zip(pairs.state(t + 1)).map(|(p, s)| (p - s).powi(2)).sum();
                *e += square / (2.0 * self.noise * self.noise);
            }
            out.extend(prediction.iter().map(|p| p / sum));
        }
        Ok(out)
    }
}
