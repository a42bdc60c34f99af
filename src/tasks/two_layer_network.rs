//! Labels from a random two-layer network: the tasks of `newton` Figures 20 and 21.

use rand_distr::{Distribution, StandardNormal};

use super::Prompts;
use crate::error::array_len;
use crate::rng::{ChaCha8Rng, stream};
use crate::{Error, Result};

/// The hidden units of a [`TwoLayerNetwork`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HiddenUnit {
    /// max(0, u).
    Relu,
    /// tanh u.
    Tanh,
}

/// y = √(2/h) aᵀ φ(W x) with a ~ N(0, I_h), W ~ N(0, 1) entrywise, x ~ N(0, I_d); one network a prompt (Garg et al.'s
/// task; the paper's eq. 15 and 16 have biases whose law it does not give).
///
/// With [`HiddenUnit::Tanh`] the factor is 1/√h, so that labels have variance below 1.
///
/// ```
/// use incontext::tasks::{HiddenUnit, TwoLayerNetwork};
/// let prompts = TwoLayerNetwork::new(5, 20, HiddenUnit::Relu, 40)?.sample(3, 0)?;
/// assert_eq!((prompts.dim(), prompts.context()), (5, 40));
/// # Ok::<(), incontext::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct TwoLayerNetwork {
    dim: usize,
    hidden: usize,
    unit: HiddenUnit,
    context: usize,
}

impl TwoLayerNetwork {
    /// Networks of `hidden` units on covariates of dimension `dim`, n = `context` examples a prompt.
    ///
    /// # Errors
    /// [`Error::Invalid`] if one of the sizes is 0, or a network does not fit in memory.
    pub fn new(dim: usize, hidden: usize, unit: HiddenUnit, context: usize) -> Result<Self> {
        for (what, size) in [("dimension d", dim), ("hidden units h", hidden), ("context length n", context)] {
            if size == 0 {
                return Err(Error::invalid(what, 0, "at least 1"));
            }
        }
        array_len::<f64>("hidden units", &[hidden, dim])?;
        Ok(TwoLayerNetwork { dim, hidden, unit, context })
    }

    /// `batch` prompts, a function of `seed` alone.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an empty batch, or one that does not fit in memory.
    pub fn sample(&self, batch: usize, seed: u64) -> Result<Prompts> {
        let (d, h, tokens) = (self.dim, self.hidden, self.context.saturating_add(1));
        let len = array_len::<f64>("prompts", &[batch, tokens, d])?;
        let (mut x, mut y) = (Vec::with_capacity(len), Vec::with_capacity(batch * tokens));
        let normal = |rng: &mut ChaCha8Rng| -> f64 { StandardNormal.sample(rng) };
        for i in 0..batch {
            let mut rng = stream(seed, "two-layer networks", i as u64);
            let w: Vec<f64> = (0..h * d).map(|_| normal(&mut rng)).collect();
            let a: Vec<f64> = (0..h).map(|_| normal(&mut rng)).collect();
            for _ in 0..tokens {
                let first = x.len();
                x.extend((0..d).map(|_| normal(&mut rng)));
                y.push(self.label(&w, &a, &x[first..]));
            }
        }
        Prompts::from_data(batch, self.context, d, x, y)
    }

    fn label(&self, w: &[f64], a: &[f64], x: &[f64]) -> f64 {
        let hidden = w.chunks(self.dim).map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>());
        let h = self.hidden as f64;
        match self.unit {
            HiddenUnit::Relu => (2.0 / h).sqrt() * hidden.zip(a).map(|(u, a)| a * u.max(0.0)).sum::<f64>(),
            HiddenUnit::Tanh => hidden.zip(a).map(|(u, a)| a * u.tanh()).sum::<f64>() / h.sqrt(),
        }
    }
}
