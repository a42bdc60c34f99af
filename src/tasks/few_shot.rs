//! Few-shot regression for models of sequences: pairs (x_i, y_i = W x_i) written one after the other, with or without a
//! token between two pairs and tokens in front (`mesa` section 4.6, Figs 8 and 18).

use rand::Rng;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Trajectories;
use super::dynamics::{Start, orthogonal};
use crate::error::{all_finite, array_len};
use crate::ops::lane_products::OnLanes;
use crate::ops::sequence_transformer::LaneBatch;
use crate::rng::stream;
use crate::{Error, Result};

/// The task: W orthogonal, uniform (Haar), new for every prompt; x_i independent.
///
/// ```
/// use incontext::tasks::{FewShot, Prompt};
/// let pairs = FewShot::new(5, 12)?.sample(3, 0)?;
/// let prompt = Prompt { prefix: vec![0.0; 2 * 5], eos: vec![0.5; 5] };
/// assert_eq!(pairs.tokens::<f32>(&prompt)?.shape(), [3, 2 + 3 * 12, 5]);
/// # Ok::<(), incontext::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FewShot {
    /// Dimension n of x and y.
    pub dim: usize,
    /// Pairs N of a prompt.
    pub pairs: usize,
    /// Standard deviation of the noise of y: 0.01 in the authors' code, 0 in the paper.
    pub noise: f64,
    /// The law of x: U(−1, 1) in the authors' code, N(0, I) in the paper.
    pub inputs: Start,
    /// Another W from this pair on, counted from 0 (Fig. 8B); never if `None`.
    pub switch: Option<usize>,
}

/// The tokens around the pairs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Prompt {
    /// Tokens in front of the first pair, `[P, n]` row-major; empty for none.
    pub prefix: Vec<f64>,
    /// The token after every pair, `[n]`; empty for none.
    pub eos: Vec<f64>,
}

/// A batch of prompts.
#[derive(Clone, Debug, PartialEq)]
pub struct FewShotPrompts {
    batch: usize,
    pairs: usize,
    dim: usize,
    /// `[batch, pairs, dim]`.
    x: Vec<f64>,
    y: Vec<f64>,
}

impl FewShot {
    /// The authors' code: x ~ U(−1, 1), noise 0.01, one W a prompt.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a dimension or a number of pairs of 0.
    pub fn new(dim: usize, pairs: usize) -> Result<Self> {
        let task = FewShot { dim, pairs, noise: 0.01, inputs: Start::Uniform(1.0), switch: None };
        task.check()?;
        Ok(task)
    }

    /// The same with another W from pair `switch` on (Figs 8B and 18B).
    ///
    /// # Errors
    /// As [`FewShot::new`]; [`Error::Invalid`] for a switch behind the last pair.
    pub fn switching(dim: usize, pairs: usize, switch: usize) -> Result<Self> {
        let task = FewShot { switch: Some(switch), ..FewShot::new(dim, pairs)? };
        task.check()?;
        Ok(task)
    }

    /// Whether there is such a task.
    ///
    /// # Errors
    /// [`Error::Invalid`] if a size is 0 or W does not fit in memory, the noise negative, the range of x not positive, or the
    /// switch not inside.
    pub fn check(&self) -> Result<()> {
        for (what, size) in [("dimension n", self.dim), ("pairs N", self.pairs)] {
            if size == 0 {
                return Err(Error::invalid(what, 0, "at least 1"));
            }
        }
        array_len::<f64>("matrix W", &[self.dim, self.dim])?;
        if !(self.noise.is_finite() && self.noise >= 0.0) {
            return Err(Error::invalid("noise", self.noise, "a standard deviation of at least 0"));
        }
        match self.inputs {
            // x is drawn from an interval of twice the range.
            Start::Uniform(range) if !((2.0 * range).is_finite() && range > 0.0) => {
                return Err(Error::invalid("range of x", range, "a positive finite number"));
            }
            _ => {}
        }
        match self.switch {
            Some(switch) if switch == 0 || switch >= self.pairs => {
                Err(Error::invalid("pair of the switch", switch, format!("1 to {}", self.pairs - 1)))
            }
            _ => Ok(()),
        }
    }

    /// `batch` prompts, a function of `seed` alone.
    ///
    /// # Errors
    /// As [`FewShot::check`]; [`Error::Invalid`] for an empty batch, or one that does not fit in memory.
    pub fn sample(&self, batch: usize, seed: u64) -> Result<FewShotPrompts> {
        self.check()?;
        if batch == 0 {
            return Err(Error::invalid("batch", 0, "at least 1 prompt"));
        }
        let (n, size) = (self.dim, self.pairs.saturating_mul(self.dim));
        let len = array_len::<f64>("prompts", &[batch, self.pairs, n])?;
        let (mut x, mut y) = (vec![0.0; len], vec![0.0; len]);
        x.par_chunks_mut(size).zip(y.par_chunks_mut(size)).enumerate().for_each(|(i, (x, y))| {
            let mut rng = stream(seed, "few-shot", i as u64);
            let mut teacher = orthogonal(n, &mut rng);
            for (k, (x, y)) in x.chunks_mut(n).zip(y.chunks_mut(n)).enumerate() {
                if self.switch == Some(k) {
                    teacher = orthogonal(n, &mut rng);
                }
                for x in x.iter_mut() {
                    *x = match self.inputs {
                        Start::Uniform(range) => rng.gen_range(-range..range),
                        Start::Gaussian => StandardNormal.sample(&mut rng),
                    };
                }
                for (y, v) in y.iter_mut().zip(teacher.mul_vec(x)) {
                    let z: f64 = StandardNormal.sample(&mut rng);
                    *y = v + self.noise * z;
                }
            }
        });
        FewShotPrompts::new(batch, self.pairs, n, x, y)
    }
}

impl Prompt {
    /// Whether the tokens have dimension `dim`.
    fn check(&self, dim: usize) -> Result<()> {
        if !self.prefix.len().is_multiple_of(dim) {
            return Err(Error::shape("prefix", &[self.prefix.len()], format!("[P, {dim}]")));
        }
        if !self.eos.is_empty() && self.eos.len() != dim {
            return Err(Error::shape("token after a pair", &[self.eos.len()], format!("[{dim}] or none")));
        }
        all_finite("tokens of the prompt", self.prefix.iter().chain(&self.eos).copied())
    }

    /// Tokens from one pair to the next: 2, or 3 with a token after every pair.
    pub fn stride(&self) -> usize {
        if self.eos.is_empty() { 2 } else { 3 }
    }

    /// Tokens of the prefix, of dimension `dim`.
    pub fn prefix_tokens(&self, dim: usize) -> usize {
        self.prefix.len() / dim.max(1)
    }
}

impl FewShotPrompts {
    /// Prompts from data, `[batch, pairs, dim]` each, row-major.
    ///
    /// # Errors
    /// [`Error::Shape`] unless the values fill the shape, which has no side of 0; [`Error::Invalid`] for one not finite.
    pub fn new(batch: usize, pairs: usize, dim: usize, x: Vec<f64>, y: Vec<f64>) -> Result<Self> {
        let len = array_len::<f64>("prompts", &[batch, pairs, dim])?;
        if len == 0 || x.len() != len || y.len() != len {
            let expected = format!("[{batch}, {pairs}, {dim}] each, none 0");
            return Err(Error::shape("x and y of the prompts", &[x.len(), y.len()], expected));
        }
        all_finite("prompts", x.iter().chain(&y).copied())?;
        Ok(FewShotPrompts { batch, pairs, dim, x, y })
    }

    /// `[batch, pairs, dim]`.
    pub fn shape(&self) -> [usize; 3] {
        [self.batch, self.pairs, self.dim]
    }

    /// x of all pairs of prompt `i`, `[pairs, dim]` row-major.
    ///
    /// # Panics
    /// If there is no prompt `i`, like indexing a slice.
    pub fn x(&self, i: usize) -> &[f64] {
        &self.x[i * self.pairs * self.dim..][..self.pairs * self.dim]
    }

    /// y of all pairs of prompt `i`, `[pairs, dim]` row-major.
    ///
    /// # Panics
    /// If there is no prompt `i`, like indexing a slice.
    pub fn y(&self, i: usize) -> &[f64] {
        &self.y[i * self.pairs * self.dim..][..self.pairs * self.dim]
    }

    /// Tokens of a prompt.
    pub fn length(&self, prompt: &Prompt) -> usize {
        prompt.prefix_tokens(self.dim) + self.pairs * prompt.stride()
    }

    /// The token of x_i, i from 0: the one at which y_i is predicted.
    pub fn query(&self, prompt: &Prompt, i: usize) -> usize {
        prompt.prefix_tokens(self.dim) + i * prompt.stride()
    }

    /// The tokens prefix, x_1, y_1, eos, x_2, …: `[batch, length, dim]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the tokens of the prompt have another dimension, [`Error::Invalid`] if one is not finite or
    /// all do not fit in memory.
    pub fn tokens<T: OnLanes>(&self, prompt: &Prompt) -> Result<LaneBatch<T>> {
        prompt.check(self.dim)?;
        let (n, length) = (self.dim, self.length(prompt));
        let mut values = Vec::with_capacity(array_len::<f64>("tokens", &[self.batch, length, n])?);
        for (x, y) in self.x.chunks(self.pairs * n).zip(self.y.chunks(self.pairs * n)) {
            values.extend_from_slice(&prompt.prefix);
            for (x, y) in x.chunks(n).zip(y.chunks(n)) {
                values.extend_from_slice(x);
                values.extend_from_slice(y);
                values.extend_from_slice(&prompt.eos);
            }
        }
        LaneBatch::new(self.batch, length, n, &values)
    }

    /// y_i at the token of x_i and 0 elsewhere, `[batch, length, dim]`.
    ///
    /// # Errors
    /// As [`FewShotPrompts::tokens`].
    pub fn targets<T: OnLanes>(&self, prompt: &Prompt) -> Result<LaneBatch<T>> {
        prompt.check(self.dim)?;
        let (n, length) = (self.dim, self.length(prompt));
        let mut values = vec![0.0; array_len::<f64>("targets", &[self.batch, length, n])?];
        for (y, out) in self.y.chunks(self.pairs * n).zip(values.chunks_mut(length * n)) {
            for (i, y) in y.chunks(n).enumerate() {
                out[self.query(prompt, i) * n..][..n].copy_from_slice(y);
            }
        }
        LaneBatch::new(self.batch, length, n, &values)
    }

    /// Weights of the tokens with which [`crate::ops::sequence_transformer::squared_loss`] is the mean over pairs of
    /// ½‖y_i − f(x_i)‖²: length/pairs at the token of every x_i and 0 elsewhere.
    pub fn weights(&self, prompt: &Prompt) -> Vec<f64> {
        let length = self.length(prompt);
        let mut weights = vec![0.0; length];
        for i in 0..self.pairs {
            weights[self.query(prompt, i)] = length as f64 / self.pairs as f64;
        }
        weights
    }

    /// ½‖y_i − f(x_i)‖² for predictions at all tokens `[batch, length, dim]`, the mean over prompts: `[pairs]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the predictions have another shape.
    pub fn losses(&self, prompt: &Prompt, predictions: &[f64]) -> Result<Vec<f64>> {
        let (n, length) = (self.dim, self.length(prompt));
        if predictions.len() != self.batch * length * n {
            let expected = format!("[{}, {length}, {n}]", self.batch);
            return Err(Error::shape("predictions", &[predictions.len()], expected));
        }
        let mut losses = vec![0.0; self.pairs];
        for (y, predicted) in self.y.chunks(self.pairs * n).zip(predictions.chunks(length * n)) {
            for (i, (y, loss)) in y.chunks(n).zip(&mut losses).enumerate() {
                let p = &predicted[self.query(prompt, i) * n..][..n];
                *loss += y.iter().zip(p).map(|(y, p)| (y - p).powi(2)).sum::<f64>() / (2 * self.batch) as f64;
            }
        }
        Ok(losses)
    }

    /// The prompts as a model of sequences takes them: states x_1, y_1, x_2, …, whose every second pair (y_i → x_{i+1})
    /// is spurious. `[batch, 2 pairs, dim]`.
    ///
    /// # Errors
    /// None for prompts that exist.
    pub fn spurious(&self) -> Result<Trajectories> {
        let n = self.dim;
        let both = self.x.chunks(n).zip(self.y.chunks(n)).flat_map(|(x, y)| x.iter().chain(y).copied());
        Trajectories::new(self.batch, 2 * self.pairs, n, both.collect())
    }

    /// The prompts as regression: inputs x_1, …, x_N and states 0, y_1, …, y_N, so that (x_i → y_i) are the pairs that
    /// [`crate::algorithms::sequences`] sees. `[batch, pairs + 1, dim]` each.
    ///
    /// # Errors
    /// None for prompts that exist.
    pub fn regression(&self) -> Result<(Trajectories, Trajectories)> {
        let (n, size) = (self.dim, self.pairs * self.dim);
        let zero = vec![0.0; n];
        let inputs = self.x.chunks(size).flat_map(|x| [x, &zero].concat()).collect();
        let states = self.y.chunks(size).flat_map(|y| [&zero, y].concat()).collect();
        let made = |values| Trajectories::new(self.batch, self.pairs + 1, n, values);
        Ok((made(inputs)?, made(states)?))
    }
}
