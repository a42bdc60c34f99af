//! The exact in-context loss: the average over w⋆ and the query in closed form, over the context by Wishart samples.
//!
//! In whitened coordinates (Σ = I, w⋆ ~ N(0, I)) an L-layer model of eq. 11 is a polynomial in Ĝ ~ Wishart_d(n, I)/n:
//!
//! ```text
//! S_0 = T_0 = I,   U = Ĝ T_lᵀ A_l T_l,   S_{l+1} = S_l + S_l U,   T_{l+1} = T_l + B_l T_l U,   f = E ‖S_L‖_F²
//! ```
//!
//! The prompts' w⋆ and query have left, so a few hundred samples tell what takes the prompt-level loss many thousand.

use rayon::prelude::*;

use super::lanes::{Kernel, LANES, Lanes, Vector, dispatch};
use super::matrices::*;
use crate::error::all_finite;
use crate::{Error, Result};

/// Samples of Ĝ, in tiles of [`LANES`].
#[derive(Clone, Debug)]
pub struct GramSamples {
    dim: usize,
    samples: usize,
    tiles: Vec<Lanes<f64>>,
    /// One a sample; 0 for the lanes that stand for none.
    weights: Vec<Lanes<f64>>,
}

impl GramSamples {
    /// From samples `[samples, d, d]`, row-major (see [`crate::tasks::LinearRegression::sample_gram`]).
    ///
    /// # Errors
    /// [`Error::Shape`] if the length is no positive multiple of d², [`Error::Invalid`] for entries that are not finite.
    pub fn new(dim: usize, grams: &[f64]) -> Result<Self> {
        let samples = grams.len() / dim.saturating_mul(dim).max(1);
        Self::weighted(dim, grams, &vec![1.0; samples])
    }

    /// From samples `[samples, d, d]` and the weights with which they count, `[samples]` (see
    /// [`crate::tasks::LinearRegression::sample_gram_tails`]).
    ///
    /// # Errors
    /// As [`GramSamples::new`]; [`Error::Shape`] unless there is one weight a sample.
    pub fn weighted(dim: usize, grams: &[f64], weights: &[f64]) -> Result<Self> {
        let dd = dim.saturating_mul(dim);
        if dd == 0 || grams.is_empty() || !grams.len().is_multiple_of(dd) {
            return Err(Error::shape("Gram samples", &[grams.len()], format!("[samples >= 1, {dim}, {dim}]")));
        }
        all_finite("Gram samples", grams.iter().copied())?;
        let samples = grams.len() / dd;
        let mut tiles = vec![Lanes::zero(); samples.div_ceil(LANES) * dd];
        for (k, gram) in grams.chunks(dd).enumerate() {
            for (lanes, v) in tiles[k / LANES * dd..].iter_mut().zip(gram) {
                lanes.0[k % LANES] = *v;
            }
        }
        if weights.len() != samples {
            return Err(Error::shape("weights of Gram samples", &[weights.len()], format!("[{samples}]")));
        }
        all_finite("weights of Gram samples", weights.iter().copied())?;
        let mut by_lane = vec![Lanes::zero(); samples.div_ceil(LANES)];
        for (k, w) in weights.iter().enumerate() {
            by_lane[k / LANES].0[k % LANES] = *w;
        }
        Ok(GramSamples { dim, samples, tiles, weights: by_lane })
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.samples
    }

    /// Whether there are none (never, by construction).
    pub fn is_empty(&self) -> bool {
        self.samples == 0
    }

    /// Dimension d.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The loss of every sample, `[samples]`: ‖S_L‖_F² for whitened `params` `[layers, 2, d, d]`, B before A.
    ///
    /// # Errors
    /// [`Error::Shape`] if the parameters have another shape.
    pub fn losses(&self, params: &[f64]) -> Result<Vec<f64>> {
        let layers = self.layers(params)?;
        let dd = self.dim * self.dim;
        let losses: Vec<Lanes<f64>> = self
            .tiles
            .par_chunks(TILES * dd)
            .flat_map_iter(|tiles| dispatch(Losses { d: self.dim, layers, params, tiles }))
            .collect();
        Ok(losses.iter().flat_map(|l| l.0).take(self.samples).collect())
    }

    /// The mean over samples of weight times loss.
    ///
    /// # Errors
    /// As [`GramSamples::losses`].
    pub fn loss(&self, params: &[f64]) -> Result<f64> {
        let losses = self.losses(params)?;
        let weights = self.weights.iter().flat_map(|w| w.0);
        Ok(losses.iter().zip(weights).map(|(l, w)| w * l).sum::<f64>() / self.samples as f64)
    }

    /// The mean loss and its gradient in `params`, of the same shape.
    ///
    /// # Errors
    /// As [`GramSamples::losses`].
    pub fn loss_and_gradient(&self, params: &[f64]) -> Result<(f64, Vec<f64>)> {
        let layers = self.layers(params)?;
        let dd = self.dim * self.dim;
        let pieces: Vec<(f64, Vec<f64>)> = self
            .tiles
            .par_chunks(TILES * dd)
            .zip(self.weights.par_chunks(TILES))
            .map(|(tiles, weights)| dispatch(Gradient { d: self.dim, layers, params, tiles, weights }))
            .collect();
        let (mut loss, mut gradient) = (0.0, vec![0.0; params.len()]);
        for (l, g) in pieces {
            loss += l;
            gradient.iter_mut().zip(g).for_each(|(s, v)| *s += v);
        }
        let scale = 1.0 / self.samples as f64;
        gradient.iter_mut().for_each(|g| *g *= scale);
        Ok((loss * scale, gradient))
    }

    fn layers(&self, params: &[f64]) -> Result<usize> {
        let layer = 2 * self.dim * self.dim;
        if params.is_empty() || !params.len().is_multiple_of(layer) {
            return Err(Error::shape("parameters", &[params.len()], format!("[layers >= 1, 2, {0}, {0}]", self.dim)));
        }
        Ok(params.len() / layer)
    }
}

const TILES: usize = 16;

struct Losses<'a> {
    d: usize,
    layers: usize,
    params: &'a [f64],
    tiles: &'a [Lanes<f64>],
}

impl Kernel<f64> for Losses<'_> {
    type Output = Vec<Lanes<f64>>;
    #[inline(always)]
    fn run<V: Vector<f64>>(self) -> Self::Output {
        self.tiles::<V>()
    }
}

impl Losses<'_> {
    #[inline(always)]
    fn tiles<V: Vector<f64>>(self) -> Vec<Lanes<f64>> {
        let mut state = State::new(self.d, self.layers);
        let mut losses = Vec::with_capacity(self.tiles.len() / (self.d * self.d));
        for gram in self.tiles.chunks(self.d * self.d) {
            losses.push(state.forward::<V>(self.params, gram));
        }
        losses
    }
}

struct Gradient<'a> {
    d: usize,
    layers: usize,
    params: &'a [f64],
    tiles: &'a [Lanes<f64>],
    weights: &'a [Lanes<f64>],
}

impl Kernel<f64> for Gradient<'_> {
    type Output = (f64, Vec<f64>);
    #[inline(always)]
    fn run<V: Vector<f64>>(self) -> Self::Output {
        self.tiles::<V>()
    }
}

impl Gradient<'_> {
    #[inline(always)]
    fn tiles<V: Vector<f64>>(self) -> (f64, Vec<f64>) {
        let mut state = State::new(self.d, self.layers);
        let mut gradient = vec![Lanes::zero(); self.params.len()];
        let mut loss = 0.0;
        for (gram, weights) in self.tiles.chunks(self.d * self.d).zip(self.weights) {
            let losses = state.forward::<V>(self.params, gram);
            loss += losses.0.iter().zip(&weights.0).map(|(l, w)| l * w).sum::<f64>();
            state.backward::<V>(self.params, gram, weights, &mut gradient);
        }
        (loss, gradient.iter().map(Lanes::sum).collect())
    }
}

/// Of one tile: for each layer S, T, A T, V = Tᵀ A T, U = Ĝ V, T U; and the adjoints.
struct State {
    d: usize,
    layers: usize,
    store: Vec<Lanes<f64>>,
    adjoint: Vec<Lanes<f64>>,
}

const STORED: usize = 6;

impl State {
    fn new(d: usize, layers: usize) -> Self {
        let dd = d * d;
        State {
            d,
            layers,
            store: vec![Lanes::zero(); (layers * STORED + 2) * dd],
            adjoint: vec![Lanes::zero(); 6 * dd],
        }
    }

    #[inline(always)]
    fn forward<V: Vector<f64>>(&mut self, params: &[f64], gram: &[Lanes<f64>]) -> Lanes<f64> {
        let d = self.d;
        let dd = d * d;
        for i in 0..dd {
            let v = Lanes::splat(if i % (d + 1) == 0 { 1.0 } else { 0.0 });
            self.store[i] = v;
            self.store[dd + i] = v;
        }
        for l in 0..self.layers {
            let b = &params[2 * l * dd..][..dd];
            let a = &params[(2 * l + 1) * dd..][..dd];
            let (now, next) = self.store[l * STORED * dd..].split_at_mut(STORED * dd);
            let (s, now) = now.split_at_mut(dd);
            let (t, now) = now.split_at_mut(dd);
            let (at, now) = now.split_at_mut(dd);
            let (v, now) = now.split_at_mut(dd);
            let (u, tu) = now.split_at_mut(dd);
            shared_product::<f64, V, 0, false>(d, a, t, at);
            transposed_product::<f64, V, 0, false>(d, t, at, v);
            product::<f64, V, 0, false>(d, gram, v, u);
            let (s_next, rest) = next.split_at_mut(dd);
            s_next.copy_from_slice(s);
            product::<f64, V, 0, true>(d, s, u, s_next);
            if l + 1 < self.layers {
                product::<f64, V, 0, false>(d, t, u, tu);
                let t_next = &mut rest[..dd];
                t_next.copy_from_slice(t);
                shared_product::<f64, V, 0, true>(d, b, tu, t_next);
            }
        }
        let last = &self.store[self.layers * STORED * dd..][..dd];
        let mut sum = V::splat(0.0);
        for s in last {
            sum = sum.add_mul(V::load(s), V::load(s));
        }
        let mut out = Lanes::zero();
        sum.store(&mut out);
        out
    }

    /// Adds the gradient of the weighted ‖S_L‖_F² in `params` to `gradient`.
    #[inline(always)]
    fn backward<V: Vector<f64>>(
        &mut self,
        params: &[f64],
        gram: &[Lanes<f64>],
        weights: &Lanes<f64>,
        gradient: &mut [Lanes<f64>],
    ) {
        let d = self.d;
        let dd = d * d;
        let (d_s, rest) = self.adjoint.split_at_mut(dd);
        let (d_t, rest) = rest.split_at_mut(dd);
        let (d_u, rest) = rest.split_at_mut(dd);
        let (d_v, rest) = rest.split_at_mut(dd);
        let (d_tu, work) = rest.split_at_mut(dd);
        let last = &self.store[self.layers * STORED * dd..][..dd];
        for (d_s, s) in d_s.iter_mut().zip(last) {
            for i in 0..LANES {
                d_s.0[i] = 2.0 * weights.0[i] * s.0[i];
            }
        }
        d_t.fill(Lanes::zero());
        for l in (0..self.layers).rev() {
            let b = &params[2 * l * dd..][..dd];
            let a = &params[(2 * l + 1) * dd..][..dd];
            let (before, grad_a) = gradient[..(2 * l + 2) * dd].split_at_mut((2 * l + 1) * dd);
            let grad_b = &mut before[2 * l * dd..];
            let stored = &self.store[l * STORED * dd..][..STORED * dd];
            let (s, t, at) = (&stored[..dd], &stored[dd..2 * dd], &stored[2 * dd..3 * dd]);
            let (u, tu) = (&stored[4 * dd..5 * dd], &stored[5 * dd..]);
            // S' = S + S U.
            transposed_product::<f64, V, 0, false>(d, s, d_s, d_u);
            work.copy_from_slice(d_s);
            product_transposed::<f64, V, 0, true>(d, work, u, d_s);
            // T' = T + B (T U).
            if l + 1 < self.layers {
                product_transposed::<f64, V, 0, true>(d, d_t, tu, grad_b);
                shared_transposed_product::<f64, V, 0, false>(d, b, d_t, d_tu);
                transposed_product::<f64, V, 0, true>(d, t, d_tu, d_u);
                product_transposed::<f64, V, 0, true>(d, d_tu, u, d_t);
            }
            // U = Ĝ V, V = Tᵀ (A T): V̄ = Ĝ Ū, Ā = T V̄ Tᵀ, T̄ += A T V̄ᵀ + Aᵀ T V̄.
            product::<f64, V, 0, false>(d, gram, d_u, d_v);
            product::<f64, V, 0, false>(d, t, d_v, work);
            product_transposed::<f64, V, 0, true>(d, work, t, grad_a);
            product_transposed::<f64, V, 0, true>(d, at, d_v, d_t);
            shared_transposed_product::<f64, V, 0, true>(d, a, work, d_t);
        }
    }
}
