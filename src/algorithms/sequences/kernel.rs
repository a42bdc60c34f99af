//! Regression with a softmax kernel: what one layer of softmax attention can do with pairs (`mesa` Fig. 5B).

use super::{Pairs, SequenceAlgorithm};
use crate::Result;

/// s_{t+1} ≈ Σ_{i<t} softmax_i(β ⟨z_i, z_t⟩) s_{i+1}; 0 without pairs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SoftmaxKernel {
    /// Inverse temperature β.
    pub beta: f64,
}

impl SequenceAlgorithm for SoftmaxKernel {
    fn name(&self) -> String {
        format!("softmax kernel, β = {:.1}", self.beta)
    }

    fn predict(&self, pairs: &Pairs<'_>) -> Result<Vec<f64>> {
        let n = pairs.dim;
        let mut out = vec![0.0; pairs.tokens() * n];
        let mut weights = Vec::with_capacity(pairs.tokens());
        for (t, out) in out.chunks_mut(n).enumerate().skip(1) {
            let query = pairs.input(t);
            weights.clear();
            weights
                .extend((0..t).map(|i| self.beta * pairs.input(i).iter().zip(query).map(|(a, b)| a * b).sum::<f64>()));
            let most = weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            weights.iter_mut().for_each(|w| *w = (*w - most).exp());
            let sum: f64 = weights.iter().sum();
            for (i, w) in weights.iter().enumerate() {
                out.iter_mut().zip(pairs.state(i + 1)).for_each(|(o, s)| *o += w / sum * s);
            }
        }
        Ok(out)
    }
}
