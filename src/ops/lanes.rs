//! Sixteen prompts side by side: the unit of work of the fused ops, and the choice of instruction set at run time.
//!
//! The matrices of one prompt are too small (5 x 5) to fill a vector register, so every scalar of the algebra becomes
//! [`LANES`] scalars, one of each of sixteen prompts, and every multiply-add one or two vector instructions. The
//! instructions are written out: left to itself, the compiler vectorises over the columns of the small matrices.

use super::simd::{self, InstructionSet};

/// Prompts in a tile.
pub const LANES: usize = 16;

/// One scalar of each of [`LANES`] prompts, in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub struct Lanes<T>(pub [T; LANES]);

impl<T: Real> Lanes<T> {
    /// The same value in every lane.
    #[inline(always)]
    pub fn splat(v: T) -> Self {
        Lanes([v; LANES])
    }

    /// Zero in every lane.
    #[inline(always)]
    pub fn zero() -> Self {
        Lanes::splat(T::default())
    }

    /// The lanes' sum, in `f64`.
    pub fn sum(&self) -> f64 {
        self.0.iter().map(|v| v.f64()).sum()
    }
}

/// As many whole entries as fit into `data`, which begin at the first multiple of 64 bytes.
pub(super) fn in_lanes(data: &[f32]) -> &[Lanes<f32>] {
    // SAFETY: an entry is sixteen numbers one after the other, any of them, and the method sees to where it may begin.
    unsafe { data.align_to().1 }
}

/// As [`in_lanes`], to be written.
pub(super) fn in_lanes_mut(data: &mut [f32]) -> &mut [Lanes<f32>] {
    // SAFETY: as for `in_lanes`.
    unsafe { data.align_to_mut().1 }
}

/// Has these brought into the second cache while other work goes on: what comes from further away is waited for otherwise.
#[inline(always)]
pub fn prefetch<T>(lanes: &[Lanes<T>]) {
    for line in lanes {
        simd::prefetch::<true>(std::ptr::from_ref(line).cast());
    }
}

/// [`LANES`] scalars in registers. A type of an instruction set exists only inside [`dispatch`], which checks for it.
pub trait Vector<T>: Copy {
    /// Whether loops over the paper's dimension are unrolled for it: worth its compile time for training alone.
    const UNROLL: bool = false;
    /// How many of these the registers hold. With few, blocks of a product's columns cost compile time alone.
    const ROOM: usize = 4;
    /// The same value in every lane.
    fn splat(v: T) -> Self;
    /// Reads from memory.
    fn load(v: &Lanes<T>) -> Self;
    /// Writes to memory.
    fn store(self, to: &mut Lanes<T>);
    /// `self + a * b`, in one rounding where the instruction set has that.
    fn add_mul(self, a: Self, b: Self) -> Self;
    /// `self + b`.
    fn add(self, b: Self) -> Self;
    /// `self - b`.
    fn sub(self, b: Self) -> Self;
    /// `self * b`.
    fn mul(self, b: Self) -> Self;
    /// `self / b`.
    fn div(self, b: Self) -> Self;
    /// The greater of both; NaN stays NaN.
    fn max(self, b: Self) -> Self;
    /// The lesser of both; NaN stays NaN.
    fn min(self, b: Self) -> Self;
    /// `then` in the lanes where `self` is above 0, and 0 in the others.
    fn where_positive(self, then: Self) -> Self;
    /// The bits of `self` plus those of `of`, moved up to where the exponent begins: times 2ᵏ, if the low bits of `of`
    /// are the integer k.
    fn shift_exponent(self, of: Self) -> Self;
    /// The work of `A` with this instruction set, compiled apart from what calls it.
    fn apart<A: Apart<T>>() -> Called<T, A::Of, A::Right, A::Out>
    where
        T: Real;
    /// The sums over the lanes of the first `count` of `vectors`, each as ((0 + 8) + (4 + 12)) + …: the halves, then their
    /// halves.
    #[inline(always)]
    fn lane_sums(vectors: [Self; LANES], count: usize) -> Lanes<T>
    where
        T: Real,
    {
        let (mut sums, mut lanes) = (Lanes::zero(), Lanes::zero());
        for (to, vector) in sums.0.iter_mut().zip(vectors).take(count) {
            vector.store(&mut lanes);
            let mut width = LANES / 2;
            while width > 0 {
                for k in 0..width {
                    lanes.0[k] += lanes.0[k + width];
                }
                width /= 2;
            }
            *to = lanes.0[0];
        }
        sums
    }
}

/// eˣ to about an ulp, for x that is cut off where the result would leave the range of normal numbers.
///
/// x = k ln 2 + r with |r| <= ln 2 / 2; a Taylor polynomial gives eʳ, and k goes into the exponent.
#[inline(always)]
pub fn exp<T: Real, V: Vector<T>>(x: V) -> V {
    let at = |v: f64| V::splat(T::of(v));
    let x = x.min(at(T::EXP_RANGE.1)).max(at(T::EXP_RANGE.0));
    // Added to a number this large, x / ln 2 is rounded to an integer, which is then in the sum's low bits.
    let large = at(T::ROUND);
    let sum = large.add_mul(x, at(std::f64::consts::LOG2_E));
    let k = sum.sub(large);
    let r = x.add_mul(k, at(-T::LN_2.0)).add_mul(k, at(-T::LN_2.1));
    let mut p = at(INVERSE_FACTORIALS[T::EXP_DEGREE]);
    for c in INVERSE_FACTORIALS[..T::EXP_DEGREE].iter().rev() {
        p = at(*c).add_mul(p, r);
    }
    p.shift_exponent(sum)
}

/// 1 / k! for k = 0, 1, ….
const INVERSE_FACTORIALS: [f64; 14] = {
    let mut table = [1.0; 14];
    let mut k = 1;
    while k < 14 {
        table[k] = table[k - 1] / k as f64;
        k += 1;
    }
    table
};

/// A scalar of the algebra: `f32` for training, `f64` for what is checked to machine precision.
pub trait Real: dfdx::prelude::Dtype + dfdx::prelude::Unit + Default + Send + Sync + 'static {
    /// Registers of AVX-512.
    #[cfg(target_arch = "x86_64")]
    type Avx512: Vector<Self>;
    /// Registers of AVX2.
    #[cfg(target_arch = "x86_64")]
    type Avx2: Vector<Self>;
    /// The arguments between which [`exp`] is not cut off.
    const EXP_RANGE: (f64, f64);
    /// 1.5 times the number from which on there are integers only.
    const ROUND: f64;
    /// ln 2 in two parts, the first with so few bits that its products with small integers are exact.
    const LN_2: (f64, f64);
    /// Degree of the polynomial of [`exp`].
    const EXP_DEGREE: usize;
    /// Rounds from `f64`.
    fn of(v: f64) -> Self;
    /// Widens to `f64`.
    fn f64(self) -> f64;
    /// `self * b + c`, fused if that is an instruction of every machine of this architecture.
    fn mul_plus(self, b: Self, c: Self) -> Self;
    /// As [`Vector::shift_exponent`], of one lane.
    fn shift_exponent(self, of: Self) -> Self;
}

/// The portable vector: plain arrays.
#[derive(Clone, Copy)]
pub struct Portable<T>([T; LANES]);

impl<T: Real> Vector<T> for Portable<T> {
    #[inline(always)]
    fn splat(v: T) -> Self {
        Portable([v; LANES])
    }
    #[inline(always)]
    fn load(v: &Lanes<T>) -> Self {
        Portable(v.0)
    }
    #[inline(always)]
    fn store(self, to: &mut Lanes<T>) {
        to.0 = self.0;
    }
    #[inline(always)]
    fn add_mul(mut self, a: Self, b: Self) -> Self {
        for i in 0..LANES {
            self.0[i] = a.0[i].mul_plus(b.0[i], self.0[i]);
        }
        self
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        self.zip(b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        self.zip(b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        self.zip(b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, b: Self) -> Self {
        self.zip(b, |a, b| a / b)
    }
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        self.zip(b, |a, b| if b > a { b } else { a })
    }
    fn apart<A: Apart<T>>() -> Called<T, A::Of, A::Right, A::Out> {
        A::run::<Self>
    }
    #[inline(always)]
    fn min(self, b: Self) -> Self {
        self.zip(b, |a, b| if b < a { b } else { a })
    }
    #[inline(always)]
    fn where_positive(self, then: Self) -> Self {
        self.zip(then, |a, then| if a > T::default() { then } else { T::default() })
    }
    #[inline(always)]
    fn shift_exponent(self, of: Self) -> Self {
        self.zip(of, T::shift_exponent)
    }
}

impl<T: Real> Portable<T> {
    #[inline(always)]
    fn zip(mut self, b: Self, f: impl Fn(T, T) -> T) -> Self {
        for i in 0..LANES {
            self.0[i] = f(self.0[i], b.0[i]);
        }
        self
    }
}

macro_rules! real {
    ($t:ty, $avx512:ty, $avx2:ty, $range:expr, $round:expr, $ln_2:expr, $degree:literal, $mantissa:literal) => {
        impl Real for $t {
            #[cfg(target_arch = "x86_64")]
            type Avx512 = $avx512;
            #[cfg(target_arch = "x86_64")]
            type Avx2 = $avx2;
            const EXP_RANGE: (f64, f64) = $range;
            const ROUND: f64 = $round;
            const LN_2: (f64, f64) = $ln_2;
            const EXP_DEGREE: usize = $degree;
            #[inline(always)]
            fn of(v: f64) -> Self {
                v as $t
            }
            #[inline(always)]
            fn f64(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            fn mul_plus(self, b: Self, c: Self) -> Self {
                // Without the instruction a fused multiply-add is a slow call.
                if cfg!(target_arch = "aarch64") { self.mul_add(b, c) } else { self * b + c }
            }
            #[inline(always)]
            fn shift_exponent(self, of: Self) -> Self {
                Self::from_bits(self.to_bits().wrapping_add(of.to_bits() << $mantissa))
            }
        }
    };
}
real!(f32, x86::Avx512F32, x86::Avx2F32, (-87.0, 88.0), 1.5 * 8_388_608.0, (0.693_359_375, -2.121_944_4e-4), 7, 23);
real!(
    f64,
    x86::Avx512F64,
    x86::Avx2F64,
    (-708.0, 709.0),
    1.5 * 4_503_599_627_370_496.0,
    (6.931_471_803_691_238e-1, 1.908_214_929_270_587_7e-10),
    13,
    52
);

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Apart, Called, Lanes, Vector};
    use crate::ops::simd::Simd;
    use crate::ops::simd::x86::Avx512;

    macro_rules! vector {
        ($name:ident, $t:ty, $register:ty, $n:literal, $load:ident, $store:ident, $splat:ident, $fma:ident,
         $add:ident, $sub:ident, $mul:ident, $div:ident, $max:ident, $min:ident, $positive:tt, $shift:tt,
         $unroll:literal, $room:literal, $features:literal $(, $lane_sums:item)?) => {
            #[derive(Clone, Copy)]
            pub struct $name([$register; $n]);

            impl Vector<$t> for $name {
                const UNROLL: bool = $unroll;
                const ROOM: usize = $room;
                #[inline(always)]
                fn splat(v: $t) -> Self {
                    // SAFETY: `dispatch` has found this instruction set on this machine.
                    $name([unsafe { $splat(v) }; $n])
                }
                #[inline(always)]
                fn load(v: &Lanes<$t>) -> Self {
                    const WIDTH: usize = super::LANES / $n;
                    let mut out = <Self as Vector<$t>>::splat(0.0).0;
                    for i in 0..$n {
                        // SAFETY: as above; register i covers entries below LANES of `v`, which is aligned to 64 bytes.
                        out[i] = unsafe { $load(v.0.as_ptr().add(i * WIDTH)) };
                    }
                    $name(out)
                }
                #[inline(always)]
                fn store(self, to: &mut Lanes<$t>) {
                    const WIDTH: usize = super::LANES / $n;
                    for i in 0..$n {
                        // SAFETY: as for `load`.
                        unsafe { $store(to.0.as_mut_ptr().add(i * WIDTH), self.0[i]) };
                    }
                }
                #[inline(always)]
                fn add_mul(mut self, a: Self, b: Self) -> Self {
                    for i in 0..$n {
                        // SAFETY: `dispatch` has found this instruction set on this machine.
                        self.0[i] = unsafe { $fma(a.0[i], b.0[i], self.0[i]) };
                    }
                    self
                }
                vector!(zip add, (|a, b| $add(a, b)));
                vector!(zip sub, (|a, b| $sub(a, b)));
                vector!(zip mul, (|a, b| $mul(a, b)));
                vector!(zip div, (|a, b| $div(a, b)));
                // Of two operands the instruction gives the second if one is NaN.
                vector!(zip max, (|a, b| $max(b, a)));
                vector!(zip min, (|a, b| $min(b, a)));
                vector!(zip where_positive, $positive);
                vector!(zip shift_exponent, $shift);
                fn apart<A: Apart<$t>>() -> Called<$t, A::Of, A::Right, A::Out> {
                    #[target_feature(enable = $features)]
                    unsafe fn run<A: Apart<$t>>(
                        of: &A::Of,
                        count: usize,
                        left: *const Lanes<$t>,
                        right: A::Right,
                        out: *mut A::Out,
                    ) {
                        // SAFETY: the caller's.
                        unsafe { A::run::<$name>(of, count, left, right, out) }
                    }
                    run::<A>
                }
                $($lane_sums)?
            }
        };
        (zip $name:ident, $f:tt) => {
            #[inline(always)]
            fn $name(mut self, b: Self) -> Self {
                for i in 0..self.0.len() {
                    // SAFETY: `dispatch` has found this instruction set on this machine.
                    self.0[i] = unsafe { vector!(call $f, self.0[i], b.0[i]) };
                }
                self
            }
        };
        (call (|$x:ident, $y:ident| $body:expr), $a:expr, $b:expr) => {{
            let ($x, $y) = ($a, $b);
            $body
        }};
    }
    vector!(
        Avx512F32,
        f32,
        __m512,
        1,
        _mm512_load_ps,
        _mm512_store_ps,
        _mm512_set1_ps,
        _mm512_fmadd_ps,
        _mm512_add_ps,
        _mm512_sub_ps,
        _mm512_mul_ps,
        _mm512_div_ps,
        _mm512_max_ps,
        _mm512_min_ps,
        (|a, then| _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, _mm512_setzero_ps()), then)),
        (|a, of| _mm512_castsi512_ps(_mm512_add_epi32(
            _mm512_castps_si512(a),
            _mm512_slli_epi32::<23>(_mm512_castps_si512(of))
        ))),
        true,
        32,
        "avx512f,avx2,fma",
        #[inline(always)]
        fn lane_sums(vectors: [Self; super::LANES], count: usize) -> Lanes<f32> {
            let mut sums = Lanes::zero();
            if count == 1 {
                sums.0[0] = Avx512(vectors[0].0[0]).sum();
                return sums;
            }
            // Two vectors become one, of half as many sums each, until one vector holds a sum of every vector. Vector k stands
            // at place b2 b3 b0 b1, if its number is b3 b2 b1 b0: so the sums come out in order.
            let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = vectors;
            let mut v = [
                a.0[0], c.0[0], b.0[0], d.0[0], i.0[0], k.0[0], j.0[0], l.0[0], e.0[0], g.0[0], f.0[0], h.0[0], m.0[0],
                o.0[0], n.0[0], p.0[0],
            ];
            // SAFETY: `dispatch` has found this instruction set on this machine.
            unsafe {
                for i in 0..8 {
                    let (a, b) = (v[i], v[i + 8]);
                    v[i] = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
                }
                for i in 0..4 {
                    let (a, b) = (v[i], v[i + 4]);
                    v[i] = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
                }
                for i in 0..2 {
                    let (a, b) = (_mm512_castps_pd(v[i]), _mm512_castps_pd(v[i + 2]));
                    let (low, high) = (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
                    v[i] = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
                }
                let (even, odd) = (_mm512_shuffle_ps::<0x88>(v[0], v[1]), _mm512_shuffle_ps::<0xdd>(v[0], v[1]));
                Avx512F32([_mm512_add_ps(even, odd)]).store(&mut sums);
            }
            sums
        }
    );
    vector!(
        Avx512F64,
        f64,
        __m512d,
        2,
        _mm512_load_pd,
        _mm512_store_pd,
        _mm512_set1_pd,
        _mm512_fmadd_pd,
        _mm512_add_pd,
        _mm512_sub_pd,
        _mm512_mul_pd,
        _mm512_div_pd,
        _mm512_max_pd,
        _mm512_min_pd,
        (|a, then| _mm512_maskz_mov_pd(_mm512_cmp_pd_mask::<_CMP_GT_OQ>(a, _mm512_setzero_pd()), then)),
        (|a, of| _mm512_castsi512_pd(_mm512_add_epi64(
            _mm512_castpd_si512(a),
            _mm512_slli_epi64::<52>(_mm512_castpd_si512(of))
        ))),
        false,
        16,
        "avx512f,avx2,fma"
    );
    vector!(
        Avx2F32,
        f32,
        __m256,
        2,
        _mm256_load_ps,
        _mm256_store_ps,
        _mm256_set1_ps,
        _mm256_fmadd_ps,
        _mm256_add_ps,
        _mm256_sub_ps,
        _mm256_mul_ps,
        _mm256_div_ps,
        _mm256_max_ps,
        _mm256_min_ps,
        (|a, then| _mm256_and_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(a, _mm256_setzero_ps()), then)),
        (|a, of| _mm256_castsi256_ps(_mm256_add_epi32(
            _mm256_castps_si256(a),
            _mm256_slli_epi32::<23>(_mm256_castps_si256(of))
        ))),
        true,
        8,
        "avx2,fma"
    );
    vector!(
        Avx2F64,
        f64,
        __m256d,
        4,
        _mm256_load_pd,
        _mm256_store_pd,
        _mm256_set1_pd,
        _mm256_fmadd_pd,
        _mm256_add_pd,
        _mm256_sub_pd,
        _mm256_mul_pd,
        _mm256_div_pd,
        _mm256_max_pd,
        _mm256_min_pd,
        (|a, then| _mm256_and_pd(_mm256_cmp_pd::<_CMP_GT_OQ>(a, _mm256_setzero_pd()), then)),
        (|a, of| _mm256_castsi256_pd(_mm256_add_epi64(
            _mm256_castpd_si256(a),
            _mm256_slli_epi64::<52>(_mm256_castpd_si256(of))
        ))),
        false,
        4,
        "avx2,fma"
    );
}

/// Work on tiles that is compiled once for each instruction set and run on the best one that the machine has.
pub trait Kernel<T: Real> {
    /// What it gives back.
    type Output;
    /// Does the work. Implementations, and all that they call, are `inline(always)`, so that the instruction set of
    /// the caller is theirs.
    fn run<V: Vector<T>>(self) -> Self::Output;
}

/// A block of a product of matrices that have an entry a lane, which a [`Vector`] gives as a function ([`Vector::apart`]).
pub trait Apart<T: Real> {
    /// What the blocks of a product have in common.
    type Of;
    /// An entry of the right factor.
    type Right;
    /// An entry of the result.
    type Out;
    /// Makes the block of the result that begins at `out`, from rows that begin at `left` and columns that begin at `right`, with
    /// `count` summands; `inline(always)`, as [`Kernel::run`].
    ///
    /// # Safety
    /// All of it lies inside what the pointers point to.
    unsafe fn run<V: Vector<T>>(
        of: &Self::Of,
        count: usize,
        left: *const Lanes<T>,
        right: Self::Right,
        out: *mut Self::Out,
    );
}

/// A function that [`Vector::apart`] gives. Besides what [`Apart::run`] asks for it is to be called on machines with the
/// instruction set alone, on which [`dispatch`] has found it.
pub type Called<T, Of, Right, Out> = unsafe fn(&Of, usize, *const Lanes<T>, Right, *mut Out);

/// Runs `kernel` with the best instructions of this machine ([`InstructionSet::of_this_machine`]).
pub fn dispatch<T: Real, K: Kernel<T>>(kernel: K) -> K::Output {
    match InstructionSet::of_this_machine() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the features that the function is compiled for were found on this machine.
        InstructionSet::Amx | InstructionSet::Avx512 => unsafe { run_avx512(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        InstructionSet::Avx2 => unsafe { run_avx2(kernel) },
        _ => kernel.run::<Portable<T>>(),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
fn run_avx512<T: Real, K: Kernel<T>>(kernel: K) -> K::Output {
    kernel.run::<T::Avx512>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2<T: Real, K: Kernel<T>>(kernel: K) -> K::Output {
    kernel.run::<T::Avx2>()
}
