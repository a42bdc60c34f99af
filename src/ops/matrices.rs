//! Products of d x d matrices, one in every lane, or one for all lanes ("shared").
//!
//! Every product comes down to [`rows`]: a row of the result is a combination of rows of the right factor, kept in
//! registers while it grows where d is known when compiling.

use super::lanes::{Lanes, Real};

/// Columns that are kept in registers at once.
const BLOCK: usize = 5;

/// `out[i] += Σ_k left(i, k) * right[k]` over rows, the coefficient applied by `fma`.
#[inline(always)]
fn rows<T: Real, const D: usize>(
    d: usize,
    right: &[Lanes<T>],
    out: &mut [Lanes<T>],
    fma: impl Fn(usize, usize, &Lanes<T>, Lanes<T>) -> Lanes<T>,
) {
    let d = if D == 0 { d } else { D };
    let right = &right[..d * d];
    for (i, out) in out[..d * d].chunks_exact_mut(d).enumerate() {
        let mut blocks = out.chunks_exact_mut(BLOCK);
        let mut at = 0;
        for block in &mut blocks {
            let mut sum = [Lanes::zero(); BLOCK];
            sum.copy_from_slice(block);
            for (k, row) in right.chunks_exact(d).enumerate() {
                let row = &row[at..at + BLOCK];
                for (s, r) in sum.iter_mut().zip(row) {
                    *s = fma(i, k, r, *s);
                }
            }
            block.copy_from_slice(&sum);
            at += BLOCK;
        }
        for (j, o) in blocks.into_remainder().iter_mut().enumerate() {
            *o = right[at + j..].iter().step_by(d).enumerate().fold(*o, |s, (k, r)| fma(i, k, r, s));
        }
    }
}

macro_rules! products {
    ($($(#[$doc:meta])* $name:ident($left:ty) = |$l:ident, $r:ident, $s:ident, $i:ident, $k:ident, $d:ident| $body:expr;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub(super) fn $name<T: Real, const FMA: bool, const D: usize>(
            d: usize,
            left: &[$left],
            right: &[Lanes<T>],
            out: &mut [Lanes<T>],
        ) {
            let $d = if D == 0 { d } else { D };
            let $l = &left[..$d * $d];
            rows::<T, D>($d, right, out, |$i, $k, $r, $s| $body);
        }
    )*};
}

products! {
    /// `out += l r`.
    add_product(Lanes<T>) = |l, r, s, i, k, d| s.add_mul::<FMA>(&l[i * d + k], r);
    /// `out += lᵀ r`.
    add_transposed_product(Lanes<T>) = |l, r, s, i, k, d| s.add_mul::<FMA>(&l[k * d + i], r);
    /// `out += m r`, m shared.
    add_shared_lanes(T) = |l, r, s, i, k, d| s.add_scaled::<FMA>(l[i * d + k], r);
    /// `out += mᵀ r`, m shared.
    add_shared_transposed_lanes(T) = |l, r, s, i, k, d| s.add_scaled::<FMA>(l[k * d + i], r);
}

/// `out += l rᵀ`.
#[inline(always)]
pub(super) fn add_product_transposed<T: Real, const FMA: bool, const D: usize>(
    d: usize,
    left: &[Lanes<T>],
    right: &[Lanes<T>],
    out: &mut [Lanes<T>],
) {
    let d = if D == 0 { d } else { D };
    for (out, l) in out[..d * d].chunks_exact_mut(d).zip(left[..d * d].chunks_exact(d)) {
        for (o, r) in out.iter_mut().zip(right[..d * d].chunks_exact(d)) {
            *o = l.iter().zip(r).fold(*o, |s, (l, r)| s.add_mul::<FMA>(l, r));
        }
    }
}

/// `out += l m`, m shared.
#[inline(always)]
pub(super) fn add_lanes_shared<T: Real, const FMA: bool, const D: usize>(
    d: usize,
    left: &[Lanes<T>],
    m: &[T],
    out: &mut [Lanes<T>],
) {
    let d = if D == 0 { d } else { D };
    let m = &m[..d * d];
    for (out, l) in out[..d * d].chunks_exact_mut(d).zip(left[..d * d].chunks_exact(d)) {
        for (j, o) in out.iter_mut().enumerate() {
            *o = m[j..].iter().step_by(d).zip(l).fold(*o, |s, (m, l)| s.add_scaled::<FMA>(*m, l));
        }
    }
}

/// `out += l mᵀ`, m shared.
#[inline(always)]
pub(super) fn add_lanes_shared_transposed<T: Real, const FMA: bool, const D: usize>(
    d: usize,
    left: &[Lanes<T>],
    m: &[T],
    out: &mut [Lanes<T>],
) {
    let d = if D == 0 { d } else { D };
    for (out, l) in out[..d * d].chunks_exact_mut(d).zip(left[..d * d].chunks_exact(d)) {
        for (o, m) in out.iter_mut().zip(m[..d * d].chunks_exact(d)) {
            *o = m.iter().zip(l).fold(*o, |s, (m, l)| s.add_scaled::<FMA>(*m, l));
        }
    }
}
