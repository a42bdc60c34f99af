//! Small symmetric matrices, sixteen side by side: absolute value, Cholesky factor, in `f64`.
//!
//! Every training step on a kernel that is not positive semi-definite needs the absolute value of a few hundred
//! matrices of size 15: one after the other they would take a hundred times as long as the step itself.

use super::lanes::{Kernel, LANES, Lanes, Vector, dispatch, exp};

/// Where entry (i, j), i >= j, of a symmetric matrix is in its packed lower triangle.
#[inline(always)]
pub(crate) fn packed(i: usize, j: usize) -> usize {
    i * (i + 1) / 2 + j
}

/// The most rounds of rotations: Jacobi's method converges quadratically, and seven or eight are enough for size 15.
const SWEEPS: usize = 30;

/// The matrix with |eigenvalues|, in place: `lower` is the packed lower triangle, m(m+1)/2 long. Returns the least
/// eigenvalue.
///
/// By cyclic Jacobi rotations of whole tiles; entries must be finite.
pub(crate) fn absolute(m: usize, lower: &mut [Lanes<f64>]) -> Lanes<f64> {
    dispatch(Absolute { m, lower })
}

struct Absolute<'a> {
    m: usize,
    lower: &'a mut [Lanes<f64>],
}

impl Kernel<f64> for Absolute<'_> {
    type Output = Lanes<f64>;
    #[inline(always)]
    fn run<V: Vector<f64>>(self) -> Lanes<f64> {
        let m = self.m;
        let mut a: Vec<Lanes<f64>> =
            (0..m * m).map(|k| self.lower[packed((k / m).max(k % m), (k / m).min(k % m))]).collect();
        // The rows of `v` are the eigenvectors in the end.
        let mut v: Vec<Lanes<f64>> =
            (0..m * m).map(|k| Lanes::splat(if k % (m + 1) == 0 { 1.0 } else { 0.0 })).collect();
        for _ in 0..SWEEPS {
            if is_diagonal(&a, m) {
                break;
            }
            for p in 0..m {
                for q in p + 1..m {
                    let (mut cosine, mut sine) = (Lanes::zero(), Lanes::zero());
                    for i in 0..LANES {
                        let (pp, qq, pq) = (a[p * m + p].0[i], a[q * m + q].0[i], a[p * m + q].0[i]);
                        let gap = qq - pp;
                        let root = (gap * gap + 4.0 * pq * pq).sqrt();
                        // The smaller root; nothing to rotate, where both are 0, gives 0.
                        let t = 2.0 * pq * gap.signum() / (gap.abs() + root + f64::MIN_POSITIVE);
                        cosine.0[i] = 1.0 / (t * t + 1.0).sqrt();
                        sine.0[i] = t * cosine.0[i];
                    }
                    let (c, s) = (V::load(&cosine), V::load(&sine));
                    rotate_rows::<V>(&mut a, m, p, q, c, s);
                    for row in a.chunks_exact_mut(m) {
                        let (x, y) = (V::load(&row[p]), V::load(&row[q]));
                        c.mul(x).sub(s.mul(y)).store(&mut row[p]);
                        c.mul(y).add_mul(s, x).store(&mut row[q]);
                    }
                    rotate_rows::<V>(&mut v, m, p, q, c, s);
                }
            }
        }
        let mut least = Lanes::splat(f64::INFINITY);
        for i in 0..LANES {
            least.0[i] = (0..m).fold(f64::INFINITY, |least, k| least.min(a[k * m + k].0[i]));
        }
        for i in 0..m {
            for j in 0..=i {
                let mut sum = V::splat(0.0);
                for k in 0..m {
                    let value = V::load(&a[k * m + k]);
                    let size = value.max(V::splat(0.0).sub(value));
                    sum = sum.add_mul(size.mul(V::load(&v[k * m + i])), V::load(&v[k * m + j]));
                }
                sum.store(&mut self.lower[packed(i, j)]);
            }
        }
        least
    }
}

/// Whether nothing is left beside the diagonal, in any lane.
#[inline(always)]
fn is_diagonal(a: &[Lanes<f64>], m: usize) -> bool {
    let (mut off, mut all) = ([0.0; LANES], [0.0; LANES]);
    for i in 0..m {
        for j in 0..m {
            for lane in 0..LANES {
                let square = a[i * m + j].0[lane] * a[i * m + j].0[lane];
                all[lane] += square;
                off[lane] += if i == j { 0.0 } else { square };
            }
        }
    }
    (0..LANES).all(|lane| off[lane] <= f64::EPSILON * f64::EPSILON * all[lane])
}

#[inline(always)]
fn rotate_rows<V: Vector<f64>>(a: &mut [Lanes<f64>], m: usize, p: usize, q: usize, c: V, s: V) {
    let (before, after) = a.split_at_mut(q * m);
    for (x, y) in before[p * m..][..m].iter_mut().zip(&mut after[..m]) {
        let (u, w) = (V::load(x), V::load(y));
        c.mul(u).sub(s.mul(w)).store(x);
        c.mul(w).add_mul(s, u).store(y);
    }
}

/// The lower-triangular L with L Lᵀ = the matrix, in place; `lower` as for [`absolute`]. A pivot of at most `tolerance`
/// times its diagonal entry counts as 0 and so does its column: the matrix may be singular.
pub(crate) fn cholesky(m: usize, lower: &mut [Lanes<f64>], tolerance: f64) {
    for j in 0..m {
        for i in j..m {
            for lane in 0..LANES {
                let at = |i: usize, j: usize| lower[packed(i, j)].0[lane];
                let rest = at(i, j) - (0..j).map(|k| at(i, k) * at(j, k)).sum::<f64>();
                let value = if i == j {
                    if rest > tolerance * at(j, j) { rest.sqrt() } else { 0.0 }
                } else {
                    let pivot = at(j, j);
                    if pivot > 0.0 { rest / pivot } else { 0.0 }
                };
                lower[packed(i, j)].0[lane] = value;
            }
        }
    }
}

/// eˣ of every entry, in place.
pub(crate) fn exponentials(x: &mut [Lanes<f64>]) {
    dispatch(Exponentials(x));
}

struct Exponentials<'a>(&'a mut [Lanes<f64>]);

impl Kernel<f64> for Exponentials<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector<f64>>(self) {
        for x in self.0 {
            exp::<f64, V>(V::load(x)).store(x);
        }
    }
}
