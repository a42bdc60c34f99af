//! Prompts of kernel regression in tiles of [`LANES`]: covariates, and the law of their labels given them.
//!
//! No key, query or value of a covariate sees a label, so a kernel transformer's residual is linear in the labels,
//! Ȳ g with g a function of the covariates. Over labels with covariance K₊ its mean square is gᵀ K₊ g, exactly
//! (fgd.md section 0, item 1): prompts carry K₊ instead of sampled labels, or the sampled labels.

use super::lanes::{LANES, Lanes, Real};
use super::symmetric::packed;
use crate::error::{all_finite, array_len};
use crate::linalg::Matrix;
use crate::{Error, Result};

/// What is known of the labels of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Labels {
    /// Their covariance given the covariates: losses are exact expectations over labels.
    Covariance,
    /// One draw of each.
    Sampled,
}

/// A batch of prompts: the covariates of n examples and a query, and their labels or the labels' covariance.
///
/// Stored as tiles: for each group of [`LANES`] prompts the covariates (n+1 times d), then the packed lower triangle of
/// the covariance, or the n+1 labels, the query's last. The lanes of the last tile that stand for no prompt have the
/// covariates of its first prompt, where every activation is defined, and labels that are 0: they contribute nothing to
/// a loss or a gradient.
#[derive(Clone, Debug)]
pub struct KernelPrompts<T> {
    batch: usize,
    tokens: usize,
    dim: usize,
    labels: Labels,
    tiles: Vec<Lanes<T>>,
}

/// Whether prompts of these sizes, and what is known of their labels' law, fit in memory.
///
/// # Errors
/// [`Error::Invalid`] if not.
pub(crate) fn check_sizes(tokens: usize, dim: usize, labels: Labels) -> Result<()> {
    array_len::<Lanes<f64>>("prompt", &[tokens, dim.saturating_add(1)])?;
    if labels == Labels::Covariance {
        array_len::<Lanes<f64>>("labels' covariance", &[tokens.div_ceil(2), tokens.saturating_add(1)])?;
    }
    Ok(())
}

/// Length of a tile.
pub(crate) fn stride(tokens: usize, dim: usize, labels: Labels) -> usize {
    tokens * dim + law_len(tokens, labels)
}

/// Numbers that tell the law of the labels of a prompt.
pub(crate) fn law_len(tokens: usize, labels: Labels) -> usize {
    match labels {
        Labels::Covariance => tokens * (tokens + 1) / 2,
        Labels::Sampled => tokens,
    }
}

impl<T: Real> KernelPrompts<T> {
    /// Prompts from covariates `[batch, n+1, d]` and labels `[batch, n+1]`, row-major, the query last.
    ///
    /// # Errors
    /// [`Error::Shape`] if the lengths do not fit or a size is 0, [`Error::Invalid`] for values that are not finite.
    pub fn sampled(context: usize, dim: usize, x: &[f64], y: &[f64]) -> Result<Self> {
        let tokens = context.saturating_add(1);
        Self::from_data(tokens, dim, Labels::Sampled, x, y)
    }

    /// Prompts from covariates `[batch, n+1, d]`, row-major, and the covariance of the labels of each, (n+1) x (n+1).
    ///
    /// # Errors
    /// As [`KernelPrompts::sampled`].
    pub fn with_covariances(context: usize, dim: usize, x: &[f64], covariances: &[Matrix]) -> Result<Self> {
        let tokens = context.saturating_add(1);
        if let Some(bad) = covariances.iter().find(|k| k.rows() != tokens || k.cols() != tokens) {
            return Err(Error::shape("covariance", &[bad.rows(), bad.cols()], format!("[{tokens}, {tokens}]")));
        }
        let lower = |k: &Matrix| (0..tokens).flat_map(|i| (0..=i).map(move |j| (i, j))).map(|at| k[at]).collect();
        let law: Vec<f64> = covariances.iter().flat_map(|k| -> Vec<f64> { lower(k) }).collect();
        Self::from_data(tokens, dim, Labels::Covariance, x, &law)
    }

    fn from_data(tokens: usize, dim: usize, labels: Labels, x: &[f64], law: &[f64]) -> Result<Self> {
        check_sizes(tokens, dim, labels)?;
        let width = law_len(tokens, labels);
        let batch = law.len() / width;
        if tokens < 2 || dim == 0 || batch == 0 || law.len() != batch * width || x.len() != batch * tokens * dim {
            return Err(Error::shape(
                "prompts",
                &[x.len(), law.len()],
                format!("[batch, {tokens}, {dim}] and [batch, {width}], batch, n and d at least 1"),
            ));
        }
        all_finite("prompts", x.iter().chain(law).copied())?;
        let mut prompts = Self::zeros(batch, tokens, dim, labels)?;
        let stride = stride(tokens, dim, labels);
        for (k, (x, law)) in x.chunks(tokens * dim).zip(law.chunks(width)).enumerate() {
            let tile = &mut prompts.tiles[k / LANES * stride..][..stride];
            tile.iter_mut().zip(x.iter().chain(law)).for_each(|(lanes, v)| lanes.0[k % LANES] = T::of(*v));
        }
        prompts.pad();
        Ok(prompts)
    }

    /// All zero, to be filled.
    pub(crate) fn zeros(batch: usize, tokens: usize, dim: usize, labels: Labels) -> Result<Self> {
        let tiles = batch.div_ceil(LANES);
        let len = array_len::<Lanes<T>>("prompts", &[tiles, stride(tokens, dim, labels)])?;
        Ok(KernelPrompts { batch, tokens, dim, labels, tiles: vec![Lanes::zero(); len] })
    }

    /// Gives the lanes that stand for no prompt their covariates.
    pub(crate) fn pad(&mut self) {
        let (filled, stride) = (self.batch % LANES, stride(self.tokens, self.dim, self.labels));
        if filled > 0 {
            let last = self.tiles.len() - stride;
            for lanes in &mut self.tiles[last..][..self.tokens * self.dim] {
                let first = lanes.0[0];
                lanes.0[filled..].fill(first);
            }
        }
    }

    /// Number of prompts.
    pub fn len(&self) -> usize {
        self.batch
    }

    /// Whether there are none (never, by construction).
    pub fn is_empty(&self) -> bool {
        self.batch == 0
    }

    /// Context length n.
    pub fn context(&self) -> usize {
        self.tokens - 1
    }

    /// Dimension d.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// What is known of the labels.
    pub fn labels(&self) -> Labels {
        self.labels
    }

    /// The covariates of prompt `k`, `[n+1, d]` row-major, the query last; `None` if there are not so many prompts.
    pub fn x(&self, k: usize) -> Option<Vec<f64>> {
        (k < self.batch).then(|| self.tile(k)[..self.tokens * self.dim].iter().map(|v| v.0[k % LANES].f64()).collect())
    }

    /// The covariance of the labels of prompt `k`, (n+1) x (n+1); `None` if the labels are sampled, or there are not so
    /// many prompts.
    pub fn covariance(&self, k: usize) -> Option<Matrix> {
        (k < self.batch && self.labels == Labels::Covariance).then(|| {
            let law = &self.tile(k)[self.tokens * self.dim..];
            Matrix::from_fn(self.tokens, self.tokens, |i, j| law[packed(i.max(j), i.min(j))].0[k % LANES].f64())
        })
    }

    fn tile(&self, k: usize) -> &[Lanes<T>] {
        let stride = stride(self.tokens, self.dim, self.labels);
        &self.tiles[k / LANES * stride..][..stride]
    }

    /// All tiles one after the other.
    pub(crate) fn tiles(&self) -> &[Lanes<T>] {
        &self.tiles
    }

    /// All tiles one after the other, to be filled.
    pub(crate) fn tiles_mut(&mut self) -> &mut [Lanes<T>] {
        &mut self.tiles
    }
}
