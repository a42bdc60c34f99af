//! GELU in the tanh form of GPT-2.
//!
//! gelu(x) = x (1 + tanh u) / 2 = x σ(2u), u = sqrt(2/π) (x + 0.044715 x³), so that one exponential gives the value and
//! the slope σ(2u) + 2 x u' σ(2u) (1 - σ(2u)).

use super::simd::{Job, Simd, WIDTH, dispatch};

/// Replaces the first `width` entries of every row of `x`, `stride` apart, by gelu(x) and writes the slopes at x; those
/// up to the next multiple of 16 too.
pub fn gelu(width: usize, stride: usize, x: &mut [f32], slope: &mut [f32]) {
    dispatch(Forward { vectors: width.div_ceil(WIDTH), stride, x, slope });
}

struct Forward<'a> {
    vectors: usize,
    stride: usize,
    x: &'a mut [f32],
    slope: &'a mut [f32],
}

impl Job for Forward<'_> {
    type Output = ();
    #[allow(clippy::needless_range_loop)]
    #[inline(always)]
    fn run<V: Simd>(self) {
        // 2 sqrt(2/π), and the cubic's coefficient times it.
        const LINEAR: f32 = 1.595_769;
        const CUBIC: f32 = LINEAR * 0.044_715;
        let one = V::splat(1.0);
        // Loops over indices, here and below: an iterator's parts that are not marked to be inlined may be compiled
        // elsewhere, without the caller's instructions.
        for row in 0..self.x.len() / self.stride {
            let x = &mut self.x[row * self.stride..].as_chunks_mut().0[..self.vectors];
            let slope = &mut self.slope[row * self.stride..].as_chunks_mut().0[..self.vectors];
            for c in 0..self.vectors {
                let v = V::load(&x[c]);
                let square = v.mul(v);
                let u = v.mul(V::splat(LINEAR).add_mul(V::splat(CUBIC), square));
                let sigma = u.logistic(1.0);
                let du = V::splat(LINEAR).add_mul(V::splat(3.0 * CUBIC), square);
                let value = v.mul(sigma);
                sigma.add_mul(value.mul(du), one.sub(sigma)).store(&mut slope[c]);
                value.store(&mut x[c]);
            }
        }
    }
}
