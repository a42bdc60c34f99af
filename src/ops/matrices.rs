//! Products of d x d matrices and vectors, one in every lane ("lanes") or one for all of them ("shared").
//!
//! Plain loops over indices throughout: a closure would be compiled without the instruction set of its caller.
//! Every function takes d as a constant `D` where it is known when compiling (0 where it is not), so that its loops
//! unroll and its bounds checks vanish.

use super::lanes::{Lanes, Real};

/// Columns of a result that are kept in registers at once.
const BLOCK: usize = 5;

macro_rules! products {
    ($($(#[$doc:meta])* $name:ident, $left:ty, $fma:ident, $at:expr;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub(super) fn $name<T: Real, const FMA: bool, const D: usize>(
            d: usize,
            left: &[$left],
            right: &[Lanes<T>],
            out: &mut [Lanes<T>],
        ) {
            let d = if D == 0 { d } else { D };
            let (left, right, out) = (&left[..d * d], &right[..d * d], &mut out[..d * d]);
            let at: fn(usize, usize, usize) -> usize = $at;
            for i in 0..d {
                let mut j = 0;
                while j + BLOCK <= d {
                    let mut sum = [Lanes::zero(); BLOCK];
                    for b in 0..BLOCK {
                        sum[b] = out[i * d + j + b];
                    }
                    for k in 0..d {
                        let l = left[at(d, i, k)];
                        for b in 0..BLOCK {
                            sum[b] = sum[b].$fma::<FMA>(l, &right[k * d + j + b]);
                        }
                    }
                    for b in 0..BLOCK {
                        out[i * d + j + b] = sum[b];
                    }
                    j += BLOCK;
                }
                while j < d {
                    let mut s = out[i * d + j];
                    for k in 0..d {
                        s = s.$fma::<FMA>(left[at(d, i, k)], &right[k * d + j]);
                    }
                    out[i * d + j] = s;
                    j += 1;
                }
            }
        }
    )*};
}

#[inline(always)]
fn straight(d: usize, i: usize, k: usize) -> usize {
    i * d + k
}

#[inline(always)]
fn transposed(d: usize, i: usize, k: usize) -> usize {
    k * d + i
}

products! {
    /// `out += l r`.
    add_product, Lanes<T>, add_mul, straight;
    /// `out += lᵀ r`.
    add_transposed_product, Lanes<T>, add_mul, transposed;
    /// `out += m r`, m shared.
    add_shared_lanes, T, add_scaled, straight;
    /// `out += mᵀ r`, m shared.
    add_shared_transposed_lanes, T, add_scaled, transposed;
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
    let (left, right, out) = (&left[..d * d], &right[..d * d], &mut out[..d * d]);
    for i in 0..d {
        for j in 0..d {
            let mut s = out[i * d + j];
            for k in 0..d {
                s = s.add_mul::<FMA>(left[i * d + k], &right[j * d + k]);
            }
            out[i * d + j] = s;
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
    let (left, m, out) = (&left[..d * d], &m[..d * d], &mut out[..d * d]);
    for i in 0..d {
        for j in 0..d {
            let mut s = out[i * d + j];
            for k in 0..d {
                s = s.add_scaled::<FMA>(m[k * d + j], &left[i * d + k]);
            }
            out[i * d + j] = s;
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
    let (left, m, out) = (&left[..d * d], &m[..d * d], &mut out[..d * d]);
    for i in 0..d {
        for j in 0..d {
            let mut s = out[i * d + j];
            for k in 0..d {
                s = s.add_scaled::<FMA>(m[j * d + k], &left[i * d + k]);
            }
            out[i * d + j] = s;
        }
    }
}

macro_rules! applications {
    ($($(#[$doc:meta])* $name:ident, $m:ty, $fma:ident, $at:expr;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub(super) fn $name<T: Real, const FMA: bool, const D: usize>(
            d: usize,
            m: &[$m],
            v: &[Lanes<T>],
            out: &mut [Lanes<T>],
        ) {
            let d = if D == 0 { d } else { D };
            let (m, v, out) = (&m[..d * d], &v[..d], &mut out[..d]);
            let at: fn(usize, usize, usize) -> usize = $at;
            for i in 0..d {
                let mut s = out[i];
                for k in 0..d {
                    s = s.$fma::<FMA>(m[at(d, i, k)], &v[k]);
                }
                out[i] = s;
            }
        }
    )*};
}

applications! {
    /// `out += m v`, m shared.
    add_shared_times, T, add_scaled, straight;
    /// `out += mᵀ v`, m shared.
    add_shared_transposed_times, T, add_scaled, transposed;
    /// `out += m v`.
    add_lanes_times, Lanes<T>, add_mul, straight;
}

/// `out += u vᵀ`.
#[inline(always)]
pub(super) fn add_outer<T: Real, const FMA: bool, const D: usize>(
    d: usize,
    u: &[Lanes<T>],
    v: &[Lanes<T>],
    out: &mut [Lanes<T>],
) {
    let d = if D == 0 { d } else { D };
    let (u, v, out) = (&u[..d], &v[..d], &mut out[..d * d]);
    for i in 0..d {
        for j in 0..d {
            out[i * d + j] = out[i * d + j].add_mul::<FMA>(u[i], &v[j]);
        }
    }
}
