//! Sufficient statistics of prompts for linear attention over the context, in tiles of [`LANES`] prompts.
//!
//! A layer of linear attention sees the context only through Ĝ = (1/n) Σ x_i x_iᵀ and ĝ = (1/n) Σ x_i y_i: n enters no
//! later computation. For d = 5, n = 20 a prompt shrinks from 126 numbers to 36, once, and every training step on it
//! is free of n.

use rayon::prelude::*;

pub use super::lanes::{LANES, Lanes, Real};

/// The statistics of a batch of prompts.
///
/// Stored as tiles: for each group of [`LANES`] prompts, Ĝ (d², row-major, symmetric), ĝ (d), the query (d) and the
/// query's label, each a [`Lanes`]. The lanes of the last tile that stand for no prompt are zero, and contribute
/// nothing to a loss or a gradient.
#[derive(Clone, Debug)]
pub struct Moments<T> {
    batch: usize,
    dim: usize,
    tiles: Vec<Lanes<T>>,
}

impl<T: Real> Moments<T> {
    pub(crate) fn zeros(batch: usize, dim: usize) -> Self {
        let tiles = vec![Lanes::zero(); batch.div_ceil(LANES) * stride(dim)];
        Moments { batch, dim, tiles }
    }

    /// Number of prompts.
    pub fn len(&self) -> usize {
        self.batch
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.batch == 0
    }

    /// Dimension d.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The queries' labels, `[batch]`.
    pub fn targets(&self) -> Vec<T> {
        let stride = stride(self.dim);
        (0..self.batch).map(|k| self.tiles[(k / LANES + 1) * stride - 1].0[k % LANES]).collect()
    }

    /// Of prompt `k`: Ĝ (d², row-major), ĝ (d), the query (d) and the query's label, one after the other; `None` if
    /// there are not so many prompts.
    pub fn prompt(&self, k: usize) -> Option<Vec<T>> {
        let stride = stride(self.dim);
        (k < self.batch).then(|| self.tiles[k / LANES * stride..][..stride].iter().map(|v| v.0[k % LANES]).collect())
    }

    /// All tiles one after the other, each `d² + 2d + 1` long.
    pub(crate) fn tiles(&self) -> &[Lanes<T>] {
        &self.tiles
    }

    /// Pieces of `prompts` prompts each, a multiple of [`LANES`], to be filled in parallel.
    pub(crate) fn pieces_mut(&mut self, prompts: usize) -> impl IndexedParallelIterator<Item = Piece<'_, T>> {
        debug_assert_eq!(prompts % LANES, 0);
        let (batch, dim) = (self.batch, self.dim);
        self.tiles.par_chunks_mut(prompts / LANES * stride(dim)).enumerate().map(move |(i, tiles)| Piece {
            prompts: prompts.min(batch - i * prompts),
            dim,
            tiles,
        })
    }
}

/// Length of a tile: Ĝ, ĝ, the query and its label.
pub(crate) const fn stride(dim: usize) -> usize {
    dim * dim + 2 * dim + 1
}

/// Some consecutive prompts of a [`Moments`], to be filled.
pub(crate) struct Piece<'a, T> {
    prompts: usize,
    dim: usize,
    tiles: &'a mut [Lanes<T>],
}

impl<T: Real> Piece<'_, T> {
    pub(crate) fn len(&self) -> usize {
        self.prompts
    }

    /// Sets prompt `k` of this piece.
    pub(crate) fn set(&mut self, k: usize, gram: &[f64], cross: &[f64], query: &[f64], label: f64) {
        let stride = stride(self.dim);
        let tile = &mut self.tiles[k / LANES * stride..][..stride];
        let values = gram.iter().chain(cross).chain(query).chain(std::iter::once(&label));
        for (lanes, v) in tile.iter_mut().zip(values) {
            lanes.0[k % LANES] = T::of(*v);
        }
    }
}
