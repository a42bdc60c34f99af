//! The L-layer linear transformer with every entry of P_l and Q_l free, over the context or causal (`pgd` eq. 3).

use dfdx::prelude::*;

use crate::error::all_finite;
use crate::ops::linear_attention::{Attend, Mask, Tokens, Weights, linear_attention};
use crate::tasks::Prompts;
use crate::{Error, Result};

/// An L-layer linear transformer whose P_l and Q_l are any (d+1) x (d+1) matrices.
///
/// Theorem 1 is about one layer of it; with more layers, [`super::LinearTransformer`] is its sparse form, many times
/// faster.
#[derive(Clone, Debug)]
pub struct GeneralLinearTransformer<E: Dtype = f32> {
    /// P_l of every layer, (d+1) x (d+1).
    pub p: Vec<Weights<E>>,
    /// Q_l of every layer, (d+1) x (d+1).
    pub q: Vec<Weights<E>>,
    mask: Mask,
}

impl<E: Attend> GeneralLinearTransformer<E> {
    /// A model with these matrices, each (d+1)² long, row-major.
    ///
    /// # Errors
    /// [`Error::Shape`] unless there is a P and a Q for each of at least one layer, each (d+1)² long;
    /// [`Error::Invalid`] for dimension 0 and for entries that are not finite.
    pub fn new(p: &[Vec<E>], q: &[Vec<E>], dim: usize, mask: Mask) -> Result<Self> {
        if dim == 0 {
            return Err(Error::invalid("dimension d", 0, "at least 1"));
        }
        let size = dim.saturating_add(1);
        if p.is_empty() || p.len() != q.len() {
            return Err(Error::shape("layers of P and of Q", &[p.len(), q.len()], "the same number, at least 1"));
        }
        if let Some(bad) = p.iter().chain(q).find(|m| Some(m.len()) != size.checked_mul(size)) {
            return Err(Error::shape("P or Q", &[bad.len()], format!("[{size}, {size}]")));
        }
        for (name, ms) in [("P", p), ("Q", q)] {
            all_finite(name, ms.iter().flatten().map(|v| v.f64()))?;
        }
        let device = Cpu::default();
        let tensors = |ms: &[Vec<E>]| {
            ms.iter().map(|m| device.tensor_from_vec(m.clone(), (size, size))).collect::<Vec<Weights<E>>>()
        };
        Ok(GeneralLinearTransformer { p: tensors(p), q: tensors(q), mask })
    }

    /// The last layer's tokens, `[batch, n+1, d+1]`, with the tape of every P_l and Q_l.
    ///
    /// # Errors
    /// [`Error::Shape`] if the prompts have another dimension.
    pub fn tokens(&self, prompts: &Prompts) -> Result<Tokens<E, OwnedTape<E, Cpu>>> {
        let shape = (prompts.len(), prompts.context() + 1, prompts.dim() + 1);
        let z = Cpu::default()
            .try_tensor_from_vec(prompts.tokens::<E>(), shape)
            .map_err(|e| Error::numerical("tokens", e.to_string()))?;
        let mut z = z.leaky_traced();
        for (p, q) in self.p.iter().zip(&self.q) {
            z = linear_attention(z, p.leaky_trace(), q.leaky_trace(), self.mask)?;
        }
        Ok(z)
    }

    /// The predictions at every token, `[batch, n+1]`: minus the label slot. At the query's, `pgd` eq. 5; at a context
    /// token's the slot also carries its own label.
    ///
    /// # Errors
    /// As [`GeneralLinearTransformer::tokens`].
    pub fn predict(&self, prompts: &Prompts) -> Result<Vec<f64>> {
        let size = prompts.dim() + 1;
        Ok(self.tokens(prompts)?.as_vec().chunks(size).map(|z| -z[size - 1].f64()).collect())
    }
}
