//! Affine layers of a network: their weights laid out for the matrix products, with the layer norm's affine map before
//! them folded in.

use std::ops::Range;

use super::gemm::{Left, Right, Start, column_sums, gemm, pack, pack_transposed, packed_len};
use super::sequence::Buffer;
use super::simd::WIDTH;

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

/// An affine map y = (γ ∘ x + β) W + b of the plan: where its tensors are in the parameters, where its folded and laid
/// out weights are in the prepared ones, and where its gradient is summed.
#[derive(Clone, Debug)]
pub(super) struct Affine {
    rows: usize,
    columns: usize,
    at: Places,
    norm: Places,
    /// Whether the tensor is `[out, in]`; without a tensor, W is the identity.
    transposed: bool,
    /// The tensor's columns come in groups of this many, each filled up to whole vectors here.
    group: usize,
    forward: Range<usize>,
    backward: Range<usize>,
    bias: Range<usize>,
    gradient: Range<usize>,
    gradient_bias: Range<usize>,
}

impl Affine {
    /// A map of `rows` entries to `columns`.
    pub fn new(plan: &mut Sizes, rows: usize, columns: usize, at: &Places, norm: &Places, transposed: bool) -> Affine {
        let whole = Affine::grouped(plan, rows, columns, 1, at);
        Affine { norm: norm.clone(), transposed, ..whole }
    }

    /// A map of `rows` entries to `groups` groups of `group` columns, each filled up to whole vectors if there are
    /// several, with a tensor `[groups * group, rows]`: the gates of a recurrent layer.
    pub fn grouped(plan: &mut Sizes, rows: usize, group: usize, groups: usize, at: &Places) -> Affine {
        let columns = if groups > 1 { groups * group.next_multiple_of(WIDTH) } else { group };
        let (forward, backward) = (packed_len(rows, columns), packed_len(columns, rows));
        Affine {
            rows,
            columns,
            at: at.clone(),
            norm: Places::default(),
            transposed: true,
            group,
            forward: plan.prepared(forward),
            backward: plan.prepared(backward),
            bias: plan.prepared(stride(columns)),
            gradient: plan.gradient(rows * stride(columns)),
            gradient_bias: plan.gradient(stride(columns)),
        }
    }

    /// The tensor's column that is column `j` here, or none if it only fills up a group.
    fn column(&self, j: usize) -> Option<usize> {
        if self.group == self.columns || self.group.is_multiple_of(WIDTH) {
            return Some(j);
        }
        let padded = self.group.next_multiple_of(WIDTH);
        (j % padded < self.group).then_some(j / padded * self.group + j % padded)
    }

    /// Where the tensor has the entry of row `p` and its column `j`.
    fn at(&self, p: usize, j: usize) -> usize {
        self.at.weight.start + if self.transposed { j * self.rows + p } else { p * self.columns + j }
    }

    fn entry(&self, params: &[f32], p: usize, j: usize) -> f32 {
        if self.at.weight.is_empty() {
            return f32::from(u8::from(p == j));
        }
        self.column(j).map_or(0.0, |j| params[self.at(p, j)])
    }

    /// Whether the tensor has the rows of this map one after the other.
    fn rows_in_place(&self) -> bool {
        !self.at.weight.is_empty() && !self.transposed
    }

    /// Floats of the prepared weights.
    pub fn prepared_len(&self) -> usize {
        self.forward.len() + self.backward.len() + self.bias.len()
    }

    /// γ and β at entry p.
    fn norm(&self, params: &[f32], p: usize) -> (f32, f32) {
        if self.norm.weight.is_empty() {
            (1.0, 0.0)
        } else {
            (params[self.norm.weight.start + p], params[self.norm.bias.start + p])
        }
    }

    /// W, row-major, `[rows, columns]`.
    fn matrix(&self, params: &[f32]) -> Buffer {
        let mut matrix = Buffer::take(self.rows * self.columns);
        let w = matrix.as_mut();
        if self.rows_in_place() {
            w.copy_from_slice(&params[self.at.weight.clone()]);
            return matrix;
        }
        w.fill(0.0);
        if self.at.weight.is_empty() {
            (0..self.rows.min(self.columns)).for_each(|p| w[p * self.columns + p] = 1.0);
        } else {
            for j in 0..self.columns {
                let Some(column) = self.column(j) else { continue };
                let from = &params[self.at.weight.start + column * self.rows..][..self.rows];
                from.iter().enumerate().for_each(|(p, v)| w[p * self.columns + j] = *v);
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
            for (j, bias) in bias.iter_mut().enumerate().take(self.columns) {
                *bias = self.column(j).map_or(0.0, |j| params[self.at.bias.start + j]);
            }
        }
        let mut matrix = self.matrix(params);
        let w = matrix.as_mut();
        if !self.norm.weight.is_empty() {
            for (p, row) in w.chunks_exact_mut(self.columns).enumerate() {
                let (gamma, beta) = self.norm(params, p);
                bias.iter_mut().zip(&*row).for_each(|(b, w)| *b += beta * w);
                row.iter_mut().for_each(|w| *w *= gamma);
            }
        }
        pack(self.rows, self.columns, w, forward);
        pack_transposed(self.columns, self.rows, w, backward);
    }

    /// y (+)= x W + b for `m` rows.
    pub fn forward(&self, w: &[f32], m: usize, x: (&[f32], usize), y: (&mut [f32], usize), add: bool) {
        let a = Left { data: x.0, row: x.1, step: 1 };
        let start = Start { bias: Some(&w[self.bias.clone()]), add };
        gemm([m, self.columns, self.rows], a, Right::packed(&w[self.forward.clone()], self.rows), start, y.0, y.1);
    }

    /// dx = dy Wᵀ for `m` rows.
    pub fn backward(&self, w: &[f32], m: usize, dy: (&[f32], usize), dx: (&mut [f32], usize)) {
        let a = Left { data: dy.0, row: dy.1, step: 1 };
        let b = Right::packed(&w[self.backward.clone()], self.columns);
        gemm([m, self.rows, self.columns], a, b, Start::ZERO, dx.0, dx.1);
    }

    /// The gradient, xᵀ dy and the column sums of dy, into `g` or added to it.
    pub fn gradient(&self, g: &mut [f32], m: usize, x: (&[f32], usize), dy: (&[f32], usize), add: bool) {
        let a = Left { data: x.0, row: 1, step: x.1 };
        let into = &mut g[self.gradient.clone()];
        let start = Start { bias: None, add };
        gemm([self.rows, self.columns, m], a, Right::rows(dy.0, dy.1), start, into, stride(self.columns));
        column_sums(m, self.columns, dy.0, dy.1, &mut g[self.gradient_bias.clone()], add);
    }

    /// Where its tensors are in the parameters.
    pub fn tensors(&self) -> [&Range<usize>; 4] {
        [&self.at.weight, &self.at.bias, &self.norm.weight, &self.norm.bias]
    }

    /// The gradient in [`Affine::tensors`], from the one in the folded weights (this layer's part of `g`).
    pub fn unfold(&self, params: &[f32], g: &[f32], [in_weight, in_bias, in_gamma, in_beta]: [&mut [f32]; 4]) {
        let bias = &g[self.gradient_bias.clone()][..self.columns];
        if !in_bias.is_empty() {
            for (j, g) in bias.iter().enumerate() {
                if let Some(j) = self.column(j) {
                    in_bias[j] = *g;
                }
            }
        }
        for (p, row) in g[self.gradient.clone()].chunks_exact(stride(self.columns)).enumerate() {
            let row = &row[..self.columns];
            let (gamma, beta) = self.norm(params, p);
            if !in_gamma.is_empty() {
                let dot = |g: &[f32]| -> f32 {
                    if self.rows_in_place() {
                        dot_product(g, &params[self.at(p, 0)..][..self.columns])
                    } else {
                        g.iter().enumerate().map(|(j, g)| g * self.entry(params, p, j)).sum()
                    }
                };
                (in_gamma[p], in_beta[p]) = (dot(row), dot(bias));
            }
            if self.rows_in_place() {
                let to = &mut in_weight[p * self.columns..][..self.columns];
                to.iter_mut().zip(row.iter().zip(bias)).for_each(|(to, (g, b))| *to = gamma * g + beta * b);
            }
        }
        if self.transposed && !in_weight.is_empty() {
            for (j, b) in bias.iter().enumerate() {
                let Some(column) = self.column(j) else { continue };
                let to = &mut in_weight[column * self.rows..][..self.rows];
                let column = g[self.gradient.clone()].iter().skip(j).step_by(stride(self.columns));
                for (p, (to, g)) in to.iter_mut().zip(column).enumerate() {
                    let (gamma, beta) = self.norm(params, p);
                    *to = gamma * g + beta * b;
                }
            }
        }
    }
}

/// The sum of products, in sixteen sums that do not wait for each other.
fn dot_product(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_end), (b, b_end)) = (a.as_chunks::<WIDTH>(), b.as_chunks::<WIDTH>());
    let mut sums = [0.0; WIDTH];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..WIDTH {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f32>() + a_end.iter().zip(b_end).map(|(a, b)| a * b).sum::<f32>()
}

/// Lengths of the prepared weights and of the gradient, growing as the plan is made.
#[derive(Default)]
pub(super) struct Sizes {
    pub prepared: usize,
    pub gradient: usize,
}

impl Sizes {
    pub fn prepared(&mut self, len: usize) -> Range<usize> {
        let start = self.prepared;
        self.prepared += len.next_multiple_of(WIDTH);
        start..self.prepared
    }

    pub fn gradient(&mut self, len: usize) -> Range<usize> {
        let start = self.gradient;
        self.gradient += len.next_multiple_of(WIDTH);
        start..self.gradient
    }
}
