//! Multi-head attention of sixteen pairs of a prompt and a head side by side: what [`super::attention`] computes, for short
//! prompts and narrow heads.
//!
//! A matrix of twenty tokens by eight or sixteen channels fills no tile of registers. With a pair in every lane, its products
//! are of vectors however small they are, of causal attention the half that is not masked is all that is computed, and the
//! softmax is a lane's. Queries, keys and values are rearranged once on the way in, and outputs on the way out.

use std::ops::Range;

use super::attention::{Attention, Weights};
use super::lane_products::{ABOVE, Extent, Part, Queries, View, product};
use super::lanes::{LANES, Lanes};
use super::simd::{Job, Simd, WIDTH, dispatch};

/// Attention in one layer: its form, and where the heads are in the rows of the residual stream.
#[derive(Clone, Debug)]
pub(super) struct LaneHeads {
    form: Attention,
    tokens: usize,
    heads: usize,
    key: usize,
    /// From a token's queries, keys and values, `[3, heads, key]`, to the next one's.
    stride: usize,
    /// From a token's output, `[heads, key]`, to the next one's.
    out_stride: usize,
}

/// Floats that one lane keeps, up to which this is the faster way: sixteen have a megabyte, half of a second-level cache. At 21
/// tokens and keys of 16 a transformer's step takes 0.9 of its time, at 81 0.97, at 121 1.06.
const MOST: usize = 1 << 14;

impl LaneHeads {
    pub(super) fn new(form: Attention, tokens: usize, heads: usize, key: usize, stride: usize, out: usize) -> Self {
        LaneHeads { form, tokens, heads, key, stride, out_stride: out }
    }

    /// Whether this is the faster way for so many prompts: few lanes are empty, and a group stays in the cache.
    pub(super) fn suit(&self, prompts: usize) -> bool {
        let pairs = prompts * self.heads;
        4 * pairs >= 3 * LANES * self.groups(prompts) && self.tokens * (self.tokens + 3 * self.key) <= MOST
    }

    /// The fewest prompts that leave no lane empty.
    pub(super) fn group(&self) -> usize {
        (1..LANES).find(|prompts| (prompts * self.heads).is_multiple_of(LANES)).unwrap_or(LANES)
    }

    /// Groups of pairs, sixteen each, the last one perhaps fewer.
    fn groups(&self, prompts: usize) -> usize {
        (prompts * self.heads).div_ceil(LANES)
    }

    /// Entries of one of a group's matrices `[tokens, key]`.
    fn matrix(&self) -> usize {
        self.tokens * self.key
    }

    /// Entries of a group's queries, keys and values, of all groups.
    pub(super) fn qkv_len(&self, prompts: usize) -> usize {
        self.groups(prompts) * 3 * self.matrix()
    }

    /// Entries of the weights of all groups.
    pub(super) fn weights_len(&self, prompts: usize) -> usize {
        self.groups(prompts) * self.tokens * self.tokens
    }

    /// Entries of scratch that either pass needs.
    pub(super) fn scratch_len(&self) -> usize {
        self.tokens * self.tokens + 4 * self.matrix()
    }

    fn scale(&self) -> f32 {
        if self.form.scaled { 1.0 / (self.key as f32).sqrt() } else { 1.0 }
    }

    /// Tokens that query `i` attends to.
    fn seen(&self, i: usize) -> usize {
        if self.form.causal { i + 1 } else { self.tokens }
    }

    fn part(&self, causal: fn(Queries) -> Part) -> Part {
        if self.form.causal { causal(Queries { first: 0, step: 1 }) } else { Part::All }
    }

    /// Where the pairs of group `g` are in rows `stride` apart. A lane that stands for no pair has the last pair's place.
    fn places(&self, g: usize, prompts: usize, stride: usize) -> Places {
        let last = prompts * self.heads - 1;
        let starts = std::array::from_fn(|lane| {
            let pair = (g * LANES + lane).min(last);
            pair / self.heads * self.tokens * stride + pair % self.heads * self.key
        });
        Places { starts, present: (last + 1 - g * LANES).min(LANES), stride }
    }

    /// a bᵀ `[queries, tokens]` of two matrices `[tokens, key]`, times `scale`.
    fn scores(&self, scale: f32, a: &[Lanes<f32>], b: &[Lanes<f32>], out: &mut [Lanes<f32>]) {
        let extent = Extent { rows: self.tokens, columns: self.tokens, inner: self.key };
        let rows = View::new(0, self.key, 1);
        product::<f32, [Lanes<f32>], false>(
            extent,
            self.part(Part::Lower),
            scale,
            (a, rows),
            (b, rows),
            (out, View::new(0, self.tokens, 1)),
        );
    }

    /// Σ_j w_ij b_j for every query i, or Σ_i w_ij b_i for every token j.
    fn sums(&self, over_queries: bool, w: &[Lanes<f32>], b: &[Lanes<f32>], out: &mut [Lanes<f32>]) {
        let extent = Extent { rows: self.tokens, columns: self.key, inner: self.tokens };
        let (part, of_weights) = if over_queries {
            (self.part(Part::SumFrom), View::new(0, 1, self.tokens))
        } else {
            (self.part(Part::SumBelow), View::new(0, self.tokens, 1))
        };
        product::<f32, [Lanes<f32>], false>(
            extent,
            part,
            1.0,
            (w, of_weights),
            (b, View::new(0, 1, self.key)),
            (out, View::new(0, self.key, 1)),
        );
    }

    /// The outputs of all heads of so many prompts, from the rows of their queries, keys and values, which are kept in `qkv`,
    /// as the weights in `weights`.
    pub(super) fn forward(
        &self,
        prompts: usize,
        rows: &[f32],
        qkv: &mut [Lanes<f32>],
        weights: &mut [Lanes<f32>],
        out: &mut [f32],
        scratch: &mut [Lanes<f32>],
    ) {
        let (size, squares) = (self.matrix(), self.tokens * self.tokens);
        let groups = qkv.chunks_exact_mut(3 * size).zip(weights.chunks_exact_mut(squares)).take(self.groups(prompts));
        for (g, (qkv, weights)) in groups.enumerate() {
            self.gather(rows, &self.places(g, prompts, self.stride), qkv);
            let (q, rest) = qkv.split_at(size);
            let (k, v) = rest.split_at(size);
            self.scores(self.scale(), q, k, weights);
            dispatch(Weigh { heads: self, weights });
            let outputs = &mut scratch[..size];
            self.sums(false, weights, v, outputs);
            self.scatter(outputs, &self.places(g, prompts, self.out_stride), out);
        }
    }

    /// The rows of the gradients in queries, keys and values for those in the outputs, `d_out`.
    pub(super) fn backward(
        &self,
        prompts: usize,
        qkv: &[Lanes<f32>],
        weights: &[Lanes<f32>],
        d_out: &[f32],
        d_qkv: &mut [f32],
        scratch: &mut [Lanes<f32>],
    ) {
        let (size, squares) = (self.matrix(), self.tokens * self.tokens);
        let (slopes, rest) = scratch.split_at_mut(squares);
        let (d, rest) = rest.split_at_mut(size);
        let in_qkv = &mut rest[..3 * size];
        let groups = qkv.chunks_exact(3 * size).zip(weights.chunks_exact(squares)).take(self.groups(prompts));
        for (g, (qkv, weights)) in groups.enumerate() {
            let (q, rest) = qkv.split_at(size);
            let (k, v) = rest.split_at(size);
            self.gather(d_out, &self.places(g, prompts, self.out_stride), d);
            let (in_q, rest) = in_qkv.split_at_mut(size);
            let (in_k, in_v) = rest.split_at_mut(size);
            // dV = Pᵀ dO, dP = dO Vᵀ.
            self.sums(true, weights, d, in_v);
            self.scores(1.0, d, v, slopes);
            dispatch(Slope { heads: self, scale: self.scale(), weights, slopes });
            // dQ = dS K, dK = dSᵀ Q.
            self.sums(false, slopes, k, in_q);
            self.sums(true, slopes, q, in_k);
            self.scatter(in_qkv, &self.places(g, prompts, self.stride), d_qkv);
        }
    }

    /// Matrices `[tokens, key]` of a group, as many as `lanes` holds, out of rows: from a matrix to the next are
    /// `heads * key` entries. Rows are read by whole vectors, the last one beyond its end.
    fn gather(&self, rows: &[f32], places: &Places, lanes: &mut [Lanes<f32>]) {
        let end = self.end(places, lanes.len() / self.matrix(), self.key.next_multiple_of(WIDTH));
        assert!(rows.len() >= end, "rows without a margin");
        dispatch(Gather { heads: self, rows, places, lanes });
    }

    /// The inverse of [`LaneHeads::gather`].
    fn scatter(&self, lanes: &[Lanes<f32>], places: &Places, rows: &mut [f32]) {
        assert!(rows.len() >= self.end(places, lanes.len() / self.matrix(), self.key), "rows that are too few");
        dispatch(Scatter { heads: self, lanes, places, rows });
    }

    /// Entries up to the end of the last row of a group's matrices, of which `width` are read.
    fn end(&self, places: &Places, matrices: usize, width: usize) -> usize {
        let last = places.starts.iter().max().map_or(0, |start| *start);
        last + (self.tokens - 1) * places.stride + (matrices - 1) * self.heads * self.key + width
    }

    /// Entries of query `i`'s row that blocks of products read beyond what it attends to.
    fn above(&self, i: usize) -> Range<usize> {
        let seen = self.seen(i);
        seen..(seen + ABOVE).min(self.tokens)
    }
}

/// Where a group's pairs are in rows.
struct Places {
    /// Of every lane the first entry of its head.
    starts: [usize; LANES],
    /// Lanes that stand for a pair.
    present: usize,
    /// From a row to the next.
    stride: usize,
}

struct Gather<'a> {
    heads: &'a LaneHeads,
    rows: &'a [f32],
    places: &'a Places,
    lanes: &'a mut [Lanes<f32>],
}

impl Job for Gather<'_> {
    type Output = ();
    // Loops over indices, here and below: an iterator's parts may be compiled elsewhere, without the caller's instructions.
    #[allow(clippy::needless_range_loop)]
    #[inline(always)]
    fn run<V: Simd>(self) {
        let Gather { heads, rows, places, lanes } = self;
        let LaneHeads { tokens, key, .. } = *heads;
        for m in 0..lanes.len() / (tokens * key) {
            let matrix = &mut lanes[m * tokens * key..][..tokens * key];
            for t in 0..tokens {
                for c in (0..key).step_by(WIDTH) {
                    let at = t * places.stride + m * heads.heads * key + c;
                    let mut block = [V::zero(); WIDTH];
                    for lane in 0..LANES {
                        // SAFETY: `gather` has found the last vector of the last row inside.
                        block[lane] = V::load(unsafe { &*rows.as_ptr().add(places.starts[lane] + at).cast() });
                    }
                    V::transpose(&mut block);
                    let to = &mut matrix[t * key + c..][..WIDTH.min(key - c)];
                    for i in 0..to.len() {
                        block[i].store(&mut to[i].0);
                    }
                }
            }
        }
    }
}

struct Scatter<'a> {
    heads: &'a LaneHeads,
    lanes: &'a [Lanes<f32>],
    places: &'a Places,
    rows: &'a mut [f32],
}

impl Job for Scatter<'_> {
    type Output = ();
    #[allow(clippy::needless_range_loop)]
    #[inline(always)]
    fn run<V: Simd>(self) {
        let Scatter { heads, lanes, places, rows } = self;
        let LaneHeads { tokens, key, .. } = *heads;
        for m in 0..lanes.len() / (tokens * key) {
            let matrix = &lanes[m * tokens * key..][..tokens * key];
            for t in 0..tokens {
                for c in (0..key).step_by(WIDTH) {
                    let from = &matrix[t * key + c..][..WIDTH.min(key - c)];
                    let mut block = [V::zero(); WIDTH];
                    for i in 0..from.len() {
                        block[i] = V::load(&from[i].0);
                    }
                    V::transpose(&mut block);
                    let at = t * places.stride + m * heads.heads * key + c;
                    for lane in 0..places.present {
                        let at = places.starts[lane] + at;
                        if from.len() == WIDTH {
                            // SAFETY: `scatter` has found the last row inside.
                            block[lane].store(unsafe { &mut *rows.as_mut_ptr().add(at).cast() });
                        } else {
                            let mut part = [0.0; WIDTH];
                            block[lane].store(&mut part);
                            rows[at..][..from.len()].copy_from_slice(&part[..from.len()]);
                        }
                    }
                }
            }
        }
    }
}

/// Scores become weights; those behind what a query attends to become 0 as far as products read them.
struct Weigh<'a> {
    heads: &'a LaneHeads,
    weights: &'a mut [Lanes<f32>],
}

impl Job for Weigh<'_> {
    type Output = ();
    #[allow(clippy::needless_range_loop)]
    #[inline(always)]
    fn run<V: Simd>(self) {
        let Weigh { heads, weights } = self;
        let (tokens, form) = (heads.tokens, heads.form);
        for i in 0..tokens {
            let row = &mut weights[i * tokens..][..tokens];
            for j in heads.above(i) {
                V::zero().store(&mut row[j].0);
            }
            let row = &mut row[..heads.seen(i)];
            if form.weights == Weights::Softmax {
                let mut greatest = V::load(&row[0].0);
                for j in 1..row.len() {
                    greatest = greatest.max(V::load(&row[j].0));
                }
                let mut sum = V::zero();
                for j in 0..row.len() {
                    let weight = V::load(&row[j].0).sub(greatest).exp();
                    sum = sum.add(weight);
                    weight.store(&mut row[j].0);
                }
                let inverse = V::splat(1.0).div(sum);
                for j in 0..row.len() {
                    V::load(&row[j].0).mul(inverse).store(&mut row[j].0);
                }
                continue;
            }
            let factor = V::splat(if form.averaged { 1.0 / row.len() as f32 } else { 1.0 });
            for j in 0..row.len() {
                let score = V::load(&row[j].0);
                let weight = match form.weights {
                    Weights::Relu => V::zero().max(score),
                    Weights::Exp => score.exp(),
                    _ => score,
                };
                weight.mul(factor).store(&mut row[j].0);
            }
        }
    }
}

/// Gradients in the weights become gradients in q·k.
struct Slope<'a> {
    heads: &'a LaneHeads,
    scale: f32,
    weights: &'a [Lanes<f32>],
    slopes: &'a mut [Lanes<f32>],
}

impl Job for Slope<'_> {
    type Output = ();
    #[allow(clippy::needless_range_loop)]
    #[inline(always)]
    fn run<V: Simd>(self) {
        let Slope { heads, weights, slopes, .. } = self;
        let (tokens, form) = (heads.tokens, heads.form);
        for i in 0..tokens {
            let slopes = &mut slopes[i * tokens..][..tokens];
            for j in heads.above(i) {
                V::zero().store(&mut slopes[j].0);
            }
            let slopes = &mut slopes[..heads.seen(i)];
            let weights = &weights[i * tokens..][..slopes.len()];
            let mut mean = V::zero();
            if form.weights == Weights::Softmax {
                for j in 0..slopes.len() {
                    mean = mean.add_mul(V::load(&weights[j].0), V::load(&slopes[j].0));
                }
            }
            let factor = V::splat(if form.averaged { 1.0 / slopes.len() as f32 } else { 1.0 });
            let scale = V::splat(self.scale);
            for j in 0..slopes.len() {
                let (weight, d) = (V::load(&weights[j].0), V::load(&slopes[j].0));
                let slope = match form.weights {
                    Weights::Softmax => weight.mul(d.sub(mean)),
                    Weights::Exp => weight.mul(d),
                    Weights::Relu => weight.step().mul(factor).mul(d),
                    Weights::Linear => factor.mul(d),
                };
                slope.mul(scale).store(&mut slopes[j].0);
            }
        }
    }
}
