//! Products of d x d matrices and vectors, one in every lane ("lanes") or one for all of them ("shared").
//!
//! Plain loops over indices throughout: a closure would be compiled without the instruction set of its caller.
//! Every function takes d as a constant `D` where it is known when compiling (0 where it is not), so that its loops
//! unroll and its bounds checks vanish.

use super::lanes::{Lanes, Real, Vector};

/// Columns of a result that are kept in registers at once.
const BLOCK: usize = 5;

#[inline(always)]
fn straight(d: usize, i: usize, k: usize) -> usize {
    i * d + k
}

#[inline(always)]
fn transposed(d: usize, i: usize, k: usize) -> usize {
    k * d + i
}

/// `out = l r`, or `out += l r` if `ADD`; both factors may be read transposed, and the left one may be shared.
macro_rules! products {
    ($($(#[$doc:meta])* $name:ident: $left:ty, $load:expr, $at_left:ident, $at_right:ident;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub(super) fn $name<T: Real, V: Vector<T>, const D: usize, const ADD: bool>(
            d: usize,
            left: &[$left],
            right: &[Lanes<T>],
            out: &mut [Lanes<T>],
        ) {
            let d = if D == 0 { d } else { D };
            let (left, right, out) = (&left[..d * d], &right[..d * d], &mut out[..d * d]);
            for i in 0..d {
                let mut j = 0;
                while V::ROOM > 4 && j + BLOCK <= d {
                    let mut sum = [V::splat(T::default()); BLOCK];
                    if ADD {
                        for b in 0..BLOCK {
                            sum[b] = V::load(&out[i * d + j + b]);
                        }
                    }
                    for k in 0..d {
                        let l: V = $load(&left[$at_left(d, i, k)]);
                        for b in 0..BLOCK {
                            sum[b] = sum[b].add_mul(l, V::load(&right[$at_right(d, k, j + b)]));
                        }
                    }
                    for b in 0..BLOCK {
                        sum[b].store(&mut out[i * d + j + b]);
                    }
                    j += BLOCK;
                }
                while j < d {
                    let mut s = if ADD { V::load(&out[i * d + j]) } else { V::splat(T::default()) };
                    for k in 0..d {
                        s = s.add_mul($load(&left[$at_left(d, i, k)]), V::load(&right[$at_right(d, k, j)]));
                    }
                    s.store(&mut out[i * d + j]);
                    j += 1;
                }
            }
        }
    )*};
}

#[inline(always)]
fn shared<T: Real, V: Vector<T>>(v: &T) -> V {
    V::splat(*v)
}

products! {
    /// `l r`.
    product: Lanes<T>, V::load, straight, straight;
    /// `lᵀ r`.
    transposed_product: Lanes<T>, V::load, transposed, straight;
    /// `l rᵀ`.
    product_transposed: Lanes<T>, V::load, straight, transposed;
    /// `m r`, m shared.
    shared_product: T, shared::<T, V>, straight, straight;
    /// `mᵀ r`, m shared.
    shared_transposed_product: T, shared::<T, V>, transposed, straight;
}

/// `out = l m` or `out = l mᵀ` if `TRANSPOSED`, m shared; `out += …` if `ADD`.
#[inline(always)]
pub(super) fn product_shared<T: Real, V: Vector<T>, const D: usize, const ADD: bool, const TRANSPOSED: bool>(
    d: usize,
    left: &[Lanes<T>],
    m: &[T],
    out: &mut [Lanes<T>],
) {
    let d = if D == 0 { d } else { D };
    let (left, m, out) = (&left[..d * d], &m[..d * d], &mut out[..d * d]);
    for i in 0..d {
        for j in 0..d {
            let mut s = if ADD { V::load(&out[i * d + j]) } else { V::splat(T::default()) };
            for k in 0..d {
                let at = if TRANSPOSED { j * d + k } else { k * d + j };
                s = s.add_mul(V::splat(m[at]), V::load(&left[i * d + k]));
            }
            s.store(&mut out[i * d + j]);
        }
    }
}

macro_rules! applications {
    ($($(#[$doc:meta])* $name:ident: $m:ty, $load:expr, $at:ident;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub(super) fn $name<T: Real, V: Vector<T>, const D: usize, const ADD: bool>(
            d: usize,
            m: &[$m],
            v: &[Lanes<T>],
            out: &mut [Lanes<T>],
        ) {
            let d = if D == 0 { d } else { D };
            let (m, v, out) = (&m[..d * d], &v[..d], &mut out[..d]);
            for i in 0..d {
                let mut s = if ADD { V::load(&out[i]) } else { V::splat(T::default()) };
                for k in 0..d {
                    s = s.add_mul($load(&m[$at(d, i, k)]), V::load(&v[k]));
                }
                s.store(&mut out[i]);
            }
        }
    )*};
}

applications! {
    /// `m v`, m shared.
    shared_times: T, shared::<T, V>, straight;
    /// `mᵀ v`, m shared.
    shared_transposed_times: T, shared::<T, V>, transposed;
    /// `m v`.
    times: Lanes<T>, V::load, straight;
}

/// `out += u vᵀ`.
#[inline(always)]
pub(super) fn add_outer<T: Real, V: Vector<T>, const D: usize>(
    d: usize,
    u: &[Lanes<T>],
    v: &[Lanes<T>],
    out: &mut [Lanes<T>],
) {
    let d = if D == 0 { d } else { D };
    let (u, v, out) = (&u[..d], &v[..d], &mut out[..d * d]);
    for i in 0..d {
        let left = V::load(&u[i]);
        for j in 0..d {
            V::load(&out[i * d + j]).add_mul(left, V::load(&v[j])).store(&mut out[i * d + j]);
        }
    }
}

/// `out += a * v` entry by entry, for one scalar `a` of each prompt.
#[inline(always)]
pub(super) fn add_scaled<T: Real, V: Vector<T>>(a: &Lanes<T>, v: &[Lanes<T>], out: &mut [Lanes<T>]) {
    let a = V::load(a);
    for i in 0..out.len() {
        V::load(&out[i]).add_mul(a, V::load(&v[i])).store(&mut out[i]);
    }
}
