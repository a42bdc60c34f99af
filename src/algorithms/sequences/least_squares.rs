//! Ridge regression at every token, by factorisation and by recursion.

use super::{Pairing, Pairs, SequenceAlgorithm, by_moments};
use crate::linalg::Matrix;
use crate::{Error, Result};

/// Φ_t = C (A + ridge I)⁻¹, solved anew at every token. The authors' ridge is 0.001.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SequenceLeastSquares {
    /// The ridge, above 0.
    pub ridge: f64,
    /// Which pairs it sees.
    pub pairing: Pairing,
}

impl SequenceAlgorithm for SequenceLeastSquares {
    fn name(&self) -> String {
        format!("least squares{}", self.pairing.label())
    }

    fn predict(&self, pairs: &Pairs<'_>) -> Result<Vec<f64>> {
        let ridge = Matrix::identity(pairs.input_dim).scaled(self.ridge);
        by_moments(pairs, self.pairing, |a, c, z| Ok(c.mul_vec(&a.plus(1.0, &ridge).solve_spd(z)?)))
    }
}

/// The same by recursion, with forgetting: R_t = γ⁻¹ (R_{t−1} − R z zᵀ R / (γ + zᵀ R z)), R_0 = I/ridge, and
/// Φ_t = Φ_{t−1} + (s_{t+1} − Φ_{t−1} z_t) z_tᵀ R_t. What a mesa layer computes, written as the classical filter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RecursiveLeastSquares {
    /// The ridge, above 0.
    pub ridge: f64,
    /// γ in (0, 1]: 1 forgets nothing.
    pub forget: f64,
}

impl SequenceAlgorithm for RecursiveLeastSquares {
    fn name(&self) -> String {
        if self.forget < 1.0 { format!("RLS, γ = {}", self.forget) } else { "RLS".to_owned() }
    }

    fn predict(&self, pairs: &Pairs<'_>) -> Result<Vec<f64>> {
        if !(self.ridge > 0.0 && (1.0 / self.ridge).is_finite()) {
            return Err(Error::invalid("ridge", self.ridge, "a positive number"));
        }
        if !(self.forget > 0.0 && self.forget <= 1.0) {
            return Err(Error::invalid("forgetting factor", self.forget, "a number in (0, 1]"));
        }
        let (m, n) = (pairs.input_dim, pairs.dim);
        let mut r = Matrix::identity(m).scaled(1.0 / self.ridge);
        let mut phi = Matrix::zeros(n, m);
        let mut out = Vec::with_capacity(pairs.tokens() * n);
        for t in 0..pairs.tokens() {
            if t > 0 {
                let (z, s) = (pairs.input(t - 1), pairs.state(t));
                let u = r.mul_vec(z);
                let denominator = self.forget + z.iter().zip(&u).map(|(a, b)| a * b).sum::<f64>();
                let error: Vec<f64> = s.iter().zip(phi.mul_vec(z)).map(|(s, p)| s - p).collect();
                phi = phi.plus(1.0, &Matrix::from_fn(n, m, |i, j| error[i] * u[j] / denominator));
                r = r.plus(-1.0, &Matrix::from_fn(m, m, |i, j| u[i] * u[j] / denominator)).scaled(1.0 / self.forget);
            }
            out.extend(phi.mul_vec(pairs.input(t)));
        }
        Ok(out)
    }
}
