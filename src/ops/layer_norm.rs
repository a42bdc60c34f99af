//! Layer norm without its affine map: rows are brought to mean 0 and variance 1.
//!
//! The affine map γ ∘ x̂ + β stands before a linear one in every transformer here, and is folded into that one's weights
//! ([`super::gpt2`]), so that it costs nothing a token.

use super::simd::{self, Job, Simd, WIDTH, dispatch};

/// Added to the variance: GPT-2's.
const EPSILON: f32 = 1e-5;

/// Rows of `stride` entries, of which the first `width` count; those up to the next multiple of [`WIDTH`] become zero.
#[derive(Clone, Copy)]
pub struct Rows {
    /// Entries of a row.
    pub width: usize,
    /// From a row to the next: a multiple of [`WIDTH`].
    pub stride: usize,
}

impl Rows {
    /// The vectors of a row, and for its last one 1 where an entry counts and 0 elsewhere.
    #[inline(always)]
    fn shape(self) -> (usize, [f32; WIDTH]) {
        let vectors = self.width.div_ceil(WIDTH);
        let mut last = [1.0; WIDTH];
        last[self.width - (vectors - 1) * WIDTH..].fill(0.0);
        (vectors, last)
    }
}

/// x̂ = (x - mean) / sqrt(variance + 1e-5), row by row, and 1 / sqrt(variance + 1e-5).
pub fn normalise(rows: Rows, x: &[f32], normalised: &mut [f32], scale: &mut [f32]) {
    dispatch(Forward { rows, x, normalised, scale });
}

struct Forward<'a> {
    rows: Rows,
    x: &'a [f32],
    normalised: &'a mut [f32],
    scale: &'a mut [f32],
}

impl Job for Forward<'_> {
    type Output = ();
    // Loops over indices, here and below: an iterator's parts that are not marked to be inlined may be compiled elsewhere,
    // without the caller's instructions.
    #[allow(clippy::needless_range_loop)]
    #[inline(always)]
    fn run<V: Simd>(self) {
        let (vectors, last) = self.rows.shape();
        let last = V::load(&last);
        let stride = self.rows.stride;
        let inverse = 1.0 / self.rows.width as f32;
        for row in 0..self.x.len() / stride {
            let x = simd::vectors(self.x, row * stride, vectors);
            let out = simd::vectors_mut(self.normalised, row * stride, vectors);
            let mut sum = V::zero();
            for v in 0..vectors {
                let x = V::load(&x[v]);
                sum = sum.add(if v + 1 == vectors { x.mul(last) } else { x });
            }
            let mean = V::splat(sum.sum() * inverse);
            let mut squares = V::zero();
            for v in 0..vectors {
                let mut x = V::load(&x[v]).sub(mean);
                if v + 1 == vectors {
                    x = x.mul(last);
                }
                squares = squares.add_mul(x, x);
                x.store(&mut out[v]);
            }
            self.scale[row] = 1.0 / (squares.sum() * inverse + EPSILON).sqrt();
            let scale = V::splat(self.scale[row]);
            for v in 0..vectors {
                V::load(&out[v]).mul(scale).store(&mut out[v]);
            }
        }
    }
}

/// Adds to `dx` the gradient in x for the gradient `d` in x̂: (d - mean(d) - x̂ mean(d ∘ x̂)) / sqrt(variance + 1e-5).
pub fn normalise_backward(rows: Rows, normalised: &[f32], scale: &[f32], d: &[f32], dx: &mut [f32]) {
    dispatch(Backward { rows, normalised, scale, d, dx });
}

struct Backward<'a> {
    rows: Rows,
    normalised: &'a [f32],
    scale: &'a [f32],
    d: &'a [f32],
    dx: &'a mut [f32],
}

impl Job for Backward<'_> {
    type Output = ();
    #[allow(clippy::needless_range_loop)]
    #[inline(always)]
    fn run<V: Simd>(self) {
        let (vectors, last) = self.rows.shape();
        let stride = self.rows.stride;
        let inverse = 1.0 / self.rows.width as f32;
        let last = V::load(&last);
        for row in 0..self.d.len() / stride {
            let x = simd::vectors(self.normalised, row * stride, vectors);
            let d = simd::vectors(self.d, row * stride, vectors);
            let dx = simd::vectors_mut(self.dx, row * stride, vectors);
            let (mut sum, mut product) = (V::zero(), V::zero());
            for v in 0..vectors {
                let mut d = V::load(&d[v]);
                if v + 1 == vectors {
                    d = d.mul(last);
                }
                sum = sum.add(d);
                product = product.add_mul(d, V::load(&x[v]));
            }
            let mean = V::splat(sum.sum() * inverse);
            let slope = V::splat(-product.sum() * inverse);
            let scale = V::splat(self.scale[row]);
            for v in 0..vectors {
                let inner = V::load(&d[v]).sub(mean).add_mul(slope, V::load(&x[v]));
                V::load(&dx[v]).add_mul(inner, scale).store(&mut dx[v]);
            }
        }
    }
}
