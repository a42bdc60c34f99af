//! Affine layers of a network: their weights laid out for the matrix products, with the affine map that stands before them
//! folded in: a layer norm's, or another layer.

use std::ops::Range;

use super::gemm::{
    Left, PANEL, Right, Start, column_sums, gemm, gemm_times, pack, pack_transposed, packed_len, transpose,
};
use super::memory::Buffer;
use super::simd::{Job, Simd, WIDTH, dispatch};

/// Places of an affine layer's tensors in the parameters; empty if there is none.
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    pub weight: Range<usize>,
    pub bias: Range<usize>,
}

/// From a row of a matrix of `width` columns to the next: whole vectors, and no power of two, which would make the
/// rows of wide matrices compete for the same lines of the cache.
pub(super) fn stride(width: usize) -> usize {
    let padded = width.next_multiple_of(WIDTH);
    if padded < 128 { padded } else { padded + WIDTH }
}

/// Whether the gradient in a map of `rows` entries to `columns` is summed as a transpose: its product then has many rows and few
/// columns, and is faster, if these fill a tile.
fn tall(rows: usize, columns: usize) -> bool {
    rows >= 2 * PANEL && columns > rows
}

/// What x goes through before a layer, folded into it.
#[derive(Clone, Debug, PartialEq)]
enum Before {
    Nothing,
    /// γ ∘ x + β.
    Norm,
    /// x A + a, with A's tensor `[entries of W's rows, entries of x]`.
    Layer,
}

/// An affine map y = (γ ∘ x + β) W + b or y = (x A + a) W + b of the plan: where its tensors are in the parameters, where its
/// folded and laid out weights are in the prepared ones, and where its gradient is summed.
#[derive(Clone, Debug)]
pub(super) struct Affine {
    /// Entries of x.
    inputs: usize,
    /// Rows of W.
    rows: usize,
    columns: usize,
    at: Places,
    before: Before,
    /// γ and β, or A and a.
    at_before: Places,
    /// Whether the tensor is `[out, in]`; without a tensor, W is the identity.
    transposed: bool,
    /// The tensor's columns come in groups of this many, each filled up to whole vectors here.
    group: usize,
    forward: Range<usize>,
    backward: Range<usize>,
    bias: Range<usize>,
    /// The piece of the gradient that is this map's: `[inputs, columns]` or its transpose ([`tall`]), then that in the bias.
    pub piece: usize,
    /// Floats of the first.
    gradient: usize,
}

impl Affine {
    /// A map of `rows` entries to `columns`, behind a layer norm with this affine map if there is one.
    pub fn new(plan: &mut Sizes, rows: usize, columns: usize, at: &Places, norm: &Places, transposed: bool) -> Affine {
        let whole = Affine::grouped(plan, rows, columns, 1, at);
        let before = if norm.weight.is_empty() { Before::Nothing } else { Before::Norm };
        Affine { before, at_before: norm.clone(), transposed, ..whole }
    }

    /// A map of `rows` entries to `groups` groups of `group` columns, each filled up to whole vectors if there are
    /// several, with a tensor `[groups * group, rows]`: the gates of a recurrent layer.
    pub fn grouped(plan: &mut Sizes, rows: usize, group: usize, groups: usize, at: &Places) -> Affine {
        let columns = if groups > 1 { groups * group.next_multiple_of(WIDTH) } else { group };
        let (forward, backward) = (packed_len(rows, columns), packed_len(columns, rows));
        let gradient = match tall(rows, columns) {
            true => columns * stride(rows),
            false => rows * stride(columns),
        };
        Affine {
            inputs: rows,
            rows,
            columns,
            at: at.clone(),
            before: Before::Nothing,
            at_before: Places::default(),
            transposed: true,
            group,
            forward: plan.prepared(forward),
            backward: plan.prepared(backward),
            bias: plan.prepared(stride(columns)),
            piece: plan.piece(gradient + stride(columns)),
            gradient,
        }
    }

    /// As [`Affine::grouped`], of `inputs` entries that an affine layer of `rows` units takes first: with nothing between the
    /// two, they are one map, which costs less than the second alone where `inputs` are fewer than `rows`.
    pub fn behind_a_layer(
        plan: &mut Sizes,
        inputs: usize,
        first: &Places,
        [rows, group, groups]: [usize; 3],
        at: &Places,
    ) -> Affine {
        let whole = Affine::grouped(plan, inputs, group, groups, at);
        Affine { rows, before: Before::Layer, at_before: first.clone(), ..whole }
    }

    /// Of every group of columns: where it begins here, where in the tensor, and how long it is.
    fn groups(&self) -> impl Iterator<Item = [usize; 3]> {
        let (group, padded) = (self.group, self.group.next_multiple_of(WIDTH));
        let count = if group == self.columns { 1 } else { self.columns / padded };
        (0..count).map(move |k| [k * padded, k * group, group])
    }

    /// Whether the tensor has the rows of this map one after the other.
    fn rows_in_place(&self) -> bool {
        !self.at.weight.is_empty() && !self.transposed
    }

    /// Whether the tensor is the transpose of the whole map, with no columns that fill up.
    fn is_transpose(&self, tensor: &[f32]) -> bool {
        self.before == Before::Nothing && self.transposed && tensor.len() == self.rows * self.columns
    }

    /// Floats of the prepared weights.
    pub fn prepared_len(&self) -> usize {
        self.forward.len() + self.backward.len() + self.bias.len()
    }

    /// W, row-major, `[rows, columns]`.
    fn matrix(&self, params: &[f32]) -> Buffer {
        let mut matrix = Buffer::take(self.rows * self.columns);
        let w = matrix.as_mut();
        let tensor = &params[self.at.weight.clone()];
        if self.rows_in_place() {
            w.copy_from_slice(tensor);
            return matrix;
        }
        w.fill(0.0);
        if tensor.is_empty() {
            (0..self.rows.min(self.columns)).for_each(|p| w[p * self.columns + p] = 1.0);
        } else {
            for [here, there, len] in self.groups() {
                transpose([self.rows, len], &tensor[there * self.rows..], self.rows, &mut w[here..], self.columns);
            }
        }
        matrix
    }

    /// Lays the weights out in this layer's part of the prepared ones.
    pub fn prepare(&self, params: &[f32], out: &mut [f32]) {
        let (forward, rest) = out.split_at_mut(self.forward.len());
        let (backward, bias) = rest.split_at_mut(self.backward.len());
        bias.fill(0.0);
        if !self.at.bias.is_empty() {
            for [here, there, len] in self.groups() {
                bias[here..][..len].copy_from_slice(&params[self.at.bias.start + there..][..len]);
            }
        }
        let tensor = &params[self.at.weight.clone()];
        if self.is_transpose(tensor) {
            pack_transposed(self.inputs, self.columns, tensor, forward);
            return pack(self.columns, self.inputs, tensor, backward);
        }
        let mut matrix = self.matrix(params);
        let (before, constant) = (&params[self.at_before.weight.clone()], &params[self.at_before.bias.clone()]);
        match self.before {
            Before::Nothing => {}
            Before::Norm => dispatch(FoldNorm { matrix: matrix.as_mut(), bias, gamma: before, beta: constant }),
            Before::Layer => {
                let mut product = Buffer::take(self.inputs * self.columns);
                let (columns, w) = (self.columns, matrix.as_ref());
                dispatch(FoldLayer { columns, matrix: w, bias, factors: before, constant, product: product.as_mut() });
                matrix = product;
            }
        }
        pack(self.inputs, self.columns, matrix.as_ref(), forward);
        pack_transposed(self.columns, self.inputs, matrix.as_ref(), backward);
    }

    /// y (+)= x W + b for `m` rows.
    #[inline(always)]
    pub fn forward(&self, w: &[f32], m: usize, x: (&[f32], usize), y: (&mut [f32], usize), add: bool) {
        let a = Left { data: x.0, row: x.1, step: 1 };
        let start = Start { bias: Some(&w[self.bias.clone()]), add };
        gemm(
            [m, self.columns, self.inputs],
            a,
            Right::packed(&w[self.forward.clone()], self.inputs, self.columns),
            start,
            y.0,
            y.1,
        );
    }

    /// y += b for `m` rows: what x = 0 gives.
    pub fn forward_from_zero(&self, w: &[f32], m: usize, y: (&mut [f32], usize)) {
        let a = Left { data: &[], row: 0, step: 0 };
        let start = Start { bias: Some(&w[self.bias.clone()]), add: true };
        gemm([m, self.columns, 0], a, Right::rows(&[], 0), start, y.0, y.1);
    }

    /// dx = dy Wᵀ for `m` rows.
    // Inlined: a pair of a slice and a stride that is handed over in memory is loaded in wider pieces than it was stored in, and the
    // load waits for all stores before it. So it is for the two others.
    #[inline(always)]
    pub fn backward(&self, w: &[f32], m: usize, dy: (&[f32], usize), dx: (&mut [f32], usize)) {
        let a = Left { data: dy.0, row: dy.1, step: 1 };
        let b = Right::packed(&w[self.backward.clone()], self.columns, self.inputs);
        gemm([m, self.inputs, self.columns], a, b, Start::ZERO, dx.0, dx.1);
    }

    /// dx = (dy Wᵀ) ∘ slopes for `m` rows: through what made x, too.
    #[inline(always)]
    pub fn backward_times(&self, w: &[f32], m: usize, dy: (&[f32], usize), slopes: &[f32], dx: (&mut [f32], usize)) {
        let a = Left { data: dy.0, row: dy.1, step: 1 };
        let b = Right::packed(&w[self.backward.clone()], self.columns, self.inputs);
        gemm_times([m, self.inputs, self.columns], a, b, slopes, dx.0, dx.1);
    }

    /// The gradient, xᵀ dy and the column sums of dy, into this map's piece `g` or added to it.
    pub fn gradient(&self, g: &mut [f32], m: usize, x: (&[f32], usize), dy: (&[f32], usize), add: bool) {
        self.gradient_in_weights(g, m, x, dy, add);
        column_sums(m, self.columns, dy.0, dy.1, &mut g[self.gradient..], add);
    }

    /// The gradient in the weights alone, xᵀ dy, into this map's piece `g` or added to it.
    pub fn gradient_in_weights(&self, g: &mut [f32], m: usize, x: (&[f32], usize), dy: (&[f32], usize), add: bool) {
        let into = &mut g[..self.gradient];
        let start = Start { bias: None, add };
        let mut padded;
        let (rows, columns, left, right) = if tall(self.inputs, self.columns) {
            let mut x = x;
            if x.1 == self.inputs && !self.inputs.is_multiple_of(WIDTH) {
                // Tokens as the user has them: a right factor is read by whole vectors.
                padded = Buffer::take(m * stride(self.inputs));
                spread_rows(x.0, self.inputs, padded.as_mut(), stride(self.inputs));
                x = (padded.as_ref(), stride(self.inputs));
            }
            (self.columns, self.inputs, dy, x)
        } else {
            (self.inputs, self.columns, x, dy)
        };
        let a = Left { data: left.0, row: 1, step: left.1 };
        gemm([rows, columns, m], a, Right::rows(right.0, right.1), start, into, stride(columns));
    }

    /// The gradient in the bias, in this map's piece.
    pub fn gradient_in_bias<'a>(&self, g: &'a mut [f32]) -> &'a mut [f32] {
        &mut g[self.gradient..]
    }

    /// Where its tensors are in the parameters.
    pub fn tensors(&self) -> [&Range<usize>; 4] {
        [&self.at.weight, &self.at.bias, &self.at_before.weight, &self.at_before.bias]
    }

    /// The gradient in [`Affine::tensors`], from this map's piece, the gradient in the folded weights.
    pub fn unfold(&self, params: &[f32], g: &[f32], tensors: [&mut [f32]; 4]) {
        let [in_weight, in_bias, in_before, in_constant] = tensors;
        let (columns, from, stride) = (self.columns, stride(self.inputs), stride(self.columns));
        let bias = &g[self.gradient..][..columns];
        if !in_bias.is_empty() {
            for [here, there, len] in self.groups() {
                in_bias[there..][..len].copy_from_slice(&bias[here..][..len]);
            }
        }
        let as_in_tensor = self.is_transpose(in_weight);
        let tall = tall(self.inputs, columns);
        if tall && as_in_tensor {
            let rows = in_weight.chunks_exact_mut(self.inputs).zip(g.chunks_exact(from));
            return rows.for_each(|(to, row)| to.copy_from_slice(&row[..self.inputs]));
        }
        let turned = tall.then(|| {
            let mut turned = Buffer::take(self.inputs * stride);
            transpose([self.inputs, columns], g, from, turned.as_mut(), stride);
            turned
        });
        let g = turned.as_ref().map_or(g, Buffer::as_ref);
        let (before, constant) = (&params[self.at_before.weight.clone()], &params[self.at_before.bias.clone()]);
        let mut unfold = |matrix: &[f32], in_matrix: &mut [f32]| {
            if self.before == Before::Nothing {
                let rows = in_matrix.chunks_exact_mut(columns).zip(g.chunks_exact(stride));
                return rows.for_each(|(to, row)| to.copy_from_slice(&row[..columns]));
            }
            let (norm, into) = (self.before == Before::Norm, [in_matrix, &mut *in_before, &mut *in_constant]);
            dispatch(Unfold { norm, columns, matrix, factors: before, constant, g, stride, bias, into });
        };
        if self.rows_in_place() {
            unfold(&params[self.at.weight.clone()], in_weight);
        } else if as_in_tensor {
            transpose([columns, self.rows], g, stride, in_weight, self.rows);
        } else if self.before != Before::Nothing || !in_weight.is_empty() {
            let matrix = (self.before != Before::Nothing).then(|| self.matrix(params));
            let mut gradient = Buffer::take(self.rows * columns);
            unfold(matrix.as_ref().map_or(&[], Buffer::as_ref), gradient.as_mut());
            if in_weight.is_empty() {
                return;
            }
            for [here, there, len] in self.groups() {
                let to = &mut in_weight[there * self.rows..];
                transpose([len, self.rows], &gradient.as_ref()[here..], columns, to, self.rows);
            }
        }
    }
}

/// Rows one after the other to rows `stride` apart, zeros between them.
pub(super) fn spread_rows(from: &[f32], width: usize, to: &mut [f32], stride: usize) {
    for (to, from) in to.chunks_exact_mut(stride).zip(from.chunks_exact(width)) {
        to[..width].copy_from_slice(from);
        to[width..].fill(0.0);
    }
}

/// W becomes diag(γ) W, and β W is added to the bias, for W `[entries of γ, columns]`.
struct FoldNorm<'a> {
    matrix: &'a mut [f32],
    bias: &'a mut [f32],
    gamma: &'a [f32],
    beta: &'a [f32],
}

impl Job for FoldNorm<'_> {
    type Output = ();
    // Loops over indices, here and below: an iterator's parts may be compiled elsewhere, without the caller's instructions.
    #[allow(clippy::needless_range_loop)]
    #[inline(always)]
    fn run<V: Simd>(self) {
        let FoldNorm { matrix, bias, gamma, beta } = self;
        let columns = matrix.len() / gamma.len();
        let bias = &mut bias[..columns];
        for i in 0..gamma.len() {
            let (row, gamma, beta) = (&mut matrix[i * columns..][..columns], gamma[i], beta[i]);
            for c in 0..columns {
                bias[c] += beta * row[c];
                row[c] *= gamma;
            }
        }
    }
}

/// A W, and a W added to the bias, for W `[entries of a, columns]` and A's tensor `[entries of a, inputs]`.
struct FoldLayer<'a> {
    columns: usize,
    matrix: &'a [f32],
    bias: &'a mut [f32],
    factors: &'a [f32],
    constant: &'a [f32],
    product: &'a mut [f32],
}

impl Job for FoldLayer<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Simd>(self) {
        let FoldLayer { columns, matrix, bias, factors, constant, product } = self;
        let (units, inputs) = (constant.len(), product.len() / columns);
        for i in 0..units {
            add_multiple(&mut bias[..columns], constant[i], &matrix[i * columns..][..columns]);
        }
        for p in 0..inputs {
            let to = &mut product[p * columns..][..columns];
            to.fill(0.0);
            for i in 0..units {
                add_multiple(to, factors[i * inputs + p], &matrix[i * columns..][..columns]);
            }
        }
    }
}

/// The adjoint of [`FoldNorm`] and of [`FoldLayer`], from the gradients `g`, rows `stride` apart, and `bias` in what they made: those
/// in W, in the factors and in the constants.
struct Unfold<'a> {
    /// Whether a row of W has one factor, for its own row of the product, or one for each of its rows.
    norm: bool,
    columns: usize,
    matrix: &'a [f32],
    factors: &'a [f32],
    constant: &'a [f32],
    g: &'a [f32],
    stride: usize,
    bias: &'a [f32],
    into: [&'a mut [f32]; 3],
}

impl Job for Unfold<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Simd>(self) {
        let Unfold { norm, columns, matrix, factors, constant, g, stride, bias, into } = self;
        let [in_matrix, in_factors, in_constant] = into;
        let of_row = factors.len() / constant.len();
        for i in 0..constant.len() {
            let (w, to) = (&matrix[i * columns..][..columns], &mut in_matrix[i * columns..][..columns]);
            in_constant[i] = dot_product(bias, w);
            to.fill(0.0);
            add_multiple(to, constant[i], bias);
            for k in 0..of_row {
                let (at, row) = (i * of_row + k, if norm { i } else { k });
                let g = &g[row * stride..][..columns];
                in_factors[at] = dot_product(g, w);
                add_multiple(to, factors[at], g);
            }
        }
    }
}

/// to += factor * row.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
fn add_multiple(to: &mut [f32], factor: f32, row: &[f32]) {
    for c in 0..to.len().min(row.len()) {
        to[c] += factor * row[c];
    }
}

/// The sum of products, in sixteen sums that do not wait for each other.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
fn dot_product(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_end), (b, b_end)) = (a.as_chunks::<WIDTH>(), b.as_chunks::<WIDTH>());
    let mut sums = [0.0; WIDTH];
    for k in 0..a.len().min(b.len()) {
        for lane in 0..WIDTH {
            sums[lane] += a[k][lane] * b[k][lane];
        }
    }
    let (mut sum, mut end) = (0.0, 0.0);
    for lane in 0..WIDTH {
        sum += sums[lane];
    }
    for i in 0..a_end.len().min(b_end.len()) {
        end += a_end[i] * b_end[i];
    }
    sum + end
}

/// Lengths of the prepared weights and of the pieces of the gradient, growing as the plan is made.
#[derive(Default)]
pub(super) struct Sizes {
    pub prepared: usize,
    pub pieces: Vec<usize>,
}

impl Sizes {
    pub fn prepared(&mut self, len: usize) -> Range<usize> {
        let start = self.prepared;
        self.prepared += len.next_multiple_of(WIDTH);
        start..self.prepared
    }

    /// The number of a new piece of the gradient, of whole vectors.
    pub fn piece(&mut self, len: usize) -> usize {
        self.pieces.push(len.next_multiple_of(WIDTH));
        self.pieces.len() - 1
    }

    /// Floats of the gradient.
    pub fn gradient(&self) -> usize {
        self.pieces.iter().sum()
    }
}
