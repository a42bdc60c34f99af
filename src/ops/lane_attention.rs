//! Multi-head attention of sixteen pairs of a prompt and a head side by side: what [`super::attention`] computes, for short
//! prompts and narrow heads.
//!
//! A matrix of twenty tokens by eight or sixteen channels fills no tile of registers. With a pair in every lane, its products
//! are of vectors however small they are, of causal attention the half that is not masked is all that is computed, and the
//! softmax is a lane's. Queries, keys and values are rearranged once on the way in, and outputs on the way out.

use std::ops::Range;

use super::attention::{Heads, Weights};
use super::lane_products::{ABOVE, Extent, Part, Queries, Soon, View, product};
use super::lanes::{LANES, Lanes};
use super::simd::{Job, Simd, WIDTH, dispatch};

/// The attention of several prompts, sixteen heads at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct LaneHeads<'a>(pub &'a Heads);

/// Floats that one lane keeps, up to which this is the faster way: sixteen have a megabyte, half of a second-level cache. At 21
/// tokens and keys of 16 a transformer's step takes 0.9 of its time, at 81 0.97, at 121 1.06.
const MOST: usize = 1 << 14;

impl LaneHeads<'_> {
    /// Whether this is the faster way for so many prompts: few lanes are empty, and a group stays in the cache.
    pub(super) fn suit(&self, prompts: usize) -> bool {
        let pairs = prompts * self.0.heads;
        4 * pairs >= 3 * LANES * self.groups(prompts) && self.0.tokens * (self.0.tokens + 3 * self.0.key) <= MOST
    }

    /// The fewest prompts that leave no lane empty.
    pub(super) fn group(&self) -> usize {
        (1..LANES).find(|prompts| (prompts * self.0.heads).is_multiple_of(LANES)).unwrap_or(LANES)
    }

    /// Groups of pairs, sixteen each, the last one perhaps fewer.
    fn groups(&self, prompts: usize) -> usize {
        (prompts * self.0.heads).div_ceil(LANES)
    }

    /// Entries of one of a group's matrices `[tokens, key]`.
    fn matrix(&self) -> usize {
        self.0.tokens * self.0.key
    }

    /// Entries of a group's queries, keys and values, of all groups.
    pub(super) fn qkv_len(&self, prompts: usize) -> usize {
        self.groups(prompts) * 3 * self.matrix()
    }

    /// Entries of the weights of all groups.
    pub(super) fn weights_len(&self, prompts: usize) -> usize {
        self.groups(prompts) * self.0.tokens * self.0.tokens
    }

    /// Entries of scratch that either pass needs.
    pub(super) fn scratch_len(&self) -> usize {
        self.0.tokens * self.0.tokens + 4 * self.matrix()
    }

    fn part(&self, causal: fn(Queries) -> Part) -> Part {
        if self.0.form.causal { causal(Queries { first: 0, step: 1 }) } else { Part::All }
    }

    /// Where the pairs of group `g` are in rows `stride` apart. A lane that stands for no pair has the last pair's place.
    fn places(&self, g: usize, prompts: usize, stride: usize) -> Places {
        let last = prompts * self.0.heads - 1;
        let starts = std::array::from_fn(|lane| {
            let pair = (g * LANES + lane).min(last);
            pair / self.0.heads * self.0.tokens * stride + pair % self.0.heads * self.0.key
        });
        Places { starts, present: (last + 1 - g * LANES).min(LANES), stride }
    }

    /// a bᵀ `[queries, tokens]` of two matrices `[tokens, key]`, times `scale`.
    fn scores(&self, scale: f32, a: &[Lanes<f32>], b: &[Lanes<f32>], out: &mut [Lanes<f32>]) {
        let extent = Extent::new(self.0.tokens, self.0.tokens, self.0.key);
        let rows = View::new(0, self.0.key, 1);
        product::<f32, &[Lanes<f32>], false>(
            extent,
            self.part(Part::Lower),
            scale,
            (a, rows),
            (b, rows),
            (out, View::new(0, self.0.tokens, 1)),
            Soon::nothing(),
        );
    }

    /// Σ_j w_ij b_j for every query i, or Σ_i w_ij b_i for every token j.
    fn sums(&self, over_queries: bool, w: &[Lanes<f32>], b: &[Lanes<f32>], out: &mut [Lanes<f32>]) {
        let extent = Extent::new(self.0.tokens, self.0.key, self.0.tokens);
        let (part, of_weights) = if over_queries {
            (self.part(Part::SumFrom), View::new(0, 1, self.0.tokens))
        } else {
            (self.part(Part::SumBelow), View::new(0, self.0.tokens, 1))
        };
        product::<f32, &[Lanes<f32>], false>(
            extent,
            part,
            1.0,
            (w, of_weights),
            (b, View::new(0, 1, self.0.key)),
            (out, View::new(0, self.0.key, 1)),
            Soon::nothing(),
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
        let (size, squares) = (self.matrix(), self.0.tokens * self.0.tokens);
        let groups = qkv.chunks_exact_mut(3 * size).zip(weights.chunks_exact_mut(squares)).take(self.groups(prompts));
        for (g, (qkv, weights)) in groups.enumerate() {
            self.gather(rows, &self.places(g, prompts, self.0.stride), qkv);
            let (q, rest) = qkv.split_at(size);
            let (k, v) = rest.split_at(size);
            self.scores(self.0.scale(), q, k, weights);
            dispatch(Weigh { heads: *self, weights });
            let outputs = &mut scratch[..size];
            self.sums(false, weights, v, outputs);
            self.scatter(outputs, &self.places(g, prompts, self.0.out_stride), out);
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
        let (size, squares) = (self.matrix(), self.0.tokens * self.0.tokens);
        let (slopes, rest) = scratch.split_at_mut(squares);
        let (d, rest) = rest.split_at_mut(size);
        let in_qkv = &mut rest[..3 * size];
        let groups = qkv.chunks_exact(3 * size).zip(weights.chunks_exact(squares)).take(self.groups(prompts));
        for (g, (qkv, weights)) in groups.enumerate() {
            let (q, rest) = qkv.split_at(size);
            let (k, v) = rest.split_at(size);
            self.gather(d_out, &self.places(g, prompts, self.0.out_stride), d);
            let (in_q, rest) = in_qkv.split_at_mut(size);
            let (in_k, in_v) = rest.split_at_mut(size);
            // dV = Pᵀ dO, dP = dO Vᵀ.
            self.sums(true, weights, d, in_v);
            self.scores(1.0, d, v, slopes);
            dispatch(Slope { heads: *self, weights, slopes });
            // dQ = dS K, dK = dSᵀ Q.
            self.sums(false, slopes, k, in_q);
            self.sums(true, slopes, q, in_k);
            self.scatter(in_qkv, &self.places(g, prompts, self.0.stride), d_qkv);
        }
    }

    /// Matrices `[tokens, key]` of a group, as many as `lanes` holds, out of rows: from a matrix to the next are
    /// `heads * key` entries. Rows are read by whole vectors, the last one beyond its end.
    fn gather(&self, rows: &[f32], places: &Places, lanes: &mut [Lanes<f32>]) {
        let end = self.end(places, lanes.len() / self.matrix(), self.0.key.next_multiple_of(WIDTH));
        assert!(rows.len() >= end, "rows without a margin");
        dispatch(Gather { heads: self.0, rows, places, lanes });
    }

    /// The inverse of [`LaneHeads::gather`].
    fn scatter(&self, lanes: &[Lanes<f32>], places: &Places, rows: &mut [f32]) {
        assert!(rows.len() >= self.end(places, lanes.len() / self.matrix(), self.0.key), "rows that are too few");
        dispatch(Scatter { heads: self.0, lanes, places, rows });
    }

    /// Entries up to the end of the last row of a group's matrices, of which `width` are read.
    fn end(&self, places: &Places, matrices: usize, width: usize) -> usize {
        let last = places.starts.iter().max().map_or(0, |start| *start);
        last + (self.0.tokens - 1) * places.stride + (matrices - 1) * self.0.heads * self.0.key + width
    }

    /// Entries of query `i`'s row that blocks of products read beyond what it attends to.
    fn above(&self, i: usize) -> Range<usize> {
        let seen = self.0.reach(i + 1);
        seen..(seen + ABOVE).min(self.0.tokens)
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
    heads: &'a Heads,
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
        let Heads { tokens, heads, key, .. } = *heads;
        for m in 0..lanes.len() / (tokens * key) {
            let matrix = &mut lanes[m * tokens * key..][..tokens * key];
            for t in 0..tokens {
                for c in (0..key).step_by(WIDTH) {
                    let at = t * places.stride + m * heads * key + c;
                    let mut block = [V::zero(); WIDTH];
                    for lane in 0..LANES {
                        // SAFETY: `gather` has found the last vector of the last row inside.
                        block[lane] = V::load(unsafe { &*rows.as_ptr().add(places.starts[lane] + at).cast() });
                    }
                    V::transpose(&mut block);
                    let to = &mut matrix[t * key + c..][..WIDTH.min(key - c)];
                    if let Ok(to) = <&mut [_; WIDTH]>::try_from(&mut *to) {
                        for i in 0..WIDTH {
                            block[i].store(&mut to[i].0);
                        }
                        continue;
                    }
                    // A copy alone is indexed by what is not known when this is compiled: the block itself stays in registers.
                    let part = block;
                    for i in 0..to.len() {
                        part[i].store(&mut to[i].0);
                    }
                }
            }
        }
    }
}

struct Scatter<'a> {
    heads: &'a Heads,
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
        let Heads { tokens, heads, key, .. } = *heads;
        for m in 0..lanes.len() / (tokens * key) {
            let matrix = &lanes[m * tokens * key..][..tokens * key];
            for t in 0..tokens {
                for c in (0..key).step_by(WIDTH) {
                    let from = &matrix[t * key + c..][..WIDTH.min(key - c)];
                    let at = t * places.stride + m * heads * key + c;
                    if let (Ok(from), LANES) = (<&[_; WIDTH]>::try_from(from), places.present) {
                        // Loops of known lengths: the block stays in registers.
                        let mut block = [V::zero(); WIDTH];
                        for i in 0..WIDTH {
                            block[i] = V::load(&from[i].0);
                        }
                        V::transpose(&mut block);
                        for lane in 0..LANES {
                            // SAFETY: `scatter` has found the last row inside.
                            block[lane].store(unsafe { &mut *rows.as_mut_ptr().add(places.starts[lane] + at).cast() });
                        }
                        continue;
                    }
                    let mut block = [V::zero(); WIDTH];
                    for i in 0..from.len() {
                        block[i] = V::load(&from[i].0);
                    }
                    V::transpose(&mut block);
                    for lane in 0..places.present {
                        let mut part = [0.0; WIDTH];
                        block[lane].store(&mut part);
                        rows[places.starts[lane] + at..][..from.len()].copy_from_slice(&part[..from.len()]);
                    }
                }
            }
        }
    }
}

/// Scores become weights; those behind what a query attends to become 0 as far as products read them.
struct Weigh<'a> {
    heads: LaneHeads<'a>,
    weights: &'a mut [Lanes<f32>],
}

impl Job for Weigh<'_> {
    type Output = ();
    #[allow(clippy::needless_range_loop)]
    #[inline(always)]
    fn run<V: Simd>(self) {
        let Weigh { heads, weights } = self;
        let (tokens, form) = (heads.0.tokens, heads.0.form);
        for i in 0..tokens {
            let row = &mut weights[i * tokens..][..tokens];
            for j in heads.above(i) {
                V::zero().store(&mut row[j].0);
            }
            let row = &mut row[..heads.0.reach(i + 1)];
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
            let factor = V::splat(heads.0.factor[i]);
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
    heads: LaneHeads<'a>,
    weights: &'a [Lanes<f32>],
    slopes: &'a mut [Lanes<f32>],
}

impl Job for Slope<'_> {
    type Output = ();
    #[allow(clippy::needless_range_loop)]
    #[inline(always)]
    fn run<V: Simd>(self) {
        let Slope { heads, weights, slopes } = self;
        let (tokens, form) = (heads.0.tokens, heads.0.form);
        for i in 0..tokens {
            let slopes = &mut slopes[i * tokens..][..tokens];
            for j in heads.above(i) {
                V::zero().store(&mut slopes[j].0);
            }
            let slopes = &mut slopes[..heads.0.reach(i + 1)];
            let weights = &weights[i * tokens..][..slopes.len()];
            let mut mean = V::zero();
            if form.weights == Weights::Softmax {
                for j in 0..slopes.len() {
                    mean = mean.add_mul(V::load(&weights[j].0), V::load(&slopes[j].0));
                }
            }
            let factor = V::splat(heads.0.factor[i]);
            let scale = V::splat(heads.0.scale());
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
