//! Multi-head attention over one prompt, forward and backward, with softmax, linear, ReLU or exponential weights.
//!
//! For a head with queries Q, keys K and values V, `[T, k]` each, the output is P V with weights P_ij made of the scores
//! q_i·k_j. The matrices are kept transposed, Pᵀ, keys as rows: sixteen queries are a vector, and the softmax of each of
//! them a lane. The causal half is computed in blocks, so that little of the other half is.

use serde::{Deserialize, Serialize};

use super::gemm::{Left, PANEL, Right, small};
use super::simd::{Job, Simd, WIDTH, dispatch};

/// What weights are made of scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weights {
    /// e^s over the sum of e^s.
    Softmax,
    /// s itself.
    Linear,
    /// max(s, 0).
    Relu,
    /// e^s.
    Exp,
}

/// The form of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attention {
    /// What weights are made of scores.
    pub weights: Weights,
    /// Whether a token attends to itself and earlier tokens alone.
    pub causal: bool,
    /// Whether scores are divided by sqrt(k), k the size of a head's keys.
    pub scaled: bool,
    /// Whether weights are divided by the number of tokens attended to; softmax weights never are.
    pub averaged: bool,
}

impl Default for Attention {
    /// GPT-2's: causal softmax attention, scaled.
    fn default() -> Self {
        Attention { weights: Weights::Softmax, causal: true, scaled: true, averaged: false }
    }
}

/// The attention of one prompt: its form, and where the heads are.
#[derive(Clone, Debug)]
pub(super) struct Heads {
    pub(super) form: Attention,
    pub(super) tokens: usize,
    pub(super) heads: usize,
    pub(super) key: usize,
    /// From a token's queries, keys and values, `[3, heads, key]`, to the next one's.
    pub(super) stride: usize,
    /// From a token's output, `[heads, key]`, to the next one's.
    pub(super) out_stride: usize,
    /// The factor on every query's weights.
    pub(super) factor: Vec<f32>,
}

/// What a slice may be read beyond its last row: a vector that begins in it.
pub(super) const MARGIN: usize = PANEL;

/// 0 sixteen times, then 1: read from 16 - s, it is a vector of s zeros and then ones.
const MASK: [f32; 2 * WIDTH] = {
    let mut mask = [0.0; 2 * WIDTH];
    let mut i = WIDTH;
    while i < 2 * WIDTH {
        mask[i] = 1.0;
        i += 1;
    }
    mask
};

/// Rows of a block of queries in sums over keys.
const ROWS: usize = 8;

impl Heads {
    pub(super) fn new(form: Attention, tokens: usize, heads: usize, key: usize, stride: usize, out: usize) -> Self {
        let padded = tokens.next_multiple_of(WIDTH);
        let count = |i: usize| if form.causal { i.min(tokens - 1) + 1 } else { tokens };
        let averaged = form.averaged && form.weights != Weights::Softmax;
        let factor = (0..padded).map(|i| if averaged { 1.0 / count(i) as f32 } else { 1.0 }).collect();
        Heads { form, tokens, heads, key, stride, out_stride: out, factor }
    }

    /// Entries of a row of Pᵀ: the queries, up to a whole vector.
    fn padded(&self) -> usize {
        self.factor.len()
    }

    /// Floats of all heads' Pᵀ.
    pub(super) fn weights_len(&self) -> usize {
        self.heads * self.tokens * self.padded()
    }

    /// Floats of scratch that either pass needs.
    pub(super) fn scratch_len(&self) -> usize {
        let key = self.key.next_multiple_of(WIDTH);
        self.padded() * (self.tokens + key) + 4 * (self.tokens * key + MARGIN)
    }

    pub(super) fn scale(&self) -> f32 {
        if self.form.scaled { 1.0 / (self.key as f32).sqrt() } else { 1.0 }
    }

    /// Keys that the queries before `end` attend to.
    pub(super) fn reach(&self, end: usize) -> usize {
        if self.form.causal { end.min(self.tokens) } else { self.tokens }
    }

    /// The first query that attends to key `j`.
    fn first(&self, j: usize) -> usize {
        if self.form.causal { j } else { 0 }
    }

    /// The matrix `[T, key]` at `data`, `stride` apart, in a form whose rows can be read by whole vectors: itself, or a
    /// copy in `room`.
    fn right<'a>(&self, data: &'a [f32], stride: usize, room: &'a mut [f32]) -> Right<'a> {
        if self.key.is_multiple_of(WIDTH) {
            return Right::rows(data, stride);
        }
        let width = self.key.next_multiple_of(WIDTH);
        for (to, row) in room.chunks_exact_mut(width).zip(data.chunks(stride)).take(self.tokens) {
            to[..self.key].copy_from_slice(&row[..self.key]);
            to[self.key..].fill(0.0);
        }
        Right::rows(room, width)
    }

    /// Scores qᵀk of all queries, transposed, keys as rows: `left` rows against the columns of `right` `[key, T]`.
    fn products(&self, left: &[f32], stride: usize, right: &[f32], out: &mut [f32]) {
        dispatch(Products { heads: self, left, stride, right, out });
    }

    /// Σ_j M_ij r_j for every query i, M given transposed: what attention does with P and V.
    fn over_keys(&self, transposed: &[f32], right: Right<'_>, out: &mut [f32], stride: usize) {
        dispatch(OverKeys { heads: self, transposed, right, out, stride });
    }

    /// Σ_i M_ij r_i for every key j, M given transposed.
    fn over_queries(&self, transposed: &[f32], right: Right<'_>, out: &mut [f32], stride: usize) {
        dispatch(OverQueries { heads: self, transposed, right, out, stride });
    }

    /// Keys that none of the queries i, …, i + 15 attends to, but whose weights a block of queries reads that begins earlier than
    /// it would ([`Heads::block`]): they must be zero.
    #[inline(always)]
    fn unreached(&self, i: usize) -> std::ops::Range<usize> {
        let last = self.tokens.saturating_sub(ROWS);
        if (i..i + WIDTH).contains(&last) { self.reach(i + WIDTH)..self.tokens } else { 0..0 }
    }

    /// Where a block of [`ROWS`] tokens begins that would begin at `i`: earlier, if there are not as many left.
    #[inline(always)]
    fn block(&self, i: usize) -> usize {
        i.min(self.tokens.saturating_sub(ROWS))
    }

    /// Writes `[T, key]` by whole vectors: into `out` itself, or into `room` and from there.
    fn write(&self, out: &mut [f32], stride: usize, room: &mut [f32], f: impl FnOnce(&mut [f32], usize)) {
        if self.key.is_multiple_of(WIDTH) {
            return f(out, stride);
        }
        let width = self.key.next_multiple_of(WIDTH);
        f(room, width);
        for (row, from) in out.chunks_mut(stride).zip(room.chunks_exact(width)).take(self.tokens) {
            row[..self.key].copy_from_slice(&from[..self.key]);
        }
    }

    /// The outputs of all heads and the weights Pᵀ, for a prompt's queries, keys and values.
    ///
    /// `qkv` may be read [`MARGIN`] beyond its last row.
    pub(super) fn forward(&self, qkv: &[f32], weights: &mut [f32], out: &mut [f32], scratch: &mut [f32]) {
        let (padded, inner) = (self.padded(), self.heads * self.key);
        let (queries, rest) = scratch.split_at_mut(padded * self.key.next_multiple_of(WIDTH));
        let (room_v, room_o) = rest.split_at_mut(self.tokens * self.key.next_multiple_of(WIDTH) + MARGIN);
        for (h, weights) in weights.chunks_exact_mut(self.tokens * padded).enumerate() {
            let at = h * self.key;
            self.transpose(&qkv[at..], self.stride, self.scale(), queries);
            self.products(&qkv[inner + at..], self.stride, queries, weights);
            dispatch(Weigh { heads: self, weights });
            let values = self.right(&qkv[2 * inner + at..], self.stride, room_v);
            self.write(&mut out[at..], self.out_stride, room_o, |out, stride| {
                self.over_keys(weights, values, out, stride);
            });
        }
    }

    /// The gradient in queries, keys and values for the gradient `d_out` in the outputs.
    ///
    /// `qkv` and `d_out` may be read [`MARGIN`] beyond their last rows.
    pub(super) fn backward(&self, qkv: &[f32], weights: &[f32], d_out: &[f32], d_qkv: &mut [f32], scratch: &mut [f32]) {
        let (padded, inner) = (self.padded(), self.heads * self.key);
        let width = self.key.next_multiple_of(WIDTH);
        let (transposed, rest) = scratch.split_at_mut(padded * width);
        let (slopes, rest) = rest.split_at_mut(padded * self.tokens);
        let (room_d, rest) = rest.split_at_mut(self.tokens * width + MARGIN);
        let (room_r, room_w) = rest.split_at_mut(self.tokens * width + MARGIN);
        for (h, weights) in weights.chunks_exact(self.tokens * padded).enumerate() {
            let at = h * self.key;
            let (q, k, v) = (&qkv[at..], &qkv[inner + at..], &qkv[2 * inner + at..]);
            let d_out = &d_out[at..];
            // dV = Pᵀ dO, dP = dO Vᵀ.
            let right = self.right(d_out, self.out_stride, room_d);
            self.write(&mut d_qkv[2 * inner + at..], self.stride, room_w, |out, stride| {
                self.over_queries(weights, right, out, stride);
            });
            self.transpose(d_out, self.out_stride, 1.0, transposed);
            self.products(v, self.stride, transposed, slopes);
            dispatch(Slope { heads: self, scale: self.scale(), weights, slopes });
            // dQ = dS K, dK = dSᵀ Q.
            let right = self.right(k, self.stride, room_r);
            self.write(&mut d_qkv[at..], self.stride, room_w, |out, stride| {
                self.over_keys(slopes, right, out, stride);
            });
            let right = self.right(q, self.stride, room_r);
            self.write(&mut d_qkv[inner + at..], self.stride, room_w, |out, stride| {
                self.over_queries(slopes, right, out, stride);
            });
        }
    }

    /// The transpose of `[T, key]`, times `scale`, into `[key, padded]`; tokens beyond the last are zero.
    fn transpose(&self, data: &[f32], stride: usize, scale: f32, to: &mut [f32]) {
        dispatch(Transpose { rows: self.tokens, columns: self.key, data, stride, scale, to, padded: self.padded() });
    }
}

struct Transpose<'a> {
    rows: usize,
    columns: usize,
    data: &'a [f32],
    stride: usize,
    scale: f32,
    to: &'a mut [f32],
    padded: usize,
}

impl Job for Transpose<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Simd>(self) {
        let scale = V::splat(self.scale);
        for row in (0..self.rows).step_by(WIDTH) {
            for column in (0..self.columns).step_by(WIDTH) {
                let mut block = [V::zero(); WIDTH];
                for (i, to) in block.iter_mut().enumerate() {
                    if row + i < self.rows {
                        *to = vector::<V>(self.data, (row + i) * self.stride + column).mul(scale);
                    }
                }
                V::transpose(&mut block);
                for (c, v) in block.into_iter().enumerate().take(self.columns - column) {
                    put(v, self.to, (column + c) * self.padded + row);
                }
            }
        }
    }
}

#[inline(always)]
fn vector<V: Simd>(data: &[f32], at: usize) -> V {
    match data[at..].first_chunk() {
        Some(chunk) => V::load(chunk),
        // Only a slice without its margin comes here.
        None => V::zero(),
    }
}

#[inline(always)]
fn put<V: Simd>(v: V, to: &mut [f32], at: usize) {
    if let Some(chunk) = to[at..].first_chunk_mut() {
        v.store(chunk);
    }
}

/// 1 for the queries i, …, i + 15 that attend to key j, else 0, if there is any that does not.
#[inline(always)]
fn mask<V: Simd>(causal: bool, i: usize, j: usize) -> Option<V> {
    if causal && j > i { Some(vector(&MASK, WIDTH.saturating_sub(j - i))) } else { None }
}

/// [`Heads::products`].
struct Products<'a> {
    heads: &'a Heads,
    left: &'a [f32],
    stride: usize,
    right: &'a [f32],
    out: &'a mut [f32],
}

impl Job for Products<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Simd>(self) {
        let Products { heads, left, stride, right, out } = self;
        let padded = heads.padded();
        // Two vectors of queries at a time; the keys that only the second reaches, for that one alone.
        for i in (0..padded).step_by(2 * WIDTH) {
            let (both, all) = (heads.reach(i + WIDTH), heads.reach(i + 2 * WIDTH));
            let vectors = if i + WIDTH < padded { 2 } else { 1 };
            for (from, to, i, vectors) in [(0, both, i, vectors), (both, all, i + WIDTH, 1)] {
                if from < to {
                    let a = Left { data: &left[from * stride..], row: stride, step: 1 };
                    let b = Right::rows(&right[i..], padded);
                    small::<V>([to - from, vectors * WIDTH, heads.key], a, b, &mut out[from * padded + i..], padded);
                }
            }
        }
    }
}

/// [`Heads::over_keys`].
struct OverKeys<'a> {
    heads: &'a Heads,
    transposed: &'a [f32],
    right: Right<'a>,
    out: &'a mut [f32],
    stride: usize,
}

impl Job for OverKeys<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Simd>(self) {
        let OverKeys { heads, transposed, right, out, stride } = self;
        for i in (0..heads.tokens).step_by(ROWS) {
            let i = heads.block(i);
            let rows = ROWS.min(heads.tokens);
            let a = Left { data: &transposed[i..], row: 1, step: heads.padded() };
            small::<V>([rows, heads.key, heads.reach(i + rows)], a, right, &mut out[i * stride..], stride);
        }
    }
}

/// [`Heads::over_queries`].
struct OverQueries<'a> {
    heads: &'a Heads,
    transposed: &'a [f32],
    right: Right<'a>,
    out: &'a mut [f32],
    stride: usize,
}

impl Job for OverQueries<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Simd>(self) {
        let OverQueries { heads, transposed, right, out, stride } = self;
        let padded = heads.padded();
        for j in (0..heads.tokens).step_by(ROWS) {
            let j = heads.block(j);
            let (rows, first) = (ROWS.min(heads.tokens), heads.first(j));
            let a = Left { data: &transposed[j * padded + first..], row: padded, step: 1 };
            let b = Right { data: &right.data[first * right.step..], ..right };
            small::<V>([rows, heads.key, heads.tokens - first], a, b, &mut out[j * stride..], stride);
        }
    }
}

/// Scores, transposed, become weights.
struct Weigh<'a> {
    heads: &'a Heads,
    weights: &'a mut [f32],
}

impl Job for Weigh<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Simd>(self) {
        let Weigh { heads, weights } = self;
        let (padded, form) = (heads.padded(), heads.form);
        for i in (0..padded).step_by(WIDTH) {
            let reach = heads.reach(i + WIDTH);
            heads.unreached(i).for_each(|j| put(V::zero(), weights, j * padded + i));
            if form.weights == Weights::Softmax {
                let mut greatest = V::splat(f32::MIN);
                for j in 0..reach {
                    let mut score = vector::<V>(weights, j * padded + i);
                    if let Some(mask) = mask::<V>(form.causal, i, j) {
                        // Far below any score, where the mask is zero.
                        score = score.mul(mask).add_mul(mask.sub(V::splat(1.0)), V::splat(1e30));
                    }
                    greatest = greatest.max(score);
                }
                let mut sum = V::zero();
                for j in 0..reach {
                    let mut weight = vector::<V>(weights, j * padded + i).sub(greatest).exp();
                    if let Some(mask) = mask::<V>(form.causal, i, j) {
                        weight = weight.mul(mask);
                    }
                    sum = sum.add(weight);
                    put(weight, weights, j * padded + i);
                }
                let inverse = V::splat(1.0).div(sum);
                for j in 0..reach {
                    put(vector::<V>(weights, j * padded + i).mul(inverse), weights, j * padded + i);
                }
                continue;
            }
            let factor = vector::<V>(&heads.factor, i);
            for j in 0..reach {
                let score = vector::<V>(weights, j * padded + i);
                let mut weight = match form.weights {
                    Weights::Relu => V::zero().max(score),
                    Weights::Exp => score.exp(),
                    _ => score,
                };
                weight = weight.mul(factor);
                if let Some(mask) = mask::<V>(form.causal, i, j) {
                    weight = weight.mul(mask);
                }
                put(weight, weights, j * padded + i);
            }
        }
    }
}

/// Gradients in the weights become gradients in q·k.
struct Slope<'a> {
    heads: &'a Heads,
    scale: f32,
    weights: &'a [f32],
    slopes: &'a mut [f32],
}

impl Job for Slope<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Simd>(self) {
        let Slope { heads, weights, slopes, .. } = self;
        let (padded, form) = (heads.padded(), heads.form);
        let scale = V::splat(self.scale);
        for i in (0..padded).step_by(WIDTH) {
            let reach = heads.reach(i + WIDTH);
            heads.unreached(i).for_each(|j| put(V::zero(), slopes, j * padded + i));
            let mut mean = V::zero();
            if form.weights == Weights::Softmax {
                for j in 0..reach {
                    let at = j * padded + i;
                    mean = mean.add_mul(vector::<V>(weights, at), vector::<V>(slopes, at));
                }
            }
            let factor = vector::<V>(&heads.factor, i);
            for j in 0..reach {
                let at = j * padded + i;
                let (weight, d) = (vector::<V>(weights, at), vector::<V>(slopes, at));
                let slope = match form.weights {
                    Weights::Softmax => weight.mul(d.sub(mean)),
                    Weights::Exp => weight.mul(d),
                    Weights::Relu => weight.step().mul(factor).mul(d),
                    Weights::Linear => match mask::<V>(form.causal, i, j) {
                        Some(mask) => mask.mul(factor).mul(d),
                        None => factor.mul(d),
                    },
                };
                put(slope.mul(scale), slopes, at);
            }
        }
    }
}
